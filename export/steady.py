"""Does a painted face jump from frame to frame? `python -m export.steady MODEL CLIP...`.

Each clip goes through the whole runtime. While a track lives, its chip is cut out of the raw frames and out of the
frames that leave, at the same landmarks, and each is compared with the one before. A face is steady if what is painted
changes no more than the raw face does. Only numbers are printed: no raw pixel is written anywhere.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan import faces as runtime_faces
from edgesan import render, sanitize
from edgesan.config import Config
from edgesan.frames import Pixels
from edgesan.model.load import Model, prepare
from export.audit import tables
from export.audit.command import conclude, errors_as_lines
from export.audit.device import decode, encode, leave
from export.audit.metrics import middle
from export.errors import ExportError

CLIPS = (".mp4", ".webm", ".mkv")
DETECTED = Config().detect_size


@dataclass(frozen=True)
class Steadiness:
    """Mean absolute change from one frame to the next, in levels, over a track's middle of the chip."""

    track: int
    pairs: int  # of frames
    raw: float
    painted: float

    @property
    def steady(self) -> bool:
        """Whether what is painted changes no more than the raw face."""
        return self.painted <= self.raw


@dataclass(frozen=True)
class Clip:
    """One clip and its tracks."""

    name: str
    tracks: list[Steadiness]


def frames(path: Path) -> Iterator[tuple[Pixels, int]]:
    """Yield each frame of a clip, and when it is shown, in nanoseconds.

    Raises:
        ExportError: it has no frame.
    """
    capture = cv2.VideoCapture(str(path))
    fps, number = capture.get(cv2.CAP_PROP_FPS) or 25.0, 0
    while (read := capture.read())[0]:
        yield np.asarray(read[1], np.uint8), int(number / fps * 1e9)
        number += 1
    if not number:
        raise ExportError(f"{path} cannot be read as a clip")


def followed(model: Model, alpha: float, path: Path, seed: int = 0) -> Clip:
    """Send a clip through the device, and measure how much each track changes.

    Raises:
        ExportError: it cannot be read.
    """
    detector, entropy = runtime_faces.Detector(DETECTED), np.random.default_rng(seed).bytes
    sanitizer = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(alpha=alpha), entropy)
    renderer = render.Renderer(model.decoder)
    before: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    changes: dict[int, list[tuple[float, float]]] = {}
    for number, (raw, at_ns) in enumerate(frames(path)):
        sent = decode(encode(leave(sanitizer, renderer, raw, number, at_ns)))
        now = {}
        for track in sanitizer.tracker.tracks:
            if not track.code or track.seen_ns != at_ns:
                continue  # it is painted where it was last seen: there is no raw face to compare with
            place = runtime_faces.alignment(track.landmarks)
            now[track.number] = cut(raw, place), cut(sent, place)
            if track.number in before:
                pair = zip(now[track.number], before[track.number], strict=True)
                first, second = (float(np.abs(new - old).mean()) for new, old in pair)
                changes.setdefault(track.number, []).append((first, second))
        before = now
    means = {number: np.mean(pairs, axis=0) for number, pairs in changes.items()}
    return Clip(
        path.name,
        [Steadiness(n, len(changes[n]), round(float(m[0]), 2), round(float(m[1]), 2)) for n, m in means.items()],
    )


def cut(pixels: Pixels, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle of a chip that is cut out of a frame: it lies within the painted oval."""
    return np.asarray(middle(runtime_faces.cut(pixels, place)[None])[0], np.float64)


def table(clips: list[Clip]) -> str:
    """Return the clips as Markdown."""
    lines = tables.head(("clip", "track", "pairs of frames", "raw face", "painted face", "steady"))
    for clip in clips:
        for t in clip.tracks:
            lines.append(tables.line((clip.name, t.track, t.pairs, f"{t.raw:.2f}", f"{t.painted:.2f}", yes(t.steady))))
        if not clip.tracks:
            lines.append(tables.line((clip.name, tables.MISSING, 0, tables.MISSING, tables.MISSING, "no face")))
    return "\n".join(lines)


def yes(holds: bool) -> str:
    """Return yes or no."""
    return "yes" if holds else "no"


def clips_of(paths: list[Path]) -> list[Path]:
    """Return clips, and of folders their clips.

    Raises:
        ExportError: there are none.
    """
    found = [
        clip
        for path in paths
        for clip in (sorted(p for p in path.iterdir() if p.suffix in CLIPS) if path.is_dir() else [path])
    ]
    if not found:
        raise ExportError(f"no clip ({', '.join(CLIPS)}) in {', '.join(map(str, paths))}")
    return found


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure how steady faces are, and print it as a table."""
    p = argparse.ArgumentParser(prog="python -m export.steady", description=__doc__)
    p.add_argument("model", type=Path, help="an edgesan .onnx file")
    p.add_argument("clips", type=Path, nargs="+", help="clips, or folders of clips")
    p.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    a = p.parse_args(arguments)
    model = prepare(a.model, a.model.read_bytes(), threads=1)
    alpha = model.metadata.alpha_default if a.alpha is None else a.alpha
    found = [followed(model, alpha, clip) for clip in clips_of(a.clips)]
    conclude(found, table(found), a.json)


if __name__ == "__main__":
    sys.exit(main())
