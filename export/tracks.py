"""What a track leaks, before and after codes a few times a second: `python -m export.tracks MODEL --data DIR ...`.

A found person is followed for five seconds, 150 frames, under one draw of the noise. Until the code was sent instead
of the picture, each frame brought a sanitized picture of its own. Now a track is encoded when it is new, when its pose
has changed, and else every 0.4 s, and the mean of its newest codes leaves: 13 pictures. The attacker embeds what
leaves, averages it over the track, and gives it to a logistic regression that learned on tracks of other people.

There is not enough video of different people, so stills stand in for it: *one photo*, aligned a little differently in
each frame, as a tracker does it; and *ten photos* of the person, one after the other: the worst restless head.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edgesan.model.load import Model, prepare
from edgesan.sanitize import MEAN_OF
from export import data
from export.audit import attackers, mechanisms, metrics, tables
from export.audit.attackers import Chips
from export.audit.command import conclude, errors_as_lines
from export.audit.device import jpeg, shaken
from export.audit.measure import MATCHERS
from export.providers import Provider

SETS = ("lfw", "celeba", "pins", "glint")
ONE, CODES = "1 picture", "13 codes, one every 0.4 s"
LEFT = {ONE: slice(0, 1), "150 frames, each encoded": slice(None), CODES: slice(0, None, 12)}
MEANS = f"13 means of up to {MEAN_OF} codes, one every 0.4 s"
TOGETHER = 20  # tracks that are embedded at once

Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    frames: int = 150
    people: int = 200  # of `test`, half of them women
    learn: int = 1500  # stills of `train` people
    learn_frames: int = 10  # of each: an average of these is near enough to one of 13 or 150
    photos: int = 10  # of one person, where many are shown
    seed: int = 0


@dataclass(frozen=True)
class Shown:
    """Tracks that show a person in one way: how many people, and what the attacker scores by what leaves."""

    people: int
    scores: dict[str, metrics.Separation]


@dataclass(frozen=True)
class ModelName:
    """Which model it is."""

    name: str
    version: int


@dataclass(frozen=True)
class TracksReport:
    """What tracks of one model at one alpha leak."""

    model: ModelName
    alpha: float
    plan: Plan
    tracks: dict[str, Shown]


@dataclass(frozen=True)
class Follower:
    """The attacker's eyes: a matcher on what leaves of a track."""

    model: Model
    alpha: float
    matcher: Provider

    def embed(self, photos: Chips, frames: int, seed: int, mean_of: int = 1) -> Tensor:
        """Return embeddings [N, frames, D] of what leaves of N tracks, each of which shows its photos in turn.

        Args:
            photos: of N people, chips [N, P, 112, 112, 3].
            frames: of each track that are encoded.
            seed: of the noise and of the alignment.
            mean_of: the newest codes whose mean leaves.
        """
        encoder, generator = self.model.encoder, np.random.default_rng(seed)
        z = mechanisms.draw_noise(self.model.noise_dimensions, len(photos), seed)
        shown = np.arange(frames) * photos.shape[1] // frames
        groups = np.array_split(np.arange(len(photos)), max(1, len(photos) // TOGETHER))
        parts = []
        for rows in tqdm(groups, desc="tracks", leave=False):
            sent = []
            for i in rows:
                seen = np.stack([shaken(photos[i, p], generator) for p in shown])
                codes = encoder.encode(seen, np.repeat(z[i : i + 1], frames, 0), self.alpha)
                means = [encoder.mean(codes[max(0, last - mean_of) : last]) for last in range(1, frames + 1)]
                sent.append(jpeg(self.model.decoder.decode(means, self.alpha)))
            embedded = attackers.outputs(self.matcher, np.concatenate(sent), self.matcher.name)
            parts.append(embedded.reshape(len(rows), frames, -1))
        return torch.cat(parts)


def half_women(rows: list[list[int]], man: NDArray[np.bool_], count: int) -> Rows:
    """Return `count` of the rows, or fewer, half of them women's."""
    women, men = ([r for r in rows if man[r[0]] == who][: count // 2] for who in (False, True))
    fewest = min(len(women), len(men))
    return np.array(women[:fewest] + men[:fewest])


def chosen(faces: data.Faces, man: NDArray[np.bool_], plan: Plan) -> tuple[Rows, dict[str, Rows]]:
    """Return the stills to learn on [N, 1], and the photos of the tracks that are measured, by how many they show."""
    person, _ = faces.labels("identity")
    known = (person >= 0) & (faces["gender"] != "")
    split = faces["identity_split"]
    order = [int(i) for i in np.random.default_rng(plan.seed).permutation(len(faces)) if known[i]]
    train = [[i] for i in order if split[i] == "train"]
    strangers: dict[int, list[int]] = {}
    for i in order:
        if split[i] == "test":
            strangers.setdefault(int(person[i]), []).append(i)
    many = [rows[: plan.photos] for rows in strangers.values() if len(rows) >= plan.photos]
    return half_women(train, man, plan.learn), {
        "one photo": half_women([rows[:1] for rows in strangers.values()], man, plan.people),
        f"{plan.photos} photos": half_women(many, man, plan.people),
    }


def averages(seen: Tensor) -> NDArray[np.float32]:
    """Return the mean embedding [N, D] of each track [N, frames, D], scaled for a logistic regression."""
    return np.asarray((F.normalize(seen.mean(1)) * seen.shape[2] ** 0.5).numpy())


def measured(model: Model, alpha: float, folder: Path, networks: Path, plan: Plan) -> TracksReport:
    """Measure the attacker on gender, for each way to show a person and each amount that leaves.

    Raises:
        ExportError: a set is missing or broken.
    """
    faces = data.join(data.load_set(folder, name) for name in SETS)
    man = faces["gender"] == "M"
    learn, asked = chosen(faces, man, plan)
    follower = Follower(model, alpha, Provider(MATCHERS[1], networks).eval().requires_grad_(False))
    known, means = (
        follower.embed(faces.chips[learn], plan.learn_frames, plan.seed + 1, mean_of) for mean_of in (1, MEAN_OF)
    )
    truth = man[learn[:, 0]]
    single, averaged, of_means = (
        attackers.logistic(averages(seen), truth, 0.01) for seen in (known[:, :1], known, means)
    )
    tracks = {}
    for name, rows in asked.items():
        seen = follower.embed(faces.chips[rows], plan.frames, plan.seed + 2)
        odds = {left: (single if left == ONE else averaged)(averages(seen[:, part])) for left, part in LEFT.items()}
        coded = len(range(*LEFT[CODES].indices(plan.frames)))
        odds[MEANS] = of_means(averages(follower.embed(faces.chips[rows], coded, plan.seed + 2, MEAN_OF)))
        scores = {left: metrics.separation(each, man[rows[:, 0]]) for left, each in odds.items()}
        tracks[name] = Shown(len(rows), scores)
    return TracksReport(ModelName(model.metadata.name, model.metadata.version), alpha, plan, tracks)


def table(report: TracksReport) -> str:
    """Return the report as Markdown."""
    lines = tables.head(("the track shows", "people", "what leaves", "gender, balanced [95 %]", "AUC [95 %]"))
    for name, shown in report.tracks.items():
        for left, s in shown.scores.items():
            balanced = f"{tables.percent(s.balanced)} [{tables.interval(s.balanced_95)}]"
            auc = f"{s.auc:.3f} [{s.auc_95[0]:.3f}..{s.auc_95[1]:.3f}]"
            lines.append(tables.line((name, shown.people, left, balanced, auc)))
    return "\n".join(lines)


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure what tracks leak, and print it as a table."""
    p = argparse.ArgumentParser(prog="python -m export.tracks", description=__doc__)
    p.add_argument("model", type=Path, help="an edgesan .onnx file")
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    p.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    p.add_argument("--people", type=int, default=Plan.people, help="whose tracks are measured (default %(default)s)")
    p.add_argument("--learn", type=int, default=Plan.learn, help="stills to learn on (default %(default)s)")
    p.add_argument("--seed", type=int, default=Plan.seed, help="of all that is random (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    a = p.parse_args(arguments)
    model = prepare(a.model, a.model.read_bytes(), threads=1)
    alpha = model.metadata.alpha_default if a.alpha is None else a.alpha
    report = measured(model, alpha, a.data, a.networks, Plan(people=a.people, learn=a.learn, seed=a.seed))
    conclude(report, table(report), a.json)


if __name__ == "__main__":
    sys.exit(main())
