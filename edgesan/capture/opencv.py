"""Sources that OpenCV opens: V4L2 devices, clips and pictures."""

import math
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan import v4l2
from edgesan.capture.source import MOST_PIXELS, FrameRateLimiter, LiveSource, Source, before_turn, upright
from edgesan.errors import CameraError, CameraLost, EndOfStream
from edgesan.frames import Pixels, RawFrame, lend

# OpenCV and FFmpeg would each print what our errors say once. FFmpeg's level is read when the first clip is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Seconds that a grab may hang after the cable was pulled (OpenCV: 10); read when the first device is opened.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "3")

STILL_FPS: Final = 5.0  # of a picture that is shown as if it were a camera
ASSUMED_FPS: Final = 25.0  # of a clip that does not say
MOST_LATE_S: Final = 1.0  # after a longer stop, a clip goes on from where it was instead of catching up


class OpenCvBackend:
    """A live `cv2.VideoCapture` as a CameraBackend."""

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        self._name, self._capture = name, capture

    def grab(self) -> int:
        """Wait for the next picture; return when it arrived (CLOCK_MONOTONIC, ns)."""
        if not self._capture.grab():
            raise CameraLost(f"{self._name} gives no pictures any more (unplugged, switched off or out of reach)")
        return time.monotonic_ns()

    def pixels(self) -> NDArray[Any] | None:
        """Decode the picture that was grabbed last; None if it is damaged."""
        done, pixels = self._capture.retrieve()  # new memory each time
        return pixels if done else None

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()


def open_device(path: Path, size: tuple[int, int] | None, fps: float | None, rotate: int = 0) -> Source:
    """Open a V4L2 camera.

    Raises:
        CameraError: this user may not open it, it is busy, or it gives no picture.
    """
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraError(f"you may not open {path}: {v4l2.permission_cure(path)}")
    capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise CameraError(
            f"cannot open {path}: another program holds it (see `fuser -v {path}`), or it is no camera"
            " (see `edgesan devices`)"
        )
    # Two buffers: one fills while the other is read. With one, the driver has no place for the next picture meanwhile.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
    if asked := before_turn(size, rotate):
        if asked[0] * asked[1] > 640 * 480:
            # USB 2 cannot carry larger pictures uncompressed at full rate. A camera without MJPG ignores this.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, asked[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, asked[1])
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    return LiveSource(str(path), OpenCvBackend(str(path), capture), size, fps, rotate)


def open_file(path: Path, size: tuple[int, int] | None, fps: float | None, rotate: int = 0) -> Source:
    """Open a file as if it were a camera: a clip once, in real time; a picture again and again, without end.

    Raises:
        CameraError: it is neither.
    """
    check_file(path)
    # GIF is a clip to FFmpeg, and only its first picture to OpenCV.
    if cv2.haveImageReader(str(path)) and path.suffix.lower() != ".gif":
        return StillSource(path, size, fps, rotate)
    return FileSource(path, size, fps, rotate, loop=False, paced=True)


