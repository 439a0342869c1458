"""The records between the process that fetches and the one that decodes."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesan.errors import CameraLost, IsolationError, Reject
from edgesan.fetch import packets
from edgesan.fetch.packets import CODECS, Claims, Fault, Header, Packet, Reader, Reason, Record, pack, parse, sender
from edgesan.isolation.probes import PROBES

RECORDS: list[Record] = [
    Claims(b"\0\1\2"),
    Header("h264", b"\0\0\0\1sps"),
    Header("mjpeg"),
    Packet(2**63 - 1, b"x"),
    Fault(Reason.REFUSED),
    Fault(Reason.LOST, 1094995529),
    Fault(Reason.REDIRECTED, 0, "http://192.0.2.1:80"),
]


def body(record: Record) -> tuple[bytes, bytes]:
    """Kind and content of a record, as a reader takes them apart."""
    content = pack(record)
    assert len(content) == 5 + packets.length(content[:5])
    return content[:1], content[5:]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert parse(*body(record)) == record


@given(st.sampled_from([b"C", b"H", b"P", b"F", b"\0"]), st.binary(max_size=300))
def test_any_bytes_are_a_record_or_are_rejected(kind: bytes, content: bytes) -> None:
    try:
        record = parse(kind, content)
    except Reject:
        return
    assert body(record) == (kind, content)
    match record:
        case Header(codec, _):
            assert codec in CODECS
        case Fault(_, _, place):
            assert place.isprintable()
            assert place.isascii()
            assert len(place) <= 200


@given(st.binary(min_size=5, max_size=5))
def test_any_head_is_bounded_or_rejected(head: bytes) -> None:
    try:
        assert packets.length(head) <= 2**24 + 8
    except Reject:
        assert head[:1] not in {b"C", b"H", b"P", b"F"} or int.from_bytes(head[1:], "little") > 255


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"H", b""),
        (b"H", bytes([len(CODECS)])),
        (b"H", bytes(2 + packets.MOST_EXTRADATA)),
        (b"P", bytes(8)),
        (b"P", b"\xff" * 9),
        (b"F", bytes(4)),
        (b"F", bytes([len(Reason), 0, 0, 0, 0])),
        (b"F", bytes(5) + b"\x1b[2J"),
        (b"F", bytes(5) + b"x" * 201),
        (b"F", bytes(5) + "ü".encode()),
        (b"C", bytes(256)),
        (b"X", b""),
    ],
)
def test_what_is_no_record_is_rejected(kind: bytes, content: bytes) -> None:
    with pytest.raises(Reject):
        parse(kind, content)


def test_records_come_through_a_pipe_whole_however_large_they_are() -> None:
    readable, writable = os.pipe()
    sent = [*RECORDS, Packet(1, os.urandom(3_000_000)), Fault(Reason.ENDED)]
    send = sender(writable)
    thread = threading.Thread(target=lambda: [send(record) for record in sent])
    thread.start()
    reader = Reader(readable)
    assert [reader.next(5) for _ in sent] == sent
    thread.join()
    os.close(writable)
    with pytest.raises(CameraLost, match="has ended"):
        reader.next(5)
    reader.close()
    assert not os.path.exists(f"/proc/self/fd/{readable}")


def test_a_full_pipe_takes_nothing_and_a_closed_one_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "ROOM_MS", 10)
    readable, writable = os.pipe()
    send = sender(writable)
    while send(Packet(1, b"x" * 4000)):
        pass
    assert not send(Packet(1, b"x"))
    os.close(readable)
    with pytest.raises(BrokenPipeError):
        send(Packet(1, b"x"))
    os.close(writable)


@pytest.mark.parametrize("content", [b"GET / HTTP/1.0\r\n\r\n", b"P\xff\xff\xff\xff", b"H\1\0\0\0\xff"])
def test_something_else_in_the_pipe_is_a_lost_camera(content: bytes) -> None:
    readable, writable = os.pipe()
    os.write(writable, content)
    reader = Reader(readable)
    with pytest.raises(CameraLost, match="sent no packet"):
        reader.next(5)
    with pytest.raises(CameraLost, match=r"sent nothing for 0\.1 s"):
        Reader(readable).next(0.1)
    reader.close()
    os.close(writable)


def test_claims_come_first_and_are_required_to_hold() -> None:
    readable, writable = os.pipe()
    closed = bytes(next(r for r in range(256) if r in p.closed and p.possible(r)) for p in PROBES["fetch"])
    opened = bytes([next(r for r in range(252) if r not in p.closed and p.possible(r)) for p in PROBES["fetch"]][:1])
    reader, send = Reader(readable), sender(writable)
    send(Claims(closed))
    assert all(claim.holds for claim in reader.claims(required=True))
    send(Claims(opened + closed[1:]))
    with pytest.raises(IsolationError, match="fetch process: no camera does not hold"):
        reader.claims(required=True)
    for wrong in (Claims(closed[1:]), Header("h264")):
        send(wrong)
        with pytest.raises(CameraLost, match="sent no claims"):
            reader.claims(required=False)
    os.close(writable)
    reader.close()
