"""Where recognition is lost: the stages of a small model, on real chips."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgesan.model.load import prepare
from export import budget, data
from export.audit.cells import Store
from export.budget import Measurement, People, Plan, Recognition, Stage
from export.providers import Provider


@pytest.fixture
def measurement(
    compiled: Path, people: data.Faces, tiny_networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Measurement:
    """The clip's chips as eight people, four pictures of each, before a small network."""
    monkeypatch.setattr(budget, "STEPS", 10)
    chips = People(people.chips[:32], np.repeat(np.arange(8), 4))
    model = prepare(compiled, compiled.read_bytes())
    matchers = {"embedder": Provider("embedder", tiny_networks).eval().requires_grad_(False)}
    return Measurement(model, compiled, Store(tmp_path, None, {}), Plan(draws=2), chips, chips, matchers)


@pytest.mark.slow
def test_all_stages_are_measured_in_the_order_in_which_a_face_passes_them(measurement: Measurement) -> None:
    stages = [*measurement.stages((0.0, 0.5))]
    expected: list[tuple[str, float | None]] = [
        ("raw", None),
        ("encoder", None),
        *(("code", alpha) for alpha in (0.0, 0.5)),
        *((name, alpha) for alpha in (0.0, 0.5) for name in ("picture, float32", "picture, int8", "device")),
    ]
    assert [(stage.name, stage.alpha) for stage in stages] == expected
    assert all(0 <= stage.matchers["embedder"].household <= 1 for stage in stages)
    assert stages[0].matchers["embedder"].tar_raw == stages[0].matchers["embedder"].tar_sanitized


def test_a_face_that_the_provider_does_not_find_is_like_nobody(
    measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = np.zeros(32, np.bool_)
    monkeypatch.setattr(Measurement, "drawn", lambda self, *of: (self.strangers.chips, everywhere))
    lost = measurement.pictures("device", 0.0).matchers["embedder"]
    assert (lost.tar_raw, lost.household) == (0, 1 / 8), "eight equal answers, of which the first is taken"


def test_a_readout_finds_what_is_in_the_numbers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "STEPS", 200)
    torch.manual_seed(0)
    goal = F.normalize(torch.randn(256, 8))
    numbers = goal @ torch.randn(8, 12)
    likeness = [
        float((budget.learned(given, goal, 0)(asked).detach() * goal).sum(1).mean())
        for given, asked in ((numbers, numbers), (torch.randn(256, 12), torch.randn(256, 12)))
    ]
    assert likeness[0] > 0.95
    assert likeness[1] < 0.2


def test_strangers_are_people_of_test_with_several_pictures(
    people: data.Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = np.where(np.char.startswith(people["identity"], "woman"), "test", "train")
    faces = data.Faces(people.chips, people.columns | {"identity_split": split})
    monkeypatch.setattr(budget, "SETS", ("clip",))
    monkeypatch.setattr(data, "load_set", lambda folder, name: faces)
    learn, strangers = budget.chosen(Path(), Plan(learn=10, photos=3))
    assert len(learn.chips) == 10
    assert np.bincount(strangers.person[strangers.person >= 0]).max() == 3
    assert not set(learn.person) & set(strangers.person)


def test_the_table_of_a_budget_has_a_line_for_each_stage() -> None:
    seen = Recognition(0.5, 0.25, 0.95)
    stages = [
        Stage("raw", dict.fromkeys(budget.MATCHERS, seen)),
        Stage("code", dict.fromkeys(budget.MATCHERS, seen), 0.4),
    ]
    lines = budget.table(budget.Budget("default", 5, Plan(), 8, 32, stages)).splitlines()
    assert lines[0].startswith("default v5: 8 strangers, 32 pictures")
    assert lines[-1] == "| code | 0.4 | 50.0 / 25.0 / 95.0 | 50.0 / 25.0 / 95.0 | 50.0 / 25.0 / 95.0 |"
