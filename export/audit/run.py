"""Audit the shipped int8 model: `python -m export.audit MODEL --data DIR --networks DIR`.

What the *device* produces is judged: the int8 file through `edgesan`'s own reader, noise and composition, after JPEG,
beside what others do to faces. Two protocols:

* closed set: the people of lfw, glint and pins that have a `closed_set_split`. The attackers know these people: they
  train on other pictures of them;
* open set: people of `identity_split = test`, whom neither the sanitizer nor the attackers have seen.

Every cell of the table (one mechanism, one attacker, one seed) is a small file in `--cells`: an audit that was
stopped goes on where it was, and the same command started several times shares the cells out among its processes.
The project keeps its own, `docs/audit/`: figures and no pictures. A changed model measures anew only what changed.
"""

import argparse
import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import message, render, sanitize
from edgesan.frames import Pixels, lend
from edgesan.model.load import Model, prepare
from export import data
from export.audit import attackers, mechanisms, metrics
from export.audit import html as pages
from export.audit.attackers import Chips, Convolutional, FineTuned, Judge, Lesson, Linear
from export.audit.mechanisms import Mechanism
from export.errors import ExportError
from export.providers import Provider

FORMAT = 5  # of the cells: raised whenever a figure is computed in another way
CLOSED_SETS = ("lfw", "glint", "pins")
OPEN_SETS = (*CLOSED_SETS, "celeba", "aaf")
JPEG_QUALITY = 85  # the device's own
UTILITY = "id_mobilefacenet_paddle"  # took part in the training
RIVAL = "U-Net, the authors' shape"
MATCHERS = (UTILITY, "id_mobilefacenet_b")  # the second did not
FROZEN = ("gender_faceapi", "gender_dlib", "gender_gear")  # the first took part in the training
RAW_ONLY = (
    "CNN 4 of raw faces",
    f"probe of raw faces on {MATCHERS[1]}",
)  # ours, frozen before they see a sanitized one
SLOW = ("CNN 1", "gender_faceapi, trained on")  # one seed will do: they are far from the best
CANVAS = "plain"  # what is around the faces in an output frame
BUDGETS = (0.05, 0.1, 0.2, 0.4)  # nats: where the bound is drawn
SHARES = {"train": 0.67, "val": 0.13, "test": 0.2}  # of a limited closed set
FALSE_ACCEPTS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seeds: int = 3  # of every fresh attacker
    baseline_train: int = 4000  # pictures that they learn on there: fewer flatter the baselines, not us
    epochs: int = 6
    draws: int = 2  # of each training picture
    mean_draws: int = 8  # that are averaged, for the attacker who gets one still many times
    limit: int | None = None  # pictures of the closed set: a quick look, no claim
    open_limit: int = 3000  # pictures of the open set
    brief: bool = (
        False  # without the attackers who know z, average draws or frames, recover first, or look around the face
    )
    track: int = 200  # faces that are followed over 150 frames
    again: int = 400  # faces that are looked for again in the output frame


