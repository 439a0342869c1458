"""Strangers first: `python -m export.audit.strangers MODEL --data DIR --networks DIR [--quick]`.

A camera meets people whom no training has seen. So the headline is measured on people of `identity_split = test`, on
the frames that the device sends of them: the int8 file, the message, the plain canvas, JPEG; a provider finds the face
in the frame, and cuts it out. Attackers learn on such pictures of `train` people, and stop by those of `val` people.

* recognition: a household of eight, and TAR at FAR 1e-2 and 1e-3 against raw and sanitized galleries, over several
  draws of the noise, by matchers that took no part in the training; those that taught it are named so;
* gender: fresh attackers, frozen classifiers, and both over 1, 3, 5 and 10 pictures of a stranger, by set;
* looks: the power of painted faces by spatial frequency and their chroma noise, beside raw faces; landmarks.

`--quick` is for a model in training: minutes of one core. It leaves out strangers with fewer than four pictures, six
of ten pictures of the others, `id_sface`, all but one draw for all matchers but the first, two of three seeds, the
strongest attackers on pictures, the probes of all matchers but the first, `gender_gear`, and pooling over more than
three pictures.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesan.model.load import Model, prepare
from export import data, recipe
from export.audit import attackers, device, metrics, tables
from export.audit.attackers import AttackData, Chips, Convolutional, Make
from export.audit.cells import Cell, Store, Tree, finished, settled
from export.audit.claims import graph_digest
from export.audit.command import conclude, errors_as_lines
from export.audit.measure import FALSE_ACCEPTS, PIXEL_ATTACKERS, Folders
from export.audit.report import (
    Attacked,
    FoundAgain,
    ModelId,
    Realism,
    Recognised,
    Share,
    Strangers,
    StrangersPlan,
    StrangersReport,
    from_json,
    to_json,
)
from export.errors import ExportError
from export.providers import Provider

SETS = ("lfw", "glint", "pins", "celeba", "aaf", "utk")
ENOUGH = 8  # women, and as many men: a set with fewer is not scored alone, nor makes a household
POOLED = (1, 3, 5, 10)
RIDGE = 0.01  # weight decay of a logistic regression, per picture
RECIPES = Path(recipe.__file__).with_name("recipes")
QUICK = StrangersPlan(
    photos=4,
    fewest=4,
    unknown=300,
    learn=3000,
    learn_draws=1,
    epochs=4,
    seeds=1,
    looked=200,
    pixels=("CNN 2",),
    probed=("id_mobilefacenet_b",),
    matchers=("id_mobilefacenet_b", "id_dlib_resnet", "id_mobilefacenet_paddle"),
    once=("id_dlib_resnet", "id_mobilefacenet_paddle"),
    frozen=("gender_faceapi", "gender_dlib"),
)


@dataclass(frozen=True)
class People:
    """N chips with their people, numbered from 0, their sets, and their truth (a man?)."""

    chips: Chips
    person: NDArray[np.int64]
    known: NDArray[np.bool_]  # whether the set knows who it is; else each picture is a person of its own
    source: NDArray[np.str_]
    truth: NDArray[np.bool_]

    def where(self, rows: NDArray[np.bool_]) -> "People":
        """Return those for which `rows` [N] holds."""
        return People(self.chips[rows], self.person[rows], self.known[rows], self.source[rows], self.truth[rows])

    def labelled(self, name: str) -> device.Labelled:
        """Return them under a name."""
        return device.Labelled(name, self.chips, self.truth)


@dataclass(frozen=True)
class Split:
    """Whom the attackers learn on, by whom they stop, the strangers, and those of them whom a matcher can know."""

    learn: People
    val: People
    test: People
    several: People  # strangers with more than one picture
    digest: str


def chosen(folder: Path, plan: StrangersPlan) -> Split:
    """Read the people of all three splits.

    Raises:
        DataError: a set is missing or broken.
        ExportError: there are no eight strangers with more than three pictures.
    """
    faces = data.join(data.load_set(folder, name, picked(data.read_labels(folder, name), plan)) for name in SETS)
    person, _ = faces.labels("identity")
    known = person >= 0
    person[~known] = person.max() + 1 + np.arange(int((~known).sum()))

    everyone = People(faces.chips, person, known, faces["set"], faces["gender"] == "M")
    learn, val, test = (everyone.where(faces["identity_split"] == split) for split in ("train", "val", "test"))
    several = test.where(np.bincount(test.person)[test.person] > 1)
    if not makes_households(several.person):
        raise ExportError(f"fewer than eight strangers with four pictures in {folder}: a household is eight people")
    return Split(learn, val, test, several, faces.digest())


def makes_households(person: NDArray[np.int64]) -> bool:
    """Return whether enough people have enough pictures [N] for `metrics.household`."""
    return int((np.bincount(person, minlength=1) > 3).sum()) >= 8


def picked(labels: Mapping[str, NDArray[np.str_]], plan: StrangersPlan) -> NDArray[np.bool_]:
    """Return which pictures of a set take part [N]: of each stranger some, and as many of learning women as of men.

    They are drawn by their names, so a part of the set that holds them gives the same.
    """
    rows = np.zeros(len(labels["file"]), np.bool_)
    order = np.argsort([hashlib.sha256(file.encode()).hexdigest() for file in labels["file"].tolist()])
    order = order[labels["gender"][order] != ""]
    for split, count in (("train", plan.learn), ("val", plan.learn // 6)):
        for gender in ("F", "M"):
            here = (labels["identity_split"] == split) & (labels["gender"] == gender)
            rows[order[here[order]][: count // (2 * len(SETS))]] = True
    photos: dict[str, list[int]] = {}
    for i in order[labels["identity_split"][order] == "test"].tolist():
        photos.setdefault(str(labels["identity"][i]), []).append(i)
    rows[photos.pop("", [])[: plan.unknown]] = True
    for mine in photos.values():
        if len(mine) >= plan.fewest:
            rows[mine[: plan.photos]] = True
    return rows


@dataclass(frozen=True)
class Subject:
    """The model that is measured, at one alpha, and which networks took part in its training."""

    model: Model
    graph: str
    alpha: float
    taught: frozenset[str]


def subject(path: Path, alpha: float | None, given: Path | None) -> Subject:
    """Read a model, and find the recipe that it was trained by: among the project's, or the given one.

    Raises:
        ExportError: none of the project's recipes has the digest that the model names.
    """
    model = prepare(path, path.read_bytes(), threads=1)
    about = model.metadata
    if given is None:
        digest = about.provenance.get("recipe_sha256")
        found = [f for f in sorted(RECIPES.rglob("*.toml")) if hashlib.sha256(f.read_bytes()).hexdigest() == digest]
        if not found:
            raise ExportError(
                f"no recipe in {RECIPES} has the digest that {path} names: say which networks took part in its "
                "training with --recipe FILE"
            )
        given = found[0]
    r = recipe.read(given)
    taught = frozenset(Path(name).stem for name in (*r.utility, *r.frozen))
    return Subject(model, graph_digest(path), about.alpha_default if alpha is None else alpha, taught)


@dataclass(eq=False)
class Measurement:
    """All that is measured on strangers, each figure a cell."""

    subject: Subject
    plan: StrangersPlan
    split: Split
    folders: Folders

    @cached_property
    def store(self) -> Store:
        """Cells that depend on the people; what shows the model depends on it, too."""
        return self.folders.store("strangers", self.split.digest)

    @property
    def _shown(self) -> tuple[object, ...]:
        return self.subject.graph, self.subject.alpha

    @cached_property
    def _providers(self) -> dict[str, Provider]:
        return {}

    def provider(self, name: str) -> Provider:
        """Read a provider's network, frozen, once."""
        if name not in self._providers:
            self._providers[name] = Provider(name, self.folders.networks).eval().requires_grad_(False)
        return self._providers[name]

    def frames(self, part: str, draw: int) -> Cell:
        """Return the cell of the frames that are sent of a part of the split, such as "test"."""
        people: People = getattr(self.split, part)
        s = self.subject
        return device.sending_frames(self.store, s.model, people.labelled(part), s.alpha, draw, *self._shown)

    def seen(self, part: str, draw: int) -> device.Seen:
        """Return what a provider makes of these frames; the first draws are kept, because all attackers look at them.

        Raises:
            ExportError: it finds a face in fewer than half of them.
        """
        if (part, draw) in self._seen:
            return self._seen[part, draw]
        seen = device.seen(self.frames(part, draw))
        if 2 * seen.found.sum() < len(seen.found):
            raise ExportError(
                f"a provider finds a face in {int(seen.found.sum())} of {len(seen.found)} frames of {part}: "
                "this model paints no faces, and nothing else can be measured"
            )
        if part != "several":
            self._seen[part, draw] = seen
        return seen

    @cached_property
    def _seen(self) -> dict[tuple[str, int], device.Seen]:
        return {}

    def embedded(self, name: str, part: str, draw: int) -> Tensor:
        """Return a matcher's embeddings [N, D] of sanitized faces; a face that was not found is 0, like nobody."""

        def compute() -> Tensor:
            seen = self.seen(part, draw)
            found = torch.from_numpy(seen.found)
            embeddings = attackers.outputs(self.provider(name), seen.chips, f"{name} of {part}, draw {draw}")
            return embeddings * found[:, None]

        kept: Tensor = self.store.tensors(f"{part} {name} draw {draw}", compute, *self._shown)
        return kept

    def raw(self, name: str, part: str = "several") -> Tensor:
        """Return a matcher's embeddings [N, D] of raw faces: by default of the strangers whom a matcher can know."""
        people: People = getattr(self.split, part)
        compute = partial(attackers.outputs, self.provider(name), people.chips, f"{name} of raw {part}")
        kept: Tensor = self.store.tensors(f"raw {part} {name}", compute)
        return kept

    # Recognition

    def recognised(self, name: str) -> Recognised:
        """Measure a matcher over draws of the noise."""
        count = self.plan.draws if self.subject.model.noise_dimensions and name not in self.plan.once else 1
        draws = [self.embedded(name, "several", draw) for draw in range(count)]
        return replace(self._recognised(draws, self.raw(name)), taught=name in self.subject.taught)

    def recognised_raw(self, name: str) -> Recognised:
        """Measure a matcher on raw strangers."""
        return self._recognised([self.raw(name)], self.raw(name))

    def _recognised(self, draws: list[Tensor], raw: Tensor) -> Recognised:
        person, by_set = self.split.several.person, {}
        for name in SETS:
            here = self.split.several.source == name
            if makes_households(person[here]):
                rows = torch.from_numpy(here)
                by_set[name] = averaged([metrics.households(seen[rows], person[here]) for seen in draws])
        return Recognised(
            household=averaged([metrics.households(seen, person) for seen in draws]),
            household_by_set=by_set,
            tar={
                f"{rate:g}": {
                    "raw": averaged([metrics.accepted(seen, raw, person, rate) for seen in draws]),
                    "sanitized": averaged([metrics.accepted(seen, seen, person, rate) for seen in draws]),
                }
                for rate in FALSE_ACCEPTS
            },
            draws=len(draws),
        )

    # Gender

    def fresh(self, attacker: str, seed: int) -> Attacked:
        """Train one attacker, and score it."""
        draws, (val, test) = range(self.plan.learn_draws), (self.seen(part, 0).found for part in ("val", "test"))
        learn = self.split.learn
        if attacker in PIXEL_ATTACKERS:
            return self._attacked(*self._pixels(attacker, seed), val, test)
        kind, matcher = attacker.split(" on ")
        found = [self.seen("learn", draw).found for draw in draws]
        everywhere = np.logical_and.reduce(found)
        seen = [self.embedded(matcher, "learn", draw)[torch.from_numpy(everywhere)] for draw in draws]
        held, asked = (
            self.embedded(matcher, part, 0)[torch.from_numpy(rows)] for part, rows in (("val", val), ("test", test))
        )
        if kind == "probe":
            net = attackers.probe(seen, learn.truth[everywhere], held, self.split.val.truth[val], seed)
            return self._attacked(net.odds(held), net.odds(asked), val, test)
        scale = held.shape[1] ** 0.5
        odds = attackers.logistic(
            (torch.cat(seen) * scale).numpy(),
            np.tile(learn.truth[everywhere], len(seen)),
            RIDGE * len(seen) * everywhere.sum(),
        )
        return self._attacked(odds((held * scale).numpy()), odds((asked * scale).numpy()), val, test)

    def _pixels(self, attacker: str, seed: int) -> tuple[metrics.Odds, metrics.Odds]:
        """Train an attacker on pictures; return its log-odds of the found `val` and `test` pictures."""
        shown = [self.seen("learn", draw) for draw in range(self.plan.learn_draws)]
        everywhere = np.logical_and.reduce([seen.found for seen in shown])
        val, test = self.seen("val", 0), self.seen("test", 0)
        known = AttackData(
            [seen.chips[everywhere] for seen in shown],
            self.split.learn.truth[everywhere],
            val.chips[val.found],
            self.split.val.truth[val.found],
        )
        make, rate = PIXEL_ATTACKERS[attacker]
        network: Make = partial(make, self.folders.networks)
        if attacker.endswith("begun on raw faces"):
            network = self._begun_on_raw
        scorer = attackers.fit(network, known, epochs=self.plan.epochs, seed=seed, rate=rate, name=attacker)
        return scorer(known.val), scorer(test.chips[test.found])

    def _begun_on_raw(self) -> nn.Module:
        """Return a CNN 4 with the weights of one that has learned on raw faces."""
        s, net = self.split, Convolutional(4)
        known = AttackData([s.learn.chips], s.learn.truth, s.val.chips, s.val.truth)
        learn = partial(attackers.learned_on_raw, known, self.plan.epochs)
        net.load_state_dict(self.store.tensors("CNN 4, raw", learn, self.plan.epochs))
        return net

    def frozen(self, name: str) -> Attacked:
        """Score a classifier that has never seen a sanitized face."""
        val, test = self.seen("val", 0), self.seen("test", 0)
        held, asked = (self._odds(name, seen.chips[seen.found]) for seen in (val, test))
        return self._attacked(held, asked, val.found, test.found)

    def of_raw(self, attacker: str) -> Attacked:
        """Score one of `raw_attackers` on raw strangers: what there is to hide."""
        s = self.split
        if attacker in self.plan.frozen:
            held, asked = (self._odds(attacker, part.chips) for part in (s.val, s.test))
        else:
            learn, val, test = (self.raw(attacker.removeprefix("probe on "), part) for part in ("learn", "val", "test"))
            net = attackers.probe([learn], s.learn.truth, val, s.val.truth)
            held, asked = net.odds(val), net.odds(test)
        everyone = (np.ones(len(part.truth), np.bool_) for part in (s.val, s.test))
        return self._attacked(held, asked, *everyone)

    @property
    def raw_attackers(self) -> tuple[str, ...]:
        """Those who are measured on raw strangers: the frozen classifiers, and one of our own."""
        return (*self.plan.frozen, f"probe on {self.plan.probed[0]}")

    def _odds(self, name: str, chips: Chips) -> metrics.Odds:
        """Return a frozen classifier's log-odds [N] for a man."""
        net = self.provider(name)
        logits = attackers.outputs(net, chips, name)
        sign = 1 if net.classes[0] == "M" else -1
        return np.asarray((sign * (logits[:, 0] - logits[:, 1])).double().numpy())

    def _attacked(
        self, fit: metrics.Odds, odds: metrics.Odds, val: NDArray[np.bool_], test: NDArray[np.bool_]
    ) -> Attacked:
        """Return scores by log-odds of the `val` and `test` pictures in which a face was found."""
        people, held = self.split.test, (fit, self.split.val.truth[val])
        truth, person, source, known = people.truth[test], people.person[test], people.source[test], people.known[test]
        by_set = {}
        for name in SETS:
            here = source == name
            if min(len(np.unique(person[here & (truth == man)])) for man in (True, False)) >= ENOUGH:
                by_set[name] = metrics.scores(odds[here], truth[here], held, person[here])
        return Attacked(
            by_set,
            metrics.scores(odds, truth, held, person),
            metrics.pooled(odds[known], truth[known], person[known], POOLED),
        )

    # Looks

    def realism(self) -> Realism:
        """Compare painted faces with raw ones that were sent and cut out in the same way."""
        test, seen = self.split.test, self.seen("test", 0)
        rows = np.random.default_rng(0).permutation(np.flatnonzero(seen.found))[: self.plan.looked]
        raw = device.unsanitized(test.chips[rows])
        painted = seen.chips[rows]
        power = metrics.radial_power(painted) / metrics.radial_power(raw)
        noise = metrics.chroma_noise(painted) / metrics.chroma_noise(raw)
        return Realism(len(rows), [round(float(ratio), 3) for ratio in power], round(noise, 3))

    def found_again(self) -> FoundAgain:
        """Return how many faces a provider finds again, and how far off the landmarks are."""
        seen = self.seen("test", 0)
        off = seen.off_px[seen.camera]
        return device.again(int(seen.camera.sum()), off[np.isfinite(off)].tolist())

    def cells(self) -> dict[str, Tree]:
        """Return the cells of `Strangers`, by its fields; nothing is computed yet."""
        plan, s = self.plan, self.store
        depends = (*self._shown, plan.learn, plan.learn_draws)
        names = (*plan.pixels, *(f"{kind} on {m}" for m in plan.probed for kind in ("probe", "logistic")))

        def trained(name: str) -> list[Cell]:
            once = name.startswith("logistic")  # it has one optimum, whatever the seed
            epochs = plan.epochs if name in PIXEL_ATTACKERS else 0
            return [
                s.figure(f"strangers, {name}, seed {seed}", partial(self.fresh, name, seed), *depends, epochs)
                for seed in range(1 if once else plan.seeds)
            ]

        def seen(name: str) -> Cell:
            taught = name in self.subject.taught
            depends = (*self._shown, plan.draws, name in plan.once, taught)
            return s.figure(f"strangers, {name}", partial(self.recognised, name), *depends)

        return {
            "raw": {m: s.figure(f"strangers, {m}, raw", partial(self.recognised_raw, m)) for m in plan.matchers},
            "matchers": {m: seen(m) for m in plan.matchers},
            "fresh": {name: trained(name) for name in names},
            "frozen": {f: s.figure(f"strangers, {f}", partial(self.frozen, f), *self._shown) for f in plan.frozen},
            "gender_raw": {
                name: s.figure(f"strangers, gender of raw faces, {name}", partial(self.of_raw, name), plan.learn)
                for name in self.raw_attackers
            },
            "realism": s.figure("strangers, realism", self.realism, *self._shown, plan.looked),
            "found_again": s.figure("strangers, found again", self.found_again, *self._shown),
        }

    @property
    def so_far(self) -> Strangers | None:
        """What is measured so far, if there is a figure of each kind; an attacker may have fewer seeds."""
        tree = self.cells()
        kept = cast(dict[str, Tree], finished(tree) or {})
        return self._reported(kept) if kept.keys() == tree.keys() else None

    def result(self) -> Strangers:
        """Compute what is not finished, and return everything."""
        return self._reported(self.cells())

    def _reported(self, cells: dict[str, Tree]) -> Strangers:
        test = self.split.test
        found = from_json(dict[str, object], settled(cells))
        whole = {
            "plan": self.plan,
            "people": len(np.unique(test.person)),
            "pictures": len(test.chips),
            "by_set": {name: int((test.source == name).sum()) for name in SETS},
            "frozen_taught": sorted(self.subject.taught & set(self.plan.frozen)),
        }
        return from_json(Strangers, to_json(whole) | found)


