"""Every figure of the talk, from measured data: `python -m export.figures --models FOLDER --data DIR --networks DIR`.

FOLDER holds the four columns as compiled model files: `deterministic-adversarial.onnx`, `deterministic-plug-and-play.onnx`,
`stochastic-adversarial.onnx`, `stochastic-plug-and-play.onnx`; the device's own model is `--device`. What is measured is
the int8 file, as in the audit, on a part of the closed set (`--limit`); every point is a cell that is kept in `--work`.
Networks that were trained for one alpha each (`recipes/sweeps/dial.toml`) are set beside the dial as `apart-ALPHA.onnx`.
`--draw` makes the pictures again from the JSON that lies beside them, without data, networks or models.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from export.audit import attackers, mechanisms, metrics
from export.audit.cells import Cell, share
from export.audit.claims import graph_digest
from export.audit.clip import two_people
from export.audit.measure import FROZEN, UTILITY, Audit, Plan, quartiles
from export.audit.plots import draw_bound
from export.audit.protocol import RIVAL, bound
from export.checkpoint import load_checkpoint
from export.errors import ExportError

COLUMNS = [f"{noise}-{game}" for noise in ("deterministic", "stochastic") for game in ("adversarial", "plug-and-play")]
DIAL, APART = "stochastic-adversarial", "apart"  # one network with a dial, and networks of one alpha each
COLOURS = dict(zip([*COLUMNS, APART, "device", RIVAL], ("C1", "C4", "C0", "C2", "C9", "k", "C5"), strict=True))
MARKERS = {RIVAL: "s", APART: "D"}
LINEAR, PROBE = "linear on pixels", f"probe on {UTILITY}"  # the two strongest on the bundled model (docs/audit.json)


def measured(a: Audit, models: dict[str, dict[float, Path]], rival: Path | None, brief: bool = False) -> dict[str, Any]:
    """All that the figures show, as one JSON object; the same call in several processes shares the points out among them.

    `models`: of each column, the model file that stands for it at each alpha. `brief`: the columns without the probe.
    """
    c, few = a.closed, (LINEAR,) if brief else (LINEAR, PROBE)

    def point(m: mechanisms.Mechanism, fresh: tuple[str, ...] = few) -> Cell:
        name = f"{m.name}, curve" + ("" if fresh == (LINEAR, PROBE) else f" by {', '.join(fresh)}")
        return a.work.later(name, lambda: a.along(m, fresh), m.identity)

    raw, unfiltered_ = point(mechanisms.raw(), (LINEAR, PROBE)), a.work.later("unfiltered", lambda: unfiltered(a))
    columns: dict[str, tuple[dict[str, Any], dict[float, Cell]]] = {}
    for name, files in models.items():
        paths = dict.fromkeys(files.values())  # each once, in their order
        opened = {path: prepare(path, path.read_bytes(), threads=1) for path in paths}
        graphs = {path: graph_digest(path) for path in paths}
        fresh = (LINEAR, PROBE) if name == "device" else few
        points = {
            x: point(mechanisms.sanitizer(opened[path], x, f"{name} at {x:g}", graphs[path]), fresh)
            for x, path in files.items()
        }
        first, *_ = opened.values()
        about = {
            "version": first.metadata.version,
            "steps": first.metadata.provenance.get("steps"),
            "graph_sha256": " ".join(graphs.values()),
        }
        columns[name] = about, points
    if rival is not None:
        about = {"steps": load_checkpoint(rival).step}
        columns[RIVAL] = about, {x: point(mechanisms.trained(rival, x, f"{RIVAL} at {x:g}")) for x in (0.0, 0.5, 1.0)}
    share([raw, unfiltered_, *(cell for _, points in columns.values() for cell in points.values())], a.work.folder)
    return {
        "closed_set": {"people": c.people, "train": int(c.train.sum()), "test": int(c.test.sum()), "prior": float(c.truth.mean())},
        "plan": {"epochs": a.plan.epochs, "seeds": 1, "attackers": [LINEAR, PROBE]},
        "bound": bound(c),
        "raw": raw.value(),
        "unfiltered": unfiltered_.value(),
        "columns": {
            name: {"model": about, "points": [{"alpha": x} | cell.value() for x, cell in points.items()]}
            for name, (about, points) in columns.items()
        },
    }  # fmt: skip


def unfiltered(a: Audit) -> dict[str, Any]:
    """P(M) of raw test faces: by the frozen classifier, and by an attacker of our own that learned on raw ones."""
    c, net = a.closed, a._provider(FROZEN[0])
    logits = attackers.outputs(net, c.faces.chips[c.test], FROZEN[0])
    attack, truth = a.attack(mechanisms.raw(), PROBE, 0), c.truth[c.test]
    fresh = 1 / (1 + np.exp(-metrics.calibrated(attack(c.test), attack(c.val), c.truth[c.val])))
    result = {}
    for name, p in ((FROZEN[0], logits.softmax(1)[:, net.classes.index("M")].numpy()), (PROBE, fresh)):
        counts = {who: np.histogram(p[truth == (who == "M")], 20, (0, 1))[0].tolist() for who in ("F", "M")}
        result[name] = {
            "histogram": counts,
            "quartiles": quartiles(p, truth),
            "accuracy": float(((p > 0.5) == truth).mean()),
        }
    return result


def trade_off(m: dict[str, Any], left: Axes, right: Axes) -> None:
    """Utility against privacy: in per cent, and in nats beside the bound."""
    for name, column in m["columns"].items():
        points, colour = column["points"], COLOURS[name]
        style: dict[str, Any] = {
            "color": colour,
            "marker": MARKERS.get(name, "o"),
            "ms": 4,
            "lw": 0 if name == APART else 1,
            "label": label(name, column),
        }
        left.plot([100 * p["attacker"] for p in points], [100 * p["top5"] for p in points], **style)
        right.plot([max(0.0, p["leak_nats"]) for p in points], [p["nats"] for p in points], **style)
        for p in points:
            left.annotate(f"{p['alpha']:g}", (100 * p["attacker"], 100 * p["top5"]), fontsize=6, color=colour)
    raw, prior = m["raw"], 100 * max(m["closed_set"]["prior"], 1 - m["closed_set"]["prior"])
    left.plot(100 * raw["attacker"], 100 * raw["top5"], "k*", ms=10, label="raw")
    left.axvline(prior, color="gray", ls=":", lw=0.8, label="prior: nothing is told")
    left.set(xlabel="gender, best fresh attacker, %", ylabel="identity, top-5, %", title="Up and to the left is better")
    right.plot(raw["leak_nats"], raw["nats"], "k*", ms=10)
    draw_bound(m["bound"], right)
    right.set(title="In nats: none is below the line")


def distribution(column: dict[str, Any], axes: Axes, title: str) -> None:
    """P(p(S(x)) = M | y_p, alpha): medians and quartiles of women's and men's pictures."""
    points = column["points"]
    alphas = [p["alpha"] for p in points]
    for who, colour, name in (("F", "C1", "women"), ("M", "C0", "men")):
        for key, line, by in (("distribution", "o-", "frozen"), ("fresh_distribution", "x--", "best fresh")):
            low, middle, high = ([p[key][who][i] for p in points] for i in range(3))
            axes.plot(alphas, middle, line, ms=4, color=colour, label=f"{name}, {by}")
            axes.fill_between(alphas, low, high, color=colour, alpha=0.18 if by == "frozen" else 0.08)
    axes.set(ylim=(-0.02, 1.02), xlabel="alpha", ylabel="P(M)", title=title)


def top5(column: dict[str, Any], axes: Axes, title: str) -> None:
    """The service along the dial."""
    points = column["points"]
    for key, line in (("top5", "o-"), ("top1", "x--")):
        axes.plot(
            [p["alpha"] for p in points], [100 * p[key] for p in points], line, ms=4, label=f"{key[:3]}-{key[3:]}"
        )
    axes.set(ylim=(0, 101), xlabel="alpha", ylabel="identity, %", title=title)
    axes.legend(fontsize=7)


def draw(m: dict[str, Any], folder: Path) -> None:
    """All of them but the faces, as PNG."""
    n, plan = m["closed_set"], m["plan"]
    note = (f"int8, after JPEG; {n['people']} people, {n['test']} test pictures; fresh attackers: {' and '.join(plan['attackers'])}, "
            f"{n['train']} pictures, {plan['epochs']} epochs, one seed")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, picture: Figure) -> None:
        picture.supxlabel(note, x=0.005, ha="left", fontsize=5.5, color="gray")
        picture.savefig(folder / f"{name}.png")

    def page(width: float, height: float) -> Figure:
        return Figure(figsize=(width, height), dpi=120, layout="constrained")

    picture = page(11, 5.4)
    left, right = picture.subplots(1, 2)
    trade_off(m, left, right)
    picture.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=6)
    save("trade-off", picture)
    for name, panel in (("distributions", distribution), ("top5", top5)):
        if not m["columns"].keys() & set(COLUMNS):
            continue
        picture = page(9, 7)
        for axes, column in zip(picture.subplots(2, 2).flat, COLUMNS, strict=True):
            if column in m["columns"]:
                panel(m["columns"][column], axes, label(column, m["columns"][column]).replace(" (", "\n("))
                axes.title.set_fontsize(8)
            else:
                axes.set(title=f"{column}: not measured", xticks=[], yticks=[])
        if name == "distributions":
            next(axes for axes in picture.axes if axes.lines).legend(fontsize=6)
        save(name, picture)
    picture = page(9, 3.6)
    for axes, (name, found) in zip(picture.subplots(1, 2), m["unfiltered"].items(), strict=True):
        for who, colour in (("F", "C1"), ("M", "C0")):
            axes.bar(np.arange(20) / 20 + 0.025, found["histogram"][who], 0.05, color=colour, alpha=0.6, label={"F": "women", "M": "men"}[who])  # fmt: skip
        axes.set(xlabel="P(M) on raw faces", ylabel="pictures", title=f"{name}: {100 * found['accuracy']:.1f} % right")
        axes.legend(fontsize=7)
    save("unfiltered", picture)
    picture = page(9, 3.8)
    left, right = picture.subplots(1, 2)
    device = m["columns"]["device"]
    top5(device, left, label("device", device))
    distribution(device, right, "what the bundled model leaves of gender")
    right.legend(fontsize=6)
    save("device", picture)


def dial(m: dict[str, Any]) -> list[str]:
    """The one network with a dial against networks of one alpha each: top-5 of each at the same best fresh attacker."""
    columns, lines = m["columns"], []
    if {DIAL, APART} <= columns.keys():
        curve = sorted((p["attacker"], p["top5"]) for p in columns[DIAL]["points"])
        for p in columns[APART]["points"]:
            there = float(np.interp(p["attacker"], *zip(*curve, strict=True)))
            reached = curve[0][0] <= p["attacker"] <= curve[-1][0]
            lines.append(
                f"trained for alpha {p['alpha']:g} alone: top-5 {100 * p['top5']:.1f}, best fresh attacker "
                f"{100 * p['attacker']:.1f}; the dial's curve "
                + (f"at this attacker: top-5 {100 * there:.1f}" if reached else "does not reach this attacker")
            )
    return lines


def label(name: str, column: dict[str, Any]) -> str:
    """A line's name, with how long it was trained."""
    steps = f"{column['model']['steps']:,} steps"
    by = column["points"][0].get("attackers", {})
    only = f" (attacker: {', '.join(by)})" if len(by) == 1 else ""
    if name == "device":
        return f"the bundled model, v{column['model']['version']}: {steps}{only}"
    if name == APART:
        return f"{DIAL}, a network for each alpha: {steps} from the bundled model{only}"
    return f"{RIVAL}: {steps}{only}" if name == RIVAL else f"{name}: {steps} from the bundled model{only}"


