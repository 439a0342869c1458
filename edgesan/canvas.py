"""What faces are painted on: a flat colour, or the still with silhouettes. It holds no live pixel.

A silhouette covers the still with one flat colour, whose outline is smoothed. A face tints its own, so that people can
be told apart; where several share one, each cell goes to the face above it.
"""

import colorsys
import math
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.frames import Pixels
from edgesan.message import Place, Silhouette
from edgesan.scene import Still

PLAIN: Final = 64  # level of a canvas without a scene, of 255: a dark grey
NOBODY: Final = (112, 104, 98)  # BGR of a silhouette without a face
FINE: Final = 8  # pixels along a cell in which outlines are smoothed
BLUR: Final = 4.5  # of them: standard deviation
STEEP: Final = 5.0  # how much faster than that blur an outline goes from clear to opaque
HEAD: Final = (0.55, 0.7)  # half axes of what a face covers, in sides of its chip: its own feather lies within
BESIDE: Final = 3.0  # how much farther away a face beside a cell counts than one above it
CLEAR: Final = (0, 0, 0, 255)  # of a layer: no colour, all transparent
GOLDEN: Final = (math.sqrt(5) - 1) / 2
EDGE: Final = np.clip((np.arange(256) - 127.5) * STEEP + 127.5, 0, 255).round().astype(np.uint8)

Cells = NDArray[np.uint8]
"""uint8 [rows, columns]: 0 where there is no silhouette, 1 where it is nobody's, and from 2 on those of the faces."""


class Head(NamedTuple):
    """A face in cells: the number of its track, its centre, and the half axes of what it covers."""

    track: int
    x: int
    y: int
    across: int
    down: int


class Canvas:
    """Makes canvases, and keeps the newest one until the silhouette or a tint changes."""

    def __init__(self, still: Still | None = None) -> None:
        self.still = still
        self._room: Pixels = np.zeros((0, 0, 3), np.uint8)  # the still at the size of the frames
        self._key: object = None
        self._composed = self._room

    def __call__(self, size: tuple[int, int], scene: int, silhouette: Silhouette, faces: dict[int, Place]) -> Pixels:
        """Return a canvas to paint on, uint8 [height, width, 3] in BGR.

        Args:
            size: width and height.
            scene: the number of the still, or PLAIN for a flat colour.
            silhouette: the cells that differ from it.
            faces: where the face of each track lies.
        """
        if not self.still or scene != self.still.id:
            return flat(*size)
        heads = tuple(head(track, place, size, silhouette) for track, place in faces.items()) if silhouette.bits else ()
        key = (size, silhouette, heads)
        if key != self._key:
            self._key, self._composed = key, self._compose(self.still, size, silhouette, heads)
        return self._composed.copy()

    def _compose(self, still: Still, size: tuple[int, int], silhouette: Silhouette, heads: tuple[Head, ...]) -> Pixels:
        width, height = size
        if self._room.shape[:2] != (height, width):
            shrinks = width < still.pixels.shape[1]
            way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            self._room = np.asarray(cv2.resize(still.pixels, size, interpolation=way), np.uint8)
        if not silhouette.bits:
            return self._room
        whose = owners(silhouette, heads)
        if not whose.any():
            return self._room
        composed = self._room.copy()
        colours = np.array([NOBODY, NOBODY, *(colour(each.track) for each in heads)], np.uint8)
        rows, columns = whose.shape
        layer = drawn(whose, colours)
        scale = np.array([[width / columns / FINE, 0, 0], [0, height / rows / FINE, 0]])
        scale[:, 2] = (scale[0, 0] - 1) / 2, (scale[1, 1] - 1) / 2  # centres of pixels lie between their edges
        left, top, across, down = cv2.boundingRect((whose > 0).astype(np.uint8))
        cell = np.array([width / columns, height / rows])
        begin = np.maximum(0, np.floor((np.array([left, top]) - 1) * cell)).astype(int)
        end = np.minimum(size, np.ceil((np.array([left + across, top + down]) + 1) * cell)).astype(int)
        lay(composed, layer, scale, (*begin.tolist(), *end.tolist()), cv2.BORDER_REPLICATE)
        return composed


def flat(width: int, height: int) -> Pixels:
    """Return a canvas of one colour, uint8 [height, width, 3]."""
    return np.full((height, width, 3), PLAIN, np.uint8)


