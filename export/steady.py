"""Does a painted face jump from frame to frame? `python -m export.steady MODEL CLIP...`.

Each clip goes through the whole runtime. While a track lives, three pictures of its face are compared with those of the
frame before: the chip of the raw frame; the chip that is painted, before it is put in its place; and what is seen of it
in the frame that leaves, cut out at the landmarks of the raw face, so that the movement of its place counts, too. A
face is steady if the painted chip changes no more than the raw one. Only numbers are printed: no raw pixel is written
anywhere.
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
    sent: float  # what is seen of the painted chip in the frame that leaves

    @property
    def steady(self) -> bool:
        """Whether the painted chip changes no more than the raw one."""
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
    chips: dict[int, Pixels] = {}  # what is painted of each track
    before: dict[int, tuple[NDArray[np.float64], ...]] = {}
    changes: dict[int, list[tuple[float, ...]]] = {}
    for number, (raw, at_ns) in enumerate(frames(path)):
        sent = decode(encode(leave(sanitizer, renderer, raw, number, at_ns)))
        chips |= dict(renderer.news)
        now = {}
        for track in sanitizer.tracker.tracks:
            if not track.code or track.seen_ns != at_ns:
                continue  # it is painted where it was last seen: there is no raw face to compare with
            place = runtime_faces.alignment(track.landmarks)
            pictures = (runtime_faces.cut(raw, place), chips[track.number][..., ::-1], runtime_faces.cut(sent, place))
            now[track.number] = tuple(np.asarray(middle(picture[None])[0], np.float64) for picture in pictures)
            if track.number in before:
                pairs = zip(now[track.number], before[track.number], strict=True)
                changes.setdefault(track.number, []).append(tuple(np.abs(new - old).mean() for new, old in pairs))
        before = now
    means = {number: np.mean(pairs, axis=0) for number, pairs in changes.items()}
    return Clip(
        path.name,
        [Steadiness(n, len(changes[n]), *(round(float(change), 2) for change in mean)) for n, mean in means.items()],
    )


def table(clips: list[Clip]) -> str:
    """Return the clips as Markdown."""
    lines = tables.head(("clip", "track", "pairs of frames", "raw chip", "painted chip", "in the frame", "steady"))
    for clip in clips:
        for t in clip.tracks:
            changes = (f"{change:.2f}" for change in (t.raw, t.painted, t.sent))
            lines.append(tables.line((clip.name, t.track, t.pairs, *changes, "yes" if t.steady else "no")))
        if not clip.tracks:
            lines.append(tables.line((clip.name, tables.MISSING, 0, *[tables.MISSING] * 3, "no face")))
    return "\n".join(lines)


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
