"""What a training learns from: views, augmented faces, and the teachers' targets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesan import faces as runtime_faces
from export import data
from export.errors import DataError
from export.providers import ChipDetector, Ensemble, Provider, Providers
from export.training import batches
from tests.export.support import small_recipe


def test_viewsthat_are_drawn_at_once_are_those_that_are_cut_one_by_one(
    people: data.Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU holds all of them; here the CPU plays its part."""
    cpu, numbers, rows = torch.device("cpu"), torch.tensor([0, 1, 2, 2]), torch.tensor([0, 3, 1, 4])
    chips = people.chips[:6]
    views = batches.FaceViews(chips, 3, cpu)
    cut = views.pictures(numbers, rows)
    monkeypatch.setattr(views, "drawn", views.draw())
    torch.testing.assert_close(views.pictures(numbers, rows), cut, rtol=0, atol=0)
    torch.testing.assert_close(cut[0], torch.from_numpy(chips[0]).permute(2, 0, 1) / 255)


def test_an_augmented_face_is_another_picture_of_the_same_face(people: data.Faces) -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(people.chips[:16].transpose(0, 3, 1, 2).copy()).float() / 255
    y = batches.augment(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert ((y - x).abs().mean((1, 2, 3)) > 0.01).all()
    score, _ = ChipDetector(runtime_faces.DETECTOR).best(y)
    assert (score > 0.3).float().mean() > 0.8, "it is still a face"


def test_the_detector_finds_the_landmarks_of_a_chip_near_the_template(people: data.Faces) -> None:
    """A chip was cut by its landmarks, so the detector finds them near the template again."""
    score, marks = ChipDetector(runtime_faces.DETECTOR).best(
        torch.from_numpy(people.chips[:4].transpose(0, 3, 1, 2).copy()).float() / 255
    )
    assert score.min() > 0.5
    assert np.abs(marks.numpy().reshape(-1, 5, 2) - runtime_faces.TEMPLATE).mean() < 5  # these heads are tilted


def test_lighting_differs_from_left_to_right_and_from_above_to_below() -> None:
    x = torch.full((1, 3, 112, 112), 0.5)
    x[:, :, :, :56] = 0.74
    colour, across, down = batches.lighting(x).split([3, 1, 1], 1)
    torch.testing.assert_close(colour, torch.full((1, 3), 0.12 / 0.18))
    torch.testing.assert_close(across, torch.full((1, 1), 0.24 / 0.12))
    torch.testing.assert_close(down, torch.zeros(1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('private = "age"\nprivate_bins = [20, 40]', "no training picture has the age '<20'"),
        ('private = "file"', "column 'file' has 0 different values, 2 to 16 make an attribute"),
        ('private = "hair"', "no column 'hair'"),
        ("", r"fewer than two people with 99 training pictures \(people_min\)"),
    ],
)
def test_labels_that_no_training_can_learn_from_are_refused(
    people: data.Faces, tiny_networks: Path, tmp_path: Path, lines: str, words: str
) -> None:
    aged = data.Faces(people.chips, people.columns | {"age": np.where(people["gender"] == "F", "25", "50")})
    r = small_recipe(tmp_path, people_min=2 if lines else 99, more=lines)
    utility = Ensemble([Provider("embedder", tiny_networks)], people.chips[:1])
    nets = Providers(utility, [], ChipDetector(runtime_faces.DETECTOR))
    with pytest.raises(DataError, match=words):
        batches.gather(aged, r, nets, tmp_path, torch.device("cpu"))
