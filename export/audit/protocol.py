"""The protocol: which mechanisms are measured, against which attackers, and in which order."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from edgesan.model.load import Model, prepare
from export.audit import device, mechanisms, metrics, strangers
from export.audit.cells import FORMAT, Cell, Tree, finished, leaves, settled, share
from export.audit.claims import graph_digest
from export.audit.measure import FRESH, FROZEN, MATCHERS, RAW_ONLY, Folders, Measurements
from export.audit.mechanisms import Mechanism
from export.audit.report import (
    OURS,
    RAW,
    ClosedSetSize,
    DialPoint,
    ModelId,
    OwnRow,
    Plan,
    Report,
    Row,
    StrangersPlan,
    from_json,
)
from export.audit.splits import ClosedSet
from export.audit.strangers import Measurement
from export.errors import ExportError

CURVE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # the dial's curve
QUICK = Plan(seeds=1, epochs=2, draws=1, mean_draws=4, limit=1500, open_limit=600, track=20, again=60)
CANVAS = "plain"  # what is around the faces in an output frame

# The strongest attackers, for raw faces and for float32 beside int8; two of them, for a baseline.
FRESH_BESIDE = (FRESH[0], *(f"probe on {matcher}" for matcher in MATCHERS))
FRESH_BASELINE = (FRESH[0], f"probe on {MATCHERS[1]}")
ONE_SEED = ("CNN 1", "gender_faceapi, trained on")  # one seed is enough: they are far from the best


@dataclass(frozen=True)
class Options:
    """What an audit is asked for."""

    model: Path
    folders: Folders
    plan: Plan = Plan()
    alpha: float | None = None  # the dial (None: the model's default)
    float32: Path | None = None  # a training's folder, or a model file: float32 beside int8
    baselines: Sequence[Mechanism] | None = None  # None: all
    curve: Sequence[float] = ()  # alphas of the dial's curve
    unet: Path | None = None  # the folder of a training of recipes/unet.toml: one more baseline
    beside: Sequence[Path] = ()  # other model files, each at its own alpha
    so_far: bool = False  # measure nothing, and report what is there
    strangers: StrangersPlan | None = None  # None: they are left out
    recipe: Path | None = None  # what the model was trained by (None: the project's recipe that it names)


@dataclass(frozen=True)
class Subject:
    """The model that is audited, at one alpha."""

    model: Model
    alpha: float
    graph: str  # the digest of its graph alone
    mechanism: Mechanism


def audit(options: Options) -> Report:
    """Measure one model at one alpha, beside raw faces and other mechanisms.

    Raises:
        ExportError: the model hides something else, two rows have one name, or nothing is there to report.
    """
    started = time.monotonic()
    subject = opened(options)
    whole, others = rows(options, subject)
    full = Measurements.of(options.folders, options.plan)
    few = full.smaller(options.plan.baseline_train)

    first = strangers_first(options)
    table: dict[str, Mapping[str, Tree]] = {m.name: row(full, m, FRESH_BESIDE) for m in whole}
    table |= {m.name: row(few, m, FRESH_BASELINE) for m in others}
    table[OURS] = own_row(full, subject)
    curve = {alpha: point(full, subject, alpha) for alpha in options.curve}

    if options.so_far:
        table, curve = measured(table, list(curve.values()), options.model), {}
    else:
        full.prepare()
        pictures = averaged_pictures(full, subject)
        order: list[Tree] = [
            *([] if first is None else [first.cells()]),
            table[OURS],
            *pictures,
            *curve.values(),
            *(tree for name, tree in table.items() if name != OURS),
        ]
        share(order, options.folders.work)
    return Report(
        format=FORMAT,
        model=ModelId(subject.model.metadata.name, subject.model.metadata.version, subject.graph),
        alpha=subject.alpha,
        private=subject.model.metadata.private,
        closed_set=sizes(full.closed),
        plan=options.plan,
        table={name: from_json(OwnRow if name == OURS else Row, settled(tree)) for name, tree in table.items()},
        bound=metrics.bound(full.closed.person, full.closed.truth),
        curve=[dial_point(alpha, cell) for alpha, cell in curve.items()],
        minutes=round((time.monotonic() - started) / 60, 1),
        strangers=None if first is None else first.so_far if options.so_far else first.result(),
    )


def strangers_first(options: Options) -> Measurement | None:
    """Return what is measured on strangers, if it is asked for."""
    if options.strangers is None:
        return None
    asked = strangers.subject(options.model, options.alpha, options.recipe)
    people = strangers.chosen(options.folders.data, options.strangers)
    return Measurement(asked, options.strangers, people, options.folders)


def opened(options: Options) -> Subject:
    """Read the model. Its signature is not asked for: it is signed when its claims are in."""
    path = options.model
    model = prepare(path, path.read_bytes(), threads=2)
    if model.metadata.private != "gender":
        hides = model.metadata.private
        raise ExportError(
            f"{path} hides {hides}, and this protocol measures gender: use --hidden and --kept, "
            f"such as --hidden '{hides}>=45'"
        )
    alpha = model.metadata.alpha_default if options.alpha is None else options.alpha
    graph = graph_digest(path)
    return Subject(model, alpha, graph, mechanisms.sanitizer(model, alpha, graph=graph))


def rows(options: Options, subject: Subject) -> tuple[list[Mechanism], list[Mechanism]]:
    """Return the mechanisms of the table: those that are measured on all pictures, and those on fewer."""
    alpha = subject.alpha
    whole = [mechanisms.raw(), subject.mechanism]
    if options.float32 is not None:
        whole.append(mechanisms.trained(options.float32, alpha))
    baselines = options.baselines
    others = mechanisms.baselines(options.folders.networks) if baselines is None else list(baselines)
    if options.unet is not None:
        others.append(mechanisms.trained(options.unet, alpha, mechanisms.AUTHORS))
    for file in options.beside:
        other = prepare(file, file.read_bytes(), threads=2)
        about = other.metadata
        others.append(mechanisms.sanitizer(other, about.alpha_default, about.name, graph_digest(file)))
    names = [m.name for m in (*whole, *others)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ExportError(
            f"two rows would be called {twice[0]!r}: give --beside models of different names, or one of them at a time"
        )
    return whole, others


def row(on: Measurements, m: Mechanism, fresh: Sequence[str]) -> dict[str, Tree]:
    """Return the cells of one mechanism's row.

    Utility and looks are measured on the same test pictures everywhere, so their cells do not depend on how many
    pictures there are to learn on.
    """
    store, common = on.store, (on.part_of[0] if on.part_of is not None else on).store
    frozen = (*FROZEN, *RAW_ONLY)

    def trained(attacker: str) -> list[Cell]:
        seeds = range(1 if attacker in ONE_SEED else on.plan.seeds)
        return [
            store.figure(f"{m.name}, {attacker}, seed {s}", partial(on.fresh, m, attacker, s), m.identity)
            for s in seeds
        ]

    return {
        "utility": common.figure(f"{m.name}, utility", partial(on.utility, m), m.identity),
        "looks": common.figure(f"{m.name}, looks", partial(on.looks, m), m.identity),
        "frozen": {f: store.figure(f"{m.name}, {f}", partial(on.frozen, m, f), m.identity) for f in frozen},
        "fresh": {attacker: trained(attacker) for attacker in fresh},
    }


def own_row(on: Measurements, subject: Subject) -> dict[str, Tree]:
    """Return the cells of the audited model's row: all attackers, those who know more, and its detector."""
    m, model, alpha, plan = subject.mechanism, subject.model, subject.alpha, on.plan
    figure = on.store.figure
    own = row(on, m, FRESH)
    fresh = dict(cast(Mapping[str, Tree], own["fresh"]))
    if m.stochastic and not plan.brief:
        fresh["knows z"] = [figure("knows z", partial(on.knows_noise, m, model, 0), m.identity)]
        fresh[f"mean of {plan.mean_draws} draws"] = [mean_of_draws(on, m)]
        own["track"] = figure("track", partial(on.track, m, model, alpha, 0), m.identity)
    if not plan.brief:
        fresh["recovery, then CNN 4"] = [figure("recovery", partial(on.reconstruction, m, 0), m.identity)]
        own["context"] = {CANVAS: figure(f"context, {CANVAS}", partial(on.context, model, alpha), m.identity)}
    shown = on.closed.faces.chips[on.closed.test][: plan.again]
    again = f"found again, {CANVAS}"
    own["found_again"] = figure(again, partial(device.found_again, model, shown, alpha), m.identity, plan.again)
    return own | {"fresh": fresh}


