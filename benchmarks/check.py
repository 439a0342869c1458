"""Did it become slower? `python -m benchmarks.check` (`make bench-check`).

It compares instructions, never times, so that a slow or busy machine does not matter: those of a frame of two faces on
either side of the wall, with those that `benchmarks/results/instructions.json` holds. A count that is higher by more
than 3 % fails. `benchmarks.instructions` says what makes counts comparable.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks import instructions
from edgesan import bench

MOST_WORSE: Final = 0.03
CLIPS: Final = ("2-faces",)


def worse(stored: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Return the counts that are higher than the stored ones by more than MOST_WORSE, or have no stored one."""
    return [name for name, count in now.items() if not count <= stored.get(name, float("nan")) * (1 + MOST_WORSE)]


def incomparable(stored: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return why counts of these versions cannot be compared, or nothing."""
    other = [f"{name} {now[name]} ({stored.get(name)})" for name in now if now[name] != stored.get(name)]
    return f"the stored counts are of other versions: here is {', '.join(other)}" if other else ""


def text(stored: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Return the counts beside the stored ones, as a table."""
    bad = worse(stored, now)
    rows: Sequence[Sequence[str | float]] = [
        (name, stored.get(name, ""), count, "WORSE" if name in bad else "") for name, count in now.items()
    ]
    return "\n".join(bench.table(("million instructions a frame", "stored", "now", ""), rows))


def main() -> int:
    """Compare the counts with the stored ones; exit code 1 if one is worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    help_ = "count frames of this clip (default: 2-faces); may be repeated"
    parser.add_argument("--clip", action="append", choices=instructions.CLIPS, help=help_)
    arguments = parser.parse_args()
    versions, stored = instructions.load()
    reason = instructions.missing() or incomparable(versions, instructions.versions())
    if reason:
        print(f"error: {reason}; store the counts of the version to compare with: make instructions", file=sys.stderr)
        return 2
    now = instructions.measure(arguments.clip or CLIPS, networks=False)
    print(text(stored, now))
    bad = worse(stored, now)
    if bad:
        print(f"error: slower than before by more than {MOST_WORSE:.0%}: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
