"""What could be wrong on this machine, each with its cure: the answer of `edgesan doctor`.

Each check is one small function. What it reads lies under `root`, so that a test can lay out a machine in a folder.
What this machine does not have (such as a Pi's firmware) gives no finding.
"""

import errno
import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from edgesan import standing, v4l2
from edgesan.config import ANY, Config, http_address
from edgesan.errors import CameraError, ConfigError, ModelError, RollbackError, SignatureError, SinkError
from edgesan.fetch.address import parts_of, port_of, resolve
from edgesan.isolation import IsolationClaim, disk_swaps
from edgesan.model import rollback
from edgesan.outlets import rtsp_server, virtualcam
from edgesan.targets import Target
from edgesan.transmit.tls import tls_context

# Distribution: module. They are imported, as a wheel that is installed may still not load here.
PACKAGES: Final = {
    "numpy": "numpy",
    "opencv-python-headless": "cv2",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "cryptography": "cryptography",
    "aiohttp": "aiohttp",
    "av": "av",
    "prometheus-client": "prometheus_client",
    "segno": "segno",
    "shtab": "shtab",
    "tqdm": "tqdm",
}
FETCH_ADDRESS: Final = "run/systemd/generator/edgesan-fetch@.service.d/camera.conf"
LEAST_CMA_KB: Final = 64 * 1024
LEAST_CMA_FREE_KB: Final = 16 * 1024
LEAST_DISK_BYTES: Final = 2**30
CONNECT_S: Final = 2.0  # for a network camera to take a connection
MOST_CELSIUS: Final = 80.0  # a Pi slows down from here
# Bits of the Pi firmware's get_throttled; the same, shifted by 16, for "at some time since the start".
THROTTLED: Final = ("under-voltage", "clock capped", "throttled", "too hot")
# File systems of cards. Others, such as overlay, may be read-only on purpose.
CARDS: Final = frozenset({"ext4", "ext3", "btrfs", "f2fs", "xfs"})
# Overlays of Raspberry Pi's own cameras, and of some others.
PI_SENSORS: Final = frozenset({"imx219", "imx296", "imx477", "imx500", "imx708", "ov5647", "ov9281"})
SENSORS: Final = PI_SENSORS | {"imx290", "imx378", "imx519", "ov64a40"}
SLOW_CLOCKS: Final = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies"})
VENV_CURE: Final = (
    "python3 -m venv --system-site-packages .venv, with the system's own python3; then install edgesan in it"
)

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check. `fail`: a run cannot work. `warn`: it works, but slower or less safely."""

    name: str
    level: Level
    detail: str
    cure: str = ""


def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Check everything that a run with this configuration needs. What is wrong is a finding, never an error."""
    modules = list(packages(PACKAGES))
    missing = {PACKAGES[finding.name] for finding in modules if finding.level == "fail"}
    found: list[Finding | None] = [python(root), *modules]
    if not missing & {"numpy", "cv2", "onnx", "onnxruntime", "cryptography"}:
        signed = signature(config)
        found += [signed] if signed and signed.level == "fail" else [signed, model(config)]
    if not missing & {"numpy", "cv2"}:
        found += [*cameras(config, root), ribbon(config, root), pi_libraries(root), dma_heaps(root)]
    found += [
        network_camera(config),
        fetching(config, root),
        privacy(config),
        contiguous_memory(root),
        power(root),
        temperature(root),
    ]
    found += [] if "onnxruntime" in missing else [dot_products(root)]
    found += [*sinks(config), swap(root), core_dumps(root), *isolation(config), clock(root), time_of_day(root)]
    found += [card(root), *radios(root)]
    return [finding for finding in found if finding is not None]


