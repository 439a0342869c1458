"""Messages between the transmit process and an outlet: what is sent arrives, and what is malformed is refused."""

import json
import os
import random
import socket
import struct

import pytest

from edgesan import message
from edgesan.errors import Reject
from edgesan.message import FaceCode, Latents, Place
from edgesan.outlets.channel import (
    ALL,
    MOST_DOWN,
    MOST_UP,
    MOST_WAITING_BYTES,
    STATE,
    STATUS,
    VIDEO,
    WANT,
    Chip,
    Claims,
    Codes,
    Inbox,
    Jpeg,
    Key,
    Outbox,
    Report,
    Signal,
    State,
    Video,
    Want,
    pack_down,
    pack_up,
    parse_down,
    parse_up,
)
from edgesan.request import Alpha, Privacy, Zones
from edgesan.zones import of_text

LATENTS = Latents(7, 123, 5, 640, 480, 0.0, 9, (FaceCode(3, Place(100, 100, 50, 0), b"code"),))
DOWN = (
    Video(b"\0\0\0\1packet", True, 2**40, 640, 480, b"\0\0\0\1header"),
    Video(b"p", False, 0, 2, 7680),
    Jpeg(b"picture", 5),
    Codes(bytes(range(32)), message.pack(LATENTS), LATENTS),
    Chip(bytes(32), 2**63, 65535, b"picture"),
    Report({"fps": 30.0, "name": "Tür"}),
    Signal(2**32 - 1, {"sdp": "v=0"}),
)
UP = (
    Want(VIDEO | STATUS, 1000),
    Want(0),
    Claims(b"\1\2"),
    Key(),
    State(True, "", 2**40, 3, 7),
    State(False, "nobody answers"),
    Signal(1, {}),
    Alpha(0.5),
    Privacy(True),
    Zones((of_text("0,0,0.5,0.5"),)),
)


def test_what_is_sent_to_an_outlet_arrives_as_it_was() -> None:
    inbox = Inbox(MOST_DOWN)
    stream = b"".join(map(pack_down, DOWN))
    found = [parse_down(*each) for at in range(len(stream)) for each in inbox.feed(stream[at : at + 1])]
    assert tuple(found) == DOWN


def test_what_an_outlet_sends_arrives_as_it_was() -> None:
    found = tuple(parse_up(*each) for each in Inbox(MOST_UP).feed(b"".join(map(pack_up, UP))))
    assert found[:-1] == UP[:-1]
    assert isinstance(found[-1], Zones)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0, b""),
        (WANT, b"\0"),
        (WANT, struct.pack("<BI", 255 & ~ALL, 0)),
        (VIDEO, b"an outlet sends no video"),
        (STATE, b"no JSON"),
        (STATE, b"[]"),
        (STATE, json.dumps({"connected": True}).encode()),
        (STATE, json.dumps({"connected": 1, "why": "", "bytes": 0, "retries": 0}).encode()),
        (STATE, json.dumps({"connected": True, "why": "two\nlines", "bytes": 0, "retries": 0}).encode()),
        (STATE, json.dumps({"connected": True, "why": "", "bytes": -1, "retries": 0}).encode()),
        (STATE, json.dumps({"connected": True, "why": "", "bytes": 1.5, "retries": 0}).encode()),
        (STATE, b"[" * 4000),
    ],
)
def test_an_outlet_that_sends_nonsense_is_refused(kind: int, payload: bytes) -> None:
    with pytest.raises(Reject):
        parse_up(kind, payload)


def test_random_bytes_are_refused_or_a_message_and_never_an_error() -> None:
    pick = random.Random(3)
    for _ in range(3000):
        payload = pick.randbytes(pick.randrange(80))
        for parse, most in ((parse_up, MOST_UP), (parse_down, MOST_DOWN)):
            for kind in (*most, pick.randrange(256)):
                try:
                    parse(kind, payload)
                except Reject:
                    continue


def test_a_message_that_says_it_is_too_long_is_refused_before_it_is_kept() -> None:
    for most in (MOST_DOWN, MOST_UP):
        for kind, length in most.items():
            with pytest.raises(Reject):
                list(Inbox(most).feed(struct.pack("<BI", kind, length + 1)))


def test_a_peer_that_reads_nothing_loses_messages_and_holds_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_blocking(ours.fileno(), False)
        outbox, block = Outbox(ours.fileno()), bytes(2**18)
        taken = sum(outbox.put(block) for _ in range(100))
        assert taken * len(block) < MOST_WAITING_BYTES + 2**20
        assert not outbox.flush()
        theirs.setblocking(False)
        read = 0
        while not outbox.flush() or read < taken * len(block):
            read += len(theirs.recv(2**20))
        assert read == taken * len(block), "what was taken arrives whole"
        assert outbox.put(block)


def test_a_peer_that_is_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(OSError, match="Broken pipe"):
            Outbox(ours.fileno()).put(b"x")
