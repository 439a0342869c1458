"""The pipes: what is sent arrives whole or not at all, the oldest makes room, and what is no message is counted."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from edgesan import message, request
from edgesan.errors import Reject
from edgesan.message import COUNTERS, SPANS, FaceCode, Latents, Place, Status
from edgesan.request import Alpha, Privacy
from edgesan.transmit.link import MOST_RATE, Pipes, Receiver, Sender

FRAME = Latents(1, 10**12, 3000, 640, 480, 0.4, 7, (FaceCode(3, Place(100, 50, 80, 0.5), bytes(64)),))
STATUS = Status((1,) * len(COUNTERS), 1.5, 30.0, 0.4, ((1.0, 2.0, 3.0),) * len(SPANS), 7, 640, 480, b"\1")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes.make()
    yield made
    with suppress(OSError):  # closed by the test
        made.close()


def ends(pipes: Pipes) -> tuple[Sender, Receiver]:
    return Sender(pipes), Receiver(pipes.frames_in, pipes.requests_out)


def test_a_frame_and_a_status_arrive_as_they_were_sent(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    heard: list[Status] = []
    assert receiver.read(heard.append) is None
    sender.send(FRAME)
    sender.send_status(STATUS)
    received = receiver.read(heard.append)
    assert received == message.parse(message.pack(FRAME))
    assert [(s.counters, s.uptime_s, s.results) for s in heard] == [(STATUS.counters, 1.5, b"\1")]
    assert receiver.messages == 2
    assert receiver.bytes == len(message.pack(FRAME)) + len(message.pack_status(STATUS))
    assert receiver.read(heard.append) is None


def test_a_full_pipe_drops_the_oldest(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    for number in range(100):
        sender.send(replace(FRAME, number=number))
    newest = receiver.read(lambda status: None)
    assert newest is not None
    assert newest.number == 99
    assert receiver.messages + sender.dropped == 100
    assert receiver.messages <= 2, "no backlog"


def test_messages_do_not_run_together_while_both_are_at_work(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    seen: list[int] = []

    def hear() -> None:
        while not seen or seen[-1] != 2999:
            latents = receiver.read(lambda status: None)
            if latents is not None:
                seen.append(latents.number)

    thread = threading.Thread(target=hear)
    thread.start()
    for number in range(3000):
        sender.send(replace(FRAME, number=number))
    thread.join(20)
    assert receiver.refused == 0
    assert seen == sorted(set(seen))


def test_what_is_no_message_ends_the_frame_and_is_counted(pipes: Pipes) -> None:
    _, receiver = ends(pipes)
    for wrong in (b"x", bytes(1000), message.pack(FRAME)[:-1], message.pack(FRAME) + b"\0", bytes(4000)):
        os.write(pipes.frames_out, wrong)
        assert receiver.read(lambda status: None) is None
    assert receiver.refused == receiver.messages == 5
    os.write(pipes.frames_out, message.pack(FRAME))
    os.write(pipes.frames_out, b"nonsense behind a frame")
    assert receiver.read(lambda status: None) is None, "which of the two is right cannot be known"


def test_a_frame_that_is_no_message_is_not_sent(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    for wrong in (replace(FRAME, width=0), replace(FRAME, alpha=1.5), replace(FRAME, faces=FRAME.faces * 2)):
        with pytest.raises(Reject):
            sender.send(wrong)
    assert receiver.read(lambda status: None) is None
    assert receiver.messages == 0


def test_the_end_of_the_other_side_is_seen(pipes: Pipes) -> None:
    _, receiver = ends(pipes)
    os.close(pipes.frames_out)
    assert receiver.read(lambda status: None) is None
    assert receiver.is_closed
    assert not receiver.request(Alpha(0.5))


def test_requests_pass_and_what_is_none_does_not(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    assert receiver.request(Alpha(0.25))
    for wrong in (b"", b"1", bytes(9), bytes(4000), request.pack(Alpha(float("nan")))):
        os.write(pipes.requests_out, wrong)
        assert list(sender.requests()) in ([Alpha(0.25)], []), wrong
    assert receiver.request(Alpha(1.0))
    assert list(sender.requests(wait_s=1)) == [Alpha(1.0)]


def test_a_request_that_is_not_taken_waits_for_the_next_process(pipes: Pipes) -> None:
    sender, receiver = ends(pipes)
    assert receiver.request(Privacy(on=False))
    assert receiver.request(Privacy(on=True))
    assert next(sender.requests()) == Privacy(on=False)
    assert list(Sender(pipes).requests()) == [Privacy(on=True)]


def test_a_dial_that_nobody_hears_is_told(pipes: Pipes) -> None:
    _, receiver = ends(pipes)
    assert [receiver.request(Alpha(0.5)) for _ in range(3)][-1] is False, "the pipe is full"


def test_what_comes_too_fast_is_not_heard(pipes: Pipes) -> None:
    """A sanitize process that was taken over may say as much as it likes: only so much is looked at."""
    now, crowd = [0.0], tuple(replace(FRAME.faces[0], track=track) for track in range(16))
    sender, receiver = Sender(pipes), Receiver(pipes.frames_in, pipes.requests_out, lambda: now[0])
    heard = 0
    for second in range(3):
        now[0] = float(second)
        for _ in range(200):
            sender.send(replace(FRAME, faces=crowd))
            latents = receiver.read(lambda status: None)
            heard += 1220 if latents is not None else 0
    assert 0.9 * 3 * MOST_RATE < heard <= 3 * MOST_RATE
    assert receiver.refused > 0
