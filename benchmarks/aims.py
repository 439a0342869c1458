"""All figures of this machine, and the aims beside them: `python -m benchmarks.aims` (`make bench`).

It takes ten minutes: `edgesan bench`, the network alone, the contestants side by side, and the scene. `--store` keeps
the results in `benchmarks/results`, named after the processor; `benchmarks.compare` draws what lies there. Whether a
frame takes more instructions than before, `benchmarks.check` says.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import compare, network, scene, side_by_side
from benchmarks.results import FOLDER, LabResults, load, store
from edgesan import bench
from edgesan.bench import Machine, WireRow
from edgesan.config import DEMO_MODEL, Config
from edgesan.model.load import load_model

PARTS: Final = ("network", "stages", "wire", "idle", "side_by_side", "scene")


def _network(results: LabResults, field: str) -> float:
    """Return the median over batches of one figure of the int8 network, one thread."""
    rows = [row for row in results.network if (row.threads, row.precision) == (1, "int8")]
    return float(median(getattr(row, field) for row in rows))


def _against(results: LabResults, what: str, other: str) -> float:
    """Return how many times edgesan's time another contestant takes; NaN if it did not run."""
    row = results.side_by_side[what]
    return float(row.get(other, np.nan) / next(iter(row.values())))


def _frame(results: LabResults, size: str) -> float:
    """Return the time of a whole frame over the sum of its stages' times."""
    return next(row.kernels or np.nan for row in results.stages if (row.size, row.stage) == (size, "frame"))


def _wire(results: LabResults, faces: int) -> WireRow:
    return next(row for row in results.wire if (row.size, row.faces) == ("640x480", faces))


def _idle(results: LabResults, faces: int) -> float:
    """Return the share of a core that a clip of so many faces takes, with a viewer."""
    return next((row.cpu_percent for row in results.idle if row.viewers and row.faces == faces), float("nan"))


def _one_more_face(results: LabResults) -> float:
    """Return the ms that a face adds from glass to wire: the slope over 0 to 16 faces, at 640x480."""
    rows = [row for row in results.wire if row.size == "640x480"]
    return float(np.polyfit([row.found for row in rows], [row.glass_to_wire.p50 for row in rows], 1)[0])


@dataclass(frozen=True)
class Aim:
    """A figure that is aimed at. `form` writes the limit and what was measured."""

    name: str
    limit: float
    form: str
    measured: Callable[[LabResults], float]
    more_is_better: bool = False


DEFACE, PIXELATED = "deface 1.5.0", "same detector, pixelated"
AIMS: Final = (
    Aim("network, int8, one thread: share of the int8 peak", 0.75, "{:.0%}", lambda r: _network(r, "share"), True),
    Aim("network, int8 against float", 2.5, "{:.1f}x", lambda r: _network(r, "against_float"), True),
    Aim(
        "against the authors' net in float",
        15,
        "{:.1f}x",
        lambda r: _against(r, "network, one face", "U-Net, float"),
        True,
    ),
    Aim("pipeline against deface, 480x270", 12, "{:.1f}x", lambda r: _against(r, "480x270", DEFACE), True),
    Aim("pipeline against deface, 1280x720", 50, "{:.1f}x", lambda r: _against(r, "1280x720", DEFACE), True),
    Aim(
        "pipeline against pixelation by hand, 480x270", 1.2, "{:.2f}x", lambda r: 1 / _against(r, "480x270", PIXELATED)
    ),
    Aim(
        "pipeline against pixelation by hand, 1280x720",
        1.2,
        "{:.2f}x",
        lambda r: 1 / _against(r, "1280x720", PIXELATED),
    ),
    Aim("pipeline against the sum of its kernels, 480x270", 1.2, "{:.2f}x", lambda r: _frame(r, "480x270")),
    Aim("pipeline against the sum of its kernels, 1280x720", 1.2, "{:.2f}x", lambda r: _frame(r, "1280x720")),
    Aim("what the scene adds to a frame, 1280x720", 0.1, "{:.0%}", lambda r: np.nan if r.scene is None else r.scene),
    Aim("glass to wire, 640x480, 2 faces, p50", 8, "{:.1f} ms", lambda r: _wire(r, 2).glass_to_wire.p50),
    Aim("glass to wire, 640x480, 2 faces, p99", 20, "{:.1f} ms", lambda r: _wire(r, 2).glass_to_wire.p99),
    Aim("each further face", 0.2, "{:.2f} ms", _one_more_face),
    Aim(
        "glass to wire, 640x480, 16 faces against 2, p50",
        1.3,
        "{:.2f}x",
        lambda r: _wire(r, 16).glass_to_wire.p50 / _wire(r, 2).glass_to_wire.p50,
    ),
    Aim("memory of all processes, 640x480, 2 faces", 220, "{:.0f} MB", lambda r: _wire(r, 2).memory_mb),
    Aim("time to the first frame", 1, "{:.2f} s", lambda r: median(row.first_frame_s for row in r.wire)),
    Aim(
        "idle, 15 frames/s, one face, one viewer",
        10,
        "{:.1f} % of a core",
        lambda r: _idle(r, 1),
    ),
    Aim("idle, 15 frames/s, nothing moves, one viewer", 4, "{:.1f} % of a core", lambda r: _idle(r, 0)),
    Aim("bytes across the wall, 2 faces", 10, "{:.1f} kB/s", lambda r: _wire(r, 2).wall_bytes_per_s / 1e3),
)


