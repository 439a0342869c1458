"""The ring: sanitized frames cross to the other process, read-only, whole or not at all."""

import mmap
import os
import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgesan import ring
from edgesan.errors import Reject, SinkError
from edgesan.frames import SanitizedFrame

Make = Callable[..., SanitizedFrame]


@pytest.fixture
def writer() -> Iterator[ring.RingWriter]:
    made = ring.RingWriter(64 * 48 * 3)
    yield made
    made.close()


def test_a_frame_arrives_as_it_was_sent(writer: ring.RingWriter, sanitized_frame: Make) -> None:
    reader = ring.RingReader(writer.fd)
    assert reader.read() is None
    for number in range(1, 10):
        sent = sanitized_frame(number, (64 - number, 48), captured_ns=7 * number, level=number)
        writer.put(sent)
        came = reader.read()
        assert came is not None
        assert came.stamps == sent.stamps
        np.testing.assert_array_equal(came.pixels, sent.pixels)
    assert reader.newest == 9


def test_a_reader_gets_the_newest_frame_and_no_backlog(writer: ring.RingWriter, sanitized_frame: Make) -> None:
    reader = ring.RingReader(writer.fd)
    for number in range(1, 20):
        writer.put(sanitized_frame(number))
    came = reader.read()
    assert came is not None
    assert came.stamps.number == 19


def test_nobody_but_the_writer_can_write(writer: ring.RingWriter) -> None:
    again = os.open(f"/proc/self/fd/{writer.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(again, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.write(again, b"x")
        with pytest.raises(PermissionError):
            os.truncate(again, 0)
    finally:
        os.close(again)


def test_a_frame_larger_than_a_slot_is_rejected(writer: ring.RingWriter, sanitized_frame: Make) -> None:
    with pytest.raises(Reject, match="does not fit a slot"):
        writer.put(sanitized_frame(1, (65, 48)))


def test_a_torn_frame_is_not_read(writer: ring.RingWriter, sanitized_frame: Make) -> None:
    reader = ring.RingReader(writer.fd)
    writer.put(sanitized_frame(1))
    at = ring.SLOTS_AT + (1 % ring.SLOTS) * (ring.SLOT.size + writer.slot_bytes)
    ring.SEQUENCE.pack_into(writer._map, at, 3)  # as while it is being written
    assert reader.read() is None


def test_a_slot_that_claims_more_than_it_holds_is_not_read(writer: ring.RingWriter, sanitized_frame: Make) -> None:
    reader = ring.RingReader(writer.fd)
    writer.put(sanitized_frame(1))
    at = ring.SLOTS_AT + (1 % ring.SLOTS) * (ring.SLOT.size + writer.slot_bytes)
    struct.pack_into("<II", writer._map, at + struct.calcsize("<QqqqI?"), 2**31, 2**31)
    assert reader.read() is None


def test_another_file_is_no_ring() -> None:
    fd = os.memfd_create("other")
    try:
        with pytest.raises(SinkError, match="not a ring"):
            ring.RingReader(fd)
        os.truncate(fd, ring.SLOTS_AT + 100)
        with pytest.raises(SinkError, match="not a ring"):
            ring.RingReader(fd)
    finally:
        os.close(fd)


def test_the_status_arrives(writer: ring.RingWriter) -> None:
    reader = ring.RingReader(writer.fd)
    assert reader.status() == {}
    writer.put_status({"fps": 12.5, "warnings": ["ä"]})
    assert reader.status() == {"fps": 12.5, "warnings": ["ä"]}
    writer.put_status({})
    assert reader.status() == {}
