"""The two kinds of frame, and the wall between them.

A source lends a `RawFrame` for one `with` block, in the process that sees the camera. Only `edgesan.render` makes a
`SanitizedFrame`, in the process that serves the network. Between the two processes cross only messages of numbers
(`edgesan.message`). The two classes share no base class, so a function that takes one does not type-check with the
other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 [height, width, 3], BGR: the order of OpenCV, of its detectors and encoders."""

SWIFT_NS: Final = 100_000_000
"""Frames that follow each other this fast do not wait for a network: the next frame shows its result soon enough."""


class RawFrame:
    """Pixels as the camera saw them, on loan. They cannot be kept past the loan, printed, copied or pickled."""

    __slots__ = ("_pixels", "captured_ns", "number", "received_ns")

    def __init__(self, pixels: Pixels, number: int, captured_ns: int, received_ns: int) -> None:
        self._pixels: Pixels | None = pixels
        self.number = number
        self.captured_ns = captured_ns
        self.received_ns = received_ns

    @property
    def pixels(self) -> Pixels:
        """uint8 [height, width, 3], BGR. Raises RuntimeError once the loan is over."""
        if self._pixels is None:
            raise RuntimeError("this raw frame was given back: use it inside the `with` block that lent it")
        return self._pixels

    def __repr__(self) -> str:
        return f"<RawFrame {self.number}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a raw frame cannot be copied or pickled: it never leaves its process")


@contextmanager
def lend(pixels: Pixels, number: int, captured_ns: int, received_ns: int) -> Iterator[RawFrame]:
    """Lend pixels as a RawFrame for one `with` block. Times are CLOCK_MONOTONIC, in nanoseconds."""
    frame = RawFrame(pixels, number, captured_ns, received_ns)
    try:
        yield frame
    finally:
        frame._pixels = None


@dataclass(frozen=True, slots=True)
class Stamps:
    """Facts about a sanitized frame. Times are CLOCK_MONOTONIC, in nanoseconds."""

    number: int
    captured_ns: int
    faces: int = 0
    slate: bool = False  # a card made by edgesan, such as "camera lost"


@dataclass(frozen=True, slots=True)
class SanitizedFrame:
    """A frame that may leave the device. It has no public constructor, and its pixels are read-only."""

    pixels: Pixels
    stamps: Stamps
    _painted: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._painted is not _RENDER:
            raise TypeError("only edgesan.render makes a SanitizedFrame, from latents")
        self.pixels.flags.writeable = False

    @classmethod
    def _create(cls, pixels: Pixels, stamps: Stamps) -> "SanitizedFrame":
        """Make one. Only `edgesan.render` calls this; a test over the sources checks it."""
        return cls(pixels, stamps, _RENDER)


_RENDER: Any = object()
