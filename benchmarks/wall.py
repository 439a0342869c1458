"""What isolation costs: `python -m benchmarks.wall`.

The real processes run with isolation and without it, in turn in one run. The benchmark replaces isolation in the
processes that it starts; edgesan itself has no switch for it. Read the ratio, on a quiet machine.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from tqdm import tqdm

from edgesan.bench import Clip, WireRow, machine, wire
from edgesan.config import Config

# Python imports a sitecustomize by itself, in every process.
WITHOUT = """
from importlib.machinery import SourceFileLoader
load = SourceFileLoader.exec_module

def exec_module(self, module):
    load(self, module)
    if module.__name__ == "edgesan.isolation":
        module.sanitize = module.transmit = module.unpack = lambda *a, **k: []

SourceFileLoader.exec_module = exec_module
"""


def main() -> int:
    """Measure, and print a row for each size of picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wall", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="runs of each kind, in turn (default 4)")
    parser.add_argument("--seconds", type=float, default=15, help="length of each run (default 15)")
    arguments = parser.parse_args()
    m = machine()
    print(f"{m.processor}, {m.cores} cores, onnxruntime {m.onnxruntime}; 2 faces; medians in ms\n")
    print("| | loop without | with | ratio | glass to wire without | with | ratio |\n|---|---|---|---|---|---|---|")
    for size in ((480, 270), (1280, 720)):
        runs = measure(Clip(size, 2), arguments.rounds, arguments.seconds)
        cells = []
        for name in ("loop", "glass_to_wire"):
            without, walled = (
                median(row.loop if name == "loop" else row.glass_to_wire.p50 for row in rows) for rows in runs
            )
            cells += [f"{without:.2f}", f"{walled:.2f}", f"{walled / without:.3f}"]
        print(f"| {size[0]}x{size[1]} | " + " | ".join(cells) + " |", flush=True)
    return 0


def measure(clip: Clip, rounds: int, seconds: float) -> tuple[list[WireRow], list[WireRow]]:
    """Run the processes on a clip: the rows without isolation, and those with it.

    Raises:
        SystemExit: isolation was not what it should be.
    """
    runs: tuple[list[WireRow], list[WireRow]] = ([], [])
    path = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(WITHOUT)
        for _ in tqdm(range(rounds), unit="round", leave=False):
            for walled in (False, True):
                os.environ["PYTHONPATH"] = path if walled else os.pathsep.join([folder, path])
                row = wire(clip, Config(), seconds)
                if bool(row.isolation) is not walled:
                    raise SystemExit(f"error: isolation is {row.isolation!r} where it should be {walled}")
                runs[walled].append(row)
    return runs


if __name__ == "__main__":
    sys.exit(main())