def python(root: Path) -> Finding:
    """Check the interpreter, and on a board whether the installed wheels are for it."""
    here = ".".join(map(str, sys.version_info[:3]))
    if other := _other_tags((root / "opt/edgesan/lib/numpy/_core").glob("*.cpython-*.so")):
        detail = f"{here}, and what lies in /opt/edgesan/lib is for {other}"
        cure = (
            "the system's python3 has changed: build a payload for it (python -m firmware_config.build) and install it"
        )
        return Finding("python", "fail", detail, cure)
    return Finding("python", "ok", here)


def _other_tags(modules: Iterable[Path]) -> str:
    """Return the versions of Python that these compiled modules are for; empty if one of them fits this Python."""
    mine = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    tags = {path.name.split(".")[1] for path in modules}
    fits = any(tag.startswith(f"{mine}-") or tag == mine for tag in tags)
    return "" if fits else ", ".join(sorted(tags))


def packages(wanted: dict[str, str], cure: str = "") -> Iterator[Finding]:
    """Check that each distribution's module can be imported; without a cure of its own it comes from PyPI."""
    for distribution, module in wanted.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            cured = cure or f"pip install {distribution}, in the environment of edgesan"
            yield Finding(distribution, "fail", str(error), cured)
            continue
        # Packages that came by apt may lack pip's records.
        yield Finding(distribution, "ok", str(getattr(loaded, "__version__", None) or _recorded_version(distribution)))


def _recorded_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def signature(config: Config) -> Finding | None:
    """Check who signed the model. None where it cannot be read at all, which `model` reports."""
    from edgesan.model import signing  # here, as cryptography may be what is missing
    from edgesan.model.load import read

    try:
        trusted = [*signing.bundled(), *signing.configured(config.trusted_keys)]
        signer = signing.verify(config.model, read(config.model), trusted, allow_unsigned=config.allow_unsigned)
    except (SignatureError, ConfigError) as error:
        cure = "get the model and its .sig again; or sign your own (edgesan sign), and put its key into trusted_keys"
        return Finding("signature", "fail", str(error), cure)
    except ModelError:
        return None
    if signer is None or not signer.trusted:
        detail = f"the model is {signer or 'unsigned'}; it runs because of allow_unsigned"
        cure = "edgesan sign MODEL --key KEY, its key into trusted_keys, and remove allow_unsigned"
        return Finding("signature", "warn", detail, cure)
    if config.allow_unsigned:
        detail = f"{signer}, but an unsigned model would run, too (allow_unsigned)"
        return Finding("signature", "warn", detail, "remove allow_unsigned: this model does not need it")
    return Finding("signature", "ok", str(signer))


def model(config: Config) -> Finding:
    """Check that the model may run here: its known answer, and that it is not older than the versions that ran."""
    from edgesan.model.load import load_model  # here, as onnxruntime may be what is missing

    try:
        loaded = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        facts = loaded.metadata
    except ModelError as error:
        return Finding("model", "fail", str(error), "name a sanitizer with --model, or install edgesan again")
    low, high = facts.alpha_range
    if config.alpha is not None and not low <= config.alpha <= high:
        detail = f"{facts.name} was made for alpha from {low:g} to {high:g}, not {config.alpha:g}"
        return Finding("model", "fail", detail, "choose another alpha or model")
    if config.allow_rollback:
        detail = f"{facts.name} v{facts.version}, but an older version would run, too (allow_rollback)"
        return Finding("model", "warn", detail, "remove allow_rollback, unless no folder can be written here")
    try:
        folder = rollback.state_folder(config.state_dir, os.environ)
        rises = rollback.check(folder, facts.name, facts.version)
    except RollbackError as error:
        return Finding(
            "model", "fail", str(error), "install the latest version of the model, or follow the advice above"
        )
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if rises and loaded.signer and loaded.signer.trusted and not os.access(place, os.W_OK | os.X_OK):
        detail = f"{folder} cannot be written, so the version that runs cannot be recorded"
        return Finding("model", "fail", detail, "name a folder that can be written, with --state-dir")
    return Finding("model", "ok", f"{facts.name} v{facts.version}; it gives its known answer on this machine")


