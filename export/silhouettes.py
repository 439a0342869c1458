"""What silhouettes say about who walks by: `python -m export.silhouettes --data DIR --networks DIR`.

A face, which nobody detects, moves through a furnished room. Nothing leaves but which cells differ from the still of
the empty room (`edgesan.silhouette`). The attacker knows the room and the path; everybody walks the same one, so each
bit means the same for all. He learns on other people: from the bits to the gender, and to the embedding of a matcher,
by which he looks for the person in a gallery of raw pictures.

`shades` is the attack's own test: there each cell says its mean brightness instead of its bit. An attacker who reads
nothing in shades would prove nothing about bits.

Faces are upright, on a square of their own background, larger (`--side`) or smaller. There is nothing else of a
person: what hair below the shoulders, clothes and gait say of somebody is not measured.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import silhouette
from edgesan.frames import Pixels
from edgesan.scene import Still
from edgesan.silhouette import CELL, PERIOD_NS, Silhouettes, shrink
from export import missed
from export.audit import attackers, metrics, tables
from export.audit.attackers import Chips
from export.audit.command import conclude, errors_as_lines
from export.audit.measure import MATCHERS
from export.missed import People, Rank, Vectors
from export.providers import Provider

KINDS = ("bits", "shades")
COMPONENTS = 200  # of the bits of all who were learned on
SETS = ("lfw",)  # of one source: men and women of several would differ by their sources' cameras, too
GRAINS = 16
MARGIN = 2  # cells around the face, which its silhouette may reach
DECAY = 0.1  # of the regression's squared weights, in units of the components' mean variance


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    columns: tuple[int, ...] = (silhouette.COLUMNS, 2 * silhouette.COLUMNS)
    sides: tuple[int, ...] = (112, 224)  # pixels of a face
    size: tuple[int, int] = (640, 480)
    frames: int = 60  # looks: 360 frames at 30 a second
    people: int = 150
    learn: int = 600
    seed: int = 0


def walk(plan: Plan, side: int) -> missed.Walk:
    """Return a room of furniture, soft colours and some grain, and the way of a face of that side through it."""
    width, height = plan.size
    generator = np.random.default_rng(plan.seed)
    room = cv2.resize(generator.uniform(60, 190, (4, 5, 3)), plan.size, interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        x, y = (int(v) for v in generator.integers(0, (width - 40, height - 40)))
        w, h = (int(v) for v in generator.integers(30, 160, 2))
        cv2.rectangle(room, (x, y), (x + w, y + h), generator.uniform(30, 220, 3).tolist(), -1)
    grain = np.clip(room + generator.normal(0, 4, room.shape), 0, 255).astype(np.uint8)
    return missed.Walk(grain, missed.corners(plan.size, side, np.arange(plan.frames) * PERIOD_NS / 1e9))


def grains(plan: Plan, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return the noise of a camera, uint8 [GRAINS, height, width, 3], as levels above -3. Drawing it takes long."""
    width, height = plan.size
    return generator.integers(0, 7, (GRAINS, height, width, 3), dtype=np.uint8)


