"""The int8 network on the processors of a Pi 4 and a Pi 5, emulated: `python -m tests.model.arm` (`make arm`).

QEMU's user mode runs an arm64 Python of Debian, onnxruntime's arm64 wheel and this tree's own reader of models, which
checks the signature and the known answer. What the network then paints is compared with what it paints here. As a
measure stands beside it what the quantization itself costs: the float twin against int8, here.

Needs `apt install mmdebstrap qemu-user-static` and, once, Debian's and PyPI's servers; nothing is installed here, nor
run as root.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import arm64, network
from edgesan import faces, ort
from edgesan.capture.opencv import open_clip
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs, load_model

QEMU: Final = ("qemu-aarch64-static", "qemu-aarch64")
ALPHAS: Final = (0.0, 0.25, 1.0)
GUEST: Final = """
import sys
from pathlib import Path
import numpy as np
from edgesan.model import load
from edgesan.model.load import load_model
load.LIMIT.seconds = 600  # here a call takes long
given = np.load(sys.argv[2])
sanitizer = load_model(Path(sys.argv[1]))
painted = [sanitizer.run(given["chips"], given["noise"], float(alpha)) for alpha in given["alphas"]]
np.save(sys.argv[3], np.stack(painted))
"""


def qemu() -> str | None:
    """The emulator, if it is installed."""
    return next(filter(None, map(shutil.which, QEMU)), None)


def inputs() -> dict[str, NDArray[Any]]:
    """Four chips of the known answer, and the faces of four frames of the bundled clip."""
    chips, noise = known_inputs(12, 64)
    capture, detector, found = open_clip(arm64.TREE / "edgesan" / "capture" / "demo.mp4"), faces.Detector(320), []
    for _ in range(4):
        pixels = np.asarray(capture.read()[1], np.uint8)
        found += [faces.cut(pixels, faces.alignment(face.landmarks)) for face in detector(pixels)]
    chips = np.concatenate([chips[:4], found])
    return {"chips": chips, "noise": noise[: len(chips)], "alphas": np.array(ALPHAS, np.float32)}


def emulated(processor: str, given: Path, made: Path) -> NDArray[np.uint8]:
    """What the network paints there: uint8 [alphas, chips, 112, 112, 3].

    Raises:
        CalledProcessError: the reader refused the model there, or the emulator failed.
    """
    command = [*arm64.python(processor, qemu() or QEMU[0]), "-c", GUEST]
    subprocess.run([*command, str(DEMO_MODEL), str(given), str(made)], check=True)
    painted: NDArray[np.uint8] = np.load(made)
    return painted


def compare(folder: Path) -> dict[str, dict[str, float]]:
    """How far each processor's pictures are from this machine's, in levels of 255; and the float twin's."""
    given = inputs()
    np.savez(folder / "given.npz", allow_pickle=False, **given)
    sanitizer = load_model(DEMO_MODEL)
    here = np.stack([sanitizer.run(given["chips"], given["noise"], float(alpha)) for alpha in ALPHAS]).astype(int)
    twin = ort.session(network.unquantized(onnx.load(DEMO_MODEL)).SerializeToString(), 1)
    feed = {"face": given["chips"], "noise": given["noise"]}
    size = (len(given["chips"]), 1)
    exact = [twin.run(None, feed | {"alpha": np.full(size, alpha, np.float32)})[0] for alpha in ALPHAS]
    painted = {name: emulated(name, folder / "given.npz", folder / f"{name}.npy") for name in arm64.PROCESSORS}
    figures = {}
    for name, pictures in (painted | {"the float twin, here": np.stack(exact)}).items():
        away = np.abs(pictures.astype(int) - here)
        figures[name] = {
            "equal": float((away == 0).mean()),
            "mean": float(away.mean()),
            "p99": float(np.percentile(away, 99)),
            "most": int(away.max()),
        }
    return figures


def main() -> None:
    arm64.prepare({} if qemu() else {QEMU[0]: "qemu-user-static"})
    folder = arm64.CACHE / "painted"
    folder.mkdir(exist_ok=True)
    print("| against int8 here, levels of 255 | equal | mean | p99 | most |\n|---|---|---|---|---|")
    for name, f in compare(folder).items():
        print(f"| {name} | {f['equal']:.1%} | {f['mean']:.2f} | {f['p99']:g} | {f['most']} |")


if __name__ == "__main__":
    main()
