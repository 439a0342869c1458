"""Which cells of the picture differ from the still: a bit a cell, five times a second, each kept for a while.

A bit also says how unlike the room somebody is in that place. Fewer looks, and cells that stay on for some of them, say
less of it: `python -m export.silhouettes` measures how much is left.

The frame is always compared with the same still, so a person who sits still stays a silhouette for as long as they
sit. Only the light is fitted: a gain for each channel on a coarse grid, in steps of an eighth of a stop. The gain of
the whole picture may change at once, because most of the picture must confirm it. A part of the picture follows slowly
and not far, and what differed before has no say, so that no person passes for a change of the light.

All is compared in logarithms: a gain is a number to add, and a shadow is a smooth darkening of all channels alike.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.frames import Pixels
from edgesan.message import MOST_CELLS, Silhouette
from edgesan.scene import Still
from edgesan.zones import Zone, mask

COLUMNS: Final = 24  # cells from left to right; rows follow from the still's aspect
CELL: Final = 4  # pixels of the working copy along a side of a cell
PERIOD_NS: Final = 200_000_000  # from one look to the next
HELD: Final = 3  # looks for which a cell stays on
MOST_ASPECT: Final = 0.03  # by which the aspect of a frame may be off the still's

STOP: Final = 48  # units of a stop (a factor of two) in the logarithms
FLOOR: Final = 8.0  # levels that are added before the logarithm, so that noise in the dark counts little
LOG: Final = np.round(STOP * np.log2((np.arange(256) + FLOOR) / FLOOR)).astype(np.uint8)
FULL: Final = int(LOG[255])
OVEREXPOSED: Final = int(LOG[250])  # the still may have been brighter than it says

HIGH: Final = 8  # mean difference, in units, that switches a cell on
LOW: Final = 5  # that keeps it on
CAP: Final = 40  # units that a pixel counts at most
SHADOW: Final = 36  # units by which a shadow darkens at most: to 0.6 of the light

GAIN: Final = 6  # units of a step of the gain: an eighth of a stop
AGREES: Final = 5  # units up to which a pixel agrees with a gain
MARGIN: Final = 4  # units that a median must be off before the gain is tried anew
GRID: Final = (3, 4)  # rows and columns of local gains
MOST_LOCAL: Final = 4  # steps that a local gain may be off the gain of the whole picture
LOCAL_NS: Final = 1_000_000_000  # from one step of the local gains to the next
LEAST_SHARE: Final = 0.25  # of pixels, for their median to count

LOSES: Final = 0.6  # share of cells that differ from which the scene does not hold
HOLDS: Final = 0.4  # share up to which it holds again
SQUARE: Final = np.ones((3, 3), np.uint8)

Cells = NDArray[np.bool_]
"""bool [rows, columns]."""


class Silhouettes:
    """Compares frames with the still. Which cells differed in the last looks, and the gains, are its only memory."""

    def __init__(self, still: Still, zones: Sequence[Zone] = (), columns: int = COLUMNS) -> None:
        """Prepare the still.

        Args:
            still: the empty room.
            zones: parts of the picture of which no bit leaves.
            columns: cells from left to right; fewer if they and their rows would be more than a message carries.
        """
        height, width = still.pixels.shape[:2]
        self.still = still
        self.columns, self.rows = grid(width, height, columns)
        self._aspect = width / height
        self._size = (self.columns * CELL, self.rows * CELL)
        self.draw(zones)
        self._bare = cv2.LUT(shrink(still.pixels, self._size), LOG).astype(np.int16)
        self._gain = np.zeros(3, np.int16)  # of the whole picture, in units
        self._local = np.zeros((*GRID, 3), np.int16)
        self._expect()
        self.forget()

    def draw(self, zones: Sequence[Zone]) -> None:
        """Let no bit of these zones leave, from the next frame on."""
        self._zones: Cells = mask(zones, self.columns, self.rows)
        self._due_ns = 0  # what was found before holds bits of them

    def forget(self) -> None:
        """Forget what differed: the next frame has nothing to do with the ones before."""
        self._on: Cells = np.zeros((self.rows, self.columns), bool)
        self._held = [self._on.astype(np.uint8)]
        self._due_ns = self._local_due_ns = 0
        self.quiet = False
        """Whether nothing differs, and nothing differed before."""
        self._found: Silhouette | None = Silhouette(self.columns, self.rows, np.packbits(self._on).tobytes())

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.columns * self.rows

    def __call__(self, pixels: Pixels, now_ns: int) -> Silhouette | None:
        """Return the cells that differ, or None: most of them do, so the scene does not hold.

        Args:
            pixels: the frame, uint8 [height, width, 3] in BGR.
            now_ns: when it was captured. Within PERIOD_NS the answer of the frame before stands.
        """
        if -2 * PERIOD_NS < now_ns - self._due_ns < -PERIOD_NS // 8:  # a camera jitters
            return self._found
        self._due_ns = PERIOD_NS + (self._due_ns if abs(now_ns - self._due_ns) <= PERIOD_NS else now_ns)
        height, width = pixels.shape[:2]
        if abs(width / height / self._aspect - 1) > MOST_ASPECT:
            self._found, self._held, self.quiet = None, [], False
            return None
        logs = np.asarray(cv2.LUT(shrink(pixels, self._size), LOG), np.uint8)
        self._fit_light(logs, now_ns)
        found = self._differs(logs)
        on = ((found > HIGH) | (self._on & (found > LOW))) & ~self._zones
        held = self._found is not None
        share = int(np.count_nonzero(on)) / max(1, int(np.count_nonzero(~self._zones)))
        holds = share <= (LOSES if held else HOLDS)
        self.quiet = bool(held and holds and not on.any() and not self._on.any())
        self._on = on
        self._held = [*self._held, solid(on)][-HELD:] if holds else []
        self._found = self._drawn() if holds else None
        return self._found

    def _drawn(self) -> Silhouette:
        """Return cells as they leave: those of the last looks, without gaps and holes, and a cell wider all around."""
        drawn = np.asarray(np.maximum.reduce(self._held), np.uint8)
        if drawn.any():
            closed = np.asarray(cv2.morphologyEx(np.pad(drawn, 2), cv2.MORPH_CLOSE, SQUARE), np.uint8)
            drawn = closed[2:-2, 2:-2]
            around = np.pad(drawn, 1)
            cv2.floodFill(around, None, (0, 0), 1)
            holes = around[1:-1, 1:-1] ^ np.uint8(1)
            if np.count_nonzero(holes) < np.count_nonzero(drawn):  # more is a view through something
                drawn = drawn | holes
            drawn = np.asarray(cv2.dilate(drawn, SQUARE), np.uint8)
            drawn[self._zones] = 0
        return Silhouette(self.columns, self.rows, np.packbits(drawn).tobytes())

    def _differs(self, logs: Pixels) -> NDArray[np.uint8]:
        """Return how much each cell differs in the light of now, uint8 [rows, columns] in units."""
        off = np.asarray(cv2.subtract(logs, self._expected, dtype=cv2.CV_16S), np.int16)
        return difference(off, (self.columns, self.rows))

    # --- light --------------------------------------------------------------------------------------------------------

    def _expect(self) -> None:
        """Compute what the still looks like in the light of now."""
        gains = (self._gain + self._local).astype(np.float32)
        expected = np.clip(self._bare + np.rint(cv2.resize(gains, self._size)).astype(np.int16), 0, FULL)
        self._expected = np.where(self._bare >= OVEREXPOSED, FULL, expected).astype(np.int16)

    def _fit_light(self, logs: Pixels, now_ns: int) -> None:
        """Fit the gains to a frame: of the whole picture at once, of its parts slowly."""
        middle = (slice(CELL // 2, None, CELL),) * 2  # a pixel of each cell
        off = logs[middle].astype(np.int16) - self._expected[middle]  # [rows, columns, 3]
        inside = ~self._zones
        sure = inside & ~cv2.dilate(self._on.astype(np.uint8), SQUARE).view(bool)
        if np.count_nonzero(sure) < LEAST_SHARE * np.count_nonzero(inside):
            sure = inside  # nearly all differs: it may be the light
        if not sure.any():
            return
        step = _steps(np.median(off[sure], 0))
        changed = bool(step.any()) and _agreement(off - step, inside) > _agreement(off, inside) + 0.02
        if changed:
            self._gain += step
            off -= step
        if now_ns >= self._local_due_ns or self._local_due_ns - now_ns > LOCAL_NS:
            self._local_due_ns = now_ns + LOCAL_NS
            changed = self._fit_parts(logs, off, sure) or changed
        if self._local.any():
            changed = self._level_parts(logs[middle].astype(np.int16) - self._bare[middle] - self._gain, off) or changed
        if changed:
            self._expect()

    def _parts(self) -> list[tuple[tuple[int, int], tuple[slice, slice]]]:
        """Return each part of the grid of local gains, and its cells."""
        rows, columns = GRID
        return [
            (
                (i, j),
                (
                    slice(i * self.rows // rows, (i + 1) * self.rows // rows),
                    slice(j * self.columns // columns, (j + 1) * self.columns // columns),
                ),
            )
            for i in range(rows)
            for j in range(columns)
        ]

    def _fit_parts(self, logs: Pixels, off: NDArray[np.int16], sure: Cells) -> bool:
        """Move each local gain by a step if its part agrees more then; return whether one has moved.

        Where a step lets more cells differ than before, it is taken back: a part with a large shadow agrees with less
        light, but the rest of it does not.
        """
        before, changed = self._local.copy(), False
        for part, cells in self._parts():
            known = sure[cells]
            if np.count_nonzero(known) <= LEAST_SHARE * known.size:
                continue
            most, local = MOST_LOCAL * GAIN, self._local[part]
            steps = np.clip(local + _steps(np.median(off[cells][known], 0)), -most, most) - local
            if steps.any() and _agreement(off[cells] - steps, known) > _agreement(off[cells], known) + 0.05:
                self._local[part] = local + np.clip(steps, -GAIN, GAIN)
                changed = True
        if changed:
            differed = self._differs(logs) > LOW
            self._expect()
            differs = self._differs(logs) > LOW
            for part, cells in self._parts():
                if np.count_nonzero(differs[cells]) > np.count_nonzero(differed[cells]):
                    self._local[part] = before[part]
        return changed

    def _level_parts(self, level: NDArray[np.int16], off: NDArray[np.int16]) -> bool:
        """Take a local gain back at once where the gain of the whole picture explains more; return whether one was.

        So nothing that was taken for a shadow leaves a ghost when it goes.
        """
        changed = False
        for part, cells in self._parts():
            everywhere = ~self._zones[cells]
            if not (self._local[part].any() and everywhere.any()):
                continue
            if _agreement(level[cells], everywhere) > _agreement(off[cells], everywhere) + LEAST_SHARE:
                self._local[part] = 0
                changed = True
        return changed


def _steps(median: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return what to add to a gain whose pixels are off by this median: whole steps, none for a small one."""
    wanted = np.where(np.abs(median) > MARGIN, GAIN * np.rint(median / GAIN), 0)
    return np.asarray(wanted, np.int16)


