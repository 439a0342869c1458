"""The tables, drawn from the stored report."""

import pytest

from export.audit import html, report, tables
from export.audit.report import Report
from tests.support import ROOT


@pytest.fixture(scope="module")
def stored() -> Report:
    return report.read(Report, ROOT / "docs" / "audit.json")


def test_the_table_has_a_line_for_each_mechanism_and_each_attacker(stored: Report) -> None:
    lines = tables.table(stored).splitlines()
    about = f"{stored.model.name} v{stored.model.version} at alpha {stored.alpha:g}; closed set: "
    assert sum(line.startswith(about) for line in lines) == 1
    for name, row in stored.table.items():
        start = f"| {name} | {100 * row.utility.top1:.1f} | {100 * row.utility.top5:.1f} | "
        assert sum(line.startswith(start) for line in lines) == 1
    for name in stored.ours.fresh:
        assert sum(line.startswith(f"| gender by fresh {name} | ") for line in lines) == 1
        assert sum(line.startswith(f"| {name} | ") for line in lines) == 1


def test_all_lines_of_a_table_have_as_many_cells_as_its_head(stored: Report) -> None:
    for block in tables.table(stored).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_page_shows_each_table_as_html(stored: Report) -> None:
    shown = html.markdown_as_html(tables.table(stored))
    assert shown.count("<table>") == shown.count("</table>") == 5
    assert "<td>blur, sigma 4</td>" in shown
    assert "|" not in shown
