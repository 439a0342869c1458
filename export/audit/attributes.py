"""The audit of another attribute: what is hidden of one column and what is kept of another, on people never seen.

A statement such as `age>=45` or `gender=M` divides a column in two, and so makes it an attacker's task. Attackers learn
on sanitized pictures of training people. The service learns on raw ones, and then gets sanitized ones unchanged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgesan.model.load import prepare
from export import data
from export.audit import attackers, device, mechanisms, metrics, tables
from export.audit.attackers import AttackData, Chips, Convolutional, Linear
from export.audit.cells import Store
from export.audit.measure import MATCHERS, UTILITY
from export.audit.mechanisms import Mechanism
from export.audit.protocol import Options
from export.audit.report import Score, from_json
from export.errors import ExportError
from export.providers import Provider

PIXELS = {"linear on pixels": (Linear, 1e-3), "CNN 4": (lambda: Convolutional(4), 2e-3)}

Split: TypeAlias = Mapping[str, data.Faces]
"""By "train", "val" and "test"."""


@dataclass(frozen=True)
class Statement:
    """What is true of some pictures and false of others: a column is at least a number, or equal to a word."""

    column: str
    relation: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.relation}{self.value}"

    def of(self, faces: data.Faces) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where it is true [N], and where that is known [N].

        Raises:
            DataError: there is no such column, or its values are no numbers.
        """
        known = faces[self.column] != ""
        if self.relation == ">=":
            groups, _ = faces.labels(self.column, (float(self.value),))
            return groups == 1, known
        return faces[self.column] == self.value, known


def statement(text: str) -> Statement:
    """Read a statement.

    Raises:
        ExportError: the text is none.
    """
    parts = re.fullmatch(r"(\w+)(>=|=)([\w.]+)", text)
    if not parts or (parts[2] == ">=" and not re.fullmatch(r"[\d.]+", parts[3])):
        raise ExportError(f"{text!r} is no statement about a column; write age>=45 or gender=M")
    return Statement(*parts.groups())


@dataclass(frozen=True)
class Task:
    """What is asked: the attribute that should be hidden, the one that should be kept, and the sets that know both."""

    hidden: Statement
    kept: Statement
    sets: tuple[str, ...] = ("aaf", "utk")


@dataclass(frozen=True)
class AttributeRow:
    """One mechanism: each attacker's score on the hidden attribute, and the service's on the kept one."""

    attackers: dict[str, Score]
    service: Score


@dataclass(frozen=True)
class AttributeReport:
    """The audit of two attributes: the number of pictures of each split, and a row for raw and for sanitized ones."""

    alpha: float
    hidden: str
    kept: str
    n: dict[str, int]
    rows: dict[str, AttributeRow]