def _agreement(off: NDArray[np.int16], known: Cells) -> float:
    """Return the share of known pixels that are off by little in all channels."""
    return float(np.mean(np.abs(off[known]).max(-1) <= AGREES))


def difference(off: NDArray[np.int16], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return how much each cell differs, uint8 [rows, columns] in units; `size` is (columns, rows).

    What counts in a pixel is the most of: brighter; darker than any shadow; of another colour; and off the difference
    of its surroundings, because a shadow keeps the texture of what it falls on.

    Args:
        off: logarithms of the working copy, less those of the still, int16 [height, width, 3].
        size: columns and rows of the cells.
    """
    blue, green, red = (np.asarray(channel, np.int16) for channel in cv2.split(off))
    most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    light = (blue + 2 * green + red) >> 2
    texture = cv2.absdiff(light, cv2.blur(light, (3, 3)))
    found = cv2.max(light, HIGH - SHADOW - light)
    found = cv2.max(found, np.asarray(most - least, np.int16) * 5 >> 3)
    found = cv2.max(found, texture)
    return np.asarray(cv2.resize(np.clip(found, 0, CAP).astype(np.uint8), size, interpolation=cv2.INTER_AREA))


def solid(on: Cells) -> NDArray[np.uint8]:
    """Return cells without lonely ones, which are noise: uint8 [rows, columns]."""
    found = on.astype(np.uint8)
    neighbours = cv2.boxFilter(found, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(found & (neighbours > 1), np.uint8)


def grid(width: int, height: int, columns: int = COLUMNS) -> tuple[int, int]:
    """Return columns and rows of nearly square cells for a picture, no more than a message carries."""
    columns = max(1, min(columns, 255, round((MOST_CELLS * width / height) ** 0.5)))
    return columns, max(1, min(round(columns * height / width), 255, MOST_CELLS // columns))


def shrink(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a small copy whose pixels are means: quartered (by every other pixel), halved while it can be, resized.

    Each of these is fast. One resize by any factor takes ten times as long.

    Args:
        pixels: uint8 [height, width, 3].
        size: width and height of the copy.
    """
    width, height = size
    if pixels.shape[1] >= 4 * width and pixels.shape[0] >= 4 * height:
        quarter = (pixels.shape[1] // 4, pixels.shape[0] // 4)
        pixels = np.asarray(cv2.resize(pixels, quarter, interpolation=cv2.INTER_LINEAR), np.uint8)
    while pixels.shape[1] >= 2 * width and pixels.shape[0] >= 2 * height:
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8)
