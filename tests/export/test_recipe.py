"""Recipes: their types, ranges and keys; keys of earlier versions are refused by their new names."""

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from edgesan.config import DEMO_MODEL
from export import checkpoint, recipe
from export.errors import RecipeError
from export.networks import Sanitizer
from export.training.sweep import points
from tests.support import ROOT

RECIPES = ROOT / "export" / "recipes"
EMBEDDING = 128  # numbers of each matcher's


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", "unknown key stepz"),
        ('code = "3"', "code must be of type int"),
        ("name = 3", "name must be of type str"),
        ("stochastic = 1", "stochastic must be of type bool"),
        ("noise = true", "noise must be of type float"),
        ("alpha_default = 2.0", "within 0..1"),
        ("distill_steps = -1", "distill_steps must be positive, or 0 for a stage that --from takes over"),
        ("code = 0", "code must be positive"),
        ("private_bins = [45, 30]", "numbers that ascend"),
        ('utility_column = "gender"', "gender is both `private` and `utility_column`"),
        ('code_norm = "none"', "code_norm must be one of 'power', 'unit', not 'none'"),
        ("code_bits = 4", "code_bits must be one of 0, 8, not 4"),
        ("attacker_renewal = -1", "attacker_renewal must be positive, or 0 to go without it, not -1"),
        ("privacy_ramp = 0.5", "privacy_ramp must be at least 1"),
        ('utility_loss = "infonce"\nutility_column = "age"', "'infonce' keeps who somebody is"),
        ('anew = ["encoder"]', 'anew holds \'encoder\'; it may hold "privatizer" and "decoder"'),
        ('anew = ["decoder"]\ndecode_steps = 0', "anew holds 'decoder'; .* if they have steps"),
        ("= 1", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        recipe.read(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="no recipe at"):
        recipe.read(tmp_path / "missing.toml")


@pytest.mark.parametrize(("old", "new"), recipe.OLD_KEYS.items())
def test_a_key_of_an_earlier_version_is_refused_by_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "r.toml").write_text(f"{old} = 1")
    with pytest.raises(RecipeError, match=f"r.toml has keys of an earlier version: `{old}` is now `{new}`"):
        recipe.read(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match=f"`{old}` is now `{new}`"):
        recipe.from_saved(tmp_path / "sanitizer.pt", {"name": "old", "digest": "", old: 1})
    assert new in recipe.KEYS
    assert old not in recipe.KEYS


def test_a_recipe_that_was_saved_is_the_one_that_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("private_bins = [30, 45]\nattackers = [8]\ncosine_scale = 3\n")
    read = recipe.read(tmp_path / "r.toml")
    saved = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(read).items()}
    assert recipe.from_saved(tmp_path, saved) == read


def test_every_sweep_of_the_project_varies_keys_of_a_recipe() -> None:
    for path in RECIPES.glob("sweeps/*.toml"):
        table = tomllib.loads(path.read_text())
        assert points(table, recipe.read(path.parent / table["recipe"]))


def test_every_recipe_that_begins_from_the_bundled_model_has_its_shape() -> None:
    shapes = {name: weight.shape for name, weight in checkpoint.unpack(DEMO_MODEL).state_dict().items()}
    begun = [path for path in RECIPES.glob("*.toml") if f"--from {DEMO_MODEL.relative_to(ROOT)}" in path.read_text()]
    assert len(begun) == 7
    for path in begun:
        r = recipe.read(path)
        net = Sanitizer(EMBEDDING * len(r.utility), recipe.shape(r))
        assert {name: weight.shape for name, weight in net.state_dict().items()} == shapes, path


def test_every_recipe_of_the_project_can_be_read() -> None:
    recipes = sorted(RECIPES.glob("*.toml"))
    assert [recipe.read(path).name for path in recipes] == [path.stem for path in recipes]
