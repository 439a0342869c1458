"""From a raw frame to latents: places and codes, whatever the detector does; few codes of a face a second."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan import bench, faces, message, noise, sanitize
from edgesan.frames import Pixels, RawFrame, SanitizedFrame, Stamps, lend
from edgesan.message import Latents
from edgesan.model.load import Model
from edgesan.sanitize import FrameSanitizer, Settings
from edgesan.zones import Zone
from tests.support import Blind

Make = Callable[..., FrameSanitizer]
FRAME_NS = 40_000_000


class Placing(faces.Detector):
    """A detector that finds what a test puts there: one list of faces for each call."""

    def __init__(self, found: Iterator[list[faces.Face]]) -> None:
        self._found = found

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        return next(self._found)


def face(x: float, y: float, side: float = 80, roll: float = 0.0, nose: float = 0.0) -> faces.Face:
    """A face whose chip has this centre, side and roll; `nose` turns the head: pixels of the chip."""
    marks = faces.TEMPLATE.astype(np.float64) + np.array([[0, 0], [0, 0], [nose, 0], [0, 0], [0, 0]]) - 56
    turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    landmarks = (marks @ turn.T * side / 112 + (x, y)).astype(np.float32)
    return faces.Face(np.array([x - side / 2, y - side / 2, side, side], np.float32), landmarks, 0.9)


@pytest.fixture
def sanitizer_with(sanitizer_model: Model, detector: faces.Detector) -> Make:
    def make(**changes: Any) -> FrameSanitizer:
        parts = {k: changes.pop(k) for k in ("encoder", "detector", "entropy", "clock") if k in changes}
        settings = Settings(**({"alpha": 0.7, "hold_ns": 10**9} | changes))
        return FrameSanitizer(**({"encoder": sanitizer_model.encoder, "detector": detector} | parts), settings=settings)

    return make


def through(sanitizer: FrameSanitizer, pixels: Pixels, number: int = 1) -> Latents:
    """One frame; frames come every 40 ms."""
    captured_ns = 10**12 + number * FRAME_NS
    with lend(pixels, number, captured_ns, captured_ns) as raw:
        return sanitizer(raw)


class Counting(faces.Detector):
    """A real detector that counts its calls."""

    calls = 0

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        self.calls += 1
        return super().__call__(pixels)


def test_a_live_run_follows_faces_between_searches_and_encodes_only_what_it_has_just_found(
    sanitizer_with: Make, clip: list[Pixels]
) -> None:
    detector = Counting(320)
    sanitizer = sanitizer_with(detector=detector)
    searched = []
    for number in range(60):  # two seconds; the picture glides to the right
        pixels = np.roll(clip[0], round(number / 3), 1)
        captured_ns, before = 10**12 + number * 33_333_333, detector.calls
        with lend(pixels, number, captured_ns, captured_ns) as raw:
            latents = sanitizer(raw, late=True)
            sanitizer.catch_up(raw)
        searched.append(detector.calls > before)
        assert searched[-1] or not sanitizer.encoded
        found = Counting(320)(pixels)
        assert len(sanitizer.tracker.tracks) == len(found) == 2
        assert number == 0 or len(latents.faces) == 2
        for track in sanitizer.tracker.tracks:
            off = min(float(np.abs(track.landmarks - face.landmarks).max()) for face in found)
            assert off < 0.1 * track.box[2], number
    assert sum(searched) <= 23, "of 60"


def test_a_crowd_is_searched_as_seldom_as_one_face_and_each_code_is_of_a_search(sanitizer_with: Make) -> None:
    picture = bench.draw(bench.Clip((640, 480), 16))[0]
    pictures = [np.roll(picture, number // 3, 1) for number in range(60)]  # it glides to the right
    detector = Counting(320)
    sanitizer = sanitizer_with(detector=detector, refresh_ns=200_000_000)
    settled, changes = 15, dict[int, list[int]]()
    codes, found = dict[int, bytes](), dict[int, list[NDArray[np.uint8]]]()
    for number, pixels in enumerate(pictures):
        calls, captured_ns = detector.calls, 10**12 + number * 33_333_333
        with lend(pixels, number, captured_ns, captured_ns) as raw:
            sanitizer(raw, late=True)
            tracks = sanitizer.tracker.tracks
            for track in tracks if detector.calls > calls else ():
                chip = faces.cut(pixels, faces.alignment(track.landmarks))
                found[track.number] = [*found.get(track.number, []), chip][-sanitize.OVER :]
            sanitizer.catch_up(raw)
        assert sanitizer.encoded <= sanitize.MOST_ENCODED
        for track in tracks:
            if number >= settled and track.code != codes.get(track.number):
                changes.setdefault(track.number, []).append(number)
                chips = np.stack(found[track.number])
                assert track.codes[-1] in sanitizer.encoder.encode(chips, np.stack([track.noise] * len(chips)), 0.7)
            codes[track.number] = track.code
        if number < settled:
            detector.calls = 0
    assert detector.calls <= (len(pictures) - settled) / sanitize.OVER + 1
    assert len(changes) == 16
    assert all(b - a <= 12 for at in changes.values() for a, b in itertools.pairwise(at)), "in turn, two a frame"


def test_what_leaves_of_a_face_is_the_mean_of_its_newest_codes(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with(refresh_ns=0)
    codes: list[bytes] = []
    for number in range(sanitize.MEAN_OF + 4):
        latents = through(sanitizer, clip[number % len(clip)], number)
        track = sanitizer.tracker.tracks[0]
        codes.append(track.codes[-1])
        numbers = np.stack([np.frombuffer(code, np.uint8) for code in codes[-sanitize.MEAN_OF :]])
        assert latents.faces[0].code == numbers.mean(0).round().astype(np.uint8).tobytes()
    assert len(set(codes)) > sanitize.MEAN_OF, "each frame has a code of its own"
    sanitizer.alpha = 0.2
    latents = through(sanitizer, clip[0], len(codes))
    assert latents.faces[0].code == sanitizer.tracker.tracks[0].codes[-1], "no code of another alpha is in the mean"


def test_a_face_that_is_not_found_is_held_and_not_encoded(sanitizer_with: Make, clip: list[Pixels]) -> None:
    found = iter([[face(200, 100)], [], [face(200, 100)]])
    sanitizer = sanitizer_with(detector=Placing(found), refresh_ns=0)
    encoded = []
    for number in range(3):
        assert len(through(sanitizer, clip[0], number).faces) == 1
        encoded.append(sanitizer.encoded)
    assert encoded == [1, 0, 1]


def test_while_nothing_stirs_the_detector_of_a_live_run_rests(sanitizer_with: Make, clip: list[Pixels]) -> None:
    random, detector = np.random.default_rng(0), Counting(320)
    sanitizer = sanitizer_with(detector=detector)
    wall = np.full_like(clip[0], 120)
    calls = []
    for number in range(60):
        pixels = np.clip(wall + random.normal(0, 4, wall.shape), 0, 255).astype(np.uint8)
        if number >= 50:
            pixels[40:160, 320:410] = clip[0][40:160, 320:410]  # a face
        captured_ns = 10**12 + number * 33_333_333
        with lend(pixels, number, captured_ns, captured_ns) as raw:
            sanitizer(raw, late=True)
            sanitizer.catch_up(raw)
        calls.append(detector.calls)
    assert calls[49] <= 4, "the first frames, and once a second"
    assert calls[50] == calls[49] + 1, "without delay"
    assert len(sanitizer.tracker.tracks) == 1


def test_each_face_of_the_clip_comes_out_as_a_code_at_its_place(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with()
    for number, pixels in enumerate(clip[:12]):
        latents = through(sanitizer, pixels, number)
        assert len(latents.faces) == 2
        assert {len(face.code) for face in latents.faces} == {64}
        for track in sanitizer.tracker.tracks:
            place = next(face.place for face in latents.faces if face.track == track.number)
            assert abs(place.x - track.box[0] - track.box[2] / 2) < track.box[2] / 4
            assert 0.8 < place.side / track.box[2] < 2.5
        assert message.parse(message.pack(latents))


def test_a_missed_face_leaves_nothing(sanitizer_with: Make, clip: list[Pixels]) -> None:
    assert through(sanitizer_with(detector=Blind(320)), clip[0]).faces == ()


def test_a_place_is_where_the_chip_was_cut() -> None:
    for x, y, side, roll in ((100, 50, 80, 0.0), (320.5, 240.25, 200, 1.0), (30, 400, 33, 6.0), (7, 9, 900, 3.1)):
        place = faces.place(face(x, y, side, roll).landmarks)
        assert place.x == pytest.approx(x, abs=0.01)
        assert place.y == pytest.approx(y, abs=0.01)
        assert place.side == pytest.approx(side, rel=0.001)
        assert math.cos(place.roll - roll) == pytest.approx(1, abs=1e-6)


def test_a_track_is_encoded_when_new_and_then_every_refresh(sanitizer_with: Make, clip: list[Pixels]) -> None:
    still = iter(lambda: [face(200, 100)], None)
    sanitizer = sanitizer_with(detector=Placing(still), refresh_ns=5 * FRAME_NS)
    encoded = []
    for number in range(16):
        latents = through(sanitizer, clip[0], number)
        assert len(latents.faces) == 1
        encoded.append(sanitizer.encoded)
    assert encoded == [1, 0, 0, 0, 0] * 3 + [1]


def live(sanitizer: FrameSanitizer, pixels: Pixels, captured_ns: int) -> tuple[Latents, int]:
    """One frame as the loop takes it: what leaves, and how many faces were encoded before it left."""
    with lend(pixels, 1, captured_ns, captured_ns) as raw:
        latents = sanitizer(raw, late=True)
        before = sanitizer.encoded
        sanitizer.catch_up(raw)
    return latents, before


def test_a_swift_frame_waits_for_no_network_and_the_next_one_brings_the_codes(
    sanitizer_with: Make, clip: list[Pixels]
) -> None:
    found = iter([[face(200, 100)]] * 2 + [[face(200, 100), face(60, 60)]] * 4)
    sanitizer = sanitizer_with(detector=Placing(found), refresh_ns=10**12)
    told = [live(sanitizer, clip[0], 10**12 + number * FRAME_NS) for number in range(6)]
    assert [before for _, before in told] == [1, 0, 0, 0, 0, 0], "nobody is in a hurry for the first frame"
    assert [len(latents.faces) for latents, _ in told] == [1, 1, 1, 2, 2, 2]


def test_a_seldom_frame_waits_for_its_codes(sanitizer_with: Make, clip: list[Pixels]) -> None:
    found = iter([[face(200, 100)], [face(200, 100), face(60, 60)]])
    sanitizer = sanitizer_with(detector=Placing(found))
    told = [live(sanitizer, clip[0], 10**12 + number * 10**9) for number in range(2)]
    assert [(before, len(latents.faces)) for latents, before in told] == [(1, 1), (2, 2)]


def test_a_turned_dial_waits_for_its_codes(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with(detector=Placing(iter(lambda: [face(200, 100)], None)))
    for number, alpha in enumerate((0.1, 0.2, 0.3, 0.4)):
        sanitizer.alpha = alpha
        latents, before = live(sanitizer, clip[0], 10**12 + number * FRAME_NS)
        assert (before, len(latents.faces)) == (1, 1), "also while it is being turned"


def test_a_turned_head_is_encoded_at_once(sanitizer_with: Make, clip: list[Pixels]) -> None:
    turning = iter([[face(200, 100)], [face(203, 101, roll=0.1)], [face(203, 101, nose=18)], [face(203, 101, nose=18)]])
    sanitizer = sanitizer_with(detector=Placing(turning), refresh_ns=10**12)
    encoded = []
    for number in range(4):
        through(sanitizer, clip[0], number)
        encoded.append(sanitizer.encoded)
    assert encoded == [1, 0, 1, 0], "moving and rolling do not change the pose; turning does"


def test_at_most_two_faces_a_frame_are_encoded_and_all_come_in_turn(sanitizer_with: Make) -> None:
    crowd = [face(60 + 120 * (i % 5), 60 + 120 * (i // 5)) for i in range(15)]
    sanitizer = sanitizer_with(detector=Placing(iter(lambda: crowd, None)), refresh_ns=0)
    scene = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    codes: list[dict[int, bytes]] = []
    for number in range(30):
        latents = through(sanitizer, scene, number)
        assert sanitizer.encoded == 2
        assert len(latents.faces) == min(15, 2 * (number + 1)), "a face without a code stays canvas"
        codes.append({face.track: face.code for face in latents.faces})
        waits = [
            10**12 + number * FRAME_NS - track.cut_ns for track in sanitizer.tracker.tracks if track.cut_ns is not None
        ]
        assert max(waits) <= 8 * FRAME_NS
    assert all(len({frame.get(track) for frame in codes}) >= 1 for track in range(15))


def test_of_a_crowd_the_sixteen_largest_leave(sanitizer_with: Make, clip: list[Pixels]) -> None:
    crowd = [face(30 + 40 * (i % 15), 30 + 40 * (i // 15), side=20 + i / 10) for i in range(163)]
    sanitizer = sanitizer_with(detector=Placing(iter(lambda: crowd, None)))
    scene = np.zeros((480, 640, 3), np.uint8)
    for number in range(12):
        latents = through(sanitizer, scene, number)
    assert len(latents.faces) == message.MOST_FACES
    assert min(face.place.side for face in latents.faces) > 34
    assert len(message.pack(latents)) <= message.MOST_BYTES


def test_a_turned_dial_drops_the_codes_of_before(sanitizer_with: Make, clip: list[Pixels]) -> None:
    crowd = [face(60 + 120 * i, 100) for i in range(5)]
    sanitizer = sanitizer_with(detector=Placing(iter(lambda: crowd, None)), refresh_ns=10**12)
    scene = np.random.default_rng(0).integers(0, 256, (240, 640, 3)).astype(np.uint8)
    for number in range(3):
        latents = through(sanitizer, scene, number)
    assert len(latents.faces) == 5
    sanitizer.alpha = 1.0
    latents = through(sanitizer, scene, 3)
    assert latents.alpha == 1.0
    assert len(latents.faces) == 2, "those that were encoded at the new alpha, and nobody else"
    sanitizer.alpha = 1.0
    assert len(through(sanitizer, scene, 4).faces) == 4


def test_nothing_in_a_zone_leaves(sanitizer_with: Make, clip: list[Pixels]) -> None:
    everywhere = through(sanitizer_with(), clip[0])
    right = through(sanitizer_with(zones=(Zone.rectangle(0.5, 0.0, 0.5, 1.0),)), clip[0])
    assert len(everywhere.faces) == 2
    assert [face.place.x < 240 for face in right.faces] == [True]
    assert through(sanitizer_with(zones=(Zone.rectangle(0.0, 0.0, 1.0, 1.0),)), clip[0]).faces == ()


def test_a_chip_that_was_cut_before_a_zone_was_drawn_is_not_encoded_in_it(sanitizer_with: Make) -> None:
    crowd = [face(60 + 100 * column, 60 + 100 * row) for column in range(5) for row in range(2)]
    sanitizer = sanitizer_with(detector=Placing(iter([[], crowd, crowd, crowd])))
    picture = np.full((270, 640, 3), 128, np.uint8)
    for number in range(4):
        if number == 2:
            assert 0 < sum(bool(track.code) for track in sanitizer.tracker.tracks) < len(crowd), "chips wait"
            sanitizer.draw((Zone.rectangle(0.0, 0.0, 1.0, 1.0),))
        captured_ns = 10**12 + number * 33_333_333
        with lend(picture, number, captured_ns, captured_ns) as raw:
            sanitizer(raw, late=True)
            sanitizer.catch_up(raw)
        assert sanitizer.encoded == (2 if number == 1 else 0)


def test_a_face_whose_centre_is_outside_leaves_nothing(sanitizer_with: Make, clip: list[Pixels]) -> None:
    outside = [face(-5, 100), face(100, -3), face(700, 100), face(100, 500), face(200, 100)]
    latents = through(sanitizer_with(detector=Placing(iter([outside]))), clip[0])
    assert [round(face.place.x) for face in latents.faces] == [200]


def test_landmarks_in_one_point_or_nowhere_leave_nothing(sanitizer_with: Make, clip: list[Pixels]) -> None:
    point, nowhere = face(200, 100), face(100, 100)
    point.landmarks[:], nowhere.landmarks[:] = 50, np.nan
    assert through(sanitizer_with(detector=Placing(iter([[point, nowhere]]))), clip[0]).faces == ()


def test_a_track_that_jumps_is_another_one(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with(detector=Placing(iter([[face(60, 60)], [face(400, 200)]])), hold_ns=0)
    first, second = (through(sanitizer, clip[0], number).faces for number in (0, 1))
    assert len(first) == len(second) == 1
    assert first[0].track != second[0].track
    assert first[0].code != second[0].code


def test_one_track_keeps_one_draw_of_noise(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with()
    through(sanitizer, clip[0])
    before = {track.number: track.noise.copy() for track in sanitizer.tracker.tracks}
    for number, pixels in enumerate(clip[1:6]):
        through(sanitizer, pixels, number + 2)
    for track in sanitizer.tracker.tracks:
        np.testing.assert_array_equal(track.noise, before[track.number])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 1), (271, 481), (2160, 3840)])
def test_any_size_of_frame_is_told(sanitizer_with: Make, shape: tuple[int, int]) -> None:
    latents = through(sanitizer_with(), np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8))
    assert (latents.height, latents.width) == shape
    assert message.parse(message.pack(latents))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_still_black_or_white_camera_leaves_no_face(sanitizer_with: Make, clip: list[Pixels], level: int) -> None:
    sanitizer = sanitizer_with()
    for number in range(3):
        assert through(sanitizer, np.full_like(clip[0], level), number).faces == ()


def test_track_numbers_begin_anew_and_never_meet() -> None:
    tracker = faces.Tracker(10**9, lambda: np.zeros(4, np.float32))
    tracker.update([face(100, 100)], 0)
    tracker._next = 65535
    tracker.update([face(100, 100), face(300, 300)], 1)
    tracker.update([face(100, 100), face(300, 300), face(500, 100)], 2)
    assert [track.number for track in tracker.tracks] == [0, 65535, 1]


def test_a_raw_frame_is_gone_after_its_loan(clip: list[Pixels]) -> None:
    with lend(clip[0], 1, 0, 0) as raw:
        assert raw.pixels is clip[0]
    with pytest.raises(RuntimeError, match="given back"):
        _ = raw.pixels
    assert "RawFrame 1" in repr(raw)
    with pytest.raises(TypeError):
        raw.__reduce__()


def test_nobody_else_makes_a_sanitized_frame(clip: list[Pixels]) -> None:
    with pytest.raises(TypeError, match=r"only edgesan\.render makes a SanitizedFrame"):
        SanitizedFrame(clip[0], Stamps(1, 0), object())
    assert not issubclass(RawFrame, SanitizedFrame)


def test_the_noise_is_standard_normal() -> None:
    z = noise.draw(200_001, os.urandom)
    assert z.dtype == np.float32
    assert z.shape == (200_001,)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02
    assert np.isfinite(noise.draw(1000, lambda n: b"\xff" * n)).all()
    assert np.isfinite(noise.draw(1000, lambda n: b"\x00" * n)).all()


def test_the_spans_add_up(sanitizer_with: Make, clip: list[Pixels]) -> None:
    sanitizer = sanitizer_with()
    now_ns = time.monotonic_ns()
    with lend(clip[0], 1, now_ns, now_ns) as raw:
        sanitizer(raw)
    capture, detect, align, encode, whole = sanitizer.spans_ns
    assert capture == 0
    assert detect + align + encode == whole > 0
    assert sanitize.MOST_ENCODED == 2
