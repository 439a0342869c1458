"""The int8 network on the processors of a Pi 4 and a Pi 5, emulated: `python -m tests.model.arm` (`make arm`).

QEMU's user mode runs an arm64 Python of Debian, onnxruntime's arm64 wheel and this tree's own reader of models, which
checks the signature and the known answer. What the network then paints is compared with what it paints here. As a
measure stands beside it what the quantization itself costs: the float twin against int8, here.

Needs `apt install mmdebstrap qemu-user-static` and, once, Debian's and PyPI's servers; nothing is installed here, nor
run as root.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import network
from edgesan import faces, ort
from edgesan.capture.opencv import open_clip
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs, load_model

TREE: Final = Path(__file__).parent.parent.parent
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgesan"
ROOT: Final = CACHE / "arm64-bookworm"
READY: Final = ROOT / "ready"
QEMU: Final = ("qemu-aarch64-static", "qemu-aarch64")
PACKAGES: Final = "python3-minimal,libpython3.11-stdlib,libgomp1,libstdc++6"
WHEELS: Final = ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "cryptography", "tqdm")
ALPHAS: Final = (0.0, 0.25, 1.0)
# What the kernel says there, proc(5): onnxruntime chooses its kernels by it.
PROCESSORS: Final = {
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}
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


def build() -> None:
    """An arm64 Python with what edgesan needs, in the cache: packages are unpacked, none of their scripts runs."""
    shutil.rmtree(ROOT, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            "--architectures=arm64",
            f"--include={PACKAGES}",
            "bookworm",
            str(ROOT),
        ],
        check=True,
    )
    versions = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            "--no-compile",
            *(f"--platform=manylinux{tag}_aarch64" for tag in ("_2_34", "_2_28", "_2_27", "_2_17", "2014")),
            "--python-version=3.11",
            "--implementation=cp",
            f"--target={ROOT}/site",
            *versions,
        ],
        check=True,
    )
    READY.touch()


def inputs() -> dict[str, NDArray[Any]]:
    """Four chips of the known answer, and the faces of four frames of the bundled clip."""
    chips, noise = known_inputs(12, 64)
    capture, detector, found = open_clip(TREE / "edgesan" / "capture" / "demo.mp4"), faces.Detector(320), []
    for _ in range(4):
        pixels = np.asarray(capture.read()[1], np.uint8)
        found += [faces.cut(pixels, faces.alignment(face.landmarks)) for face in detector(pixels)]
    chips = np.concatenate([chips[:4], found])
    return {"chips": chips, "noise": noise[: len(chips)], "alphas": np.array(ALPHAS, np.float32)}


def python(processor: str, emulator: str, *options: str) -> list[str]:
    """The arm64 Python on this processor, as the beginning of a command. Options are QEMU's."""
    part, features = PROCESSORS[processor]
    # QEMU takes files of the root for those of the machine. Without these, onnxruntime would look at the real
    # processor.
    said = (
        f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
    )
    counted = {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")}
    for name, text in ({"proc/cpuinfo": said} | counted).items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text)
    environment = {
        "PYTHONPATH": f"{TREE}:{ROOT}/site",
        "PYTHONHASHSEED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    settings = [word for pair in environment.items() for word in ("-E", "=".join(pair))]
    return [emulator, "-L", str(ROOT), "-cpu", processor, *options, *settings, f"{ROOT}/usr/bin/python3.11"]


def emulated(processor: str, given: Path, made: Path) -> NDArray[np.uint8]:
    """What the network paints there: uint8 [alphas, chips, 112, 112, 3].

    Raises:
        CalledProcessError: the reader refused the model there, or the emulator failed.
    """
    command = [*python(processor, qemu() or QEMU[0]), "-c", GUEST]
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
    painted = {name: emulated(name, folder / "given.npz", folder / f"{name}.npy") for name in PROCESSORS}
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


def main() -> int:
    missing = [
        tool for tool, there in (("qemu-user-static", qemu()), ("mmdebstrap", shutil.which("mmdebstrap"))) if not there
    ]
    if missing:
        print(f"skipped: needs `apt install {' '.join(missing)}`")
        return 0
    if not READY.exists():
        build()
    folder = CACHE / "painted"
    folder.mkdir(exist_ok=True)
    print("| against int8 here, levels of 255 | equal | mean | p99 | most |\n|---|---|---|---|---|")
    for name, f in compare(folder).items():
        print(f"| {name} | {f['equal']:.1%} | {f['mean']:.2f} | {f['p99']:g} | {f['most']} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