class FileSource:
    """A clip, played in real time (`paced`: only the newest frame that is due), or frame by frame."""

    def __init__(  # noqa: PLR0913 - these are the ways in which a clip can be shown
        self,
        path: Path,
        size: tuple[int, int] | None,
        fps: float | None,
        rotate: int = 0,
        *,
        loop: bool,
        paced: bool,
        name: str = "",
    ) -> None:
        """Open the clip and decode its first frame.

        Args:
            path: the file.
            size: width and height to scale down to, as they are after rotation.
            fps: frames a second to lend at most.
            rotate: degrees clockwise.
            loop: start over at the end.
            paced: play in real time, and skip what is late.
            name: for messages; the file's name if empty.

        Raises:
            CameraError: there is no such file, or no video in it.
        """
        check_file(path)
        self.name = name or path.name
        self._path, self._asked, self._rotate, self._loop, self._paced = path, size, rotate, loop, paced
        self._capture = open_clip(path)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._period_s = 1 / rate if 0 < rate <= 1000 else 1 / ASSUMED_FPS
        self._limiter = FrameRateLimiter(fps)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count: int | None = round(count) if count > 0 and fps is None else None
        """Number of frames that the file claims to have; None if unknown."""
        self.position_s = -self._period_s
        """Time of the frame that was lent last, since the beginning; it goes on growing when the clip starts over."""
        self._opened_ns = time.monotonic_ns()
        self._pass_s = 0.0  # when this pass of the loop began
        self._began_s: float | None = None  # time.monotonic() at position 0
        self._number = 0
        self._lent = False  # whether the frame that is grabbed was lent already
        try:
            self._advance()
        except EndOfStream:
            raise CameraError(f"{path} has no frame that can be read: it is damaged; give another clip") from None
        first = self._pixels()
        if first is None:
            raise CameraError(f"{path} begins with a damaged frame: repair it, or give another clip")
        self.size = (first.shape[1], first.shape[0])

    def frame(self, timeout_s: float) -> AbstractContextManager[RawFrame]:
        """Lend the next frame (paced: the newest that is due); never CameraLost while the file is there."""
        if self._lent:
            self._advance()
        if self._paced:
            self._keep_time()
        while (pixels := self._pixels()) is None:  # a damaged frame costs one frame
            self._advance()
        if (pixels.shape[1], pixels.shape[0]) != self.size:
            raise CameraError(f"{self._path} changes its picture size in the middle, at {self.position_s:.2f} s")
        self._lent = True
        now_ns = time.monotonic_ns()
        # When played, a frame counts as captured when it was due, so that its age is what decoding took. Else time is
        # the clip's.
        if self._began_s is None:
            captured_ns = self._opened_ns + round(self.position_s * 1e9)
        else:
            captured_ns = min(round((self._began_s + self.position_s) * 1e9), now_ns)
        return lend(pixels, self._number, captured_ns, now_ns)

    def _advance(self) -> None:
        """Grab the next frame that the rate limit admits."""
        while True:
            if not self._capture.grab():
                self._start_over()
            self._number += 1
            stamp_s = self._pass_s + self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Some files have no time stamps, or some that stand still or jump back: then the frame rate counts.
            forward = stamp_s > self.position_s and math.isfinite(stamp_s)
            self.position_s = stamp_s if forward else self.position_s + self._period_s
            self._lent = False
            if self._limiter.admits(self.position_s):
                return

    def _start_over(self) -> None:
        if not self._loop:
            raise EndOfStream(f"{self.name} is over")
        self._capture.release()
        self._capture = open_clip(self._path)  # opening works for all formats, and seeking does not
        self._pass_s = self.position_s + self._period_s
        if not self._capture.grab():
            raise CameraLost(f"{self._path} cannot be read any more")

    def _keep_time(self) -> None:
        """Skip what is late, then wait until the grabbed frame is due."""
        now_s = time.monotonic()
        if self._began_s is None or now_s - self._began_s - self.position_s > MOST_LATE_S:
            self._began_s = now_s - self.position_s
        step_s = max(self._period_s, self._limiter.period_s)
        while now_s - self._began_s - self.position_s >= step_s:  # the one after it is due too
            self._advance()
        time.sleep(max(0.0, self._began_s + self.position_s - time.monotonic()))

    def _pixels(self) -> Pixels | None:
        done, pixels = self._capture.retrieve()
        return upright(pixels, self._asked, self._rotate) if done else None

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


def open_clip(path: Path) -> cv2.VideoCapture:
    """Open a clip with FFmpeg, by a path that cannot be taken for a URL.

    OpenCV's other readers take a % in a name for a pattern.

    Raises:
        CameraError: there is no video in the file.
    """
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise CameraError(f"{path} is not a clip that can be read (damaged, cut short, or another kind of file)")
    return capture


class StillSource:
    """A picture that is shown again and again, without end, so that a run can be tried without a camera."""

    def __init__(self, path: Path, size: tuple[int, int] | None, fps: float | None, rotate: int = 0) -> None:
        self.name = path.name
        self._pixels = read_picture(path, rotate, size)
        self._pixels.flags.writeable = False  # every frame shares this memory
        self.size = (self._pixels.shape[1], self._pixels.shape[0])
        self._period_s = 1 / (fps or STILL_FPS)
        self._due_s = time.monotonic()
        self._number = 0

    def frame(self, timeout_s: float) -> AbstractContextManager[RawFrame]:
        """Lend the picture, when it is due again."""
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._due_s = time.monotonic() + self._period_s
        self._number += 1
        now_ns = time.monotonic_ns()
        return lend(self._pixels, self._number, now_ns, now_ns)

    def close(self) -> None:
        """Nothing is open."""


def read_picture(path: Path, rotate: int = 0, size: tuple[int, int] | None = None) -> Pixels:
    """Read a picture file as BGR, rotated as its own metadata says and then by `rotate`; transparency is dropped.

    Raises:
        CameraError: there is no such file, it is no picture, or a damaged or too large one.
    """
    check_file(path)
    try:
        # Not imread: of a JPEG that is cut short, it makes up the rest.
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        # OPENCV_IO_MAX_IMAGE_PIXELS, which must be set before cv2 is loaded: refused before it is decoded.
        raise CameraError(f"{path} is damaged, or has more than {MOST_PIXELS:,} pixels: make it smaller") from error
    if pixels is None:
        raise CameraError(f"{path} is not a picture that can be read (damaged, or another kind of file)")
    return upright(pixels, size, rotate)


def check_file(path: Path) -> None:
    """Refuse what is no readable, ordinary file.

    Raises:
        CameraError: the message says what it is instead.
    """
    if path.exists() and not path.is_file():
        raise CameraError(f"{path} is a {'folder' if path.is_dir() else 'special file'}: give a picture or a clip")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise CameraError(f"cannot read {path}: {error.strerror}; give a picture or a clip") from error
    if empty:
        raise CameraError(f"{path} is empty (0 bytes): give a picture or a clip")
