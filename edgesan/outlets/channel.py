"""The channel between the transmit process and an outlet: a stream socket, and messages with a length in front.

    kind, length of the payload | payload

From the transmit process:

    VIDEO     whether it is a key frame | capture time | width, height | length of the codec's header | header | packet
    JPEG      capture time | picture
    CODES     SHA-256 of the model | the wall's message of a frame (`edgesan.message`)
    CHIP      SHA-256 of the model | capture time | track | JPEG of the painted face, 112x112
    STATUS    what `/api/status` says, JSON; about once a second
    SIGNAL    number | JSON: a question for the outlet

From an outlet:

    WANT      which of VIDEO, JPEG, CODES, CHIP and STATUS it wants from now on | least time between two JPEGs
    CLAIMS    what it gave up (`edgesan.isolation.pack`)
    KEY       the next frame of the video shall be a key frame
    STATE     JSON: how its connection is
    REQUEST   what a viewer asks for (`edgesan.request`)
    SIGNAL    number | JSON: the answer to that question

`parse_down` and `parse_up` are the two functions in which bytes become values. No end ever waits for the other: what
the transmit process cannot send is dropped (`Outbox`).
"""

import json
import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from edgesan import message, request
from edgesan.errors import Reject
from edgesan.message import Latents
from edgesan.request import Request

VIDEO, JPEG, CODES, CHIP, STATUS = (1 << i for i in range(5))
"""What an outlet may want; the kinds of the messages that carry it, too."""
SIGNAL, WANT, CLAIMS, KEY, STATE, REQUEST = range(33, 39)
ALL: Final = VIDEO | JPEG | CODES | CHIP | STATUS

_HEAD: Final = struct.Struct("<BI")
_VIDEO: Final = struct.Struct("<BQHHH")
_JPEG: Final = struct.Struct("<Q")
_CHIP: Final = struct.Struct("<32sQH")
_WANT: Final = struct.Struct("<BI")
_SIGNAL: Final = struct.Struct("<I")
DIGEST: Final = 32  # bytes of a SHA-256
MOST_DOWN: Final = {  # bytes of a payload, by kind
    VIDEO: 2**23,
    JPEG: 2**23,
    CODES: DIGEST + message.MOST_BYTES,
    CHIP: 65536,
    STATUS: 2**18,
    SIGNAL: 65536,
}
MOST_UP: Final = {
    WANT: _WANT.size,
    CLAIMS: 256,
    KEY: 0,
    STATE: 4096,
    REQUEST: request.MOST_BYTES,
    SIGNAL: 65536,
}
MOST_WAITING: Final = 64  # messages that wait for an outlet
MOST_WAITING_BYTES: Final = 2**22  # of them, beside the newest one
BLOCK: Final = 2**18  # bytes of one read


@dataclass(frozen=True, slots=True)
class Video:
    """A packet of H.264 (Annex B). A key frame has its codec header (SPS and PPS) inside, and in `header`, too.

    captured_ns: CLOCK_MONOTONIC, and rising from packet to packet.
    """

    packet: bytes
    key: bool
    captured_ns: int
    width: int
    height: int
    header: bytes = b""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A sanitized frame as JPEG. captured_ns: CLOCK_MONOTONIC."""

    picture: bytes
    captured_ns: int


@dataclass(frozen=True, slots=True)
class Codes:
    """A frame as it crossed the wall. model: the SHA-256 of the model file. content: the message's own bytes."""

    model: bytes
    content: bytes
    latents: Latents


@dataclass(frozen=True, slots=True)
class Chip:
    """A face of a track that was just decoded, as JPEG of 112x112 pixels. model: the SHA-256 of the model file."""

    model: bytes
    captured_ns: int
    track: int
    picture: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """What `/api/status` says."""

    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Signal:
    """A question, or the answer that has its number."""

    number: int
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Want:
    """What an outlet wants: VIDEO | STATUS and so on. jpeg_every_ms: the least time between two JPEGs."""

    kinds: int
    jpeg_every_ms: int = 0


