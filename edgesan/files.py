"""`edgesan sanitize IN OUT`: every frame of pictures and clips, through the same pipeline as a camera's."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import disk, faces
from edgesan.canvas import PLAIN
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.config import FILE_SUFFIXES, PICTURE_SUFFIXES, Config
from edgesan.errors import CameraError, ConfigError, EndOfStream, SinkError
from edgesan.frames import RawFrame, SanitizedFrame, lend
from edgesan.local import Sanitizer
from edgesan.status import warnings
from edgesan.transmit.file import ClipWriter

logger = logging.getLogger(__name__)

READ_PICTURES = (".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".avif")  # which become .png
READ_CLIPS = (".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".flv", ".gif")
CLIPS = {*FILE_SUFFIXES, *READ_CLIPS} - {".gif"}  # of which no picture can be read
KNOWN = (*PICTURE_SUFFIXES, *READ_PICTURES, *FILE_SUFFIXES, *READ_CLIPS)  # in a folder
SAME_FACE = 0.3  # overlap (IoU) from which a detected face and a sanitized one are the same
FRAME_TIMEOUT_S = 10.0  # to decode the next frame of a clip


@dataclass
class Report:
    """What was done. With `--stats`, `found` counts the faces that the detector finds at full resolution."""

    frames: int = 0
    faces: int = 0  # sanitized faces that were put into frames
    found: int | None = None
    covered: int | None = None  # how many of those found came out sanitized
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return the report for people."""
        line = f"{self.frames} frames, {self.faces} faces sanitized, {self.frames / self.seconds:.1f} frames/s"
        if self.found is None or self.covered is None:
            return line
        share = f" ({100 * self.covered / self.found:.1f} %)" if self.found else ""
        return f"{line}\nfound at full resolution: {self.found}; came out sanitized: {self.covered}{share}"


class KeepingSanitizer(Sanitizer):
    """For `--background keep`, and for nothing else: the surroundings of the faces stay raw.

    It is only here, where a file of one's own is made and nothing is sent.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(replace(config, background="plain"))

    def __call__(self, raw: RawFrame) -> SanitizedFrame:
        """Sanitize the faces of the next frame.

        Raises:
            ModelError: the model failed.
        """
        latents = self._sanitizer(raw)
        canvas = raw.pixels.copy()
        for track in self.tracks:
            canvas[head(track.box)] = PLAIN
        return self._renderer(latents, canvas)


def head(box: NDArray[np.float32]) -> tuple[slice, slice]:
    """Return the rows and columns of a face and half of its size on every side, rounded outwards.

    Of a box that is not finite, return all: what cannot be placed may be anywhere.
    """
    if not np.isfinite(box).all():
        return slice(None), slice(None)
    x, y, w, h = box
    rows = slice(max(0, int(y - h / 2)), max(0, int(np.ceil(y + 1.5 * h))))
    return rows, slice(max(0, int(x - w / 2)), max(0, int(np.ceil(x + 1.5 * w))))


class CountingSanitizer:
    """A sanitizer that keeps a report of its frames.

    With `stats`, each raw frame is searched again at full resolution, to count faces that the sanitizer missed.
    """

    def __init__(self, sanitizer: Sanitizer, *, stats: bool) -> None:
        self._sanitizer, self._stats = sanitizer, stats
        self._detector: faces.Detector | None = None
        self.report = Report()

    def __call__(self, raw: RawFrame) -> SanitizedFrame:
        """Sanitize the next frame, and count."""
        frame = self._sanitizer(raw)
        self.report.frames += 1
        self.report.faces += frame.stamps.faces
        if self._stats:
            self._count(raw)
        return frame

    def _count(self, raw: RawFrame) -> None:
        self._detector = self._detector or faces.Detector(max(raw.pixels.shape[:2]))
        found = self._detector(raw.pixels)
        boxes = [track.box for track in self._sanitizer.tracks]
        hits = sum(any(faces.overlap(face.box, box) >= SAME_FACE for box in boxes) for face in found)
        self.report.found = (self.report.found or 0) + len(found)
        self.report.covered = (self.report.covered or 0) + hits


class Job(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


def plan(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Return what is to be written for these files and folders.

    One file goes to `output`. Several files, or what is in a folder and in those within it, go into the folder
    `output`, under the same names; a kind that is not written becomes .png or .mp4.

    Raises:
        ConfigError: there is nothing to write, or two inputs would have the same output.
    """
    if len(inputs) == 1 and not inputs[0].is_dir() and not output.is_dir():
        return [Job(inputs[0], output)]
    jobs: dict[Path, Job] = {}
    for given in inputs:
        for source in _sources(given, output):
            name = source.relative_to(given) if given.is_dir() else Path(source.name)
            target = output / name.with_suffix(_written(name.suffix))
            if target in jobs:
                raise ConfigError(f"{jobs[target].source} and {source} would both become {target}: rename one of them")
            jobs[target] = Job(source, target)
    if not jobs:
        raise ConfigError(f"there is no picture and no clip in {', '.join(map(str, inputs))}; name another folder")
    return list(jobs.values())


