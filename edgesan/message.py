"""The message: all that crosses from the process that sees the camera to the one that serves the network.

Numbers only, in a fixed layout, little-endian. No field can hold a picture, a pointer or a text:

    frame    version, kind, faces, bytes of a code | frame number | captured at | age | width, height | alpha | model |
             scene | columns, rows of the silhouette
             for each face, in rising order of tracks: track | x, y, side, roll | code
             a bit for each cell of the silhouette, row by row
    status   version, kind | the counters, in the order of `COUNTERS` | seconds since the start | frame rate | alpha |
             latencies, in the order of `SPANS` | model | camera size, 0x0 while none is open | whether privacy is on |
             number of the last switch, and whether it is recorded | restrictions (`edgesan.isolation.pack`)

A message has at most 2,048 bytes, so that one write to a pipe carries all of it (PIPE_BUF, pipe(7)). Only `pack` and
`pack_status` make a message, and only `parse` reads one: it returns a frame or a status that needs no second check, or
it raises `Reject`.
"""

import math
import struct
import time
from dataclasses import dataclass
from typing import Final

from edgesan.errors import Reject

VERSION: Final = 2
FRAME: Final = 1
STATUS: Final = 2
MOST_BYTES: Final = 2048
FRESH_NS: Final = 1_000_000_000  # age up to which a frame counts as live
MOST_FACES: Final = 16
MOST_CODE: Final = 128  # bytes of a code
MOST_SIDE: Final = 7680  # pixels of a picture, each way
MOST_CELLS: Final = 3072  # of the silhouette grid
STEP: Final = 0.25  # pixels: places are rounded to it
TURN: Final = 720  # steps of a full turn: rolls are rounded to them
ALPHA_STEPS: Final = 65535
LEAST_FACE: Final = 4.0  # pixels: the side of the smallest chip
PLAIN: Final = 0  # scene: a flat colour

COUNTERS: Final = ("captured", "sanitized", "faces", "encoded", "rejected", "dropped", "camera_lost", "faces_now")
"""The counters of the sanitize process, in the order in which they are sent."""
SPANS: Final = ("capture", "detect", "align", "encode", "sanitize")
"""The durations that the sanitize process measures; the percentiles 50, 95 and 99 of each are sent, in ms.

`sanitize` is the time until the message is made. `detect` includes the comparison with the scene, and `encode` what is
encoded after the message (`FrameSanitizer.catch_up`).
"""

_HEAD: Final = struct.Struct("<BBBBIQIHHHIIBB")
_FACE: Final = struct.Struct("<HHHHH")
_STATUS: Final = struct.Struct(f"<BB{len(COUNTERS)}QdfH{3 * len(SPANS)}fIHHBBBH")
MOST_RESULTS: Final = 192


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chip lies in the picture: centre and side in pixels, and its rotation.

    roll: radians in 0..2 pi, clockwise on the screen, as y points down.
    """

    x: float
    y: float
    side: float
    roll: float


@dataclass(frozen=True, slots=True)
class FaceCode:
    """One face: the number of its track (0..65535), its place, and its code with the noise in it (1..128 bytes)."""

    track: int
    place: Place
    code: bytes


@dataclass(frozen=True, slots=True)
class Silhouette:
    """Which cells of a grid differ from the scene: one bit a cell, row by row, the first in a byte's highest bit."""

    columns: int = 0
    rows: int = 0
    bits: bytes = b""


@dataclass(frozen=True, slots=True)
class Latents:
    """One frame, as it crosses. Times are CLOCK_MONOTONIC in ns. All codes were made with `alpha`.

    model: the first four bytes of the SHA-256 of the model file, as a number. scene: likewise of the still, or PLAIN.
    """

    number: int
    captured_ns: int
    age_us: int  # from the capture until the message was made
    width: int
    height: int
    alpha: float
    model: int
    faces: tuple[FaceCode, ...] = ()
    scene: int = PLAIN
    silhouette: Silhouette = Silhouette()


