"""`edgesan sanitize IN OUT`: every frame of one picture or clip, through the same pipeline as a camera's."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import disk, faces
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.config import FILE_SUFFIXES, Config
from edgesan.errors import ConfigError, EndOfStream, SinkError
from edgesan.frames import RawFrame, SanitizedFrame, lend
from edgesan.local import Sanitizer
from edgesan.render import PLAIN
from edgesan.status import warnings
from edgesan.transmit.file import ClipWriter

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
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


def sanitize_file(source: Path, target: Path, config: Config, *, force: bool, stats: bool) -> Report:
    """Sanitize a picture or a clip.

    Args:
        source: the picture or clip.
        target: the file to write; its suffix says how.
        config: the options.
        force: overwrite `target`.
        stats: also count the faces at full resolution.

    Raises:
        ConfigError: `target` exists, is `source`, or has a suffix that does not fit `source`.
        ModelError: the model may not be run.
        CameraError: `source` cannot be read.
        SinkError: `target` cannot be written.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the input itself: name another output")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists: name another output, or give --force to overwrite it")
    picture = target.suffix.lower() in PICTURE_SUFFIXES
    if not picture and target.suffix.lower() not in FILE_SUFFIXES:
        raise ConfigError(
            f"cannot write {target}: expected {', '.join(PICTURE_SUFFIXES)} for a picture, or .mkv, .mp4 for a clip"
        )
    started = time.monotonic()
    sanitizer = (KeepingSanitizer if config.background == "keep" else Sanitizer)(config)
    for text in warnings(config, sanitizer.model):
        logger.warning("%s", text)
    sanitize = CountingSanitizer(sanitizer, stats=stats)
    (_sanitize_picture if picture else _sanitize_clip)(source, target, config.rotate, sanitize)
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


def _sanitize_clip(source: Path, target: Path, rotate: int, sanitize: Sanitize) -> None:
    part = target.with_name(f".{target.stem}.part{target.suffix}")  # so that OUT is whole, or as it was
    part.unlink(missing_ok=True)
    try:
        _write_clip(source, part, rotate, sanitize)
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


def _write_clip(source: Path, target: Path, rotate: int, sanitize: Sanitize) -> None:
    with ExitStack() as stack:
        clip = stack.enter_context(closing(FileSource(source, None, None, rotate, loop=False, paced=False)))
        try:
            file = stack.enter_context(target.open("xb"))
        except OSError as error:
            raise SinkError(f"cannot write {target}: {error.strerror}; name a place that you may write to") from error
        writer = stack.enter_context(closing(ClipWriter(file, target)))
        bar = stack.enter_context(tqdm(total=clip.frame_count, unit="frame", desc=source.name, leave=False))
        while True:
            try:
                with clip.frame(FRAME_TIMEOUT_S) as raw:
                    frame = sanitize(raw)
            except EndOfStream:
                break
            writer.write(frame, clip.position_s)
            bar.update()
