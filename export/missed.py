"""What many frames tell about a face that the detector missed: `python -m export.missed --data DIR --networks DIR`.

A turned face, which the detector misses, walks through a room. Each frame that leaves is a set of linear measurements
of the face, and the attacker knows the path and the empty room: hundreds of frames make one system of equations, and
its least-squares solution in a basis of eigenfaces (Turk and Pentland 1991), with the eigenvalues as the prior, is a
picture of the face. Who it is, is asked of a matcher; whether it is a man, of a classifier that learned on
reconstructions of other people.

The canvas is an argument. `blocks` is the old one, mean colours at the camera's rate: the attack must find
people there, or it is no attack. `plain` is the product's own path, from frames to what is painted.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import render, sanitize
from edgesan.config import DEMO_MODEL
from edgesan.errors import EdgesanError
from edgesan.frames import Pixels
from edgesan.model.load import Model, load_model
from export import data
from export.audit import attackers, metrics
from export.audit.attackers import Chips
from export.audit.device import JPEG_QUALITY, leave
from export.audit.measure import MATCHERS
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
    people: int = 100  # who are looked for, half of them women
    learn: int = 200  # other people, on whose reconstructions the classifier learns
    eigenfaces: int = 700
    pictures: int = 3000  # of again other people, that the eigenfaces are fitted on
    seed: int = 0


@dataclass(frozen=True)
class Walk:
    """An empty room [height, width, 3] BGR, and the face's upper left corner (x, y) in each frame, int [frames, 2]."""

    room: Pixels
    corners: NDArray[np.int64]


