"""What faces are painted on: a flat colour, or the still with silhouettes. It holds no live pixel.

A silhouette covers the still with one flat colour in a smooth outline. A face tints its own, so that people can be told
apart; where several share one, each cell goes to the face above it.
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
PARTS: Final = 2  # cells along a cell of the message, in which is drawn: a face moves in smaller steps than those
BLUR: Final = 1.2  # cells: standard deviation
COVERED: Final = 110  # of 255: share of its surroundings from which a place lies in a silhouette
FINE: Final = 4  # pixels along a cell in which outlines are found
SMOOTH: Final = 7  # points of an outline that are averaged
MARGIN: Final = 8  # fine pixels around the picture, so that outlines leave it
SUBPIXEL: Final = 4  # bits
HEAD: Final = (0.55, 0.7)  # half axes of what a face covers, in sides of its chip: its own feather lies within
MOST_AXIS: Final = 1000  # cells: more covers everything, and no drawing overflows
SQUARE: Final = np.ones((3, 3), np.uint8)
ELSEWHERE: Final = 2**20  # cells: the distance to a face in another part
BESIDE: Final = 3  # how much farther away a face beside a cell counts than one above it
NOTHING: Final = np.zeros((1, 1), bool)
CLEAR: Final = (0, 0, 0, 255)  # of a layer: no colour, all transparent
GOLDEN: Final = (math.sqrt(5) - 1) / 2

Cells = NDArray[np.bool_]
"""bool [rows, columns]."""


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
        self._flat = self._room  # the colour
        self._key: object = None
        self._heads: tuple[Head, ...] = ()
        self._composed = self._room

    def __call__(self, size: tuple[int, int], scene: int, silhouette: Silhouette, faces: dict[int, Place]) -> Pixels:
        """Return a canvas, uint8 [height, width, 3] in BGR: the same array as before if nothing has changed. Copy it.

        Args:
            size: width and height.
            scene: the number of the still, or PLAIN for a flat colour.
            silhouette: the cells that differ from it.
            faces: where the face of each track lies.
        """
        if not self.still or scene != self.still.id:
            if self._flat.shape[:2] != size[::-1]:
                self._flat = flat(*size)
            return self._flat
        heads = tuple(head(track, place, size, silhouette) for track, place in faces.items()) if silhouette.bits else ()
        key = (size, silhouette, *(each.track for each in heads))
        if key != self._key or not all(map(_near, heads, self._heads)):
            self._key, self._heads = key, heads
            self._composed = self._compose(self.still, size, silhouette, heads)
        return self._composed

    def _compose(self, still: Still, size: tuple[int, int], silhouette: Silhouette, heads: tuple[Head, ...]) -> Pixels:
        width, height = size
        if self._room.shape[:2] != (height, width):
            shrinks = width < still.pixels.shape[1]
            way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            self._room = np.asarray(cv2.resize(still.pixels, size, interpolation=way), np.uint8)
        on = cells(silhouette, heads) if silhouette.bits else NOTHING
        if not on.any():
            return self._room
        composed = self._room.copy()
        inside = smoothed(on)
        for own, tint in layers(on, heads):
            cv2.fillPoly(composed, outlines(inside, own, on, size), tint, cv2.LINE_AA, SUBPIXEL)
        return composed


def _near(a: Head, b: Head) -> bool:
    """Return whether a face is about where it was: what it covers has room for a cell more."""
    return all(abs(now - then) <= 1 for now, then in zip(a, b, strict=True))


def flat(width: int, height: int) -> Pixels:
    """Return a canvas of one colour, uint8 [height, width, 3]."""
    return np.full((height, width, 3), PLAIN, np.uint8)


def colour(track: int) -> tuple[int, int, int]:
    """Return the tint of a track, BGR: tracks that follow each other have hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(track * GOLDEN % 1, 0.36, 0.64)
    return round(255 * blue), round(255 * green), round(255 * red)


def head(track: int, place: Place, size: tuple[int, int], grid: Silhouette) -> Head:
    """Return a face in cells, for a picture of this size (width, height)."""
    (width, height), columns, rows = size, PARTS * grid.columns, PARTS * grid.rows
    across, down = columns / width, rows / height
    return Head(
        track,
        min(columns - 1, max(0, int(place.x * across))),
        min(rows - 1, max(0, int(place.y * down))),
        min(MOST_AXIS, math.ceil(place.side * HEAD[0] * across)),
        min(MOST_AXIS, math.ceil(place.side * HEAD[1] * down)),
    )


def cells(silhouette: Silhouette, heads: tuple[Head, ...]) -> Cells:
    """Return which cells are covered: those of the silhouette, without the cell all around, and those under a face."""
    rows, columns = silhouette.rows, silhouette.columns
    told = np.unpackbits(np.frombuffer(silhouette.bits, np.uint8), count=rows * columns).reshape(rows, columns)
    # Nobody is wider than they are told at a side; below, a body goes on.
    around = cv2.copyMakeBorder(told, 1, 0, 1, 1, cv2.BORDER_CONSTANT)
    inner = cv2.erode(around, SQUARE)[1:, 1:-1]
    on = np.asarray(cv2.resize(inner, (PARTS * columns, PARTS * rows), interpolation=cv2.INTER_NEAREST), np.uint8)
    for each in heads:
        cv2.ellipse(on, (each.x, each.y), (each.across, each.down), 0, 0, 360, 1, -1)
    return on.view(bool)