@dataclass(frozen=True, slots=True)
class Claims:
    """What an outlet gave up, as `edgesan.isolation.pack` writes it."""

    results: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """A key frame is needed."""


@dataclass(frozen=True, slots=True)
class State:
    """How an outlet's connection is. why: what keeps it from being there, in words; empty if nothing."""

    connected: bool
    why: str = ""
    bytes: int = 0  # that it has sent or written, in total
    retries: int = 0  # attempts after the first
    viewers: int = 0  # who come to it; 0 where it sends by itself
    dropped: int = 0  # what waited for its server, and was given up


STATE_KEYS: Final = tuple(each.name for each in fields(State))
Down = Video | Jpeg | Codes | Chip | Report | Signal
Up = Want | Claims | Key | State | Request | Signal


# --- from the transmit process ----------------------------------------------------------------------------------------


def pack_down(value: Down) -> bytes:
    """Return the bytes of a message to an outlet.

    Raises:
        Reject: it has more bytes than one of its kind may have.
    """
    match value:
        case Video(packet, key, captured_ns, width, height, header):
            head = _VIDEO.pack(key, captured_ns, width, height, len(header))
            return _framed(VIDEO, head + header + packet)
        case Jpeg(picture, captured_ns):
            return _framed(JPEG, _JPEG.pack(captured_ns) + picture)
        case Codes(model, content):
            return _framed(CODES, model + content)
        case Chip(model, captured_ns, track, picture):
            return _framed(CHIP, _CHIP.pack(model, captured_ns, track) + picture)
        case Report(status):
            return _framed(STATUS, json.dumps(status).encode())
        case Signal(number, given):
            return _framed(SIGNAL, _SIGNAL.pack(number) + json.dumps(given).encode())


def parse_down(kind: int, payload: bytes) -> Down:
    """Parse a message of the transmit process.

    Raises:
        Reject: it is malformed.
    """
    if kind == VIDEO and len(payload) > _VIDEO.size:
        key, captured_ns, width, height, length = _VIDEO.unpack_from(payload)
        header, packet = payload[_VIDEO.size :][:length], payload[_VIDEO.size + length :]
        if key <= 1 and packet and len(header) == length and 0 < width <= message.MOST_SIDE >= height > 0:
            return Video(packet, key == 1, captured_ns, width, height, header)
    elif kind == JPEG and len(payload) > _JPEG.size:
        return Jpeg(payload[_JPEG.size :], _JPEG.unpack_from(payload)[0])
    elif kind == CODES and len(payload) > DIGEST:
        content = payload[DIGEST:]
        latents = message.parse(content)
        if isinstance(latents, Latents):
            return Codes(payload[:DIGEST], content, latents)
    elif kind == CHIP and len(payload) > _CHIP.size:
        model, captured_ns, track = _CHIP.unpack_from(payload)
        return Chip(model, captured_ns, track, payload[_CHIP.size :])
    elif kind == STATUS:
        return Report(_object(payload))
    elif kind == SIGNAL and len(payload) > _SIGNAL.size:
        return Signal(_SIGNAL.unpack_from(payload)[0], _object(payload[_SIGNAL.size :]))
    raise Reject("channel", f"{len(payload)} bytes of kind {kind} are no message to an outlet")


# --- from an outlet ---------------------------------------------------------------------------------------------------


def pack_up(value: Up) -> bytes:
    """Return the bytes of a message of an outlet."""
    match value:
        case Want(kinds, jpeg_every_ms):
            return _framed(WANT, _WANT.pack(kinds, jpeg_every_ms))
        case Claims(results):
            return _framed(CLAIMS, results)
        case Key():
            return _framed(KEY, b"")
        case State():
            said = asdict(value) | {"why": value.why[:300]}
            return _framed(STATE, json.dumps(said).encode())
        case Signal(number, given):
            return _framed(SIGNAL, _SIGNAL.pack(number) + json.dumps(given).encode())
        case wanted:
            return _framed(REQUEST, request.pack(wanted))