def walk(plan: Plan) -> Walk:
    """A room of soft colours and some grain, and a way through all of it, ten seconds long at 300 frames."""
    width, height = plan.size
    generator = np.random.default_rng(plan.seed)
    soft = cv2.resize(generator.uniform(60, 190, (4, 5, 3)), plan.size, interpolation=cv2.INTER_CUBIC)
    room = np.clip(soft + generator.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    seconds = np.arange(plan.frames)[:, None] / FPS
    swing = (1 + np.sin(2 * np.pi * seconds * (0.23, 0.171) + (0.3, 1.0))) / 2
    return Walk(room, np.round(swing * (width - data.CHIP, height - data.CHIP)).astype(np.int64))


def clip(way: Walk, chip: Chips) -> Iterator[Pixels]:
    """The frames in which a face, turned by 90 degrees, goes that way; chip: uint8 [112, 112, 3] RGB."""
    turned = np.rot90(chip)[..., ::-1]
    for x, y in way.corners:
        frame = way.room.copy()
        frame[y : y + data.CHIP, x : x + data.CHIP] = turned
        yield frame


def is_missed(way: Walk, chip: Chips, detector: Callable[[Pixels], list[runtime_faces.Face]]) -> bool:
    """Whether the detector finds nothing in any frame."""
    return not any(detector(frame) for frame in clip(way, chip))


def blocks(frames: Iterator[Pixels]) -> Iterator[Pixels]:
    """The old canvas, which must fail: each block has the mean colour of what the camera sees there."""
    for frame in frames:
        height, width = frame.shape[:2]
        side = block_side(frame.shape)
        small = cv2.resize(frame, (width // side, height // side), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def block_side(shape: tuple[int, ...]) -> int:
    """Pixels of a block's side; the sizes measured here are whole numbers of blocks."""
    return min(shape[:2]) // BLOCKS


def plain(model: Model) -> Canvas:
    """The product: detect, track, encode, cross, decode, paint, with a real detector and the model's default dial."""

    def canvas(frames: Iterator[Pixels]) -> Iterator[Pixels]:
        detector, entropy = runtime_faces.Detector(DETECT_SIZE), np.random.default_rng(0).bytes
        alpha = model.metadata.alpha_default
        door = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(), alpha, 10**9, entropy)
        renderer = render.Renderer(model.decoder)
        for number, pixels in enumerate(frames):
            yield leave(door, renderer, pixels, number, number * 10**9 // FPS)

    return canvas


@dataclass(frozen=True)
class Places:
    """Which block of which frame each measurement is: frame, row, column, each int [measurements]."""

    frame: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


def equations(way: Walk) -> tuple[Places, Vectors]:
    """The blocks that the face touches, and the weight [measurements, 112 * 112] of each of its pixels in them."""
    side = block_side(way.room.shape)
    places, weights = [], []
    for number, (x, y) in enumerate(way.corners):
        for row in range(y // side, (y + data.CHIP - 1) // side + 1):
            for column in range(x // side, (x + data.CHIP - 1) // side + 1):
                turned = np.zeros((data.CHIP, data.CHIP), np.float32)
                top, left = row * side - y, column * side - x
                turned[max(0, top) : top + side, max(0, left) : left + side] = 1 / side**2
                weights.append(np.rot90(turned, -1).ravel())
                places.append((number, row, column))
    return Places(*np.array(places).T), np.stack(weights)


def means(frame: Pixels) -> Vectors:
    """Mean colour of each block, float32 [rows, columns, 3]."""
    side, (height, width) = block_side(frame.shape), frame.shape[:2]
    return np.asarray(
        cv2.resize(frame.astype(np.float32), (width // side, height // side), interpolation=cv2.INTER_AREA)
    )


def watch(canvas: Canvas, frames: Iterator[Pixels]) -> tuple[Vectors, str]:
    """What a viewer gets: block colours [frames, rows, columns, 3] after the device's JPEG, and a digest of all its bytes."""
    digest, colours = hashlib.sha256(), []
    for frame in canvas(frames):
        _, packet = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        digest.update(packet.tobytes())
        colours.append(means(np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8)))
    return np.stack(colours), digest.hexdigest()


@dataclass(frozen=True)
class Eigenfaces:
    """The prior of a face: mean [37632], deviations [K] along the directions [37632, K], in levels."""

    mean: Vectors
    deviation: Vectors
    direction: Vectors

    @classmethod
    def of(cls, chips: Chips, count: int) -> "Eigenfaces":
        """Principal components of chips [N, 112, 112, 3]."""
        x = torch.from_numpy(chips.reshape(len(chips), -1).astype(np.float32))
        mean = x.mean(0)
        x -= mean
        values, vectors = torch.linalg.eigh(x @ x.T)
        values, vectors = values.flip(0)[:count].clamp(min=1e-3), vectors.flip(1)[:, :count]
        direction = x.T @ vectors / values.sqrt()
        return cls(mean.numpy(), (values / len(x)).sqrt().numpy(), direction.numpy())

    def paint(self, z: Vectors) -> Chips:
        """Chips of standardised coefficients [N, K]."""
        x = self.mean + (z * self.deviation) @ self.direction.T
        return np.clip(x, 0, 255).round().astype(np.uint8).reshape(-1, data.CHIP, data.CHIP, 3)


class Inverse:
    """The linear map from what a viewer saw of a walk to the coefficients of the face that went there."""

    def __init__(self, way: Walk, prior: Eigenfaces) -> None:
        self.places, weights = equations(way)
        by_colour = prior.direction.reshape(data.CHIP**2, 3, -1) * prior.deviation
        # [3 * measurements, K]: what one deviation of each eigenface changes
        effect = np.concatenate([weights @ np.ascontiguousarray(by_colour[:, c]) for c in range(3)])
        mean = prior.mean.reshape(data.CHIP**2, 3)
        # what would be seen if the face was the mean face: the room beside it, which is known, and the face
        hidden = np.stack([self._room(way, n, x, y) for n, x, y in zip(*vars(self.places).values(), strict=True)])
        self.expected = np.concatenate([hidden[:, c] + weights @ mean[:, c] for c in range(3)])
        normal = effect.T @ effect + NOISE**2 * np.eye(effect.shape[1], dtype=np.float32)
        self.solve = np.linalg.solve(normal, effect.T)

    @staticmethod
    def _room(way: Walk, number: int, row: int, column: int) -> Vectors:
        """What the room that is not covered gives to a block's mean colour, RGB."""
        side = block_side(way.room.shape)
        x, y = way.corners[number]
        part = way.room[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.float32)
        part[max(0, y - row * side) : max(0, y - row * side + data.CHIP), max(0, x - column * side) : max(0, x - column * side + data.CHIP)] = 0  # fmt: skip
        return np.asarray(part.mean((0, 1))[::-1])

    def __call__(self, colours: Vectors) -> Vectors:
        """Coefficients [K], each in deviations of its eigenface."""
        p = self.places
        seen = colours[p.frame, p.row, p.column, ::-1].T.ravel()
        return np.asarray(self.solve @ (seen - self.expected), np.float32)


@dataclass(frozen=True)
class People:
    """Who is looked for (a picture that walks, another one in the gallery), and who the attacker learns from."""

    walking: Chips
    gallery: Chips
    truth: NDArray[np.bool_]
    learn: Chips
    learn_truth: NDArray[np.bool_]
    basis: Chips


def people(folder: Path, plan: Plan, missed: Callable[[Chips], bool]) -> People:
    """Half women, half men: of `test` people with two pictures at least, and of `train` people.

    missed: who is looked for is only whom the detector does not find; of the others, the attacker learns all the same.

    Raises:
        DataError: a set is missing or broken.
        ExportError: there are too few people.
    """
    generator = np.random.default_rng(plan.seed)
    faces = data.join(data.load_set(folder, name) for name in SETS)
    person, _ = faces.labels("identity")
    order = generator.permutation(len(faces))

    def chosen(split: str, count: int, pictures: int, fits: Callable[[Chips], bool]) -> NDArray[np.int64]:
        """So many people, half of them women: rows [count, 2] of a picture that fits and of another one, if there is one."""
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
        faces.chips[asked[:, 0]], faces.chips[asked[:, 1]], man[asked[:, 0]], faces.chips[learn], man[learn], faces.chips[basis]
    )  # fmt: skip


def reconstruct(
    canvas: Canvas, way: Walk, inverse: Inverse, chips: Chips, name: str
) -> tuple[Vectors, NDArray[np.int64]]:
    """Let each of N people walk: the coefficients [D, K] of each clip that left, and whose they are [N].

    Clips that are the same byte for byte are solved once, here, and looked at once, later. Else the last digits of the
    same sum made in two places would tell which is which, and where people lie in order, the answer.
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


def attack(canvas: Canvas, way: Walk, crowd: People, prior: Eigenfaces, networks: Path) -> dict[str, Any]:
    """What is found out about each of the people who walk, through a canvas."""
    inverse = Inverse(way, prior)
    z, whose = reconstruct(canvas, way, inverse, crowd.walking, "walks")
    z_learn, whose_learn = reconstruct(canvas, way, inverse, crowd.learn, "walks of others")
    painted, painted_learn = prior.paint(z), prior.paint(z_learn)
    truth, learn_truth = crowd.truth, crowd.learn_truth

    def gender(x: Vectors, x_learn: Vectors) -> dict[str, Any]:
        judge = attackers.logistic(x_learn[whose_learn], learn_truth)
        return metrics.separation(judge(x)[whose], truth)

    result: dict[str, Any] = {"people": len(whose), "different_clips": len(z), "rank1": {}, "gender": {}}
    result["gender"]["logistic on eigenfaces"] = gender(z, z_learn)
    for name in MATCHERS:
        matcher = Provider(name, networks).eval().requires_grad_(False)
        asked, others, known = (attackers.outputs(matcher, x, name) for x in (painted, painted_learn, crowd.gallery))
        # what all reconstructions have in common says nothing about who it is
        likeness = F.normalize(asked - others[whose_learn].mean(0)) @ F.normalize(known - known.mean(0)).T
        right = likeness.argmax(1).numpy()[whose] == np.arange(len(whose))
        share = metrics.bootstrap(np.arange(len(whose)), truth, right.astype(float))["mean"][0]
        result["rank1"][name] = {"share": float(right.mean()), "share_95": share}
        scale = asked.shape[1] ** 0.5
        result["gender"][f"logistic on {name}"] = gender(asked.numpy() * scale, others.numpy() * scale)
    return result


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    plan = report["plan"]
    setting = (
        f"{plan['people']} people, each walks through {plan['frames']} frames of {plan['size'][0]}x{plan['size'][1]}, 112 pixels large and turned by 90 degrees; the detector finds none of them in any frame."
        f" {plan['eigenfaces']} eigenfaces, {plan['learn']} other people to learn on, seed {plan['seed']}."
    )
    lines = [
        setting,
        "",
        f"| canvas | clips that differ | rank-1 of {plan['people']} by {' / '.join(MATCHERS)} | gender AUC by {' / '.join(next(iter(report['canvases'].values()))['gender'])} |",
        "|---|---|---|---|",
    ]
    for name, r in report["canvases"].items():
        ranks = " / ".join(
            f"{100 * s['share']:.0f} % [{100 * s['share_95'][0]:.0f}..{100 * s['share_95'][1]:.0f}]"
            for s in r["rank1"].values()
        )
        aucs = " / ".join(f"{s['auc']:.2f} [{s['auc_95'][0]:.2f}..{s['auc_95'][1]:.2f}]" for s in r["gender"].values())
        lines.append(f"| {name} | {r['different_clips']} of {r['people']} | {ranks} | {aucs} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.missed", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    parser.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="the sanitizer (default: the bundled one)")
    parser.add_argument("--canvas", nargs="+", choices=CANVASES, default=CANVASES, help="default: both")
    parser.add_argument("--frames", type=int, default=Plan.frames, help="of each walk (default %(default)s)")
    parser.add_argument("--people", type=int, default=Plan.people, help="who are looked for (default %(default)s)")
    parser.add_argument("--learn", type=int, default=Plan.learn, help="people to learn on (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of people, room and path (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report there")
    a = parser.parse_args(arguments)
    plan = Plan(frames=a.frames, people=a.people, learn=a.learn, seed=a.seed)
    try:
        way, detector = walk(plan), runtime_faces.Detector(DETECT_SIZE)
        crowd = people(a.data, plan, partial(is_missed, way, detector=detector))
        prior = Eigenfaces.of(crowd.basis, plan.eigenfaces)
        report: dict[str, Any] = {"plan": asdict(plan), "canvases": {}}
        for name in a.canvas:
            canvas = blocks if name == "blocks" else plain(load_model(a.model))
            report["canvases"][name] = attack(canvas, way, crowd, prior, a.networks)
    except (ExportError, EdgesanError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(report))
    if a.json:
        a.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
