"""What crosses from the process that fetches to the one that decodes: what a camera sent, and no text.

    claims   a byte of each probe (`edgesan.isolation.pack`): the first record of all
    header   codec (its place in CODECS) | extradata: the second, once the camera sends video
    packet   arrived at | compressed picture
    fault    reason (its place in `Reason`) | errno, of the system or FFmpeg | address that a redirect names: the last

Each record begins with its kind and the length of what follows, little-endian. `pack` makes records, and only `parse`
reads one: it returns an object that needs no second check, or it raises `Reject`.
"""

import os
import re
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from edgesan import isolation
from edgesan.errors import CameraLost, Reject
from edgesan.isolation import IsolationClaim

CODECS: Final = ("mjpeg", "h264", "hevc", "mpeg4", "mpeg2video", "vp8", "vp9", "av1")
"""What a camera's video may be: no other decoder of FFmpeg's sees a byte of it."""
MOST_EXTRADATA: Final = 65536  # bytes
MOST_PACKET: Final = 2**24  # bytes of one compressed picture
MOST_CLAIMS: Final = 255
PLACE: Final = re.compile(rb"[\x20-\x7e]{0,200}")
ROOM_MS: Final = 1000  # a process that decodes may be slow for a moment: a drop costs all until the next key frame
CLAIMED_S: Final = 20.0  # until the claims come: a unit starts, and the name of the camera is looked up, before
READ_BYTES: Final = 2**18

_RECORD: Final = struct.Struct("<cI")  # kind, bytes that follow
_PACKET: Final = struct.Struct("<Q")
_FAULT: Final = struct.Struct("<BI")


class Reason(IntEnum):
    """Why there are no pictures. `edgesan.capture.network` has the words."""

    ENDED = 0
    LOST = 1
    REFUSED = 2
    NO_HOST = 3
    UNANSWERED = 4
    NO_TLS = 5
    UNREACHED = 6
    SILENT = 7
    HUNG_UP = 8
    REDIRECTED = 9
    UNAUTHORIZED = 10
    FORBIDDEN = 11
    NOT_FOUND = 12
    HUNG = 13
    NO_VIDEO = 14
    OTHER = 15
    SOUND_ALONE = 16
    RECORDING = 17
    UNKNOWN_CODEC = 18


@dataclass(frozen=True, slots=True)
class Claims:
    """What the process that fetches cannot do, for `edgesan.isolation.unpack`."""

    results: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """How to decode the packets of one connection."""

    codec: str  # one of CODECS
    extradata: bytes = b""


@dataclass(frozen=True, slots=True)
class Packet:
    """One compressed picture."""

    arrived_ns: int  # CLOCK_MONOTONIC
    content: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """The end of a connection, or why there was none."""

    reason: Reason
    error: int = 0  # errno of the system or of FFmpeg; 0: none
    place: str = ""  # printable ASCII


Record = Claims | Header | Packet | Fault


def pack(record: Record) -> bytes:
    """Return a record as bytes."""
    match record:
        case Claims(results):
            kind, content = b"C", results
        case Header(codec, extradata):
            kind, content = b"H", bytes([CODECS.index(codec)]) + extradata
        case Packet(arrived_ns, picture):
            kind, content = b"P", _PACKET.pack(arrived_ns) + picture
        case Fault(reason, error, place):
            kind, content = b"F", _FAULT.pack(reason, error & 0xFFFFFFFF) + place.encode("ascii", "replace")[:200]
    return _RECORD.pack(kind, len(content)) + content


MOST_BYTES: Final = {
    b"C": MOST_CLAIMS,
    b"H": 1 + MOST_EXTRADATA,
    b"P": _PACKET.size + MOST_PACKET,
    b"F": _FAULT.size + 200,
}


