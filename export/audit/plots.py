"""All that is drawn: the figures of one report, and the figures of the talk."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgesan.model.load import Model, prepare
from export.audit.clip import people_of_the_clip, two_people
from export.audit.mechanisms import AUTHORS, draw_noise
from export.audit.report import OURS, Bound, Column, Mean, Report, Talk

matplotlib.use("Agg")

GRID_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CLASSES = (("F", "C1", "women"), ("M", "C0", "men"))  # of gender: label, colour, name

# The columns of the talk: one training for each kind of noise and of game.
COLUMNS = [f"{noise}-{game}" for noise in ("deterministic", "stochastic") for game in ("adversarial", "plug-and-play")]
DIAL, APART, DEVICE = "stochastic-adversarial", "apart", "device"  # a dial; networks of one alpha each; what ships
COLOURS = dict(zip([*COLUMNS, APART, DEVICE, AUTHORS], ("C1", "C4", "C0", "C2", "C9", "k", "C5"), strict=True))
MARKERS = {AUTHORS: "s", APART: "D"}


def percent(shares: Sequence[float]) -> list[float]:
    """Return shares in per cent."""
    return [100 * share for share in shares]


def prior_line(axes: Axes, prior: float, label: str = "") -> None:
    """Draw the share that a guess without any picture gets right."""
    axes.axvline(100 * max(prior, 1 - prior), color="gray", lw=0.8, ls=":", label=label or None)


def bound_line(found: Bound, axes: Axes) -> None:
    """Draw the bound that no sanitizer beats."""
    axes.plot(*zip(*found.points, strict=True), "k-", lw=1, label="bound: H(P) - leak")
    axes.set(xlabel="leak about gender, nats", ylabel="H(person | picture), nats")
    axes.set_yscale("symlog", linthresh=1)


@dataclass(frozen=True)
class Style:
    """How medians and quartiles are drawn."""

    line: str
    colour: str
    shade: float
    label: str


def spread(axes: Axes, alphas: Sequence[float], found: Sequence[tuple[float, float, float]], style: Style) -> None:
    """Draw medians and quartiles along the dial."""
    low, middle, high = ([of[i] for of in found] for i in range(3))
    axes.plot(alphas, middle, style.line, ms=4, color=style.colour, label=style.label)
    axes.fill_between(alphas, low, high, color=style.colour, alpha=style.shade)


# The figures of one report.


def star(axes: Axes, name: str, x: float, y: float, size: float | None = None) -> None:
    """Mark a mechanism, ours with a star, and write its name beside it."""
    axes.plot(x, y, "*" if name == OURS else "o", ms=size)
    axes.annotate(name, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")


def trade_off(report: Report, axes: Axes) -> None:
    """Draw top-5 identity against the best fresh attacker: up and to the left is better."""
    for name, row in report.table.items():
        star(axes, name, 100 * row.strongest()[1].accuracy, 100 * row.utility.top5, 14 if name == OURS else 6)
    curve = report.curve
    attacker, top5 = percent([p.attacker for p in curve]), percent([p.top5 for p in curve])
    axes.plot(attacker, top5, "-", lw=1, label="edgesan, by alpha")
    for p in curve:
        axes.annotate(f"{p.alpha:g}", (100 * p.attacker, 100 * p.top5), fontsize=7, color="gray")
    prior_line(axes, report.closed_set.prior, "prior: nothing is told")
    axes.set(xlabel="gender, best fresh attacker, %", ylabel="identity, top-5, %", title="Utility against privacy")
    axes.legend(fontsize=7)


def bound(report: Report, axes: Axes) -> None:
    """Draw the same in nats, beside the bound: who knows the person knows the gender."""
    bound_line(report.bound, axes)
    for name, row in report.table.items():
        star(axes, name, max(0.0, row.strongest()[1].leak_nats), row.utility.nats)
    axes.set(title="Against the information bound")
    axes.legend(fontsize=7)


def dial(report: Report, axes: Axes) -> None:
    """Draw the service and the attackers along the dial."""
    curve, prior = report.curve, report.closed_set.prior
    alphas = [p.alpha for p in curve]
    lines = {
        "identity, top-5": [p.top5 for p in curve],
        "identity, top-1": [p.top1 for p in curve],
        "gender, best fresh attacker": [p.attacker for p in curve],
        "gender, frozen gender_faceapi": [p.frozen for p in curve],
    }
    for label, shares in lines.items():
        axes.plot(alphas, percent(shares), "o-", ms=4, label=label)
    axes.axhline(100 * max(prior, 1 - prior), color="gray", ls=":", lw=0.8)
    axes.set(xlabel="alpha", ylabel="%", title="Along the dial")
    axes.legend(fontsize=7)


def distributions(report: Report, axes: Axes) -> None:
    """Draw P(M) of the frozen classifier along the dial: medians and quartiles of women's and men's pictures."""
    alphas = [p.alpha for p in report.curve]
    for who, colour, name in CLASSES:
        found = [p.distribution[who] for p in report.curve]
        spread(axes, alphas, found, Style("o-", colour, 0.2, f"{name}: median, quartiles"))
    axes.set(xlabel="alpha", ylabel="P(M)", ylim=(-0.02, 1.02), title="gender_faceapi on sanitized faces")
    axes.legend(fontsize=7)


def unfiltered(report: Report, axes: Axes) -> None:
    """Draw the attackers on unfiltered data: how often they are right on raw faces."""
    raw = report.raw
    scores = raw.frozen | {name: seeds[0] for name, seeds in raw.fresh.items()}
    axes.barh(list(scores), percent([s.accuracy for s in scores.values()]), color="C2")
    axes.set(xlabel="gender accuracy on raw faces, %", xlim=(50, 100), title="The attackers on unfiltered data")


def pooling(report: Report, axes: Axes) -> None:
    """Draw each attacker by the number of pictures of one person, and the frames of one track."""

    def by_number(found: Mapping[str, float], style: str, size: int, label: str) -> None:
        axes.plot([int(n) for n in found], percent(list(found.values())), style, ms=size, label=label)

    for name, scores in report.ours.fresh.items():
        by_number(Mean.of(scores).pooled, "o-", 3, name)
    if report.ours.track is not None:
        by_number(report.ours.track.balanced_by_frames, "ks--", 4, "frames of one track")
    axes.set(xscale="log", xlabel="pictures of one person (or frames)", ylabel="balanced accuracy, %", title="Pooling")
    axes.legend(fontsize=6)


FIGURES: dict[str, Callable[[Report, Axes], None]] = {
    "trade-off": trade_off,
    "bound": bound,
    "dial": dial,
    "distributions": distributions,
    "unfiltered": unfiltered,
    "pooling": pooling,
}


def figure(report: Report, name: str) -> bytes:
    """Return one of FIGURES as PNG."""
    picture = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    FIGURES[name](report, picture.subplots())
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()


def grid(model: Model) -> NDArray[np.uint8]:
    """Draw what it looks like: a row for each person, raw first, then one draw at each of GRID_ALPHAS; BGR."""
    chips = people_of_the_clip()
    z = draw_noise(model.noise_dimensions, len(chips), 0)
    columns = [chips, *(model.run(chips, z, alpha) for alpha in GRID_ALPHAS)]
    rows = np.concatenate([np.concatenate(list(column), 0) for column in columns], 1)[..., ::-1]
    return np.asarray(cv2.resize(np.ascontiguousarray(rows), None, fx=1.5, fy=1.5), np.uint8)


def write_figures(report: Report, model: Model, folder: Path) -> None:
    """Write every figure, and the grid of people, as files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.png").write_bytes(figure(report, name))
    cv2.imwrite(str(folder / "people.jpg"), grid(model), [cv2.IMWRITE_JPEG_QUALITY, 90])


