"""The protocol, and the stored figures that it finds again."""

from pathlib import Path

import pytest

from edgesan.config import DEMO_MODEL
from export.audit import protocol, report
from export.audit.measure import Folders
from export.audit.protocol import Options
from export.audit.report import StrangersPlan
from export.errors import ExportError
from tests.support import ROOT

STORED = ROOT / "docs" / "audit.json"


def test_two_models_of_one_name_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """The second would take the first one's place in the table."""
    folders = Folders(tmp_path, tmp_path, tmp_path / "work")
    with pytest.raises(ExportError, match="two rows would be called 'default'"):
        protocol.audit(Options(DEMO_MODEL, folders, baselines=[], beside=[DEMO_MODEL] * 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.data
@pytest.mark.slow
def test_the_stored_cells_give_the_stored_report(data_folder: Path, networks_folder: Path, tmp_path: Path) -> None:
    """Names and digests of the cells are those of the run that measured them: nothing has to be measured again."""
    folders = Folders(data_folder, networks_folder, tmp_path, known=ROOT / "docs" / "audit" / "cells.jsonl")
    found = protocol.audit(Options(DEMO_MODEL, folders, so_far=True, strangers=StrangersPlan()))
    stored = report.read(report.Report, STORED)
    kept = {name: row for name, row in stored.table.items() if name in found.table}
    assert found.table == kept
    assert len(found.table) >= 13
    assert found.strangers == stored.strangers
    assert (found.model, found.closed_set, found.plan, found.bound) == (
        stored.model,
        stored.closed_set,
        stored.plan,
        stored.bound,
    )
