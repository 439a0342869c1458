"""Find faces (YuNet), follow them (tracks), and cut them to aligned chips.

The detector runs on a small copy of the frame. A track holds its face between detections and through short misses; it
also holds the noise of its face, so that nobody can average the noise away over frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgesan.frames import Pixels

CHIP: Final = 112
# ArcFace's five landmarks on a 112x112 chip, left to right in the picture: eyes, nose, corners of the mouth
# (Deng et al., "ArcFace", 2019).
TEMPLATE: Final = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
DETECTOR: Final = Path(__file__).parent / "models" / "yunet.onnx"
SCORE: Final = 0.6
OVERLAP: Final = 0.3  # of two boxes: the same face (non-maximum suppression, and tracking)


@dataclass(frozen=True)
class Face:
    """One detection, in pixels of the frame."""

    box: NDArray[np.float32]  # [4]: x, y, width, height
    landmarks: NDArray[np.float32]  # [5, 2], in TEMPLATE's order
    score: float


def session_options(threads: int) -> ort.SessionOptions:
    """onnxruntime as this runtime wants it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A waiting thread that spins burns the board: 77 % of a core against 11 %, and slower, in a paced loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def saturates() -> bool:
    """Whether sums of int8 products overflow 16 bits here: on x86 without VNNI. onnxruntime can do without, in 2.5 times
    the time; with VNNI, and on Arm, the results are the same either way.
    """
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return not words & {"avx512_vnni", "avx_vnni", "asimd"}


class Detector:
    """YuNet (Wu, Peng and Yu 2023) over plain onnxruntime; the decoding follows OpenCV Zoo's description."""

    STRIDES: Final = (8, 16, 32)

    def __init__(self, size: int, threads: int = 1, score: float = SCORE) -> None:
        """`size`: the longest side, in pixels, of the copy that is searched."""
        self.size, self.score = size, score
        self._session = ort.InferenceSession(DETECTOR.read_bytes(), session_options(threads), ["CPUExecutionProvider"])
        self._outputs = [f"{head}_{stride}" for stride in self.STRIDES for head in ("cls", "obj", "bbox", "kps")]

    def __call__(self, pixels: Pixels) -> list[Face]:
        """The faces of a frame uint8 [height, width, 3] (BGR), best first."""
        height, width = pixels.shape[:2]
        scale = min(1.0, self.size / max(height, width))
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        small = (
            pixels if scale == 1.0 else cv2.resize(pixels, (small_width, small_height), interpolation=cv2.INTER_LINEAR)
        )
        padded = np.zeros((1, 3, -(-small_height // 32) * 32, -(-small_width // 32) * 32), np.float32)
        padded[0, :, :small_height, :small_width] = small.transpose(2, 0, 1)
        heads = self._session.run(self._outputs, {"input": padded})
        # Of all strides, one after the other: [anchors, ...]
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
    """Column, row and stride of each of YuNet's anchors [n, 3] on an input of that size."""
    grids = [
        np.stack([*np.indices((height // s, width // s))[::-1], np.full((height // s, width // s), s)], -1)
        for s in Detector.STRIDES
    ]
    return np.concatenate([grid.reshape(-1, 3) for grid in grids]).astype(np.float32)


@dataclass
class Track:
    """One face over time. `noise` is drawn once, when the track begins, and lives as long as it does."""

    landmarks: NDArray[np.float32]  # [5, 2], pixels of the frame
    box: NDArray[np.float32]  # [4]
    seen_ns: int
    noise: NDArray[np.float32] = field(repr=False)


class Tracker:
    """Joins detections to tracks by overlap, or by nearness where a fast face has left its old box."""

    def __init__(self, hold_ns: int, new_noise: Callable[[], NDArray[np.float32]]) -> None:
        self.hold_ns, self._new_noise = hold_ns, new_noise
        self.tracks: list[Track] = []

    def update(self, faces: list[Face], now_ns: int) -> None:
        """Take the detections of a frame seen at `now_ns`. Greedy, best match first: faces seldom cross."""
        pairs = sorted(
            (
                (likeness(track.box, face.box), t, f)
                for t, track in enumerate(self.tracks)
                for f, face in enumerate(faces)
            ),
            reverse=True,
        )
        taken_tracks: set[int] = set()
        taken_faces: set[int] = set()
        for value, t, f in pairs:
            if value > 0 and t not in taken_tracks and f not in taken_faces:
                taken_tracks.add(t)
                taken_faces.add(f)
                track, face = self.tracks[t], faces[f]
                track.landmarks, track.box, track.seen_ns = face.landmarks, face.box, now_ns
        self.expire(now_ns)
        for f, face in enumerate(faces):
            if f not in taken_faces:
                self.tracks.append(Track(face.landmarks, face.box, now_ns, self._new_noise()))

    def expire(self, now_ns: int) -> None:
        """Forget the faces that were not found for longer than the hold."""
        self.tracks = [track for track in self.tracks if now_ns - track.seen_ns <= self.hold_ns]


def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """How surely two boxes hold one face: 1 + their overlap (IoU), else nearness in face widths, else 0."""
    iou = overlap(a, b)
    if iou >= OVERLAP:
        return 1 + iou
    width = float(max(a[2], b[2]))
    distance = float(np.hypot(*(a[:2] + a[2:] / 2 - b[:2] - b[2:] / 2))) / width
    alike = 0.5 < float(a[2] / b[2]) < 2
    return 1 - distance if alike and distance < 0.75 else 0.0


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes [4]."""
    corner = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(corner[0] * corner[1]) if (corner > 0).all() else 0.0
    return shared / (float(a[2] * a[3] + b[2] * b[3]) - shared)


def alignment(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """The least-squares similarity [2, 3] that takes landmarks [5, 2] to the template (Umeyama 1991).

    In the plane a similarity is z -> a z + b over the complex numbers, and its least-squares fit one division.
    """
    source = landmarks[:, 0].astype(np.float64) + 1j * landmarks[:, 1]
    target = TEMPLATE[:, 0].astype(np.float64) + 1j * TEMPLATE[:, 1]
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def cut(pixels: Pixels, matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The chip uint8 [112, 112, 3], RGB, of a BGR frame."""
    chip = cv2.warpAffine(pixels, matrix, (CHIP, CHIP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.cvtColor(chip, cv2.COLOR_BGR2RGB), np.uint8)
