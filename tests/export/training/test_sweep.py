"""Sweeps: a recipe for each point of a grid, and a training for each recipe."""

import json
import tomllib
from pathlib import Path

import pytest

from export import recipe
from export.errors import RecipeError
from export.training import sweep
from tests.export.support import small_recipe

GRID = '[grid]\nmethod = ["plain", "quiet"]\nseed = [0, 1]\nviews = [1]\n'
METHODS = "[methods]\nplain = {}\nquiet = { stochastic = false, attackers = [] }\n"


def test_a_sweep_has_a_recipe_for_each_point_of_its_grid(tmp_path: Path) -> None:
    base = small_recipe(tmp_path)
    recipes = sweep.points(tomllib.loads(GRID + METHODS), base)
    assert [(r.name, r.stochastic, r.seed, r.views) for r in recipes] == [
        ("small-method-plain-seed-0", True, 0, 1),
        ("small-method-plain-seed-1", True, 1, 1),
        ("small-method-quiet-seed-0", False, 0, 1),
        ("small-method-quiet-seed-1", False, 1, 1),
    ]
    assert len({r.digest for r in recipes}) == 4


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"stepz": [1]}, "the sweep has the unknown key stepz"),
        ({"method": ["x"]}, "no method 'x'"),
        ({"hide_steps": [1]}, "the sweep has keys of an earlier version: `hide_steps` is now `privatize_steps`"),
    ],
)
def test_a_sweep_over_what_no_recipe_has_is_refused(grid: dict[str, list[object]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        sweep.points({"grid": grid}, recipe.Recipe("base"))


@pytest.mark.slow
def test_a_sweep_trains_each_point_of_its_grid(
    tiny_networks: Path, clip_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    small_recipe(tmp_path, more='sets = ["clip"]')
    (tmp_path / "s.toml").write_text('recipe = "small.toml"\n' + GRID.replace('"plain", ', "") + METHODS)
    folders = ["--data", str(clip_set), "--networks", str(tiny_networks), "--out", str(tmp_path / "out")]
    assert sweep.main([str(tmp_path / "s.toml"), *folders]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(line["name"], line["stage"], line["step"]) for line in found] == [
        (f"small-seed-{seed}", "decode", 1) for seed in (0, 1)
    ]
