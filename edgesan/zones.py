"""Zones: polygons of the picture that are always flat, in fractions of it, so that they fit every size.

What the configuration closes stays closed. The owner draws more zones on the page, while edgesan runs. These come from
outside, so they have one text form, one form of JSON and one of bytes, each read in one function that refuses the rest.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgesan.errors import ConfigError

if TYPE_CHECKING:  # numpy must not be loaded before isolation
    import numpy as np
    from numpy.typing import NDArray

MOST_ZONES: Final = 16
LEAST_POINTS: Final = 3
MOST_POINTS: Final = 32
GRID: Final = 65535  # steps of a coordinate in bytes
MOST_BYTES: Final = 1 + MOST_ZONES * (1 + 4 * MOST_POINTS)
FORM: Final = "x,y,width,height of a rectangle, or x,y,x,y,x,y[,...] of a polygon, as fractions of the picture"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Zone:
    """A polygon: 3..32 points, each coordinate within 0..1. Where it winds around itself, all of it is inside."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not LEAST_POINTS <= len(self.points) <= MOST_POINTS:
            raise ConfigError(f"a zone has {len(self.points)} points: draw it with {LEAST_POINTS}..{MOST_POINTS}")
        for each in zip(*self.points, strict=True):
            if not all(0 <= value <= 1 for value in each):  # refuses NaN, too
                raise ConfigError(f"a zone has a point at {each[0]:g}: each number is a fraction, within 0..1")
            if min(each) == max(each):
                raise ConfigError("all points of a zone lie in one line: it closes nothing")

    @classmethod
    def rectangle(cls, x: float, y: float, width: float, height: float) -> "Zone":
        """Return a rectangle; what lies beyond the picture is cut off."""
        right, bottom = min(1.0, x + width), min(1.0, y + height)
        return cls(((x, y), (right, y), (right, bottom), (x, bottom)))

    def contains(self, x: float, y: float) -> bool:
        """Return whether a point, in fractions of the picture, is inside or on the outline."""
        winding = 0
        for (ax, ay), (bx, by) in self._edges():
            side = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
            if side == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
                return True
            if ay <= y < by and side < 0:
                winding += 1
            elif by <= y < ay and side > 0:
                winding -= 1
        return winding != 0

    def mask(self, width: int, height: int) -> "NDArray[np.bool_]":
        """Return which cells of a grid over the picture it touches: bool [height, width], rounded outwards.

        A grid of the picture's own size gives pixels. A cell is touched if the outline passes through it, or if its
        centre is inside.
        """
        import numpy as np

        rows = np.arange(height)
        # Both count by differences along a row, so that each edge costs one step a row, and not one a cell.
        crossed, winding = (np.zeros((height, width + 1), np.int8) for _ in range(2))
        for (ax, ay), (bx, by) in self._edges(width, height):
            low, high = min(ay, by), max(ay, by)
            slope = (bx - ax) / (by - ay) if by != ay else 0.0
            within = rows[(low < rows + 1) & (high > rows)]
            if slope or ax == bx:
                ends = [ax + slope * (np.clip(edge, low, high) - ay) for edge in (within, within + 1)]
                left, right = np.minimum(*ends), np.maximum(*ends)
            else:  # level
                left, right = (np.full(len(within), end) for end in (min(ax, bx), max(ax, bx)))
            first = np.clip(np.floor(left), 0, width).astype(int)
            crossed[within, first] += 1  # an edge has one place a row
            crossed[within, np.clip(np.ceil(right), first, width).astype(int)] -= 1
            middle = rows[(low <= rows + 0.5) & (rows + 0.5 < high)]
            begin = np.clip(np.ceil(ax + slope * (middle + 0.5 - ay) - 0.5), 0, width).astype(int)
            winding[middle, begin] += 1 if by > ay else -1
        for counted in (crossed, winding):
            np.cumsum(counted, 1, out=counted)
        return np.asarray((crossed | winding) != 0)[:, :width]

    def _edges(self, width: float = 1, height: float = 1) -> Iterator[tuple[Point, Point]]:
        """Yield both ends of each edge, in a picture of this size."""
        ends = [(x * width, y * height) for x, y in self.points]
        return zip(ends, (*ends[1:], ends[0]), strict=True)


def mask(zones: Iterable[Zone], width: int, height: int) -> "NDArray[np.bool_]":
    """Return which cells of a grid over the picture any of the zones touches: bool [height, width]; see `Zone.mask`."""
    import numpy as np

    touched = np.zeros((height, width), bool)
    for zone in zones:
        touched |= zone.mask(width, height)
    return touched


