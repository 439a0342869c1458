"""Several machines beside each other: `python -m benchmarks.compare benchmarks/results/*.json --plot docs/bench.png`.

Each file is what `benchmarks.aims --store` wrote, or `edgesan bench --json` or `benchmarks.network --json` on a board.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.results import LabResults, load
from edgesan import bench

COLUMNS: Final = {
    "machine": "processor, and how many cores it has",
    "model": "the model that was measured",
    "int8, ms a face": "the network alone, one face, one thread",
    "share of the peak": "the network's multiplications a second, as a share of what the processor can do in int8",
    "float against int8": "how many times as long the same network takes in float",
    "glass to wire, p50": "ms from the camera's frame to the socket, half of the frames are faster; 640x480, 4 faces",
    "p99": "the same, 99 of 100 frames are faster",
    "memory, MB": "of all processes of that run",
}
NOT_MEASURED: Final = "–"


def row(results: LabResults) -> list[str | float]:
    """Return what fits one line of a table, in the order of COLUMNS; a dash for what was not measured there."""
    alone = {row.precision: row for row in results.network if (row.threads, row.batch) == (1, 1)}
    wire = next((row for row in results.wire if (row.size, row.faces) == ("640x480", 4)), None)
    network: list[str | float] = [NOT_MEASURED] * 3
    if alone:
        int8, fp32 = alone["int8"], alone["fp32"]
        network = [int8.p50, int8.share, round(fp32.p50 / int8.p50, 2)]
    seen: list[str | float] = [NOT_MEASURED] * 3
    if wire:
        seen = [wire.glass_to_wire.p50, wire.glass_to_wire.p99, wire.memory_mb]
    machine, model = results.machine, results.model
    return [f"{machine.processor}, {machine.cores} cores", f"{model.name} v{model.version}", *network, *seen]


def plot(results: Sequence[LabResults], path: Path) -> None:
    """Draw the network alone and glass to wire, a line for each machine.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib import figure as figures
    except ImportError as error:
        raise SystemExit("error: --plot needs matplotlib: pip install matplotlib, or leave it out") from error
    figure = figures.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result in results:
        name = result.machine.processor
        for precision, style in (("int8", "o-"), ("fp32", "s--")):
            rows = [r for r in result.network if (r.precision, r.threads) == (precision, 1)]
            batches, times = [r.batch for r in rows], [r.p50 / r.batch for r in rows]
            left.plot(batches, times, style, label=f"{name}, {precision}")
        for count in bench.FACES:
            measured = [r for r in result.wire if r.faces == count]
            sizes, latencies = [r.size for r in measured], [r.glass_to_wire.p50 for r in measured]
            if measured:
                right.plot(sizes, latencies, "o-", label=f"{name}, {count} faces")
    left.set(xlabel="faces in a batch", ylabel="ms a face", title="network alone, one thread", ylim=(0, None))
    right.set(ylabel="ms, median", title="from glass to wire", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:  # a machine on which this was not measured
            axis.legend(fontsize=6).set_in_layout(False)
    figure.savefig(path, dpi=90)


def main() -> int:
    """Print the table, and draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="figures of one machine each (JSON)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a picture (needs matplotlib)")
    arguments = parser.parse_args()
    results = [load(path) for path in arguments.results]
    print(*bench.table(list(COLUMNS), [row(result) for result in results]), sep="\n")
    print("", *(f"- {column}: {meaning}" for column, meaning in COLUMNS.items()), sep="\n")
    if arguments.plot:
        plot(results, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
