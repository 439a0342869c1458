"""How many instructions a frame takes on either side of the wall: `python -m benchmarks.instructions`.

No busy machine can change these figures: valgrind (`apt install valgrind`) counts each instruction. They are of
640x480 with a scene, 30 frames/s: the mean of twelve frames in a row, in which each face of two is encoded once, and
two looks for silhouettes are taken. The clips, the noise and the clock are fixed, and the count begins after all is
warm. What a frame waits for is told from what is done after it has left (`catch_up`).

What makes counts comparable between machines: valgrind 3.19 knows neither AVX-512 nor VNNI, and hides them from the
program. So every library takes its kernels for AVX2, on whatever x86 processor has that, and edgesan is told so, too.
They multiply int8 with more instructions than VNNI needs: what a processor without dot products must do. Other versions
of the libraries or of the model have counts of their own.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnx
import onnxruntime

from benchmarks import counted, network
from edgesan import bench
from edgesan.bench import Clip
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs

STORED: Final = Path(__file__).parent / "results" / "instructions.json"
SIZE: Final = (640, 480)
CLIPS: Final = ("0-faces", "1-still", "1-faces", "2-faces", "4-faces", "16-faces")
"""How many faces the frames have; still: nothing moves but the camera's noise."""
NETWORKS: Final = ("int8", "int8, 8-bit products", "fp32")
"""8-bit products: as on Arm, where sums of them do not overflow. On x86 without VNNI they do: see `edgesan.ort`."""
PARTS: Final = ("sanitize", "transmit", "encode", "decode")
NOISE: Final = 2.0  # levels, of the still clip


def versions() -> dict[str, str]:
    """Return what must be the same where counts are compared."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "model": hashlib.sha256(onnx.load(DEMO_MODEL).graph.SerializeToString(deterministic=True)).hexdigest(),
    }


def missing() -> str:
    """Return what is missing for counting, or nothing."""
    if platform.machine() != "x86_64":
        return "instructions are counted on x86-64 only"
    return "" if shutil.which("valgrind") else "valgrind is not installed (apt install valgrind)"


def measure(clips: Sequence[str] = CLIPS, *, networks: bool = True) -> dict[str, float]:
    """Count the millions of instructions of each part: of a face in the network, and of a frame.

    Args:
        clips: some of CLIPS.
        networks: whether the networks are counted, too.

    Raises:
        SystemExit: valgrind failed.
    """
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), clips, networks=networks)
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={name}/out"]
        # One hash seed: dictionaries take the same steps in each run.
        environment = os.environ | {"PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        command = ["valgrind", *options, sys.executable, "-m", "benchmarks.counted", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        counts = Counter[str]()
        for path in sorted(Path(name).glob("out.*")):
            counts.update(_counted(path))
    if run.returncode or not counts:
        raise SystemExit(f"error: valgrind ended with {run.returncode}: {run.stderr[-600:]}")
    return {part: round(count / 1e6, 2) for part, count in counts.items()}


def prepare(folder: Path, clips: Sequence[str], *, networks: bool) -> None:
    """Write what the counted program reads."""
    if networks:
        shipped = onnx.load(DEMO_MODEL)
        onnx.save(shipped, folder / "int8.onnx")
        onnx.save(network.unquantized(shipped), folder / "fp32.onnx")
    chips, noise = known_inputs(1, 64)
    np.savez(folder / "feed.npz", face=chips, noise=noise, alpha=np.full((1, 1), 0.5, np.float32))
    np.save(folder / "still.npy", bench.draw(Clip(SIZE, 0))[0])
    for clip in clips:
        faces, kind = clip.split("-")
        pictures = np.stack(bench.draw(Clip(SIZE, int(faces)))[: counted.WARM + counted.FRAMES])
        if kind == "still":
            grain = np.random.default_rng(0).normal(0, NOISE, pictures.shape)
            pictures = np.clip(pictures[:1] + grain, 0, 255).astype(np.uint8)
        np.save(folder / f"clip-{clip}.npy", pictures)


def _counted(path: Path) -> dict[str, float]:
    """Return what a file of callgrind's holds: the part, and its instructions in one of its calls or frames."""
    text = path.read_text(encoding="utf-8")
    name = re.search(r"Client Request: (.+)/(\d+)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)", text, re.MULTILINE)  # "summary" is wrong where threads have ended
    return {name[1]: int(total[1]) / int(name[2])} if name and total else {}


def load(path: Path = STORED) -> tuple[Mapping[str, str], Mapping[str, float]]:
    """Return the versions and counts that are stored."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["versions"], stored["millions"]


def text(counts: Mapping[str, float]) -> str:
    """Return the counts as tables."""
    macs = network.cost(onnx.load(DEMO_MODEL))[0] / 1e6
    networks: list[tuple[str | float, ...]] = [
        (each, counts[each], f"{macs / counts[each]:.1f}") for each in NETWORKS if each in counts
    ]
    lines = bench.table(("network, one face", "million instructions", "multiplications in one"), networks)
    frames: list[tuple[str | float, ...]] = [
        (clip.replace("-", " "), *(counts[f"{part}, {clip}"] for part in PARTS))
        for clip in CLIPS
        if f"sanitize, {clip}" in counts
    ]
    return "\n".join([*lines, "", *bench.table(("million instructions a frame", *PARTS), frames)])


def main() -> None:
    """Print the counts, and write them where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    arguments = parser.parse_args()
    reason = missing()
    if reason:
        raise SystemExit(f"error: {reason}")
    counts = measure()
    print(text(counts))
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions(), "millions": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
