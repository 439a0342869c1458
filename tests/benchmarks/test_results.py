"""What is made of the results: ratios, aims, machines beside each other, and the projection."""

import dataclasses
import itertools
import sys
from pathlib import Path

import pytest

from benchmarks import aims, compare, projection, results
from benchmarks.results import LabResults
from edgesan import bench

FILES = sorted(results.FOLDER.glob("*-cores.json"))


def stored() -> LabResults:
    """Real results: of any machine that stored all of them."""
    return next(found for found in map(results.load, FILES) if found.wire)


def test_results_that_were_stored_are_read_as_they_were(tmp_path: Path) -> None:
    for path in FILES:
        results.store(tmp_path / path.name, results.load(path))
        assert (tmp_path / path.name).read_text() == path.read_text()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"machine": {"processor": "Abacus"}}'):
        (tmp_path / "machine.json").write_text(content)
        with pytest.raises(SystemExit, match=r"machine\.json holds no results of this version's benchmarks"):
            results.load(tmp_path / "machine.json")


def test_every_aim_has_a_measured_value() -> None:
    table = aims.text(stored())
    assert table.count("| met |") + table.count("| missed |") == len(aims.AIMS)
    assert "nan" not in table


def test_results_are_named_after_the_processor() -> None:
    machine = dataclasses.replace(bench.machine(), processor="Intel(R) Xeon(R) Processor @ 2.80GHz", cores=2)
    assert aims.file_name(machine) == "intel-xeon-2-80ghz-2-cores.json"
    board = dataclasses.replace(machine, processor="Raspberry Pi 5 Model B Rev 1.0", cores=4)
    assert aims.file_name(board) == "raspberry-pi-5-model-b-rev-1-0-4-cores.json"


def test_machines_are_drawn_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "machines.png"
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, FILES), "--plot", str(picture)])
    assert compare.main() == 0
    assert capsys.readouterr().out.count("cores |") == len(FILES)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_machine_with_a_part_of_the_results_has_dashes_in_the_table() -> None:
    assert compare.row(LabResults(stored().machine, stored().model))[2:] == ["–"] * 6


def test_a_projection_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert projection.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PROJECTION, not measured")
    assert "Pi 4" in printed
    assert "Pi 5" in printed


def test_a_published_network_takes_what_its_own_rate_says() -> None:
    for board in projection.BOARDS:
        like = board.points[0]
        assert projection.by_multiplications(board, like.gmac)[1] == pytest.approx(like.ms)


@pytest.mark.parametrize("missing", [{}, {"network": []}, {"wire": []}, {"network": [], "wire": []}])
def test_machines_are_drawn_without_a_warning_whatever_was_measured_there(
    missing: dict[str, list[object]], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    compare.plot([dataclasses.replace(stored(), **missing)], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_every_column_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = bench.text(stored())
    heads = [line for line, below in itertools.pairwise(own.splitlines()) if below.startswith("|---")]
    columns = {name for line in heads for name in line.strip("| ").split(" | ")}
    assert len(columns) > 10
    assert columns - bench.EXPLAINED.keys() <= {"size", "stage", "faces", "seconds", "detect"}
    assert all(f"\n- {name}: " in own for name in columns & bench.EXPLAINED.keys())

    monkeypatch.setattr(sys, "argv", ["compare", str(FILES[0])])
    assert compare.main() == 0
    said = capsys.readouterr().out
    assert all(f"\n- {name}: " in said for name in compare.COLUMNS)