def cameras(config: Config, root: Path) -> Iterator[Finding]:
    """List the cameras that are here, and check that the configured one is among them."""
    from edgesan.capture import devices, picamera  # here, as OpenCV may be what is missing

    found = [device for device in devices.list_devices(root / "dev") if device.kind != "demo"]
    for device in found:
        if device.usable:
            yield Finding(f"camera {device.spec}", "ok", f"{device.name} ({device.driver})")
        else:
            yield Finding(f"camera {device.spec}", "warn", device.note, "choose another camera, or follow the note")
    spec, is_url = config.camera, "://" in config.camera
    if spec.isdecimal() or spec.startswith(("/dev/", "picamera")):
        usable = [device.spec for device in found if device.usable]
        wanted = {"picamera": "picamera:0"}.get(spec, str(root / f"dev/video{spec}") if spec.isdecimal() else spec)
        # A name under /dev/v4l/by-id is a link to the node.
        if wanted not in usable and str(Path(wanted).resolve()) not in usable:
            detail = f"--camera {spec} is not here, or not usable; usable cameras: {', '.join(usable) or 'none'}"
            no_library = spec.startswith("picamera") and importlib.util.find_spec("picamera2") is None
            cure = picamera.CURE if no_library else "plug it in, or choose another"
            yield Finding("camera", "fail", detail, f"{cure}; --camera demo needs none")
    elif spec != "demo" and not is_url and not Path(spec).is_file():
        yield Finding("camera", "fail", f"there is no file {spec}", "name another; --camera demo needs none")


def network_camera(config: Config) -> Finding | None:
    """Check that a network camera has an address, and takes a connection there."""
    if not config.camera_is_url:
        return None
    parts = parts_of(config.camera)
    why = f"there is no address of {parts.hostname}"
    cure = "is the name right, and has this machine a network? Or write the camera's address as a number"
    for address in resolve(parts):
        try:
            with socket.create_connection((address, port_of(parts)), CONNECT_S):
                return Finding("camera", "ok", f"{config.camera_name} takes connections, at {address}")
        except OSError as error:
            said = "no answer" if isinstance(error, TimeoutError) else error.strerror
            why = f"cannot connect to {address}, port {port_of(parts)}: {said}"
            cure = "is it switched on and in this network, and is its port the one of its manual?"
    return Finding("camera", "fail", why, cure)


def ribbon(config: Config, root: Path) -> Finding | None:
    """Check the camera at a Pi's ribbon: the firmware finds it by config.txt, before Linux starts."""
    if not is_pi(root) or not config.camera.startswith("picamera"):
        return None
    if any((root / "dev").glob("v4l-subdev*")):
        return Finding("ribbon", "ok", "a sensor has answered")
    place = next((p for p in (root / "boot/firmware/config.txt", root / "boot/config.txt") if p.exists()), None)
    lines = [line.split("#")[0].strip() for line in (_text(place) or "").splitlines()] if place else []
    if "start_x=1" in lines:
        cure = f"remove start_x=1 from {place}, add camera_auto_detect=1 below [all], and reboot"
        return Finding(
            "ribbon", "fail", "the firmware keeps the camera for itself (start_x=1, the old camera stack)", cure
        )
    overlays = [line for line in lines if line.startswith("dtoverlay=") and line[10:].split(",")[0] in SENSORS]
    if "camera_auto_detect=1" not in lines and not overlays:
        cure = f"add camera_auto_detect=1 below [all] in {place or '/boot/firmware/config.txt'}, and reboot"
        return Finding("ribbon", "fail", "config.txt does not tell the firmware to look for a camera", cure)
    cure = (
        "disconnect the power, push the ribbon in straight at both ends, its contacts facing those of the connector (a"
        " Pi 5 and a Zero take the narrow ribbon), and close both latches"
    )
    if overlays:
        said = f"{', '.join(overlays)} is in config.txt, but no such sensor answers"
        return Finding("ribbon", "fail", said, f"{cure}; or it is another sensor: camera_auto_detect=1 finds it")
    cure += f"; a camera that is not Raspberry Pi's own needs its line, such as dtoverlay=imx290, in {place}"
    return Finding("ribbon", "fail", "the firmware looked for a camera, but none answers", cure)