def mean_of_draws(on: Measurements, m: Mechanism) -> Cell:
    """Return the cell of the attacker who averages draws."""
    return on.store.figure("mean of draws", partial(on.mean_of_draws, m, 0), m.identity, on.plan.mean_draws)


def averaged_pictures(on: Measurements, subject: Subject) -> list[Cell]:
    """Return the pictures that the attacker who averages draws needs: work for other processes."""
    m = subject.mechanism
    needed = m.stochastic and not on.plan.brief and not mean_of_draws(on, m).is_finished
    return on.averaged(m) if needed else []


def point(on: Measurements, subject: Subject, alpha: float) -> Cell:
    """Return the cell of one point of the dial's curve."""
    m = mechanisms.sanitizer(subject.model, alpha, f"{OURS} at {alpha:g}", subject.graph)
    return on.store.figure(f"{m.name}, curve", partial(on.along, m), m.identity)


def measured(table: Mapping[str, Tree], curve: Sequence[Cell], model: Path) -> dict[str, Mapping[str, Tree]]:
    """Return what is measured so far: the complete rows, and all of the model's own, int8 and float32.

    Raises:
        ExportError: nothing can be reported yet.
    """
    missing = sum(not cell.is_finished for cell in [*leaves(table), *curve])
    kept = {name: cast(Mapping[str, Tree], finished(tree) or {}) for name, tree in table.items()}
    kept = {name: tree for name, tree in kept.items() if _reportable(name, tree, table[name])}
    if not {RAW, OURS} <= kept.keys():
        raise ExportError(f"nothing can be reported yet: figures of raw faces or of {model} itself are not measured")
    print(f"{missing} cells are not measured yet; what follows is the rest")
    return kept


def _reportable(name: str, kept: Mapping[str, Tree], whole: Tree) -> bool:
    """Return whether what there is of a row makes a row: of the model's own, attackers may be missing."""
    if name not in (OURS, mechanisms.FLOAT32):
        return kept == whole
    needed = cast(Mapping[str, Tree], whole).keys() - {"track", "context"}
    return needed <= kept.keys() and set(FROZEN) <= cast(Mapping[str, Tree], kept["frozen"]).keys()


def sizes(c: ClosedSet) -> ClosedSetSize:
    """Return the closed set in numbers."""
    return ClosedSetSize(c.people, len(c.faces), int(c.test.sum()), float(c.truth.mean()))


def dial_point(alpha: float, cell: Cell) -> DialPoint:
    """Return the figure of a point as a point of the dial."""
    return from_json(DialPoint, {"alpha": alpha, **cast(Mapping[str, float], cell.value())})
