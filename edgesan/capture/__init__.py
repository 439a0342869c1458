"""Sources of raw frames. Each lends its newest frame for one `with` block, and never a backlog."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from edgesan.errors import CameraError, ConfigError
from edgesan.frames import RawFrame

DEMO_CLIP: Final = Path(__file__).with_name("demo.mp4")
URL_SCHEMES: Final = ("rtsp", "rtsps", "http", "https")


class Source(Protocol):
    """A camera, or a file that plays one."""

    name: str
    size: tuple[int, int]  # (width, height) as delivered

    def frame(self, timeout_s: float) -> AbstractContextManager[RawFrame]:
        """Lend the newest frame, one that was never lent before.

        Raises:
            CameraLost: none came within `timeout_s`.
            EndOfStream: the file is over.
        """

    def close(self) -> None:
        """Give the camera back. Idempotent."""


def open_source(spec: str, size: tuple[int, int] | None, fps: float | None) -> Source:
    """Open `--camera SPEC`; `size` (width, height) and `fps` are asked of the camera, and kept where it disobeys.

    Raises:
        ConfigError: the spec is none of the known forms.
        CameraError: what it names is not there or cannot be opened.
    """
    # The back ends are imported when they are asked for: picamera2 exists on few machines.
    from edgesan.capture import opencv

    if spec == "demo":
        return opencv.FileSource(DEMO_CLIP, size, fps, loop=True, paced=True, name="demo")
    if re.fullmatch(r"picamera(:\d+)?", spec):
        from edgesan.capture import picamera

        return picamera.PicameraSource(int(spec.partition(":")[2] or 0), size, fps)
    if spec.isdecimal() or spec.startswith("/dev/"):
        return opencv.device_source(Path(f"/dev/video{spec}") if spec.isdecimal() else Path(spec), size, fps)
    scheme = urlsplit(spec).scheme
    if scheme in URL_SCHEMES:
        return opencv.url_source(spec, size, fps)
    if "://" in spec:
        raise ConfigError(f"camera is a {scheme}:// address: {', '.join(URL_SCHEMES)} can be opened")
    path = Path(spec)
    if not path.exists():
        raise CameraError(
            f"there is no {spec!r}: give an index, a device, picamera, a file, a URL or demo; see `edgesan devices`"
        )
    return opencv.FileSource(path, size, fps, loop=False, paced=True)
