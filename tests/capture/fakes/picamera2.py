"""picamera2 0.3 without a camera: the names, arguments, errors and traps of the real one that edgesan meets.

The traps: a request that is not released is a buffer less, and without buffers nothing comes; a capture that timed out
stays queued, and `stop` then waits for ever (here: fails); "RGB888" is B, G, R in memory; stamps are CLOCK_BOOTTIME; a
pipeline without an ISP gives another format than was asked for, and an array of another shape; what is opened while it
is open never gives a picture again (here: fails). The real one runs in tests/qemu.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

CSI = {
    "Model": "imx708",
    "Location": 2,
    "Rotation": 180,
    "Id": "/base/axi/pcie@120000/rp1/i2c@88000/imx708@1a",
    "Num": 0,
}
USB = {"Model": "UVC Camera", "Location": 3, "Id": "/base/axi/pcie@120000/rp1/usb@200000-1:1.0-046d:0825", "Num": 1}


class CompletedRequest:
    """One picture in a buffer of the camera."""

    def __init__(self, camera: "Picamera2", number: int) -> None:
        self._camera, self._number, self._released = camera, number, False
        self._stamp_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def make_array(self, name: str) -> NDArray[np.uint8]:
        assert not self._released, "the buffer was given back"
        width, height = self._camera.camera_config[name]["size"]
        if self._camera.camera_config[name]["format"] == "NV12":  # Y, then U and V in turn: a blue world
            chroma = np.tile(np.array([240, 110], np.uint8), (height // 2, width // 2))
            return np.vstack([np.full((height, width), 41, np.uint8), chroma])
        array = np.zeros((height, width, 3), np.uint8)
        array[:, :, 0], array[:, :, 2] = 200, self._number % 256  # a blue world; the picture's number is its red
        return array

    def get_metadata(self) -> dict[str, Any]:
        assert not self._released, "the buffer was given back"
        stamp = {"SensorTimestamp": self._stamp_ns} if Picamera2.stamps else {}
        return {"ExposureTime": 9985, "AnalogueGain": 1.0, **stamp}

    def release(self) -> None:
        assert not self._released, "CompletedRequest: lock now has negative ref_count"
        self._released = True
        self._camera.held -= 1


class Picamera2:
    """One camera. The class attributes are the test's handles on the hardware."""

    cameras: list[dict[str, Any]] = [CSI, USB]  # noqa: RUF012
    opened: list["Picamera2"] = []  # noqa: RUF012
    busy = False
    hang = False
    gives = "RGB888"  # whatever was asked for
    stamps = True

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        return list(Picamera2.cameras)

    def __init__(
        self, camera_num: int = 0, verbose_console: int | None = None, tuning: Any = None, allocator: Any = None
    ) -> None:
        self.camera_idx = self.global_camera_info()[camera_num]["Num"]
        assert not any(camera.is_open for camera in Picamera2.opened), "the real one would not survive it"
        if Picamera2.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.camera_config: dict[str, Any] = {}
        self.is_open, self.started = True, False
        self.held = 0  # requests that were not released
        self._jobs = 0
        self._number = -1
        Picamera2.opened.append(self)

    def create_video_configuration(
        self,
        main: dict[str, Any] = {},  # noqa: B006 - as the real one
        lores: dict[str, Any] | None = None,
        raw: dict[str, Any] | None = {},  # noqa: B006
        transform: Any = None,
        colour_space: Any = None,
        buffer_count: int = 6,
        controls: dict[str, Any] = {},  # noqa: B006
        display: str | None = "main",
        encode: str | None = "main",
        queue: bool = True,
        sensor: dict[str, Any] | None = {},  # noqa: B006
        use_case: str = "video",
    ) -> dict[str, Any]:
        main = {"format": "XBGR8888", "size": (1280, 720), "preserve_ar": True, **main}
        controls = {"FrameDurationLimits": (33333, 33333), **controls}
        return {"main": main, "buffer_count": buffer_count, "controls": controls}

    def configure(self, camera_config: dict[str, Any] | None = None) -> None:
        assert camera_config is not None
        assert camera_config["main"]["format"] == "RGB888"
        camera_config["main"]["format"] = Picamera2.gives
        width, height = camera_config["main"]["size"]
        if width > 4608:
            raise OSError(12, "Cannot allocate memory")  # CMA is used up
        camera_config["main"]["size"] = (width - width % 2, height - height % 2)  # as libcamera adjusts it
        self.camera_config = camera_config

    def camera_configuration(self) -> dict[str, Any]:
        return self.camera_config

    def start(self, config: Any = None, show_preview: Any = False) -> None:
        if not self.camera_config:
            raise RuntimeError("Camera has not been configured")
        self.started = True
        self._began_s = time.monotonic()

    def capture_request(
        self, wait: float | None = None, signal_function: Any = None, flush: Any = None
    ) -> CompletedRequest:
        assert self.started
        fps = self.camera_config["controls"].get("FrameRate", 30.0)
        self._number = max(self._number + 1, int((time.monotonic() - self._began_s) * fps))
        deadline_s = time.monotonic() + (3600 if wait is None else wait)
        due_s = self._began_s + self._number / fps
        while time.monotonic() < due_s or Picamera2.hang or self.held >= self.camera_config["buffer_count"]:
            if time.monotonic() >= deadline_s:
                self._jobs += 1
                raise TimeoutError
            time.sleep(0.002)
        self.held += 1
        return CompletedRequest(self, self._number)

    @contextmanager
    def captured_request(self, wait: float | None = None, flush: Any = None) -> Iterator[CompletedRequest]:
        request = self.capture_request(wait=wait, flush=flush)
        try:
            yield request
        finally:
            request.release()

    def cancel_all_and_flush(self) -> None:
        self._jobs = 0

    def stop_preview(self) -> None:
        if not self.started:
            raise RuntimeError("No preview specified.")

    def stop(self) -> None:
        if self.started:
            assert not self._jobs, "the real stop would wait for the queued capture for ever"
        self.started = False

    def close(self) -> None:
        self.stop()
        self.is_open = False
