"""Zones: what a polygon contains, which cells of a grid it touches, and that it crosses as numbers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesan import request, zones
from edgesan.errors import ConfigError, Reject
from edgesan.message import PLAIN, Latents
from edgesan.model.load import Model
from edgesan.render import Renderer
from edgesan.request import Alpha, Privacy, Zones
from edgesan.zones import Zone

COORDINATES = st.integers(0, zones.GRID).map(lambda step: step / zones.GRID)


def closes_something(points: list[tuple[float, float]]) -> bool:
    return all(min(each) < max(each) for each in zip(*points, strict=True))


POLYGONS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9).filter(closes_something)
ANY_ZONE = POLYGONS.map(lambda points: Zone(tuple(points)))
ANY_ZONES = st.lists(ANY_ZONE, max_size=4).map(tuple)


def test_a_polygon_contains_what_lies_within_its_outline() -> None:
    triangle = Zone(((0, 0), (1, 0), (0, 1)))
    assert triangle.contains(0.2, 0.2)
    assert triangle.contains(0.5, 0.5), "on the outline"
    assert not triangle.contains(0.6, 0.6)
    ell = Zone(((0, 0), (1, 0), (1, 0.5), (0.5, 0.5), (0.5, 1), (0, 1)))
    assert ell.contains(0.2, 0.9)
    assert not ell.contains(0.8, 0.8)
    star = Zone(((0.5, 0), (0.8, 1), (0, 0.4), (1, 0.4), (0.2, 1)))
    assert star.contains(0.5, 0.5), "its middle is no hole"


def test_a_mask_is_rounded_outwards() -> None:
    assert Zone.rectangle(0.5, 0, 0.5, 1).mask(4, 2).tolist() == [[False, False, True, True]] * 2
    assert Zone.rectangle(0.49, 0, 0.5, 1).mask(4, 1).tolist() == [[False, True, True, True]]
    sliver = Zone(((0.1, 0.3), (0.9, 0.31), (0.9, 0.32)))
    assert sliver.mask(4, 4).tolist() == [[False] * 4, [True] * 4, [False] * 4, [False] * 4], "no centre lies in it"
    assert Zone(((0, 0), (1, 0), (1, 1), (0, 1))).mask(64, 48).all()
    both = zones.mask((Zone.rectangle(0, 0, 0.5, 0.5), Zone.rectangle(0.5, 0.5, 0.5, 0.5)), 2, 2)
    assert both.tolist() == [[True, False], [False, True]]
    assert not zones.mask((), 3, 2).any()


@given(ANY_ZONE, st.integers(1, 12), st.integers(1, 9))
def test_no_cell_that_holds_a_point_of_a_zone_is_left_out_and_none_is_added(
    zone: Zone, columns: int, rows: int
) -> None:
    touched = zone.mask(columns, rows)
    assert touched.shape == (rows, columns)
    steps = 8
    fine = zone.mask(columns * steps, rows * steps)
    assert (fine.reshape(rows, steps, columns, steps).any((1, 3)) == touched).all(), "the same at every size"
    for row in range(rows):
        for column in range(columns):
            if zone.contains((column + 0.37) / columns, (row + 0.61) / rows):
                assert touched[row, column]
            elif not touched[row, column]:
                assert not zone.contains((column + 0.5) / columns, (row + 0.5) / rows)


@given(ANY_ZONES)
def test_zones_cross_and_are_recorded_as_they_are(drawn: tuple[Zone, ...]) -> None:
    assert zones.parse(zones.pack(drawn)) == drawn
    assert zones.load(json.dumps(zones.to_json(drawn)).encode()) == drawn
    assert request.parse(request.pack(Zones(drawn))) == Zones(drawn)


def test_the_largest_request_fits_one_write_to_a_pipe() -> None:
    most = Zones((Zone(((0.0, 0.0), (1.0, 1.0)) * 16),) * zones.MOST_ZONES)
    assert len(request.pack(most)) == request.MOST_BYTES < 4096
    assert request.parse(request.pack(most)) == most


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1",
        bytes(10),
        request.pack(Alpha(1.01)),
        request.pack(Alpha(float("nan"))),
        request.pack(Alpha(0.5)) + b"\0",
        b"\1\2\2",
        b"\1\2",
        b"\1\4\0",
        b"\2" + request.pack(Privacy(True))[1:],
        b"\1\3",
        b"\1\3\1",
        b"\1\3\1\2" + bytes(8),
        b"\1\3\1\3" + bytes(12),
        b"\1\3\x11",
        request.pack(Zones((Zone(((0, 0), (1, 0), (1, 1))),)))[:-1],
        request.pack(Zones((Zone(((0, 0), (1, 0), (1, 1))),))) + b"\0",
        bytes(5000),
    ],
)
def test_what_is_no_request_is_refused(content: bytes) -> None:
    with pytest.raises(Reject, match="request"):
        request.parse(content)


def test_a_renderer_takes_other_zones_from_the_next_frame_on(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder)

    def black(width: int = 64, height: int = 48) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        frame = Latents(1, 10**9, 0, width, height, 0.4, sanitizer_model.decoder.id, scene=PLAIN)
        return np.asarray((renderer(frame).pixels == 0).all(2))

    assert not black().any()
    zone = Zone(((0.1, 0.1), (0.9, 0.2), (0.4, 0.9)))
    renderer.zones = (zone,)
    assert (black() == zone.mask(64, 48)).all()
    assert (black(30, 20) == zone.mask(30, 20)).all(), "the picture has another size now"
    renderer.zones = ()
    assert not black().any()


def test_a_zone_that_closes_nothing_is_an_error() -> None:
    for points in (((0, 0), (1, 1)), ((0, 0), (0, 0.5), (0, 1)), ((0, 0), (1, 0), (0.5, 1.1))):
        with pytest.raises(ConfigError):
            Zone(points)
