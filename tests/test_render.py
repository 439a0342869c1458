"""The canvas carries no live pixel: what is painted follows from the latents alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from edgesan import faces, message, render
from edgesan.canvas import PLAIN
from edgesan.errors import ModelError, Reject
from edgesan.frames import Pixels
from edgesan.message import FaceCode, Latents, Place
from edgesan.model.load import Model
from edgesan.render import Renderer, Smoother
from edgesan.zones import Zone

CODE = bytes(range(64))


def latents(model: Model, *found: FaceCode, number: int = 1, size: tuple[int, int] = (320, 240)) -> Latents:
    """A frame, as it comes over the wall; frames are 40 ms apart."""
    frame = Latents(number, number * 40_000_000, 3000, *size, 0.4, model.id, found)
    parsed = message.parse(message.pack(frame))
    assert isinstance(parsed, Latents)
    return parsed


def test_a_frame_without_faces_is_one_colour(sanitizer_model: Model) -> None:
    frame = Renderer(sanitizer_model.decoder)(latents(sanitizer_model))
    assert frame.pixels.shape == (240, 320, 3)
    assert (frame.pixels == PLAIN).all()


def test_a_face_is_the_decoded_chip_at_its_place_in_an_oval(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder)
    frame = renderer(latents(sanitizer_model, FaceCode(3, Place(160, 120, 112, 0), CODE)))
    chip = sanitizer_model.decoder.decode([CODE], 0.4)[0][..., ::-1]  # BGR
    inside = frame.pixels[64:176, 104:216]
    assert np.abs(inside[30:80, 30:80].astype(int) - chip[30:80, 30:80]).max() <= 2
    for corner in (inside[:8, :8], inside[:8, -8:], inside[-8:, :8], inside[-8:, -8:]):
        assert (corner == PLAIN).all(), "an oval has no corners"
    outside = frame.pixels.copy()
    outside[64:176, 104:216] = PLAIN
    assert (outside == PLAIN).all()


def test_a_stream_paints_only_what_changes_and_the_same_picture(sanitizer_model: Model) -> None:
    random = np.random.default_rng(2)
    stream, whole = Renderer(sanitizer_model.decoder, streams=True), Renderer(sanitizer_model.decoder)
    there: list[FaceCode] = []
    for number in range(0, 60, 5):  # too slow for fading
        if number % 10 == 0:
            there = [
                FaceCode(i, Place(*random.uniform(0, 239, 2), float(random.uniform(20, 300)), 1.0), CODE)
                for i in range(number // 10 % 3)
            ]
        if number == 30:
            stream.zones = whole.zones = (Zone.rectangle(0, 0, 0.5, 0.5),)
        frame = latents(sanitizer_model, *there, number=number, size=(320, 240) if number < 50 else (160, 240))
        np.testing.assert_array_equal(stream(frame).pixels, whole(frame).pixels)


def test_a_stream_in_which_nothing_changes_shows_the_same_pixels_again(sanitizer_model: Model) -> None:
    stream = Renderer(sanitizer_model.decoder, streams=True)
    face = FaceCode(3, Place(160, 120, 112, 0), CODE)
    frames = [stream(latents(sanitizer_model, *found, number=5 * i)) for i, found in enumerate([(), (), (face,), ()])]
    assert frames[1].pixels is frames[0].pixels
    assert frames[2].pixels is not frames[1].pixels
    assert frames[3].pixels is not frames[2].pixels
    assert (frames[3].pixels == PLAIN).all()


def test_a_place_goes_to_the_frame_and_back() -> None:
    for place in (Place(160, 120, 112, 0), Place(50.5, 60.25, 80, 1.0), Place(3, 200, 400, 5.0)):
        matrix = render.to_frame(place)
        landmarks = (faces.TEMPLATE @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        again = faces.place(landmarks)
        assert again.x == pytest.approx(place.x, abs=0.02)
        assert again.y == pytest.approx(place.y, abs=0.02)
        assert again.side == pytest.approx(place.side, rel=1e-3)
        assert math.cos(again.roll - place.roll) == pytest.approx(1, abs=1e-6)


def test_a_rolled_face_is_painted_rolled(sanitizer_model: Model) -> None:
    upright = Renderer(sanitizer_model.decoder)(latents(sanitizer_model, FaceCode(1, Place(160, 120, 112, 0), CODE)))
    over = Renderer(sanitizer_model.decoder)(
        latents(sanitizer_model, FaceCode(1, Place(160, 120, 112, math.pi / 2), CODE))
    )
    turned = np.rot90(upright.pixels[64:177, 104:217], -1)  # clockwise
    difference = np.abs(turned.astype(int) - over.pixels[64:177, 104:217])
    assert difference.mean() < 2
    assert np.abs(upright.pixels.astype(int) - over.pixels).mean() > 3


def test_only_codes_that_changed_are_decoded(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder)
    a, b = FaceCode(1, Place(80, 120, 80, 0), CODE), FaceCode(2, Place(240, 120, 80, 0), CODE[::-1])
    counts = []
    for number, found in enumerate([(a, b), (a, b), (a, replace(b, code=CODE)), (a,), (a, b)]):
        renderer(latents(sanitizer_model, *found, number=number + 1))
        counts.append(renderer.decoded)
    assert counts == [2, 0, 1, 0, 1], "a track that comes back is another one"


def test_a_swift_frame_waits_for_no_network_and_the_next_one_shows_the_chips(sanitizer_model: Model) -> None:
    late, punctual = Renderer(sanitizer_model.decoder), Renderer(sanitizer_model.decoder)
    a, b = FaceCode(1, Place(80, 120, 80, 0), CODE), FaceCode(2, Place(240, 120, 80, 0), CODE[::-1])
    shown, expected, decoded = [], [], []
    for number, found in enumerate([(a,), (a, b), (a, b), (replace(a, code=CODE[::-1]), b)] + [(a, b)] * 2):
        frame = latents(sanitizer_model, *found, number=number + 1)
        shown.append(late(frame, late=True).pixels)
        decoded.append(late.decoded)
        late.catch_up()
        expected.append(punctual(frame).pixels)
    assert decoded == [1, 0, 0, 0, 0, 0], "nobody is in a hurry for the first frame"
    same = [bool((x == y).all()) for x, y in zip(shown, expected, strict=True)]
    assert same == [True, False, True, False, False, True]
    assert (shown[1][:, 160:] == PLAIN).all(), "a face without a chip stays canvas"


def test_a_chip_of_another_alpha_is_not_shown(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder)
    first = latents(sanitizer_model, FaceCode(1, Place(160, 120, 80, 0), CODE))
    renderer(first, late=True)
    turned = replace(first, alpha=1.0, captured_ns=first.captured_ns + 40_000_000)
    shown = renderer(turned, late=True).pixels
    assert renderer.decoded == 1
    np.testing.assert_array_equal(shown, Renderer(sanitizer_model.decoder)(turned).pixels)


def test_a_face_outside_the_picture_after_smoothing_costs_nothing(sanitizer_model: Model) -> None:
    frame = Renderer(sanitizer_model.decoder)(
        latents(
            sanitizer_model, FaceCode(1, Place(0, 0, 20, 1), CODE), FaceCode(2, Place(319.5, 239.5, 15000, 2), CODE)
        )
    )
    assert frame.pixels.shape == (240, 320, 3)


def test_zones_are_black_whatever_lies_there(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder, (Zone.rectangle(0.5, 0, 0.5, 1),))
    frame = renderer(latents(sanitizer_model, FaceCode(1, Place(160, 120, 112, 0), CODE)))
    assert not frame.pixels[:, 160:].any()
    assert frame.pixels[:, :160].any()


def test_codes_of_another_model_end_the_frame(sanitizer_model: Model) -> None:
    frame = latents(sanitizer_model, FaceCode(1, Place(160, 120, 80, 0), CODE))
    renderer = Renderer(sanitizer_model.decoder)
    for wrong, reason in (
        (replace(frame, model=frame.model ^ 1), "model"),
        (replace(frame, scene=7), "scene"),
        (replace(frame, faces=(replace(frame.faces[0], code=CODE[:-1]),)), "code"),
    ):
        with pytest.raises(Reject) as caught:
            renderer(wrong)
        assert caught.value.reason == reason
    with pytest.raises(ModelError, match="another length"):
        sanitizer_model.decoder.decode([CODE[1:]], 0.4)


def test_any_code_paints_a_face(sanitizer_model: Model) -> None:
    renderer = Renderer(sanitizer_model.decoder)
    for value in (0, 1, 127, 128, 255):
        frame = renderer(latents(sanitizer_model, FaceCode(1, Place(160, 120, 112, 0), bytes([value]) * 64)))
        assert (frame.pixels != PLAIN).any()


def test_a_sanitized_frame_cannot_be_drawn_on(sanitizer_model: Model) -> None:
    frame = Renderer(sanitizer_model.decoder)(latents(sanitizer_model))
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0] = 0


@pytest.mark.parametrize("level", [0, 255])
def test_a_chip_covers_what_lies_under_it_and_fades_at_its_edge(sanitizer_model: Model, level: int) -> None:
    canvas: Pixels = np.full((240, 320, 3), level, np.uint8)
    frame = latents(sanitizer_model, FaceCode(1, Place(160, 120, 112, 0), CODE))
    on_level = Renderer(sanitizer_model.decoder)(frame, canvas).pixels
    on_plain = Renderer(sanitizer_model.decoder)(frame).pixels
    inside = (slice(95, 150), slice(130, 190))
    np.testing.assert_array_equal(on_level[inside], on_plain[inside])
    assert (on_level[:60] == level).all()


def still(seed: int, jitter: float, frames: int) -> list[Place]:
    random = np.random.default_rng(seed)
    return [Place(100 + dx, 80 + dy, 80, 0.1) for dx, dy in random.normal(0, jitter, (frames, 2))]


def test_a_face_that_stands_still_jitters_less() -> None:
    smoother, given = Smoother(), still(0, 1.5, 120)
    out = [smoother(place, 33_000_000 * i) for i, place in enumerate(given)]
    before, after = (np.std(np.diff([(p.x, p.y) for p in places[30:]], axis=0)) for places in (given, out))
    assert after < 0.4 * before


def test_a_face_that_walks_is_hardly_behind() -> None:
    smoother = Smoother()
    for i in range(60):  # 160 pixels a second: two face widths
        place = smoother(Place(100 + 160 * i / 30, 80, 80, 0), 33_333_333 * i)
    assert 100 + 160 * 59 / 30 - place.x < 8, "a tenth of its width"


def test_a_jump_is_taken_at_once_and_a_full_turn_is_none() -> None:
    smoother = Smoother()
    smoother(Place(100, 100, 80, 0.05), 0)
    assert smoother(Place(300, 100, 80, 0.05), 33_000_000) == Place(300, 100, 80, 0.05)
    smoother = Smoother()
    smoother(Place(100, 100, 80, math.tau - 0.05), 0)
    roll = smoother(Place(100, 100, 80, 0.05), 33_000_000).roll
    assert min(roll, math.tau - roll) <= 0.05, "from just under a full turn to just over none, the shorter way"


def test_a_slate_holds_only_words() -> None:
    frame = render.slate("camera lost", (320, 240), 1, 5)
    assert frame.stamps.slate
    assert frame.pixels.shape == (240, 320, 3)
    assert len(np.unique(frame.pixels)) > 1
