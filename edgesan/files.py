"""`edgesan sanitize IN OUT`: one picture or clip through the same pipeline, every frame of it."""

import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
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
from edgesan.message import MOST_FACES
from edgesan.model.load import load_model
from edgesan.pipeline import build, hold_version
from edgesan.render import PLAIN, Renderer
from edgesan.sanitize import FrameSanitizer
from edgesan.status import warnings
from edgesan.transmit.file import ClipWriter

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SAME_FACE = 0.3  # overlap (IoU) of a found face with a sanitized one


@dataclass
class Report:
    """What was done. With `--stats`, `found` counts the faces that the detector finds at full resolution."""

    frames: int = 0
    faces: int = 0  # sanitized chips that were put into frames
    found: int | None = None
    covered: int | None = None  # of those found, how many came out as a sanitized chip
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        line = f"{self.frames} frames, {self.faces} faces sanitized, {self.frames / self.seconds:.1f} frames/s"
        if self.found is None or self.covered is None:
            return line
        share = f" ({100 * self.covered / self.found:.1f} %)" if self.found else ""
        return f"{line}\nfound at full resolution: {self.found}; came out sanitized: {self.covered}{share}"


class Door:
    """Both halves in one process, which has no network: for one's own pictures and clips."""

    def __init__(self, config: Config) -> None:
        """Raises ModelError, ConfigError."""
        model = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        self.model, self.sanitizer, self.rotate = model, build(config, model.encoder, MOST_FACES), config.rotate
        hold_version(config, model, None)
        self._renderer, self._keeps = Renderer(model.decoder, config.zones), config.background == "keep"

    def __call__(self, raw: RawFrame) -> SanitizedFrame:
        """A frame, sanitized. With "keep", on the raw surroundings, in which each known head is hidden."""
        latents = self.sanitizer(raw)
        if not self._keeps:
            return self._renderer(latents)
        canvas = raw.pixels.copy()
        for track in self.sanitizer.tracker.tracks:
            canvas[head(track.box)] = PLAIN
        return self._renderer(latents, canvas)


def head(box: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns of a face and half of its size on every side, rounded outwards.

    Of a box that is not finite, all: what cannot be placed may be anywhere.
    """
    if not np.isfinite(box).all():
        return slice(None), slice(None)
    x, y, w, h = box
    rows = slice(max(0, int(y - h / 2)), max(0, int(np.ceil(y + 1.5 * h))))
    return rows, slice(max(0, int(x - w / 2)), max(0, int(np.ceil(x + 1.5 * w))))


class Counter:
    """Compares the sanitizer's tracks with what the detector finds on the whole raw frame."""

    def __init__(self, side: int) -> None:
        self._detector = faces.Detector(side)

    def count(self, raw: RawFrame, sanitizer: FrameSanitizer, report: Report) -> None:
        found = self._detector(raw.pixels)
        boxes = [track.box for track in sanitizer.tracker.tracks]
        report.found = (report.found or 0) + len(found)
        hits = sum(any(faces.overlap(face.box, box) >= SAME_FACE for box in boxes) for face in found)
        report.covered = (report.covered or 0) + hits


def sanitize_file(source: Path, target: Path, config: Config, *, force: bool, stats: bool) -> Report:
    """Sanitize a picture or a clip.

    Raises:
        ConfigError: OUT exists, is IN, or has a suffix that does not fit IN. ModelError: the model may not be run.
        CameraError: IN cannot be read. SinkError: OUT cannot be written.
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
    report = Report()
    started = time.monotonic()
    door = Door(config)
    for text in warnings(config, door.model):
        print(f"edgesan: WARNING: {text}", file=sys.stderr)
    if picture:
        _sanitize_picture(source, target, door, report, stats)
    else:
        _sanitize_clip(source, target, door, report, stats)
    report.seconds = time.monotonic() - started
    return report


def _sanitize_picture(source: Path, target: Path, door: Door, report: Report, stats: bool) -> None:
    pixels = read_picture(source, door.rotate)
    now_ns = time.monotonic_ns()
    with lend(pixels, 1, now_ns, now_ns) as raw:
        frame = door(raw)
        if stats:
            Counter(max(pixels.shape[:2])).count(raw, door.sanitizer, report)
    report.frames, report.faces = 1, frame.stamps.faces
    done, encoded = cv2.imencode(target.suffix, frame.pixels)
    if not done:
        raise SinkError(
            f"cannot encode a picture of {pixels.shape[1]}x{pixels.shape[0]} as {target.suffix}: choose .png"
        )
    write_whole(target, encoded.tobytes())


def write_whole(target: Path, content: bytes) -> None:
    """Write a file entirely or not at all.

    Raises:
        SinkError: the place cannot be written, or the disk is full.
    """
    try:
        disk.write_whole(target, content)
    except OSError as error:
        raise SinkError(
            f"cannot write {target}: {error.strerror}; name a place with room that you may write to"
        ) from error


def move_whole(part: Path, target: Path) -> None:
    """Put a finished file in its place; nothing of it stays elsewhere.

    Raises:
        SinkError: the place cannot be written.
    """
    try:
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SinkError(f"cannot write {target}: {error.strerror}; name a place that you may write to") from error


def _sanitize_clip(source: Path, target: Path, door: Door, report: Report, stats: bool) -> None:
    part = target.with_name(f".{target.stem}.part{target.suffix}")  # so that OUT is whole, or as it was
    part.unlink(missing_ok=True)
    try:
        _write_clip(source, part, door, report, stats)
        move_whole(part, target)
    finally:
        part.unlink(missing_ok=True)


def _write_clip(source: Path, target: Path, door: Door, report: Report, stats: bool) -> None:
    with ExitStack() as stack:
        clip = stack.enter_context(closing(FileSource(source, None, None, door.rotate, loop=False, paced=False)))
        try:
            file = stack.enter_context(target.open("xb"))
        except OSError as error:
            raise SinkError(f"cannot write {target}: {error.strerror}; name a place that you may write to") from error
        writer = stack.enter_context(closing(ClipWriter(file, target)))
        counter = Counter(max(clip.size)) if stats else None
        bar = stack.enter_context(tqdm(total=clip.frame_count, unit="frame", desc=source.name, leave=False))
        while True:
            try:
                with clip.frame(10.0) as raw:
                    frame = door(raw)
                    if counter is not None:
                        counter.count(raw, door.sanitizer, report)
            except EndOfStream:
                break
            writer.write(frame, clip.position_s)
            report.frames += 1
            report.faces += frame.stamps.faces
            bar.update()
