"""Every figure of the talk, from measured data: `python -m export.figures --models FOLDER --data DIR --networks DIR`.

FOLDER holds the four columns as compiled model files: `deterministic-adversarial.onnx`,
`deterministic-plug-and-play.onnx`, `stochastic-adversarial.onnx`, `stochastic-plug-and-play.onnx`. The device's own
model is `--device`. What is measured is the int8 file, as in the audit, on a part of the closed set (`--limit`). Every
point is a cell that is kept in `--work`. Networks that were trained for one alpha each (`recipes/sweeps/dial.toml`)
are set beside the dial as `apart-ALPHA.onnx`. `--draw` draws again what lies in measured.json, without data, networks
or models.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from export.audit import attackers, mechanisms, metrics
from export.audit.cells import Cell, share
from export.audit.claims import graph_digest
from export.audit.command import errors_as_lines
from export.audit.measure import FROZEN, UTILITY, Folders, Measurements
from export.audit.mechanisms import AUTHORS
from export.audit.plots import APART, COLUMNS, DEVICE, DIAL, draw_faces, draw_talk
from export.audit.protocol import dial_point
from export.audit.report import (
    Column,
    Plan,
    Point,
    Talk,
    TalkPlan,
    TalkSet,
    Training,
    Unfiltered,
    from_json,
    read,
    to_json,
)
from export.checkpoint import load_checkpoint
from export.errors import ExportError

LINEAR, PROBE = "linear on pixels", f"probe on {UTILITY}"  # the two strongest on the bundled model (docs/audit.json)
BOTH = (LINEAR, PROBE)
AUTHORS_ALPHAS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Unmeasured:
    """A column whose points are cells."""

    model: Training
    points: dict[float, Cell]

    def measured(self) -> Column:
        """Return it with its figures."""
        return Column(self.model, [dial_point(alpha, cell) for alpha, cell in self.points.items()])


def measured(
    on: Measurements, models: Mapping[str, Mapping[float, Path]], unet: Path | None, brief: bool = False
) -> Talk:
    """Measure all that the figures show; the same call in several processes shares the points out among them.

    Args:
        on: the measurements.
        models: for each column, the model file at each alpha.
        unet: the folder of a training of recipes/unet.toml.
        brief: leave out the probe on all columns but the device's.
    """
    few = (LINEAR,) if brief else BOTH
    raw = point(on, mechanisms.raw(), BOTH)
    plain = on.store.figure("unfiltered", partial(unfiltered, on))
    columns = {name: column(on, name, files, BOTH if name == DEVICE else few) for name, files in models.items()}
    if unet is not None:
        columns[AUTHORS] = authors_column(on, unet, few)
    on.prepare()
    share([raw, plain, *(cell for c in columns.values() for cell in c.points.values())], on.folders.work)
    c = on.closed
    histograms = cast(Mapping[str, Mapping[str, float]], plain.value())
    return Talk(
        closed_set=TalkSet(c.people, int(c.train.sum()), int(c.test.sum()), float(c.truth.mean())),
        plan=TalkPlan(on.plan.epochs, 1, list(BOTH)),
        bound=metrics.bound(c.person, c.truth),
        raw=from_json(Point, raw.value()),
        unfiltered={name: from_json(Unfiltered, found) for name, found in histograms.items()},
        columns={name: column.measured() for name, column in columns.items()},
    )


def point(on: Measurements, m: mechanisms.Mechanism, fresh: tuple[str, ...]) -> Cell:
    """Return the cell of one point."""
    name = f"{m.name}, curve" + ("" if fresh == BOTH else f" by {', '.join(fresh)}")
    return on.store.figure(name, partial(on.along, m, fresh), m.identity)


def column(on: Measurements, name: str, files: Mapping[float, Path], fresh: tuple[str, ...]) -> Unmeasured:
    """Return the cells of one column of model files."""
    paths = dict.fromkeys(files.values())  # each once, in their order
    opened = {path: prepare(path, path.read_bytes(), threads=1) for path in paths}
    graphs = {path: graph_digest(path) for path in paths}
    points = {
        alpha: point(on, mechanisms.sanitizer(opened[path], alpha, f"{name} at {alpha:g}", graphs[path]), fresh)
        for alpha, path in files.items()
    }
    first = next(iter(opened.values())).metadata
    steps = int(first.provenance.get("steps", 0))
    return Unmeasured(Training(version=first.version, steps=steps, graph_sha256=" ".join(graphs.values())), points)


def authors_column(on: Measurements, run: Path, fresh: tuple[str, ...]) -> Unmeasured:
    """Return the cells of the authors' U-Net."""
    points = {a: point(on, mechanisms.trained(run, a, f"{AUTHORS} at {a:g}"), fresh) for a in AUTHORS_ALPHAS}
    return Unmeasured(Training(steps=load_checkpoint(run).step), points)


def unfiltered(on: Measurements) -> dict[str, Unfiltered]:
    """Measure P(M) of raw test faces: by the frozen classifier, and by an attacker of our own, trained on raw faces."""
    c, net = on.closed, on.provider(FROZEN[0])
    logits = attackers.outputs(net, c.faces.chips[c.test], FROZEN[0])
    attack, truth = on.attack(mechanisms.raw(), PROBE, 0), c.truth[c.test]
    fresh = 1 / (1 + np.exp(-metrics.calibrated(attack(c.test), attack(c.val), c.truth[c.val])))
    result = {}
    for name, p in ((FROZEN[0], logits.softmax(1)[:, net.classes.index("M")].numpy()), (PROBE, fresh)):
        counts = {who: np.histogram(p[truth == (who == "M")], 20, (0, 1))[0].tolist() for who in ("F", "M")}
        result[name] = Unfiltered(counts, metrics.quartiles(p, truth), float(((p > 0.5) == truth).mean()))
    return result