def looks(way: missed.Walk, chip: Chips, columns: int, side: int, noise: NDArray[np.uint8]) -> tuple[Vectors, Vectors]:
    """Return what two viewers get of one walk: the bits and the shades of the cells around the face, each [values].

    Args:
        way: the room and the path.
        chip: uint8 [112, 112, 3] RGB.
        columns: of the grid.
        side: pixels of the face in the frame.
        noise: from `grains`.
    """
    height, width = way.room.shape[:2]
    low = way.room - np.uint8(3)  # of which no level is below 3
    finder = Silhouettes(Still(way.room, 1), columns=columns)
    rows, columns = finder.rows, finder.columns
    cell = np.array((width / columns, height / rows))
    reach = np.ceil(side / cell).astype(int) + 2 * MARGIN
    face = cv2.resize(chip, (side, side), interpolation=cv2.INTER_CUBIC)[..., ::-1].clip(3) - np.uint8(3)
    bits, shades = [], []
    for number, (x, y) in enumerate(way.corners):
        frame = low.copy()
        frame[y : y + side, x : x + side] = face
        pixels: Pixels = np.asarray(cv2.add(frame, noise[number * 7 % GRAINS]), np.uint8)
        found = finder(pixels, (number + 1) * PERIOD_NS)
        grid = np.zeros(rows * columns, np.uint8) if found is None else _unpacked(found.bits, rows * columns)
        left, top = (np.array((x, y)) / cell).astype(int) - MARGIN
        window = np.ix_(np.arange(top, top + reach[1]) % rows, np.arange(left, left + reach[0]) % columns)
        bits.append(grid.reshape(rows, columns)[window].ravel())
        grey = cv2.cvtColor(shrink(pixels, (columns * CELL, rows * CELL)), cv2.COLOR_BGR2GRAY)
        means = np.asarray(cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA), np.float32) / 64
        shades.append(means[window].ravel())
    return np.concatenate(bits).astype(np.float32), np.concatenate(shades)


def _unpacked(bits: bytes, count: int) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count)


class Components:
    """The principal components of what was seen of N people [N, values], scaled so that the first has variance 1."""

    def __init__(self, seen: Vectors) -> None:
        self.mean = seen.mean(0)
        x = seen - self.mean
        values, vectors = np.linalg.eigh(x @ x.T)
        values, vectors = values[::-1][:COMPONENTS].clip(1e-6), vectors[:, ::-1][:, :COMPONENTS]
        self.directions = (x.T @ vectors) / np.sqrt(values)
        self.scale = float(np.sqrt(values[0] / len(seen))) or 1.0

    def __call__(self, seen: Vectors) -> Vectors:
        """Return the components [M, K] of what was seen of M people."""
        return np.asarray((seen - self.mean) @ self.directions / self.scale, np.float32)


@dataclass(frozen=True)
class Said:
    """What an attacker finds out about the people who walk."""

    kind: str
    columns: int
    side: int
    rank1: dict[str, Rank]
    gender: dict[str, metrics.Separation]


def attack(
    kind: str, seen: Vectors, learned: Vectors, crowd: People, known: dict[str, tuple[Vectors, Vectors]]
) -> tuple[dict[str, Rank], dict[str, metrics.Separation]]:
    """Return who is found, and how well men and women are told apart.

    Args:
        kind: names the rows.
        seen: of those who walk, [people, values].
        learned: of the others, [learn, values].
        crowd: who they are.
        known: for each matcher, the embeddings of the others' faces [learn, D], and of the gallery [people, D].
    """
    parts = Components(learned)
    x, x_learned = parts(seen), parts(learned)
    odds = attackers.logistic(x_learned, crowd.learn_truth)
    gender = {f"logistic on {kind}": metrics.separation(odds(x), crowd.truth)}
    among = _distances(x_learned, x_learned)
    width = np.median(among)
    weights = np.linalg.solve(np.exp(-among / width) + np.eye(len(among)), crowd.learn_truth * 2.0 - 1)
    score = np.exp(-_distances(x, x_learned) / width) @ weights
    gender[f"kernel ridge on {kind}"] = metrics.separation(np.round(score, 6), crowd.truth)
    ranks = {}
    normal = x_learned.T @ x_learned + DECAY * len(x_learned) * float(x_learned.var(0).mean()) * np.eye(x.shape[1])
    for name, (theirs, gallery) in known.items():
        guess = x @ np.linalg.solve(normal, x_learned.T @ (theirs - theirs.mean(0)))
        aim = gallery - theirs.mean(0)
        likeness = guess @ (aim / np.linalg.norm(aim, axis=1, keepdims=True)).T
        right = likeness.argmax(1) == np.arange(len(x))
        share = metrics.bootstrap(np.arange(len(x)), crowd.truth, right.astype(float)).mean[0]
        ranks[name] = Rank(float(right.mean()), share)
    return ranks, gender