def fetching(config: Config, root: Path) -> Finding | None:
    """Check that a board's fetch unit can be asked for a network camera, and that systemd lets it reach that camera."""
    if not config.camera_is_url or not (root / "usr/lib/systemd/system/edgesan-fetch.socket").exists():
        return None
    if not os.path.lexists(root / str(config.fetch_socket).lstrip("/")):
        cure = "sudo systemctl enable --now edgesan-fetch.socket"
        return Finding("fetch unit", "fail", f"nothing listens at {config.fetch_socket}", cure)
    allowed = re.findall(r"^IPAddressAllow=(\S+)$", _text(root / FETCH_ADDRESS) or "", re.MULTILINE)
    host = urlsplit(config.camera).hostname
    if allowed and allowed != [host]:
        detail = f"systemd lets it reach {', '.join(allowed)}, and the camera is at {host}"
        return Finding("fetch unit", "fail", detail, "sudo systemctl daemon-reload: it reads edgesan.toml again")
    return Finding("fetch unit", "ok", f"it may reach {', '.join(allowed) or 'the local network'}")


def privacy(config: Config) -> Finding | None:
    """Check whether the owner has the camera closed. None where there is no folder for it, which `model` reports."""
    try:
        on = standing.read(rollback.state_folder(config.state_dir, os.environ)).privacy
    except RollbackError:
        return None
    except ConfigError as error:
        return Finding("privacy", "fail", str(error), "follow the advice above: no run begins before")
    return Finding("privacy", "warn", "on: no camera is opened", standing.OFF) if on else None


def _text(path: Path) -> str | None:
    """Read a small file of /proc or /sys; None where there is none, or where this board's driver does not answer."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def is_pi(root: Path) -> bool:
    """Return whether this is a Raspberry Pi, by its device tree."""
    return "Raspberry Pi" in (_text(root / "proc/device-tree/model") or "")


def pi_libraries(root: Path) -> Finding | None:
    """Check picamera2 and libcamera: they come from the system, and a virtual environment must be made to see them."""
    bad: Level = "fail" if is_pi(root) else "warn"
    if importlib.util.find_spec("picamera2") is not None:
        from edgesan.capture import picamera

        try:
            picamera.library()
        except CameraError as error:
            cure = picamera.NUMPY_CURE if isinstance(error.__cause__, ValueError) else VENV_CURE
            return Finding("picamera2", bad, str(error), cure)
        return Finding("picamera2", "ok", "can be imported")
    system = root / "usr/lib/python3/dist-packages"
    installed = [name for name in ("libcamera", "picamera2") if (system / name).is_dir()]
    if not installed:
        cure = "sudo apt install python3-picamera2; USB cameras do not need it"
        return Finding("picamera2", "warn", "not installed: no CSI camera", cure) if is_pi(root) else None
    if other := _other_tags((system / "libcamera").glob("_libcamera.cpython-*.so")):
        here = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        detail = f"the system's libcamera is built for {other}; this Python is {here}"
        return Finding("picamera2", bad, detail, VENV_CURE)
    detail = f"{' and '.join(installed)}: on the system, but this environment does not see it"
    return Finding("picamera2", bad, detail, VENV_CURE if len(installed) == 2 else "sudo apt install python3-picamera2")


def dma_heaps(root: Path) -> Finding | None:
    """Check the permission for /dev/dma_heap, where libcamera gets its buffers."""
    heaps = sorted((root / "dev/dma_heap").glob("*"))
    locked = [heap for heap in heaps if not os.access(heap, os.R_OK | os.W_OK)]
    if not locked:
        return Finding("dma_heap", "ok", ", ".join(heap.name for heap in heaps)) if heaps else None
    detail = f"no permission for {', '.join(map(str, locked))}: no CSI camera"
    return Finding("dma_heap", "warn", detail, v4l2.permission_cure(locked[0]))


def contiguous_memory(root: Path) -> Finding | None:
    """Check CMA, where a Pi's camera buffers come from: it is small, and can be used up."""
    pairs = (line.partition(":") for line in (_text(root / "proc/meminfo") or "").splitlines())
    kilobytes = {name: int(value.split()[0]) for name, _, value in pairs if name in {"CmaTotal", "CmaFree"}}
    if not is_pi(root) or len(kilobytes) < 2:
        return None
    total, free = kilobytes["CmaTotal"], kilobytes["CmaFree"]
    detail = f"{total // 1024} MiB of contiguous memory, {free // 1024} MiB free"
    if total < LEAST_CMA_KB:
        return Finding("CMA", "warn", detail, "dtoverlay=vc4-kms-v3d,cma-256 in /boot/firmware/config.txt, then reboot")
    if free < LEAST_CMA_FREE_KB:
        return Finding("CMA", "warn", detail, "end other camera programs, ask for a smaller --size, or reboot")
    return Finding("CMA", "ok", detail)