# The figures of the talk.


def label(name: str, column: Column) -> str:
    """Return a line's name, with how long it was trained."""
    steps = f"{column.model.steps:,} steps"
    by = column.points[0].attackers
    only = f" (attacker: {', '.join(by)})" if len(by) == 1 else ""
    if name == DEVICE:
        return f"the bundled model, v{column.model.version}: {steps}{only}"
    if name == APART:
        return f"{DIAL}, a network for each alpha: {steps} from the bundled model{only}"
    return f"{AUTHORS}: {steps}{only}" if name == AUTHORS else f"{name}: {steps} from the bundled model{only}"


def talk_trade_off(talk: Talk, left: Axes, right: Axes) -> None:
    """Draw utility against privacy: in per cent, and in nats beside the bound."""
    for name, column in talk.columns.items():
        points, colour = column.points, COLOURS[name]
        marker, width, about = MARKERS.get(name, "o"), 0 if name == APART else 1, label(name, column)
        for axes, x, y in (
            (left, percent([p.attacker for p in points]), percent([p.top5 for p in points])),
            (right, [max(0.0, p.leak_nats) for p in points], [p.nats for p in points]),
        ):
            axes.plot(x, y, color=colour, marker=marker, ms=4, lw=width, label=about)
        for p in points:
            left.annotate(f"{p.alpha:g}", (100 * p.attacker, 100 * p.top5), fontsize=6, color=colour)
    raw = talk.raw
    left.plot(100 * raw.attacker, 100 * raw.top5, "k*", ms=10, label="raw")
    prior_line(left, talk.closed_set.prior, "prior: nothing is told")
    left.set(xlabel="gender, best fresh attacker, %", ylabel="identity, top-5, %", title="Up and to the left is better")
    right.plot(raw.leak_nats, raw.nats, "k*", ms=10)
    bound_line(talk.bound, right)
    right.set(title="In nats: none is below the line")


def talk_distribution(column: Column, axes: Axes, title: str) -> None:
    """Draw P(p(S(x)) = M | y_p, alpha): medians and quartiles of women's and men's pictures."""
    points = column.points
    alphas = [p.alpha for p in points]
    for who, colour, name in CLASSES:
        frozen, fresh = [p.distribution[who] for p in points], [p.fresh_distribution[who] for p in points]
        spread(axes, alphas, frozen, Style("o-", colour, 0.18, f"{name}, frozen"))
        spread(axes, alphas, fresh, Style("x--", colour, 0.08, f"{name}, best fresh"))
    axes.set(ylim=(-0.02, 1.02), xlabel="alpha", ylabel="P(M)", title=title)