@dataclass(frozen=True, slots=True)
class Status:
    """The counters and latencies of the sanitize process, sent about twice a second."""

    counters: tuple[int, ...]  # in the order of COUNTERS
    uptime_s: float
    fps: float
    alpha: float
    spans_ms: tuple[tuple[float, float, float], ...]  # in the order of SPANS: percentiles 50, 95, 99
    model: int
    width: int  # 0, as the height, while no camera is open
    height: int
    results: bytes  # edgesan.isolation.pack
    privacy: bool = False  # no camera is open, because the owner wants none to be
    switch: int = 0  # number of the last request to close or open the camera (`edgesan.request`); 0: none
    recorded: bool = True  # whether what it asked for outlives a restart


def most_faces(code_bytes: int, cells: int = 0) -> int:
    """Return how many faces with codes of that size fit into a message with a silhouette of that many cells."""
    room = MOST_BYTES - _HEAD.size - -(-cells // 8)
    return max(0, min(MOST_FACES, room // (_FACE.size + code_bytes)))


def fits(place: Place, width: int, height: int) -> bool:
    """Return whether a message can carry a face at this place: centre in the picture, chip neither tiny nor huge."""
    inside = 0 <= place.x < width - STEP / 2 and 0 <= place.y < height - STEP / 2
    return inside and LEAST_FACE <= place.side <= 2 * MOST_SIDE


def grid_alpha(alpha: float) -> float:
    """Return the nearest alpha that a message can carry: one of 65,536 steps."""
    return round(alpha * ALPHA_STEPS) / ALPHA_STEPS


def pack(frame: Latents) -> bytes:
    """Return the message of a frame. Places are rounded to a quarter of a pixel and half a degree, alpha to 1/65535.

    Raises:
        Reject: a value does not fit its field, or faces are not in the order of their tracks.
    """
    size = len(frame.faces[0].code) if frame.faces else 0
    if any(len(face.code) != size for face in frame.faces):
        raise Reject("message", "the codes of the faces have different lengths")
    grid = frame.silhouette
    try:
        head = _HEAD.pack(
            *(VERSION, FRAME, len(frame.faces), size, frame.number & 0xFFFFFFFF, frame.captured_ns, frame.age_us),
            *(frame.width, frame.height, round(frame.alpha * ALPHA_STEPS), frame.model, frame.scene),
            *(grid.columns, grid.rows),
        )
        faces = b"".join(
            _FACE.pack(
                face.track,
                round(face.place.x / STEP),
                round(face.place.y / STEP),
                round(face.place.side / STEP),
                round(face.place.roll / math.tau * TURN) % TURN,
            )
            + face.code
            for face in frame.faces
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise Reject("message", f"a value does not fit its field ({error})") from error
    content = head + faces + grid.bits
    parse(content)  # nothing is sent that the other side would refuse
    return content


def pack_status(status: Status) -> bytes:
    """Return the message of a status.

    Raises:
        Reject: a value does not fit its field.
    """
    try:
        head = _STATUS.pack(
            *(VERSION, STATUS, *status.counters, status.uptime_s, status.fps, round(status.alpha * ALPHA_STEPS)),
            *(value for span in status.spans_ms for value in span),
            *(status.model, status.width, status.height, status.privacy, status.switch, status.recorded),
            len(status.results),
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise Reject("message", f"a value does not fit its field ({error})") from error
    content = head + status.results
    parse(content)
    return content


def parse(content: bytes) -> Latents | Status:
    """Parse a message. This is the one place where bytes from the other process become values.

    Raises:
        Reject: the bytes are not exactly one well-formed message of this version.
    """
    if len(content) > MOST_BYTES:
        raise Reject("message", f"{len(content)} bytes; a message has at most {MOST_BYTES}")
    if len(content) < 2 or content[0] != VERSION:
        raise Reject("message", f"it begins with {content[:1].hex() or 'nothing'}; expected version {VERSION}")
    if content[1] == FRAME:
        return _frame(content)
    if content[1] == STATUS:
        return _status(content)
    raise Reject("message", f"its kind is {content[1]}; known are {FRAME} (a frame) and {STATUS} (a status)")


def _frame(content: bytes) -> Latents:
    if len(content) < _HEAD.size:
        raise Reject("message", f"{len(content)} bytes; the head of a frame has {_HEAD.size}")
    (_, _, count, size, number, captured_ns, age_us, width, height, alpha, model, scene, columns, rows) = (
        _HEAD.unpack_from(content)
    )
    cells = columns * rows
    if count > MOST_FACES or size > MOST_CODE or (size > 0) != (count > 0):
        raise Reject(
            "message", f"{count} faces with codes of {size} bytes; at most {MOST_FACES}, each of 1..{MOST_CODE}"
        )
    if cells > MOST_CELLS or (columns > 0) != (rows > 0):
        raise Reject("message", f"a silhouette of {columns}x{rows} cells; at most {MOST_CELLS}, or none at all")
    at, grid_bytes = _HEAD.size, -(-cells // 8)
    expected = at + count * (_FACE.size + size) + grid_bytes
    if len(content) != expected:
        raise Reject("message", f"{len(content)} bytes; its head says {expected}")
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
        raise Reject("message", f"a picture of {width}x{height}; each side has 1..{MOST_SIDE} pixels")
    faces, last = [], -1
    for _ in range(count):
        track, x, y, side, roll = _FACE.unpack_from(content, at)
        place = Place(x * STEP, y * STEP, side * STEP, roll * math.tau / TURN)
        if track <= last:
            raise Reject("message", f"track {track} after {last}; each track comes once, in rising order")
        if not (place.x < width and place.y < height and LEAST_FACE <= place.side <= 2 * MOST_SIDE and roll < TURN):
            raise Reject("message", f"a face lies at {place}, outside a picture of {width}x{height}")
        at += _FACE.size
        faces.append(FaceCode(track, place, content[at : at + size]))
        at, last = at + size, track
    bits = content[at:]
    if cells % 8 and bits[-1] & (0xFF >> cells % 8):
        raise Reject("message", "bits are set behind the last cell of the silhouette")
    grid, alpha = Silhouette(columns, rows, bits), alpha / ALPHA_STEPS
    return Latents(number, captured_ns, age_us, width, height, alpha, model, tuple(faces), scene, grid)


def _status(content: bytes) -> Status:
    if len(content) < _STATUS.size:
        raise Reject("message", f"{len(content)} bytes; a status has at least {_STATUS.size}")
    _, _, *values = _STATUS.unpack_from(content)
    counters, values = values[: len(COUNTERS)], values[len(COUNTERS) :]
    (uptime_s, fps, alpha), spans, facts = values[:3], values[3:-7], values[-7:]
    model, width, height, privacy, switch, recorded, length = facts
    results = content[_STATUS.size :]
    if length > MOST_RESULTS or len(results) != length:
        raise Reject("message", f"{len(results)} bytes follow the status; it says {length}, at most {MOST_RESULTS}")
    if not all(math.isfinite(value) and value >= 0 for value in (uptime_s, fps, *spans)):
        raise Reject("message", "a time or a rate is negative, infinite or no number")
    if not (width <= MOST_SIDE and height <= MOST_SIDE):
        raise Reject("message", f"a camera of {width}x{height}; each side has at most {MOST_SIDE} pixels")
    if privacy > 1 or (privacy and (width or height)):
        raise Reject("message", f"privacy is {privacy}, and a camera of {width}x{height} is open")
    if recorded > 1:
        raise Reject("message", f"whether a switch is recorded is {recorded}; expected 0 or 1")
    triples = tuple((spans[i], spans[i + 1], spans[i + 2]) for i in range(0, len(spans), 3))
    kept = (model, width, height, results, privacy == 1, switch, recorded == 1)
    return Status(tuple(counters), uptime_s, fps, alpha / ALPHA_STEPS, triples, *kept)


def unix_s(monotonic_ns: int) -> float:
    """Return a time of CLOCK_MONOTONIC, such as a capture's, in seconds since 1970 by the clock of the moment."""
    return time.clock_gettime(time.CLOCK_REALTIME) - (time.monotonic_ns() - monotonic_ns) / 1e9
