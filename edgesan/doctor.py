"""Each thing that could be wrong on this machine, with its cure: the answer of `edgesan doctor`.

One small function per thing; the roots of /proc, /sys and /dev are arguments, so that tests can lay out a machine.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from edgesan.capture import devices
from edgesan.config import Config, http_address
from edgesan.errors import EdgesanError

PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "aiohttp", "av", "prometheus-client", "tqdm")
# Bits of the Pi firmware's get_throttled (Raspberry Pi documentation, vcgencmd)
THROTTLED: Final = {0: "under-voltage now", 1: "clock capped now", 2: "throttled now", 3: "too hot now",
                    16: "under-voltage since boot", 17: "clock was capped", 18: "was throttled", 19: "was too hot"}  # fmt: skip
LEAST_CMA_KB: Final = 64 * 1024
LEAST_FREE_BYTES: Final = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class Machine:
    """Where to look."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    system_packages: Path = Path("/usr/lib/python3/dist-packages")


def examine(config: Config, machine: Machine | None = None) -> list[Finding]:
    """Look at everything that a run with this configuration needs."""
    m = machine or Machine()
    return [
        *packages(),
        model(config),
        *cameras(m),
        *picamera(m),
        *sinks(config),
        processor(m),
        *board(m),
        isolation(),
        swap(m),
        core_dumps(),
    ]


def packages() -> Iterator[Finding]:
    """The runtime's own dependencies."""
    yield Finding("python", "ok", platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "pip install edgesan, in the environment that runs it")


def model(config: Config) -> Finding:
    """Whether the model file may be run here; this runs its known answer."""
    from edgesan.model import load

    try:
        facts = load(config.model, config.threads).metadata
    except EdgesanError as error:
        return Finding("model", "fail", str(error), "name another file with --model")
    return Finding("model", "ok", f"{facts.name} v{facts.version}; its known answer is right on this machine")


def cameras(m: Machine) -> Iterator[Finding]:
    """Cameras that can be opened."""
    found = [device for device in devices.list_devices(m.dev) if device.kind != "demo"]
    for device in found:
        level: Literal["ok", "warn"] = "ok" if device.usable else "warn"
        yield Finding(f"camera {device.spec}", level, device.name if device.usable else device.note,
                      "" if device.usable else "see the note; --camera demo needs no camera")  # fmt: skip
    if not found:
        yield Finding("camera", "warn", "none found", "plug one in, or enable it; --camera demo needs none")


def is_pi(m: Machine) -> bool:
    """Whether this is a Raspberry Pi."""
    name = m.proc / "device-tree" / "model"
    return name.exists() and "Raspberry Pi" in name.read_text(errors="replace")


def picamera(m: Machine) -> Iterator[Finding]:
    """picamera2 and libcamera come from the system; a virtual environment must be told to see them."""
    if importlib.util.find_spec("picamera2") and importlib.util.find_spec("libcamera"):
        yield Finding("picamera2", "ok", "can be imported")
    elif (m.system_packages / "libcamera").is_dir():
        yield Finding("picamera2", "fail" if is_pi(m) else "warn", "libcamera is on the system, but this environment does not see it",
                      f"python3 -m venv --system-site-packages {sys.prefix}")  # fmt: skip
    elif is_pi(m):
        yield Finding("picamera2", "warn", "not installed: CSI cameras cannot be used", "sudo apt install python3-picamera2")
    heaps = m.dev / "dma_heap"
    locked = [heap for heap in sorted(heaps.glob("*")) if not os.access(heap, os.R_OK | os.W_OK)] if heaps.is_dir() else []
    if locked:
        yield Finding("dma_heap", "warn", f"no access to {', '.join(map(str, locked))}", "sudo usermod -aG video $USER, then log in again")