def dial_against_apart(talk: Talk) -> list[str]:
    """Compare the network with a dial and networks of one alpha each: top-5 of both at the same best fresh attacker."""
    if not {DIAL, APART} <= talk.columns.keys():
        return []
    curve, lines = sorted((p.attacker, p.top5) for p in talk.columns[DIAL].points), []
    for p in talk.columns[APART].points:
        there = float(np.interp(p.attacker, [x for x, _ in curve], [y for _, y in curve]))
        reached = curve[0][0] <= p.attacker <= curve[-1][0]
        lines.append(
            f"trained for alpha {p.alpha:g} alone: top-5 {100 * p.top5:.1f}, best fresh attacker "
            f"{100 * p.attacker:.1f}; the dial's curve "
            + (f"at this attacker: top-5 {100 * there:.1f}" if reached else "does not reach this attacker")
        )
    return lines


def files_of(models: Path, device: Path) -> dict[str, Path]:
    """Return the model file of each column that is there.

    Raises:
        ExportError: the device's own is not there.
    """
    files = {name: models / f"{name}.onnx" for name in COLUMNS} | {DEVICE: device}
    for path in [path for path in files.values() if not path.is_file()]:
        print(
            f"{path} is not there, its lines are left out: train export/recipes/{path.stem}.toml, and compile it",
            file=sys.stderr,
        )
    files = {name: path for name, path in files.items() if path.is_file()}
    if DEVICE not in files:
        raise ExportError(f"the device's model is not there: {device}")
    return files


def with_rival_of(store: Path, talk: Talk) -> Talk:
    """Return the talk with the stored column of the authors' U-Net, unless it has one or was measured otherwise.

    No model of ours has a part in that column, so it need not be trained again with each of them.
    """
    if AUTHORS in talk.columns or not store.is_file():
        return talk
    kept = read(Talk, store)
    if AUTHORS not in kept.columns or (kept.closed_set, kept.plan) != (talk.closed_set, talk.plan):
        return talk
    print(f"the authors' U-Net is that of {store}; --rival measures another", file=sys.stderr)
    return replace(talk, columns=talk.columns | {AUTHORS: kept.columns[AUTHORS]})


def measure(a: argparse.Namespace, store: Path) -> None:
    """Measure all columns, and write the store and the picture of people."""
    files = files_of(a.models, a.device)
    models: dict[str, dict[float, Path]] = {name: dict.fromkeys(a.alphas, path) for name, path in files.items()}
    if alone := sorted(a.models.glob(f"{APART}-*.onnx")):
        models[APART] = {prepare(p, p.read_bytes()).metadata.alpha_default: p for p in alone}
    plan = Plan(seeds=1, epochs=a.epochs, draws=1, limit=a.limit)
    on = Measurements.of(Folders(a.data, a.networks, a.work), plan)
    talk = with_rival_of(store, measured(on, models, a.rival, a.brief))
    a.out.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(to_json(talk), indent=1) + "\n")
    draw_faces(files, a.alphas, a.out / "people.png")


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure and draw every figure of the talk."""
    a = parser().parse_args(arguments)
    store = a.out / "measured.json"
    if not a.draw:
        if not (a.models and a.data and a.networks):
            raise ExportError("--models, --data and --networks are needed, except with --draw")
        measure(a, store)
    if not store.is_file():
        raise ExportError(f"nothing was measured yet: there is no {store}")
    talk = read(Talk, store)
    draw_talk(talk, a.out)
    for line in dial_against_apart(talk):
        print(line)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = argparse.ArgumentParser(prog="python -m export.figures", description=__doc__)
    brief = "the columns without the probe, which needs the embeddings of all pictures"
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    p.add_argument("--models", type=Path, help="folder of the four columns' .onnx files")
    p.add_argument("--device", type=Path, default=DEMO_MODEL, help="the device's own model (default: the bundled one)")
    p.add_argument(
        "--rival",
        type=Path,
        metavar="RUN",
        help="a training of export/recipes/unet.toml (default: what measured.json has of one)",
    )
    p.add_argument("--data", type=Path, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, help="folder of the providers' ONNX networks")
    p.add_argument("--alphas", type=float, nargs="+", default=alphas, help="along the dial (default %(default)s)")
    p.add_argument("--limit", type=int, default=1200, help="pictures of the closed set (default %(default)s)")
    p.add_argument("--epochs", type=int, default=8, help="of the linear attacker (default %(default)s)")
    p.add_argument("--brief", action="store_true", help=brief)
    p.add_argument("--work", type=Path, default=Path("runs/figures"), help="finished cells (default %(default)s)")
    p.add_argument(
        "--out", type=Path, default=Path("docs/figures"), help="pictures and measured.json (default %(default)s)"
    )
    p.add_argument("--draw", action="store_true", help="only draw again what measured.json holds")
    return p


if __name__ == "__main__":
    sys.exit(main())
