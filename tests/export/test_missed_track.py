"""A face that the detector misses leaves nothing, also when it moves through hundreds of frames.

Blocks of mean colours did: each frame is a set of linear measurements of the face, and many of them give it back.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan import faces
from edgesan.frames import Pixels
from edgesan.model.load import Model
from export import missed
from tests.support import CLIP

QUICK = missed.Plan(size=(320, 240), frames=120, people=40, learn=160, pictures=1000, eigenfaces=700)


def leaves(sanitizer: Model, frames: Iterator[Pixels]) -> list[Pixels]:
    """What leaves of them, through the product's whole path."""
    return list(missed.plain(sanitizer)(frames))


def heads() -> list[NDArray[np.uint8]]:
    """Chips RGB of the bundled clip's two people, and what else may be where a face is."""
    pixels = np.asarray(cv2.VideoCapture(str(CLIP)).read()[1], np.uint8)
    people = [faces.cut(pixels, faces.alignment(face.landmarks)) for face in faces.Detector(320)(pixels)]
    assert len(people) == 2
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    y, x = np.mgrid[:112, :112]
    waves = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.sin(y / 5), 127 + 120 * np.sin((x + y) / 17)], -1)
    return [*people, noise, waves.astype(np.uint8)]


WAY = missed.walk(missed.Plan())


@pytest.mark.slow
def test_clips_that_differ_only_in_a_missed_moving_face_come_out_byte_for_byte_the_same(
    sanitizer_model: Model,
) -> None:
    nobody = np.zeros((faces.CHIP, faces.CHIP, 3), np.uint8)
    first = leaves(sanitizer_model, missed.clip(WAY, nobody))
    assert len(first) == 300
    for head in heads():
        out = leaves(sanitizer_model, missed.clip(WAY, head))
        assert all(np.array_equal(a, b) for a, b in zip(out, first, strict=True))


def test_the_old_canvas_tells_them_apart() -> None:
    """So the test above can fail."""
    way = missed.walk(missed.Plan(frames=60))
    first, *others = [[frame.mean((0, 1)) for frame in missed.blocks(missed.clip(way, head))] for head in heads()]
    assert all(np.abs(np.array(other) - first).max() > 0.1 for other in others)


@pytest.fixture(scope="module")
def scene(data_folder: Path) -> tuple[missed.Walk, missed.People, missed.Eigenfaces]:
    """Fewer people, in a smaller picture: the same attack in seconds."""
    way = missed.walk(QUICK)
    detector = faces.Detector(missed.DETECT_SIZE)
    crowd = missed.people(data_folder, QUICK, lambda chip: missed.is_missed(way, chip, detector))
    return way, crowd, missed.Eigenfaces.of(crowd.basis, QUICK.eigenfaces)


@pytest.mark.data
@pytest.mark.slow
def test_the_attack_finds_people_behind_blocks(
    scene: tuple[missed.Walk, missed.People, missed.Eigenfaces], networks_folder: Path
) -> None:
    found = missed.attack(missed.blocks, *scene, networks_folder)
    assert found.different_clips == QUICK.people
    assert max(rank.share_95[0] for rank in found.rank1.values()) > 3 / QUICK.people, found
    assert max(gender.auc_95[0] for gender in found.gender.values()) > 0.6, found


@pytest.mark.data
@pytest.mark.slow
def test_the_attack_finds_nothing_on_the_plain_canvas(
    scene: tuple[missed.Walk, missed.People, missed.Eigenfaces], networks_folder: Path, sanitizer_model: Model
) -> None:
    way, crowd, prior = scene
    few = replace(crowd, learn=crowd.learn[::4], learn_truth=crowd.learn_truth[::4])
    found = missed.attack(missed.plain(sanitizer_model), way, few, prior, networks_folder)
    assert found.different_clips == 1
    for rank in found.rank1.values():
        assert rank.share == pytest.approx(1 / QUICK.people), "whoever it is, the guess is the same person"
    for gender in found.gender.values():
        assert gender.auc_95[0] <= 0.5 <= gender.auc_95[1], found