def averaged(draws: list[tuple[NDArray[np.int64], NDArray[np.bool_]]]) -> Share:
    """Return the share of right answers in several draws, with its interval: people are drawn again."""
    people, right = (np.concatenate(parts) for parts in zip(*draws, strict=True))
    spread = metrics.bootstrap(people, right, right.astype(float))
    return Share(round(float(right.mean()), 4), spread.mean[0], len(np.unique(people)))


def measured(
    path: Path, folders: Folders, plan: StrangersPlan, alpha: float | None, given: Path | None
) -> StrangersReport:
    """Measure a model on strangers.

    Raises:
        ExportError: the model hides something else than gender, or its recipe, a set or a network is missing.
    """
    began = time.monotonic()
    asked = subject(path, alpha, given)
    about = asked.model.metadata
    strangers = Measurement(asked, plan, chosen(folders.data, plan), folders).result()
    minutes = round((time.monotonic() - began) / 60, 1)
    return StrangersReport(ModelId(about.name, about.version, asked.graph), asked.alpha, strangers, minutes)


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure a model on strangers, and print it as tables."""
    layout = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog="python -m export.audit.strangers", description=__doc__, formatter_class=layout)
    p.add_argument("model", type=Path, help="an edgesan .onnx file; it need not be signed")
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, required=True, help="folder of the providers' ONNX networks")
    p.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    p.add_argument("--quick", action="store_true", help="the headline alone, in minutes")
    p.add_argument("--recipe", type=Path, help="what it was trained by (default: the project's recipe that it names)")
    p.add_argument("--seeds", type=int, help="of each attacker (default: 3; with --quick 1)")
    p.add_argument("--work", type=Path, default=Path("runs/audit"), help="never publish it (default: %(default)s)")
    p.add_argument("--cells", type=Path, metavar="FOLDER", help="figures of this run, old and new (default: WORK)")
    p.add_argument("--known", type=Path, metavar="FILE", help="more figures: docs/audit/cells.jsonl is the project's")
    p.add_argument("--json", type=Path, metavar="FILE", help="the report")
    a = p.parse_args(arguments)
    plan = QUICK if a.quick else StrangersPlan()
    folders = Folders(a.data, a.networks, a.work, a.cells, a.known)
    report = measured(a.model, folders, plan if a.seeds is None else replace(plan, seeds=a.seeds), a.alpha, a.recipe)
    conclude(report, tables.of_strangers(report), a.json)


if __name__ == "__main__":
    sys.exit(main())