def sinks(config: Config) -> Iterator[Finding]:
    """Ports free, folders writable, room on the disk."""
    for out in config.out:
        if out.startswith("http://"):
            host, port = http_address(out)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    yield Finding(out, "fail", error.strerror or str(error),
                                  f"end the program that holds it (ss -ltnp), or use --out http://{host}:{port + 1}")  # fmt: skip
                else:
                    yield Finding(out, "ok", "the port is free")
        else:
            folder = Path(out).resolve().parent
            if not os.access(folder, os.W_OK):
                yield Finding(out, "fail", f"you may not write to {folder}", "name another folder")
            elif shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
                yield Finding(out, "warn", f"less than 1 GiB is free in {folder}", "make room: a full disk ends the run")
            else:
                yield Finding(out, "ok", "can be written")


def processor(m: Machine) -> Finding:
    """int8 dot products: present, or slower (and still right)."""
    text = (m.proc / "cpuinfo").read_text(errors="replace")
    flags = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    for flag in ("avx512_vnni", "avx_vnni", "asimddp"):
        if flag in flags:
            return Finding("processor", "ok", f"{os.cpu_count()} cores with int8 dot products ({flag})")
    return Finding("processor", "warn", f"{os.cpu_count()} cores without int8 dot products: right, but slower",
                   "a Raspberry Pi 5 has them; lower --fps or --size here")  # fmt: skip


def board(m: Machine) -> Iterator[Finding]:
    """What a Pi can suffer from: little contiguous memory, a weak supply, heat."""
    memory = {line.split(":")[0]: int(line.split()[1]) for line in (m.proc / "meminfo").read_text().splitlines() if ":" in line}
    if is_pi(m) and memory.get("CmaTotal", 0) < LEAST_CMA_KB:
        yield Finding("CMA", "warn", f"{memory.get('CmaTotal', 0) // 1024} MiB of contiguous memory",
                      "add cma=256M to /boot/firmware/cmdline.txt, or ask for a smaller --size")  # fmt: skip
    throttled = m.sys / "devices/platform/soc/soc:firmware/get_throttled"
    if throttled.exists():
        bits = int(throttled.read_text(), 16)
        said = [text for bit, text in THROTTLED.items() if bits >> bit & 1]
        yield Finding("power and heat", "warn" if said else "ok", ", ".join(said) or "no throttling since boot",
                      "use the board's own power supply, and cool it" if said else "")  # fmt: skip
    for zone in sorted((m.sys / "class/thermal").glob("thermal_zone*/temp")):
        degrees = int(zone.read_text()) / 1000
        yield Finding(zone.parent.name, "warn" if degrees > 80 else "ok", f"{degrees:.0f} °C", "cool it" if degrees > 80 else "")


def isolation() -> Finding:
    """Whether the kernel lets an ordinary user make a network namespace."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return Finding("isolation", "warn", "unknown: the program unshare is missing", "install util-linux")
    works = subprocess.run([unshare, "--user", "--net", "true"], capture_output=True, check=False).returncode == 0
    if works:
        return Finding("isolation", "ok", "this kernel lets an ordinary user cut a process off the network")
    return Finding("isolation", "warn", "this kernel does not let an ordinary user cut a process off the network",
                   "sysctl kernel.unprivileged_userns_clone=1, or run edgesan under systemd")  # fmt: skip


def swap(m: Machine) -> Finding:
    """Memory with raw pixels may be swapped to a disk."""
    used = [line.split()[0] for line in (m.proc / "swaps").read_text().splitlines()[1:] if "/zram" not in line]
    if not used:
        return Finding("swap", "ok", "none on a disk")
    return Finding("swap", "warn", f"raw pixels could be swapped to {', '.join(used)}", "sudo swapoff -a, or use zram")


def core_dumps() -> Finding:
    """A crash dump of the sanitize process would hold raw pixels."""
    if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0:
        return Finding("core dumps", "ok", "off")
    return Finding("core dumps", "ok", "allowed here; edgesan turns them off for itself")


def render(findings: list[Finding]) -> str:
    """For people."""
    marks = {"ok": "✓", "warn": "!", "fail": "✗"}
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{marks[f.level]} {f.name:<{width}}  {f.detail}")
        if f.cure and f.level != "ok":
            lines.append(f"  {'':<{width}}  cure: {f.cure}")
    return "\n".join(lines)


def to_json(findings: list[Finding]) -> str:
    """For programs."""
    return json.dumps([asdict(f) for f in findings], indent=2)
