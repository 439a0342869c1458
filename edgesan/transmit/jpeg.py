"""JPEG for all who take it: each picture is encoded at most once, and not at all if nobody does."""

import time
from typing import Final

import cv2

from edgesan.errors import SinkError
from edgesan.frames import Pixels, SanitizedFrame
from edgesan.metrics import Metrics

JPEG_QUALITY: Final = 85


class JpegEncoder:
    """Encodes frames, and keeps the newest JPEG: a frame in which nothing has changed has the same pixels.

    See `render.Renderer`.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        """How many were encoded, and how long it took."""
        self._newest: tuple[Pixels, bytes] | None = None

    def __call__(self, frame: SanitizedFrame) -> bytes:
        """Return a frame as JPEG.

        Raises:
            SinkError: it cannot be encoded.
        """
        if self._newest is None or self._newest[0] is not frame.pixels:
            started_ns = time.monotonic_ns()
            self._newest = frame.pixels, encode(frame.pixels)
            self.metrics.span("encode", time.monotonic_ns() - started_ns)
            self.metrics.count("encoded")
        return self._newest[1]


def encode(pixels: Pixels) -> bytes:
    """Return pixels, uint8 [height, width, 3] in BGR, as JPEG. Raises SinkError."""
    done, picture = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise SinkError(f"cannot encode a picture of {pixels.shape} as JPEG")
    return picture.tobytes()
