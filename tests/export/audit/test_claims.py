"""The claims, which are the report's figures."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from export.audit import claims, report
from export.audit.report import ModelId, Report
from export.errors import ExportError
from tests.support import ROOT


@pytest.fixture(scope="module")
def stored() -> Report:
    return report.read(Report, ROOT / "docs" / "audit.json")


def test_the_bundled_model_claims_what_the_stored_report_says(stored: Report) -> None:
    carried = prepare(DEMO_MODEL, DEMO_MODEL.read_bytes()).metadata.claims
    for mine, claim in zip(claims.claims(stored), carried, strict=True):
        assert mine.items() <= dict(claim).items()


def test_claims_are_written_into_the_audited_model_alone(stored: Report, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(DEMO_MODEL, model)
    with pytest.raises(ExportError, match="is not the model that this report is about"):
        claims.write_claims(model, stored if stored.model.graph_sha256 != claims.graph_digest(model) else other(stored))
    mine = replace(stored, model=replace(stored.model, graph_sha256=claims.graph_digest(model)))
    claims.write_claims(model, mine)
    assert claims.graph_digest(model) == claims.graph_digest(DEMO_MODEL)
    assert [dict(c) for c in prepare(model, model.read_bytes()).metadata.claims] == claims.claims(mine)


def other(stored: Report) -> Report:
    return replace(stored, model=ModelId("other", 1, "0" * 64))
