"""All figures of this machine, and what they are worth against the aims: `python -m benchmarks.aims` (`make bench`).

`edgesan bench`, the contestants side by side, and the ratios that `benchmarks.check` compares later, in ten minutes.
`--store` keeps them in `benchmarks/results`, named after the processor; `benchmarks.compare` draws what lies there.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks import check, side_by_side
from edgesan import bench
from edgesan.config import Config

PARTS: Final = ("core", "stages", "wire", "idle")
Results = dict[str, Any]


def one_thread(results: Results, precision: str) -> list[dict[str, Any]]:
    return [row for row in results["core"] if row["threads"] == 1 and row["precision"] == precision]


def against(results: Results, where: str, other: str) -> float:
    """How many times the time of edgesan's first row another one takes; NaN if it did not run."""
    row = results["side_by_side"][where]
    return float(row.get(other, np.nan) / next(iter(row.values())))


def of_kernels(results: Results, size: str) -> float:
    return next(float(row["kernels"]) for row in results["stages"] if (row["size"], row["stage"]) == (size, "frame"))


def wired(results: Results, size: str, faces: int) -> dict[str, Any]:
    return next(row for row in results["wire"] if (row["size"], row["faces"]) == (size, faces))


def further_face(results: Results) -> float:
    """ms a face: the slope of glass to wire over 0 to 16 faces, at 640x480."""
    rows = [row for row in results["wire"] if row["size"] == "640x480"]
    return float(np.polyfit([row["found"] for row in rows], [row["glass_to_wire"]["p50"] for row in rows], 1)[0])


def crowd(results: Results) -> float:
    """How many times as long a frame of 16 faces takes from glass to wire as one of two, at 640x480."""
    return float(
        wired(results, "640x480", 16)["glass_to_wire"]["p50"] / wired(results, "640x480", 2)["glass_to_wire"]["p50"]
    )


# What is aimed at: its name, what must be reached, whether more is better, and where it is found. {:g} is the value.
AIMS: Final[list[tuple[str, float, bool, str, Callable[[Results], float]]]] = [
    ("network, int8, one thread: share of the int8 peak", 0.75, True, "{:.0%}",
     lambda r: median(row["share"] for row in one_thread(r, "int8"))),
    ("network, int8 against float", 2.5, True, "{:.1f}x",
     lambda r: median(row["float"] for row in one_thread(r, "int8"))),
    ("against the authors' net in float", 15, True, "{:.1f}x", lambda r: against(r, "network, one face", "U-Net, float")),
    ("pipeline against deface, 480x270", 5, True, "{:.1f}x", lambda r: against(r, "480x270", "deface 1.5.0")),
    ("pipeline against deface, 1280x720", 20, True, "{:.1f}x", lambda r: against(r, "1280x720", "deface 1.5.0")),
    ("pipeline against pixelation by hand, 480x270", 1.5, False, "{:.2f}x",
     lambda r: 1 / against(r, "480x270", "same detector, pixelated")),
    ("pipeline against pixelation by hand, 1280x720", 1.5, False, "{:.2f}x",
     lambda r: 1 / against(r, "1280x720", "same detector, pixelated")),
    ("pipeline against the sum of its kernels, 480x270", 1.2, False, "{:.2f}x", lambda r: of_kernels(r, "480x270")),
    ("pipeline against the sum of its kernels, 1280x720", 1.2, False, "{:.2f}x", lambda r: of_kernels(r, "1280x720")),
    ("glass to wire, 640x480, 2 faces, p50", 12, False, "{:.1f} ms",
     lambda r: wired(r, "640x480", 2)["glass_to_wire"]["p50"]),
    ("glass to wire, 640x480, 2 faces, p99", 33, False, "{:.1f} ms",
     lambda r: wired(r, "640x480", 2)["glass_to_wire"]["p99"]),
    ("each further face", 1, False, "{:.2f} ms", further_face),
    ("glass to wire, 640x480, 16 faces against 2, p50", 1.3, False, "{:.2f}x", crowd),
    ("memory of all processes, 640x480, 2 faces", 200, False, "{:.0f} MB", lambda r: wired(r, "640x480", 2)["memory_mb"]),
    ("time to the first frame", 2, False, "{:.2f} s", lambda r: median(row["first_frame_s"] for row in r["wire"])),
    ("idle, 15 frames/s, one face, one viewer", 15, False, "{:.1f} % of a core",
     lambda r: next(row["cpu_percent"] for row in r["idle"] if row["viewers"])),
]  # fmt: skip


def text(results: Results) -> str:
    """The aims and what was measured, in Markdown."""
    lines = ["| | aim | measured | |", "|---|---|---|---|"]
    for name, least, more, form, measured in AIMS:
        value = measured(results)
        told = "not installed" if np.isnan(value) else form.format(value)
        met = value >= least if more else value <= least
        lines.append(
            f"| {name} | {'≥' if more else '≤'} {form.format(least)} | {told} | {'met' if met else 'missed'} |"
        )
    return "\n".join(lines)


def file_name(machine: dict[str, Any]) -> str:
    """Of a machine's results: intel-xeon-2-80ghz-2-cores.json, say."""
    plain = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b", " ", machine["processor"].lower())
    return f"{'-'.join(re.findall('[a-z0-9]+', plain))}-{machine['cores']}-cores.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aims", description=__doc__)
    parser.add_argument("--part", action="append", choices=(*PARTS, "side_by_side", "ratios"), help="only this; with --store, the rest stays as it was stored")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=6, help="of each run (default 6)")
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/MACHINE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also a picture (needs matplotlib)")
    arguments = parser.parse_args()
    asked = arguments.part or [*PARTS, "side_by_side", "ratios"]
    results = bench.run(tuple(part for part in PARTS if part in asked), Config(), arguments.seconds, 0)
    path = check.RESULTS / file_name(results["machine"])
    if arguments.part and path.exists():
        results = json.loads(path.read_text()) | results
    if "side_by_side" in asked:
        results["side_by_side"] = side_by_side.measure(arguments.seconds, side_by_side.san_network())
    if "ratios" in asked:
        results["ratios"] = check.ratios(2 * arguments.seconds)
    print(bench.text(results))
    if "side_by_side" in results:
        print(f"\n{side_by_side.text(results['side_by_side'])}")
    if {*PARTS, "side_by_side"} <= results.keys():
        print(f"\n{text(results)}")
    if arguments.store:
        path.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        bench.plot([results], arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
