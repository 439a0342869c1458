"""The audit of any two columns of the tables: what is hidden of one, what is kept of the other, on people never seen.

A statement such as `age>=45` or `gender=M` cuts a column in two, and so makes it an attacker's task. Attackers learn on
sanitized pictures of training people; the service learns on raw ones, and is then given sanitized ones unchanged.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgesan.model.load import prepare
from export import data
from export.audit import attackers, mechanisms, metrics
from export.audit.attackers import Chips, Convolutional, Lesson, Linear
from export.audit.cells import Work
from export.audit.measure import MATCHERS, UTILITY, Plan
from export.audit.mechanisms import Mechanism
from export.errors import ExportError
from export.providers import Provider

PIXELS = {"linear on pixels": (Linear, 1e-3), "CNN 4": (lambda: Convolutional(4), 2e-3)}


@dataclass(frozen=True)
class Statement:
    """What is true of some pictures and false of others: a column, at least a number or equal to a word."""

    column: str
    relation: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.relation}{self.value}"

    def of(self, faces: data.Faces) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Its truth [N], and where that is known [N].

        Raises:
            DataError: no such column, or its values are no numbers.
        """
        known = faces[self.column] != ""
        if self.relation == ">=":
            groups, _ = faces.labels(self.column, (float(self.value),))
            return groups == 1, known
        return faces[self.column] == self.value, known


def statement(text: str) -> Statement:
    """Read one.

    Raises:
        ExportError: it is none.
    """
    parts = re.fullmatch(r"(\w+)(>=|=)([\w.]+)", text)
    if not parts or (parts[2] == ">=" and not re.fullmatch(r"[\d.]+", parts[3])):
        raise ExportError(f"{text!r} is no statement about a column; write age>=45 or gender=M")
    return Statement(*parts.groups())


def audit_columns(path: Path, folder: Path, networks: Path, work: Path, plan: Plan, hidden: Statement, kept: Statement,
                  sets: tuple[str, ...], alpha: float | None = None) -> dict[str, Any]:  # fmt: skip
    """The attackers on `hidden`, and the service for `kept`, on raw and on sanitized pictures.

    Raises:
        ExportError: a set or a network is missing, or a statement is true of all pictures or of none.
    """
    model = prepare(path, path.read_bytes(), threads=1)
    alpha = model.metadata.alpha_default if alpha is None else alpha
    everyone = data.join(data.load_set(folder, name) for name in sets)
    everyone = everyone.where(hidden.of(everyone)[1] & kept.of(everyone)[1])
    split = everyone["identity_split"]
    rows = {
        name: np.random.default_rng(0).permutation(np.flatnonzero(split == name)) for name in ("train", "val", "test")
    }
    sizes = {"train": plan.open_limit, "val": plan.open_limit // 3, "test": plan.open_limit // 2}
    faces = {name: everyone.where(np.isin(np.arange(len(everyone)), rows[name][: sizes[name]])) for name in rows}
    store = Work(work, work, everyone.digest(), sizes, plan.epochs)
    report: dict[str, Any] = {
        "alpha": alpha,
        "hidden": str(hidden),
        "kept": str(kept),
        "n": {k: len(f) for k, f in faces.items()},
        "rows": {},
    }
    for m in (mechanisms.raw(), mechanisms.sanitizer(model, alpha)):
        report["rows"][m.name] = store.cell(f"{m.name} {hidden} {kept}", lambda m=m: judged(store, m, faces, networks, plan, hidden, kept), m.identity)  # fmt: skip
    return report


def judged(store: Work, m: Mechanism, faces: dict[str, data.Faces], networks: Path, plan: Plan, hidden: Statement, kept: Statement) -> dict[str, Any]:  # fmt: skip
    """One mechanism: each attacker's scores on `hidden`, and the service's on `kept`."""
    truth, useful = ({part: s.of(f)[0] for part, f in faces.items()} for s in (hidden, kept))
    for s, values in ((hidden, truth), (kept, useful)):
        if any(not 0 < v.mean() < 1 for v in values.values()):
            raise ExportError(
                f"{s} is true of all pictures, or of none, in one of the splits: choose another, or more sets"
            )
    sent = {part: store.packets(m, f.chips, truth[part], 0, part) for part, f in faces.items()}
    people = np.arange(len(faces["test"]))  # one picture a person, as far as is known
    fit = truth["val"]
    scores = {}
    for name, (make, rate) in PIXELS.items():
        lesson = Lesson([sent["train"]], truth["train"], sent["val"], fit)
        judge = attackers.fit(make(), lesson, epochs=plan.epochs, seed=0, rate=rate, name=f"{name} on {m.name}")
        scores[name] = metrics.scores(judge(sent["test"]), truth["test"], (judge(sent["val"]), fit), people)
    for matcher in MATCHERS:
        seen = embedded(store, m, matcher, networks, sent)
        net = attackers.probe([seen["train"]], truth["train"], seen["val"], fit)
        scores[f"probe on {matcher}"] = metrics.scores(net.odds(seen["test"]), truth["test"], (net.odds(seen["val"]), fit), people)  # fmt: skip
    raw = embedded(store, mechanisms.raw(), UTILITY, networks, {part: f.chips for part, f in faces.items()})
    service = attackers.probe([raw["train"]], useful["train"], raw["val"], useful["val"])
    seen = embedded(store, m, UTILITY, networks, sent)
    served = metrics.scores(service.odds(seen["test"]), useful["test"], (service.odds(seen["val"]), useful["val"]), people)  # fmt: skip
    return {"attackers": scores, "service": served}


def embedded(store: Work, m: Mechanism, matcher: str, networks: Path, chips: dict[str, Chips]) -> dict[str, Tensor]:
    """A matcher's embeddings of each split."""

    def compute(part: str) -> Tensor:
        return attackers.outputs(Provider(matcher, networks).eval().requires_grad_(False), chips[part], matcher)

    return {
        part: store.tensor(f"{m.name} {matcher} {part}", lambda part=part: compute(part), m.identity) for part in chips
    }


def table(report: dict[str, Any]) -> str:
    """As Markdown."""
    n, rows = report["n"], report["rows"]
    raw, ours = rows["raw"], rows["edgesan"]
    lines = [
        f"At alpha {report['alpha']:g}, on people whom nobody has seen: {n['test']} test pictures; attackers learned on {n['train']}.",
        "",
        "| | raw | sanitized |",
        "|---|---|---|",
        f"| {report['kept']}, the service, unchanged | {figures(raw['service'])} | {figures(ours['service'])} |",
    ]
    lines += [
        f"| {report['hidden']} by fresh {name} | {figures(raw['attackers'][name])} | {figures(s)} |"
        for name, s in ours["attackers"].items()
    ]
    return "\n".join(lines)


def figures(s: dict[str, Any]) -> str:
    """One attacker's or service's scores."""
    return f"{100 * s['accuracy']:.1f} (balanced {100 * s['balanced']:.1f}, AUC {s['auc']:.3f}, leak {s['leak_nats']:.3f} nats)"
