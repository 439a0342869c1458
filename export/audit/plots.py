"""All that is drawn: the figures of a report, and those of the talk."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgesan.model.load import Model
from export.audit.clip import people_of_the_clip
from export.audit.mechanisms import draw_noise
from export.audit.metrics import average, strongest

matplotlib.use("Agg")

OURS = "edgesan"


def trade_off(report: dict[str, Any], axes: Axes) -> None:
    """Top-5 identity against the best fresh attacker: up and to the left is better."""
    for name, row in report["table"].items():
        best = strongest(row)[1]
        axes.plot(100 * best["accuracy"], 100 * row["utility"]["top5"], "*" if name == OURS else "o", ms=14 if name == OURS else 6)  # fmt: skip
        axes.annotate(name, (100 * best["accuracy"], 100 * row["utility"]["top5"]), fontsize=7, xytext=(4, 3), textcoords="offset points")  # fmt: skip
    curve = report.get("curve", [])
    axes.plot(
        [100 * c["attacker"] for c in curve], [100 * c["top5"] for c in curve], "-", lw=1, label="edgesan, by alpha"
    )
    for c in curve:
        axes.annotate(f"{c['alpha']:g}", (100 * c["attacker"], 100 * c["top5"]), fontsize=7, color="gray")
    prior = 100 * max(report["closed_set"]["prior"], 1 - report["closed_set"]["prior"])
    axes.axvline(prior, color="gray", lw=0.8, ls=":", label="prior: nothing is told")
    axes.set(xlabel="gender, best fresh attacker, %", ylabel="identity, top-5, %", title="Utility against privacy")
    axes.legend(fontsize=7)


def bound(report: dict[str, Any], axes: Axes) -> None:
    """The same in nats, beside the bound that nobody can beat: who knows the person knows the gender."""
    draw_bound(report["bound"], axes)
    for name, row in report["table"].items():
        axes.plot(max(0.0, strongest(row)[1]["leak_nats"]), row["utility"]["nats"], "*" if name == OURS else "o")
        axes.annotate(name, (max(0.0, strongest(row)[1]["leak_nats"]), row["utility"]["nats"]), fontsize=7, xytext=(4, 3), textcoords="offset points")  # fmt: skip
    axes.set(title="Against the information bound")
    axes.legend(fontsize=7)


def draw_bound(found: dict[str, Any], axes: Axes) -> None:
    """The bound of `audit.bound` as a line, on axes of its own units."""
    entropy = found["entropy_nats"]
    points = found.get("points", [[0.0, entropy], [entropy, 0.0]])
    axes.plot(*zip(*points, strict=True), "k-", lw=1, label="bound: H(P) - leak")
    axes.set(xlabel="leak about gender, nats", ylabel="H(person | picture), nats")
    axes.set_yscale("symlog", linthresh=1)


def top5_by_alpha(report: dict[str, Any], axes: Axes) -> None:
    """The service, and the attackers, along the dial."""
    curve = report.get("curve", [])
    alphas = [c["alpha"] for c in curve]
    for key, label in (("top5", "identity, top-5"), ("top1", "identity, top-1"), ("attacker", "gender, best fresh attacker"), ("frozen", "gender, frozen gender_faceapi")):  # fmt: skip
        axes.plot(alphas, [100 * c[key] for c in curve], "o-", ms=4, label=label)
    axes.axhline(
        100 * max(report["closed_set"]["prior"], 1 - report["closed_set"]["prior"]), color="gray", ls=":", lw=0.8
    )
    axes.set(xlabel="alpha", ylabel="%", title="Along the dial")
    axes.legend(fontsize=7)


def distributions(report: dict[str, Any], axes: Axes) -> None:
    """P(p(S(x)) = M | y_p, alpha) of the frozen classifier: medians and quartiles for women and men, along the dial."""
    curve = report.get("curve", [])
    alphas = [c["alpha"] for c in curve]
    for who, colour in (("F", "C1"), ("M", "C0")):
        low, middle, high = ([c["distribution"][who][i] for c in curve] for i in range(3))
        axes.plot(
            alphas, middle, "o-", ms=4, color=colour, label=f"{'women' if who == 'F' else 'men'}: median, quartiles"
        )
        axes.fill_between(alphas, low, high, color=colour, alpha=0.2)
    axes.set(xlabel="alpha", ylabel="P(M)", ylim=(-0.02, 1.02), title="gender_faceapi on sanitized faces")
    axes.legend(fontsize=7)


def unfiltered(report: dict[str, Any], axes: Axes) -> None:
    """The privacy networks on unfiltered data: right on raw faces."""
    names = list(report["table"]["raw"]["frozen"]) + list(report["table"]["raw"]["fresh"])
    values = {**report["table"]["raw"]["frozen"], **{k: v[0] for k, v in report["table"]["raw"]["fresh"].items()}}
    axes.barh(names, [100 * values[n]["accuracy"] for n in names], color="C2")
    axes.set(xlabel="gender accuracy on raw faces, %", xlim=(50, 100), title="The attackers on unfiltered data")


def pooling(report: dict[str, Any], axes: Axes) -> None:
    """Pooling pictures of one person, and frames of one track."""
    for name, cells in report["table"][OURS]["fresh"].items():
        pools = average(cells)["pooled"]
        axes.plot([int(n) for n in pools], [100 * v for v in pools.values()], "o-", ms=3, label=name)
    track = report["table"][OURS].get("track")
    if track:
        frames = track["balanced_by_frames"]
        axes.plot(
            [int(n) for n in frames], [100 * v for v in frames.values()], "ks--", ms=4, label="frames of one track"
        )
    axes.set(xscale="log", xlabel="pictures of one person (or frames)", ylabel="balanced accuracy, %", title="Pooling")
    axes.legend(fontsize=6)


FIGURES: dict[str, Callable[[dict[str, Any], Axes], None]] = {
    "trade-off": trade_off,
    "bound": bound,
    "dial": top5_by_alpha,
    "distributions": distributions,
    "unfiltered": unfiltered,
    "pooling": pooling,
}


def figure(report: dict[str, Any], name: str) -> bytes:
    """One of FIGURES as PNG."""
    picture = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    FIGURES[name](report, picture.subplots())
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()


GRID_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def grid(model: Model) -> NDArray[np.uint8]:
    """What it looks like: a row per person, raw first, then one draw at each of GRID_ALPHAS; BGR."""
    chips = people_of_the_clip()
    z = draw_noise(model.noise_dimensions, len(chips), 0)
    columns = [chips, *(model.run(chips, z, alpha) for alpha in GRID_ALPHAS)]
    rows = np.concatenate([np.concatenate(list(column), 0) for column in columns], 1)[..., ::-1]
    return np.asarray(cv2.resize(np.ascontiguousarray(rows), None, fx=1.5, fy=1.5), np.uint8)


def write_figures(report: dict[str, Any], model: Model, folder: Path) -> None:
    """Every figure, and the grid of people, as files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.png").write_bytes(figure(report, name))
    cv2.imwrite(str(folder / "people.jpg"), grid(model), [cv2.IMWRITE_JPEG_QUALITY, 90])
