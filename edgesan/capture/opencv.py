"""V4L2 devices, network cameras, clips and pictures, through OpenCV."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

# FFmpeg's and OpenCV's own chatter; what is wrong is said once, by our errors. Read when cv2 is loaded.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.errors import CameraError, CameraLost, EndOfStream
from edgesan.frames import Pixels, RawFrame, lend

NETWORK_TIMEOUT_MS: Final = 5000
FIRST_FRAME_S: Final = 10.0
PICTURE_FPS: Final = 5.0
MOST_PIXELS: Final = 100_000_000


def to_bgr(pixels: NDArray[np.generic] | None) -> Pixels:
    """What OpenCV gave, as uint8 [height, width, 3], BGR.

    Raises:
        CameraError: it is no picture.
    """
    if pixels is None or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise CameraError("the source gave something that is not a picture")
    if pixels.dtype == np.uint16:
        pixels = pixels // 257
    if pixels.dtype != np.uint8:
        raise CameraError(f"the source gives {pixels.dtype} pixels: 8 or 16 bits are expected")
    plane: Pixels = pixels.astype(np.uint8, copy=False)
    channels = 1 if plane.ndim == 2 else plane.shape[2]
    if channels == 3:
        return plane
    codes = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}
    if channels not in codes:
        raise CameraError(f"the source gives pictures of {channels} channels: 1, 3 or 4 are expected")
    return np.asarray(cv2.cvtColor(plane, codes[channels]), np.uint8)


def fit(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Scale down to fit within `size` (width, height), keeping the aspect; never up."""
    if size is None:
        return pixels
    height, width = pixels.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    if scale >= 1:
        return pixels
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA), np.uint8)


def read_picture(path: Path) -> Pixels:
    """A still picture as uint8 [height, width, 3], BGR, turned upright; gray and transparent ones too.

    Raises:
        CameraError: it is missing, empty, damaged, no picture, or larger than 100 megapixels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CameraError(f"cannot read the picture {path}: {error.strerror}") from error
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        raise CameraError(f"{path} cannot be decoded as a picture: {error.err}") from error
    if pixels is None:
        raise CameraError(
            f"{path} is not a picture that can be read ({len(content)} bytes): give a .png, .jpg or .webp"
        )
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise CameraError(f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels: at most 100 megapixels are taken")
    return to_bgr(pixels)


def device_source(device: Path, size: tuple[int, int] | None, fps: float | None) -> "LiveSource":
    """A V4L2 camera.

    Raises:
        CameraError: there is no such device, it may not be opened, or it gives no frame.
    """
    if not device.exists():
        found = ", ".join(str(p) for p in sorted(Path("/dev").glob("video*"))) or "none"
        raise CameraError(
            f"there is no {device}; cameras here: {found}. `edgesan devices` lists them; `--camera demo` needs none"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise CameraError(
            f"you may not open {device}: add yourself to the group video (sudo usermod -aG video $USER), log in again"
        )
    settings = [cv2.CAP_PROP_BUFFERSIZE, 1]
    if size is not None:
        # USB cameras give their larger sizes at full rate only as MJPEG.
        settings += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")]
        settings += [cv2.CAP_PROP_FRAME_WIDTH, size[0], cv2.CAP_PROP_FRAME_HEIGHT, size[1]]
    if fps is not None:
        settings += [cv2.CAP_PROP_FPS, round(fps)]
    capture = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
    for key, value in zip(settings[::2], settings[1::2], strict=True):
        capture.set(key, value)
    return LiveSource(str(device), capture, size, fps)


def url_source(url: str, size: tuple[int, int] | None, fps: float | None) -> "LiveSource":
    """A network camera. Its user name and password are never shown.

    Raises:
        CameraError: it cannot be reached or gives no frame.
    """
    parts = urlsplit(url)
    name = f"{parts.scheme}://{parts.hostname}{'' if parts.port is None else f':{parts.port}'}{parts.path}"
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_TIMEOUT_MS]
    return LiveSource(name, cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts), size, fps)


class LiveSource:
    """A camera read by a thread that keeps the newest frame only: drivers queue four stale ones."""

    def __init__(self, name: str, capture: cv2.VideoCapture, size: tuple[int, int] | None, fps: float | None) -> None:
        self.name = name
        self._capture, self._size, self._interval_ns = capture, size, round(1e9 / fps) if fps else 0
        self._changed = threading.Condition()
        self._newest: tuple[Pixels, int, int] | None = None  # pixels, number, captured_ns
        self._lent, self._over = 0, False
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"cannot open {name}: another program may hold it, or it is not a camera; see `edgesan doctor`"
            )
        self._thread = threading.Thread(target=self._grab, name="grab", daemon=True)
        self._thread.start()
        with self._changed:
            came = self._changed.wait_for(lambda: self._newest is not None or self._over, FIRST_FRAME_S)
            first = self._newest
        if not came or first is None:
            self.close()
            raise CameraError(
                f"{name} was opened but gave no frame within {FIRST_FRAME_S:.0f} s; unplug it and plug it in again"
            )
        self.size = (first[0].shape[1], first[0].shape[0])

    def _grab(self) -> None:
        number, due_ns = 0, 0
        while not self._over:
            if not self._capture.grab():
                break
            captured_ns = time.monotonic_ns()
            if captured_ns < due_ns:
                continue  # faster than asked
            due_ns = max(due_ns + self._interval_ns, captured_ns - self._interval_ns)
            done, pixels = self._capture.retrieve()
            if not done:
                break
            number += 1
            with self._changed:
                self._newest = fit(to_bgr(pixels), self._size), number, captured_ns
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @contextmanager
    def frame(self, timeout_s: float) -> Iterator[RawFrame]:
        """Lend the newest frame (see `Source`)."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._over or (self._newest is not None and self._newest[1] > self._lent), timeout_s
            )
            newest = self._newest
            self._newest = None  # the loan is the only copy
        if newest is None or self._over:
            raise CameraLost(f"{self.name} gives no frames any more")
        pixels, self._lent, captured_ns = newest
        with lend(pixels, self._lent, captured_ns, time.monotonic_ns()) as raw:
            yield raw

    def close(self) -> None:
        """Stop the thread and give the camera back."""
        self._over = True
        if self._thread.is_alive():
            self._thread.join(NETWORK_TIMEOUT_MS / 1000 + 1)
        self._capture.release()


