"""The cameras of this machine, as `edgesan devices` lists them."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgesan import v4l2
from edgesan.capture import picamera
from edgesan.errors import CameraError

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
        return described(node, v4l2.query(node))
    except PermissionError:
        note = f"no permission: {v4l2.permission_cure(node)}"
        return CameraDevice(str(node), "?", "?", "v4l2", usable=False, note=note)
    except OSError as error:
        return CameraDevice(str(node), "?", "?", "v4l2", usable=False, note=f"does not answer ({error.strerror})")


def described(node: Path, device: v4l2.Device) -> CameraDevice | None:
    """Return the camera that a node is; None if it cannot capture video."""
    driver, card, capabilities = device
    if not capabilities & v4l2.CAPTURE:
        return None
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


def table(devices: list[CameraDevice]) -> str:
    """Return a table with one line per camera."""
    rows = [("--camera", "name", "driver", "")]
    rows += [(d.spec, d.name, d.driver, "" if d.usable else f"not usable: {d.note}") for d in devices]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
