"""A part of the data for a machine that has little room."""

from pathlib import Path

import numpy as np
import pytest

from export import data, pack
from export.recipe import Recipe


def test_a_part_of_the_data_is_packed_for_a_machine_with_little_room(
    people: data.Faces,
    clip_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data, "MOST_VALIDATION", 3)
    monkeypatch.setattr(Recipe, "sets", ("clip",))
    assert pack.main(["training", str(tmp_path / "part"), "--data", str(clip_set)]) == 0
    assert "MiB" in capsys.readouterr().out
    part, whole = data.load_set(tmp_path / "part", "clip"), data.load_set(clip_set, "clip")
    rows = np.isin(whole["file"], part["file"])
    assert np.array_equal(part.chips, whole.chips[rows]), "picture for picture as they are"
    split = part["identity_split"].tolist()
    assert (split.count("train"), split.count("val")) == (int((whole["identity_split"] == "train").sum()), 3)
    assert pack.main(["training", str(tmp_path / "small"), "--data", str(clip_set), "--quality", "40"]) == 0
    small = data.load_set(tmp_path / "small", "clip")
    assert 0.5 < np.abs(small.chips.astype(int) - part.chips).mean() < 8
    assert pack.main(["audit", str(tmp_path / "no"), "--data", str(clip_set), "--quality", "40"]) == 1
    assert "as they are" in capsys.readouterr().err
    assert pack.main(["training", str(tmp_path / "no"), "--data", str(tmp_path)]) == 1
    assert "clip.csv" in capsys.readouterr().err
