"""The transmit process's side of the outlets: each gets what it wants, encoded once, and none holds it up."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgesan.frames import SanitizedFrame
from edgesan.message import MOST_SIDE, FaceCode, Latents, Place
from edgesan.outlets.channel import (
    CHIP,
    CODES,
    JPEG,
    MOST_DOWN,
    STATUS,
    VIDEO,
    Chip,
    Codes,
    Down,
    Inbox,
    Jpeg,
    Key,
    Report,
    Signal,
    State,
    Up,
    Video,
    Want,
    pack_up,
    parse_down,
)
from edgesan.outlets.link import Closed, Link
from edgesan.request import Alpha, Privacy, Request, Zones
from edgesan.targets import parse
from edgesan.transmit.jpeg import JpegEncoder
from edgesan.transmit.outlets import Outlets

Make = Callable[..., SanitizedFrame]
STEP_NS = 40_000_000
MODEL = "ab" * 32


class Stage:
    """Outlets whose processes are in this test: it holds the other ends of their channels."""

    def __init__(self, *urls: str) -> None:
        self.asked: list[Request] = []
        self.outlets = Outlets([parse(url) for url in urls], JpegEncoder(), lambda each: not self.asked.append(each))
        self._inboxes: list[Inbox] = []
        self.ends: list[socket.socket] = []
        for number in range(len(urls)):
            self.start(number)

    def start(self, number: int) -> None:
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        self.ends.insert(number, theirs)
        self._inboxes.insert(number, Inbox(MOST_DOWN))
        self.outlets.connect(number, ours.detach())

    async def say(self, number: int, *values: Up) -> None:
        self.ends[number].sendall(b"".join(map(pack_up, values)))
        await settled()

    def heard(self, number: int) -> list[Down]:
        found: list[Down] = []
        while True:
            try:
                content = self.ends[number].recv(2**20)
            except BlockingIOError:
                return found
            found += [parse_down(*each) for each in self._inboxes[number].feed(content)]

    def close(self) -> None:
        self.outlets.close()
        for end in self.ends:
            end.close()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0.002)


@pytest.fixture
def stage() -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine with a stage of outlets."""

    def run(play: Callable[[Stage], Any], *urls: str) -> None:
        async def whole() -> None:
            built = Stage(*(urls or ("rtsp://a/1", "rtsp://b/2", "rtsp://c/3")))
            try:
                await play(built)
            finally:
                built.close()

        asyncio.run(whole())

    yield run