def talk_service(column: Column, axes: Axes, title: str) -> None:
    """Draw the service along the dial."""
    alphas = [p.alpha for p in column.points]
    axes.plot(alphas, percent([p.top5 for p in column.points]), "o-", ms=4, label="top-5")
    axes.plot(alphas, percent([p.top1 for p in column.points]), "x--", ms=4, label="top-1")
    axes.set(ylim=(0, 101), xlabel="alpha", ylabel="identity, %", title=title)
    axes.legend(fontsize=7)


def draw_talk(talk: Talk, folder: Path) -> None:
    """Write all figures of the talk but the faces, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"trade-off": page_trade_off(talk), "unfiltered": page_unfiltered(talk), DEVICE: page_device(talk)}
    if talk.columns.keys() & set(COLUMNS):
        pages["distributions"] = page_columns(talk, talk_distribution)
        next(axes for axes in pages["distributions"].axes if axes.lines).legend(fontsize=6)
        pages["top5"] = page_columns(talk, talk_service)
    n, plan = talk.closed_set, talk.plan
    note = (
        f"int8, after JPEG; {n.people} people, {n.test} test pictures; "
        f"fresh attackers: {' and '.join(plan.attackers)}, {n.train} pictures, {plan.epochs} epochs, one seed"
    )
    for name, picture in pages.items():
        picture.supxlabel(note, x=0.005, ha="left", fontsize=5.5, color="gray")
        picture.savefig(folder / f"{name}.png")


def page(width: float, height: float) -> Figure:
    """Return an empty page; inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def page_trade_off(talk: Talk) -> Figure:
    """Draw the trade-off in both units."""
    picture = page(11, 5.4)
    left, right = picture.subplots(1, 2)
    talk_trade_off(talk, left, right)
    picture.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=6)
    return picture


def page_columns(talk: Talk, panel: Callable[[Column, Axes, str], None]) -> Figure:
    """Draw the four columns beside each other."""
    picture = page(9, 7)
    for axes, name in zip(picture.subplots(2, 2).flat, COLUMNS, strict=True):
        if name in talk.columns:
            column = talk.columns[name]
            panel(column, axes, label(name, column).replace(" (", "\n("))
            axes.title.set_fontsize(8)
        else:
            axes.set(title=f"{name}: not measured", xticks=[], yticks=[])
    return picture


def page_unfiltered(talk: Talk) -> Figure:
    """Draw histograms of P(M) on raw faces."""
    picture = page(9, 3.6)
    for axes, (name, found) in zip(picture.subplots(1, 2), talk.unfiltered.items(), strict=True):
        for who, colour, people in CLASSES:
            bins = np.arange(20) / 20 + 0.025
            axes.bar(bins, found.histogram[who], 0.05, color=colour, alpha=0.6, label=people)
        axes.set(xlabel="P(M) on raw faces", ylabel="pictures", title=f"{name}: {100 * found.accuracy:.1f} % right")
        axes.legend(fontsize=7)
    return picture


def page_device(talk: Talk) -> Figure:
    """Draw the bundled model along its dial."""
    picture = page(9, 3.8)
    left, right = picture.subplots(1, 2)
    device = talk.columns[DEVICE]
    talk_service(device, left, label(DEVICE, device))
    talk_distribution(device, right, "what the bundled model leaves of gender")
    right.legend(fontsize=6)
    return picture


def draw_faces(models: Mapping[str, Path], alphas: Sequence[float], path: Path) -> None:
    """Write what they look like: two people of the bundled clip, raw and at each alpha, a row for each column."""
    chips, rows = two_people()[0][[0, 2]], []
    for file in models.values():
        model = prepare(file, file.read_bytes(), threads=1)
        z = draw_noise(model.noise_dimensions, len(chips), 0)
        columns = [chips, *(np.asarray(model.run(chips, z, alpha), np.uint8) for alpha in alphas)]
        rows += [np.concatenate([column[i] for column in columns], 1) for i in range(len(chips))]
    height = 1.15 * len(rows) + 0.4
    picture = Figure(figsize=(1.15 * (len(alphas) + 1) + 1.6, height), dpi=110)
    panels = picture.subplots(len(rows), 1, squeeze=False)[:, 0]
    for i, (axes, row) in enumerate(zip(panels, rows, strict=True)):
        axes.imshow(row)
        axes.set(xticks=56 + 112 * np.arange(len(alphas) + 1) if i == 0 else [], yticks=[])
        axes.xaxis.tick_top()
        if i == 0:
            axes.set_xticklabels(["raw", *(f"alpha {alpha:g}" for alpha in alphas)], fontsize=7)
        name = list(models)[i // 2].replace("-", "\n", 1)
        axes.set_ylabel(name, fontsize=6, rotation=0, ha="right", va="center")
    picture.subplots_adjust(0.17, 0.005, 0.998, 1 - 0.35 / height, hspace=0.02)
    picture.savefig(path)
