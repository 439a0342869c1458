"""What strangers look like, and where such a picture may not go."""

from pathlib import Path

import numpy as np
import pytest

from edgesan.config import DEMO_MODEL
from edgesan.model.load import Model
from export import people
from export.audit import clip


def test_a_picture_has_a_row_of_raw_faces_and_one_for_each_alpha_of_each_model(sanitizer_model: Model) -> None:
    chips = clip.people_of_the_clip(2)
    picture = people.grid([sanitizer_model, sanitizer_model], chips, (0.0, 1.0))
    assert picture.shape == (5 * 112 + 2 * people.EDGE, 2 * 112, 3)
    assert np.array_equal(picture[:112], np.hstack(chips))
    assert np.array_equal(picture[116 : 116 + 224], picture[-224:]), "the same model, under the same noise"


def test_no_picture_of_strangers_goes_into_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    inside = people.PROJECT / "docs" / "figures" / "strangers.png"
    assert people.main([str(DEMO_MODEL), "--data", "nowhere", "--out", str(inside)]) == 1
    assert "lies within the project, where no picture of these people may go" in capsys.readouterr().err
    assert not inside.exists()
    assert people.outside(Path("/tmp/people.png")) == Path("/tmp/people.png")
