"""The file sink: H.264 in .mkv, .mp4 or .mov, with the time stamps of the camera.

A power cut costs an .mkv its last second, and the others everything: their index is written at the end.
"""

import errno
import logging
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

import av
import numpy as np

from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame

logger = logging.getLogger(__name__)

TIME_BASE = Fraction(1, 1000)
CODEC: Final = "libx264"
CODEC_OPTIONS = {"preset": "veryfast", "crf": "23"}
CONTAINERS: Final = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}
# Sound that is copied as it is. The header of others, such as Vorbis, holds comments, and so may hold a picture.
SOUNDS: Final = ("aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus", "pcm_")
CONTAINER_OPTIONS = {
    ".mkv": {"cluster_time_limit": "1000"}
}  # ms that are held back; FFmpeg's default of 5 s would hide a full disk


class Output:
    """An open file for FFmpeg to write to. It keeps the first error, because PyAV reports only that there was one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write and flush."""
        try:
            written = self._file.write(content)
            self._file.flush()  # a power cut then costs no more than it must
        except OSError as error:
            self.error = self.error or error
            raise
        return written


class ClipWriter:
    """Writes sanitized frames to a clip, for the file sink and for `edgesan sanitize`.

    An odd last row or column is left out (4:2:0 has none). A frame of another size than the first is refused.

    Raises:
        SinkError: the file cannot be written, the disk is full, or libx264 is missing.
    """

    def __init__(self, file: BinaryIO, path: Path, sound: av.AudioStream | None = None) -> None:
        """Begin a clip.

        Args:
            file: open for writing and empty; it stays open.
            path: its name, whose suffix says how to write.
            sound: the stream whose packets `copy` will get; None: the clip stays silent.
        """
        self._file, self.path = Output(file), path
        if CODEC not in av.codecs_available:
            others = ", ".join(sorted(name for name in av.codecs_available if "264" in name)) or "none"
            raise SinkError(
                f"cannot write {path}: PyAV {av.__version__} has no {CODEC} here (its H.264 encoders: {others});"
                " install a wheel that has it: pip install av"
            )
        try:
            options = CONTAINER_OPTIONS.get(path.suffix.lower(), {})
            self._container = av.open(self._file, "w", format=CONTAINERS[path.suffix.lower()], options=options)
            self._stream: Any = self._container.add_stream(CODEC, options=CODEC_OPTIONS)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error
        self._sound = None if sound is None else self._copied(sound)
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = TIME_BASE
        self._stream.codec_context.time_base = TIME_BASE
        self._size: tuple[int, int] | None = None
        self._last, self.frames = -1, 0
        self._open = True

    def write(self, frame: SanitizedFrame, seconds: float) -> None:
        """Add a frame at a time in seconds from the start. A time that does not rise becomes a millisecond later."""
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
        self.frames += 1

    def _copied(self, sound: av.AudioStream) -> Any:
        """Return a stream of this clip for the sound of another one. Its tags are left out."""
        codec = sound.codec_context.name
        if not codec.startswith(SOUNDS):
            raise SinkError(
                f"{self.path}: the sound ({codec}) is of a kind whose header may hold a picture, and is not copied;"
                " convert it to AAC first, or leave --audio out"
            )
        try:
            return self._container.add_stream_from_template(sound)
        except (av.FFmpegError, ValueError) as error:
            raise SinkError(
                f"{self.path} cannot hold the sound ({codec}): name an .mkv or .mov, or leave --audio out"
            ) from error

    def copy(self, packet: Any) -> None:
        """Add a packet of the sound as it is."""
        packet.stream = self._sound
        try:
            self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode a picture, or flush the encoder if it is None, and write the packets."""
        try:
            packets = self._stream.encode(picture)
        except av.FFmpegError as error:
            width, height = self._size or (0, 0)
            raise SinkError(
                f"cannot encode a picture of {width}x{height} for {self.path} ({CODEC}: {error.strerror}); free some"
                " memory, or take smaller pictures, and begin a new clip"
            ) from error
        try:
            for packet in packets:
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Write what is left, and the index. A clip without a frame stays empty. May be called twice."""
        if not self._open:
            return
        self._open = False
        if self._size is None:
            return
        try:
            self._mux(None)
        finally:
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                raise self._failure(error) from error

    def _failure(self, error: av.FFmpegError | OSError) -> SinkError:
        error = self._file.error or error
        if error.errno == errno.ENOSPC:
            return SinkError(f"{self.path}: the disk is full; make room, or name a file on another disk")
        return SinkError(f"cannot write {self.path}: {error.strerror}; name a file in a folder that you may write to")


class FileSink:
    """`--out clip.mkv`: writes every frame from the first live one on, slates too."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.name = str(path)
        self._file, self._path = file, path
        self._writer: ClipWriter | None = None
        self._first_ns: int | None = None

    async def start(self) -> None:
        """Begin the clip."""
        self._writer = ClipWriter(self._file, self._path)

    async def send(self, frame: SanitizedFrame) -> None:
        """Write a frame."""
        assert self._writer is not None
        if self._first_ns is None:
            if frame.stamps.slate:  # whose size may be another
                return
            self._first_ns = frame.stamps.captured_ns
        self._writer.write(frame, (frame.stamps.captured_ns - self._first_ns) / 1e9)

    async def close(self) -> None:
        """Finish the clip, say what is in it, and close the file."""
        try:
            if self._writer is not None:
                self._writer.close()
                size, frames = os.fstat(self._file.fileno()).st_size, self._writer.frames
                if frames:
                    logger.info("%s: %s frames, %s bytes", self._path, f"{frames:,}", f"{size:,}")
                else:
                    logger.warning("%s: no frame came, so nothing is recorded", self._path)
        finally:
            with suppress(OSError):  # an earlier error is reported already
                self._file.close()
