"""The Raspberry Pi's own cameras, by picamera2: imported only when one is asked for, since it is not on PyPI in full."""

import importlib
import time
from typing import Any, Final

from numpy.typing import NDArray

from edgesan.capture.source import LiveSource, Source
from edgesan.errors import CameraError, CameraLost

HANG_S: Final = 3.0  # without a picture for so long, libcamera hangs
BUFFERS: Final = 4  # fewer stall the sensor; more use up the contiguous memory
CURE: Final = (
    "sudo apt install python3-picamera2, and make the virtual environment with"
    " `python3 -m venv --system-site-packages` from the system's Python: libcamera does not come from pip"
)


def library() -> Any:
    """The module picamera2.

    Raises:
        CameraError: it, or libcamera under it, is missing or does not fit; says what to install.
    """
    try:
        return importlib.import_module("picamera2")
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy than this environment's
        raise CameraError(f"picamera2 cannot be imported ({error}): {CURE}") from error


def open_picamera(number: int, size: tuple[int, int] | None, fps: float | None) -> Source:
    """The camera at place `number` of `Picamera2.global_camera_info()`.

    Raises:
        CameraError: picamera2 or the camera is missing, the camera is busy, or it gives no picture.
    """
    Picamera2 = library().Picamera2  # noqa: N806 - a class
    models = [str(info.get("Model", "?")) for info in Picamera2.global_camera_info()]
    if number >= len(models):
        raise CameraError(
            f"there is no picamera:{number}; libcamera finds: {', '.join(models) or 'none'}. Check the cable with"
            " the power off, then `rpicam-hello --list-cameras`"
        )
    name = f"picamera:{number}"
    try:
        camera = Picamera2(number)
        try:
            main = {"format": "RGB888", **({} if size is None else {"size": size})}  # "RGB888" is B, G, R in memory
            controls = {} if fps is None else {"FrameRate": fps}
            camera.configure(camera.create_video_configuration(main=main, controls=controls, buffer_count=BUFFERS))
            camera.start()
        except (RuntimeError, OSError):
            camera.close()
            raise
    except (RuntimeError, OSError) as error:
        raise CameraError(
            f"cannot start {name} ({error}): another program holds it, or contiguous memory is used up;"
            " see `edgesan doctor`"
        ) from error
    return LiveSource(name, _Device(name, camera), size, fps)


class _Device:
    """A started Picamera2 as a Device."""

    def __init__(self, name: str, camera: Any) -> None:
        self._name, self._camera = name, camera
        self._pixels: NDArray[Any] | None = None

    def grab(self) -> int:
        try:
            with self._camera.captured_request(wait=HANG_S) as request:
                # Copied at once: a camera's buffers are uncached memory, slow to read twice, and there are few.
                self._pixels = request.make_array("main")
                sensor_ns = request.get_metadata().get("SensorTimestamp")
        except (TimeoutError, RuntimeError, OSError) as error:
            raise CameraLost(f"{self._name} gives no pictures any more ({error or type(error).__name__})") from error
        # A few drivers have no time stamp of their own: then the arrival counts, as with every other camera.
        return time.monotonic_ns() if sensor_ns is None else boot_to_monotonic_ns(sensor_ns)

    def pixels(self) -> NDArray[Any] | None:
        return self._pixels

    def close(self) -> None:
        # A capture that timed out is still queued, and picamera2 would wait for it for ever.
        self._camera.cancel_all_and_flush()
        self._camera.stop()
        self._camera.close()


def boot_to_monotonic_ns(boot_ns: int) -> int:
    """libcamera stamps with CLOCK_BOOTTIME, which counts suspended time; ours is CLOCK_MONOTONIC, which does not."""
    return boot_ns - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())