def text(results: LabResults) -> str:
    """Return the aims and what was measured, in Markdown."""
    lines = ["| | aim | measured | |", "|---|---|---|---|"]
    for aim in AIMS:
        value = aim.measured(results)
        shown = "not measured" if np.isnan(value) else aim.form.format(value)
        met = value >= aim.limit if aim.more_is_better else value <= aim.limit
        limit = f"{'≥' if aim.more_is_better else '≤'} {aim.form.format(aim.limit)}"
        lines.append(f"| {aim.name} | {limit} | {shown} | {'met' if met else 'missed'} |")
    return "\n".join(lines)


def file_name(machine: Machine) -> str:
    """Return the name of a machine's results, such as intel-xeon-2-80ghz-2-cores.json."""
    words = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b", " ", machine.processor.lower())
    return f"{'-'.join(re.findall('[a-z0-9]+', words))}-{machine.cores}-cores.json"


def measure(parts: list[str], seconds: float) -> dict[str, Any]:
    """Measure some of PARTS. The keys are fields of LabResults: machine, model and these parts."""
    asked = [part for part in bench.PARTS if part in parts]
    measured = bench.run(asked, Config(), seconds, 0)
    found: dict[str, Any] = {name: getattr(measured, name) for name in ("machine", "model", *asked)}
    if "network" in parts:
        found["network"] = network.measure(DEMO_MODEL.read_bytes(), seconds / 2)
    if "side_by_side" in parts:
        found["side_by_side"] = side_by_side.measure(seconds, side_by_side.san_network())
    if "scene" in parts:
        found["scene"] = scene.share(scene.measure(load_model(DEMO_MODEL), 2))
    return found


def main() -> int:
    """Measure, print, and store where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aims", description=__doc__)
    part_help = "measure only this; with --store, the other parts stay as they were stored"
    parser.add_argument("--part", action="append", choices=PARTS, help=part_help)
    parser.add_argument("--seconds", type=float, default=6, help="length of each run (default 6)")
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/MACHINE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a picture (needs matplotlib)")
    arguments = parser.parse_args()
    found = measure(arguments.part or list(PARTS), arguments.seconds)
    path = FOLDER / file_name(found["machine"])
    stored = arguments.part and path.exists()
    results = dataclasses.replace(load(path), **found) if stored else LabResults(**found)
    print(bench.text(results))
    if results.network:
        print(f"\n{network.text(results.network)}")
    if results.side_by_side:
        print(f"\n{side_by_side.text(results.side_by_side)}")
    if all(getattr(results, part) for part in PARTS if part != "scene"):
        print(f"\n{text(results)}")
    if arguments.store:
        store(path, results)
    if arguments.plot:
        compare.plot([results], arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
