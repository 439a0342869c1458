"""The protocol: which mechanisms are measured, against which attackers, and in which order."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgesan.model.load import prepare
from export.audit import mechanisms, metrics
from export.audit.cells import FORMAT, cells, measured, settled, share
from export.audit.claims import graph_digest
from export.audit.device import found_again
from export.audit.measure import CANVAS, FRESH, FROZEN, RAW_ONLY, Audit, Plan
from export.audit.mechanisms import Mechanism
from export.audit.splits import ClosedSet
from export.audit.tables import describe
from export.errors import ExportError

RIVAL = "U-Net, the authors' shape"
SLOW = ("CNN 1", "gender_faceapi, trained on")  # one seed will do: they are far from the best
BUDGETS = (0.05, 0.1, 0.2, 0.4)  # nats: where the bound is drawn


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