def contain(zones: Iterable[Zone], x: float, y: float) -> bool:
    """Return whether a point, in fractions of the picture, is inside one of the zones."""
    return any(zone.contains(x, y) for zone in zones)


# --- text -------------------------------------------------------------------------------------------------------------


def of_text(text: str) -> Zone:
    """Return the zone of an option: x,y,width,height, or x,y,x,y,x,y and so on.

    Raises:
        ConfigError: it is none.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"zone is {text!r}: write numbers, {FORM}") from error
    if len(numbers) == 4:
        x, y, width, height = numbers
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 and 0 < height <= 1):
            raise ConfigError(f"zone is {text!r}: each number is a fraction of the picture, within 0..1")
        return Zone.rectangle(x, y, width, height)
    if len(numbers) < 2 * LEAST_POINTS or len(numbers) % 2:
        raise ConfigError(f"zone is {text!r}: {len(numbers)} numbers; write {FORM}")
    try:
        return Zone(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    except ConfigError as error:
        raise ConfigError(f"zone is {text!r}: {error}") from error


def to_text(zone: Zone) -> str:
    """Return the option's text for a zone."""
    return ",".join(repr(value) for point in zone.points for value in point)


# --- JSON -------------------------------------------------------------------------------------------------------------


def of_json(value: Any) -> tuple[Zone, ...]:
    """Return the zones of a JSON value, [[[x, y], ...], ...], on the grid of the bytes.

    Raises:
        ConfigError: it is anything else.
    """
    return parse(pack(list(map(Zone, points_of(value)))))


def points_of(value: Any) -> list[tuple[Point, ...]]:
    """Return the points of each polygon of [[[x, y], ...], ...]; `Zone` checks them.

    Raises:
        ConfigError: it is not of this form, or too long.
    """
    if not isinstance(value, list) or not all(_is_polygon(polygon) for polygon in value):
        raise ConfigError("zones are a list of polygons, each a list of points [x, y]: [[[0, 0], [0.5, 0], [0.5, 1]]]")
    if len(value) > MOST_ZONES:
        raise ConfigError(f"there are {len(value)} zones: at most {MOST_ZONES}")
    return [tuple((float(x), float(y)) for x, y in polygon) for polygon in value]


def _is_polygon(value: Any) -> bool:
    """Return whether it is a list of pairs of numbers. A number of 400 digits is no float."""
    return isinstance(value, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(number) is float or (type(number) is int and abs(number) < 2**53) for number in point)
        for point in value
    )


def to_json(zones: Iterable[Zone]) -> list[list[list[float]]]:
    """Return zones as a value for JSON, rounded to five digits, which the grid of the bytes does not exceed."""
    return [[[round(x, 5), round(y, 5)] for x, y in zone.points] for zone in zones]


def load(text: bytes) -> tuple[Zone, ...]:
    """Return the zones of JSON text; see `of_json`.

    Raises:
        ConfigError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is not JSON ({error})") from error
    return of_json(value)


# --- bytes ------------------------------------------------------------------------------------------------------------


def pack(zones: Sequence[Zone]) -> bytes:
    """Return zones as numbers alone: how many, then of each how many points, and x and y of each as uint16."""
    content = bytes([len(zones)])
    for zone in zones:
        grid = [round(value * GRID) for point in zone.points for value in point]
        content += struct.pack(f"<B{len(grid)}H", len(zone.points), *grid)
    return content


def parse(content: bytes) -> tuple[Zone, ...]:
    """Return the zones that `pack` made these bytes of.

    Raises:
        ConfigError: it made no such bytes.
    """
    if not content or content[0] > MOST_ZONES:
        raise ConfigError(f"zones begin with their number, at most {MOST_ZONES}, not {content[:1].hex() or 'nothing'}")
    zones, at = [], 1
    for _ in range(content[0]):
        count = content[at] if at < len(content) else 0
        if not LEAST_POINTS <= count <= MOST_POINTS:
            raise ConfigError(f"a zone has {count} points: it must have {LEAST_POINTS}..{MOST_POINTS}")
        end = at + 1 + 4 * count
        if end > len(content):
            raise ConfigError(f"the zones end after {len(content)} bytes; their head says {end}")
        grid = struct.unpack_from(f"<{2 * count}H", content, at + 1)
        zones.append(Zone(tuple((x / GRID, y / GRID) for x, y in zip(grid[::2], grid[1::2], strict=True))))
        at = end
    if at != len(content):
        raise ConfigError(f"{len(content) - at} bytes follow the zones")
    return tuple(zones)