def _sources(given: Path, output: Path) -> list[Path]:
    """Return the pictures and clips of a folder, without hidden ones and those of `output`; or the file itself."""
    if not given.is_dir():
        return [given]
    found = [path for path in sorted(given.rglob("*")) if path.suffix.lower() in KNOWN and path.is_file()]
    hidden = [path for path in found if any(part.startswith(".") for part in path.relative_to(given).parts)]
    return [path for path in found if path not in hidden and not path.is_relative_to(output)]


def _written(suffix: str) -> str:
    if suffix.lower() in (*PICTURE_SUFFIXES, *FILE_SUFFIXES):
        return suffix
    return ".png" if suffix.lower() in READ_PICTURES else ".mp4"


class FileSanitizer:
    """Sanitizes pictures and clips, each by itself, with one model.

    Args:
        config: the options.
        force: overwrite what exists.
        stats: also count the faces at full resolution.
        audio: keep the sound of clips, as it is.

    Raises:
        ModelError: the model may not be run.
    """

    def __init__(self, config: Config, *, force: bool = False, stats: bool = False, audio: bool = False) -> None:
        self._rotate, self._force, self._stats, self._audio = config.rotate, force, stats, audio
        self._sanitizer = (KeepingSanitizer if config.background == "keep" else Sanitizer)(config)
        for text in warnings(config, self._sanitizer.model):
            logger.warning("%s", text)
        if audio:
            logger.warning("the sound is RAW (--audio): a voice tells who speaks, and much about that person")

    def __call__(self, source: Path, target: Path) -> Report:
        """Sanitize a picture or a clip.

        Args:
            source: the picture or clip.
            target: the file to write; its suffix says how.

        Raises:
            ConfigError: `target` exists, is `source`, or has a suffix that does not fit `source`.
            ModelError: the model failed.
            CameraError: `source` cannot be read.
            SinkError: `target` cannot be written.
        """
        if target.exists() and source.exists() and target.samefile(source):
            raise ConfigError(f"{target} is the input itself: name another output")
        if target.exists() and not self._force:
            raise ConfigError(f"{target} exists: name another output, or give --force to overwrite it")
        picture = target.suffix.lower() in PICTURE_SUFFIXES
        if not picture and target.suffix.lower() not in FILE_SUFFIXES:
            raise ConfigError(
                f"cannot write {target}: expected {', '.join(PICTURE_SUFFIXES)} for a picture,"
                f" {', '.join(FILE_SUFFIXES)} for a clip, or a folder ({target}/)"
            )
        if picture and source.suffix.lower() in CLIPS:
            raise ConfigError(
                f"{source} is a clip, and {target} a picture: name a file ending in {' or '.join(FILE_SUFFIXES)}"
            )
        started = time.monotonic()
        self._sanitizer.forget()
        sanitize = CountingSanitizer(self._sanitizer, stats=self._stats)
        if picture:
            _sanitize_picture(source, target, self._rotate, sanitize)
        else:
            _sanitize_clip(source, target, self._rotate, sanitize, audio=self._audio)
        sanitize.report.seconds = time.monotonic() - started
        return sanitize.report


Sanitize = Callable[[RawFrame], SanitizedFrame]


