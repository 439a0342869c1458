"""Find faces (YuNet), follow them (tracks), and cut them to aligned chips.

The detector runs on a small copy of the frame. A track keeps its face between detections and through short misses. It
also keeps the noise of its face, so that an attacker cannot average the noise away over frames.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan import ort
from edgesan.frames import Pixels
from edgesan.message import Place

CHIP: Final = 112
# ArcFace's five landmarks on a 112x112 chip, left to right in the picture: eyes, nose, corners of the mouth
# (Deng et al., "ArcFace", 2019).
TEMPLATE: Final = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
DETECTOR: Final = Path(__file__).parent / "models" / "yunet.onnx"
SCORE: Final = 0.6
GREY: Final = 320  # longest side in pixels of the copy in which faces are followed
WINDOW: Final = (11, 11)  # pixels of it around a point that must look alike in both frames
LEVELS: Final = 2  # times that it is halved, so that fast movements are found
UNLIKE: Final = 12.0  # levels by which they may differ
LEAST_FOUND: Final = 0.7  # share of a face's points without which it is lost
APART: Final = 0.1  # face widths by which its points may move apart before it does not count as followed
FAR: Final = 0.1  # face widths, likewise, by which it may have moved since it was found
OVERLAP: Final = 0.3  # IoU of two boxes from which they are the same face (non-maximum suppression, and tracking)


@dataclass(frozen=True)
class Face:
    """One detection, in pixels of the frame."""

    box: NDArray[np.float32]  # [4]: x, y, width, height
    landmarks: NDArray[np.float32]  # [5, 2], in TEMPLATE's order
    score: float


class Detector:
    """YuNet (Wu, Peng and Yu 2023) over plain onnxruntime; the decoding follows OpenCV Zoo's description."""

    STRIDES: Final = (8, 16, 32)

    def __init__(self, size: int, threads: int = 1, score: float = SCORE) -> None:
        """Load YuNet. `size` is the longest side, in pixels, of the copy that is searched."""
        self.size, self.score = size, score
        self._session = ort.session(DETECTOR.read_bytes(), threads)
        self._outputs = [f"{head}_{stride}" for stride in self.STRIDES for head in ("cls", "obj", "bbox", "kps")]

    def __call__(self, pixels: Pixels) -> list[Face]:
        """Return the faces of a frame, uint8 [height, width, 3] in BGR, best first."""
        height, width = pixels.shape[:2]
        scale = min(1.0, self.size / max(height, width))
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        small = (
            pixels if scale == 1.0 else cv2.resize(pixels, (small_width, small_height), interpolation=cv2.INTER_LINEAR)
        )
        padded = np.zeros((1, 3, -(-small_height // 32) * 32, -(-small_width // 32) * 32), np.float32)
        for plane, channel in zip(padded[0], cv2.split(small), strict=True):  # half the time of one transposed copy
            plane[:small_height, :small_width] = channel
        heads = self._session.run(self._outputs, {"input": padded})
        # The outputs of all strides, one after the other: [anchors, ...]
        sure, there, box, points = (np.concatenate([head[0] for head in heads[i::4]]) for i in range(4))
        scores = np.sqrt(np.clip(sure[:, 0], 0, 1) * np.clip(there[:, 0], 0, 1))
        chosen = np.flatnonzero(scores >= self.score)
        anchor, stride = np.split(anchors(*padded.shape[2:])[chosen], (2,), 1)
        box, points, scores = box[chosen], points[chosen].reshape(-1, 5, 2), scores[chosen]
        back = np.array([width / small_width, height / small_height], np.float32)
        size = np.exp(box[:, 2:]) * stride
        boxes = np.concatenate([(anchor + box[:, :2]) * stride - size / 2, size], 1) * np.tile(back, 2)
        landmarks = (anchor[:, None] + points) * stride[:, None] * back
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), self.score, OVERLAP)
        return [Face(boxes[i], landmarks[i], float(scores[i])) for i in np.asarray(kept, int).reshape(-1)]


@lru_cache(4)
def anchors(height: int, width: int) -> NDArray[np.float32]:
    """Return column, row and stride of YuNet's anchors [n, 3] on an input of that size."""
    grids = [
        np.stack([*np.indices((height // s, width // s))[::-1], np.full((height // s, width // s), s)], -1)
        for s in Detector.STRIDES
    ]
    return np.concatenate([grid.reshape(-1, 3) for grid in grids]).astype(np.float32)


@dataclass(eq=False)
class Track:
    """One face over time. `noise` is drawn once, when the track begins, and kept while it lives."""

    number: int  # 0..65535, unique among living tracks
    landmarks: NDArray[np.float32]  # [5, 2], pixels of the frame
    box: NDArray[np.float32]  # [4]
    seen_ns: int
    noise: NDArray[np.float32] = field(repr=False)
    code: bytes = b""  # contains the noise; empty until the face is encoded
    codes: list[bytes] = field(default_factory=list)  # its newest ones, of which `code` is the mean
    cut_ns: int | None = None  # when the chip of its code was cut; None: none was
    pose: tuple[complex, ...] = (0j,) * 5  # in that chip
    found: int = 1  # how many times
    moved: float = 0.0  # face widths, since it was found


class Tracker:
    """Joins detections to tracks by overlap, or by distance if a fast face has left its old box."""

    def __init__(self, hold_ns: int, new_noise: Callable[[], NDArray[np.float32]]) -> None:
        self.hold_ns, self._new_noise = hold_ns, new_noise
        self.tracks: list[Track] = []
        self._next = 0

    def update(self, faces: list[Face], now_ns: int) -> None:
        """Join the detections of a frame seen at `now_ns`. Greedy, best match first: faces seldom cross."""
        taken_tracks: set[int] = set()
        taken_faces: set[int] = set()
        if self.tracks and faces:
            alike = likeness(np.stack([t.box for t in self.tracks])[:, None], np.stack([f.box for f in faces]))
            for pair in np.argsort(-alike, axis=None, kind="stable"):
                t, f = divmod(int(pair), len(faces))
                if alike[t, f] <= 0:
                    break
                if t not in taken_tracks and f not in taken_faces:
                    taken_tracks.add(t)
                    taken_faces.add(f)
                    track, face = self.tracks[t], faces[f]
                    track.landmarks, track.box, track.seen_ns = face.landmarks, face.box, now_ns
                    track.found, track.moved = track.found + 1, 0.0
        self.expire(now_ns)
        for f, face in enumerate(faces):
            if f not in taken_faces:
                self.tracks.append(Track(self._number(), face.landmarks, face.box, now_ns, self._new_noise()))

    def _number(self) -> int:
        """Return the next number that no living track has; after 65,535 comes 0."""
        taken = {track.number for track in self.tracks}
        while self._next in taken:
            self._next = (self._next + 1) % 65536
        number, self._next = self._next, (self._next + 1) % 65536
        return number

    def expire(self, now_ns: int) -> None:
        """Drop the tracks whose faces were not found for longer than the hold."""
        self.tracks = [track for track in self.tracks if now_ns - track.seen_ns <= self.hold_ns]


class Follower:
    """Moves tracks with their faces from frame to frame: sparse optical flow (Lucas and Kanade 1981).

    It takes a tenth of the time that the detector takes. A small grey copy of the newest frame is its only memory.
    """

    def __init__(self) -> None:
        self._grey: NDArray[np.uint8] | None = None

    def see(self, pixels: Pixels) -> float:
        """Make this the newest frame, uint8 [height, width, 3] in BGR; return the scale of the copy."""
        height, width = pixels.shape[:2]
        scale = min(1.0, GREY / float(max(height, width)))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        self._grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
        return scale

    def __call__(self, pixels: Pixels, tracks: list[Track]) -> bool:
        """Move the tracks.

        Args:
            pixels: the frame, as `see` takes it.
            tracks: all of them, as they were in the frame before.

        Returns:
            Whether each is surely where its face is: if not, search for the faces.
        """
        before, scale = self._grey, self.see(pixels)
        if before is None or self._grey is None or before.shape != self._grey.shape:
            return False
        points = _points(np.stack([track.landmarks for track in tracks]))
        there = points.reshape(-1, 1, 2) * np.float32(scale)
        after, found, unlike = cv2.calcOpticalFlowPyrLK(
            before, self._grey, there, there.copy(), winSize=WINDOW, maxLevel=LEVELS
        )
        steps = np.asarray((after - there) / np.float32(scale), np.float32).reshape(points.shape)
        sure = ((found > 0) & (unlike < UNLIKE)).reshape(points.shape[:2])
        return _move(tracks, steps, sure)

    def forget(self) -> None:
        """Forget the newest frame."""
        self._grey = None


_PAIRS: Final = np.triu_indices(5, 1)


def _points(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the landmarks of n faces [n, 5, 2] and the points midway between any two of a face's, [n, 15, 2]."""
    return np.concatenate([landmarks, (landmarks[:, _PAIRS[0]] + landmarks[:, _PAIRS[1]]) / 2], 1)


def _move(tracks: list[Track], steps: NDArray[np.float32], found: NDArray[np.bool_]) -> bool:
    """Move n tracks by the medians of their points' steps [n, 15, 2] in pixels; return whether all are followed.

    One of which too few points were found stays where it is.
    """
    enough = found.mean(1) >= LEAST_FOUND
    step = np.where(enough[:, None], _medians(steps, found), np.float32(0))
    apart = _medians(np.abs(steps - step[:, None]).max(-1, keepdims=True), found)[:, 0]
    widths = np.array([float(track.box[2]) for track in tracks])
    far, boxed = np.hypot(*step.T) / widths, np.concatenate([step, np.zeros_like(step)], 1)
    for track, by, box_by, moved in zip(tracks, step, boxed, far.tolist(), strict=True):
        track.landmarks, track.box, track.moved = track.landmarks + by, track.box + box_by, track.moved + moved
    return bool((enough & (apart / widths <= APART)).all()) and all(track.moved <= FAR for track in tracks)


def _medians(values: NDArray[np.float32], found: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the medians [n, k] of those values [n, 15, k] whose points were found; infinite where none was."""
    ordered = np.sort(np.where(found[..., None], values, np.float32(np.inf)), 1)
    rows, count = np.arange(len(values)), found.sum(1)
    middle: NDArray[np.float32] = (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / np.float32(2)
    return middle


@np.errstate(all="ignore")  # a box that is empty or not finite is like no other
def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score how surely two boxes [..., 4] hold one face: 1 + IoU if they overlap, else 1 - distance in widths."""
    iou = overlap(a, b)
    widths = a[..., 2], b[..., 2]
    away = a[..., :2] + a[..., 2:] / 2 - b[..., :2] - b[..., 2:] / 2
    distance = np.hypot(away[..., 0], away[..., 1]) / np.maximum(*widths)
    ratio = widths[0] / widths[1]
    near = (ratio > 0.5) & (ratio < 2) & (distance < 0.75)
    return np.where(iou >= OVERLAP, 1 + iou, np.where(near, 1 - distance, 0))


@np.errstate(all="ignore")
def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union of two boxes [..., 4]."""
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    sides = np.maximum(sides, 0)
    shared = sides[..., 0] * sides[..., 1]
    both: NDArray[np.float32] = shared / (a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - shared)
    return both


def similarity(landmarks: NDArray[np.float32]) -> tuple[complex, complex]:
    """Fit the least-squares similarity z -> a z + b from landmarks [5, 2] to the template (Umeyama 1991).

    Over the complex numbers the fit is one division. Plain numbers, because arrays take ten times as long for five
    points.
    """
    source = [complex(x, y) for x, y in landmarks.tolist()]
    middle = sum(source) / len(source)
    centred = [z - middle for z in source]
    a = sum(z.conjugate() * t for z, t in zip(centred, _TARGET, strict=True)) / sum(abs(z) ** 2 for z in centred)
    return a, _MIDDLE - a * middle


_MIDDLE: Final = complex(*TEMPLATE.astype(np.float64).mean(0))
_TARGET: Final = [complex(x, y) - _MIDDLE for x, y in TEMPLATE.tolist()]


def alignment(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `similarity` as a matrix [2, 3]."""
    a, b = similarity(landmarks)
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def spread(landmarks: NDArray[np.float32]) -> bool:
    """Return whether five landmarks span more than a point, so that they can be aligned."""
    xs, ys = landmarks.T.tolist()
    return all(map(math.isfinite, xs + ys)) and max(max(xs) - min(xs), max(ys) - min(ys)) > 1


def pose(landmarks: NDArray[np.float32]) -> tuple[complex, ...]:
    """Return five landmarks in pixels of the aligned chip, as x + iy: free of place, size and roll."""
    a, b = similarity(landmarks)
    return tuple(a * complex(x, y) + b for x, y in landmarks.tolist())


def place(landmarks: NDArray[np.float32]) -> Place:
    """Return where the chip of five landmarks lies in the picture."""
    a, b = similarity(landmarks)
    back = 1 / a
    centre = (complex(CHIP / 2, CHIP / 2) - b) * back
    return Place(centre.real, centre.imag, CHIP * abs(back), math.atan2(back.imag, back.real) % math.tau)


def cut(pixels: Pixels, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Cut a chip, uint8 [112, 112, 3] in RGB, out of a BGR frame."""
    chip = cv2.warpAffine(pixels, matrix, (CHIP, CHIP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.cvtColor(chip, cv2.COLOR_BGR2RGB), np.uint8)
