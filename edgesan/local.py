"""Sanitize frames within this process: for pictures and clips of one's own, and for programs that import edgesan.

`edgesan run` keeps the camera and the network in separate processes instead; see `edgesan.supervisor`.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.faces import Track
from edgesan.frames import Pixels, RawFrame, SanitizedFrame, lend
from edgesan.message import MOST_FACES
from edgesan.model.load import load_model
from edgesan.pipeline import build, hold_version
from edgesan.render import Renderer


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
            ConfigError: alpha is out of the model's range, one of `trusted_keys` is not a key, or `background` is
                "keep": raw surroundings stay only in a file of `edgesan sanitize`.
        """
        config = config or Config()
        if config.background == "keep":
            raise ConfigError(
                'background is "keep": a program gets no raw surroundings; write "plain"'
                " (for a file of your own there is `edgesan sanitize --background keep IN OUT`)"
            )
        self.model = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        self._sanitizer = build(config, self.model.encoder, MOST_FACES)
        hold_version(config, self.model, None)
        self._renderer = Renderer(self.model.decoder, config.zones)
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
        self.forget()
        return self.frame(pixels, time.monotonic_ns() / 1e9)

    def forget(self) -> None:
        """Forget the faces of earlier frames: what comes next is another clip."""
        self._sanitizer.forget()

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
        """Sanitize the next frame of a source.

        Raises:
            ModelError: the model failed.
        """
        return self._renderer(self._sanitizer(raw))


def _checked(pixels: NDArray[Any] | None) -> Pixels:
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"a frame is a NumPy array, not {pixels!r:.60}: could the picture not be read?")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"a frame is uint8 [height, width, 3] in BGR; this array is {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels
