"""The file sink: H.264 in .mkv or .mp4, with the time stamps of the camera.

A power cut costs an .mkv its last second, and an .mp4 everything: its index is written at the end.
"""

import errno
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame

TIME_BASE = Fraction(1, 1000)
CODEC: Final = "libx264"
CODEC_OPTIONS = {"preset": "veryfast", "crf": "23"}
CONTAINER_OPTIONS = {".mkv": {"cluster_time_limit": "1000"}}  # ms that are held back; FFmpeg's own 5 s hide a full disk


class ClipWriter:
    """Writes sanitized frames to a new clip; used by the file sink, and by `edgesan sanitize`.

    An odd last row or column is left out (4:2:0 has none); a frame of another size than the first is refused.

    Raises:
        SinkError: the file exists, the place cannot be written, the disk is full, or libx264 is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if CODEC not in av.codecs_available:
            there = ", ".join(sorted(name for name in av.codecs_available if "264" in name)) or "none"
            raise SinkError(
                f"cannot write {path}: PyAV {av.__version__} has no {CODEC} here (H.264 that it has: {there}); pip install av"
            )
        try:
            path.touch(exist_ok=False)  # FFmpeg would open it with the first frame only
            # "file:", or FFmpeg takes 10:30.mkv for a protocol
            self._container = av.open(f"file:{path}", "w", options=CONTAINER_OPTIONS.get(path.suffix, {}))
            self._stream: Any = self._container.add_stream(CODEC, options=CODEC_OPTIONS)
        except FileExistsError as error:
            raise SinkError(f"{path} exists: name another file, or move it away first") from error
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = TIME_BASE
        self._stream.codec_context.time_base = TIME_BASE
        self._size: tuple[int, int] | None = None
        self._last = -1
        self._open = True

    def write(self, frame: SanitizedFrame, seconds: float) -> None:
        """Add a frame at a time in seconds from the start. Times that do not rise are moved on by a millisecond."""
        height, width = frame.pixels.shape[0] // 2 * 2, frame.pixels.shape[1] // 2 * 2
        if not (height and width):
            raise SinkError(f"{self.path}: a clip needs frames of at least 2x2 pixels; write a .png instead")
        if self._size is None:
            self._size = width, height
            self._stream.width, self._stream.height = width, height
        if self._size != (width, height):
            raise SinkError(
                f"{self.path}: the picture changed from {self._size} to {(width, height)}; start a new file"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels[:height, :width]), format="bgr24")
        self._last = max(self._last + 1, round(seconds / TIME_BASE))
        picture.pts, picture.time_base = self._last, TIME_BASE
        self._mux(picture)

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode a picture (None: what is left) and write the packets."""
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Write what is left and the index; a clip without a frame leaves no file. Idempotent."""
        if not self._open:
            return
        self._open = False
        if self._size is None:
            self.path.unlink(missing_ok=True)
            return
        try:
            self._mux(None)
        finally:
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                raise self._failure(error) from error

    def _failure(self, error: av.FFmpegError | OSError) -> SinkError:
        if error.errno == errno.ENOSPC:
            return SinkError(f"{self.path}: the disk is full; make room, or name a file on another disk")
        return SinkError(f"cannot write {self.path}: {error.strerror}; name a file in a folder that you may write to")


def next_free(path: Path) -> Path:
    """clip.mkv -> clip-2.mkv, or the next number that is free."""
    return next(p for n in itertools.count(2) if not (p := path.with_stem(f"{path.stem}-{n}")).exists())


class FileSink:
    """`--out clip.mkv`: everything that is sent, slates too."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._writer: ClipWriter | None = None
        self._first_ns: int | None = None

    async def start(self) -> None:
        self._writer = ClipWriter(self._path)

    async def send(self, frame: SanitizedFrame) -> None:
        assert self._writer is not None
        if self._first_ns is None:
            self._first_ns = frame.stamps.captured_ns
        self._writer.write(frame, (frame.stamps.captured_ns - self._first_ns) / 1e9)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