def test_nothing_is_encoded_for_nobody_and_once_for_many(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        s.outlets.send(sanitized_frame(0))
        assert s.outlets.encodes == {"jpeg": 0, "h264": 0}
        for number in range(3):
            await s.say(number, Want(VIDEO | JPEG))
        for number in range(1, 11):
            s.outlets.send(sanitized_frame(number, captured_ns=number * STEP_NS))
        assert s.outlets.encodes == {"jpeg": 10, "h264": 10}
        for number in range(3):
            heard = s.heard(number)
            assert [type(each) for each in heard].count(Video) == 10
            assert [type(each) for each in heard].count(Jpeg) == 10

    stage(play)


def test_an_h264_encoder_that_fails_costs_no_jpeg_and_its_video_goes_on(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        for number, kinds in enumerate((VIDEO, VIDEO | JPEG, JPEG)):
            await s.say(number, State(True), Want(kinds))
        s.outlets.send(sanitized_frame(1, captured_ns=STEP_NS))
        for number in (2, 3):  # wider than libx264 takes; JPEG does
            s.outlets.send(sanitized_frame(number, (16386, 16), number * STEP_NS))
        assert s.outlets.encodes == {"jpeg": 3, "h264": 1}
        assert s.outlets.encode_errors == {"h264": 1}
        why = [each["why"] for each in s.outlets.report()]
        assert "cannot encode a picture of 16386x16 as H.264" in why[0]
        assert why[1] == why[0]
        assert why[2] == ""
        await asyncio.sleep(0.6)
        for number in (20, 21):
            s.outlets.send(sanitized_frame(number, captured_ns=number * STEP_NS))
        assert s.outlets.encode_errors == {"h264": 1}
        for number in (0, 1):
            heard = s.heard(number)
            assert [each.key for each in heard if isinstance(each, Video)] == [True, True, False]
            assert [type(each) for each in heard].count(Jpeg) == 5 * number
        assert len(s.heard(2)) == 5

    stage(play)


def test_each_outlet_gets_what_it_wants_and_nothing_else(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        for number, kind in enumerate((STATUS, CODES, CHIP)):
            await s.say(number, Want(kind))
        frame = sanitized_frame(1)
        latents = Latents(1, 5, 5, 64, 48, 0.0, 9, (FaceCode(3, Place(9, 9, 9, 0), b"code"),))
        s.outlets.send(frame)
        s.outlets.send_codes(latents, MODEL)
        s.outlets.send_chips([(3, frame.pixels[:32, :32])], 5, MODEL)
        s.outlets.send_status(lambda: {"fps": 1})
        status, codes, chips = (s.heard(number) for number in range(3))
        assert status == [Report({"fps": 1})]
        assert [type(each) for each in codes] == [Codes]
        assert isinstance(codes[0], Codes)
        assert codes[0].latents == latents
        assert codes[0].model == bytes.fromhex(MODEL)
        assert [(type(each), each.track) for each in chips if isinstance(each, Chip)] == [(Chip, 3)]

    stage(play)


def test_video_begins_with_a_key_frame_also_for_one_that_comes_late(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        await s.say(0, Want(VIDEO))
        for number in range(5):
            s.outlets.send(sanitized_frame(number, captured_ns=number * STEP_NS))
        await s.say(1, Want(VIDEO))
        for number in range(5, 9):
            s.outlets.send(sanitized_frame(number, captured_ns=number * STEP_NS))
        late = [each.key for each in s.heard(1) if isinstance(each, Video)]
        assert late == [True, False, False, False]
        await s.say(1, Key())
        s.outlets.send(sanitized_frame(9, captured_ns=9 * STEP_NS))
        assert [each.key for each in s.heard(1) if isinstance(each, Video)] == [True]

    stage(play)


def test_one_that_reads_nothing_loses_frames_and_goes_on_with_a_key_frame(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        await s.say(0, Want(VIDEO | JPEG))
        await s.say(1, Want(VIDEO))
        big = sanitized_frame(0, (640, 480)).pixels
        for number in range(200):
            s.outlets.send(SanitizedFrame._create(big, sanitized_frame(number, captured_ns=number * STEP_NS).stamps))
            s.heard(1)
        assert s.outlets.report()[0]["dropped"] > 0
        assert s.outlets.report()[1]["dropped"] == 0
        waited: list[Down] = []
        for _ in range(200):
            waited += s.heard(0)
            await asyncio.sleep(0)
        s.outlets.send(sanitized_frame(300, (640, 480), captured_ns=300 * STEP_NS))
        await settled()
        assert [each.key for each in s.heard(0) if isinstance(each, Video)] == [True]
        assert len(waited) < 200

    stage(play)


def test_jpegs_come_no_faster_than_they_are_wanted(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        await s.say(0, Want(JPEG, 1000))
        for number in range(1, 76):
            s.outlets.send(sanitized_frame(number, captured_ns=10**10 + number * STEP_NS))
        assert len(s.heard(0)) == 3
        assert s.outlets.encodes["jpeg"] == 3

    stage(play)


def test_a_picture_that_fits_in_no_message_is_left_out_and_all_else_goes_on(
    stage: Any, sanitized_frame: Make, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1600, MOST_SIDE, 3), np.uint8)

    async def play(s: Stage) -> None:
        for number in range(3):
            await s.say(number, Want(CODES if number == 2 else JPEG))
        for number in (1, 2):
            frame = SanitizedFrame._create(noise, sanitized_frame(number, captured_ns=number * STEP_NS).stamps)
            s.outlets.send(frame)
        s.outlets.send_codes(Latents(2, 5, 5, 64, 48, 0.0, 9), MODEL)
        s.outlets.send(sanitized_frame(3, captured_ns=3 * STEP_NS))
        assert [[type(each) for each in s.heard(number)] for number in range(3)] == [[Jpeg], [Jpeg], [Codes]]
        assert [each["dropped"] for each in s.outlets.report()] == [2, 2, 0]

    with caplog.at_level(logging.WARNING):
        stage(play)
    (said,) = caplog.messages
    assert "the outputs do without it" in said


def test_what_an_outlet_asks_for_is_passed_on_and_its_state_is_shown(stage: Any) -> None:
    async def play(s: Stage) -> None:
        await s.say(1, Alpha(0.25), State(True, "", 1234, 2))
        assert s.asked == [Alpha(0.25)]
        shown = s.outlets.report()[1]
        assert (shown["to"], shown["connected"], shown["bytes"], shown["retries"]) == ("mqtt://b", True, 1234, 2)
        s.ends[1].close()
        await settled()
        assert not s.outlets.report()[1]["connected"]
        assert s.outlets.report()[1]["bytes"] == 1234

    stage(play, "rtsp://a/1", "mqtt://b")


@pytest.mark.parametrize(("number", "asked"), [(0, Alpha(0.0)), (0, Privacy(False)), (1, Zones(()))])
def test_an_outlet_asks_for_nothing_that_is_not_its_own_to_ask_for(stage: Any, number: int, asked: Request) -> None:
    """Whoever took over the process that pushes a stream turns no dial, and a broker opens no zone."""

    async def play(s: Stage) -> None:
        await s.say(number, asked)
        assert s.asked == []
        assert s.ends[number].recv(1) == b""

    stage(play, "rtsp://a/1", "mqtt://b")


def test_an_outlet_that_sends_nonsense_loses_its_channel_alone(stage: Any) -> None:
    async def play(s: Stage) -> None:
        s.ends[0].sendall(b"\xff" * 64)
        await settled()
        assert s.ends[0].recv(1) == b""
        await s.say(1, State(True))
        assert s.outlets.report()[1]["connected"]
        s.start(0)
        await s.say(0, State(True))
        assert s.outlets.report()[0]["connected"]
        assert s.outlets.report()[0]["starts"] == 2

    stage(play)


def test_a_question_gets_its_answer(stage: Any) -> None:
    async def play(s: Stage) -> None:
        asked = asyncio.create_task(s.outlets.ask("push", {"offer": 1}))
        await settled()
        (question,) = s.heard(0)
        assert isinstance(question, Signal)
        assert question.value == {"offer": 1}
        await s.say(0, Signal(question.number + 1, {"wrong": 1}), Signal(question.number, {"answer": 2}))
        assert await asked == {"answer": 2}
        assert await s.outlets.ask("webrtc", {}) is None, "there is no such outlet"
        assert await s.outlets.ask("push", {"offer": "\ufffd" * 16384}) is None, "it fits in no message"

    stage(play)


def test_a_link_receives_what_it_wants_and_ends_with_its_channel(stage: Any, sanitized_frame: Make) -> None:
    async def play(s: Stage) -> None:
        link = Link(os.dup(s.ends[0].fileno()))
        link.want(VIDEO)
        await settled()
        s.outlets.send(sanitized_frame(1, captured_ns=STEP_NS))
        assert (await link.video()).key
        waiting = asyncio.create_task(link.key_frame())
        await settled()
        s.outlets.send(sanitized_frame(2, captured_ns=2 * STEP_NS))
        assert (await waiting).captured_ns == 2 * STEP_NS
        await link.rest(0.01)
        await settled()
        s.outlets.send(sanitized_frame(3, captured_ns=3 * STEP_NS))
        assert s.outlets.encodes["h264"] == 2, "nobody wants it any more"
        s.outlets.close()
        with pytest.raises(Closed):
            await link.receive()

    stage(play)