def layers(on: Cells, heads: tuple[Head, ...]) -> list[tuple[Cells, tuple[int, int, int]]]:
    """Return cells and their tints, in the order in which they are painted.

    Each connected part is painted whole in the tint of its first face, and over it what belongs to each of the others,
    with a cell more of what belongs to later ones, so that there is no gap between them.
    """
    parts = cv2.connectedComponents(on.view(np.uint8), connectivity=8)[1]
    if not heads:
        return [(on, NOBODY)]
    _, x, y, *_ = np.array(heads, np.int32).T
    down, across = np.ogrid[: on.shape[0], : on.shape[1]]
    away = BESIDE * np.abs(across - x[:, None, None]) + np.abs(down - y[:, None, None])
    away[parts != parts[y, x, None, None]] = ELSEWHERE
    nearest = (away * len(heads) + np.arange(len(heads))[:, None, None]).min(0)  # a distance, and whose it is
    owner = np.where(nearest < ELSEWHERE, nearest % len(heads), -1).astype(np.int8)
    painted, begun = [(on & (owner < 0), NOBODY)], set[int]()
    for number, (each, part) in enumerate(zip(heads, parts[y, x].tolist(), strict=True)):
        later = owner >= number
        if part in begun:
            own = cv2.dilate((owner == number).view(np.uint8), SQUARE).view(bool) & later
        else:
            own = later & (parts == part)
            begun.add(part)
        painted.append((own, colour(each.track)))
    return [(own, tint) for own, tint in painted if own.any()]


def smoothed(on: Cells) -> Cells:
    """Return cells in fine pixels, without their corners: bool [rows * FINE, columns * FINE]."""
    fine = (on.shape[1] * FINE, on.shape[0] * FINE)
    share = cv2.GaussianBlur(on.view(np.uint8) * np.uint8(255), (0, 0), BLUR, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(share, fine, interpolation=cv2.INTER_CUBIC) > COVERED)


def outlines(inside: Cells, own: Cells, on: Cells, size: tuple[int, int]) -> list[NDArray[np.int32]]:
    """Return the smoothed outlines of cells, each int32 [n, 2] in pixels of the picture, with SUBPIXEL bits.

    Args:
        inside: `smoothed(on)`.
        own: the cells to go around.
        on: all that are covered: between two of them, an outline is not smoothed.
        size: width and height of the picture.
    """
    scale = np.array(size) / inside.shape[::-1]
    x, y, width, height = cv2.boundingRect(own.view(np.uint8))
    left, top = max(0, x - 2), max(0, y - 2)
    part = (slice(top, y + height + 2), slice(left, x + width + 2))
    own, on = own[part], on[part]
    inside = inside[FINE * part[0].start : FINE * part[0].stop, FINE * part[1].start : FINE * part[1].stop]
    around = np.asarray(cv2.dilate(own.view(np.uint8), SQUARE), np.uint8)
    around[on & ~own] = 0
    inside = inside & (cv2.resize(around, inside.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0)
    padded = cv2.copyMakeBorder(inside.view(np.uint8), *(MARGIN,) * 4, cv2.BORDER_REPLICATE)
    first, half = np.array([left, top], np.float32) * FINE - MARGIN + 0.5, SMOOTH // 2
    lines = []
    for line in cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
        points = line[:, 0].astype(np.float32)
        if len(points) > SMOOTH:
            points = np.asarray(
                cv2.blur(np.concatenate([points[-half:], points, points[:half]]), (1, SMOOTH))[half:-half], np.float32
            )
        lines.append(np.rint(((points + first) * scale - 0.5) * 2**SUBPIXEL).astype(np.int32))
    return lines


def lay(
    canvas: Pixels,
    layer: Pixels,
    matrix: NDArray[np.float64],
    box: tuple[int, int, int, int],
) -> None:
    """Lay a layer over a part of a canvas.

    Args:
        canvas: uint8 [height, width, 3]; it is changed.
        layer: uint8 [h, w, 4]: BGR, multiplied by opacity so that both are warped together, and transparency (Porter
            and Duff 1984).
        matrix: the affine map [2, 3] from layer to canvas.
        box: left, top, right and bottom of the part.
    """
    left, top, right, bottom = box
    moved = matrix.copy()
    moved[:, 2] -= (left, top)
    size = (right - left, bottom - top)
    over = cv2.warpAffine(layer, moved, size, flags=cv2.INTER_LINEAR, borderValue=CLEAR)
    through = cv2.cvtColor(cv2.extractChannel(over, 3), cv2.COLOR_GRAY2BGR)
    under = canvas[top:bottom, left:right]
    cv2.add(cv2.multiply(under, through, scale=1 / 255), cv2.cvtColor(over, cv2.COLOR_BGRA2BGR), dst=under)