def faces(models: dict[str, Path], alphas: list[float], path: Path) -> None:
    """What they look like: two people of the bundled clip, raw and at each alpha; a row a column and a person."""
    chips, rows = two_people()[0][[0, 2]], []
    for file in models.values():
        model = prepare(file, file.read_bytes(), threads=1)
        z = mechanisms.draw_noise(model.noise_dimensions, len(chips), 0)
        columns = [chips, *(np.asarray(model.run(chips, z, alpha), np.uint8) for alpha in alphas)]
        rows += [np.concatenate([column[i] for column in columns], 1) for i in range(len(chips))]
    height = 1.15 * len(rows) + 0.4
    picture = Figure(figsize=(1.15 * (len(alphas) + 1) + 1.6, height), dpi=110)
    grid = picture.subplots(len(rows), 1, squeeze=False)[:, 0]
    for i, (axes, row) in enumerate(zip(grid, rows, strict=True)):
        axes.imshow(row)
        axes.set(xticks=56 + 112 * np.arange(len(alphas) + 1) if i == 0 else [], yticks=[])
        axes.xaxis.tick_top()
        if i == 0:
            axes.set_xticklabels(["raw", *(f"alpha {alpha:g}" for alpha in alphas)], fontsize=7)
        axes.set_ylabel(list(models)[i // 2].replace("-", "\n", 1), fontsize=6, rotation=0, ha="right", va="center")
    picture.subplots_adjust(0.17, 0.005, 0.998, 1 - 0.35 / height, hspace=0.02)
    picture.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.figures", description=__doc__)
    parser.add_argument("--models", type=Path, help="folder of the four columns' .onnx files")
    parser.add_argument(
        "--device", type=Path, default=DEMO_MODEL, help="the device's own model (default: the bundled one)"
    )
    parser.add_argument("--rival", type=Path, metavar="RUN", help="a training of export/recipes/unet.toml")
    parser.add_argument("--data", type=Path, help="folder of sets (.tar and .csv)")
    parser.add_argument("--networks", type=Path, help="folder of the providers' ONNX networks")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--limit", type=int, default=1200, help="pictures of the closed set (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="for the linear attacker (default %(default)s)")
    parser.add_argument(
        "--brief", action="store_true", help="the columns without the probe, which needs the embeddings of all pictures"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/figures"), help="finished cells; it goes on from them")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/figures"), help="pictures, and measured.json (default %(default)s)"
    )
    parser.add_argument("--draw", action="store_true", help="only draw again what measured.json holds")
    a = parser.parse_args(arguments)
    try:
        store = a.out / "measured.json"
        if not a.draw:
            if not (a.models and a.data and a.networks):
                raise ExportError("--models, --data and --networks are needed, except with --draw")
            files = {name: a.models / f"{name}.onnx" for name in COLUMNS} | {"device": a.device}
            for path in [path for path in files.values() if not path.is_file()]:
                print(
                    f"{path} is not there, its lines are left out: train export/recipes/{path.stem}.toml, and compile it",
                    file=sys.stderr,
                )
            files = {name: path for name, path in files.items() if path.is_file()}
            if "device" not in files:
                raise ExportError(f"the device's model is not there: {a.device}")
            models = {name: dict.fromkeys(a.alphas, path) for name, path in files.items()}
            alone = sorted(a.models.glob(f"{APART}-*.onnx"))
            if alone:
                models[APART] = {prepare(p, p.read_bytes()).metadata.alpha_default: p for p in alone}
            plan = Plan(seeds=1, epochs=a.epochs, draws=1, limit=a.limit)
            found = measured(Audit(a.data, a.networks, a.work, plan), models, a.rival, a.brief)
            a.out.mkdir(parents=True, exist_ok=True)
            store.write_text(json.dumps(found, indent=1) + "\n")
            faces(files, a.alphas, a.out / "people.png")
        if not store.is_file():
            raise ExportError(f"nothing was measured yet: there is no {store}")
        found = json.loads(store.read_text())
        draw(found, a.out)
        for line in dial(found):
            print(line)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
