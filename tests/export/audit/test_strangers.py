"""Strangers first: who takes part, and the whole measurement on a small model and real chips."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan.config import DEMO_MODEL
from export import data
from export.audit import attackers, claims, device, report, strangers, tables
from export.audit.measure import Folders
from export.audit.report import Strangers, StrangersPlan, StrangersReport
from export.audit.strangers import Measurement
from export.errors import ExportError
from tests.export.support import small_recipe

SMALL = StrangersPlan(
    draws=2,
    learn=96,
    learn_draws=2,
    epochs=1,
    seeds=2,
    looked=8,
    pixels=("CNN 4, begun on raw faces", "CNN 2"),
    probed=("embedder",),
    matchers=("embedder",),
    frozen=("classifier",),
)


def labels(count: int, split: str, people: int) -> dict[str, NDArray[np.str_]]:
    """Labels of pictures of some people, every other one of them a woman; nobody where there are none."""
    numbers = np.arange(count)
    who = np.array([f"{split} {n % people}" if people else "" for n in numbers])
    gender = np.where(numbers % 2 == 0, "F", "M") if not people else np.where(numbers % people % 2 == 0, "F", "M")
    return {"file": numbers.astype(str), "identity": who, "gender": gender, "identity_split": np.full(count, split)}


def test_a_stranger_takes_part_with_some_pictures_and_learning_people_in_equal_numbers() -> None:
    parts = [labels(40, "test", 4), labels(100, "train", 10), labels(30, "test", 0)]
    parts[1]["gender"][:80] = "M"
    known = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
    rows = strangers.picked(known, StrangersPlan(photos=3, unknown=7, learn=120))
    shown = known["identity"][rows & (known["identity_split"] == "test")].tolist()
    assert {who: shown.count(who) for who in shown} == {f"test {n}": 3 for n in range(4)} | {"": 7}
    learned = rows & (known["identity_split"] == "train")
    assert [(known["gender"][learned] == who).sum() for who in ("F", "M")] == [10, 10]
    few = strangers.picked(known, StrangersPlan(fewest=11))
    assert not set(known["identity"][few & (known["identity_split"] == "test")]) - {""}


@pytest.fixture(scope="module")
def sets(people: data.Faces) -> Iterator[Path]:
    """A set of the clip's chips: sixteen strangers with four pictures each, and others to learn on."""
    n = np.arange(80)
    columns = {
        "file": n.astype(str),
        "identity": np.array([f"{i // 4}" for i in n]),
        "gender": np.where(n // 4 % 2 == 0, "F", "M"),
        "age": np.full(len(n), ""),
        "identity_split": np.where(n < 64, "test", np.where(n < 72, "train", "val")),
        "closed_set_split": np.full(len(n), ""),
    }
    faces = data.Faces(people.chips[n % len(people)], columns)

    def load_set(root: Path, name: str, rows: NDArray[np.bool_]) -> data.Faces:
        part = faces.where(rows)
        return data.Faces(part.chips, part.columns | {"set": np.full(len(part), name)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strangers, "SETS", ("clip",))
        patch.setattr(attackers, "BATCH", 4)
        patch.setattr(data, "read_labels", lambda root, name: columns)
        patch.setattr(data, "load_set", load_set)
        yield Path()


@pytest.fixture(scope="module")
def measurement(sets: Path, tiny_networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Measurement]:
    """Begins a measurement, or goes on with the one before."""
    work = tmp_path_factory.mktemp("work")
    small_recipe(work)
    subject = strangers.subject(DEMO_MODEL, None, work / "small.toml")
    return lambda: Measurement(subject, SMALL, strangers.chosen(sets, SMALL), Folders(sets, tiny_networks, work))


@pytest.fixture(scope="module")
def found(measurement: Callable[[], Measurement]) -> Strangers:
    return measurement().result()


@pytest.mark.slow
def test_everything_is_measured_and_read_again(found: Strangers, tmp_path: Path) -> None:
    assert (found.people, found.pictures, found.by_set) == (16, 64, {"clip": 64})
    assert found.matchers["embedder"].taught
    assert found.matchers["embedder"].draws == 2
    assert found.unseen == {}
    assert {name: len(seeds) for name, seeds in found.fresh.items()} == {
        "CNN 4, begun on raw faces": 2,
        "CNN 2": 2,
        "probe on embedder": 2,
        "logistic on embedder": 1,
    }
    assert found.strongest()[1] == "clip"
    raw = {name: attacked.all.n for name, attacked in found.gender_raw.items()}
    assert raw == {"classifier": 64, "probe on embedder": 64}
    assert found.pooled("3") is not None
    assert found.pooled("5") is None, "nobody has five pictures"
    assert len(found.realism.power) == 8
    whole = StrangersReport(report.ModelId("small", 1, ""), 0.5, found, 0.1)
    report.write(whole, tmp_path / "report.json")
    assert report.read(StrangersReport, tmp_path / "report.json") == whole
    for block in tables.of_strangers(whole).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_an_audit_that_goes_on_ends_as_one_that_was_never_stopped(
    measurement: Callable[[], Measurement], found: Strangers
) -> None:
    again = measurement()
    lost = [path for path in again.store.figures.glob("strangers--CNN*seed-1*.json") if path.unlink() is None]
    assert len(lost) == 2
    so_far = again.so_far
    assert so_far is not None
    assert so_far.fresh == {n: s[:1] if n.startswith("CNN") else s for n, s in found.fresh.items()}
    assert again.result() == found == again.so_far


def test_a_model_that_paints_no_faces_is_said_so(
    measurement: Callable[[], Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = device.Seen(*(np.zeros(4) for _ in range(4)))  # type: ignore[arg-type]
    monkeypatch.setattr(device, "seen", lambda cell: nothing)
    with pytest.raises(
        ExportError, match="a provider finds a face in 0 of 4 frames of val: this model paints no faces"
    ):
        measurement().seen("val", 0)


def test_households_need_eight_strangers(sets: Path) -> None:
    with pytest.raises(ExportError, match="fewer than eight strangers with four pictures"):
        strangers.chosen(sets, replace(SMALL, photos=3))


def test_who_taught_a_model_is_said_by_its_recipe(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="say which networks took part in its training with --recipe FILE"):
        strangers.subject(compiled, None, None)
    monkeypatch.setattr(strangers, "RECIPES", compiled.parent)
    assert strangers.subject(compiled, None, None).taught == {"embedder"}


def test_unseen_matchers_stand_first_in_tables_and_claims(found: Strangers) -> None:
    seen = found.raw["embedder"]
    assert seen.household.people == 16
    both = replace(found, matchers={"a": replace(seen, taught=True), "b": seen}, raw={"a": seen, "b": seen})
    lines = [line.split(" |")[0] for line in tables.recognised(both)[2:]]
    assert lines == ["| b, unseen", "| b, raw faces", "| a, taught", "| a, raw faces"]
    said = claims.of_strangers(both)
    assert [claim["by"] for claim in said if claim["figure"] == "stranger named in a household of eight"] == [
        "b (unseen)",
        "a (taught)",
    ]
    assert sum(str(claim["figure"]).endswith("FAR 0.01, raw faces") for claim in said) == 2
    attacked = {str(claim["attack"]) for claim in said if claim["figure"] == "gender of strangers, balanced"}
    assert attacked == {f"fresh {name}" for name in found.fresh} | {"classifier"}
    raw = [claim["attack"] for claim in said if claim["figure"] == "gender of strangers, balanced, raw faces"]
    assert raw == ["classifier", "probe on embedder"]
