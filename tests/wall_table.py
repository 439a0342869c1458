"""The table of `make wall`, from the rows that the tests left: `python -m tests.wall_table FILE`."""

import json
import sys
from pathlib import Path


def main(path: str) -> int:
    """Print it; exit code 1 if anything leaked."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    print("| what was tried or broken | what came of it | leaks |\n|---|---|---|")
    for what, came, leaks in rows:
        print(f"| {what} | {came} | {leaks} |")
    total = sum(leaks for *_, leaks in rows)
    print(f"\n{len(rows)} rows, {total} leaks")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
