"""The aims and the tables of the documents, from a report with strangers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgesan.model.load import Model
from export.audit import aims, claims, report, tables
from export.audit.mechanisms import FLOAT32
from export.audit.report import (
    Attacked,
    FoundAgain,
    Pooled,
    Realism,
    Recognised,
    Report,
    Row,
    Score,
    Share,
    Strangers,
    StrangersPlan,
)
from export.errors import ExportError
from tests.support import ROOT


def scored(balanced: float) -> Score:
    ends = (balanced - 0.05, balanced + 0.05)
    return Score(balanced, balanced, 0.5, 0.0, 100, ends, ends, (0.0, 0.0))


def attacked(ten: float, **by_set: float) -> Attacked:
    sets = {name: scored(value) for name, value in by_set.items()}
    return Attacked(sets, scored(0.5), {"1": Pooled(0.5, 30), "10": Pooled(ten, 20)})


def recognised(household: float, tar: float, taught: bool = False) -> Recognised:
    share = Share(tar, (tar - 0.02, tar + 0.02), 40)
    rates = {rate: {"raw": share, "sanitized": share} for rate in ("0.01", "0.001")}
    return Recognised(Share(household, (0.9, 0.99), 40), {}, rates, 5, taught)


@pytest.fixture(scope="module")
def measured() -> Report:
    """The stored closed set, and strangers whose figures are easily told apart."""
    strangers = Strangers(
        plan=StrangersPlan(),
        people=40,
        pictures=200,
        by_set={"lfw": 100, "pins": 100},
        raw={"b": recognised(1, 0.99), "a": recognised(1, 0.99)},
        matchers={"a": recognised(0.97, 0.89, taught=True), "b": recognised(0.96, 0.7)},
        fresh={
            "CNN": [attacked(0.6, lfw=0.51, pins=0.55), attacked(0.7, lfw=0.52, pins=0.57)],
            "probe": [attacked(0.62, lfw=0.61, pins=0.5)],
        },
        frozen={"c": attacked(0.5, lfw=0.47, pins=0.53), "d": attacked(0.5, lfw=0.44, pins=0.5)},
        frozen_taught=[],
        gender_raw={"c": attacked(0.99, lfw=0.97, pins=0.96), "probe": attacked(0.99, lfw=0.98, pins=0.95)},
        realism=Realism(200, [1.0, 0.4, 1.1], 0.9),
        found_again=FoundAgain(200, 200, 1.0, 1.2),
    )
    stored = report.read(Report, ROOT / "docs" / "audit.json")
    ours = stored.ours
    better = Row(replace(ours.utility, top5=ours.utility.top5 + 0.03), ours.looks, ours.frozen, ours.fresh)
    return replace(stored, strangers=strangers, table={**stored.table, FLOAT32: better})


def test_every_aim_has_its_value_and_says_whether_it_was_reached(measured: Report) -> None:
    found = {aim.what: (aim.measured, aim.reached) for aim in aims.aims(measured)}
    assert found["household of 8, top-1, unseen matcher"] == ("96.0 (b)", True)
    assert found["TAR at FAR 0.01, raw gallery, unseen matcher"] == ("70.0 (b)", False)
    assert found["TAR at FAR 0.01, raw gallery, the training's matcher"] == ("89.0 (a)", False)
    assert found["best fresh attacker, balanced, the worst set"] == ("61.0 (probe, lfw)", False)
    assert found["best fresh attacker over ten pictures of a stranger"] == ("65.0 (CNN)", True)
    assert found["unseen classifier c, balanced, each set"] == ("47.0 to 53.0", True)
    assert found["unseen classifier d, balanced, each set"] == ("44.0 to 50.0", False)
    assert found["closed set, top-5"][0] == tables.percent(measured.ours.utility.top5)
    assert found["float32 to int8, every figure of the closed set"] == ("3.0 at most (top-5)", False)
    assert found["power by spatial frequency, the worst band"] == ("2.50", False)
    assert found["chroma noise, of raw faces'"] == ("0.90", True)
    assert found["landmarks, pixels of the chip"] == ("1.20", True)


def test_strangers_come_first_in_the_report_the_claims_and_the_documents(measured: Report, tmp_path: Path) -> None:
    assert tables.table(measured).startswith("40 strangers, 200 pictures (lfw 100, pins 100)")
    assert tables.summary(measured).splitlines()[0] == (
        "strangers: household of 8 by b (unseen) 96.0, a (taught) 97.0; best fresh attacker 61.0 (probe, lfw, balanced)"
    )
    first, *rest = claims.claims(measured)
    assert (first["figure"], first["by"], first["set"]) == (
        "stranger named in a household of eight",
        "b (unseen)",
        "strangers",
    )
    assert rest[-1]["figure"] == "faces found again in the output frame"
    assert "by b (unseen) | 100.0 | 96.0 [90.0..99.0]" in aims.card(measured)[2]
    assert aims.readme(measured)[2].endswith("| 100.0 | 96.0 |")
    for last in ("worst set (lfw), balanced | 98.0 | 61.0 |", "where it is best (lfw) | 98.0 | 61.0 |"):
        assert sum(line.endswith(last) for line in (*aims.card(measured), *aims.readme(measured))) == 1
    report.write(measured, tmp_path / "report.json")
    assert report.read(Report, tmp_path / "report.json") == measured
    assert len(json.dumps(claims.claims(measured))) < 60_000


def test_the_dial_of_the_page_has_the_figures_of_the_audited_points(measured: Report, sanitizer_model: Model) -> None:
    first = replace(measured, alpha=0.4)
    other = replace(first, alpha=0.8, strangers=None)
    facts = replace(sanitizer_model.metadata, claims=[*claims.claims(other), *claims.claims(first)])
    low, high = facts.audited
    assert low == {
        "alpha": 0.4,
        "private_accuracy": 0.5,
        "attacker": "fresh CNN",
        "utility": 0.96,
        "useful": "stranger named in a household of eight",
        "people": "strangers",
    }
    assert (high["alpha"], high["people"]) == (0.8, "people of the training")
    assert high["private_accuracy"] == round(measured.ours.strongest()[1].accuracy, 4)
    assert high["utility"] == round(measured.ours.utility.top1, 4)
    assert replace(facts, claims=[]).audited == []
    assert facts.strongest_attack.endswith(", who knows the people; of strangers in 61.0 % at most")


def test_a_report_without_strangers_has_no_aims(measured: Report) -> None:
    with pytest.raises(ExportError, match="this report has no strangers"):
        aims.aims(replace(measured, strangers=None))