def colour(track: int) -> tuple[int, int, int]:
    """Return the tint of a track, BGR: tracks that follow each other have hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(track * GOLDEN % 1, 0.36, 0.64)
    return round(255 * blue), round(255 * green), round(255 * red)


def head(track: int, place: Place, size: tuple[int, int], grid: Silhouette) -> Head:
    """Return a face in cells, for a picture of this size (width, height)."""
    width, height = size
    across, down = grid.columns / width, grid.rows / height
    return Head(
        track,
        min(grid.columns - 1, max(0, int(place.x * across))),
        min(grid.rows - 1, max(0, int(place.y * down))),
        math.ceil(place.side * HEAD[0] * across),
        math.ceil(place.side * HEAD[1] * down),
    )


def owners(silhouette: Silhouette, heads: tuple[Head, ...]) -> Cells:
    """Return whose each cell is: those of the silhouette, and those under a face."""
    rows, columns = silhouette.rows, silhouette.columns
    whose = np.unpackbits(np.frombuffer(silhouette.bits, np.uint8), count=rows * columns).reshape(rows, columns)
    for each in heads:
        cv2.ellipse(whose, (each.x, each.y), (each.across, each.down), 0, 0, 360, 1, -1)
    parts = cv2.connectedComponents(whose, connectivity=8)[1]
    nearest = np.full((rows, columns), np.inf)
    down, across = np.mgrid[:rows, :columns]
    for number, each in enumerate(heads):
        away = BESIDE * np.abs(across - each.x) + np.abs(down - each.y)
        closer = (parts == parts[each.y, each.x]) & (away < nearest)
        whose[closer], nearest[closer] = number + 2, away[closer]
    return np.asarray(whose, np.uint8)


def drawn(whose: Cells, colours: NDArray[np.uint8]) -> Pixels:
    """Return silhouettes as a layer, uint8 [rows * FINE, columns * FINE, 4]: see `lay`.

    Args:
        whose: the cells, as `owners` returns them.
        colours: uint8 [n, 3] in BGR, by the numbers in `whose`.
    """
    size = (whose.shape[1] * FINE, whose.shape[0] * FINE)
    mask = cv2.resize((whose > 0).astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
    opacity = cv2.LUT(cv2.GaussianBlur(mask, (0, 0), BLUR, borderType=cv2.BORDER_REPLICATE), EDGE)
    beyond = np.where(whose > 0, whose, cv2.dilate(whose, np.ones((3, 3), np.uint8)))  # for the smoothed outline
    tints = cv2.resize(colours[beyond], size, interpolation=cv2.INTER_LINEAR)
    layer = cv2.multiply(cv2.cvtColor(tints, cv2.COLOR_BGR2BGRA), cv2.merge([opacity] * 4), scale=1 / 255)
    layer[..., 3] = 255 - opacity
    return np.asarray(layer, np.uint8)


def lay(
    canvas: Pixels,
    layer: Pixels,
    matrix: NDArray[np.float64],
    box: tuple[int, int, int, int],
    beyond: int = cv2.BORDER_CONSTANT,
) -> None:
    """Lay a layer over a part of a canvas.

    Args:
        canvas: uint8 [height, width, 3]; it is changed.
        layer: uint8 [h, w, 4]: BGR, multiplied by opacity so that both are warped together, and transparency (Porter
            and Duff 1984).
        matrix: the affine map [2, 3] from layer to canvas.
        box: left, top, right and bottom of the part.
        beyond: what lies outside the layer: nothing, or (cv2.BORDER_REPLICATE) what lies at its edge.
    """
    left, top, right, bottom = box
    moved = matrix.copy()
    moved[:, 2] -= (left, top)
    size = (right - left, bottom - top)
    over = cv2.warpAffine(layer, moved, size, flags=cv2.INTER_LINEAR, borderMode=beyond, borderValue=CLEAR)
    through = cv2.cvtColor(cv2.extractChannel(over, 3), cv2.COLOR_GRAY2BGR)
    under = canvas[top:bottom, left:right]
    cv2.add(cv2.multiply(under, through, scale=1 / 255), cv2.cvtColor(over, cv2.COLOR_BGRA2BGR), dst=under)
