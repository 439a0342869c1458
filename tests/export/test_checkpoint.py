"""Weights on the disk: those of a training and of a model file are read back; those of earlier versions are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgesan.config import DEMO_MODEL
from edgesan.model.load import load_model
from export import checkpoint, data
from export.errors import ExportError, RecipeError
from export.networks import DeviceGraph


def test_a_finished_training_is_read_back(finished: Path, people: data.Faces, tmp_path: Path) -> None:
    read = checkpoint.load_checkpoint(finished)
    assert (read.classes, read.features, read.step) == (["F", "M"], 16, 6)
    assert read.data_digest == people.digest()
    checkpoint.save_checkpoint(tmp_path, read)
    again = checkpoint.load_checkpoint(tmp_path)
    assert (again.recipe, again.prior) == (read.recipe, read.prior)
    weights, others = (c.sanitizer.state_dict() for c in (read, again))
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    with pytest.raises(ExportError, match=r"sanitizer.pt cannot be written: No such file or directory"):
        checkpoint.save_checkpoint(tmp_path / "nowhere", read)
    with pytest.raises(ExportError, match=r"no sanitizer.pt in .*: train one"):
        checkpoint.load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(("old", "new"), checkpoint.OLD_WEIGHTS.items())
def test_weights_of_an_earlier_version_are_refused_by_their_new_names(
    finished: Path, tmp_path: Path, old: str, new: str
) -> None:
    saved = checkpoint.load(finished / checkpoint.FILE)
    saved["weights"] = {key.replace(f"{new}.", f"{old}."): value for key, value in saved["weights"].items()}
    checkpoint.save(tmp_path / checkpoint.FILE, saved)
    with pytest.raises(ExportError, match=f"its part `{old}` is now `{new}`; train it anew, or begin from its model"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_checkpoint_with_the_recipe_of_an_earlier_version_is_refused(finished: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(finished / checkpoint.FILE)
    saved["recipe"]["alike"] = saved["recipe"].pop("identity_cosine_weight")
    checkpoint.save(tmp_path / checkpoint.FILE, saved)
    with pytest.raises(RecipeError, match=r"sanitizer.pt has keys of .* `alike` is now `identity_cosine_weight`"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_model_files_weights_agree_with_it(people: data.Faces, tiny_networks: Path, tmp_path: Path) -> None:
    """Float weights from int8 ones: they agree within the parity of the file."""
    model = load_model(DEMO_MODEL)
    s, chips = checkpoint.unpack(DEMO_MODEL), people.chips[:8]
    assert s.noise_dim == 64
    assert s.noise == pytest.approx(1, abs=0.01)
    z = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for alpha in (0.0, 0.25, 1.0):
        with torch.no_grad():
            float_ = DeviceGraph(s)(torch.from_numpy(chips), torch.from_numpy(z), torch.full((8, 1), alpha)).numpy()
        difference = np.abs(float_.astype(int) - model.run(chips, z, alpha))
        assert difference.mean() < 6  # levels; over many faces 3.3
    with pytest.raises(ExportError, match="no model file to begin from"):
        checkpoint.unpack(tmp_path / "missing.onnx")
    with pytest.raises(ExportError, match="holds another network than this trainer's"):
        checkpoint.unpack(tiny_networks / "embedder.onnx")
