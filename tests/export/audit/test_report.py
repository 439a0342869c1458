"""Results as JSON, and back."""

import json
from pathlib import Path

import pytest

from export.audit import report
from export.audit.report import Mean, OwnRow, Plan, Pooled, Report, Row, Score
from export.errors import ExportError
from tests.support import ROOT

STORED = ROOT / "docs" / "audit.json"
ENDS = (0.4, 0.6)


def score(accuracy: float, pooled: float = 0.5) -> Score:
    parts = {"pooled": {"5": Pooled(pooled, 9)}, "slices": {"gender F": accuracy}}
    return Score(accuracy, accuracy, 0.5, 0.0, 10, ENDS, ENDS, ENDS, **parts)


def test_the_stored_report_is_read_and_written_without_a_change(tmp_path: Path) -> None:
    stored = report.read(Report, STORED)
    assert isinstance(stored.ours, OwnRow)
    assert not isinstance(stored.raw, OwnRow)
    report.write(stored, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == STORED.read_text()


def test_what_was_not_measured_is_left_out_of_the_json() -> None:
    bare = Score(0.5, 0.5, 0.5, 0.0, 10, ENDS, ENDS, ENDS)
    assert "pooled" not in report.to_json(bare)
    assert report.to_json(Plan())["limit"] is None, "but no limit is said"
    for value in (bare, score(0.5), Plan(), Plan(limit=3)):
        assert report.from_json(type(value), json.loads(json.dumps(report.to_json(value)))) == value


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("[]", '{"format": 5}', '{"another": 1}', "x"):
        path.write_text(text)
        with pytest.raises(ExportError, match="is not what this version writes there"):
            report.read(Report, path)


def test_the_strongest_attacker_has_the_highest_mean_over_its_seeds() -> None:
    row = Row(None, None, {}, {"lucky": [score(0.9), score(0.5)], "steady": [score(0.8, 0.7), score(0.8, 0.9)]})
    name, mean = row.strongest()
    assert (name, mean.accuracy, mean.seeds, mean.range) == ("steady", 0.8, 2, (0.8, 0.8))
    assert mean.pooled == {"5": pytest.approx(0.8)}
    assert mean.slices == {"gender F": pytest.approx(0.8)}
    assert Mean.of([score(0.9), score(0.5)]).range == (0.5, 0.9)
