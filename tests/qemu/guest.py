"""An emulated board: QEMU runs an image's own kernel on an Arm processor. It is slow, and shows no latency."""

import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edgesan.board.settings import Fat
from tests.support import free_port

# A connection that a booting board drops is nobody's to close; it may be collected during a later test.
IGNORED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PATIENCE_S = 2700.0  # for a boot on two cores that others use, too
TOKEN = "a-token-of-the-test"
MACHINES = {
    # Its clock counts instructions, one a nanosecond: time-outs do not depend on how busy the host is.
    "virt": (
        "-accel",
        "tcg,thread=single",
        "-icount",
        "shift=0",
        "-M",
        "virt",
        "-cpu",
        "cortex-a72",
        "-smp",
        "2",
        "-m",
        "2048",
        "-device",
        "virtio-blk-device,drive=disk",
        "-device",
        "virtio-net-device,netdev=net",
        "-device",
        "virtio-rng-device",
    ),
    # Its clock is this machine's: where it counts instructions, its USB controller (QEMU 7.2) stops it, and no packet
    # arrives. This address is a maker's, and so the interface is called eth0.
    "raspi3b": ("-accel", "tcg,thread=multi", "-M", "raspi3b", "-device", "usb-net,netdev=net,mac=00:e0:4c:00:00:01"),
}


class Guest:
    """One machine over its disk. Power fails at the end of the block, if not before.

    What it serves is at loopback ports of this machine; it itself reaches nothing outside (`restrict=on`).
    """

    def __init__(self, image: Path, key: Path, machine: str = "virt") -> None:
        self.image, self._key, self._machine = image, key, machine
        self._log = image.with_suffix(".console.txt")
        self.port = self._ssh_port = 0
        self._qemu: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0

    def __enter__(self) -> "Guest":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Switch it on. Kernel and command line come from the boot partition, where a Pi's firmware would find them."""
        fat = Fat(self.image)
        names = fat._tool("mdir", "-b", "::").decode().split()
        for prefix in ("vmlinuz", "initrd.img", "bcm2837-rpi-3-b.dtb"):
            name = max(name.removeprefix("::/") for name in names if name.startswith(f"::/{prefix}"))
            self._part(prefix).write_bytes(fat.read(name))
        words = re.sub(r"console=\S+", "", fat.read("cmdline.txt").decode()).split()
        # vivid: a camera of the kernel's own. Interfaces keep the names that they have on a Pi.
        words += ["net.ifnames=0", "modules_load=vivid", "vivid.n_devs=1", "vivid.node_types=0x1"]
        self.port, self._ssh_port = free_port(), free_port()
        forward = f"hostfwd=tcp:127.0.0.1:{self._ssh_port}-:22,hostfwd=tcp:127.0.0.1:{self.port}-:8080"
        drive = "sd" if self._machine == "raspi3b" else "none,id=disk"
        command = [
            "qemu-system-aarch64",
            *MACHINES[self._machine],
            "-kernel",
            str(self._part("vmlinuz")),
            "-initrd",
            str(self._part("initrd.img")),
            "-append",
            " ".join([*words, "console=ttyAMA0,115200"]),
            "-drive",
            f"if={drive},file={self.image},format=raw",
            "-netdev",
            f"user,id=net,restrict=on,{forward}",
            "-nographic",
            "-no-reboot",
        ]
        if self._machine == "raspi3b":
            command += ["-dtb", str(self._part("bcm2837-rpi-3-b.dtb"))]
        with self._log.open("ab") as log:
            self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started_s = time.monotonic()

    def _part(self, name: str) -> Path:
        return self.image.with_name(f"{self.image.stem}-{name}")

    def kill(self) -> None:
        """The plug is pulled."""
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.send_signal(signal.SIGKILL)
            self._qemu.wait()

    def power_off(self, timeout_s: float = 900) -> None:
        self.run("sudo systemctl poweroff", check=False)
        assert self._qemu is not None
        self._qemu.wait(timeout_s)

    def console(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def run(self, command: str, *, check: bool = True, timeout_s: float = 900, stdin: bytes | None = None) -> str:
        """What a command says on the board, both outputs together.

        Raises:
            CalledProcessError: its exit code is not 0, if `check`.
        """
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=240",
            "BatchMode=yes",
            "ControlMaster=auto",
            f"ControlPath=/tmp/edgesan-{os.getpid()}-{self._ssh_port}",
            "ControlPersist=60",
        ]
        done = subprocess.run(
            [
                "ssh",
                "-i",
                str(self._key),
                "-p",
                str(self._ssh_port),
                *(f"-o{option}" for option in options),
                "pi@127.0.0.1",
                f"{{ {command} ; }} 2>&1",
            ],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if check and done.returncode:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{said}")
        return said.strip()

    def python(self, program: str, *, as_root: bool = False, timeout_s: float = 900) -> str:
        """What a Python program says on the board."""
        return self.run(f"{'sudo ' if as_root else ''}python3 -", stdin=program.encode(), timeout_s=timeout_s)

    def wait_for_login(self, timeout_s: float = PATIENCE_S) -> float:
        """Seconds from power on to the first command over ssh."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self.alive()
            try:
                if self.run("echo here", check=False) == "here":
                    return time.monotonic() - self.started_s
            except subprocess.TimeoutExpired:
                continue
            time.sleep(2)
        raise AssertionError(f"no login within {timeout_s:g} s:\n{self.console()[-4000:]}")

    def get(self, path: str, timeout_s: float = 300) -> bytes:
        """A page of the board, asked for from this side with the token."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection, and would be found by whatever test runs when it is collected
            raise

    def wait_for_frame(self, timeout_s: float = PATIENCE_S) -> tuple[bytes, float]:
        """The first picture that this side gets, as JPEG, and the seconds from power on."""
        last: OSError | None = None
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self.alive()
            try:
                return self.get("/snapshot.jpg"), time.monotonic() - self.started_s
            except OSError as error:  # not up yet, or 503: no frame yet
                last = error
            time.sleep(1)
        raise AssertionError(f"no frame within {timeout_s:g} s ({last}):\n{self.console()[-4000:]}")

    def alive(self) -> None:
        assert self._qemu is not None
        assert self._qemu.poll() is None, f"QEMU ended:\n{self.console()[-4000:]}"
