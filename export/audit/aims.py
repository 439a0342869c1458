"""What was aimed at, and what was reached: `python -m export.audit.aims REPORT` prints the tables of the documents.

REPORT is what `export.audit --json` wrote. Printed are every aim with its measured value, the model card's table and
the README's: strangers first, then the closed set as the authors' row.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.audit import tables
from export.audit.command import errors_as_lines
from export.audit.mechanisms import FLOAT32
from export.audit.report import OURS, Mean, Recognised, Report, Row, Strangers, read
from export.audit.tables import percent
from export.errors import ExportError

RATE = "0.01"  # the FAR of the headline


@dataclass(frozen=True)
class Aim:
    """One aim; `reached` says nothing where it was not measured."""

    what: str
    aim: str
    measured: str
    reached: bool | None


def aims(report: Report) -> list[Aim]:
    """Return every aim of version 6.

    Raises:
        ExportError: the report has no strangers.
    """
    s = strangers_of(report)
    return [*_recognition(s), *_gender(s), *_closed_set(report), *_looks(s)]


def strangers_of(report: Report) -> Strangers:
    """Return what was measured on strangers.

    Raises:
        ExportError: nothing was.
    """
    if report.strangers is None:
        raise ExportError("this report has no strangers: measure it again with this version's export.audit")
    return report.strangers


def at_least(what: str, least: float, measured: float, by: str = "") -> Aim:
    """Return an aim at a share in per cent that is met from below."""
    return Aim(what, f">= {least:g}", percent(measured) + by, 100 * measured >= least)


def at_most(what: str, most: float, measured: float, by: str = "") -> Aim:
    """Return an aim at a share in per cent that is met from above."""
    return Aim(what, f"<= {most:g}", percent(measured) + by, 100 * measured <= most)


def verified(m: Recognised) -> float:
    """Return a matcher's TAR against raw pictures."""
    return m.tar[RATE]["raw"].value


def _recognition(s: Strangers) -> Iterator[Aim]:
    what = "household of 8, top-1, unseen matcher"
    yield from (at_least(what, 95, m.household.value, f" ({name})") for name, m in s.unseen.items())
    for name, m in sorted(s.matchers.items(), key=lambda item: item[1].taught):
        role, least = ("the training's", 90) if m.taught else ("unseen", 80)
        yield at_least(f"TAR at FAR {RATE}, raw gallery, {role} matcher", least, verified(m), f" ({name})")


def _gender(s: Strangers) -> Iterator[Aim]:
    name, worst, balanced = s.strongest()
    yield at_most("best fresh attacker, balanced, the worst set", 60, balanced, f" ({name}, {worst})")
    ten = s.pooled("10")
    what = "best fresh attacker over ten pictures of a stranger"
    yield at_most(what, 66, ten[1], f" ({ten[0]})") if ten else Aim(what, "<= 66", tables.MISSING, None)
    for name, seen in s.frozen.items():
        if name not in s.frozen_taught:
            shares = [score.balanced for score in seen.by_set.values()]
            within = all(abs(share - 0.5) <= 0.04 for share in shares)
            shown = f"{percent(min(shares))} to {percent(max(shares))}"
            yield Aim(f"unseen classifier {name}, balanced, each set", "50 +- 4", shown, within)


def _closed_set(report: Report) -> Iterator[Aim]:
    name, best = report.ours.strongest()
    yield at_least("closed set, top-5", 93, report.ours.utility.top5)
    yield at_most("closed set, best fresh attacker, who knows the people", 80, best.accuracy, f" ({name})")
    what, other = "float32 to int8, every figure of the closed set", report.table.get(FLOAT32)
    if other is None:
        yield Aim(what, "<= 1 point", tables.MISSING, None)
        return
    off, which = max(differences(report.table[OURS], other))
    yield Aim(what, "<= 1 point", f"{100 * off:.1f} at most ({which})", 100 * off <= 1)


def differences(first: Row, second: Row) -> list[tuple[float, str]]:
    """Return how far two rows' figures are apart, as shares."""
    pairs = {
        "top-1": (first.utility.top1, second.utility.top1),
        "top-5": (first.utility.top5, second.utility.top5),
    }
    pairs |= {name: (s.accuracy, second.frozen[name].accuracy) for name, s in first.frozen.items()}
    pairs |= {
        name: (Mean.of(first.fresh[name]).accuracy, Mean.of(seeds).accuracy) for name, seeds in second.fresh.items()
    }
    return [(abs(one - two), name) for name, (one, two) in pairs.items()]


