"""Several machines beside each other: `python -m benchmarks.compare benchmarks/results/*.json --plot docs/bench.png`.

Each file is what `benchmarks.aims --store` wrote, or `edgesan bench --json` on a board.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edgesan import bench


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What of a machine's results fits one line; a dash for what was not measured there."""
    alone = {
        row["precision"]: row for row in result.get("core", []) if (row["threads"], row["batch"]) == (1, 1)
    }  # of one face
    wire = next((row for row in result.get("wire", []) if (row["size"], row["faces"]) == ("640x480", 4)), {})
    seen = wire.get("glass_to_wire", {})
    m = result["machine"]
    return {
        "machine": f"{m['processor']}, {m['cores']} cores",
        "model": f"{result['model']['name']} v{result['model']['version']}",
        "int8, ms a face": alone["int8"]["p50"] if alone else "–",
        "share of the peak": alone["int8"]["share"] if alone else "–",
        "float against int8": round(alone["fp32"]["p50"] / alone["int8"]["p50"], 2) if alone else "–",
        "glass to wire, p50": seen.get("p50", "–"),
        "p99": seen.get("p99", "–"),
        "memory, MB": wire.get("memory_mb", "–"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="figures of one machine each (JSON)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also a picture (needs matplotlib)")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text()) for path in arguments.results]
    rows = [row(result) for result in results]
    print("network: one face, one thread; glass to wire: 640x480, 4 faces; ms\n")
    print(*bench.table(rows, tuple(rows[0])), sep="\n")
    if arguments.plot:
        bench.plot(results, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