def _distances(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Return the squared distances [N, M] of rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clip(0)


def measure(plan: Plan, crowd: People, networks: Path) -> list[Said]:
    """Let everybody walk once for each grid and size of a face, and ask the attackers."""
    known = {}
    for name in MATCHERS:
        matcher = Provider(name, networks).eval().requires_grad_(False)
        theirs, gallery = (attackers.outputs(matcher, x, name).numpy() for x in (crowd.learn, crowd.gallery))
        known[name] = theirs, gallery
    said = []
    for side in plan.sides:
        way = walk(plan, side)
        for columns in plan.columns:
            noise = grains(plan, np.random.default_rng(plan.seed))
            title = f"{columns} columns, faces of {side} pixels"
            chips = np.concatenate([crowd.walking, crowd.learn])
            both = [looks(way, chip, columns, side, noise) for chip in tqdm(chips, desc=title, leave=False)]
            for kind, values in zip(KINDS, zip(*both, strict=True), strict=True):
                seen = np.stack(values)
                count = len(crowd.walking)
                found = attack(kind, seen[:count], seen[count:], crowd, known)
                said.append(Said(kind, columns, side, *found))
    return said


def table(plan: Plan, said: list[Said]) -> str:
    """Return the result as Markdown."""
    first = said[0]
    setting = (
        f"{plan.people} strangers, each walks once through {plan.frames} looks (five a second) of "
        f"{plan.size[0]}x{plan.size[1]}; the attackers learn on {plan.learn} other people, who walk the same way. "
        f"Chance: rank-1 {100 / plan.people:.0f} %, AUC 0.50. In brackets: 95 % intervals over people. "
        f"Seed {plan.seed}."
    )
    attacks = " / ".join(name.partition(" on ")[0] for name in first.gender)
    names = ("seen", "columns", "face, pixels", f"rank-1 by {' / '.join(first.rank1)}", f"gender AUC by {attacks}")
    lines = [setting, "", *tables.head(names)]
    for each in said:
        ranks = [
            f"{100 * r.share:.0f} % [{100 * r.share_95[0]:.0f}..{100 * r.share_95[1]:.0f}]" for r in each.rank1.values()
        ]
        aucs = [f"{s.auc:.2f} [{s.auc_95[0]:.2f}..{s.auc_95[1]:.2f}]" for s in each.gender.values()]
        lines.append(tables.line((each.kind, str(each.columns), str(each.side), " / ".join(ranks), " / ".join(aucs))))
    return "\n".join(lines)


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure what silhouettes say, and print it as a table."""
    p = argparse.ArgumentParser(
        prog="python -m export.silhouettes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    p.add_argument("--columns", type=int, nargs="+", default=Plan.columns, help="grids (default: %(default)s)")
    p.add_argument("--side", type=int, nargs="+", default=Plan.sides, help="pixels of a face (default: %(default)s)")
    p.add_argument("--frames", type=int, default=Plan.frames, help="looks at each walk (default %(default)s)")
    p.add_argument("--people", type=int, default=Plan.people, help="who walk (default %(default)s)")
    p.add_argument("--learn", type=int, default=Plan.learn, help="people to learn on (default %(default)s)")
    p.add_argument("--seed", type=int, default=Plan.seed, help="of people, room and path (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    a = p.parse_args(arguments)
    plan = Plan(tuple(a.columns), tuple(a.side), frames=a.frames, people=a.people, learn=a.learn, seed=a.seed)
    chosen = missed.Plan(people=plan.people, learn=plan.learn, pictures=1, seed=plan.seed)
    crowd = missed.people(a.data, chosen, lambda chip: True, SETS)
    torch.manual_seed(plan.seed)
    said = measure(plan, crowd, a.networks)
    conclude({"plan": plan, "said": said}, table(plan, said), a.json)


if __name__ == "__main__":
    sys.exit(main())
