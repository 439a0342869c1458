"""Sources of raw frames: each lends its newest frame for one `with` block, and never a backlog."""

import re
from pathlib import Path
from typing import Final

from edgesan.capture import devices, opencv, picamera
from edgesan.capture.source import Source
from edgesan.errors import CameraError, ConfigError
from edgesan.fetch.packets import Reader

__all__ = ["DEMO_CLIP", "Source", "open_source"]

DEMO_CLIP: Final = Path(__file__).with_name("demo.mp4")
FORMS: Final = (
    "an index (0), a device (/dev/video0), picamera or picamera:1, a file, a URL (rtsp, rtsps, http, https), or demo"
)


def open_source(
    spec: str, size: tuple[int, int] | None, fps: float | None, rotate: int = 0, packets: Reader | None = None
) -> Source:
    """Open what `--camera` names.

    Args:
        spec: one of FORMS.
        size: width and height to ask the camera for, as they are after rotation. A larger picture is scaled down to
            fit, keeping its aspect.
        fps: frames a second to ask the camera for; the source lends no more.
        rotate: degrees by which each picture is rotated clockwise: 0, 90, 180 or 270.
        packets: what the process that fetches from a network camera sends (`edgesan.fetch`).

    Raises:
        ConfigError: `spec` is none of FORMS.
        CameraError: what it names is not here, or cannot be opened; the message lists what is here.
    """
    if spec == "demo":
        return opencv.FileSource(DEMO_CLIP, size, fps, rotate, loop=True, paced=True, name="demo")
    if csi := re.fullmatch(r"picamera(?::(\d+))?", spec):
        return picamera.open_picamera(int(csi[1] or 0), size, fps, rotate)
    if "://" in spec:
        from edgesan.capture import network  # loads 16 MB of PyAV, which other cameras do not need

        return network.open_url(spec, packets, size, fps, rotate)
    path = Path(f"/dev/video{int(spec)}" if re.fullmatch(r"[0-9]+", spec) else spec)
    if path.is_char_device():
        return opencv.open_device(path, size, fps, rotate)
    if path.is_file():
        return opencv.open_file(path, size, fps, rotate)
    if not spec or spec.startswith("picamera:"):
        raise ConfigError(f"camera is {spec!r}: give {FORMS}")
    what = f"{path} is neither a camera nor a file" if path.exists() else f"there is no {path}"
    here = ", ".join(f"{d.spec} ({d.name})" for d in devices.list_devices())
    raise CameraError(f"{what}; cameras here: {here}. Give {FORMS}")
