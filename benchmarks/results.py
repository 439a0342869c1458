"""What one machine's benchmarks gave: in memory, and as the JSON files of `benchmarks/results`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgesan import bench
from edgesan.bench import LongRow, Machine, ModelName, Percentiles, StageRow, WireRow

FOLDER: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class NetworkRow:
    """The network at one precision, number of threads and batch. Times are in ms of a whole batch."""

    precision: str
    threads: int
    batch: int
    p50: float
    p95: float
    p99: float
    gmacs: float  # billions of multiplications a second
    peak_gmacs: float
    share: float  # of the peak
    against_float: float  # how many times as long the float twin takes
    mmac: float  # millions of multiplications a face
    moved_mb: float
    allocated_kb: float


@dataclass(frozen=True)
class LabResults(bench.Results):
    """The results of `edgesan bench`, and those that only a laboratory measures."""

    network: Sequence[NetworkRow] = ()
    side_by_side: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Median ms, by what was compared and by contestant; edgesan's is the first."""
    scene: float | None = None  # what it adds to a frame at 1280x720, two faces, as a share


def load(path: Path) -> LabResults:
    """Read the results that `benchmarks.aims --store`, `benchmarks.network --json` or `edgesan bench --json` wrote.

    Raises:
        SystemExit: the file is not one of these.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return LabResults(
            machine=Machine(**table["machine"]),
            model=ModelName(**table["model"]),
            stages=[_stage(row) for row in table.get("stages", [])],
            wire=[_wire(row) for row in table.get("wire", [])],
            idle=[_wire(row) for row in table.get("idle", [])],
            long=[LongRow(**row) for row in table.get("long", [])],
            network=[NetworkRow(**row) for row in table.get("network", [])],
            side_by_side=table.get("side_by_side", {}),
            scene=table.get("scene"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"error: {path} holds no results of this version's benchmarks ({error}): measure again"
        ) from error


def store(path: Path, results: LabResults) -> None:
    """Write the results as JSON."""
    path.write_text(json.dumps(bench.plain(results), indent=1) + "\n", encoding="utf-8")


def _stage(row: dict[str, Any]) -> StageRow:
    loop = Percentiles(**row["loop"]) if "loop" in row else None
    return StageRow(**row | {"alone": Percentiles(**row["alone"]), "loop": loop})


def _wire(row: dict[str, Any]) -> WireRow:
    ms = {stage: Percentiles(**span) for stage, span in row["ms"].items()}
    return WireRow(**row | {"glass_to_wire": Percentiles(**row["glass_to_wire"]), "ms": ms})
