"""An arm64 Python with edgesan's wheels, run here by QEMU's user mode: processors of a Pi 4 and a Pi 5, EMULATED.

Needs `apt install mmdebstrap` and, once, Debian's and PyPI's servers; nothing is installed here, nor run as root.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).parent.parent
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgesan"
ROOT: Final = CACHE / "arm64-bookworm"
SITE: Final = ROOT / "site"
READY: Final = ROOT / "ready"
PACKAGES: Final = "python3-minimal,libpython3.11-stdlib,libgomp1,libstdc++6"
WHEELS: Final = ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "cryptography", "tqdm")
# What the kernel says there, proc(5): onnxruntime chooses its kernels by it.
PROCESSORS: Final = {
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}


def prepare(tools: Mapping[str, str]) -> None:
    """Put an arm64 Python with what edgesan needs into the cache, unless it is there.

    Debian's packages are unpacked, and none of their scripts runs.

    Args:
        tools: programs that the caller needs beside it, each with its Debian package.

    Raises:
        SystemExit: one of them, or mmdebstrap, is not installed.
        CalledProcessError: a package or a wheel cannot be had.
    """
    needed = {"mmdebstrap": "mmdebstrap", **tools}
    packages = [package for tool, package in needed.items() if not shutil.which(tool)]
    if packages:
        raise SystemExit(f"error: this needs `apt install {' '.join(packages)}`")
    if READY.exists():
        return
    shutil.rmtree(ROOT, ignore_errors=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    strap = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}"]
    subprocess.run([*strap, "bookworm", str(ROOT)], check=True)
    versions = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    tags = ("_2_34", "_2_28", "_2_27", "_2_17", "2014")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    there = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    there += [f"--platform=manylinux{tag}_aarch64" for tag in tags]
    subprocess.run([*pip, *there, f"--target={SITE}", *versions], check=True)
    READY.touch()


def python(processor: str, emulator: str, *options: str) -> list[str]:
    """Return the arm64 Python on one of PROCESSORS, as the beginning of a command. Options are QEMU's."""
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
        "PYTHONPATH": f"{TREE}:{SITE}",
        "PYTHONHASHSEED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    settings = [word for pair in environment.items() for word in ("-E", "=".join(pair))]
    return [emulator, "-L", str(ROOT), "-cpu", processor, *options, *settings, f"{ROOT}/usr/bin/python3.11"]