def audit(options: Options, task: Task) -> AttributeReport:
    """Measure the attackers on the hidden attribute, and the service for the kept one; raw and sanitized.

    Raises:
        ExportError: a set or a network is missing, or a statement is true of all pictures or of none.
    """
    path, plan = options.model, options.plan
    model = prepare(path, path.read_bytes(), threads=1)
    alpha = model.metadata.alpha_default if options.alpha is None else options.alpha
    everyone = data.join(data.load_set(options.folders.data, name) for name in task.sets)
    everyone = everyone.where(task.hidden.of(everyone)[1] & task.kept.of(everyone)[1])
    sizes = {"train": plan.open_limit, "val": plan.open_limit // 3, "test": plan.open_limit // 2}
    faces = {name: chosen(everyone, name, size) for name, size in sizes.items()}
    store = options.folders.store(everyone.digest(), sizes, plan.epochs)
    measurement = AttributeMeasurement(options, task, faces, store)
    found = {}
    for m in (mechanisms.raw(), mechanisms.sanitizer(model, alpha)):
        name = f"{m.name} {task.hidden} {task.kept}"
        cell = store.figure(name, partial(measurement.row, m), m.identity)
        found[m.name] = from_json(AttributeRow, cell.value())
    n = {name: len(part) for name, part in faces.items()}
    return AttributeReport(alpha, str(task.hidden), str(task.kept), n, found)


def chosen(everyone: data.Faces, split: str, size: int) -> data.Faces:
    """Return at most `size` faces of a split."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(everyone["identity_split"] == split))
    return everyone.where(np.isin(np.arange(len(everyone)), rows[:size]))


@dataclass(frozen=True)
class AttributeMeasurement:
    """The measurements of one task on the faces of each split."""

    options: Options
    task: Task
    faces: Split
    store: Store

    def row(self, m: Mechanism) -> AttributeRow:
        """Measure one mechanism."""
        truth, useful = self._truth(self.task.hidden), self._truth(self.task.kept)
        sent = {
            part: device.received(self.store, m, device.Labelled(part, faces.chips, truth[part]), 0)
            for part, faces in self.faces.items()
        }
        scores = {}
        for name, (make, rate) in PIXELS.items():
            known = AttackData([sent["train"]], truth["train"], sent["val"], truth["val"])
            epochs = self.options.plan.epochs
            scorer = attackers.fit(make, known, epochs=epochs, seed=0, rate=rate, name=f"{name} on {m.name}")
            scores[name] = self._score({part: scorer(sent[part]) for part in ("test", "val")}, truth)
        for matcher in MATCHERS:
            seen = self._embed(m, matcher, sent)
            scores[f"probe on {matcher}"] = self._score(self._probe(seen, seen, truth), truth)
        raw = self._embed(mechanisms.raw(), UTILITY, {part: f.chips for part, f in self.faces.items()})
        service = self._probe(raw, self._embed(m, UTILITY, sent), useful)
        return AttributeRow(scores, self._score(service, useful))

    def _truth(self, statement: Statement) -> dict[str, NDArray[np.bool_]]:
        truth = {part: statement.of(faces)[0] for part, faces in self.faces.items()}
        if any(not 0 < values.mean() < 1 for values in truth.values()):
            raise ExportError(
                f"{statement} is true of all pictures, or of none, in one of the splits: choose another, or more sets"
            )
        return truth

    @staticmethod
    def _score(odds: Mapping[str, metrics.Odds], truth: Mapping[str, NDArray[np.bool_]]) -> Score:
        people = np.arange(len(truth["test"]))  # one picture a person, as it seems
        return metrics.scores(odds["test"], truth["test"], (odds["val"], truth["val"]), people)

    @staticmethod
    def _probe(
        known: Mapping[str, Tensor], asked: Mapping[str, Tensor], truth: Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, metrics.Odds]:
        """Train a probe on known embeddings, and return its log-odds of those that are asked for."""
        net = attackers.probe([known["train"]], truth["train"], known["val"], truth["val"])
        return {part: net.odds(asked[part]) for part in ("test", "val")}

    def _embed(self, m: Mechanism, matcher: str, chips: Mapping[str, Chips]) -> dict[str, Tensor]:
        """Return a matcher's embeddings of each split."""

        def compute(part: str) -> Tensor:
            net = Provider(matcher, self.options.folders.networks).eval().requires_grad_(False)
            return attackers.outputs(net, chips[part], matcher)

        return {
            part: self.store.tensors(f"{m.name} {matcher} {part}", partial(compute, part), m.identity) for part in chips
        }


def table(report: AttributeReport) -> str:
    """Return the report as Markdown."""
    raw, ours, n = report.rows["raw"], report.rows["edgesan"], report.n
    about = f"At alpha {report.alpha:g}, on people never seen: {n['test']} test pictures; attackers learned on"
    lines = [
        f"{about} {n['train']}.",
        "",
        *tables.head(("", "raw", "sanitized")),
    ]
    cells = [(f"{report.kept}, the service, unchanged", raw.service, ours.service)]
    cells += [(f"{report.hidden} by fresh {name}", raw.attackers[name], s) for name, s in ours.attackers.items()]
    lines += [tables.line((name, tables.scored(before), tables.scored(after))) for name, before, after in cells]
    return "\n".join(lines)
