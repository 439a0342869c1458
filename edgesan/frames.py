"""The two kinds of frame, and the wall between them.

A `RawFrame` is lent by a source for one `with` block, in the process that sees the camera. A `SanitizedFrame` is owned and
read-only, and is made in one place only, by `edgesan.render` in the process that serves the network. Between them
crosses a message of numbers (`edgesan.message`). They share no base class, so a function that takes the one does not
type-check with the other.
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
"""Frames that follow each other so fast need not wait for a network: the next one shows its work soon enough."""


class RawFrame:
    """Pixels as the camera saw them, on loan. Cannot be kept past the loan, printed, copied or pickled."""

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
        raise TypeError("a raw frame never leaves its process")


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
    """What is known of a sanitized frame. Times are CLOCK_MONOTONIC, in nanoseconds."""

    number: int
    captured_ns: int
    faces: int = 0
    slate: bool = False  # made by edgesan itself: no camera picture


@dataclass(frozen=True, slots=True)
class SanitizedFrame:
    """A frame that may leave the device. Has no public constructor; its pixels are read-only."""

    pixels: Pixels
    stamps: Stamps
    _painted: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._painted is not _RENDER:
            raise TypeError("a SanitizedFrame is made by edgesan.render only, from latents")
        self.pixels.flags.writeable = False

    @classmethod
    def _create(cls, pixels: Pixels, stamps: Stamps) -> "SanitizedFrame":
        """For `edgesan.render` alone (a test over the sources holds this)."""
        return cls(pixels, stamps, _RENDER)


_RENDER: Any = object()
