"""What a track leaks, before and after codes a few times a second: `python -m export.tracks MODEL --data DIR --networks DIR`.

A found person is followed for five seconds, 150 frames, under one draw of the noise. Until the code crossed instead of
the picture, each frame brought a sanitized picture of its own; now a track is encoded when new, when its pose has
changed, and else every 0.2 s: 25 pictures. The attacker embeds what leaves, averages it over the track, and asks a
logistic regression that learned on tracks of other people.

There is not enough video of different people, so stills stand in for it: *one photo*, aligned a little differently in
each frame, as a tracker does it; and *ten photos* of the person, one after the other, as a restless head at its worst.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from edgesan.model.load import Model, prepare
from export import data
from export.audit import attackers, mechanisms, metrics
from export.audit.attackers import Chips
from export.audit.device import jpeg, shaken
from export.audit.measure import MATCHERS
from export.errors import ExportError
from export.providers import Provider

SETS = ("lfw", "celeba", "pins", "glint")
LEFT = {"1 picture": slice(0, 1), "25 codes, one every 0.2 s": slice(0, None, 6), "150 frames, each encoded": slice(None)}  # fmt: skip
TOGETHER = 20  # tracks that are embedded at once


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    frames: int = 150
    people: int = 200  # of `test`, half of them women
    learn: int = 1500  # stills of `train` people
    learn_frames: int = 10  # of each: an average of these is near enough to one of 25 or 150
    photos: int = 10  # of one person, where many are shown
    seed: int = 0


def followed(model: Model, alpha: float, matcher: Provider, photos: Chips, frames: int, seed: int) -> Tensor:
    """Embeddings [N, frames, D] of what leaves of N tracks, each of which shows its photos [N, P, 112, 112, 3] in turn."""
    generator = np.random.default_rng(seed)
    z = mechanisms.draw_noise(model.noise_dimensions, len(photos), seed)
    shown = np.arange(frames) * photos.shape[1] // frames
    parts = []
    for rows in tqdm(
        np.array_split(np.arange(len(photos)), max(1, len(photos) // TOGETHER)), desc="tracks", leave=False
    ):
        sent = []
        for i in rows:
            seen = np.stack([shaken(photos[i, p], generator) for p in shown])
            sent.append(jpeg(model.run(seen, np.repeat(z[i : i + 1], frames, 0), alpha)))
        parts.append(attackers.outputs(matcher, np.concatenate(sent), matcher.name).reshape(len(rows), frames, -1))
    return torch.cat(parts)


def measured(model: Model, alpha: float, folder: Path, networks: Path, plan: Plan) -> dict[str, Any]:
    """Gender by the attacker, for each way to show a person and each amount that leaves.

    Raises:
        ExportError: a set is missing or broken, or there are too few people.
    """
    generator = np.random.default_rng(plan.seed)
    faces = data.join(data.load_set(folder, name) for name in SETS)
    person, _ = faces.labels("identity")
    man, order = faces["gender"] == "M", generator.permutation(len(faces))
    known = (person >= 0) & (faces["gender"] != "")

    def half(rows: list[list[int]], count: int) -> np.ndarray:
        """So many of them, half of them women."""
        mine = [[r for r in rows if man[r[0]] == who][: count // 2] for who in (False, True)]
        if len(mine[0]) != len(mine[1]):
            mine = [m[: min(map(len, mine))] for m in mine]
        return np.array(mine[0] + mine[1])

    train = [[int(i)] for i in order if known[i] and faces["identity_split"][i] == "train"]
    strangers: dict[int, list[int]] = {}
    for i in order:
        if known[i] and faces["identity_split"][i] == "test":
            strangers.setdefault(int(person[i]), []).append(int(i))
    asked = {
        "one photo": half([rows[:1] for rows in strangers.values()], plan.people),
        f"{plan.photos} photos": half(
            [r[: plan.photos] for r in strangers.values() if len(r) >= plan.photos], plan.people
        ),
    }
    learn = half(train, plan.learn)
    matcher = Provider(MATCHERS[1], networks).eval().requires_grad_(False)
    lesson = followed(model, alpha, matcher, faces.chips[learn], plan.learn_frames, plan.seed + 1)
    scale = lesson.shape[2] ** 0.5
    truth = man[learn[:, 0]]
    single = attackers.logistic((lesson[:, 0] * scale).numpy(), truth, 0.01)
    pooled = attackers.logistic((F.normalize(lesson.mean(1)) * scale).numpy(), truth, 0.01)
    result: dict[str, Any] = {}
    for name, rows in asked.items():
        seen = followed(model, alpha, matcher, faces.chips[rows], plan.frames, plan.seed + 2)
        result[name] = {"people": len(rows)}
        for left, part in LEFT.items():
            average = (F.normalize(seen[:, part].mean(1)) * scale).numpy()
            judge = single if part == LEFT["1 picture"] else pooled
            result[name][left] = metrics.separation(judge(average), man[rows[:, 0]])
    return result


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "| the track shows | people | what leaves | gender, balanced [95 %] | AUC [95 %] |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["tracks"].items():
        for left in LEFT:
            s = row[left]
            (low, high), (least, most) = s["balanced_95"], s["auc_95"]
            lines.append(
                f"| {name} | {row['people']} | {left} | {100 * s['balanced']:.1f} [{100 * low:.1f}..{100 * high:.1f}] | {s['auc']:.3f} [{least:.3f}..{most:.3f}] |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.tracks", description=__doc__)
    parser.add_argument("model", type=Path, help="an edgesan .onnx file")
    parser.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    parser.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    parser.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    parser.add_argument("--people", type=int, default=Plan.people, help="whose tracks are judged (default %(default)s)")
    parser.add_argument("--learn", type=int, default=Plan.learn, help="stills to learn on (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="(default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report there")
    a = parser.parse_args(arguments)
    plan = Plan(people=a.people, learn=a.learn, seed=a.seed)
    try:
        model = prepare(a.model, a.model.read_bytes(), threads=1)
        alpha = model.metadata.alpha_default if a.alpha is None else a.alpha
        tracks = measured(model, alpha, a.data, a.networks, plan)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {"model": {"name": model.metadata.name, "version": model.metadata.version}, "alpha": alpha, "plan": asdict(plan), "tracks": tracks}  # fmt: skip
    print(table(report))
    if a.json:
        a.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
