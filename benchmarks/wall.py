"""What the wall costs: `python -m benchmarks.wall`.

The real processes, with isolation and without it, in turn in one run. Without: the benchmark replaces it in the processes
that it starts; edgesan itself has no switch for it. Read the ratio, on a quiet machine.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from tqdm import tqdm

from edgesan.bench import machine, wire
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wall", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="runs of each kind, in turn (default 4)")
    parser.add_argument("--seconds", type=float, default=15, help="length of each run (default 15)")
    arguments = parser.parse_args()
    m = machine()
    print(f"{m['processor']}, {m['cores']} cores, onnxruntime {m['onnxruntime']}; 2 faces; medians in ms\n")
    print("| | loop without | with | ratio | glass to wire without | with | ratio |\n|---|---|---|---|---|---|---|")
    path = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(WITHOUT)
        for size in ((480, 270), (1280, 720)):
            figures: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for _ in tqdm(range(arguments.rounds), unit="round", leave=False):
                for walled in (False, True):
                    os.environ["PYTHONPATH"] = path if walled else os.pathsep.join([folder, path])
                    row = wire(size, 2, Config(), arguments.seconds)
                    if bool(row["isolation"]) is not walled:
                        raise SystemExit(f"error: isolation is {row['isolation']!r} where it should be {walled}")
                    figures[walled].append((row["loop"], row["glass_to_wire"]["p50"]))
            cells = []
            for part in (0, 1):
                without, walled_ms = (median(run[part] for run in figures[kind]) for kind in (False, True))
                cells += [f"{without:.2f}", f"{walled_ms:.2f}", f"{walled_ms / without:.3f}"]
            print(f"| {size[0]}x{size[1]} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
