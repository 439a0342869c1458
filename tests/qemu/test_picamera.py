"""The real picamera2, on the real libcamera, gives our capture backend its frames; the camera is a virtual one.

In a root of Debian trixie, since libcamera comes from a system and not from PyPI. Nothing here speaks of a sensor, an
ISP, raw or low-resolution streams, exposure, or time.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_config import debian
from tests.qemu.conftest import Row
from tests.qemu.guest import IGNORED

HERE = Path(__file__).parent
PACKAGES = (
    "ca-certificates,gcc,libc6-dev,libcamera-ipa,libcamera-tools,libcap-dev,python3,python3-dev,python3-libcamera,"
    "python3-numpy,python3-pil,python3-pip,python3-prctl"
)
FROM_PYPI = "picamera2==0.3.38 opencv-python-headless==5.0.0.93"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")  # this machine's may know a proxy's
MAKE = (
    "mmdebstrap",
    "--mode=root",
    "--variant=minbase",
    '--aptopt=APT::Install-Recommends "false"',
    f"--include={PACKAGES}",
    f"--customize-hook=copy-in {HERE}/dma_heap.c /usr/src",
    '--customize-hook=chroot "$1" gcc -O -Wall -Werror -shared -fPIC -o /usr/lib/dma_heap.so /usr/src/dma_heap.c',
    *([f"--customize-hook=copy-in {AUTHORITIES} /etc/ssl/certs"] if AUTHORITIES.exists() else []),
    f'--customize-hook=chroot "$1" pip install --quiet --break-system-packages {FROM_PYPI}',
    "trixie",
)


@pytest.mark.board
@pytest.mark.slow
@IGNORED
def test_our_backend_gets_real_frames_through_the_real_picamera2(
    needs: Callable[..., None], row: Row, tmp_path: Path
) -> None:
    needs("mmdebstrap", "unshare")
    key = hashlib.sha256("\0".join(MAKE).encode() + (HERE / "dma_heap.c").read_bytes()).hexdigest()[:12]
    tar = debian.cached(f"picamera-{key}.tar.zst", MAKE)
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "--extract", "--file", tar, "--directory", root], check=True)
    cameras = root / "usr/share/libcamera/pipeline/virtual"
    cameras.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "virtual.yaml", cameras)
    shutil.copytree(
        HERE.parent.parent / "edgesan", root / "opt/edgesan/edgesan", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(HERE / "picamera_probe.py", root / "opt/edgesan")
    # /proc is mounted in a namespace of its own, which ends with the command: no mount is left behind.
    run = subprocess.run(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            f"--root={root}",
            "--mount-proc",
            "env",
            "-i",
            "PATH=/usr/bin",
            "LD_PRELOAD=/usr/lib/dma_heap.so",
            "LIBCAMERA_LOG_LEVELS=*:ERROR",
            "python3",
            "/opt/edgesan/picamera_probe.py",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    log = Path("build/picamera.log")
    log.parent.mkdir(exist_ok=True)
    log.write_text(run.stdout + run.stderr, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr
    facts = [line for line in run.stdout.splitlines() if line.startswith("ok ")]
    assert len(facts) == 13, run.stdout
    row("picamera2 on libcamera's virtual pipeline", f"{len(facts)} facts hold; {facts[1].removeprefix('ok  start: ')}")
