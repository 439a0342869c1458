"""The Raspberry Pi's own cameras, by picamera2, which is imported only when such a camera is asked for.

It cannot be a dependency: libcamera, which it needs, is not on PyPI.
"""

import importlib
import threading
import time
from contextlib import ExitStack
from typing import Any, Final

import cv2
from numpy.typing import NDArray

from edgesan.capture.source import LiveSource, Source, before_turn
from edgesan.errors import CameraError, CameraLost

HANG_S: Final = 3.0  # without a picture for so long, libcamera hangs
BUFFERS: Final = 4  # fewer stall the sensor; more use up the contiguous memory
# The formats that become B, G, R, and how. The first is asked for; a pipeline without an ISP gives another.
FORMATS: Final = {"RGB888": None, "NV12": cv2.COLOR_YUV2BGR_NV12}  # "RGB888" is B, G, R in memory
# Held from opening to closing. picamera2 0.3 does not survive an attempt to open a camera that this process still has
# open, such as while a closed source gives it back in its thread: later openings then never give a picture.
one_at_a_time: Final = threading.Lock()
CURE: Final = (
    "sudo apt install python3-picamera2, and make the virtual environment with"
    " `python3 -m venv --system-site-packages` from the system's Python: libcamera does not come from pip"
)

NUMPY_CURE: Final = "install Raspberry Pi OS trixie or later, whose packages are built for the NumPy that edgesan needs"


def library() -> Any:
    """Import picamera2.

    Raises:
        CameraError: it, or libcamera under it, is missing or does not fit; the message says what to install.
    """
    try:
        return importlib.import_module("picamera2")
    except ImportError as error:
        raise CameraError(f"picamera2 cannot be imported ({error}): {CURE}") from error
    except ValueError as error:
        raise CameraError(
            f"this picamera2 is built for another NumPy than edgesan's ({error}): {NUMPY_CURE}"
        ) from error


def open_picamera(number: int, size: tuple[int, int] | None, fps: float | None, rotate: int = 0) -> Source:
    """Open the camera at place `number` of `Picamera2.global_camera_info()`.

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
    if not one_at_a_time.acquire(timeout=2 * HANG_S):
        raise CameraError(f"cannot start {name}: this process has a camera open, or hangs giving it back")
    with ExitStack() as undo:  # however opening fails
        undo.callback(one_at_a_time.release)
        try:
            camera = Picamera2(number)
            undo.callback(camera.close)
            asked = before_turn(size, rotate)
            main = {"format": next(iter(FORMATS)), **({} if asked is None else {"size": asked})}
            controls = {} if fps is None else {"FrameRate": fps}
            camera.configure(camera.create_video_configuration(main=main, controls=controls, buffer_count=BUFFERS))
            given = camera.camera_configuration()["main"]["format"]
            if given not in FORMATS:
                raise RuntimeError(f"it gives {given}, expected {' or '.join(FORMATS)}")
            camera.start()
        except (RuntimeError, OSError) as error:
            raise CameraError(
                f"cannot start {name} ({error}): another program holds it, or contiguous memory is used up;"
                " see `edgesan doctor`"
            ) from error
        undo.pop_all()
    return LiveSource(name, PicameraBackend(name, camera, FORMATS[given]), size, fps, rotate)


class PicameraBackend:
    """A started Picamera2 as a CameraBackend."""

    def __init__(self, name: str, camera: Any, conversion: int | None) -> None:
        self._name, self._camera, self._conversion = name, camera, conversion
        self._pixels: NDArray[Any] | None = None

    def grab(self) -> int:
        """Wait for the next picture and copy it; return when it was taken (CLOCK_MONOTONIC, ns)."""
        try:
            with self._camera.captured_request(wait=HANG_S) as request:
                # Copied at once: a camera's buffers are uncached memory, slow to read twice, and there are few.
                self._pixels = request.make_array("main")
                sensor_ns = request.get_metadata().get("SensorTimestamp")
        except (TimeoutError, RuntimeError, OSError) as error:
            raise CameraLost(
                f"{self._name} gives no pictures any more ({str(error) or type(error).__name__})"
            ) from error
        # A few drivers give no time stamp: then the time of arrival counts, as with every other camera.
        return time.monotonic_ns() if sensor_ns is None else boot_to_monotonic_ns(sensor_ns)

    def pixels(self) -> NDArray[Any] | None:
        """Return the picture that was grabbed last, as BGR."""
        if self._pixels is None or self._conversion is None:
            return self._pixels
        return cv2.cvtColor(self._pixels, self._conversion)

    def close(self) -> None:
        """Give the camera back, also one that hangs."""
        # picamera2 would wait for ever for a capture that timed out and is still queued. It would also wait for its
        # event loop to stop the camera, if that loop died of the loss: without a loop, `close` stops the camera itself.
        try:
            self._camera.cancel_all_and_flush()
            self._camera.stop_preview()
            self._camera.close()
        finally:
            one_at_a_time.release()


def boot_to_monotonic_ns(boot_ns: int) -> int:
    """Convert a time of CLOCK_BOOTTIME, which libcamera uses and which counts suspended time, to CLOCK_MONOTONIC."""
    return boot_ns - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())
