"""What the sources share: their interface, the conversion of foreign pixels, and the newest frame of a live camera.

A live camera has one thread that only grabs, so that no driver ever queues stale pictures, and one place for the newest
picture. A slow consumer loses pictures, and never holds the camera up.
"""

import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.errors import CameraError, CameraLost
from edgesan.frames import Pixels, RawFrame, lend

MOST_PIXELS: Final = 100_000_000  # of one picture: 300 MB as BGR
FIRST_PICTURE_S: Final = 5.0  # a sensor needs up to a second or two to start
CLOSE_S: Final = 0.8  # a hung driver must not hold Ctrl-C up
THREAD: Final = "edgesan-camera"


class Source(Protocol):
    """Where raw frames come from."""

    name: str  # for messages; never holds a password
    size: tuple[int, int]  # width, height of every frame

    def frame(self, timeout_s: float) -> AbstractContextManager[RawFrame]:
        """Lend the newest frame; never one that was lent before.

        It waits for a frame while the source is alive, at the rate that was asked for. `timeout_s` bounds the time
        without a picture from the camera.

        Raises:
            CameraLost: the camera was unplugged, or gave nothing for `timeout_s`.
            EndOfStream: the recording is over.
        """
        ...

    def close(self) -> None:
        """Give the camera back. Frames that were lent stay valid until their block ends."""
        ...


def to_bgr(pixels: NDArray[Any]) -> Pixels:
    """Convert what a library gave (gray, BGR or BGRA of 8 or 16 bits) to uint8 [height, width, 3] BGR.

    Raises:
        CameraError: it is none of these, or too large.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        raise CameraError(f"got a picture of {pixels.dtype} {pixels.shape}: expected 8 or 16 bits, gray, BGR or BGRA")
    if pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise CameraError(
            f"got a picture of {pixels.shape[1]}x{pixels.shape[0]}: at most {MOST_PIXELS:,} pixels are taken"
        )
    if channels == 3:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR), np.uint8)


def fit(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Scale down to within `size` (width, height), keeping the aspect. Never enlarges; None leaves it as it is."""
    height, width = pixels.shape[:2]
    scale = 1.0 if size is None else min(size[0] / width, size[1] / height)
    if scale >= 1:
        return pixels
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA), np.uint8)


TURNS: Final = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def before_turn(size: tuple[int, int] | None, rotate: int) -> tuple[int, int] | None:
    """Return the width and height, before rotation, of what has this size after it."""
    return size if size is None or rotate not in (90, 270) else (size[1], size[0])


def upright(foreign: NDArray[Any], size: tuple[int, int] | None, rotate: int) -> Pixels:
    """Convert foreign pixels to BGR, scaled down to within `size` (as it is after rotation) and rotated clockwise.

    Raises:
        CameraError: the pixels are of an unknown kind, or too many.
    """
    pixels = fit(to_bgr(foreign), before_turn(size, rotate))  # scaled first: there is less to rotate then
    return np.asarray(cv2.rotate(pixels, TURNS[rotate]), np.uint8) if rotate else pixels


class FrameRateLimiter:
    """Lets at most `fps` frames a second pass on average; all of them if None."""

    def __init__(self, fps: float | None) -> None:
        self.period_s = 1 / fps if fps else 0.0
        self._due_s = float("-inf")

    def admits(self, at_s: float) -> bool:
        """Return whether the frame of this time may pass. Times must not go back."""
        # A frame may come a little early, as a camera of just this rate jitters. The next due time is counted from the
        # last due time, not from the frame's, which keeps the mean rate all the same.
        if at_s < self._due_s - self.period_s / 4:
            return False
        late = at_s - self._due_s > self.period_s
        self._due_s = (at_s if late else self._due_s) + self.period_s
        return True


class CameraBackend(Protocol):
    """A running camera, as its library gives it. One thread makes all the calls."""

    def grab(self) -> int:
        """Wait for the next picture; return when it was taken (CLOCK_MONOTONIC, ns). Raises CameraLost."""
        ...

    def pixels(self) -> NDArray[Any] | None:
        """Return the picture grabbed last, in memory that the camera does not write to again; None if it is damaged."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


class LiveSource:
    """A Source over a CameraBackend: the grabbing thread and the place for the newest picture."""

    def __init__(
        self, name: str, backend: CameraBackend, size: tuple[int, int] | None, fps: float | None, rotate: int = 0
    ) -> None:
        """Start grabbing, and wait for the first picture, which shows the true size.

        Args:
            name: for messages.
            backend: the running camera.
            size: width and height to scale down to, as they are after rotation.
            fps: frames a second to lend at most.
            rotate: degrees clockwise.

        Raises:
            CameraError: no picture came; the camera is closed again.
        """
        self.name = name
        self._backend, self._asked, self._rotate, self._limiter = backend, size, rotate, FrameRateLimiter(fps)
        self._changed = threading.Condition()  # guards the next four
        self._newest: tuple[Pixels, int, int] | None = None  # pixels, number, captured_ns
        self._fault: CameraError | None = None
        self._heard_s = time.monotonic()
        self._stopping = False
        self._thread = threading.Thread(target=self._grab, name=THREAD, daemon=True)
        self._thread.start()
        try:
            with self._changed:
                pixels, _, _ = self._wait(FIRST_PICTURE_S)
        except CameraLost as lost:
            self.close()
            raise CameraError(
                f"{name} was opened but gave no picture ({lost}); is it in use by another program?"
            ) from lost
        self.size = (pixels.shape[1], pixels.shape[0])

    def frame(self, timeout_s: float) -> AbstractContextManager[RawFrame]:
        """Lend the newest frame; see `Source`."""
        with self._changed:
            pixels, number, captured_ns = self._wait(timeout_s)
            self._newest = None
        return lend(pixels, number, captured_ns, time.monotonic_ns())

    def _wait(self, timeout_s: float) -> tuple[Pixels, int, int]:
        """Return the newest picture, and leave it in its place. The caller holds the lock."""
        started_s = time.monotonic()
        while self._newest is None:
            if self._fault is not None:
                raise self._fault
            left_s = max(started_s, self._heard_s) + timeout_s - time.monotonic()
            if left_s <= 0:
                raise CameraLost(f"{self.name} gave no picture for {timeout_s:g} s")
            self._changed.wait(left_s)
        return self._newest

    def _grab(self) -> None:
        """Grab until the source is closed or the camera is lost. Only this thread touches the camera."""
        fault: CameraError = CameraLost(f"{self.name} is closed")
        try:
            number, shape = 0, None
            while not self._stopping:
                captured_ns = self._backend.grab()
                if not self._limiter.admits(captured_ns / 1e9):
                    self._heard_s = time.monotonic()
                    continue
                foreign = self._backend.pixels()
                if foreign is None:
                    continue
                pixels = upright(foreign, self._asked, self._rotate)
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    raise CameraLost(f"{self.name} changed its picture from {_size(shape)} to {_size(pixels.shape)}")
                number += 1
                with self._changed:
                    self._newest, self._heard_s = (pixels, number, captured_ns), time.monotonic()
                    self._changed.notify_all()
        except CameraError as error:
            fault = error
        finally:
            # Closed first: a consumer that opens it again after the fault finds it free.
            self._backend.close()
            with self._changed:
                self._fault = fault
                self._changed.notify_all()

    def close(self) -> None:
        """Give the camera back, or leave that to the thread if it hangs in its driver."""
        self._stopping = True
        self._thread.join(CLOSE_S)
        with self._changed:
            self._newest = None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
