"""Sanitize frames within this process: for pictures and clips of one's own, and for programs that import edgesan.

`edgesan run` keeps the camera and the network in separate processes instead; see `edgesan.supervisor`.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesan.config import Config
from edgesan.faces import Track
from edgesan.frames import Pixels, RawFrame, SanitizedFrame, lend
from edgesan.message import MOST_FACES
from edgesan.model.load import load_model
from edgesan.pipeline import build, hold_version
from edgesan.render import PLAIN, Renderer


class Sanitizer:
    """Turns raw frames into sanitized ones: every face that is found is rewritten by the model, on a flat background.

    A face that is not found does not appear at all. One Sanitizer serves one thread.
    """

    def __init__(self, config: Config | None = None) -> None:
        """Verify the model and load it.

        Args:
            config: the model, the keys that may sign it, alpha, zones and detection; options of cameras and sinks have
                no effect. None: the bundled model with its own alpha.

        Raises:
            ModelError: the model may not be run; the message says why.
            ConfigError: alpha is out of the model's range, or one of `trusted_keys` is not a key.
        """
        config = config or Config()
        self.model = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        self._sanitizer = build(config, self.model.encoder, MOST_FACES)
        hold_version(config, self.model, None)
        self._renderer = Renderer(self.model.decoder, config.zones)
        self._keep_background = config.background == "keep"
        self._count = 0

    @property
    def tracks(self) -> list[Track]:
        """The faces that are followed now."""
        return self._sanitizer.tracker.tracks

    def picture(self, pixels: NDArray[Any] | None) -> SanitizedFrame:
        """Sanitize a picture by itself: nothing of an earlier one is used.

        Args:
            pixels: uint8 [height, width, 3] in BGR, as `cv2.imread` returns it; None, as it returns it for a file that
                it cannot read, is refused.

        Raises:
            ValueError: this is not such an array.
            ModelError: the model failed.
        """
        self._sanitizer.forget()
        return self.frame(pixels, time.monotonic_ns() / 1e9)

    def frame(self, pixels: NDArray[Any] | None, seconds: float) -> SanitizedFrame:
        """Sanitize the next frame of a clip: faces are followed from frame to frame.

        Args:
            pixels: uint8 [height, width, 3] in BGR, as `cv2.VideoCapture.read` returns it.
            seconds: the time of the frame in its clip, rising from frame to frame.

        Raises:
            ValueError: this is not such an array.
            ModelError: the model failed.
        """
        self._count += 1
        at_ns = round(seconds * 1e9)
        with lend(_checked(pixels), self._count, at_ns, time.monotonic_ns()) as raw:
            return self(raw)

    def __call__(self, raw: RawFrame) -> SanitizedFrame:
        """Sanitize the next frame of a source. With `background = "keep"`, the surroundings stay raw.

        Raises:
            ModelError: the model failed.
        """
        latents = self._sanitizer(raw)
        if not self._keep_background:
            return self._renderer(latents)
        canvas = raw.pixels.copy()
        for track in self.tracks:
            canvas[head(track.box)] = PLAIN
        return self._renderer(latents, canvas)


def head(box: NDArray[np.float32]) -> tuple[slice, slice]:
    """Return the rows and columns of a face and half of its size on every side, rounded outwards.

    Of a box that is not finite, return all: what cannot be placed may be anywhere.
    """
    if not np.isfinite(box).all():
        return slice(None), slice(None)
    x, y, w, h = box
    rows = slice(max(0, int(y - h / 2)), max(0, int(np.ceil(y + 1.5 * h))))
    return rows, slice(max(0, int(x - w / 2)), max(0, int(np.ceil(x + 1.5 * w))))


def _checked(pixels: NDArray[Any] | None) -> Pixels:
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"a frame is a NumPy array, not {pixels!r:.60}: could the picture not be read?")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"a frame is uint8 [height, width, 3] in BGR; this array is {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels
