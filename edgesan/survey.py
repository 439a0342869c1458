"""Look at the empty room through the camera, and make a still of it: the median of each pixel over some seconds.

A survey refuses a room in which a face is seen, something moves, or there is too little light. Zones are not looked at:
in the still they are of a flat colour, too.
"""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces
from edgesan.canvas import PLAIN
from edgesan.capture import open_source
from edgesan.config import Config
from edgesan.errors import CameraError, EndOfStream
from edgesan.fetch.packets import Reader
from edgesan.frames import Pixels
from edgesan.silhouette import CELL, grid, shrink
from edgesan.zones import Zone, mask

logger = logging.getLogger(__name__)

FRAME_TIMEOUT_S: Final = 3.0
WARM_UP: Final = 0.1  # of the time, in which a camera finds its exposure
SIZE: Final = 640  # longest side in pixels of the copy in which faces are searched: small ones count, too
SCORE: Final = 0.45  # from which something may be a face
LEAST_LIGHT: Final = 24.0  # mean level of the picture, of 255
SMALL: Final = 192  # pixels across the small copy in which a movement would show
KEPT: Final = 21  # frames of which the median is taken
LEAST_KEPT: Final = 5
MOST_BYTES: Final = 400_000_000  # of frames that are kept
LOOKED: Final = 300  # small copies
NOISE: Final = 5.0  # times the usual jitter of a pixel, up to which it only jitters
LEVELS: Final = 4.0  # by which it may be off, beside its noise
PATCH: Final = 3  # pixels of the small copy that are one thing


class Survey:
    """Looks at frames of an empty room, one after the other. What it keeps of them becomes the still."""

    def __init__(self, seconds: float, zones: Sequence[Zone] = (), size: int = SIZE) -> None:
        """Begin.

        Args:
            seconds: how long it will look.
            zones: parts of the picture that do not count.
            size: longest side of the copy in which faces are searched.
        """
        self._detector = faces.Detector(max(size, SIZE), score=SCORE)
        self._zones, self._seconds, self._due_s = zones, seconds, 0.0
        self._kept: list[Pixels] = []
        self._small: list[Pixels] = []

    def look(self, pixels: Pixels, at_s: float) -> None:
        """Look at a frame, uint8 [height, width, 3] in BGR, seen at this time since the beginning.

        Raises:
            CameraError: the room is not empty, or dark.
        """
        height, width = pixels.shape[:2]
        columns, rows = grid(width, height, SMALL // CELL)
        small = shrink(pixels, (columns * CELL, rows * CELL))
        counts = ~self._zone_pixels(small)
        light = float(small[counts].mean()) if counts.any() else 0.0
        if light < LEAST_LIGHT:
            raise CameraError(
                f"there is too little light: the mean level is {light:.0f} of 255, and at least {LEAST_LIGHT:.0f} is"
                " needed; switch the lights on, and take the still again"
            )
        for face in self._detector(pixels):
            x, y = np.clip((face.box[:2] + face.box[2:] / 2) / (width, height), 0, 0.999).tolist()
            if counts[int(y * len(counts)), int(x * counts.shape[1])]:
                raise CameraError(
                    f"a face is seen {_where(x, y)}: leave the room, cover pictures of people, or make that part a"
                    " zone; then take the still again"
                )
        if at_s >= self._seconds * len(self._small) / LOOKED:
            self._small.append(small)
        most = max(LEAST_KEPT, min(KEPT, MOST_BYTES // pixels.nbytes))
        if at_s >= self._due_s and len(self._kept) < most:
            self._kept.append(pixels.copy())
            self._due_s = self._seconds * len(self._kept) / most

    def still(self) -> Pixels:
        """Return the still, uint8 [height, width, 3] in BGR.

        Raises:
            CameraError: something moved, or there were too few frames.
        """
        if len(self._kept) < LEAST_KEPT:
            raise CameraError(
                f"only {len(self._kept)} frames came, and at least {LEAST_KEPT} are needed: look for longer, --seconds"
            )
        self._refuse_movement()
        still = np.empty_like(self._kept[0])
        for row in range(0, len(still), 32):  # a median of all at once takes a multiple of their memory
            still[row : row + 32] = np.median([each[row : row + 32] for each in self._kept], 0)
        still[self._zone_pixels(still)] = PLAIN
        return still

    def _zone_pixels(self, pixels: Pixels) -> NDArray[np.bool_]:
        """Return which pixels of a picture a zone touches, bool [height, width]."""
        height, width = pixels.shape[:2]
        return mask(self._zones, width, height)

    def _refuse_movement(self) -> None:
        """Compare each frame with the median of all, but for its light as a whole.

        Raises:
            CameraError: something moved.
        """
        small = np.stack(self._small)
        off = small - np.median(small, 0).astype(np.int16)
        off -= np.median(off, (1, 2), keepdims=True).astype(np.int16)  # of the light
        off = np.abs(off).max(-1)
        off[:, self._zone_pixels(small[0])] = 0
        noise = float(np.mean(off[off <= np.quantile(off, 0.9)]))
        for number, frame in enumerate(off):
            moved = (frame > LEVELS + NOISE * noise).astype(np.uint8)
            _, _, stats, centres = cv2.connectedComponentsWithStats(moved)
            largest = int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) + 1 if len(stats) > 1 else 0
            if largest and stats[largest, cv2.CC_STAT_AREA] >= PATCH:
                x, y = centres[largest] / (moved.shape[1], moved.shape[0])
                share = number / len(off)
                raise CameraError(
                    f"something moves {_where(x, y)}, after {100 * share:.0f} % of the time: leave the room, stop what"
                    " moves (a fan, a curtain, a screen), or make that part a zone; then take the still again"
                )


def _where(x: float, y: float) -> str:
    """Return a place in fractions of the picture, in words."""
    return f"at {100 * x:.0f} % of the picture's width from the left and {100 * y:.0f} % of its height from the top"


def take(config: Config, seconds: float, zones: Sequence[Zone], packets: Reader | None = None) -> bytes:
    """Look at the room through the camera, and return the still as the bytes of a PNG file.

    Args:
        config: the camera.
        seconds: how long to look.
        zones: parts of the picture that do not count.
        packets: what the process that fetches from a network camera sends.

    Raises:
        CameraError: the camera cannot be read, or the room is not empty, or dark.
    """
    survey = Survey(seconds, zones, config.detect_size)
    with closing(open_source(config.camera, config.width_height, config.fps, config.rotate, packets)) as source:
        began_s, warm_s = time.monotonic(), seconds * WARM_UP
        quiet = None if logger.isEnabledFor(logging.INFO) else True  # None: only on a terminal
        whole = math.ceil(seconds + warm_s)
        with tqdm(total=whole, unit="s", desc="looking at the room", leave=False, disable=quiet) as bar:
            while (at_s := time.monotonic() - began_s - warm_s) < seconds:
                bar.update(int(at_s + warm_s) - bar.n)
                try:
                    with source.frame(FRAME_TIMEOUT_S) as raw:
                        if at_s >= 0:
                            survey.look(raw.pixels, at_s)
                except EndOfStream:
                    break
    done, content = cv2.imencode(".png", survey.still())
    if not done:
        raise CameraError("the still could not be encoded as PNG: ask the camera for another size, --size")
    return content.tobytes()


def refuse_faces(pixels: Pixels, name: str) -> None:
    """Refuse a still, uint8 [height, width, 3] in BGR, in which a face is seen.

    Raises:
        CameraError: there is one.
    """
    if faces.Detector(SIZE, score=SCORE)(pixels):
        raise CameraError(f"a face is seen in the still {name}: take another one (edgesan scene take)")