def _sanitize_picture(source: Path, target: Path, rotate: int, sanitize: Sanitize) -> None:
    pixels = read_picture(source, rotate)
    now_ns = time.monotonic_ns()
    with lend(pixels, 1, now_ns, now_ns) as raw:
        frame = sanitize(raw)
    done, encoded = cv2.imencode(target.suffix, frame.pixels)
    if not done:
        raise SinkError(
            f"cannot encode a picture of {pixels.shape[1]}x{pixels.shape[0]} as {target.suffix}: choose .png"
        )
    try:
        disk.write_whole(target, encoded.tobytes())
    except OSError as error:
        raise SinkError(
            f"cannot write {target}: {error.strerror}; name a place with room that you may write to"
        ) from error


def _sanitize_clip(source: Path, target: Path, rotate: int, sanitize: Sanitize, *, audio: bool) -> None:
    part = target.with_name(f".{target.stem}.part{target.suffix}")  # so that OUT is whole, or as it was
    part.unlink(missing_ok=True)
    try:
        _write_clip(source, part, rotate, sanitize, audio=audio)
        move_whole(part, target)
    finally:
        part.unlink(missing_ok=True)


def move_whole(part: Path, target: Path) -> None:
    """Move a finished file to its place, or remove it.

    Raises:
        SinkError: the place cannot be written.
    """
    try:
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SinkError(f"cannot write {target}: {error.strerror}; name a place that you may write to") from error


class Sound:
    """The sound of a clip, to be copied packet by packet; `stream` is None where there is none."""

    def __init__(self, source: Path) -> None:
        """Open the clip.

        Raises:
            CameraError: it cannot be read.
        """
        try:
            self._container = av.open(str(source.absolute()))
        except (av.FFmpegError, OSError) as error:
            raise CameraError(
                f"cannot read the sound of {source}: {error.strerror}; is it a clip that is whole?"
            ) from error
        self.stream: Any = next(iter(self._container.streams.audio), None)
        video = next(iter(self._container.streams.video), None)
        self._begin_s = float((video.start_time or 0) * video.time_base) if video and video.time_base else 0.0
        self._packets: Iterator[Any] = iter(()) if self.stream is None else self._read()
        self._next: Any = next(self._packets, None)

    def _read(self) -> Iterator[Any]:
        with suppress(av.InvalidDataError):  # the rest is damaged
            for packet in self._container.demux(self.stream):
                if packet.pts is not None and packet.dts is not None:
                    shift = round(self._begin_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    if packet.dts >= 0:
                        yield packet

    def until(self, seconds: float) -> Iterator[Any]:
        """Return the packets up to this time of the clip, after those that were returned before."""
        while self._next is not None and float(self._next.dts * self._next.time_base) <= seconds:
            yield self._next
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the clip."""
        self._container.close()


@contextmanager
def _made(path: Path) -> Iterator[BinaryIO]:
    """Make a file to write a clip to.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        file = path.open("xb")
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror}; name a place that you may write to") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # ClipWriter flushes what it writes, and has reported what could not be written
            file.close()


def _write_clip(source: Path, target: Path, rotate: int, sanitize: Sanitize, *, audio: bool) -> None:
    with ExitStack() as stack:
        clip = stack.enter_context(closing(FileSource(source, None, None, rotate, loop=False, paced=False)))
        sound = stack.enter_context(closing(Sound(source)))
        if sound.stream is not None and not audio:
            logger.info("%s: its sound is left out; --audio keeps it", source)
        file = stack.enter_context(_made(target))
        writer = stack.enter_context(closing(ClipWriter(file, target, sound.stream if audio else None)))
        quiet = None if logger.isEnabledFor(logging.INFO) else True  # None: only on a terminal
        bar = stack.enter_context(
            tqdm(total=clip.frame_count, unit="frame", desc=source.name, leave=False, disable=quiet)
        )
        while True:
            try:
                with clip.frame(FRAME_TIMEOUT_S) as raw:
                    frame = sanitize(raw)
            except EndOfStream:
                break
            writer.write(frame, clip.position_s)
            for packet in sound.until(clip.position_s) if audio else ():
                writer.copy(packet)
            bar.update()
        for packet in sound.until(math.inf) if audio and writer.frames else ():
            writer.copy(packet)
