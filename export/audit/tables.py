"""The report as Markdown."""

from typing import Any

from export.audit import metrics
from export.audit.measure import FRESH, MATCHERS


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


def describe(best: tuple[str, dict[str, Any]]) -> str:
    low, high = best[1]["accuracy_95"]
    return f"{100 * best[1]['accuracy']:.1f} [{100 * low:.1f}..{100 * high:.1f}] ({best[0]}, leak {best[1]['leak_nats']:.3f} nats)"