class Work:
    """The folders of finished cells: figures in `cells`; pictures, embeddings and weights, which nobody may have, in `folder`.

    A cell is named by what it says and by a digest of all that it depends on.
    """

    def __init__(self, folder: Path, cells: Path, *context: object) -> None:
        self.folder, self.cells, self.context = folder, cells, context
        for place in (folder, cells):
            place.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, *depends: object, suffix: str) -> Path:
        digest = hashlib.sha256(repr((FORMAT, self.context, name, depends)).encode()).hexdigest()[:16]
        safe = "".join(c if c.isalnum() else "-" for c in name)
        return (self.cells if suffix == "json" else self.folder) / f"{safe}-{digest}.{suffix}"

    def later(self, name: str, compute: Callable[[], dict[str, Any]], *depends: object) -> "Cell":
        """A figure that is computed when it is asked for."""
        path = self.path(name, *depends, suffix="json")
        return Cell(path, lambda part: part.write_text(json.dumps(compute()) + "\n"))

    def cell(self, name: str, compute: Callable[[], dict[str, Any]], *depends: object) -> dict[str, Any]:
        """A figure: read if it is there, else computed and kept."""
        return self.later(name, compute, *depends).value()

    def sending(self, m: Mechanism, chips: Chips, truth: NDArray[np.bool_], draw: int, part: str) -> "Cell":
        """The packets of `packets`, to be made."""

        def send(half: Path) -> None:
            sent = [
                cv2.imencode(".jpg", np.ascontiguousarray(c[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                for c in m.apply(chips, truth, draw)
            ]
            np.savez(half, bytes=np.concatenate(sent), sizes=np.array([len(s) for s in sent]))

        return Cell(self.path(f"{part} draw {draw}", m.identity, suffix="npz"), send)

    def packets(self, m: Mechanism, chips: Chips, truth: NDArray[np.bool_], draw: int, part: str) -> Chips:
        """What a viewer gets of each chip, after the device's JPEG; kept as the packets that were sent."""
        cell = self.sending(m, chips, truth, draw, part)
        cell.finish()
        with np.load(cell.path) as stored:
            ends = np.cumsum(stored["sizes"])[:-1]
            parts = np.split(stored["bytes"], ends)
        return np.stack([cv2.imdecode(p, cv2.IMREAD_COLOR)[..., ::-1] for p in parts])

    def tensor(self, name: str, compute: Callable[[], Any], *depends: object) -> Any:
        """Embeddings, logits or weights, kept."""
        cell = Cell(self.path(name, *depends, suffix="pt"), lambda part: torch.save(compute(), part))
        cell.finish()
        return torch.load(cell.path, weights_only=True, map_location="cpu")


@dataclass(frozen=True)
class Cell:
    """A file that `make` writes when somebody asks: whole or not at all, and once, however many processes ask."""

    path: Path
    make: Callable[[Path], object]

    def finish(self, wait: bool = True) -> None:
        """See to it that it is there; without `wait`, leave it to another process that is at it."""
        if self.path.exists():
            return
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return
            if not self.path.exists():
                part = self.path.with_name(f".part-{self.path.name}")
                self.make(part)
                part.replace(self.path)

    def value(self) -> dict[str, Any]:
        """What a figure's cell holds."""
        self.finish()
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


Tree = Cell | dict[str, "Tree"] | list["Tree"]


def cells(tree: Tree) -> list[Cell]:
    """The leaves, in their order."""
    if isinstance(tree, Cell):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in cells(branch)]


def settled(tree: Tree) -> Any:
    """The same tree, with each cell's figure in its place."""
    if isinstance(tree, Cell):
        return tree.value()
    if isinstance(tree, dict):
        return {key: settled(branch) for key, branch in tree.items()}
    return [settled(branch) for branch in tree]


def measured(tree: Tree) -> Any:
    """The same tree without the cells that are not there, nor the branches that held no other."""
    if isinstance(tree, Cell):
        return tree if tree.path.exists() else None
    if isinstance(tree, dict):
        return {key: kept for key, branch in tree.items() if (kept := measured(branch))}
    return [kept for branch in tree if (kept := measured(branch))]


def share(groups: Sequence[Tree], folder: Path) -> None:
    """Compute all cells, beside other processes that do the same: each takes a group, then helps with what is left."""
    for i, group in enumerate(groups):
        with (folder / f"group-{i}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for cell in cells(group):
                cell.finish(wait=False)
    for group in groups:
        for cell in cells(group):
            cell.finish(wait=False)


@dataclass(frozen=True)
class ClosedSet:
    """The closed set's chips and labels; `train`, `val`, `test` are masks [N]."""

    faces: data.Faces
    person: NDArray[np.int64]
    truth: NDArray[np.bool_]
    train: NDArray[np.bool_]
    val: NDArray[np.bool_]
    test: NDArray[np.bool_]

    @property
    def people(self) -> int:
        return int(self.person.max()) + 1

    def fewer(self, n: int) -> NDArray[np.bool_]:
        """A mask [N] that leaves n pictures to learn on, and all others."""
        order = np.random.default_rng(0).permutation(np.flatnonzero(self.train))
        mask = ~self.train
        mask[order[:n]] = True
        return mask


def closed_set(folder: Path, limit: int | None) -> ClosedSet:
    """Read the closed set.

    Raises:
        DataError: a set is missing or broken.
    """
    everyone = data.join(data.load_set(folder, name) for name in CLOSED_SETS)
    faces = everyone.where(everyone["closed_set_split"] != "")
    if limit is not None:
        few = np.zeros(len(faces), np.bool_)
        for name, share in SHARES.items():
            rows = np.random.default_rng(0).permutation(np.flatnonzero(faces["closed_set_split"] == name))
            few[rows[: int(share * limit)]] = True
        faces = faces.where(few)
    person, _ = faces.labels("identity")
    masks = (faces["closed_set_split"] == name for name in SHARES)
    return ClosedSet(faces, person, faces["gender"] == "M", *masks)


def open_set(folder: Path, limit: int) -> tuple[data.Faces, NDArray[np.int64], NDArray[np.bool_]]:
    """People whom neither the sanitizer nor an attacker has seen, with their numbers (alone if unknown) and truth."""
    everyone = data.join(data.load_set(folder, name) for name in OPEN_SETS)
    faces = everyone.where((everyone["identity_split"] == "test") & (everyone["gender"] != ""))
    if len(faces) > limit:
        faces = faces.where(np.random.default_rng(0).permutation(len(faces)) < limit)
    person, _ = faces.labels("identity")
    strangers = person < 0
    person[strangers] = person.max() + 1 + np.arange(int(strangers.sum()))
    return faces, person, faces["gender"] == "M"


class Audit:
    """One run of the protocol; each method is a part of the table."""

    def __init__(self, folder: Path, networks: Path, work: Path, plan: Plan, cells: Path | None = None) -> None:
        self.networks, self.plan, self.folder = networks, plan, folder
        self.closed = closed_set(folder, plan.limit)
        self.work = Work(work, cells or work, self.closed.faces.digest(), plan.epochs, plan.draws)
        self.matchers = {name: self._provider(name) for name in MATCHERS}
        self.drawn: tuple[str, list[Chips]] = ("", [])
        c = self.closed
        self.raw = {name: self._embed(mechanisms.raw(), name, c.faces.chips, "closed") for name in MATCHERS}
        self.service = identification(
            self.raw[UTILITY][c.train], torch.from_numpy(c.person[c.train]), c.people
        )  # fmt: skip

    def smaller(self, n: int) -> "Audit":
        """The same audit, and the same service, with only n pictures for an attacker to learn on."""
        c, few = self.closed, self.closed.fewer(n)
        part = copy(self)
        masks = (getattr(c, name)[few] for name in SHARES)
        part.closed = ClosedSet(c.faces.where(few), c.person[few], c.truth[few], *masks)
        part.work, part.drawn = Work(self.work.folder, self.work.cells, *self.work.context, n), ("", [])
        part.raw = {name: seen[torch.from_numpy(few)] for name, seen in self.raw.items()}
        return part

    def _provider(self, name: str) -> Provider:
        return Provider(name, self.networks).eval().requires_grad_(False)

    def _embed(self, m: Mechanism, matcher: str, chips: Chips, part: str, draw: int = 0) -> Tensor:
        seen: Tensor = self.work.tensor(
            f"{part} {matcher} draw {draw}",
            lambda: attackers.outputs(self.matchers[matcher], chips, f"{matcher} of {m.name}"),
            m.identity,
        )
        return seen

    def draws(self, m: Mechanism) -> list[Chips]:
        """Draws of the whole closed set: several of a stochastic mechanism, one of another."""
        if self.drawn[0] != m.identity:  # one attacker after the other looks at them
            c, count = self.closed, self.plan.draws if m.stochastic else 1
            self.drawn = m.identity, [self.work.packets(m, c.faces.chips, c.truth, d, "closed") for d in range(count)]
        return self.drawn[1]

    def lesson(self, draws: list[Chips]) -> Lesson:
        c = self.closed
        return Lesson([d[c.train] for d in draws], c.truth[c.train], draws[0][c.val], c.truth[c.val])

    def judged(self, odds: Callable[[NDArray[np.bool_]], metrics.Odds]) -> dict[str, Any]:
        """Scores of an attacker given as a function from a mask of the closed set to log-odds."""
        c = self.closed
        test, val = odds(c.test), odds(c.val)
        result = metrics.scores(test, c.truth[c.test], (val, c.truth[c.val]), c.person[c.test])
        both, person = np.concatenate([test, val]), np.concatenate([c.person[c.test], c.person[c.val]])
        result["pooled"] = metrics.pooled(both, np.concatenate([c.truth[c.test], c.truth[c.val]]), person)
        right = (test > 0) == c.truth[c.test]
        result["slices"] = {
            f"{column} {value}": round(float(right[c.faces[column][c.test] == value].mean()), 4)
            for column in ("gender", "set", "identity_split")
            for value in sorted(set(c.faces[column][c.test].tolist()))
        }
        return result

    def utility(self, m: Mechanism, seen: Tensor | None = None) -> dict[str, float]:
        """The service with its own unchanged algorithm: who is it, among the closed set's people?

        `seen`: its embeddings of the test pictures, where they are known already.
        """
        c = self.closed
        if seen is None:
            seen = self._embed(m, UTILITY, self.draws(m)[0][c.test], "closed test")
        person = torch.from_numpy(c.person[c.test])
        with torch.no_grad():
            logits = 16 * F.linear(seen, F.normalize(self.service.weight))
        crossed = F.cross_entropy(logits, person, reduction="none")
        return {f"top{k}": top(self.service, seen, person, k) for k in (1, 5)} | {"nats": float(crossed.mean())}

    def looks(self, m: Mechanism) -> dict[str, float]:
        """How far from the raw face: structural similarity, and the distance that a matcher perceives."""
        c = self.closed
        sent = self.draws(m)[0][c.test]
        unseen = self._embed(m, MATCHERS[1], self.draws(m)[0], "closed")[c.test]
        return {
            "ssim": metrics.ssim(c.faces.chips[c.test], sent),
            "matcher_distance": float((1 - (unseen * self.raw[MATCHERS[1]][c.test]).sum(1)).mean()),
        }

    def frozen(self, m: Mechanism, name: str) -> dict[str, Any]:
        """A classifier that never saw a sanitized face: a provider's, or one of `RAW_ONLY`."""
        if name in RAW_ONLY:
            return self.raw_only(m, name)
        net, chips = self._provider(name), self.draws(m)[0]
        sign = 1 if net.classes[0] == "M" else -1

        def odds(mask: NDArray[np.bool_]) -> metrics.Odds:
            logits = attackers.outputs(net, chips[mask], f"{name} of {m.name}")
            return np.asarray((sign * (logits[:, 0] - logits[:, 1])).double().numpy())

        return self.judged(odds)

    def raw_only(self, m: Mechanism, name: str) -> dict[str, Any]:
        """Ours of raw faces, as it stood before it saw a sanitized one."""
        c, sent = self.closed, self.draws(m)[0]
        if name == RAW_ONLY[0]:
            judge = attackers.judge(self.begun_on_raw(PIXEL_ATTACKERS[FRESH[0]](self.networks)[0]))
            return self.judged(lambda mask: judge(sent[mask]))
        raw, seen = self.raw[MATCHERS[1]], self._embed(m, MATCHERS[1], sent, "closed")
        net = attackers.probe([raw[c.train]], c.truth[c.train], raw[c.val], c.truth[c.val])
        return self.judged(lambda mask: net.odds(seen[mask]))

    def along(self, m: Mechanism, fresh: tuple[str, ...] = ()) -> dict[str, Any]:
        """One point of the dial's curve: the service, the frozen classifier, and fresh attackers.

        `distribution`: quartiles of P(M) over women's and over men's pictures, as the frozen classifier says it;
        `fresh_distribution`: the same of the best fresh attacker, calibrated on the validation pictures.
        """
        c, net = self.closed, self._provider(FROZEN[0])
        logits = attackers.outputs(net, self.draws(m)[0][c.test], f"{FROZEN[0]} of {m.name}")
        p = logits.softmax(1)[:, net.classes.index("M")].numpy()
        truth, found = c.truth[c.test], {}
        fresh = fresh or ("CNN 4, begun on raw faces", f"probe on {UTILITY}")
        seen = None  # where no attacker asks for all embeddings, the test pictures' are enough
        if f"probe on {UTILITY}" not in fresh:
            seen = attackers.outputs(self.matchers[UTILITY], self.draws(m)[0][c.test], f"{UTILITY} of {m.name}")
        for name in fresh:
            attack = self.attack(m, name, 0)
            found[name] = (self.judged(attack), metrics.calibrated(attack(c.test), attack(c.val), c.truth[c.val]))
        best = max(found, key=lambda name: float(found[name][0]["accuracy"]))
        return self.utility(m, seen) | {
            "attacker": found[best][0]["accuracy"],
            "attacker_95": found[best][0]["accuracy_95"],
            "leak_nats": max(f["leak_nats"] for f, _ in found.values()),
            "attackers": {name: {k: f[k] for k in ("accuracy", "balanced", "auc", "leak_nats")} for name, (f, _) in found.items()},
            "frozen": float(((p > 0.5) == truth).mean()),
            "distribution": quartiles(p, truth),
            "fresh_distribution": quartiles(1 / (1 + np.exp(-found[best][1])), truth),
        }  # fmt: skip

    def fresh(self, m: Mechanism, attacker: str, seed: int) -> dict[str, Any]:
        """An attacker of our own on the sanitized closed set, judged on its test pictures."""
        return self.judged(self.attack(m, attacker, seed))

    def attack(self, m: Mechanism, attacker: str, seed: int) -> Callable[[NDArray[np.bool_]], metrics.Odds]:
        """Train an attacker on the sanitized closed set; its log-odds of the pictures of a mask [N]."""
        draws = self.draws(m)
        if attacker.startswith("probe on "):
            matcher = attacker.removeprefix("probe on ")
            seen = [self._embed(m, matcher, d, "closed", i) for i, d in enumerate(draws)]
            c = self.closed
            net = attackers.probe((s[c.train] for s in seen), c.truth[c.train], seen[0][c.val], c.truth[c.val], seed)
            return lambda mask: net.odds(seen[0][mask])
        judge = self.fit(attacker, draws, seed)
        return lambda mask: judge(draws[0][mask])

    def fit(self, attacker: str, draws: list[Chips], seed: int) -> Judge:
        """Train one of `PIXEL_ATTACKERS` on draws of the closed set."""
        net, rate = PIXEL_ATTACKERS[attacker](self.networks)
        if attacker.endswith("begun on raw faces"):
            net = self.begun_on_raw(net)
        return attackers.fit(net, self.lesson(draws), epochs=self.plan.epochs, seed=seed, rate=rate, name=attacker)

    def begun_on_raw(self, net: nn.Module) -> nn.Module:
        """CNN 4, once it tells raw faces apart."""

        def learn() -> dict[str, Any]:
            lesson = self.lesson(self.draws(mechanisms.raw()))
            attackers.fit(net, lesson, epochs=self.plan.epochs, seed=0, rate=2e-3, name="CNN 4 on raw faces")
            return {name: value.cpu() for name, value in net.state_dict().items()}

        net.load_state_dict(self.work.tensor("CNN 4, raw", learn))
        return net.to(attackers.DEVICE)

    def mean_of_draws(self, m: Mechanism, seed: int) -> dict[str, Any]:
        """An attacker who gets one still many times, averages the pictures, and trained on such averages."""
        c = self.closed
        total = np.zeros(c.faces.chips.shape, np.uint16)
        for draw in range(self.plan.mean_draws):
            total += self.work.packets(m, c.faces.chips, c.truth, 100 + draw, "closed")
        mean = (total / self.plan.mean_draws).round().astype(np.uint8)
        judge = self.fit("CNN 4, begun on raw faces", [mean], seed)
        return self.judged(lambda mask: judge(mean[mask]))

    def knows_noise(self, m: Mechanism, model: Model, alpha: float, seed: int) -> dict[str, Any]:
        """An attacker who is told z: the device's noise is its secret, so this shows what rests on the secret."""
        c = self.closed
        z = [mechanisms.draw_noise(model.noise_dimensions, len(c.truth), draw) for draw in range(self.plan.draws)]
        draws = [attackers.with_noise(chips, noise) for chips, noise in zip(self.draws(m), z, strict=True)]
        judge = attackers.fit(
            attackers.Informed(), self.lesson(draws), epochs=self.plan.epochs, seed=seed,
            rate=2e-3, name="knows z",
        )  # fmt: skip
        return self.judged(lambda mask: judge(draws[0][mask]))

    def recovery(self, m: Mechanism, seed: int) -> dict[str, Any]:
        """Undo first, with a network trained on (sanitized, raw) pairs; then a classifier, begun on raw faces."""
        c, draws = self.closed, self.draws(m)
        undo = attackers.restore(draws[0][c.train], c.faces.chips[c.train], epochs=self.plan.epochs, seed=seed)
        restored = [undo(d) for d in draws]
        judge = self.fit("CNN 4, begun on raw faces", restored, seed)
        return self.judged(lambda mask: judge(restored[0][mask]))

    def track(self, m: Mechanism, model: Model, alpha: float, seed: int) -> dict[str, Any]:
        """The best pixel attacker over many frames of one track, under the device's noise: one draw per track.

        Each of `track` test faces is seen 150 times, as a camera would see it: aligned a little differently each time
        (up to 1.5 pixels and 2 degrees) and with the noise of a sensor (2 levels). z stays.
        """
        c = self.closed
        judge = self.fit("CNN 4, begun on raw faces", self.draws(m), seed)
        generator = np.random.default_rng(seed)
        rows = np.flatnonzero(c.test)[generator.permutation(int(c.test.sum()))[: self.plan.track]]
        z = mechanisms.draw_noise(model.noise_dimensions, len(rows), 900 + seed)
        odds = []
        for _ in tqdm(range(150), desc="frames of a track", leave=False):
            seen = np.stack([shaken(chip, generator) for chip in c.faces.chips[rows]])
            odds.append(judge(jpeg(np.concatenate([model.run(seen[i : i + 20], z[i : i + 20], alpha) for i in range(0, len(seen), 20)]))))  # fmt: skip
        by_frames = {}
        for n in (1, 10, 30, 150):
            right = (np.mean(odds[:n], axis=0) > 0) == c.truth[rows]
            by_frames[str(n)] = float((right[c.truth[rows]].mean() + right[~c.truth[rows]].mean()) / 2)
        return {"balanced_by_frames": by_frames, "faces": len(rows)}

    def context(self, model: Model, alpha: float) -> dict[str, Any]:
        """The best pixel attacker on output frames: what place, size, turn and edge of a painted face give away besides it.

        Each chip goes through the whole runtime in a frame of its own, as in `found_again`; the attacker sees twice the
        face's surroundings. What lies beyond a chip's edge is not in the data: there it is repeated.
        """
        c = self.closed
        frames = [sent for sent, _, _ in composed(model, c.faces.chips, alpha)]
        views = [f[48:-48, 48:-48] for f in frames]  # 224 of 320 pixels: the chip, and half of it on every side
        sent = np.stack([cv2.resize(v[..., ::-1], (112, 112), interpolation=cv2.INTER_AREA) for v in views])
        judge = self.fit(FRESH[0], [sent], 0)
        return self.judged(lambda mask: judge(sent[mask]))

    def strangers(self, m: Mechanism) -> dict[str, Any]:
        """The open set: do matchers still know a stranger again, and do attackers tell a stranger's gender?

        Sanitized probes against raw and against sanitized galleries. The attackers learn from people of
        `identity_split = train`, so they have seen none of these people.
        """
        faces, person, truth = open_set(self.folder, self.plan.open_limit)
        sent = self.work.packets(m, faces.chips, truth, 0, "open")
        known = np.isin(person, np.flatnonzero(np.bincount(person) > 1))
        result: dict[str, Any] = {"pictures": len(faces), "people": len(np.unique(person)), "tar": {}, "attackers": {}}
        for matcher in MATCHERS:
            raw = self._embed(mechanisms.raw(), matcher, faces.chips, "open")[known]
            seen = self._embed(m, matcher, sent, "open")[known]
            for name, probe, gallery in (
                ("raw", raw, raw),
                ("against raw", seen, raw),
                ("against sanitized", seen, seen),
            ):
                result["tar"][f"{matcher}, {name}"] = metrics.tar_at_far(probe, gallery, person[known], FALSE_ACCEPTS)
        c = self.closed
        train = c.train & (c.faces["identity_split"] == "train")
        val = c.val & (c.faces["identity_split"] != "test")
        draws = self.draws(m)
        lesson = Lesson([d[train] for d in draws], c.truth[train], draws[0][val], c.truth[val])
        name = FRESH[0]
        net = self.begun_on_raw(PIXEL_ATTACKERS[name](self.networks)[0])
        judge = attackers.fit(net, lesson, epochs=self.plan.epochs, seed=0, rate=1e-3, name="open set")
        result["attackers"][name] = metrics.scores(judge(sent), truth, (judge(lesson.val), lesson.val_truth), person)
        seen = [self._embed(m, UTILITY, d, "closed", i) for i, d in enumerate(draws)]
        net_p = attackers.probe((s[train] for s in seen), c.truth[train], seen[0][val], c.truth[val])
        strangers = self._embed(m, UTILITY, sent, "open")
        result["attackers"][f"probe on {UTILITY}"] = metrics.scores(
            net_p.odds(strangers), truth, (net_p.odds(seen[0][val]), c.truth[val]), person
        )
        return result


# name -> (network, learning rate), given the folder of networks
PIXEL_ATTACKERS: dict[str, Callable[[Path], tuple[nn.Module, float]]] = {
    "CNN 4, begun on raw faces": lambda networks: (Convolutional(4), 1e-3),
    "CNN 2": lambda networks: (Convolutional(2), 2e-3),
    "CNN 1": lambda networks: (Convolutional(1), 2e-3),
    "linear on pixels": lambda networks: (Linear(), 1e-3),
    "gender_faceapi, trained on": lambda networks: (FineTuned("gender_faceapi", networks), 3e-4),
}
FRESH = (*PIXEL_ATTACKERS, *(f"probe on {matcher}" for matcher in MATCHERS))


def quartiles(p: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> dict[str, list[float]]:
    """Of P(M) [N], over women's and over men's pictures."""
    return {
        who: [round(float(q), 4) for q in np.quantile(p[truth == (who == "M")], (0.25, 0.5, 0.75))]
        for who in ("F", "M")
    }


def identification(train: Tensor, labels: Tensor, people: int) -> nn.Linear:
    """The service: a softmax over the closed set's people on the provider's embedding, trained on raw pictures only."""
    torch.manual_seed(0)
    head = nn.Linear(train.shape[1], people, bias=False)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(300):
        loss = F.cross_entropy(16 * F.linear(train, F.normalize(head.weight)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def top(head: nn.Linear, embeddings: Tensor, labels: Tensor, k: int) -> float:
    """Share of pictures whose person is among the first k."""
    best = F.linear(embeddings, F.normalize(head.weight)).topk(k).indices
    return float((best == labels[:, None]).any(1).float().mean())


def jpeg(chips: Chips) -> Chips:
    """Each chip through the device's JPEG."""
    out = np.empty_like(chips)
    for i, chip in enumerate(chips):
        _, packet = cv2.imencode(
            ".jpg", np.ascontiguousarray(chip[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        out[i] = cv2.imdecode(packet, cv2.IMREAD_COLOR)[..., ::-1]
    return out


def shaken(chip: Chips, generator: np.random.Generator) -> Chips:
    """The chip as the next frame would give it: up to 1.5 pixels and 2 degrees off, with 2 levels of sensor noise."""
    matrix = cv2.getRotationMatrix2D((56, 56), generator.uniform(-2, 2), 1)
    matrix[:, 2] += generator.uniform(-1.5, 1.5, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(chip), matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(moved + generator.normal(0, 2, chip.shape), 0, 255).astype(np.uint8)


def leave(door: sanitize.FrameSanitizer, renderer: render.Renderer, pixels: Pixels, number: int, at_ns: int) -> Pixels:
    """What a frame that was captured at a time leaves, through the message and past the wall, before it is encoded."""
    with lend(pixels, number, at_ns, at_ns) as raw:
        crossed = message.parse(message.pack(door(raw)))
    assert isinstance(crossed, message.Latents)
    return renderer(crossed).pixels


def composed(
    model: Model, chips: Chips, alpha: float
) -> Iterator[tuple[Pixels, list[runtime_faces.Track], runtime_faces.Detector]]:
    """Each chip in a frame [320, 320, 3] BGR of its own, at its own size, with its edge pixels around it, through the whole
    runtime: detect, align, encode, cross, decode, paint, JPEG. What comes out, the faces that were found raw, and the detector.
    """
    detector = runtime_faces.Detector(320)
    entropy = np.random.default_rng(5).bytes
    for chip in tqdm(chips, desc="frames", leave=False):
        picture = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), 104, 104, 104, 104, cv2.BORDER_REPLICATE)
        door = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(), alpha, 0, entropy)
        frame = leave(door, render.Renderer(model.decoder), np.asarray(picture, np.uint8), 1, time.monotonic_ns())
        _, packet = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        yield np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8), door.tracker.tracks, detector


def found_again(model: Model, chips: NDArray[np.uint8], alpha: float) -> dict[str, Any]:
    """The provider's own detector on composed output frames: of the faces found raw, how many are found again.

    Landmark errors are in pixels of the chip.
    """
    found, again, errors = 0, 0, []
    for sent, tracks, detector in composed(model, chips, alpha):
        if not tracks:
            continue
        found += 1
        before = tracks[0]
        after = [f for f in detector(sent) if runtime_faces.overlap(f.box, before.box) > 0.3]
        if after:
            again += 1
            matrix = runtime_faces.alignment(before.landmarks)
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            errors.append(float(np.linalg.norm(after[0].landmarks - before.landmarks, axis=1).mean()) * scale)
    return {"found_raw": found, "found_again": again, "share": again / max(1, found),
            "landmark_error_px": float(np.median(errors)) if errors else float("nan")}  # fmt: skip


def audit(path: Path, folder: Path, networks: Path, work: Path, plan: Plan, alpha: float | None = None,
          saved: Path | None = None, others: list[Mechanism] | None = None,
          curve: tuple[float, ...] = (), rival: Path | None = None, beside: Sequence[Path] = (),
          kept: Path | None = None, so_far: bool = False) -> dict[str, Any]:  # fmt: skip
    """The whole report of one model at one alpha: the model itself, raw faces, and the baselines, in the same table.

    `saved`: the folder of its training, or a model file, to set float32 beside int8. `others`: the baselines (None = all). `curve`:
    alphas of the trade-off. `rival`: the folder of a training of recipes/unet.toml, one more baseline. `beside`: other
    model files, such as a deterministic sanitizer, each at its own alpha. `kept`: where figures lie (default: work).
    `so_far`: measure nothing, and report what is there: whole rows, and all attackers of the model's own.

    Raises:
        ExportError: it hides something else, two rows have one name, or nothing is there to report.
    """
    model = prepare(path, path.read_bytes(), threads=2)  # not signed yet: it is signed when its claims are in
    if model.metadata.private != "gender":
        hides = model.metadata.private
        raise ExportError(
            f"{path} hides {hides}, and this protocol judges gender: say --hidden and --kept, such as --hidden '{hides}>=45'"
        )
    alpha = model.metadata.alpha_default if alpha is None else alpha
    started, graph = time.monotonic(), graph_digest(path)
    ours = mechanisms.sanitizer(model, alpha, graph=graph)
    compared = mechanisms.baselines(networks) if others is None else list(others)
    whole = [mechanisms.raw(), ours, *([mechanisms.trained(saved, alpha)] if saved is not None else [])]
    compared += [mechanisms.trained(rival, alpha, RIVAL)] if rival is not None else []
    for file in beside:
        other = prepare(file, file.read_bytes(), threads=2)
        about = other.metadata
        compared.append(mechanisms.sanitizer(other, about.alpha_default, about.name, graph_digest(file)))
    names = [m.name for m in (*whole, *compared)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExportError(
            f"two rows would be called {twice[0]!r}: give --beside models of different names, or one of them at a time"
        )
    a = Audit(folder, networks, work, plan, kept)
    later, c, few = a.work.later, a.closed, a.smaller(plan.baseline_train)
    table: dict[str, Any] = {}
    for m in [*whole, *compared]:
        name, part = m.name, a if m in whole else few
        table[name] = {
            "utility": later(f"{name}, utility", lambda m=m, part=part: part.utility(m), m.identity),
            "looks": later(f"{name}, looks", lambda m=m, part=part: part.looks(m), m.identity),
            "frozen": {f: part.work.later(f"{name}, {f}", lambda m=m, f=f, part=part: part.frozen(m, f), m.identity) for f in (*FROZEN, *RAW_ONLY)},
            "fresh": {
                f: [
                    part.work.later(f"{name}, {f}, seed {s}", lambda m=m, f=f, s=s, part=part: part.fresh(m, f, s), m.identity)
                    for s in range(1 if f in SLOW else plan.seeds)
                ]
                for f in (FRESH if m is ours else FRESH[:1] + FRESH[-1:] if part is few else FRESH[:1] + FRESH[-2:])
            },
        }  # fmt: skip
    row, averaged = table[ours.name], []
    if ours.stochastic and not plan.brief:
        row["fresh"]["knows z"] = [later("knows z", lambda: a.knows_noise(ours, model, alpha, 0), ours.identity)]
        mean = later("mean of draws", lambda: a.mean_of_draws(ours, 0), ours.identity, plan.mean_draws)
        row["fresh"][f"mean of {plan.mean_draws} draws"] = [mean]
        if not mean.path.exists():  # else nobody asks for these pictures
            averaged = [a.work.sending(ours, c.faces.chips, c.truth, 100 + i, "closed") for i in range(plan.mean_draws)]
        row["track"] = later("track", lambda: a.track(ours, model, alpha, 0), ours.identity)
    if not plan.brief:
        row["fresh"]["recovery, then CNN 4"] = [later("recovery", lambda: a.recovery(ours, 0), ours.identity)]
        row["context"] = {CANVAS: later(f"context, {CANVAS}", lambda: a.context(model, alpha), ours.identity)}
    row["open"] = later("open set", lambda: a.strangers(ours), ours.identity, plan.open_limit)
    row["found_again"] = later(
        f"found again, {CANVAS}",
        lambda: found_again(model, c.faces.chips[c.test][: plan.again], alpha),
        ours.identity,
        plan.again,
    )
    points = []
    for at in curve:
        m = mechanisms.sanitizer(model, at, f"edgesan at {at:g}", graph)
        points.append(later(f"{m.name}, curve", lambda m=m: a.along(m), m.identity))
    if so_far:
        missing = sum(not cell.path.exists() for cell in [*cells(table), *points])
        table = {name: measured(r) for name, r in table.items() if r is row or measured(r) == r}
        points = []
        needed = {"utility", "looks", "frozen", "fresh", "open", "found_again"}
        if "raw" not in table or not needed <= table[ours.name].keys():
            raise ExportError(f"nothing can be reported yet: figures of raw faces or of {path} itself are not measured")
        print(f"{missing} cells are not measured yet; what follows is the rest")
    else:
        share([row, *averaged, *points, *(other for other in table.values() if other is not row)], work)
    table = settled(table)
    for name, row in table.items():
        print(
            f"{name}: top-5 {100 * row['utility']['top5']:.1f}, best fresh attacker {describe(metrics.strongest(row))}"
        )
    dial = [{"alpha": at, **point.value()} for at, point in zip(curve, points, strict=not so_far)]
    for point in dial:
        print(f"alpha {point['alpha']:g}: top-5 {100 * point['top5']:.1f}, attacker {100 * point['attacker']:.1f}")
    return {
        "format": FORMAT,
        "model": {"name": model.metadata.name, "version": model.metadata.version, "graph_sha256": graph},
        "alpha": alpha,
        "private": model.metadata.private,
        "closed_set": {"people": c.people, "pictures": len(c.faces), "test": int(c.test.sum()), "prior": float(c.truth.mean())},
        "plan": asdict(plan),
        "table": table,
        "bound": bound(c),
        "curve": dial,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }  # fmt: skip


def bound(c: ClosedSet) -> dict[str, Any]:
    """The information-theoretic bound of this label table: H(person | picture) of the best sanitizer, by its budget b.

    Where the person determines the attribute it is the line H(P) - b; elsewhere `metrics.smallest_loss` finds it.
    """
    joint = np.zeros((c.people, 2))
    np.add.at(joint, (c.person, c.truth.astype(int)), 1)
    p = c.truth.mean()
    entropy = float(-(p * np.log(p) + (1 - p) * np.log(1 - p)))
    determined = bool(((joint > 0).sum(1) < 2).all())
    if determined:
        return {"entropy_nats": entropy, "points": [[b, entropy - b] for b in (0.0, *BUDGETS, entropy)]}
    return {"entropy_nats": entropy, "points": [[b, metrics.smallest_loss(joint, b)[0]] for b in BUDGETS]}


def describe(best: tuple[str, dict[str, Any]]) -> str:
    low, high = best[1]["accuracy_95"]
    return f"{100 * best[1]['accuracy']:.1f} [{100 * low:.1f}..{100 * high:.1f}] ({best[0]}, leak {best[1]['leak_nats']:.3f} nats)"


def graph_digest(path: Path) -> str:
    """SHA-256 of the graph alone: the same before and after claims are written into the metadata."""
    return hashlib.sha256(onnx.load(str(path)).graph.SerializeToString(deterministic=True)).hexdigest()


def claims(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The report as claims for the model's metadata: each with its attack and n."""
    n, alpha = report["closed_set"]["test"], report["alpha"]
    common = {"n": n, "alpha": alpha, "set": "closed"}
    out: list[dict[str, Any]] = []
    ours = report["table"]["edgesan"]
    for kind, row in (("raw", report["table"]["raw"]), ("sanitized", ours)):
        out += [
            {"figure": f"identity {k}, {kind}", "value": round(v, 4), "by": UTILITY, **common}
            for k, v in row["utility"].items()
            if k.startswith("top")
        ]
        attacks = {name: metrics.average([cell]) for name, cell in row["frozen"].items()}
        attacks |= {f"fresh {name}": metrics.average(cells) for name, cells in row["fresh"].items()}
        out += [
            {
                "figure": f"gender accuracy, {kind}",
                "value": round(s["accuracy"], 4),
                "attack": name,
                "seeds": s["seeds"],
                "accuracy_95": [round(end, 4) for end in s["accuracy_95"]],
            }
            | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats")}
            | {f"pooling_{k}": round(v, 4) for k, v in s["pooled"].items() if k == "10"}
            | common
            for name, s in attacks.items()
        ]
    for name, rates in ours["open"]["tar"].items():
        out += [
            {
                "figure": f"strangers verified, TAR at FAR {rate}",
                "value": round(v, 4),
                "by": name,
                "alpha": alpha,
                "set": "open",
            }
            for rate, v in rates.items()
        ]
    out += [
        {"figure": "gender accuracy, strangers sanitized", "value": round(s["accuracy"], 4), "attack": f"fresh {name}"}
        | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats", "n")}
        | {"alpha": alpha, "set": "open"}
        for name, s in ours["open"]["attackers"].items()
    ]
    out += [
        {"figure": f"gender accuracy, output frames with {background} around", "attack": f"fresh {FRESH[0]}"}
        | {"value": round(s["accuracy"], 4)}
        | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats")}
        | common
        for background, s in ours.get("context", {}).items()
    ]
    if "track" in ours:
        frames = ours["track"]["balanced_by_frames"]
        out.append({"figure": "gender, balanced, mean over 150 frames of one track", "value": round(frames["150"], 4),
                    "attack": f"fresh {FRESH[0]}", "one frame": round(frames["1"], 4), "n": ours["track"]["faces"], "alpha": alpha, "set": "closed"})  # fmt: skip
    again = ours["found_again"]
    out.append({"figure": "faces found again in the output frame", "value": round(again["share"], 4), "n": again["found_raw"],
                "alpha": alpha, "landmark_error_px": round(again["landmark_error_px"], 2)})  # fmt: skip
    return out


def table(report: dict[str, Any]) -> str:
    """The report in short, as Markdown: the model against raw faces, all mechanisms, and each fresh attacker."""
    c, ours, raw = report["closed_set"], report["table"]["edgesan"], report["table"]["raw"]
    lines = [
        f"{report['model']['name']} v{report['model']['version']} at alpha {report['alpha']:g}; closed set: {c['people']} people, {c['test']} test pictures, prior {c['prior']:.3f} male; fresh attackers trained for {report['plan']['epochs']} epochs",
        "",
        "| | raw | sanitized |",
        "|---|---|---|",
    ]
    lines += [
        f"| identity, {k} | {100 * raw['utility'][k]:.1f} | {100 * ours['utility'][k]:.1f} |" for k in ("top1", "top5")
    ]
    lines += [
        f"| gender by {name} | {figures(raw['frozen'][name])} | {figures(ours['frozen'][name])} |"
        for name in ours["frozen"]
    ]
    for name, cells in ours["fresh"].items():
        before = figures(metrics.average(raw["fresh"][name])) if name in raw["fresh"] else "–"
        lines.append(f"| gender by fresh {name} | {before} | {figures(metrics.average(cells))} |")
    for name, before, after in strangers(report):
        lines.append(f"| {name} | {before} | {after} |")
    again = ours["found_again"]
    lines.append(
        f"| faces found again in the output frame | {again['found_raw']} | {again['found_again']} ({100 * again['share']:.1f} %), landmarks {again['landmark_error_px']:.2f} px off |"
    )
    lines.append(f"| structural similarity to the raw face | 1 | {ours['looks']['ssim']:.3f} |")
    lines += [
        "",
        "| | top-1 | top-5 | best fresh attacker [95 % over people] (leak) | pooling 5 pictures | gender_faceapi | gender_dlib | gender_gear (AUC) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["table"].items():
        best, u = metrics.strongest(row), row["utility"]
        pool, frozen = best[1]["pooled"].get("5"), row["frozen"]
        lines.append(
            f"| {name} | {100 * u['top1']:.1f} | {100 * u['top5']:.1f} | {describe(best)} | {'–' if pool is None else f'{100 * pool:.1f}'}"
            f" | {100 * frozen['gender_faceapi']['accuracy']:.1f} | {100 * frozen['gender_dlib']['accuracy']:.1f} | {100 * frozen['gender_gear']['auc']:.1f} |"
        )
    lines += [
        "",
        "| fresh attacker | seeds: range | 95 % over people | pooling 1 / 3 / 5 / 10 pictures, balanced |",
        "|---|---|---|---|",
    ]
    for name, cells in ours["fresh"].items():
        a = metrics.average(cells)
        (least, most), (low, high) = a["range"], a["accuracy_95"]
        pools = " / ".join(f"{100 * v:.1f}" for v in a["pooled"].values())
        lines.append(
            f"| {name} | {a['seeds']}: {100 * least:.1f}..{100 * most:.1f} | {100 * low:.1f}..{100 * high:.1f} | {pools} |"
        )
    for background, s in ours.get("context", {}).items():
        lines.append(
            f"| {FRESH[0]}, on output frames with {background} around | 1 | {100 * s['accuracy_95'][0]:.1f}..{100 * s['accuracy_95'][1]:.1f} | accuracy {figures(s)} |"
        )
    name, best = metrics.strongest(ours)
    parts = ", ".join(f"{part} {100 * v:.1f}" for part, v in best["slices"].items())
    lines += ["", f"{name} is right, by part of the test pictures: {parts}."] if parts else []
    if "track" in ours:
        frames = " / ".join(f"{100 * v:.1f}" for v in ours["track"]["balanced_by_frames"].values())
        lines += ["", f"One track, mean over 1 / 10 / 30 / 150 frames: {frames} (balanced)."]
    return "\n".join(lines)


def figures(s: dict[str, Any]) -> str:
    """One attacker's scores in a table."""
    return f"{100 * s['accuracy']:.1f} (balanced {100 * s['balanced']:.1f}, AUC {s['auc']:.3f}, leak {s['leak_nats']:.3f} nats)"


def strangers(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows about people whom neither the sanitizer nor the attackers have seen: what, on raw faces, on sanitized ones."""
    tar, rows = report["table"]["edgesan"]["open"]["tar"], []
    for matcher in MATCHERS:
        raw, first, second = (tar[f"{matcher}, {kind}"] for kind in ("raw", "against raw", "against sanitized"))
        for rate in raw:
            rows.append((f"strangers verified by {matcher}, TAR at FAR {rate}, raw gallery", f"{100 * raw[rate]:.1f}", f"{100 * first[rate]:.1f}"))  # fmt: skip
            rows.append((f"strangers verified by {matcher}, TAR at FAR {rate}, sanitized gallery", f"{100 * raw[rate]:.1f}", f"{100 * second[rate]:.1f}"))  # fmt: skip
    for name, s in report["table"]["edgesan"]["open"]["attackers"].items():
        rows.append((f"strangers' gender by fresh {name}", "–", figures(s)))
    return rows


def on_the_clip(path: Path, alpha: float | None) -> str:
    """A look without any data: do fresh attackers tell the two people of the bundled clip, a woman and a man, apart?

    They learn on the first frames and are judged on the last ones. Two people are no audit: this shows that the
    machinery runs, on real faces, on any machine.
    """
    model = prepare(path, path.read_bytes(), threads=2)
    alpha = model.metadata.alpha_default if alpha is None else alpha
    chips, truth = pages.two_people()
    n = len(chips)
    order = np.arange(n)
    train, val, test = order < 0.6 * n, (order >= 0.6 * n) & (order < 0.8 * n), order >= 0.8 * n
    lines = ["The bundled clip's two people; accuracy of fresh attackers in %, prior 50", "", "| | linear on pixels | CNN 2 | SSIM |", "|---|---|---|---|"]  # fmt: skip
    for m in (mechanisms.raw(), mechanisms.sanitizer(model, alpha), mechanisms.blur(4), mechanisms.pixelate(8)):
        draws = [jpeg(m.apply(chips, truth, seed)) for seed in range(4 if m.stochastic else 1)]
        lesson = Lesson([d[train] for d in draws], truth[train], draws[0][val], truth[val])
        cells = []
        for name, epochs in (("linear on pixels", 8), ("CNN 2", 12)):
            net, rate = PIXEL_ATTACKERS[name](Path())
            judge = attackers.fit(net, lesson, epochs=epochs, seed=0, rate=rate, name=f"{name} on {m.name}")
            cells.append(f"{100 * ((judge(draws[0][test]) > 0) == truth[test]).mean():.0f}")
        lines.append(f"| {m.name} | {' | '.join(cells)} | {metrics.ssim(chips[test], draws[0][test]):.2f} |")
    return "\n".join(lines)


def write_claims(path: Path, report: dict[str, Any]) -> None:
    """Put the claims into the model's metadata; its graph stays the very one that was audited.

    Raises:
        ExportError: the file holds another graph.
    """
    if graph_digest(path) != report["model"]["graph_sha256"]:
        raise ExportError(f"{path} is not the model that this report is about")
    proto = onnx.load(str(path))
    metadata = json.loads(next(p.value for p in proto.metadata_props if p.key == "edgesan"))
    metadata["claims"] = claims(report)
    onnx.helper.set_model_props(proto, {"edgesan": json.dumps(metadata)})
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(proto.SerializeToString())
    part.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.audit", description=__doc__)
    parser.add_argument("model", type=Path, help="an edgesan .onnx file")
    parser.add_argument(
        "--data", type=Path, help="folder of sets (.tar and .csv); with --quick, the bundled clip will do"
    )
    parser.add_argument("--networks", type=Path, help="folder of the providers' ONNX networks")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/audit"),
        help="pictures, embeddings and weights on the way: an audit that was stopped goes on from them; never to be published",
    )
    parser.add_argument(
        "--cells",
        type=Path,
        help="figures that are measured already, and the new ones: docs/audit holds the project's own (default: WORK)",
    )
    parser.add_argument("--so-far", action="store_true", help="measure nothing: report what is there already")
    parser.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer pictures, epochs, seeds and baselines: a look, no claim"
    )
    parser.add_argument(
        "--brief", action="store_true",
        help="without the baselines, and without the attackers who know z, average draws or frames, recover first, or look around the face",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=Plan.seeds, help="of each fresh attacker (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="for the fresh attackers (default %(default)s)")
    parser.add_argument(
        "--float",
        type=Path,
        metavar="RUN",
        help="float32 beside int8: the folder that export.train wrote, or the model file itself, for its own weights",
    )
    parser.add_argument(
        "--rival", type=Path, metavar="RUN", help="a training of export/recipes/unet.toml, in the same table"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="MODEL", help="other model files, in the same table"
    )
    parser.add_argument("--hidden", metavar="STATEMENT", help="for another attribute than gender: age>=45, hair=dark")
    parser.add_argument(
        "--kept", metavar="STATEMENT", default="gender=M", help="with --hidden: what stays useful (default %(default)s)"
    )
    parser.add_argument(
        "--sets", nargs="+", default=["aaf", "utk"], help="with --hidden: where both are known (default: aaf utk)"
    )
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument(
        "--curve", action="store_true", help="also along the dial, at alpha " + ", ".join(f"{c:g}" for c in CURVE)
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write each figure there")
    parser.add_argument("--html", type=Path, help="write the report there, with its pictures, as one page")
    parser.add_argument("--write", action="store_true", help="write the claims into the model's metadata")
    a = parser.parse_args(arguments)
    try:
        if a.quick and a.write:
            raise ExportError("a quick look makes no claims: leave out --quick or --write")
        if a.quick and not (a.data and a.data.is_dir() and a.networks and a.networks.is_dir()):
            print(on_the_clip(a.model, a.alpha))
            return 0
        if not a.data or not a.networks:
            raise ExportError("--data and --networks are needed, except for --quick")
        if a.hidden:
            from export.audit import attributes  # which is built on this module

            plan = replace(QUICK, open_limit=1500) if a.quick else Plan(epochs=a.epochs)
            both = attributes.statement(a.hidden), attributes.statement(a.kept)
            found = attributes.audit_columns(a.model, a.data, a.networks, a.work, plan, *both, tuple(a.sets), a.alpha)
            print(attributes.table(found))
            if a.json:
                a.json.write_text(json.dumps(found, indent=2) + "\n")
            return 0
        plan = QUICK if a.quick else Plan(seeds=a.seeds, epochs=a.epochs, brief=a.brief)
        others = [] if a.brief else [mechanisms.blur(4), mechanisms.pixelate(8)] if a.quick else None
        curve = CURVE if a.curve else ()
        report = audit(
            a.model,
            a.data,
            a.networks,
            a.work,
            plan,
            a.alpha,
            a.float,
            others,
            curve,
            a.rival,
            a.beside,
            a.cells,
            a.so_far,
        )
        print(table(report))
        if a.html or a.figures:
            shown = prepare(a.model, a.model.read_bytes(), threads=2)
            if a.html:
                pages.write_page(report, shown, table(report), a.html)
            if a.figures:
                pages.write_figures(report, shown, a.figures)
        if a.json:
            a.json.write_text(json.dumps(report, indent=2) + "\n")
        if a.write:
            write_claims(a.model, report)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


CURVE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
QUICK = Plan(seeds=1, epochs=2, draws=1, mean_draws=4, limit=1500, open_limit=600, track=20, again=60)

if __name__ == "__main__":
    sys.exit(main())
