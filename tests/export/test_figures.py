"""The figures of the talk."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from export import figures
from export.audit import mechanisms, plots, report
from tests.support import ROOT

SPREAD = {"F": [0.2, 0.3, 0.4], "M": [0.6, 0.7, 0.8]}
SCORE = {"accuracy": 0.7, "balanced": 0.7, "auc": 0.8, "leak_nats": 0.1}
POINT = {
    "top1": 0.5,
    "top5": 0.8,
    "nats": 1.5,
    "attacker": 0.7,
    "attacker_95": [0.6, 0.8],
    "leak_nats": 0.1,
    "attackers": {"a": SCORE, "b": SCORE},
    "frozen": 0.6,
    "distribution": SPREAD,
    "fresh_distribution": SPREAD,
}


def apart_at(alpha: float) -> str:
    return f"trained for alpha {alpha:g} alone: top-5 80.0"


def test_the_figures_are_drawn_from_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    column = {"model": {"version": 1, "steps": 860}, "points": [{"alpha": a} | POINT for a in (0.0, 1.0)]}
    histogram = {"histogram": {"F": [1] * 20, "M": [2] * 20}, "quartiles": SPREAD, "accuracy": 0.9}
    curve = [{"alpha": a} | POINT | {"attacker": 0.8 - 0.2 * a, "top5": 0.9 - 0.4 * a} for a in (0.0, 1.0)]
    apart = [{"alpha": 1.0} | POINT, {"alpha": 0.5} | POINT | {"attacker": 0.5}]
    columns = dict.fromkeys([*plots.COLUMNS, plots.DEVICE, mechanisms.AUTHORS], column)
    columns |= {plots.DIAL: column | {"points": curve}, plots.APART: column | {"points": apart}}
    measured = {
        "closed_set": {"people": 9, "train": 60, "test": 20, "prior": 0.56},
        "plan": {"epochs": 1, "seeds": 1, "attackers": ["a", "b"]},
        "bound": {"entropy_nats": 0.68, "points": [[0.0, 0.68], [0.68, 0.0]]},
        "raw": POINT,
        "unfiltered": {"one": histogram, "other": histogram},
        "columns": columns,
    }
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    assert figures.main(["--draw", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{apart_at(1)}, best fresh attacker 70.0; the dial's curve at this attacker: top-5 70.0",
        f"{apart_at(0.5)}, best fresh attacker 50.0; the dial's curve does not reach this attacker",
    ]
    names = {"trade-off", "distributions", "top5", "unfiltered", "device"}
    drawn = {p.stem: cv2.imread(str(p)) for p in tmp_path.glob("*.png")}
    assert drawn.keys() == names
    assert all(picture is not None and picture.std() > 10 for picture in drawn.values())


def test_figures_say_what_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--draw", "--out", str(tmp_path)]) == 1
    assert "nothing was measured yet" in capsys.readouterr().err
    given = ["--models", str(tmp_path), "--device", str(tmp_path / "x.onnx"), "--data", ".", "--networks", "."]
    assert figures.main([*given, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "train export/recipes/deterministic-adversarial.toml" in said
    assert "error: the device's model is not there" in said


def test_what_was_measured_is_read_and_written_without_a_change() -> None:
    stored = ROOT / "docs" / "figures" / "measured.json"
    talk = report.read(report.Talk, stored)
    assert json.dumps(report.to_json(talk), indent=1) + "\n" == stored.read_text()


def test_the_rival_of_another_run_stays_if_it_was_measured_alike() -> None:
    stored = ROOT / "docs" / "figures" / "measured.json"
    kept = report.read(report.Talk, stored)
    rival = kept.columns[mechanisms.AUTHORS]
    without = replace(kept, columns={plots.DEVICE: kept.columns[plots.DEVICE]})
    assert figures.with_rival_of(stored, without).columns == without.columns | {mechanisms.AUTHORS: rival}
    fewer = replace(without, plan=replace(kept.plan, epochs=kept.plan.epochs + 1))
    assert figures.with_rival_of(stored, fewer) is fewer, "another number of epochs cannot be set beside"
    assert figures.with_rival_of(stored.with_name("none.json"), without) is without
