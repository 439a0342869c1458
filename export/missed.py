"""What many frames say about a face that the detector missed: `python -m export.missed --data DIR --networks DIR`.

A turned face, which the detector misses, walks through a room. Each frame that leaves is a set of linear measurements
of the face, and the attacker knows the path and the empty room. Hundreds of frames make one system of equations. Its
least-squares solution in a basis of eigenfaces (Turk and Pentland 1991), with the eigenvalues as the prior, is a
picture of the face. A matcher is asked who it is; a classifier that learned on reconstructions of other people is
asked whether it is a man.

The canvas is an argument. `blocks` is the old one, mean colours at the camera's rate: there the attack must find
people, or it is no attack. `plain` is the product's own path, from the camera's frames to those that leave.
"""

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import render, sanitize
from edgesan.config import DEMO_MODEL
from edgesan.faces import CHIP
from edgesan.frames import Pixels
from edgesan.model.load import Model, load_model
from export import data
from export.audit import attackers, device, metrics, tables
from export.audit.attackers import Chips
from export.audit.command import conclude, errors_as_lines
from export.audit.measure import MATCHERS
from export.audit.report import Interval
from export.errors import ExportError
from export.providers import Provider

Canvas = Callable[[Iterator[Pixels]], Iterator[Pixels]]
"""Frames of the camera to frames that leave."""
Vectors = NDArray[np.float32]

BLOCKS = 6  # along the shorter side of a frame of the old canvas
FPS = 30
CANVASES = ("blocks", "plain")
TRIES = 4  # pictures of a person, of which one must be missed
NOISE = 0.55  # levels: of a block's colour, after it was rounded to a whole level and went through JPEG
DETECT_SIZE = 320  # the longest side of what the detector searches, as on the device
SETS = ("lfw", "celeba", "pins")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    size: tuple[int, int] = (640, 480)
    frames: int = 300
    people: int = 100  # who walk, half of them women
    learn: int = 200  # other people, on whose reconstructions the classifier learns
    eigenfaces: int = 700
    pictures: int = 3000  # of a third group of people, for the eigenfaces
    seed: int = 0


@dataclass(frozen=True)
class Walk:
    """An empty room [height, width, 3] BGR, and the face's upper left corner (x, y) in each frame, int [frames, 2]."""

    room: Pixels
    corners: NDArray[np.int64]


