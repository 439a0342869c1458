"""Detection, tracks and alignment."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgesan import faces
from edgesan.frames import Pixels


def test_the_decoding_agrees_with_opencvs_own_runner(clip: list[Pixels]) -> None:
    ours = faces.Detector(480)
    theirs = cv2.FaceDetectorYN.create(str(faces.DETECTOR), "", (480, 288), faces.SCORE, faces.OVERLAP)
    for pixels in clip[::14]:
        padded = cv2.copyMakeBorder(pixels, 0, 18, 0, 0, cv2.BORDER_CONSTANT)
        _, expected = theirs.detect(padded)
        found = sorted(ours(pixels), key=lambda face: float(face.box[0]))
        assert len(found) == len(expected)
        for face, row in zip(found, expected[np.argsort(expected[:, 0])], strict=True):
            np.testing.assert_allclose(face.box, row[:4], atol=0.01)
            np.testing.assert_allclose(face.landmarks.reshape(-1), row[4:14], atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (31, 33), (3, 2)])
def test_a_picture_smaller_than_a_face_has_none(detector: faces.Detector, size: tuple[int, int]) -> None:
    assert detector(np.zeros((*size, 3), np.uint8)) == []


def test_landmarks_on_the_template_need_no_alignment() -> None:
    np.testing.assert_allclose(faces.alignment(faces.TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-5)


def test_alignment_undoes_a_turn_a_zoom_and_a_shift() -> None:
    turn = cv2.getRotationMatrix2D((50, 60), 33, 2.5)
    turn[:, 2] += (40, -7)
    moved = (faces.TEMPLATE @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    matrix = faces.alignment(moved)
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], faces.TEMPLATE, atol=1e-3)


def face_at(x: float, width: float = 40) -> faces.Face:
    box = np.array([x, 10, width, width], np.float32)
    return faces.Face(box, faces.TEMPLATE * width / 112 + box[:2], 0.9)


def new_tracker() -> faces.Tracker:
    numbers = iter(range(1000))
    return faces.Tracker(500, lambda: np.full(4, next(numbers), np.float32))


def test_a_track_keeps_its_noise_while_the_face_moves() -> None:
    tracker = new_tracker()
    for step in range(20):
        tracker.update([face_at(10.0 + 8 * step), face_at(400.0 - 8 * step)], 10 * step)
    assert sorted(track.noise[0] for track in tracker.tracks) == [0, 1]


def test_a_track_holds_its_face_through_a_short_miss_and_forgets_it_after_a_long_one() -> None:
    tracker = new_tracker()
    tracker.update([face_at(10)], 0)
    tracker.update([], 500)
    assert len(tracker.tracks) == 1
    tracker.update([], 501)
    assert tracker.tracks == []
    tracker.update([face_at(10)], 600)
    assert tracker.tracks[0].noise[0] == 1, "a face that comes back gets new noise"


def test_a_fast_face_stays_one_track() -> None:
    tracker = new_tracker()
    tracker.update([face_at(100)], 0)
    tracker.update([face_at(127)], 30)  # two thirds of its width: the boxes hardly overlap
    assert len(tracker.tracks) == 1


def test_a_tilting_head_never_loses_its_track(clip: list[Pixels], detector: faces.Detector) -> None:
    tracker = new_tracker()
    tracker.hold_ns = 10**9
    for number, pixels in enumerate(clip):
        tracker.update(detector(pixels), number * 83_000_000)
        assert len(tracker.tracks) == 2
    assert sorted(track.noise[0] for track in tracker.tracks) == [0, 1], "a track was lost and begun again"


def test_a_face_is_followed_to_where_it_has_moved_and_a_cut_is_noticed(
    detector: faces.Detector, clip: list[Pixels]
) -> None:
    def moved(by: float) -> Pixels:
        matrix = np.array([[1, 0, by], [0, 1, by / 2]])
        return np.asarray(
            cv2.warpAffine(clip[0], matrix, clip[0].shape[1::-1], borderMode=cv2.BORDER_REPLICATE), np.uint8
        )

    first = detector(clip[0])
    tracks = [faces.Track(i, f.landmarks, f.box, 0, np.zeros(1, np.float32)) for i, f in enumerate(first)]
    assert len(tracks) == 2
    follower = faces.Follower()
    assert not follower(clip[0], tracks), "it has seen no frame before"
    for step in range(1, 4):
        assert follower(moved(1.5 * step), tracks)
    for track, face in zip(tracks, first, strict=True):
        away = track.landmarks - face.landmarks - (4.5, 2.25)
        assert np.abs(away).max() < 0.5, "pixels"
        np.testing.assert_allclose(track.box, face.box + np.array([4.5, 2.25, 0, 0]), atol=0.5)
    assert not follower(clip[0][:, ::-1], tracks), "another picture"
    assert not follower(clip[0][:100], tracks), "another size"
    follower.see(clip[0])
    assert not follower(moved(20), tracks), "farther than a tenth of a face: search"


@pytest.mark.parametrize("seed", range(20))
def test_many_faces_move_at_once_as_each_would_by_the_median_of_its_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = rng.uniform(20, 200, 16)
    tracks = [faces.Track(i, f.landmarks, f.box, 0, np.zeros(1)) for i, f in enumerate(map(face_at, sides, sides))]
    steps = rng.normal(1, 2, (16, 15, 2)).astype(np.float32)
    found = rng.random((16, 15)) < np.linspace(0, 1, 16)[:, None]  # from none to all
    expected = []
    for track, step, sure in zip(tracks, steps, found, strict=True):
        enough = sure.mean() >= faces.LEAST_FOUND
        by = np.median(step[sure], 0) if enough else np.zeros(2, np.float32)
        moved = float(np.hypot(*by)) / float(track.box[2])
        apart = float(np.median(np.abs(step[sure] - by).max(-1))) / float(track.box[2]) if enough else 0
        followed = enough and moved <= faces.FAR and apart <= faces.APART
        expected.append((track.landmarks + by, track.box + np.append(by, (0, 0)).astype(np.float32), moved, followed))
    alone = [faces._move([replace(track)], steps[i : i + 1], found[i : i + 1]) for i, track in enumerate(tracks)]
    assert alone == [each[3] for each in expected]
    assert 0 < sum(alone) < 16
    assert not faces._move(tracks, steps, found), "one is lost: search"
    for track, (landmarks, box, moved, _) in zip(tracks, expected, strict=True):
        np.testing.assert_array_equal(track.landmarks, landmarks)
        np.testing.assert_array_equal(track.box, box)
        assert track.moved == moved
    kept = np.array(alone)
    assert faces._move([replace(tracks[i], moved=0.0) for i in np.flatnonzero(kept)], steps[kept], found[kept])