def parse_up(kind: int, payload: bytes) -> Up:
    """Parse a message of an outlet, which talks to strangers: it may have been taken over.

    Raises:
        Reject: it is malformed.
    """
    if kind == WANT and len(payload) == _WANT.size:
        wanted = Want(*_WANT.unpack(payload))
        if wanted.kinds & ~ALL == 0:
            return wanted
    elif kind == CLAIMS:
        return Claims(payload)
    elif kind == KEY and not payload:
        return Key()
    elif kind == STATE:
        return _state(_object(payload))
    elif kind == REQUEST:
        return request.parse(payload)
    elif kind == SIGNAL and len(payload) > _SIGNAL.size:
        return Signal(_SIGNAL.unpack_from(payload)[0], _object(payload[_SIGNAL.size :]))
    raise Reject("channel", f"{len(payload)} bytes of kind {kind} are no message of an outlet")


def _state(said: dict[str, Any]) -> State:
    connected, why, *numbers = (said.get(name) for name in STATE_KEYS)
    whole = [number for number in numbers if type(number) is int and 0 <= number < 2**63]
    if (
        len(said) == len(STATE_KEYS)
        and type(connected) is bool
        and isinstance(why, str)
        and why.isprintable()
        and len(whole) == len(numbers)
    ):
        return State(connected, why, *whole)
    raise Reject("channel", "a state has other keys, or other values, than a state has")


# --- both ways --------------------------------------------------------------------------------------------------------


def _framed(kind: int, payload: bytes) -> bytes:
    most = (MOST_DOWN | MOST_UP)[kind]
    if len(payload) > most:
        raise Reject("channel", f"{len(payload)} bytes for a message of kind {kind}, which has at most {most}")
    return _HEAD.pack(kind, len(payload)) + payload


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Reject("channel", f"this is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise Reject("channel", "this JSON is no object")
    return found


class Inbox:
    """Cuts what arrives into messages.

    Args:
        most: the bytes that a payload of each kind may have: MOST_DOWN or MOST_UP.
    """

    def __init__(self, most: dict[int, int]) -> None:
        self._most, self._content = most, bytearray()

    def feed(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes, and yield each whole message as its kind and payload.

        Raises:
            Reject: what follows is no message; the channel cannot be read any further.
        """
        self._content += content
        while len(self._content) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._content)
            if length > self._most.get(kind, -1):
                raise Reject("channel", f"kind {kind} with {length} bytes is no message")
            end = _HEAD.size + length
            if len(self._content) < end:
                return
            payload = bytes(self._content[_HEAD.size : end])
            del self._content[:end]
            yield kind, payload


class Outbox:
    """Messages that wait to be sent without blocking. It is bounded: what does not fit is refused.

    Args:
        descriptor: one end of the channel, which must not block. Only read(2) and write(2) are used: a process without
            a network may call nothing else.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[memoryview] = deque()
        self._bytes = 0

    def put(self, content: bytes) -> bool:
        """Send a message now, or later by `flush`; return False if too much waits already.

        Raises:
            OSError: the other end is gone.
        """
        if self._waiting and (len(self._waiting) >= MOST_WAITING or self._bytes >= MOST_WAITING_BYTES):
            return False
        self._waiting.append(memoryview(content))
        self._bytes += len(content)
        self.flush()
        return True

    def flush(self) -> bool:
        """Send what can be sent now; return whether nothing waits any more.

        Raises:
            OSError: the other end is gone.
        """
        while self._waiting:
            try:
                sent = os.write(self._descriptor, self._waiting[0])
            except BlockingIOError:
                return False
            self._bytes -= sent
            if sent < len(self._waiting[0]):
                self._waiting[0] = self._waiting[0][sent:]
            else:
                self._waiting.popleft()
        return True
