"""`edgesan sanitize`: a picture of one's own, and what stays of its surroundings."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import faces
from edgesan.config import Config
from edgesan.files import head, sanitize_file
from edgesan.frames import Pixels


def test_keep_leaves_the_surroundings_and_no_pixel_of_a_found_face(
    clip: list[Pixels], detector: faces.Detector, tmp_path: Path
) -> None:
    source, target = tmp_path / "raw.png", tmp_path / "kept.png"
    cv2.imwrite(str(source), clip[0])
    config = Config(background="keep", state_dir=tmp_path)
    report = sanitize_file(source, target, config, force=False, stats=True)
    assert (report.found, report.covered) == (2, 2)

    kept, inside = cv2.imread(str(target)), np.zeros(clip[0].shape[:2], np.bool_)
    for face in detector(clip[0]):
        inside[head(face.box)] = True
    assert (kept[~inside] == clip[0][~inside]).mean() > 0.99, "the surroundings are raw"
    assert (kept[inside] == clip[0][inside]).all(1).mean() < 0.01, "the heads are not"


def test_plain_leaves_no_pixel_of_the_surroundings(clip: list[Pixels], tmp_path: Path) -> None:
    source, target = tmp_path / "raw.png", tmp_path / "plain.png"
    cv2.imwrite(str(source), clip[0])
    sanitize_file(source, target, Config(state_dir=tmp_path), force=False, stats=False)
    assert (cv2.imread(str(target)) == clip[0]).all(2).mean() < 0.01


@pytest.mark.parametrize("box", [(np.nan, 0, 9, 9), (0, 0, np.inf, 9)])
def test_a_head_that_cannot_be_placed_may_be_anywhere(box: tuple[float, ...]) -> None:
    assert head(np.array(box, np.float32)) == (slice(None), slice(None))
