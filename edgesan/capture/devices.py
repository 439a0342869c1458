"""What cameras are here: the answer of `edgesan devices`."""

import fcntl
import importlib.util
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgesan.errors import CameraError

# struct v4l2_capability and VIDIOC_QUERYCAP (linux/videodev2.h)
QUERYCAP: Final = struct.Struct("16s32s32sIII12x")
VIDIOC_QUERYCAP: Final = 0x80685600
V4L2_CAP_VIDEO_CAPTURE: Final = 0x00000001
V4L2_CAP_DEVICE_CAPS: Final = 0x80000000


@dataclass(frozen=True)
class Device:
    """One camera; `spec` is what to give to --camera."""

    spec: str
    kind: str  # "v4l2", "picamera" or "demo"
    name: str
    usable: bool
    note: str


def list_devices(dev: Path = Path("/dev")) -> list[Device]:
    """All cameras that can be named, the demo last."""
    found = [device for path in sorted(dev.glob("video*")) if (device := query(path)) is not None]
    if importlib.util.find_spec("picamera2") is not None:
        found += csi_cameras()
    return [*found, Device("demo", "demo", "the bundled clip, in a loop", True, "")]


def query(path: Path) -> Device | None:
    """A V4L2 node, by VIDIOC_QUERYCAP; None if it captures no video (a codec, an ISP, metadata)."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        cure = "; sudo usermod -aG video $USER, then log in again" if isinstance(error, PermissionError) else ""
        return Device(str(path), "v4l2", "?", False, f"{error.strerror}{cure}")
    try:
        answer = fcntl.ioctl(handle, VIDIOC_QUERYCAP, bytes(QUERYCAP.size))
    except OSError as error:
        return Device(str(path), "v4l2", "?", False, f"not a V4L2 device ({error.strerror})")
    finally:
        os.close(handle)
    driver, card, _bus, _version, capabilities, device_caps = QUERYCAP.unpack(answer)
    effective = device_caps if capabilities & V4L2_CAP_DEVICE_CAPS else capabilities
    if not effective & V4L2_CAP_VIDEO_CAPTURE:
        return None
    name, by = (text.split(b"\0")[0].decode(errors="replace") for text in (card, driver))
    return Device(str(path), "v4l2", f"{name} ({by})", True, "")


def csi_cameras() -> list[Device]:
    """The cameras that libcamera knows."""
    from edgesan.capture import picamera

    try:
        cameras = picamera.library().Picamera2.global_camera_info()
    except CameraError as error:
        return [Device("picamera", "picamera", "?", False, str(error))]
    return [
        Device(f"picamera:{i}", "picamera", str(camera.get("Model", "?")), True, "") for i, camera in enumerate(cameras)
    ]


def table(devices: list[Device]) -> str:
    """One line per camera, for people."""
    rows = [("--camera", "name", ""), *((d.spec, d.name, "" if d.usable else f"not usable: {d.note}") for d in devices)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{spec:<{widths[0]}}  {name:<{widths[1]}}  {note}".rstrip() for spec, name, note in rows)
