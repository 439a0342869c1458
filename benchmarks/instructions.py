"""How many instructions the network takes for a face: `python -m benchmarks.instructions`.

No busy machine can change this figure: valgrind (`apt install valgrind`) counts each instruction. Of two runs, one
makes more calls than the other; the difference is what the calls took, and loading cancels out. valgrind 3.19 knows
neither AVX-512 nor VNNI, and hides them from the program. So it counts onnxruntime's kernels for AVX2, which multiply
int8 in three instructions where VNNI needs one: what a processor without dot products must do, such as a Pi 4's.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from tqdm import tqdm

from benchmarks import network
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs

CALLS: Final = (1, 3)
COUNTED: Final = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1] + "/network.onnx", options, ["CPUExecutionProvider"])
feed = dict(np.load(sys.argv[1] + "/face.npz"))
for _ in range(int(sys.argv[2])):
    session.run(None, feed)
"""


def measure() -> dict[str, float]:
    """Count the millions of instructions a face, for each precision.

    Raises:
        SystemExit: valgrind failed.
    """
    shipped = onnx.load(DEMO_MODEL)
    chips, noise = known_inputs(1, 64)
    counts = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "face.npz", face=chips, noise=noise, alpha=np.full((1, 1), 0.5, np.float32))
        for precision, proto in tqdm({"int8": shipped, "fp32": network.unquantized(shipped)}.items(), leave=False):
            onnx.save(proto, folder / "network.onnx")
            few, many = (counted(folder, calls) for calls in CALLS)
            counts[precision] = round((many - few) / (CALLS[1] - CALLS[0]) / 1e6, 2)
    return counts


def counted(folder: Path, calls: int) -> int:
    """Count the instructions of a process that loads the network and makes so many calls."""
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
    command = [*valgrind, sys.executable, "-c", COUNTED, str(folder), str(calls)]
    # One hash seed: dictionaries take the same steps in each run.
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONHASHSEED": "0"})
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or found is None:
        raise SystemExit(f"error: valgrind ended with {run.returncode}: {run.stderr[-600:]}")
    return int(found[1])


def main() -> int:
    """Print the counts, and write them where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed (apt install valgrind)")
        return 0
    macs = network.cost(onnx.load(DEMO_MODEL))[0] / 1e6
    counts = measure()
    print("| network, one face | million instructions | multiplications in one |\n|---|---|---|")
    for precision, count in counts.items():
        print(f"| {precision} | {count:g} | {macs / count:.1f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(counts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