def length(head: bytes) -> int:
    """Return how many bytes follow the head of a record.

    Raises:
        Reject: the kind is unknown, or they are too many.
    """
    kind, size = _RECORD.unpack(head)
    if size > MOST_BYTES.get(kind, -1):
        raise Reject("packet", f"a record of kind {kind.hex()} and {size:,} bytes; known are {', '.join('CHPF')}")
    return int(size)


def parse(kind: bytes, content: bytes) -> Record:
    """Parse a record. This is the one place where bytes from the process that fetches become values.

    Raises:
        Reject: the bytes are not exactly one well-formed record.
    """
    if len(content) > MOST_BYTES.get(kind, -1):
        raise Reject("packet", f"a record of kind {kind.hex()} and {len(content):,} bytes")
    if kind == b"C":
        return Claims(content)
    if kind == b"H":
        if not content or content[0] >= len(CODECS):
            raise Reject("packet", f"codec {content[:1].hex() or 'none'}; known are {len(CODECS)}")
        return Header(CODECS[content[0]], content[1:])
    if kind == b"P":
        if len(content) <= _PACKET.size:
            raise Reject("packet", "a packet without a picture")
        (arrived_ns,) = _PACKET.unpack_from(content)
        if arrived_ns >= 2**63:
            raise Reject("packet", f"it arrived at {arrived_ns} ns")
        return Packet(arrived_ns, content[_PACKET.size :])
    if len(content) < _FAULT.size or content[0] >= len(Reason) or not PLACE.fullmatch(content, _FAULT.size):
        raise Reject("packet", "a fault without a known reason, or with an address that cannot be printed")
    reason, error = _FAULT.unpack_from(content)
    return Fault(Reason(reason), error, content[_FAULT.size :].decode("ascii"))


def sender(descriptor: int) -> Callable[[Record], bool]:
    """Return what sends records into a pipe: the whole of one, or nothing if there is no room for long."""
    room = select.poll()
    room.register(descriptor, select.POLLOUT)

    def send(record: Record) -> bool:
        if not room.poll(ROOM_MS):
            return False
        content = memoryview(pack(record))
        while content:  # a large one takes as long as the other side needs to read the rest of it
            content = content[os.write(descriptor, content) :]
        return True

    return send


class Reader:
    """The end of the pipe at the process that decodes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer = descriptor, bytearray()

    def claims(self, *, required: bool) -> list[IsolationClaim]:
        """Wait for the claims of the process that fetches, which come first.

        Raises:
            CameraLost: they do not come.
            IsolationError: one does not hold, and `required` asks for all.
        """
        record = self.next(CLAIMED_S)
        try:
            claims = isolation.unpack(record.results if isinstance(record, Claims) else b"", "fetch")
        except ValueError as error:
            raise CameraLost(f"the process that fetches from the camera sent no claims: {error}") from error
        if required:
            isolation.require(claims)
        return claims

    def next(self, timeout_s: float) -> Record:
        """Wait for the next record.

        Raises:
            CameraLost: nothing came in time, the other side has ended, or it sent something else.
        """
        try:
            head = self._take(_RECORD.size, timeout_s)
            return parse(head[:1], self._take(length(head), timeout_s))
        except Reject as error:
            raise CameraLost(f"the process that fetches from the camera sent no packet: {error}") from error

    def waits(self) -> bool:
        """Return whether more has come already."""
        return bool(self._buffer) or bool(select.select([self._descriptor], [], [], 0)[0])

    def close(self) -> None:
        """Close the pipe: the process that fetches then ends."""
        os.close(self._descriptor)

    def _take(self, size: int, timeout_s: float) -> bytes:
        while len(self._buffer) < size:
            if not select.select([self._descriptor], [], [], timeout_s)[0]:
                raise CameraLost(f"the process that fetches from the camera sent nothing for {timeout_s:g} s")
            block = os.read(self._descriptor, READ_BYTES)
            if not block:
                raise CameraLost("the process that fetches from the camera has ended")
            self._buffer += block
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return content
