"""The cameras of this machine, as `edgesan devices` lists them."""

import fcntl
import grp
import importlib.util
import os
import pwd
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgesan.capture import picamera
from edgesan.errors import CameraError

# linux/videodev2.h
VIDIOC_QUERYCAP: Final = 0x80685600
CAPABILITY: Final = struct.Struct("=16s32s32sIII12x")  # driver, card, bus, version, capabilities, device_caps
CAP_CAPTURE: Final = 0x00000001 | 0x00001000  # VIDEO_CAPTURE, VIDEO_CAPTURE_MPLANE
CAP_DEVICE_CAPS: Final = 0x80000000
# The raw sensors of a Pi's camera pipeline: they capture, but only libcamera can make a picture of it.
PI_DRIVERS: Final = frozenset({"unicam", "bcm2835-isp", "rp1-cfe", "pispbe"})


@dataclass(frozen=True)
class CameraDevice:
    """One camera in the list; `spec` is what --camera takes."""

    spec: str
    name: str
    driver: str
    kind: Literal["v4l2", "picamera", "demo"]
    usable: bool
    note: str = ""


def list_devices(dev: Path = Path("/dev")) -> list[CameraDevice]:
    """List everything that can capture, usable or not. The demo comes last, and is always usable."""
    nodes = sorted(dev.glob("video[0-9]*"), key=lambda node: int(re.sub(r"\D", "", node.name)))
    found = [device for node in nodes if (device := query(node)) is not None]
    demo = CameraDevice("demo", "the bundled clip, in a loop", "edgesan", "demo", usable=True)
    return [*found, *csi_cameras(), demo]


def query(node: Path) -> CameraDevice | None:
    """Ask a V4L2 node what it is; return None if it cannot capture video (codecs, scalers, metadata)."""
    try:
        file = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(file, VIDIOC_QUERYCAP, bytes(CAPABILITY.size))
        finally:
            os.close(file)
    except PermissionError:
        return CameraDevice(str(node), "?", "?", "v4l2", usable=False, note=f"no permission: {permission_cure(node)}")
    except OSError as error:
        return CameraDevice(str(node), "?", "?", "v4l2", usable=False, note=f"does not answer ({error.strerror})")
    return described(node, answer)


def described(node: Path, answer: bytes) -> CameraDevice | None:
    """Return the device that a VIDIOC_QUERYCAP answer (104 bytes) describes; None if it cannot capture video."""
    driver, card, _, _, of_all_nodes, of_this_node = CAPABILITY.unpack(answer)
    if not (of_this_node if of_all_nodes & CAP_DEVICE_CAPS else of_all_nodes) & CAP_CAPTURE:
        return None
    driver, card = (text.split(b"\0")[0].decode(errors="replace") for text in (driver, card))
    if driver in PI_DRIVERS:
        return CameraDevice(
            str(node), card, driver, "v4l2", usable=False, note="the raw sensor of a Pi camera: use picamera"
        )
    return CameraDevice(str(node), card, driver, "v4l2", usable=True)


def csi_cameras() -> list[CameraDevice]:
    """List the cameras of picamera2, without USB cameras, which V4L2 lists; none where it is not installed."""
    if importlib.util.find_spec("picamera2") is None:
        return []
    try:
        infos = picamera.library().Picamera2.global_camera_info()
    except CameraError as error:
        return [CameraDevice("picamera", "?", "libcamera", "picamera", usable=False, note=str(error))]
    return [
        CameraDevice(f"picamera:{place}", str(info.get("Model", "?")), "libcamera", "picamera", usable=True)
        for place, info in enumerate(infos)
        if "/usb" not in info["Id"]
    ]


def permission_cure(node: Path) -> str:
    """Return what to do where a device node exists but may not be opened."""
    status = node.stat()
    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"run edgesan as a user of the group with the number {status.st_gid}"
    if status.st_gid == 0 or status.st_mode & 0o060 != 0o060:
        return "only root may open it; a udev rule must give it to the group video"
    if user in group.gr_mem:
        return f"you joined the group {group.gr_name} after you logged in: log in again"
    return f"sudo usermod -aG {group.gr_name} {user}, then log in again"


def table(devices: list[CameraDevice]) -> str:
    """Return a table with one line per camera."""
    rows = [("--camera", "name", "driver", "")]
    rows += [(d.spec, d.name, d.driver, "" if d.usable else f"not usable: {d.note}") for d in devices]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