def walk(plan: Plan) -> Walk:
    """Return a room of soft colours and some grain, and a way through all of it, ten seconds long at 300 frames."""
    generator = np.random.default_rng(plan.seed)
    soft = cv2.resize(generator.uniform(60, 190, (4, 5, 3)), plan.size, interpolation=cv2.INTER_CUBIC)
    room = np.clip(soft + generator.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    return Walk(room, corners(plan.size, CHIP, np.arange(plan.frames) / FPS))


def corners(size: tuple[int, int], side: int, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where the upper left corner of a face is at these times [n], on a way through all of a picture.

    Args:
        size: width and height of the picture.
        side: of the face, in pixels.
        seconds: since the way began.

    Returns:
        x and y, int64 [n, 2].
    """
    swing = (1 + np.sin(2 * np.pi * seconds[:, None] * (0.23, 0.171) + (0.3, 1.0))) / 2
    return np.asarray(np.round(swing * (size[0] - side, size[1] - side)), np.int64)


def clip(way: Walk, chip: Chips) -> Iterator[Pixels]:
    """Yield the frames in which a face, turned by 90 degrees, goes that way; the chip is uint8 [112, 112, 3] RGB."""
    turned = np.rot90(chip)[..., ::-1]
    for x, y in way.corners:
        frame = way.room.copy()
        frame[y : y + CHIP, x : x + CHIP] = turned
        yield frame


def is_missed(way: Walk, chip: Chips, detector: Callable[[Pixels], list[runtime_faces.Face]]) -> bool:
    """Return whether the detector finds nothing in any frame."""
    return not any(detector(frame) for frame in clip(way, chip))


def blocks(frames: Iterator[Pixels]) -> Iterator[Pixels]:
    """Yield frames of the old canvas, which must fail: each block has the mean colour of what the camera sees there."""
    for frame in frames:
        height, width = frame.shape[:2]
        side = block_side(frame.shape)
        small = cv2.resize(frame, (width // side, height // side), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def block_side(shape: tuple[int, ...]) -> int:
    """Return the pixels of a block's side; the sizes measured here are whole numbers of blocks."""
    return min(shape[:2]) // BLOCKS


def plain(model: Model) -> Canvas:
    """Return the product as a canvas: its whole path, with a real detector and the model's default alpha."""

    def canvas(frames: Iterator[Pixels]) -> Iterator[Pixels]:
        detector, entropy = runtime_faces.Detector(DETECT_SIZE), np.random.default_rng(0).bytes
        alpha = model.metadata.alpha_default
        sanitizer = sanitize.FrameSanitizer(
            model.encoder, detector, sanitize.Settings(alpha=alpha, hold_ns=10**9), entropy
        )
        renderer = render.Renderer(model.decoder)
        for number, pixels in enumerate(frames):
            yield device.leave(sanitizer, renderer, pixels, number, number * 10**9 // FPS)

    return canvas


@dataclass(frozen=True)
class Places:
    """The block of a frame that each measurement is: frame, row and column, each int [measurements]."""

    frame: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


def equations(way: Walk) -> tuple[Places, Vectors]:
    """Return the blocks that the face touches, and the weight [measurements, 112 * 112] of each of its pixels."""
    side = block_side(way.room.shape)
    places, weights = [], []
    for number, (x, y) in enumerate(way.corners):
        for row in range(y // side, (y + CHIP - 1) // side + 1):
            for column in range(x // side, (x + CHIP - 1) // side + 1):
                turned = np.zeros((CHIP, CHIP), np.float32)
                top, left = row * side - y, column * side - x
                turned[max(0, top) : top + side, max(0, left) : left + side] = 1 / side**2
                weights.append(np.rot90(turned, -1).ravel())
                places.append((number, row, column))
    return Places(*np.array(places).T), np.stack(weights)


def means(frame: Pixels) -> Vectors:
    """Return the mean colour of each block, float32 [rows, columns, 3]."""
    side, (height, width) = block_side(frame.shape), frame.shape[:2]
    size = width // side, height // side
    return np.asarray(cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def watch(canvas: Canvas, frames: Iterator[Pixels]) -> tuple[Vectors, str]:
    """Return what a viewer gets: block colours [frames, rows, columns, 3] after JPEG, and a digest of all bytes."""
    digest, colours = hashlib.sha256(), []
    for frame in canvas(frames):
        packet = device.encode(frame)
        digest.update(packet.tobytes())
        colours.append(means(device.decode(packet)))
    return np.stack(colours), digest.hexdigest()


@dataclass(frozen=True)
class Eigenfaces:
    """The prior of a face: mean [37632], deviations [K] along the directions [37632, K], in levels."""

    mean: Vectors
    deviation: Vectors
    direction: Vectors

    @classmethod
    def of(cls, chips: Chips, count: int) -> "Eigenfaces":
        """Return the principal components of chips [N, 112, 112, 3]."""
        x = torch.from_numpy(chips.reshape(len(chips), -1).astype(np.float32))
        mean = x.mean(0)
        x -= mean
        values, vectors = torch.linalg.eigh(x @ x.T)
        values, vectors = values.flip(0)[:count].clamp(min=1e-3), vectors.flip(1)[:, :count]
        direction = x.T @ vectors / values.sqrt()
        return cls(mean.numpy(), (values / len(x)).sqrt().numpy(), direction.numpy())

    def chips(self, z: Vectors) -> Chips:
        """Return the chips of standardised coefficients [N, K]."""
        x = self.mean + (z * self.deviation) @ self.direction.T
        return np.clip(x, 0, 255).round().astype(np.uint8).reshape(-1, CHIP, CHIP, 3)


class Inverse:
    """The linear map from what a viewer saw of a walk to the coefficients of the face that went there."""

    def __init__(self, way: Walk, prior: Eigenfaces) -> None:
        self.places, weights = equations(way)
        by_colour = prior.direction.reshape(CHIP**2, 3, -1) * prior.deviation
        # [3 * measurements, K]: what one deviation of each eigenface changes
        effect = np.concatenate([weights @ np.ascontiguousarray(by_colour[:, c]) for c in range(3)])
        mean = prior.mean.reshape(CHIP**2, 3)
        # what a viewer would get of the mean face: the room beside it, which is known, and the face
        hidden = np.stack([self._room(way, n, x, y) for n, x, y in zip(*vars(self.places).values(), strict=True)])
        self.expected = np.concatenate([hidden[:, c] + weights @ mean[:, c] for c in range(3)])
        normal = effect.T @ effect + NOISE**2 * np.eye(effect.shape[1], dtype=np.float32)
        self.solve = np.linalg.solve(normal, effect.T)

    @staticmethod
    def _room(way: Walk, number: int, row: int, column: int) -> Vectors:
        """Return what the room that is not covered adds to a block's mean colour, RGB."""
        side = block_side(way.room.shape)
        x, y = way.corners[number]
        part = way.room[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.float32)
        top, left = y - row * side, x - column * side
        part[max(0, top) : max(0, top + CHIP), max(0, left) : max(0, left + CHIP)] = 0
        return np.asarray(part.mean((0, 1))[::-1])

    def __call__(self, colours: Vectors) -> Vectors:
        """Return coefficients [K], each in deviations of its eigenface, of block colours [frames, rows, columns, 3]."""
        p = self.places
        seen = colours[p.frame, p.row, p.column, ::-1].T.ravel()
        return np.asarray(self.solve @ (seen - self.expected), np.float32)


@dataclass(frozen=True)
class People:
    """Those who walk, each with another picture in the gallery, and those from whom the attacker learns."""

    walking: Chips
    gallery: Chips
    truth: NDArray[np.bool_]
    learn: Chips
    learn_truth: NDArray[np.bool_]
    basis: Chips


def people(folder: Path, plan: Plan, missed: Callable[[Chips], bool], sets: Sequence[str] = SETS) -> People:
    """Choose people, half of them women: `test` people with two pictures or more to walk, `train` people to learn on.

    Args:
        folder: of the sets.
        plan: how many.
        missed: whether the detector misses a chip. Only such people walk; the attacker learns from any.
        sets: the sets' names.

    Raises:
        DataError: a set is missing or broken.
        ExportError: there are too few people.
    """
    generator = np.random.default_rng(plan.seed)
    faces = data.join(data.load_set(folder, name) for name in sets)
    person, _ = faces.labels("identity")
    order = generator.permutation(len(faces))

    def chosen(split: str, count: int, pictures: int, fits: Callable[[Chips], bool]) -> NDArray[np.int64]:
        """Return rows [count, 2]: a picture that fits, and another one of the same person if there is one."""
        found: list[tuple[int, int]] = []
        for gender in ("F", "M"):
            theirs: dict[int, list[int]] = {}
            for i in order[((faces["identity_split"] == split) & (faces["gender"] == gender) & (person >= 0))[order]]:
                theirs.setdefault(int(person[i]), []).append(int(i))
            several = (shown for shown in theirs.values() if len(shown) >= pictures)
            walking = ((next((i for i in shown[:TRIES] if fits(faces.chips[i])), -1), shown) for shown in several)
            pairs = ((i, next((k for k in shown if k != i), i)) for i, shown in walking if i >= 0)
            few = list(itertools.islice(pairs, count // 2))
            if len(few) < count // 2:
                raise ExportError(
                    f"{folder} has only {len(few)} people of gender {gender} whose faces fit; {count // 2} are needed"
                )
            found += few
        return np.array(found)

    asked, learn = chosen("test", plan.people, 2, missed), chosen("train", plan.learn, 1, lambda chip: True)[:, 0]
    rest = np.flatnonzero((faces["identity_split"] == "train") & ~np.isin(person, person[learn]))
    basis = generator.permutation(rest)[: plan.pictures]
    man = faces["gender"] == "M"
    return People(
        walking=faces.chips[asked[:, 0]],
        gallery=faces.chips[asked[:, 1]],
        truth=man[asked[:, 0]],
        learn=faces.chips[learn],
        learn_truth=man[learn],
        basis=faces.chips[basis],
    )


def reconstruct(
    canvas: Canvas, way: Walk, inverse: Inverse, chips: Chips, name: str
) -> tuple[Vectors, NDArray[np.int64]]:
    """Let each of N people walk: return the coefficients [D, K] of each clip that left, and whose they are [N].

    Clips that are the same byte for byte are solved once, here, and looked at once, later. Otherwise the last digits
    of the same sum, computed in two places, could identify a clip, and where people lie in order, the person.
    """
    number: dict[str, int] = {}
    solved, whose = [], []
    for chip in tqdm(chips, desc=name, leave=False):
        colours, digest = watch(canvas, clip(way, chip))
        if digest not in number:
            number[digest] = len(number)
            solved.append(inverse(colours))
        whose.append(number[digest])
    return np.stack(solved), np.array(whose)


@dataclass(frozen=True)
class Rank:
    """The share of people whom a matcher finds in the gallery at the first guess."""

    share: float
    share_95: Interval


@dataclass(frozen=True)
class Found:
    """What an attacker finds out about the people who walk, through one canvas."""

    people: int
    different_clips: int
    rank1: dict[str, Rank]
    gender: dict[str, metrics.Separation]


@dataclass(frozen=True)
class MissedReport:
    """What is found out through each canvas."""

    plan: Plan
    canvases: dict[str, Found]


def attack(canvas: Canvas, way: Walk, crowd: People, prior: Eigenfaces, networks: Path) -> Found:
    """Return what is found out about each of the people who walk, through a canvas."""
    inverse = Inverse(way, prior)
    z, whose = reconstruct(canvas, way, inverse, crowd.walking, "walks")
    z_learn, whose_learn = reconstruct(canvas, way, inverse, crowd.learn, "walks of others")
    faces, faces_learn = prior.chips(z), prior.chips(z_learn)

    def gender(x: Vectors, x_learn: Vectors) -> metrics.Separation:
        odds = attackers.logistic(x_learn[whose_learn], crowd.learn_truth)
        return metrics.separation(odds(x)[whose], crowd.truth)

    ranks, genders = {}, {"logistic on eigenfaces": gender(z, z_learn)}
    for name in MATCHERS:
        matcher = Provider(name, networks).eval().requires_grad_(False)
        asked, others, known = (attackers.outputs(matcher, x, name) for x in (faces, faces_learn, crowd.gallery))
        # what all reconstructions have in common says nothing about who it is
        likeness = F.normalize(asked - others[whose_learn].mean(0)) @ F.normalize(known - known.mean(0)).T
        right = likeness.argmax(1).numpy()[whose] == np.arange(len(whose))
        spread = metrics.bootstrap(np.arange(len(whose)), crowd.truth, right.astype(float))
        ranks[name] = Rank(float(right.mean()), spread.mean[0])
        scale = asked.shape[1] ** 0.5
        genders[f"logistic on {name}"] = gender(asked.numpy() * scale, others.numpy() * scale)
    return Found(len(whose), len(z), ranks, genders)


def table(report: MissedReport) -> str:
    """Return the report as Markdown."""
    plan, attackers_of = report.plan, next(iter(report.canvases.values())).gender
    setting = (
        f"{plan.people} people, each walks through {plan.frames} frames of {plan.size[0]}x{plan.size[1]}, "
        "112 pixels large and turned by 90 degrees; the detector finds none of them in any frame. "
        f"{plan.eigenfaces} eigenfaces, {plan.learn} other people to learn on, seed {plan.seed}."
    )
    ranked, gendered = " / ".join(MATCHERS), " / ".join(attackers_of)
    names = ("canvas", "clips that differ", f"rank-1 of {plan.people} by {ranked}", f"gender AUC by {gendered}")
    lines = [setting, "", *tables.head(names)]
    for name, found in report.canvases.items():
        ranks = [
            f"{100 * r.share:.0f} % [{100 * r.share_95[0]:.0f}..{100 * r.share_95[1]:.0f}]"
            for r in found.rank1.values()
        ]
        aucs = [f"{s.auc:.2f} [{s.auc_95[0]:.2f}..{s.auc_95[1]:.2f}]" for s in found.gender.values()]
        clips = f"{found.different_clips} of {found.people}"
        lines.append(tables.line((name, clips, " / ".join(ranks), " / ".join(aucs))))
    return "\n".join(lines)


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure what is found out about missed faces, and print it as a table."""
    p = argparse.ArgumentParser(prog="python -m export.missed", description=__doc__)
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    p.add_argument("--model", type=Path, default=DEMO_MODEL, help="the sanitizer (default: the bundled one)")
    p.add_argument("--canvas", nargs="+", choices=CANVASES, default=CANVASES, help="default: both")
    p.add_argument("--frames", type=int, default=Plan.frames, help="of each walk (default %(default)s)")
    p.add_argument("--people", type=int, default=Plan.people, help="who walk (default %(default)s)")
    p.add_argument("--learn", type=int, default=Plan.learn, help="people to learn on (default %(default)s)")
    p.add_argument("--seed", type=int, default=Plan.seed, help="of people, room and path (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    a = p.parse_args(arguments)
    plan = Plan(frames=a.frames, people=a.people, learn=a.learn, seed=a.seed)
    way, detector = walk(plan), runtime_faces.Detector(DETECT_SIZE)
    crowd = people(a.data, plan, partial(is_missed, way, detector=detector))
    prior = Eigenfaces.of(crowd.basis, plan.eigenfaces)
    canvases = {name: blocks if name == "blocks" else plain(load_model(a.model)) for name in a.canvas}
    found = {name: attack(canvas, way, crowd, prior, a.networks) for name, canvas in canvases.items()}
    report = MissedReport(plan, found)
    conclude(report, table(report), a.json)


if __name__ == "__main__":
    sys.exit(main())
