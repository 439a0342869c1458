"""The scene: a still that is checked, silhouettes that follow from it alone, and faces in front of them."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import canvas, faces, message, scene, silhouette
from edgesan.config import Config
from edgesan.errors import ConfigError, Reject
from edgesan.frames import Pixels, lend
from edgesan.message import FaceCode, Latents, Place, Silhouette
from edgesan.model.load import Model
from edgesan.render import Renderer
from edgesan.sanitize import FrameSanitizer, Settings
from edgesan.scene import Still
from edgesan.silhouette import Silhouettes
from edgesan.zones import Zone
from tests.support import Blind

WIDTH, HEIGHT = 480, 270
STEP_NS = 200_000_000  # five frames a second
ELSEWHERE = np.kron(np.random.default_rng(1).integers(0, 256, (27, 48, 3)), np.ones((10, 10, 1))).astype(np.uint8)
Bits = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@pytest.fixture(scope="module")
def room() -> Pixels:
    """An empty room: a textured wall, a floor, a window and a shelf."""
    random = np.random.default_rng(3)
    wall = cv2.resize(random.integers(110, 150, (5, 8, 3)).astype(np.uint8), (WIDTH, HEIGHT)).astype(float)
    wall += cv2.GaussianBlur(random.normal(0, 14, (HEIGHT, WIDTH)), (0, 0), 1.5)[..., None]
    wall[200:] *= 0.7
    cv2.rectangle(wall, (30, 30), (120, 110), (215, 205, 190), -1)
    for y in (120, 150, 180):
        cv2.rectangle(wall, (350, y), (460, y + 18), (40, 70, 120), -1)
    return np.clip(wall, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def noise() -> list[np.ndarray]:
    """What a sensor adds, in turn."""
    random = np.random.default_rng(4)
    return [random.normal(0, 4, (HEIGHT, WIDTH, 3)).astype(np.float32) for _ in range(8)]


@pytest.fixture(scope="module")
def still(room: Pixels) -> Still:
    return Still(room, 0x12345678)


@pytest.fixture(scope="module")
def person(clip: list[Pixels]) -> list[tuple[Pixels, Bits]]:
    """The man of the bundled clip, frame by frame, and where he is."""
    wall = scene.load(scene.DEMO).pixels
    found = []
    for pixels in clip[::4]:
        off = cv2.absdiff(pixels, wall).max(-1) > 28
        off[:, :245] = False
        solid = cv2.morphologyEx(off.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        parts, labels, areas, _ = cv2.connectedComponentsWithStats(solid)
        assert parts > 1
        found.append((pixels, labels == 1 + int(np.argmax(areas[1:, cv2.CC_STAT_AREA]))))
    return found


def seen(room: Pixels, noise: np.ndarray, light: float = 1.0) -> Pixels:
    """A frame of the camera."""
    return np.clip(room * light + noise, 0, 255).astype(np.uint8)


def cells(found: Silhouette | None) -> Bits:
    assert found is not None, "the scene does not hold"
    bits = np.unpackbits(np.frombuffer(found.bits, np.uint8), count=found.columns * found.rows)
    return bits.reshape(found.rows, found.columns).astype(bool)


def looks(silhouettes: Silhouettes) -> Callable[[Pixels], Silhouette | None]:
    """Call it with frames that are 0.2 s apart."""
    times = iter(range(10**12, 10**13, STEP_NS))
    return lambda pixels: silhouettes(pixels, next(times))


# --- the still --------------------------------------------------------------------------------------------------------


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    return cv2.imencode(".png", np.full((size[1], size[0], 3), 90, np.uint8))[1].tobytes()


def test_a_still_is_named_by_the_bytes_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(png())
    found = scene.load(path)
    assert (found.pixels == 90).all()
    assert found.pixels.shape == (48, 64, 3)
    assert found.id == scene.number(png()) != 0
    assert scene.number(png((64, 50))) != found.id
    assert not found.pixels.flags.writeable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no PNG file"),
        (b"GIF89a" + bytes(60), "no PNG file"),
        (png((8, 8)), "each side must have 16"),
        (scene.SIGNATURE + struct.pack(">4s4sII", bytes(4), b"IHDR", 7000, 7000) + bytes(20), "at most 40,000,000"),
        (png()[:60], "damaged"),
    ],
)
def test_a_file_that_is_no_still_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        scene.load(path)


def test_a_run_shows_the_accepted_still_and_a_flat_colour_until_there_is_one(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path)
    assert config.background == "scene"
    assert scene.of_run(config) is None
    (tmp_path / "scene-proposed.png").write_bytes(png())
    assert scene.of_run(config) is None, "a proposal is nobody's scene yet"
    (tmp_path / "scene.png").write_bytes(png())
    assert scene.of_run(config) == png()
    assert scene.of_run(replace(config, background="plain")) is None
    (tmp_path / "other.png").write_bytes(png((32, 32)))
    assert scene.of_run(replace(config, scene=tmp_path / "other.png")) == png((32, 32))
    assert scene.of_run(Config(camera="demo", state_dir=tmp_path)) == scene.DEMO.read_bytes()


def test_the_bundled_still_holds_no_face() -> None:
    assert faces.Detector(480, score=0.3)(scene.load(scene.DEMO).pixels) == []


# --- silhouettes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (640, 480), (3000, 16), (16, 3000), (4096, 4096)])
def test_every_grid_fits_into_a_message(size: tuple[int, int]) -> None:
    columns, rows = silhouette.grid(*size)
    assert 1 <= columns <= 255
    assert 1 <= rows <= 255
    assert columns * rows <= message.MOST_CELLS
    assert message.most_faces(64, columns * rows) == message.MOST_FACES


def test_noise_and_light_are_no_silhouettes(room: Pixels, still: Still, noise: list[np.ndarray]) -> None:
    silhouettes = Silhouettes(still)
    look = looks(silhouettes)
    for light in (1.0, 0.7, 0.7, 1.3, 0.4, 1.0):
        for each in noise:
            assert not cells(look(seen(room, each, light))).any(), light
    warm = np.float32([0.8, 0.95, 1.1])
    assert not cells(look(seen((room * warm).astype(np.float32), noise[0]))).any()


def test_light_that_moves_through_the_room_slowly_is_no_silhouette(
    room: Pixels, still: Still, noise: list[np.ndarray]
) -> None:
    look = looks(Silhouettes(still))
    across = np.linspace(1, 0, WIDTH)[None, :, None]
    for step in range(60):  # within 24 s the left brightens by a quarter, and falls back
        sun = 1 + 0.25 * across * min(step, 60 - step) / 30
        for i in range(4):
            assert cells(look(seen(room * sun, noise[(step + i) % 8]))).mean() < 0.02, step


def test_a_soft_shadow_is_no_silhouette(room: Pixels, still: Still, noise: list[np.ndarray]) -> None:
    shade = np.ones((HEIGHT, WIDTH), np.float32)
    shade[60:230, 180:300] = 0.65
    shaded = room * cv2.GaussianBlur(shade, (0, 0), 12)[..., None]
    look = looks(Silhouettes(still))
    assert not any(cells(look(seen(shaded, noise[i % 8]))).any() for i in range(40))


def test_a_person_covers_their_cells_and_a_cell_around(
    room: Pixels, still: Still, noise: list[np.ndarray], person: list[tuple[Pixels, Bits]]
) -> None:
    pixels, there = person[0]
    found = cells(looks(Silhouettes(still))(seen(np.where(there[..., None], pixels, room), noise[0])))
    share = cv2.resize(there.astype(np.float32), found.shape[::-1], interpolation=cv2.INTER_AREA)
    assert found[share > 0.5].mean() > 0.97
    assert not found[cv2.dilate(share, np.ones((7, 7))) == 0].any(), "nowhere else"


def test_the_people_of_the_demo_are_two_silhouettes(clip: list[Pixels]) -> None:
    look = looks(Silhouettes(scene.load(scene.DEMO)))
    for pixels in clip * 2:
        last = look(pixels)
    assert last is not None
    drawn = canvas.cells(last, ())
    heads = drawn[: len(drawn) // 2]  # below, their arms are within a cell of each other
    assert cv2.connectedComponents(heads.view(np.uint8))[0] - 1 == 2, "their shadows on the wall are none"


def test_a_lonely_cell_is_dropped_and_a_pair_is_not(room: Pixels, still: Still) -> None:
    side = WIDTH // silhouette.COLUMNS
    for wide, expected in ((1, 0), (2, 12)):
        changed = room.copy()
        changed[5 * side : 6 * side - 4, 200 : 200 + wide * side] = 255
        assert cells(looks(Silhouettes(still))(changed)).sum() == expected, "two, and ten around them"


def test_no_bit_comes_from_a_zone(room: Pixels, still: Still) -> None:
    zone = Zone.rectangle(0.4, 0.2, 0.31, 0.5)
    silhouettes = Silhouettes(still, (zone,))
    look = looks(silhouettes)
    changed = room.copy()
    changed[60:180, 200:330] = 255
    assert not cells(look(changed)).any()
    assert silhouettes.quiet
    changed[60:180, 150:330] = 255
    found = cells(look(changed))
    assert found.any()
    assert not (found & zone.mask(silhouettes.columns, silhouettes.rows)).any()
    silhouettes.draw((zone, Zone.rectangle(0, 0, 1, 0.5)))
    assert not (cells(look(changed)) & (np.arange(silhouettes.rows)[:, None] < silhouettes.rows // 2)).any(), "at once"
    touched = Zone.rectangle(0.5, 0.5, 0.001, 0.001).mask(10, 10)
    assert np.argwhere(touched).tolist() == [[5, 5]]


def test_where_most_differs_the_scene_does_not_hold(room: Pixels, still: Still, noise: list[np.ndarray]) -> None:
    look = looks(Silhouettes(still))
    assert look(ELSEWHERE) is None
    assert not cells(look(seen(room, noise[0]))).any()
    assert look(cv2.resize(room, (HEIGHT, HEIGHT))) is None, "another shape of picture"


def test_it_looks_five_times_a_second(room: Pixels, still: Still) -> None:
    silhouettes, changed = Silhouettes(still), ELSEWHERE
    found = [silhouettes(changed if i % 6 else room, 10**12 + i * 33_333_333) for i in range(30)]
    assert all(each is not None for each in found), "of frames 33 ms apart, it looks at every sixth"
    assert silhouettes(changed, 10**12 + 10**9) is None
    assert cells(silhouettes(room, 10**11)) is not None, "an earlier time is another clip's"


def test_what_differs_stays_for_three_looks(room: Pixels, still: Still) -> None:
    look = looks(Silhouettes(still))
    changed = room.copy()
    changed[60:180, 200:330] = 255
    there = cells(look(changed))
    assert there.any()
    assert np.array_equal(cells(look(room)), there)
    assert np.array_equal(cells(look(room)), there)
    assert not cells(look(room)).any()


# --- through the sanitizer --------------------------------------------------------------------------------------------


class Counting(faces.Detector):
    """A real detector that counts its calls."""

    calls = 0

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        self.calls += 1
        return super().__call__(pixels)


def test_the_detector_rests_while_nothing_differs_and_wakes_with_the_first_silhouette(
    sanitizer_model: Model, room: Pixels, still: Still, noise: list[np.ndarray], person: list[tuple[Pixels, Bits]]
) -> None:
    detector = Counting(320)
    sanitizer = FrameSanitizer(sanitizer_model.encoder, detector, Settings(), silhouettes=Silhouettes(still))
    pixels, there = person[0]
    entered = np.where(there[..., None], pixels, room)
    calls = []
    for i in range(50):
        now_ns = 10**12 + i * STEP_NS
        with lend(seen(entered if i >= 40 else room, noise[i % 8]), i, now_ns, now_ns) as raw:
            latents = sanitizer(raw)
        calls.append(detector.calls)
        assert latents.scene == still.id
        assert (latents.silhouette.columns, latents.silhouette.rows) == (24, 14)
        assert bool(latents.faces) == (i >= 40), "without delay"
    assert calls[39] <= 10, "once a second, to be sure"
    assert calls[49] - calls[39] == 10


# --- painted ----------------------------------------------------------------------------------------------------------


def told(
    model: Model,
    still: Still,
    on: Bits,
    *found: FaceCode,
    number: int = 1,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Latents:
    grid = Silhouette(on.shape[1], on.shape[0], np.packbits(on).tobytes())
    at_ns = number * 40_000_000
    frame = Latents(number, at_ns, 0, *size, 0.4, model.id, found, still.id, grid)
    parsed = message.parse(message.pack(frame))
    assert isinstance(parsed, Latents)
    return parsed


def test_the_canvas_is_the_still_and_flat_silhouettes(sanitizer_model: Model, still: Still) -> None:
    renderer = Renderer(sanitizer_model.decoder, (), still)
    on = np.zeros((27, 48), bool)
    assert (renderer(told(sanitizer_model, still, on)).pixels == still.pixels).all()
    on[5:25, 10:20] = True
    shown = renderer(told(sanitizer_model, still, on)).pixels
    assert (shown[70:230, 120:180] == canvas.NOBODY).all()
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[40:260, 90:210] = False
    assert (shown[outside] == still.pixels[outside]).all()
    with pytest.raises(Reject, match="not known here"):
        renderer(replace(told(sanitizer_model, still, on), scene=still.id ^ 1))
    plain = replace(told(sanitizer_model, still, on), scene=message.PLAIN)
    assert (renderer(plain).pixels == canvas.PLAIN).all()


@pytest.mark.parametrize("size", [(1, 1), (7680, 2), (3, 7680), (641, 359)])
def test_any_size_and_place_that_a_message_can_hold_is_painted(
    sanitizer_model: Model, still: Still, size: tuple[int, int]
) -> None:
    codes = [FaceCode(i, Place(0, 0, side, 1), bytes(64)) for i, side in enumerate((4, 900, 15360))]
    codes.append(FaceCode(7, Place(size[0] - 1, size[1] - 1, 15360, 0), bytes(64)))
    renderer = Renderer(sanitizer_model.decoder, (), still, streams=True)
    for columns, rows in ((1, 1), (255, 12), (12, 255), (48, 27)):
        on = np.random.default_rng(columns).random((rows, columns)) < 0.5
        frame = renderer(told(sanitizer_model, still, on, *codes, size=size))
        assert frame.pixels.shape == (size[1], size[0], 3)


def test_each_face_tints_its_own_silhouette(sanitizer_model: Model, still: Still) -> None:
    on = np.zeros((27, 48), bool)
    on[10:27, 4:12] = on[10:27, 20:28] = on[10:27, 28:36] = on[2:6, 40:46] = True
    codes = [FaceCode(i, Place(10 * x, 100, 50, 0), bytes(64)) for i, x in enumerate((8, 24, 32))]
    shown = Renderer(sanitizer_model.decoder, (), still)(told(sanitizer_model, still, on, *codes)).pixels
    assert [tuple(shown[240, 10 * x]) for x in (8, 23, 33)] == [canvas.colour(i) for i in range(3)]
    assert tuple(shown[40, 430]) == canvas.NOBODY
    assert len({canvas.colour(i) for i in range(50)}) == 50


def test_a_crowd_hides_the_room_between_its_faces() -> None:
    room, size = Still(np.full((270, 480, 3), (255, 0, 255), np.uint8), 7), (480, 270)
    on = Silhouette(48, 27, np.packbits(np.ones(48 * 27, bool)).tobytes())
    crowd = {i: Place(60 + 120 * (i % 4) + 9 * (i // 4), 40 + 60 * (i // 4), 50, 0) for i in range(16)}
    shown = canvas.Canvas(room)(size, 7, on, crowd)[20:, 20:-20]  # nobody is wider than they are told at a side
    assert not (shown == (255, 0, 255)).all(-1).any()
    for number, place in crowd.items():
        assert tuple(shown[round(place.y) - 20, round(place.x) - 20]) == canvas.colour(number)


def test_a_face_fades_in_and_out_of_a_stream_and_never_into_the_still(sanitizer_model: Model, still: Still) -> None:
    on = np.zeros((27, 48), bool)
    code = FaceCode(1, Place(240, 135, 100, 0), bytes(64))
    renderer = Renderer(sanitizer_model.decoder, (), still, streams=True)
    tint = np.array(canvas.colour(1), int)
    strength = []
    for number in range(30):
        found = (code,) if 2 <= number < 15 else ()
        shown = renderer(told(sanitizer_model, still, on, *found, number=number)).pixels.astype(int)
        strength.append(np.abs(shown[110:160, 215:265] - tint).mean())
        if found:
            edge = shown[135, 186:189]  # beyond the oval
            assert (edge == tint).all()
    rising, falling = strength[2:11], strength[15:22]
    assert sorted(rising) == rising
    assert strength[2] < 0.2 * strength[14], "hardly there in its first frame"
    assert strength[10] == strength[14]
    assert sorted(falling, reverse=True) == falling
    assert falling[0] < strength[14]
    assert (shown == still.pixels).all(), "and then it is gone"


# --- the whole way: an empty room, a person who sits still for two minutes, dimmed lights -----------------------------


def story(
    room: Pixels, noise: list[np.ndarray], person: list[tuple[Pixels, Bits]], seconds: int
) -> Iterator[tuple[Pixels, Bits, str]]:
    """Frames, where the person is, and what happens; ten frames a second."""
    nobody: Bits = np.zeros((HEIGHT, WIDTH), bool)
    moments = [("empty", None, 0, 1.0)] * 20
    moments += [("enters", 0, 240 - 12 * i, 1.0) for i in range(20)]
    moments += [("sits", 0 if i % 50 else i // 50 % len(person), 0, 1.0) for i in range(10 * seconds // 2)]
    moments += [("sits in the dark", i // 50 % len(person), 0, 0.7) for i in range(10 * seconds // 2)]
    moments += [("leaves", 0, 12 * i, 0.7) for i in range(20)]
    moments += [("left", None, 0, 0.7)] * 30
    for i, (what, pose, aside, light) in enumerate(moments):
        picture, there = room, nobody
        if pose is not None:
            pixels, mask = person[pose]
            there = np.zeros_like(mask)
            there[:, aside:] = mask[:, : WIDTH - aside]
            picture = np.where(there[..., None], np.roll(pixels, aside, 1), room)
        yield seen(picture, noise[i % len(noise)], light), there, what


@pytest.mark.parametrize("seconds", [pytest.param(6), pytest.param(120, marks=pytest.mark.slow)])
def test_a_person_who_sits_still_stays_a_silhouette_and_leaves_a_clean_room(
    sanitizer_model: Model,
    room: Pixels,
    still: Still,
    noise: list[np.ndarray],
    person: list[tuple[Pixels, Bits]],
    seconds: int,
) -> None:
    settings = Settings(detect_every=2, refresh_ns=10**9)
    sanitizer = FrameSanitizer(sanitizer_model.encoder, faces.Detector(320), settings, silhouettes=Silhouettes(still))
    renderer = Renderer(sanitizer_model.decoder, (), still)
    empty = faced = left = 0
    for i, (pixels, there, what) in enumerate(story(room, noise, person, seconds)):
        now_ns = 10**12 + i * STEP_NS
        with lend(pixels, i, now_ns, now_ns) as raw:
            latents = sanitizer(raw)
        shown = renderer(latents).pixels
        on = cells(latents.silhouette)
        assert latents.scene == still.id
        wide = cv2.resize(on.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST).astype(bool)
        if np.count_nonzero(there) > 3000:
            assert wide[there].mean() > (0.98 if what.startswith("sits") else 0.85), f"{what}, frame {i}"
        # What is far from silhouettes and faces is the still, and silhouettes are of one colour.
        far = cv2.dilate(wide.astype(np.uint8), np.ones((31, 31), np.uint8)) == 0
        inner = cv2.erode(wide.astype(np.uint8), np.ones((81, 81), np.uint8), borderValue=0) == 1
        for face in latents.faces:
            x, y, side = round(face.place.x), round(face.place.y), round(face.place.side)
            box = (slice(max(0, y - side), y + side), slice(max(0, x - side), x + side))
            far[box] = inner[box] = False
        assert (shown[far] == still.pixels[far]).all()
        colours = np.array([canvas.NOBODY, *(canvas.colour(face.track) for face in latents.faces)])
        off = np.abs(shown[inner][:, None].astype(int) - colours).max(-1).min(-1)
        assert off.max(initial=0) <= 4, f"{what}, frame {i}"
        faced += bool(latents.faces) and what.startswith("sits")
        empty += what == "empty" and not on.any()
        left = left + 1 if what == "left" else 0
        if left > 10:
            assert (shown == still.pixels).all(), f"the room is clean within a second, frame {i}"
    assert empty == 20
    assert faced >= 0.9 * 10 * seconds


def test_the_picture_does_not_depend_on_how_a_person_looks(
    sanitizer_model: Model, room: Pixels, still: Still, noise: list[np.ndarray], person: list[tuple[Pixels, Bits]]
) -> None:
    random = np.random.default_rng(5)
    pixels, there = person[0]
    stripes = np.zeros_like(pixels)
    stripes[::7] = 255
    looks_like = [pixels, 255 - pixels, stripes, random.integers(0, 256, pixels.shape).astype(np.uint8)]
    blocks = there.reshape(27, 10, 48, 10).mean((1, 3)) > 0.5
    body = np.kron(blocks, np.ones((10, 10), bool))  # an outline along cells, so that none differs by its contrast
    near = np.ones((61, 61), np.uint8)
    outline = cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_GRADIENT, near).astype(bool)
    shown = []
    for look in looks_like:
        sanitizer = FrameSanitizer(sanitizer_model.encoder, Blind(320), Settings(), silhouettes=Silhouettes(still))
        renderer = Renderer(sanitizer_model.decoder, (), still)
        for i in range(5):
            now_ns = 10**12 + i * STEP_NS
            with lend(seen(np.where(body[..., None], look, room), noise[i]), i, now_ns, now_ns) as raw:
                last = renderer(message.parse(message.pack(sanitizer(raw)))).pixels  # type: ignore[arg-type]
        shown.append(last)
    for other in shown[1:]:
        changed = (other != shown[0]).any(-1)
        assert not (changed & ~outline).any(), "a strong contrast may switch on a cell beside it, and nothing else"
