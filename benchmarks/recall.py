"""Which faces are found: `python -m benchmarks.recall`. Faces of pictures and clips, by their size and roll.

A face that the detector finds in the picture as it is counts as there, if it is large. A square around it is turned
from upright and made smaller, and the detector searches it again. The second table compares, on clips, a search in each
frame with what a live run does: it follows faces, and searches when something is new (`edgesan.sanitize`). It ends with
drawn crowds at 30 frames/s.

The bundled clip is always taken. `EDGESAN_DATA` may name a folder with more of them in `scenes`, which are not in the
project.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import bench, faces, sanitize
from edgesan.capture import DEMO_CLIP
from edgesan.config import Config
from edgesan.frames import Pixels, lend
from edgesan.model.load import load_encoder

SIZES: Final = (10, 14, 20, 30, 60)  # pixels that a face is wide in the copy that is searched
ROLLS: Final = (0, 15, 30, 45, 60, 90, 135, 180)  # degrees, either way
SIDE: Final = 320  # of the square, which is what a live run searches
LEAST: Final = 60  # pixels that a face is wide in its own picture
CROWDS: Final = (2, 4, 16)  # faces
EVERY: Final = 7  # frames of a clip from one that is taken to the next
SAME: Final = 0.5  # IoU of two boxes from which they are of one face


def frames(path: Path) -> Iterator[tuple[Pixels, float]]:
    """Yield the frames of a clip, or the one of a picture, each with its time in s."""
    capture = cv2.VideoCapture(str(path))
    seconds = 1 / (capture.get(cv2.CAP_PROP_FPS) or 30)
    number = 0
    while (read := capture.read())[0]:
        yield np.asarray(read[1], np.uint8), number * seconds
        number += 1


def turned(pixels: Pixels, centre: NDArray[np.float32], scale: float, roll: float) -> Pixels:
    """Return a square of SIDE pixels around a point of a picture, scaled, and rolled clockwise by degrees."""
    middle = (float(centre[0]), float(centre[1]))
    matrix = np.asarray(cv2.getRotationMatrix2D(middle, -roll, scale), np.float64)
    matrix[:, 2] += SIDE / 2 - centre
    if scale < 0.5:  # or warping would skip pixels
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.4 / scale), np.uint8)
    flags, border = cv2.INTER_LINEAR, cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(pixels, matrix, (SIDE, SIDE), flags=flags, borderMode=border), np.uint8)


def by_size_and_roll(paths: list[Path]) -> tuple[int, NDArray[np.float64]]:
    """Return how many faces there were, and the share that was found, [sizes, rolls]."""
    detector, live, found = faces.Detector(640), faces.Detector(SIDE), []
    for path in tqdm(paths, leave=False):
        for number, (pixels, _) in enumerate(frames(path)):
            if number % EVERY:
                continue
            large = [face for face in detector(pixels) if face.box[2] >= LEAST]
            found += [[[_share(live, pixels, face, size, roll) for roll in ROLLS] for size in SIZES] for face in large]
    return len(found), np.mean(found, 0)


def _share(detector: faces.Detector, pixels: Pixels, face: faces.Face, size: int, roll: float) -> float:
    """Return how often a face is found, rolled either way from upright: its middle lies within half its width."""
    centre, scale = face.landmarks.mean(0), float(size / face.box[2])
    own = math.degrees(faces.place(face.landmarks).roll)
    found = []
    for way in (roll, -roll):
        there = detector(turned(pixels, centre, scale, way - own))
        found.append(any(np.hypot(*(each.landmarks.mean(0) - SIDE / 2)) < each.box[2] / 2 for each in there))
    return float(np.mean(found))


@dataclass(frozen=True)
class Followed:
    """A clip: what a live run tracks of what a search in each frame does."""

    name: str
    frames: int
    searches: float  # a frame
    tracked: int  # faces of all frames, by a search in each
    hit: float  # share of them that a live run tracks, too
    off: float  # face widths by which it is off; the 95th percentile


def follow(name: str, clip: Sequence[tuple[Pixels, float]]) -> Followed:
    """Compare the tracks of a live run with those of a search in each frame of a clip: pictures and times in s."""
    whole, _ = _tracks(clip, live=False)
    live, searches = _tracks(clip, live=True)
    off: list[float] = []
    for there, known in zip(whole, live, strict=True):
        for box, middle in there:
            near = [m for b, m in known if faces.overlap(box, b) >= SAME]
            if near:
                off.append(min(float(np.hypot(*(middle - m))) for m in near) / float(box[2]))
    count = sum(map(len, whole))
    return Followed(name, len(live), searches / len(live), count, len(off) / count, float(np.quantile(off, 0.95)))


class _Counting(faces.Detector):
    searches = 0

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        self.searches += 1
        return super().__call__(pixels)


def _tracks(
    clip: Sequence[tuple[Pixels, float]], *, live: bool
) -> tuple[list[list[tuple[NDArray[np.float32], NDArray[np.float32]]]], int]:
    """Return the box and the middle of each track in each frame, and how often was searched."""
    config, detector = Config(), _Counting(SIDE)
    encoder = load_encoder(config.model, config.threads)
    sanitizer = sanitize.FrameSanitizer(encoder, detector, sanitize.Settings())
    found = []
    for number, (pixels, at_s) in enumerate(clip):
        now_ns = 10**12 + round(at_s * 1e9)
        with lend(pixels, number, now_ns, now_ns) as raw:
            sanitizer(raw, late=live)
            sanitizer.catch_up(raw)
        found.append([(track.box, track.landmarks.mean(0)) for track in sanitizer.tracker.tracks])
    return found, detector.searches


def main() -> None:
    """Measure, and print two tables."""
    scenes = Path(os.environ.get("EDGESAN_DATA", "/nowhere")) / "scenes"
    clips = [DEMO_CLIP, *sorted(scenes.glob("*.mp4"))]
    count, shares = by_size_and_roll([*clips, *sorted(scenes.glob("*.jpg"))])
    rows = [(f"{size}", *(f"{100 * share:.0f}" for share in row)) for size, row in zip(SIZES, shares, strict=True)]
    print(f"{count} faces; of 100, found\n")
    print(*bench.table(("pixels of 320", *(f"{roll}°" for roll in ROLLS)), rows), sep="\n")
    seen = [(clip.name, list(frames(clip))) for clip in clips]
    for count in CROWDS:
        drawn = bench.draw(bench.Clip((640, 480), count))
        seen.append((f"{count} faces, drawn", [(pixels, i / bench.RATE) for i, pixels in enumerate(drawn)]))
    followed = [
        (f.name, f.frames, f"{f.searches:.2f}", f.tracked, f"{100 * f.hit:.1f} %", f"{100 * f.off:.1f} %")
        for f in (follow(*each) for each in tqdm(seen, leave=False))
    ]
    columns = ("clip", "frames", "searches a frame", "faces", "tracked live", "off, p95, of a face's width")
    print("", *bench.table(columns, followed), sep="\n")


if __name__ == "__main__":
    main()