class FileSource:
    """A clip, or a picture shown as one.

    Paced, it plays in real time and skips what is late; not paced, it gives every frame in order.
    """

    def __init__(
        self, path: Path, size: tuple[int, int] | None, fps: float | None, *, loop: bool, paced: bool, name: str = ""
    ) -> None:
        self.name = name or path.name
        self._path, self._size, self._loop, self._paced = path, size, loop, paced
        self._interval_s = 1 / fps if fps else 0.0
        self._number = 0
        self.position_s = 0.0
        if path.is_dir() or not path.exists() or path.stat().st_size == 0:
            raise CameraError(
                f"{path} is {'a folder' if path.is_dir() else 'missing or empty'}: give a clip or a picture"
            )
        self._still = read_picture(path) if cv2.haveImageReader(str(path)) else None
        self._capture = None if self._still is not None else self._open()
        self._pending = self._decode()
        if self._pending is None:
            self.close()
            raise CameraError(f"{path} has no frame that can be read: it is not a clip, or it is damaged")
        first = self._pending[0]
        self.size = (first.shape[1], first.shape[0])
        self.frame_count = 1 if self._capture is None else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._start_ns = time.monotonic_ns()

    def _open(self) -> cv2.VideoCapture:
        # FFmpeg alone: OpenCV's other back ends read a name with a % in it as a series of pictures.
        capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            raise CameraError(f"{self._path} is not a clip or a picture that can be read")
        return capture

    def _decode(self) -> tuple[Pixels, float] | None:
        """The next frame and its time in the file in seconds; None at the end."""
        if self._still is not None:
            interval = self._interval_s or 1 / PICTURE_FPS
            return (
                (fit(self._still, self._size), self.position_s + interval) if self._paced or not self._number else None
            )
        assert self._capture is not None
        rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        index = self._capture.get(cv2.CAP_PROP_POS_FRAMES)
        done, pixels = self._capture.read()
        return (fit(to_bgr(pixels), self._size), index / rate) if done else None

    def _next(self) -> tuple[Pixels, float]:
        """The next frame to lend, after the skipping and the looping."""
        while True:
            frame = self._pending or self._decode()
            self._pending = None
            if frame is None and self._loop and self._number:
                self.close()
                self._capture, self._start_ns = self._open(), time.monotonic_ns()
                continue
            if frame is None:
                raise EndOfStream(f"{self.name} is over")
            if not self._paced:
                return frame
            wait_s = frame[1] - (time.monotonic_ns() - self._start_ns) / 1e9
            fast = self._interval_s and self._number and 0 < frame[1] - self.position_s < self._interval_s * 0.99
            if (wait_s < -0.1 or fast) and self._still is None and self._number:
                continue  # late, or faster than asked: never a backlog
            time.sleep(max(0.0, wait_s))
            return frame

    @contextmanager
    def frame(self, timeout_s: float) -> Iterator[RawFrame]:
        """Lend the next frame that is due (see `Source`); `position_s` is then its time in the file."""
        pixels, self.position_s = self._next()
        self._number += 1
        now_ns = time.monotonic_ns()
        with lend(pixels, self._number, now_ns, now_ns) as raw:
            yield raw

    def close(self) -> None:
        """Close the file."""
        if self._capture is not None:
            self._capture.release()
