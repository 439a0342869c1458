"""The shared-memory ring of sanitized frames: the only way from the sanitize process to the transmit process.

One writer, any number of readers. The memory is an anonymous file (memfd): it has no name that another process could
open. Once the writer has mapped it, it is sealed with F_SEAL_FUTURE_WRITE, so that whoever gets the descriptor can map
it for reading only, by the kernel's word (Linux 5.1; memfd_create(2), fcntl(2)).

    header   magic, slots, slot bytes, number of the newest frame
    status   sequence, length, JSON: the sanitize process's counters
    slots    sequence, stamps, height, width, BGR bytes

A sequence is odd while its part is being written (a seqlock, Lameter 2005): a reader that sees it odd or changed tries
the newest frame again. The writer never touches the newest slot, so a reader has slots - 1 frame times to copy.
"""

import fcntl
import json
import mmap
import os
import struct
from typing import Any, Final

import numpy as np

from edgesan.errors import Reject, SinkError
from edgesan.frames import STAGES, SanitizedFrame, Stamps

MAGIC: Final = b"esanring"
SLOTS: Final = 4
STATUS_BYTES: Final = 16384
HEADER: Final = struct.Struct("<8sIQQ")  # magic, slots, slot bytes, newest frame's count
NEWEST: Final = struct.Struct("<Q")
NEWEST_AT: Final = 8 + 4 + 8
STATUS_AT: Final = 64
STATUS: Final = struct.Struct("<QI")
SLOT: Final = struct.Struct(f"<QqqqI?II{len(STAGES)}q")
SEQUENCE: Final = struct.Struct("<Q")
SLOTS_AT: Final = STATUS_AT + STATUS.size + STATUS_BYTES
_SEALS: Final = 0x0002 | 0x0004 | 0x0010  # F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE


class RingWriter:
    """The sanitize process's end. `slot_bytes` is the largest frame: height * width * 3."""

    def __init__(self, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.fd = os.memfd_create("edgesan-sanitized", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = SLOTS_AT + SLOTS * (SLOT.size + slot_bytes)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        HEADER.pack_into(self._map, 0, MAGIC, SLOTS, slot_bytes, 0)
        self._count = 0
        self._status_sequence = 0

    def put(self, frame: SanitizedFrame) -> None:
        """Publish a frame.

        Raises:
            Reject: it is larger than the ring's slots.
        """
        height, width, _ = frame.pixels.shape
        if frame.pixels.nbytes > self.slot_bytes:
            raise Reject("size", f"{width}x{height} does not fit a slot of {self.slot_bytes} bytes")
        count = self._count + 1
        at = SLOTS_AT + (count % SLOTS) * (SLOT.size + self.slot_bytes)
        s = frame.stamps
        SEQUENCE.pack_into(self._map, at, 2 * count - 1)
        target = np.frombuffer(self._map, np.uint8, frame.pixels.nbytes, at + SLOT.size)
        np.copyto(target.reshape(frame.pixels.shape), frame.pixels)
        fields = (s.number, s.captured_ns, s.sanitized_ns, s.faces, s.slate, height, width, *s.stage_ns)
        SLOT.pack_into(self._map, at, 2 * count - 1, *fields)
        SEQUENCE.pack_into(self._map, at, 2 * count)
        NEWEST.pack_into(self._map, NEWEST_AT, count)
        self._count = count

    def put_status(self, status: dict[str, Any]) -> None:
        """Publish the counters (at most 16 kB of JSON)."""
        text = json.dumps(status).encode()
        if len(text) > STATUS_BYTES:
            raise ValueError(f"a status of {len(text)} bytes does not fit {STATUS_BYTES}")
        self._status_sequence += 2
        STATUS.pack_into(self._map, STATUS_AT, self._status_sequence - 1, len(text))
        at = STATUS_AT + STATUS.size
        self._map[at : at + len(text)] = text
        STATUS.pack_into(self._map, STATUS_AT, self._status_sequence, len(text))

    def close(self) -> None:
        """Give the descriptor back. The memory goes when the last reader has closed too."""
        os.close(self.fd)


class RingReader:
    """The transmit process's end: maps the ring read-only.

    Raises:
        SinkError: the descriptor is not a ring.
    """

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size < SLOTS_AT:
            raise SinkError(f"descriptor {fd} holds {size} bytes: not a ring of sanitized frames")
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        magic, slots, self.slot_bytes, _ = HEADER.unpack_from(self._map)
        if magic != MAGIC or slots != SLOTS or size != SLOTS_AT + SLOTS * (SLOT.size + self.slot_bytes):
            raise SinkError(f"descriptor {fd} is not a ring of sanitized frames of this version of edgesan")

    @property
    def newest(self) -> int:
        """How many frames were published so far; 0 before the first."""
        return int(NEWEST.unpack_from(self._map, NEWEST_AT)[0])

    def read(self) -> SanitizedFrame | None:
        """A copy of the newest frame; None before the first one, or if the writer overtook the copy three times."""
        for _ in range(3):
            count = self.newest
            if not count:
                return None
            at = SLOTS_AT + (count % SLOTS) * (SLOT.size + self.slot_bytes)
            sequence, number, captured, sanitized, faces, slate, height, width, *stages = SLOT.unpack_from(
                self._map, at
            )
            if sequence != 2 * count or not 0 < height * width * 3 <= self.slot_bytes:
                continue
            pixels = (
                np.frombuffer(self._map, np.uint8, height * width * 3, at + SLOT.size).reshape(height, width, 3).copy()
            )
            if SEQUENCE.unpack_from(self._map, at)[0] == 2 * count:
                stamps = Stamps(number, captured, tuple(stages), sanitized, faces, slate)
                return SanitizedFrame._create(pixels, stamps)
        return None

    def status(self) -> dict[str, Any]:
        """The sanitize process's counters; empty before the first.

        Raises:
            SinkError: the ring holds something else.
        """
        for _ in range(100):
            sequence, length = STATUS.unpack_from(self._map, STATUS_AT)
            at = STATUS_AT + STATUS.size
            text = self._map[at : at + min(length, STATUS_BYTES)]
            if sequence % 2 == 0 and STATUS.unpack_from(self._map, STATUS_AT)[0] == sequence:
                return _status(text)
        return {}


def _status(text: bytes) -> dict[str, Any]:
    try:
        status = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise SinkError(f"the ring's status is not JSON ({error}); start edgesan again") from error
    if not isinstance(status, dict):
        raise SinkError("the ring's status is not a JSON object; start edgesan again")
    return status
