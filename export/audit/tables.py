"""The report as Markdown tables."""

from collections.abc import Iterable, Sequence

import numpy as np

from export.audit.measure import BEST_PIXEL
from export.audit.report import Interval, Mean, OwnRow, Report, Row, Score, Share, Strangers, StrangersReport

MISSING = "–"
GALLERIES = ("raw", "sanitized")


def line(cells: Iterable[object]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a table; the name of the first column may be empty."""
    return [line(names).replace("|  |", "| |"), "|" + "---|" * len(names)]


def percent(share: float) -> str:
    """Return a share in per cent, with one digit."""
    return f"{100 * share:.1f}"


def interval(ends: Interval) -> str:
    """Return an interval in per cent."""
    return f"{percent(ends[0])}..{percent(ends[1])}"


def scored(s: Score | Mean) -> str:
    """Return one attacker's figures in a cell."""
    return f"{percent(s.accuracy)} (balanced {percent(s.balanced)}, AUC {s.auc:.3f}, leak {s.leak_nats:.3f} nats)"


def best(row: Row) -> str:
    """Return the best fresh attacker of a row in a cell."""
    name, mean = row.strongest()
    return f"{percent(mean.accuracy)} [{interval(mean.accuracy_95)}] ({name}, leak {mean.leak_nats:.3f} nats)"


def summary(report: Report) -> str:
    """Return a line for strangers, one for each row, and one for each point of the dial's curve."""
    lines = [] if report.strangers is None else [headline(report.strangers)]
    lines += [
        f"{name}: top-5 {percent(row.utility.top5)}, best fresh attacker {best(row)}"
        for name, row in report.table.items()
    ]
    lines += [f"alpha {p.alpha:g}: top-5 {percent(p.top5)}, attacker {percent(p.attacker)}" for p in report.curve]
    return "\n".join(lines)


def table(report: Report) -> str:
    """Return the report in short: strangers, then the closed set: raw faces, all mechanisms, each fresh attacker."""
    c, model = report.closed_set, report.model
    about = (
        f"{model.name} v{model.version} at alpha {report.alpha:g}; closed set: {c.people} people, {c.test} test "
        f"pictures, prior {c.prior:.3f} male; fresh attackers trained for {report.plan.epochs} epochs"
    )
    first = strangers_first(report.strangers) if report.strangers is not None else []
    parts = [*first, [about], raw_and_sanitized(report), mechanisms(report), fresh_attackers(report.ours)]
    name, strongest = report.ours.strongest()
    if strongest.slices:
        right = ", ".join(f"{part} {percent(share)}" for part, share in strongest.slices.items())
        parts.append([f"{name} is right, by part of the test pictures: {right}."])
    if report.ours.track is not None:
        frames = " / ".join(percent(share) for share in report.ours.track.balanced_by_frames.values())
        parts.append([f"One track, mean over 1 / 10 / 30 / 150 frames: {frames} (balanced)."])
    return "\n\n".join("\n".join(part) for part in parts)


def of_strangers(report: StrangersReport) -> str:
    """Return the audit of strangers as Markdown."""
    about = f"{report.model.name} v{report.model.version} at alpha {report.alpha:g}, {report.minutes:g} minutes. "
    first, *rest = strangers_first(report.strangers)
    return "\n\n".join("\n".join(part) for part in ([about + first[0]], *rest))


def strangers_first(s: Strangers) -> list[list[str]]:
    """Return what is measured on strangers: a sentence, and three tables."""
    sets = ", ".join(f"{name} {count}" for name, count in s.by_set.items())
    about = (
        f"{s.people} strangers, {s.pictures} pictures ({sets}), as a provider finds them in the frames of the device; "
        "in %, with 95 % intervals over people"
    )
    return [[about], recognised(s), genders(s), looked_at(s)]


def headline(s: Strangers) -> str:
    """Return the figures of strangers that count, in one line."""
    name, worst, balanced = s.strongest()
    seen = ", ".join(
        f"{matcher} ({'taught' if m.taught else 'unseen'}) {percent(m.household.value)}"
        for matcher, m in sorted(s.matchers.items(), key=lambda item: item[1].taught)
    )
    return f"strangers: household of 8 by {seen}; best fresh attacker {percent(balanced)} ({name}, {worst}, balanced)"


def recognised(s: Strangers) -> list[str]:
    """Return the table of matchers, the unseen first."""
    columns = (
        "matcher",
        "draws",
        "household of 8, top-1",
        "its sets",
        *(
            f"TAR at FAR {rate}, {gallery} gallery"
            for rate in next(iter(s.matchers.values())).tar
            for gallery in GALLERIES
        ),
    )
    lines = head(columns)
    for name, m in sorted(s.matchers.items(), key=lambda item: item[1].taught):
        for what, found in ((f"{name}, {'taught' if m.taught else 'unseen'}", m), (f"{name}, raw faces", s.raw[name])):
            sets = ", ".join(f"{part} {percent(share.value)}" for part, share in found.household_by_set.items())
            tar = (shared(rates[gallery]) for rates in found.tar.values() for gallery in GALLERIES)
            lines.append(line((what, found.draws, shared(found.household), sets, *tar)))
    return lines


def genders(s: Strangers) -> list[str]:
    """Return the table of attackers: balanced accuracy by set, a mean over seeds."""
    sets = [*next(iter(s.frozen.values())).by_set]
    counts = [*next(iter(s.frozen.values())).pooled]
    over = f"over {' / '.join(counts)} pictures of a stranger"
    lines = head(("gender by", "seeds", *sets, "all", "AUC", "leak, nats", over))
    rows = [(f"fresh {name}", found) for name, found in s.fresh.items()]
    rows += [
        (f"{name}, {'taught' if name in s.frozen_taught else 'unseen'}", [found]) for name, found in s.frozen.items()
    ]
    rows += [(f"{name}, raw faces", [found]) for name, found in s.gender_raw.items()]
    for name, seeds in rows:
        by_set = [ranged([found.by_set[part].balanced for found in seeds]) for part in sets]
        every = [found.all for found in seeds]
        ends = interval(every[0].balanced_95)
        pooled = " / ".join(percent(float(np.mean([found.pooled[n].balanced for found in seeds]))) for n in counts)
        means = (f"{np.mean([e.auc for e in every]):.3f}", f"{np.mean([e.leak_nats for e in every]):.3f}")
        lines.append(
            line((name, len(seeds), *by_set, f"{ranged([e.balanced for e in every])} [{ends}]", *means, pooled))
        )
    return lines


def ranged(shares: Sequence[float]) -> str:
    """Return the mean of shares in per cent, and the range of several."""
    mean = percent(float(np.mean(shares)))
    return mean if len(shares) == 1 else f"{mean} ({percent(min(shares))}..{percent(max(shares))})"


def looked_at(s: Strangers) -> list[str]:
    """Return what painted faces look like beside raw ones, in words."""
    bands, again = ", ".join(f"{ratio:.2f}" for ratio in s.realism.power), s.found_again
    said = (
        f"Painted against raw faces ({s.realism.faces}), power by spatial frequency from low to high: {bands}; the "
        f"worst is off by a factor of {s.realism.worst_band:.2f}. Chroma noise: {s.realism.chroma_noise:.2f} of raw. "
        f"Found again: {again.found_again} of {again.found_raw} ({percent(again.share)} %), landmarks "
        f"{again.landmark_error_px:.2f} px off."
    )
    return [said]


def shared(share: Share) -> str:
    """Return a share with its interval in a cell."""
    return f"{percent(share.value)} [{interval(share.interval_95)}]"


def raw_and_sanitized(report: Report) -> list[str]:
    """Return the first table: each figure of raw faces and of sanitized ones."""
    raw, ours, again = report.raw, report.ours, report.ours.found_again
    found = f"{again.found_again} ({percent(again.share)} %), landmarks {again.landmark_error_px:.2f} px off"
    before = {name: scored(Mean.of(scores)) for name, scores in raw.fresh.items()}
    cells = [
        ("identity, top1", percent(raw.utility.top1), percent(ours.utility.top1)),
        ("identity, top5", percent(raw.utility.top5), percent(ours.utility.top5)),
        *((f"gender by {name}", scored(raw.frozen[name]), scored(s)) for name, s in ours.frozen.items()),
        *(
            (f"gender by fresh {name}", before.get(name, MISSING), scored(Mean.of(scores)))
            for name, scores in ours.fresh.items()
        ),
        ("faces found again in the output frame", again.found_raw, found),
        ("structural similarity to the raw face", 1, f"{ours.looks.ssim:.3f}"),
    ]
    return [*head(("", "raw", "sanitized")), *(line(row) for row in cells)]


def mechanisms(report: Report) -> list[str]:
    """Return the second table: a line for each mechanism."""
    columns = ("", "top-1", "top-5", "best fresh attacker [95 % over people] (leak)", "pooling 5 pictures")
    lines = head((*columns, "gender_faceapi", "gender_dlib", "gender_gear (AUC)"))
    for name, row in report.table.items():
        pooled, frozen = row.strongest()[1].pooled, row.frozen
        cells = (
            name,
            percent(row.utility.top1),
            percent(row.utility.top5),
            best(row),
            percent(pooled["5"]) if "5" in pooled else MISSING,
            percent(frozen["gender_faceapi"].accuracy),
            percent(frozen["gender_dlib"].accuracy),
            percent(frozen["gender_gear"].auc),
        )
        lines.append(line(cells))
    return lines


def fresh_attackers(ours: OwnRow) -> list[str]:
    """Return the third table: each fresh attacker of the model, by seeds, people and pooled pictures."""
    pooling = "pooling 1 / 3 / 5 / 10 pictures, balanced"
    lines = head(("fresh attacker", "seeds: range", "95 % over people", pooling))
    for name, scores in ours.fresh.items():
        mean = Mean.of(scores)
        seeds, pools = f"{mean.seeds}: {interval(mean.range)}", " / ".join(map(percent, mean.pooled.values()))
        lines.append(line((name, seeds, interval(mean.accuracy_95), pools)))
    for canvas, s in (ours.context or {}).items():
        what = f"{BEST_PIXEL}, on output frames with {canvas} around"
        lines.append(line((what, 1, interval(s.accuracy_95), f"accuracy {scored(s)}")))
    return lines
