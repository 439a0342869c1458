"""The only door from a RawFrame to a SanitizedFrame.

The canvas is never the raw frame: it starts obfuscated, and sanitized chips are put on it. A face that was missed is
thereby obfuscated too; it costs utility, not privacy.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan import faces, gate, noise
from edgesan.frames import Pixels, RawFrame, SanitizedFrame, Stamps
from edgesan.model import Model

BLOCKS: Final = 6
"""Blocks along the frame's shorter side when it is pixelated: one covers most of a face. Coarse blocks hide who it is;
fine ones still tell the gender (a face of 8x8 blocks gives it to a fresh attacker at 82-92 %)."""
LEAST_SIDE: Final = 64  # a smaller picture has no room for coarse blocks, and none for a face: it comes out black
SAMPLES: Final = (
    16  # a block's colour is the mean of so many of its pixels each way: as steady as of all, in a tenth of the time
)
FREE: Final = 0.25  # share of a block that must lie beside all heads, to give it its colour
FEATHER: Final = 8  # pixels of the chip over which it fades into the canvas


def _feather() -> Pixels:
    """Opacity uint8 [112, 112, 4] of a chip, once for each of its channels: 255 inside, falling to 0 at its edge."""
    ramp = np.clip((np.arange(faces.CHIP) + 0.5) / FEATHER, 0, 1)
    edge = np.minimum(ramp, ramp[::-1])
    return np.repeat(np.minimum.outer(edge, edge)[..., None] * 255, 4, 2).round().astype(np.uint8)


OPACITY: Final = _feather()


@dataclass(frozen=True)
class Settings:
    """How a frame is rewritten; `alpha` may be turned while running."""

    background: str  # one of config.BACKGROUNDS
    zones: tuple[tuple[float, float, float, float], ...]  # always black: x, y, width, height, as fractions
    detect_every: int


class FrameSanitizer:
    """Detect, track, align, infer, compose, gate: one frame at a time, with the tracks as its only memory."""

    def __init__(
        self,
        model: Model,
        detector: faces.Detector,
        settings: Settings,
        alpha: float,
        hold_ns: int,
        entropy: noise.EntropySource = os.urandom,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.model, self.settings, self.alpha = model, settings, alpha
        self._detector, self._clock = detector, clock
        self.tracker = faces.Tracker(hold_ns, lambda: noise.draw(model.noise_dimensions, entropy))
        self._frames = 0

    def __call__(self, raw: RawFrame) -> SanitizedFrame:
        """Sanitize one frame.

        Raises:
            Reject: the gate did not let it pass.
            ModelError: the network could not be run.
        """
        stamps = [raw.received_ns]
        pixels = raw.pixels
        if self._frames % self.settings.detect_every == 0:
            self.tracker.update(self._detector(pixels), raw.captured_ns)
        else:
            self.tracker.expire(raw.captured_ns)
        self._frames += 1
        tracks = [track for track in self.tracker.tracks if _spread(track.landmarks)]
        stamps.append(self._clock())

        matrices = [faces.alignment(track.landmarks) for track in tracks]
        chips = np.empty((len(tracks), faces.CHIP, faces.CHIP, 3), np.uint8)
        for i, matrix in enumerate(matrices):
            chips[i] = faces.cut(pixels, matrix)
        stamps.append(self._clock())

        sanitized = chips  # of no faces
        if tracks:
            z = np.stack([track.noise for track in tracks])
            sanitized = gate.check_chips(chips, self.model.run(chips, z, self.alpha))
        stamps.append(self._clock())

        canvas = obfuscate(pixels, self.settings.background, [track.box for track in self.tracker.tracks])
        for chip, matrix in zip(sanitized, matrices, strict=True):
            put_back(canvas, chip, matrix)
        blacken(canvas, self.settings.zones)
        stamps.append(self._clock())

        age_ns = self._clock() - raw.captured_ns
        gate.check_frame(pixels, canvas, age_ns, keeps=self.settings.background == "keep")
        stamps.append(self._clock())
        capture_ns = raw.received_ns - raw.captured_ns
        durations = (capture_ns, *(b - a for a, b in pairwise(stamps)))
        return SanitizedFrame._create(canvas, Stamps(raw.number, raw.captured_ns, durations, stamps[-1], len(tracks)))


def _spread(landmarks: NDArray[np.float32]) -> bool:
    """Whether five landmarks span a face at all (and not one point), so that they can be aligned."""
    return bool(np.isfinite(landmarks).all() and np.ptp(landmarks, axis=0).max() > 1)


def obfuscate(pixels: Pixels, background: str, boxes: list[NDArray[np.float32]]) -> Pixels:
    """A new canvas uint8 [height, width, 3] in which nobody can be recognised (but see "keep").

    boxes: of the known faces, float32 [4] each: left, top, width, height. No colour of a block comes from there.

    "keep" copies the raw frame and pixelates the surroundings of each known face: everything else is RAW, also a face
    that the detector missed. It is never the default.
    """
    height, width = pixels.shape[:2]
    if background == "black" or (background != "keep" and min(height, width) < LEAST_SIDE):
        return np.zeros_like(pixels)
    coarse = max(1, -(-min(height, width) // BLOCKS))
    grid = (max(1, round(width / coarse)), max(1, round(height / coarse)))
    step = max(1, coarse // SAMPLES)
    small = _colours(np.ascontiguousarray(pixels[::step, ::step]), grid, [_head(box, step) for box in boxes])
    if background == "blur":
        canvas = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    else:  # a line of each row of blocks, then whole lines: a sixth of the time of one resize
        lines = np.asarray(cv2.resize(small, (width, grid[1]), interpolation=cv2.INTER_NEAREST), np.uint8)
        canvas = lines[np.arange(height) * grid[1] // height]
    if background == "keep":
        kept = pixels.copy()
        for head in map(_head, boxes):
            kept[head] = canvas[head]
        return kept
    return canvas


def _head(box: NDArray[np.float32], step: int = 1) -> tuple[slice, slice]:
    """Rows and columns, each `step` pixels wide, of a face and half of its size on every side, rounded outwards.

    Of a box that is not finite, all: what cannot be placed may be anywhere.
    """
    if not np.isfinite(box).all():
        return slice(None), slice(None)
    x, y, w, h = box / step
    rows = slice(max(0, int(y - h / 2)), max(0, int(np.ceil(y + 1.5 * h))))
    return rows, slice(max(0, int(x - w / 2)), max(0, int(np.ceil(x + 1.5 * w))))


def _colours(pixels: Pixels, grid: tuple[int, int], heads: list[tuple[slice, slice]]) -> Pixels:
    """Mean colours uint8 [rows, columns, 3] of a grid (columns, rows) of blocks. Heads that are known have no part in them:

    skin and hair tell the gender even as one colour. A block that shows little else takes the mean of all the rest.
    """
    if not heads:
        return np.asarray(cv2.resize(pixels, grid, interpolation=cv2.INTER_AREA), np.uint8)
    free = np.ones(pixels.shape[:2], np.float32)
    for head in heads:
        free[head] = 0
    share = cv2.resize(free, grid, interpolation=cv2.INTER_AREA)[..., None]
    shown = cv2.resize(pixels * free[..., None], grid, interpolation=cv2.INTER_AREA)
    rest = shown.sum((0, 1)) / share.sum() if share.sum() >= FREE else 128  # the mean of a few pixels would be these
    return np.where(share < FREE, rest, shown / np.maximum(share, FREE)).round().astype(np.uint8)


def put_back(canvas: Pixels, chip: NDArray[np.uint8], matrix: NDArray[np.float64]) -> None:
    """Paint a sanitized chip uint8 [112, 112, 3] (RGB) on the canvas (BGR), by the inverse of the warp that cut it."""
    height, width = canvas.shape[:2]
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([(0, 0, 1), (faces.CHIP, 0, 1), (0, faces.CHIP, 1), (faces.CHIP, faces.CHIP, 1)]) @ inverse.T
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
    if left >= right or top >= bottom:
        return  # the face lies outside the frame
    inverse[:, 2] -= (left, top)
    size = (int(right - left), int(bottom - top))
    # Colours times opacity, and opacity: warped together, and laid over what is there (Porter and Duff 1984).
    faded = cv2.multiply(cv2.cvtColor(chip, cv2.COLOR_RGB2BGRA), OPACITY, scale=1 / 255)
    face = cv2.warpAffine(faded, inverse, size, flags=cv2.INTER_LINEAR)
    through = cv2.cvtColor(255 - face[..., 3], cv2.COLOR_GRAY2BGR)
    under = canvas[top:bottom, left:right]
    np.copyto(under, cv2.add(cv2.multiply(under, through, scale=1 / 255), cv2.cvtColor(face, cv2.COLOR_BGRA2BGR)))


def blacken(canvas: Pixels, zones: tuple[tuple[float, float, float, float], ...]) -> None:
    """Paint the zones (fractions of the frame: x, y, width, height) black, rounded outwards."""
    height, width = canvas.shape[:2]
    for x, y, w, h in zones:
        rows = slice(int(y * height), int(np.ceil((y + h) * height)))
        canvas[rows, int(x * width) : int(np.ceil((x + w) * width))] = 0


def slate(text: str, size: tuple[int, int], number: int, now_ns: int) -> SanitizedFrame:
    """A card that says why there is no picture; no camera pixel is in it. `size` is (width, height)."""
    width, height = size
    canvas = np.full((height, width, 3), 40, np.uint8)
    scale = max(0.4, width / 640)
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    at = (max(0, (width - text_width) // 2), (height + text_height) // 2)
    cv2.putText(
        canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (220, 220, 220), max(1, round(scale * 2)), cv2.LINE_AA
    )
    return SanitizedFrame._create(canvas, Stamps(number, now_ns, sanitized_ns=now_ns, slate=True))
