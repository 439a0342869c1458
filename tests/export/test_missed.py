"""With detection switched off, every face is missed: no one can be recognised in what leaves.

For many frames of one face see `test_missed_track.py`. Two attackers: the provider's own chain (find, align, match),
and one who knows where each face was. The second is counted against his score on a plain black picture: a matcher
finds some likeness to somebody in that, too.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan import faces, ort, sanitize
from edgesan.frames import Pixels, lend
from edgesan.model.load import Model
from edgesan.render import Renderer
from export import missed
from tests.support import Blind

# Cosine at FAR 1 % of id_mobilefacenet_b on the celebrity set, the laxer of the two in its notes.
SAME_PERSON = 0.223


def frames(data_folder: Path) -> list[Pixels]:
    """200 frames of real people: every clip with faces, at its own size and at 1280x720."""
    found: list[Pixels] = []
    for size in (None, (1280, 720)):
        for path in sorted((data_folder / "scenes").glob("*.mp4")):
            capture = cv2.VideoCapture(str(path))
            while "one-by-one" not in path.name and (read := capture.read())[0]:
                found.append(read[1] if size is None else cv2.resize(read[1], size, interpolation=cv2.INTER_CUBIC))
    return found[:: max(1, len(found) // 200)][:200]


def embed(session: ort.InferenceSession, chip: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, scale = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    x = ((chip - mean) / scale).transpose(2, 0, 1)[None].astype(np.float32)
    e: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0][0]
    return e / np.linalg.norm(e)


@dataclass(frozen=True)
class Sight:
    """A raw frame, where its faces are, and who they are to the matcher."""

    pixels: Pixels
    places: list[NDArray[np.float64]]
    people: list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def matcher(networks_folder: Path) -> ort.InferenceSession:
    return ort.session((networks_folder / "id_mobilefacenet_b.onnx").read_bytes(), 2)


@pytest.fixture(scope="module")
def sights(data_folder: Path, matcher: ort.InferenceSession) -> list[Sight]:
    detector, found = faces.Detector(640), []
    for pixels in frames(data_folder):
        places = [faces.alignment(face.landmarks) for face in detector(pixels)]
        found.append(Sight(pixels, places, [embed(matcher, faces.cut(pixels, place)) for place in places]))
    return found


@pytest.mark.data
def test_a_missed_face_is_not_recognised_in_200_frames(
    sights: list[Sight], matcher: ort.InferenceSession, sanitizer_model: Model
) -> None:
    detector, renderer = faces.Detector(640), Renderer(sanitizer_model.decoder)
    sanitizer = sanitize.FrameSanitizer(
        sanitizer_model.encoder, Blind(320), sanitize.Settings(alpha=0.5, hold_ns=10**9)
    )
    black = embed(matcher, np.zeros((faces.CHIP, faces.CHIP, 3), np.uint8))
    found, matches, known, known_black, likeness = 0, 0, 0, 0, []
    for number, sight in enumerate(sights):
        with lend(sight.pixels, number, number, number) as raw:
            out = renderer(sanitizer(raw)).pixels
        for face in detector(out):
            found += 1
            seen = embed(matcher, faces.cut(out, faces.alignment(face.landmarks)))
            matches += any(seen @ person >= SAME_PERSON for person in sight.people)
        for place, person in zip(sight.places, sight.people, strict=True):
            cosine = float(embed(matcher, faces.cut(out, place)) @ person)
            likeness.append(cosine)
            known += cosine >= SAME_PERSON
            known_black += float(black @ person) >= SAME_PERSON
    print(
        f"{len(sights)} frames, {len(likeness)} faces; found in the output: {found}, matched: {matches}; "
        f"matched where they were: {known} (on a black picture: {known_black}), mean cosine {np.mean(likeness):.3f}"
    )
    assert (len(sights), len(likeness) >= 200) == (200, True)
    assert (found, matches) == (0, 0)


def test_a_missed_face_is_solved_from_the_blocks_that_it_touches() -> None:
    """The equations are the canvas: what they say of a face is what the blocks show, to a level."""
    plan = missed.Plan(size=(320, 240), frames=20)
    way, chip = missed.walk(plan), np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    seen, _ = missed.watch(missed.blocks, missed.clip(way, chip))
    prior = missed.Eigenfaces(
        np.zeros(chip.size, np.float32), np.ones(1, np.float32), chip.reshape(-1, 1) / np.float32(1)
    )
    assert missed.Inverse(way, prior)(seen)[0] == pytest.approx(1, abs=0.02)