def power(root: Path) -> Finding | None:
    """Check what a Pi's firmware reports of its power supply and its heat."""
    text = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is None:  # later kernels: the firmware's own program knows, throttled=0x50005
        said = _output_of(root / "usr/bin/vcgencmd", "get_throttled") or ""
        text = said.strip().removeprefix("throttled=")
    if not re.fullmatch("(0x)?[0-9a-f]+", text):
        return None
    bits = int(text, 16)
    now = [f"{what} now" for bit, what in enumerate(THROTTLED) if bits >> bit & 1]
    once = [f"{what} since the start" for bit, what in enumerate(THROTTLED) if bits >> (bit + 16) & 1]
    if not now and not once:
        return Finding("power", "ok", "never throttled since the start")
    return Finding("power", "warn", ", ".join(now + once), "use the board's own power supply; give it a cooler")


def _output_of(program: Path, *arguments: str) -> str | None:
    """Return the output of a program of the board; None where it is not there, or fails."""
    try:
        done = subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def temperature(root: Path) -> Finding | None:
    """Check the hottest sensor."""
    texts = (_text(zone) for zone in (root / "sys/class/thermal").glob("thermal_zone*/temp"))
    degrees = [int(text) / 1000 for text in texts if text]
    if not degrees:
        return None
    hot = max(degrees) >= MOST_CELSIUS
    return Finding("temperature", "warn" if hot else "ok", f"{max(degrees):.0f} °C", "give it a cooler" if hot else "")


def dot_products(root: Path) -> Finding | None:
    """Check the instructions for int8: without them the network is slower, with the same result."""
    from edgesan.ort import cpu_flags  # here, as onnxruntime may be what is missing

    flags = cpu_flags(root) if (root / "proc/cpuinfo").exists() else frozenset()
    if not flags:
        return None
    if has := flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        return Finding("int8", "ok", f"the processor has dot products ({', '.join(sorted(has))})")
    cure = "lower --fps, --size or --detect-size if it is too slow; a Pi 5 has them"
    return Finding("int8", "warn", "the processor has no dot products: slower, but the same result", cure)


def sinks(config: Config) -> Iterator[Finding]:
    """Check that ports are free, and that folders have room."""
    yield from map(port, config.servers)
    for target in config.targets:
        yield from output(target)
    yield from map(room, [*config.files, *(target.folder for target in config.targets if target.folder)])
    if config.tls_cert is not None:
        yield certificate(config.tls_cert, config.tls_key)


