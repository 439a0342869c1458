"""Cells: each figure is computed once, kept, and known again."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.audit import cells
from export.errors import ExportError
from tests.support import ROOT


def test_an_audit_started_several_times_computes_each_cell_once(tmp_path: Path) -> None:
    made: list[str] = []

    def cell(store: cells.Store, name: str) -> cells.Cell:
        def compute() -> dict[str, str]:
            made.append(name)
            time.sleep(0.02)
            return {"is": name}

        return store.figure(name, compute)

    def one(_: int) -> dict[str, list[dict[str, str]]]:
        store = cells.Store(tmp_path, None, {})
        groups: dict[str, cells.Tree] = {g: [cell(store, f"{g}{i}") for i in range(4)] for g in "abc"}
        cells.share(list(groups.values()), tmp_path)
        found: dict[str, list[dict[str, str]]] = cells.settled(groups)
        return found

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(one, range(3))
    assert first == {g: [{"is": f"{g}{i}"} for i in range(4)] for g in "abc"}
    assert all(other == first for other in others)
    assert sorted(made) == [f"{g}{i}" for g in "abc" for i in range(4)]
    assert set(made[:3]) == {"a0", "b0", "c0"}, "each begins with a group of its own"


def test_a_cell_that_fails_leaves_nothing_and_is_computed_again(tmp_path: Path) -> None:
    store = cells.Store(tmp_path, None, {})
    with pytest.raises(ZeroDivisionError):
        store.figure("figure", lambda: {"is": 1 / 0}).value()
    assert store.figure("figure", lambda: {"is": 2.0}).value() == {"is": 2.0}
    assert store.figure("figure", lambda: {"is": 3.0}).value() == {"is": 2.0}


def test_what_is_measured_so_far_is_given_without_what_is_not(tmp_path: Path) -> None:
    store = cells.Store(tmp_path / "work", tmp_path / "cells", {})
    done, open_ = store.figure("done", lambda: {"is": 1}), store.figure("open", lambda: {"is": 2})
    done.finish()
    tree: dict[str, cells.Tree] = {"a": [done, open_], "b": {"c": open_}, "d": done}
    assert cells.settled(cells.finished(tree)) == {"a": [{"is": 1}], "d": {"is": 1}}
    assert [path.suffix for path in (tmp_path / "cells").iterdir() if path.suffix == ".json"] == [".json"]
    assert list((tmp_path / "work").iterdir()) == [], "figures lie apart from pictures"


def test_a_known_figure_is_not_computed_again(tmp_path: Path) -> None:
    first = cells.Store(tmp_path / "first", None, {}, "data")
    assert first.figure("a figure, seed 0", lambda: {"is": 1.5}, "model").value() == {"is": 1.5}
    file = tmp_path / "cells.jsonl"
    assert cells.main([str(tmp_path / "first"), str(file)]) == 0
    again = cells.Store(tmp_path / "second", None, cells.read_known(file), "data")
    cell = again.figure("a figure, seed 0", lambda: {"is": 1 / 0}, "model")
    assert cell.is_finished
    assert cell.value() == {"is": 1.5}
    assert not again.figure("a figure, seed 0", dict, "another model").is_finished


def test_merging_adds_a_runs_cells_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    for name in "ba":
        store = cells.Store(tmp_path / name, None, {})
        store.figure(name, lambda name=name: {"is": name}).finish()
        (tmp_path / name / ".part-x.json").write_text("{")  # of a process that was stopped
        assert cells.merge(tmp_path / name, file) == 1
    assert cells.merge(tmp_path / "a", file) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["name"], line["figure"]) for line in lines] == [("a", {"is": "a"}), ("b", {"is": "b"})]


def test_a_file_that_holds_no_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("[1, 2]")
    for name in ("x", "y"):
        with pytest.raises(ExportError, match="is no file of cells"):
            cells.read_known(tmp_path / name)


def test_the_projects_cells_are_one_file_of_figures() -> None:
    known = cells.read_known(ROOT / "docs" / "audit" / "cells.jsonl")
    assert len(known) >= 288
    assert sum(key.startswith("edgesan--") for key in known) >= 40