def _looks(s: Strangers) -> Iterator[Aim]:
    again, real = s.found_again, s.realism
    yield Aim("found again", "100", percent(again.share), again.share == 1)
    px = again.landmark_error_px
    yield Aim("landmarks, pixels of the chip", "<= 1.5", f"{px:.2f}", px <= 1.5)
    worst = real.worst_band
    yield Aim("power by spatial frequency, the worst band", "within a factor of 2", f"{worst:.2f}", worst <= 2)
    noise = real.chroma_noise
    yield Aim("chroma noise, of raw faces'", "<= 1", f"{noise:.2f}", noise <= 1)


def table(report: Report) -> list[str]:
    """Return the aims as Markdown."""
    lines = tables.head(("strangers, at the default", "aim", "measured", ""))
    words = {True: "reached", False: "missed", None: "not measured"}
    return lines + [tables.line((a.what, a.aim, a.measured, words[a.reached])) for a in aims(report)]


def card(report: Report) -> list[str]:
    """Return the model card's table: strangers, then the closed set.

    Raises:
        ExportError: the report has no strangers.
    """
    s = strangers_of(report)
    lines = tables.head(("", "raw", "sanitized"))
    for name, m in sorted(s.matchers.items(), key=lambda item: item[1].taught):
        raw, role = s.raw[name], "taught" if m.taught else "unseen"
        by = f"by {name} ({role})"
        pairs = (
            ("stranger named in a household of eight", raw.household, m.household),
            (f"strangers verified, TAR at FAR {RATE}, raw gallery,", raw.tar[RATE]["raw"], m.tar[RATE]["raw"]),
            ("the same, sanitized gallery,", raw.tar[RATE]["sanitized"], m.tar[RATE]["sanitized"]),
        )
        lines += [tables.line((f"{what} {by}", percent(a.value), tables.shared(b))) for what, a, b in pairs]
    name, worst, balanced = s.strongest()
    before = percent(s.strongest_of_raw()[2])
    what = f"strangers' gender, best fresh attacker ({name}), worst set ({worst}), balanced"
    lines.append(tables.line((what, before, percent(balanced))))
    if ten := s.pooled("10"):
        what = f"the best over ten pictures of a stranger ({ten[0]}), balanced"
        before = percent(max(attacked.pooled["10"].balanced for attacked in s.gender_raw.values()))
        lines.append(tables.line((what, before, percent(ten[1]))))
    raw_row, ours = report.raw, report.ours
    strongest, mean = ours.strongest()
    service = [f"{percent(row.utility.top1)} / {percent(row.utility.top5)}" for row in (raw_row, ours)]
    lines.append(tables.line(("closed set (the authors' row): identity, top-1 / top-5", *service)))
    best = percent(raw_row.strongest()[1].accuracy), f"{percent(mean.accuracy)} ({strongest})"
    lines.append(tables.line(("closed set: gender, best fresh attacker, who knows the people", *best)))
    return lines


def readme(report: Report) -> list[str]:
    """Return the README's table: what an unseen matcher and the best attacker make of strangers, in per cent.

    Raises:
        ExportError: the report has no strangers, or no matcher that took no part in the training.
    """
    s = strangers_of(report)
    if not s.unseen:
        raise ExportError("every matcher took part in the training: measure one that did not")
    name, m = next(iter(s.unseen.items()))
    lines = tables.head(("% of strangers", "raw", "edgesan"))
    pairs = (
        ("named in a household of eight, by a matcher that the training never saw", s.raw[name].household, m.household),
        ("verified by it at 1 % false accepts", s.raw[name].tar[RATE]["raw"], m.tar[RATE]["raw"]),
    )
    lines += [tables.line((what, percent(raw.value), percent(ours.value))) for what, raw, ours in pairs]
    _, worst, balanced = s.strongest()
    what = f"gender, by the best attacker, where it is best ({worst})"
    return [*lines, tables.line((what, percent(s.strongest_of_raw()[2]), percent(balanced)))]


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Print the aims, and the tables of the documents."""
    p = argparse.ArgumentParser(prog="python -m export.audit.aims", description=__doc__)
    p.add_argument("report", type=Path, help="what export.audit --json wrote")
    a = p.parse_args(arguments)
    report = read(Report, a.report)
    for title, part in (("Aims", table), ("Model card", card), ("README", readme)):
        print("\n".join([f"## {title}", "", *part(report), ""]))


if __name__ == "__main__":
    raise SystemExit(main())