def output(target: Target) -> Iterator[Finding]:
    """Check what an output needs beside edgesan: a package, or GStreamer of the system and a port."""
    if target.kind.needs:
        yield from packages({target.kind.needs: target.kind.needs}, target.kind.extra)
    if target.device is not None:
        why, cure = virtualcam.unusable(target.device)
        yield Finding(target.name, "fail" if why else "ok", why or "it is a virtual camera", cure)
    if target.kind.module == "rtsp_server":
        if lacking := rtsp_server.missing(tls=target.scheme == "serve+rtsps"):
            detail = f"GStreamer's RTSP server, or a part of it, is not installed for {rtsp_server.PYTHON}"
            yield Finding("gstreamer", "fail", detail, f"sudo apt install {lacking}")
        else:
            yield Finding("gstreamer", "ok", f"its RTSP server is there, for {rtsp_server.PYTHON}")
        yield _bound(target.name, target.host, target.port, _is_rtsp)


def port(out: str) -> Finding:
    """Check a port by binding it, as the server will."""
    return _bound(out, *http_address(out), _is_alive)


def _bound(out: str, host: str, number: int, is_ours: Callable[[str, int], bool]) -> Finding:
    """Bind a port, or return whether what holds it is a server of ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and is_ours("127.0.0.1" if host in ANY else host, number):
            return Finding(out, "ok", "edgesan serves there already")
        cure = f"end what holds it (ss -ltnp 'sport = :{number}' names it), or choose another with --out"
        return Finding(out, "fail", f"cannot be served: {error.strerror}", cure)
    return Finding(out, "ok", "the port is free")


def _is_rtsp(host: str, number: int) -> bool:
    """Return whether GStreamer's RTSP server answers there."""
    try:
        with socket.create_connection((host, number), timeout=2) as connection:
            connection.sendall(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
            return b"GStreamer RTSP server" in connection.recv(1024)
    except OSError:
        return False


def _is_alive(host: str, number: int) -> bool:
    """Return whether an edgesan answers there (by http; https is not tried)."""
    connection = http.client.HTTPConnection(host, number, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().read(100).startswith((b"alive\n", b"present the token"))
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def certificate(file: Path, key: Path | None) -> Finding:
    """Check the files for https by loading them, as the server will."""
    try:
        tls_context(file, key)
    except SinkError as error:
        return Finding("https", "fail", str(error), "make a pair with openssl req -x509 (see the documentation)")
    return Finding("https", "ok", f"{file} and its key belong together")


def room(file: Path) -> Finding:
    """Check that the folder can be written to, and has room."""
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(str(file), "fail", f"{folder} is missing, or you may not write to it", "name another folder")
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < LEAST_DISK_BYTES:
        return Finding(str(file), "warn", detail, "make room: a full disk ends the recording")
    return Finding(str(file), "ok", detail)


def swap(root: Path) -> Finding | None:
    """Check that memory is not swapped to a disk: it holds raw pixels."""
    disks = disk_swaps(root)
    if not disks:
        return Finding("swap", "ok", "none on a disk")
    cure = "sudo swapoff -a (for good: remove it from /etc/fstab), or MemorySwapMax=0 in the unit"
    return Finding("swap", "warn", f"on, to {', '.join(disks)}: raw pixels could reach the disk", cure)


def core_dumps(root: Path) -> Finding | None:
    """Check that a crash leaves no raw pixels behind. A pipe gets the dump even where the size limit is 0: core(5)."""
    pattern = _text(root / "proc/sys/kernel/core_pattern")
    if not pattern:
        return None
    if pattern.startswith("|"):
        program = Path(pattern[1:].split()[0]).name
        cure = "sudo sysctl -w kernel.core_pattern=core (for good: in /etc/sysctl.d)"
        return Finding("core dumps", "warn", f"a crash hands the memory, raw pixels in it, to {program}", cure)
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        return Finding("core dumps", "warn", f"a crash writes raw pixels to {pattern}", "ulimit -c 0, or LimitCORE=0")
    return Finding("core dumps", "ok", "off")


def isolation(config: Config) -> Iterator[Finding]:
    """Check what each process can give up here, by trying it in a process of its own."""
    bad: Level = "fail" if config.require_isolation else "warn"
    for process in ("sanitize", "transmit", *(["fetch"] if config.camera_is_url else [])):
        command = [sys.executable, "-P", "-m", "edgesan.isolation", process]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            detail = done.stderr.strip().rpartition("\n")[2]
            yield Finding(f"{process} process", bad, detail, "install edgesan again, into this environment")
            continue
        claims = [IsolationClaim(**claim) for claim in json.loads(done.stdout)]
        missing = [claim for claim in claims if not claim.holds]
        for claim in missing:
            yield Finding(f"{process}: {claim.name}", bad, claim.detail, claim.cure)
        if held := [claim.name for claim in claims if claim.holds]:
            yield Finding(f"{process} process", "ok", ", ".join(held))


def clock(root: Path) -> Finding | None:
    """Check that reading the clock is cheap, as every frame is stamped many times."""
    source = _text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source is None:
        return None
    if source in SLOW_CLOCKS:
        return Finding("clock", "warn", f"{source} is slow to read", "see clocksource= in the kernel's parameters")
    return Finding("clock", "ok", source)


def time_of_day(root: Path) -> Finding | None:
    """Check that a time server has set the clock: a Pi's does not run without power."""
    if not (root / "run/systemd/timesync").is_dir():
        return None
    if (root / "run/systemd/timesync/synchronized").exists():
        return Finding("time", "ok", "set by a time server")
    detail = "not set since the start, as no time server has answered: times in the log are wrong"
    cure = "let the board reach a time server (timedatectl names it), or set the time by hand"
    return Finding("time", "warn", detail, cure)


def card(root: Path) -> Finding | None:
    """Check that the card can be written: a worn one is read-only."""
    mounts = [line.split() for line in (_text(root / "proc/mounts") or "").splitlines()]
    last = next((each for each in reversed(mounts) if each[1:2] == ["/"]), None)
    if last is None or len(last) < 4 or last[2] not in CARDS:
        return None
    if "ro" not in last[3].split(","):
        return Finding("disk", "ok", f"{last[0]} can be written")
    detail = f"{last[0]} can only be read: no version can be recorded, and no model installed"
    cure = "sudo mount -o remount,rw /; if that fails (dmesg says why), the card is worn: write a new one"
    return Finding("disk", "fail", detail, cure)


def radios(root: Path) -> Iterator[Finding]:
    """Check that no radio sleeps between packets, which makes a live picture stutter."""
    for interface in sorted(path.parent.name for path in (root / "sys/class/net").glob("*/phy80211")):
        program = next((p for p in (root / "usr/sbin/iw", root / "sbin/iw", root / "usr/bin/iw") if p.exists()), None)
        said = _output_of(program, "dev", interface, "get", "power_save") if program else None
        if said is None:
            continue
        if "on" in said.lower().replace(":", " ").split():
            cure = (
                f"sudo iw dev {interface} set power_save off; for good: wifi.powersave=2 (firmware_config has the file)"
            )
            yield Finding(interface, "warn", "the radio sleeps between packets: the picture will stutter", cure)
        else:
            yield Finding(interface, "ok", "the radio does not sleep")


def render(findings: list[Finding]) -> str:
    """Return the findings as text: a line for each, its cure below it, and how many need attention."""
    marks: dict[Level, str] = {"ok": "✓", "warn": "!", "fail": "✗"}
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]} {finding.name:<{width}}  {finding.detail}")
        if finding.cure:
            lines.append(f"  {'':<{width}}  cure: {finding.cure}")
    levels = [finding.level for finding in findings]
    return "\n".join([*lines, f"failures: {levels.count('fail')}, warnings: {levels.count('warn')}"])


def to_json(findings: list[Finding]) -> str:
    """Return the findings as JSON."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
