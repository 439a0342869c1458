"""How many instructions the network takes for a face: `python -m benchmarks.instructions`.

A figure that no busy machine can change: valgrind (`apt install valgrind`) counts each one that this processor would
have run. Two runs, one of so many more calls than the other; what they differ by is what the calls took, and loading
cancels out. valgrind 3.19 to 3.25 know no AVX-512, nor VNNI, and tell the program so: what is counted are
onnxruntime's kernels for AVX2, which multiply int8 in three instructions where VNNI needs one. Those of a processor
without dot products, that is, as a Pi 4's.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import onnx
from tqdm import tqdm

from edgesan import bench
from edgesan.config import DEMO_MODEL

CALLS: Final = (2, 6)
PRECISIONS: Final = ("int8", "fp32")


def call(precision: str, calls: int) -> None:
    """What is counted: load the network, and sanitize one face so many times."""
    content = DEMO_MODEL.read_bytes()
    if precision == "fp32":
        content = bench.unquantized(onnx.load_model_from_string(content)).SerializeToString()
    face = bench.feed(bench.start(content, 1), 1)
    for _ in range(calls):
        face()


def counted(precision: str, calls: int) -> int:
    """Instructions of a process that makes so many calls.

    Raises:
        SystemExit: valgrind failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", sys.executable, "-m",
                   "benchmarks.instructions", "--call", precision, str(calls)]  # fmt: skip
        # One hash seed: dictionaries take the same steps in each run.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        total = re.search(r"^(?:summary|totals): (\d+)", _text(Path(folder)), re.M)
    if run.returncode or total is None:
        raise SystemExit(f"error: valgrind ended with {run.returncode}: {run.stderr[-600:]}")
    return int(total[1])


def _text(folder: Path) -> str:
    """What callgrind wrote, from all threads."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("out*")))


def measure() -> dict[str, float]:
    """Millions of instructions a face, for each precision."""
    few, many = CALLS
    return {
        precision: round((counted(precision, many) - counted(precision, few)) / (many - few) / 1e6, 2)
        for precision in tqdm(PRECISIONS, leave=False)
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    parser.add_argument("--call", nargs=2, metavar=("PRECISION", "CALLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        call(arguments.call[0], int(arguments.call[1]))
        return 0
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed (apt install valgrind)")
        return 0
    macs = bench.cost(onnx.load(DEMO_MODEL))[0] / 1e6
    print("| network, one face | million instructions | multiplications in one |\n|---|---|---|")
    counts = measure()
    for precision, count in counts.items():
        print(f"| {precision} | {count:g} | {macs / count:.1f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(counts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
