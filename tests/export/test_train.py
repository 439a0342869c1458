"""The command `export.train`: folders of sets and of people, and networks of the command line."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from export import checkpoint, data, train
from export.errors import NetworkError
from export.recipe import Recipe
from tests.export.support import small_recipe


@pytest.fixture
def folder_of_people(people: data.Faces, tmp_path: Path) -> Path:
    """Four people, a sub-folder of pictures each, and a CSV of their attributes."""
    folder = tmp_path / "people"
    # people are split by a digest of their names: of these four, Fay is for validation, and nobody is for tests
    names = {"woman": "Eva", "woman mirrored": "Fay", "man": "Bob", "man mirrored": "Cid"}
    for i, (chip, name) in enumerate(zip(people.chips[:40], people["identity"][:40], strict=True)):
        (folder / names[name]).mkdir(parents=True, exist_ok=True)
        framed = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), *(4 * (40,)), cv2.BORDER_REPLICATE)
        cv2.imwrite(str(folder / names[name] / f"{i}.png"), framed)
    (folder / "attributes.csv").write_text("person,gender\nEva,F\nFay,F\nBob,M\nCid,M\n")
    return folder


def test_a_folder_of_people_is_trained_on(
    folder_of_people: Path, tiny_networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe(tmp_path, views=1)
    arguments = ["--networks", str(tiny_networks), "--out", str(tmp_path / "run")]
    done = train.main([str(tmp_path / "small.toml"), "--data", str(folder_of_people), *arguments])
    assert done == 0, capsys.readouterr().err
    trained = checkpoint.load_checkpoint(tmp_path / "run")
    faces = data.load(folder_of_people, trained.recipe.sets)
    assert set(faces["identity_split"].tolist()) == {"train", "val"}
    assert (trained.classes, trained.data_digest) == (["F", "M"], faces.digest())


def test_data_that_is_missing_ends_the_command_with_an_error(
    tiny_networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe(tmp_path, more='sets = ["clip"]')
    folders = ["--data", str(tmp_path / "empty"), "--networks", str(tiny_networks)]
    assert train.main([str(tmp_path / "small.toml"), *folders]) == 1
    assert "clip.csv is not there" in capsys.readouterr().err


def test_networks_of_the_command_line_replace_the_recipes() -> None:
    r = Recipe("small")
    mine, contracts = train.with_networks(r, ["a.onnx", "mean=0.5", 'order="BGR"'], ["b.onnx", 'classes=["M", "F"]'])
    assert (mine.utility, mine.frozen) == (("a.onnx",), ("b.onnx",))
    assert contracts == {"a.onnx": {"mean": 0.5, "order": "BGR"}, "b.onnx": {"classes": ["M", "F"]}}
    assert mine.digest != r.digest
    assert train.with_networks(r, None, None) == (r, {})
    with pytest.raises(NetworkError, match="is no input contract"):
        train.with_networks(r, ["a.onnx", "mean 3"], None)
