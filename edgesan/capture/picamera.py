"""The Raspberry Pi's own camera, through picamera2 and libcamera. Imported only when it is asked for."""

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edgesan.capture.opencv import to_bgr
from edgesan.errors import CameraError, CameraLost
from edgesan.frames import RawFrame, lend

DEFAULT_SIZE: Final = (1280, 720)
DEFAULT_FPS: Final = 30.0
BUFFERS: Final = 4
CURE: Final = (
    "install it with `sudo apt install python3-picamera2`, and make the virtual environment with"
    " `python3 -m venv --system-site-packages`: libcamera comes from the system, not from pip"
)


def library() -> Any:
    """The picamera2 module.

    Raises:
        CameraError: it, or libcamera beneath it, is not there; says what to install.
    """
    try:
        return importlib.import_module("picamera2")
    except ImportError as error:
        raise CameraError(f"picamera2 cannot be imported ({error}): {CURE}") from error


class PicameraSource:
    """One CSI camera. Pixels are copied out of the DMA buffer at once: that memory is uncached."""

    def __init__(self, number: int, size: tuple[int, int] | None, fps: float | None) -> None:
        picamera2 = library()
        found = picamera2.Picamera2.global_camera_info()
        if number >= len(found):
            names = ", ".join(str(camera.get("Model", "?")) for camera in found) or "none"
            raise CameraError(
                f"there is no picamera:{number}; libcamera finds: {names}. Check the cable; run `edgesan doctor`"
            )
        self.name = f"picamera:{number}"
        self.size = size or DEFAULT_SIZE
        self._number = 0
        self._open = True
        try:
            self._camera = picamera2.Picamera2(number)
            # libcamera's "RGB888" is B, G, R in memory.
            self._camera.configure(
                self._camera.create_video_configuration(
                    main={"size": self.size, "format": "RGB888"},
                    controls={"FrameRate": fps or DEFAULT_FPS},
                    buffer_count=BUFFERS,
                )
            )
            self._camera.start()
        except (RuntimeError, IndexError, OSError) as error:
            raise CameraError(
                f"cannot open {self.name}: {error}; another program may hold it, see `edgesan doctor`"
            ) from error

    @contextmanager
    def frame(self, timeout_s: float) -> Iterator[RawFrame]:
        """Lend the newest frame (see `Source`); a driver that hangs is a lost camera."""
        try:
            request = self._camera.capture_request(wait=timeout_s)
        except (TimeoutError, RuntimeError) as error:
            raise CameraLost(f"{self.name} gives no frames any more ({type(error).__name__})") from error
        try:
            pixels = to_bgr(request.make_array("main"))
            sensor_ns = request.get_metadata().get("SensorTimestamp")
        finally:
            request.release()
        now_ns = time.monotonic_ns()
        captured_ns = now_ns if sensor_ns is None else to_monotonic(int(sensor_ns), now_ns)
        self._number += 1
        with lend(pixels, self._number, captured_ns, now_ns) as raw:
            yield raw

    def close(self) -> None:
        """Stop and give the camera back. Idempotent."""
        if self._open:
            self._open = False
            self._camera.stop()
            self._camera.close()


def to_monotonic(boot_ns: int, now_ns: int) -> int:
    """libcamera stamps with CLOCK_BOOTTIME, which also counts time asleep; everything here uses CLOCK_MONOTONIC."""
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return min(boot_ns - asleep_ns, now_ns)
