"""The door: what comes out is sanitized, whatever the detector or the model do."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan import faces, gate, model, noise, sanitize
from edgesan.errors import Reject
from edgesan.frames import Pixels, RawFrame, SanitizedFrame, Stamps, lend

Make = Callable[..., sanitize.FrameSanitizer]


class Blind(faces.Detector):
    """A real detector that is switched off: every face is missed."""

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        return []


class Lying(model.Model):
    """A model that gives what a test wants instead of what it computes."""

    answer: Callable[[NDArray[np.uint8]], NDArray[Any]]

    def run(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[Any]:
        return type(self).answer(chips)


def lying(real: model.Model, answer: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> model.Model:
    kind = type("LyingModel", (Lying,), {"answer": staticmethod(answer)})
    made: model.Model = kind(**{name: getattr(real, name) for name in real.__dataclass_fields__})
    return made


@pytest.fixture
def door(sanitizer_model: model.Model, detector: faces.Detector) -> Make:
    def make(**changes: Any) -> sanitize.FrameSanitizer:
        settings = sanitize.Settings(
            changes.pop("background", "pixelate"), changes.pop("zones", ()), changes.pop("detect_every", 1)
        )
        arguments = {"model": sanitizer_model, "detector": detector, "alpha": 0.7, "hold_ns": 10**9} | changes
        return sanitize.FrameSanitizer(settings=settings, **arguments)

    return make


def through(door: sanitize.FrameSanitizer, pixels: Pixels, age_ns: int = 0) -> SanitizedFrame:
    now = time.monotonic_ns()
    with lend(pixels, 1, now - age_ns, now) as raw:
        return door(raw)


def test_each_face_of_the_clip_comes_out_rewritten(door: Make, clip: list[Pixels]) -> None:
    sanitizer = door()
    for pixels in clip[::8]:
        frame = through(sanitizer, pixels)
        assert frame.stamps.faces == 2
        for track in sanitizer.tracker.tracks:
            matrix = faces.alignment(track.landmarks)
            before, after = faces.cut(pixels, matrix).astype(int), faces.cut(frame.pixels, matrix).astype(int)
            assert np.abs(before - after).mean() > 4


@pytest.mark.parametrize("background", ["pixelate", "blur", "black"])
def test_a_missed_face_is_obfuscated(door: Make, clip: list[Pixels], background: str) -> None:
    frame = through(door(detector=Blind(320), background=background), clip[0])
    assert frame.stamps.faces == 0
    if background == "pixelate":
        assert len(np.unique(frame.pixels.reshape(-1, 3), axis=0)) <= 11 * 6  # blocks of a sixth of 270 pixels
    detail = np.abs(np.diff(frame.pixels.astype(int), axis=1)).mean()
    assert detail < 0.35 * np.abs(np.diff(clip[0].astype(int), axis=1)).mean()


def test_keep_shows_the_background_but_no_raw_face(door: Make, clip: list[Pixels]) -> None:
    sanitizer = door(background="keep")
    frame = through(sanitizer, clip[0])
    np.testing.assert_array_equal(frame.pixels[-5:, :5], clip[0][-5:, :5])
    for track in sanitizer.tracker.tracks:
        x, y, w, h = track.box.astype(int)
        around = (frame.pixels[y : y + h, x : x + w] == clip[0][y : y + h, x : x + w]).all(2)
        assert around.mean() < 0.02


@pytest.mark.parametrize("background", ["pixelate", "blur", "keep"])
def test_no_block_takes_its_colour_from_a_known_face(background: str) -> None:
    """The same scene with heads of other colours gives the same canvas, and a missed one would not."""
    boxes = [np.array(box, np.float32) for box in ((200, 60, 90, 110), (-20, 300, 100, 120))]
    scene = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    dark, light = scene.copy(), scene.copy()
    for x, y, w, h in np.array(boxes, int):
        dark[max(0, y - h // 2) : y + 3 * h // 2, max(0, x - w // 2) : x + 3 * w // 2] = 20
        light[max(0, y - h // 2) : y + 3 * h // 2, max(0, x - w // 2) : x + 3 * w // 2] = 230
    canvas = sanitize.obfuscate(dark, background, boxes)
    np.testing.assert_array_equal(canvas, sanitize.obfuscate(light, background, boxes))
    assert canvas.max() > 100, "blocks beside the heads have the colours of the scene"
    missed = sanitize.obfuscate(dark, "pixelate", []), sanitize.obfuscate(light, "pixelate", [])
    assert np.abs(missed[0].astype(int) - missed[1]).max() > 100


@pytest.mark.parametrize("background", ["pixelate", "blur", "keep"])
def test_a_face_that_cannot_be_placed_hides_all(background: str) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    for box in ((np.nan,) * 4, (np.inf, -np.inf, 1, 1), (0, 0, np.inf, np.inf)):
        assert np.all(sanitize.obfuscate(scene, background, [np.array(box, np.float32)]) == 128)


def test_few_pixels_beside_a_close_up_give_no_block_their_colour() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    # With their surroundings they leave five columns at the right, and of these the upper part.
    boxes = [np.array(box, np.float32) for box in ((155, 120, 320, 240), (500, 255, 150, 150))]
    assert np.all(sanitize.obfuscate(scene, "pixelate", boxes) == 128)


@pytest.mark.parametrize("shape", [(480, 640), (64, 64), (1080, 1920)])
def test_a_close_up_is_one_colour_behind_its_face(shape: tuple[int, int]) -> None:
    height, width = shape
    scene = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    box = np.array((0.1 * width, 0.1 * height, 0.8 * width, 0.8 * height), np.float32)
    assert np.all(sanitize.obfuscate(scene, "pixelate", [box]) == 128)


def test_zones_are_black(door: Make, clip: list[Pixels]) -> None:
    frame = through(door(zones=((0.5, 0.0, 0.5, 1.0),)), clip[0])
    assert not frame.pixels[:, 240:].any()
    assert frame.pixels[:, :240].any()


def test_one_track_keeps_one_draw_of_noise(door: Make, clip: list[Pixels]) -> None:
    sanitizer = door()
    through(sanitizer, clip[0])
    before = {id(track): track.noise.copy() for track in sanitizer.tracker.tracks}
    for pixels in clip[1:6]:
        through(sanitizer, pixels)
    for track in sanitizer.tracker.tracks:
        np.testing.assert_array_equal(track.noise, before[id(track)])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 1), (271, 481), (2160, 3840)])
def test_any_size_of_frame_comes_out_in_its_own_size(door: Make, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    out = through(door(), pixels).pixels
    assert out.shape == pixels.shape
    if min(shape) < sanitize.LEAST_SIDE:
        assert not out.any(), "too small for coarse blocks: black, and no raw pixel"
    else:
        assert (out == pixels).all(2).mean() < 0.01


def test_sixty_faces_are_all_rewritten(door: Make, clip: list[Pixels]) -> None:
    crowd = np.tile(clip[0], (5, 6, 1))
    sanitizer = door(detector=faces.Detector(1440))
    frame = through(sanitizer, crowd)
    assert frame.stamps.faces == 60


LIES: dict[str, tuple[Callable[[NDArray[np.uint8]], NDArray[Any]], str]] = {
    "the raw chips themselves": (lambda chips: chips, "alias"),
    "a view of them": (lambda chips: chips[:, ::-1], "alias"),
    "a copy of them": (lambda chips: chips.copy(), "identity"),
    "a copy with one pixel changed": (
        lambda chips: chips ^ (np.arange(112 * 112 * 3).reshape(112, 112, 3) == 0),
        "identity",
    ),
    "floats": (lambda chips: np.full(chips.shape, np.nan, np.float32), "shape"),
    "one chip too few": (lambda chips: np.zeros_like(chips[1:]), "shape"),
    "another size": (lambda chips: np.zeros((len(chips), 56, 56, 3), np.uint8), "shape"),
}


@pytest.mark.parametrize(("answer", "reason"), LIES.values(), ids=LIES)
def test_a_model_that_does_not_sanitize_costs_the_frame(
    door: Make, sanitizer_model: model.Model, clip: list[Pixels], answer: Callable[..., NDArray[Any]], reason: str
) -> None:
    with pytest.raises(Reject) as caught:
        through(door(model=lying(sanitizer_model, answer)), clip[0])
    assert caught.value.reason == reason


def test_a_stale_frame_is_rejected(door: Make, clip: list[Pixels]) -> None:
    with pytest.raises(Reject, match="stale"):
        through(door(), clip[0], age_ns=gate.MOST_AGE_NS)


def test_a_canvas_that_is_the_raw_frame_costs_the_frame(
    door: Make, clip: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitize, "obfuscate", lambda pixels, *rest: pixels.copy())
    with pytest.raises(Reject) as caught:
        through(door(), clip[0])
    assert caught.value.reason == "identity"


def test_a_picture_without_details_is_not_mistaken_for_a_raw_one(door: Make, clip: list[Pixels]) -> None:
    for level in (0, 128, 255):  # a covered lens, a wall, a blinded camera: their coarse blocks are as they are
        assert through(door(), np.full_like(clip[0], level)).pixels.mean() == level


def test_a_raw_frame_is_gone_after_its_loan(clip: list[Pixels]) -> None:
    with lend(clip[0], 1, 0, 0) as raw:
        assert raw.pixels is clip[0]
    with pytest.raises(RuntimeError, match="given back"):
        _ = raw.pixels
    assert "RawFrame 1" in repr(raw)
    with pytest.raises(TypeError):
        raw.__reduce__()


def test_nobody_else_makes_a_sanitized_frame(clip: list[Pixels]) -> None:
    with pytest.raises(TypeError, match="pass the raw frame through it"):
        SanitizedFrame(clip[0], Stamps(1, 0), object())
    assert not issubclass(RawFrame, SanitizedFrame)


def test_a_sanitized_frame_cannot_be_drawn_on(door: Make, clip: list[Pixels]) -> None:
    frame = through(door(), clip[0])
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0] = 0


def test_the_noise_is_standard_normal() -> None:
    z = noise.draw(200_001, os.urandom)
    assert z.dtype == np.float32
    assert z.shape == (200_001,)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02
    assert np.isfinite(noise.draw(1000, lambda n: b"\xff" * n)).all()
    assert np.isfinite(noise.draw(1000, lambda n: b"\x00" * n)).all()


@pytest.mark.parametrize("level", [0, 255])
def test_a_chip_covers_what_lies_under_it_and_fades_at_its_edge(level: int) -> None:
    canvas = np.full((200, 300, 3), level, np.uint8)
    chip = np.full((112, 112, 3), (200, 100, 50), np.uint8)  # RGB
    sanitize.put_back(canvas, chip, np.array([[1.0, 0, -60], [0, 1, -40]]))  # its corner is at (60, 40)
    inside = canvas[40:152, 60:172]
    assert (inside[8:-8, 8:-8] == (50, 100, 200)).all()
    fade = np.abs(inside[56, :9].astype(int) - level).sum(1)
    assert (np.diff(fade) > 0).all()
    canvas[40:152, 60:172] = level
    assert (canvas == level).all()
