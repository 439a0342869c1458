"""Did it become slower? `python -m benchmarks.check` (`make bench-check`).

Ratios are measured, never times: each is of two things that ran in turn in one run, so that a slow or busy machine does
not matter. Less is better for all of them. They are compared with those that are stored for this kind of machine in
`benchmarks/results`; what is worse by more than 15 % in three measurements, one after the other, fails.
"""

import argparse
import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import onnx

from benchmarks.side_by_side import by_hand, pixelate
from edgesan import bench
from edgesan.config import DEMO_MODEL, Config
from edgesan.model.load import prepare

RESULTS: Final = Path(__file__).parent / "results"
MOST_WORSE: Final = 0.15
ATTEMPTS: Final = 3
SIZE: Final = (640, 480)


def ratios(seconds: float) -> dict[str, float]:
    """The network against its float twin and against the peak; a frame whose faces are encoded against its kernels; the
    frames of a refresh, in which each face is encoded once if it can, against pixelation by hand, and with 16 faces
    against those with two.
    """
    content = DEMO_MODEL.read_bytes()
    proto = onnx.load_model_from_string(content)
    sanitizer = prepare(DEMO_MODEL, content)
    with ExitStack() as stack:
        two = bench.kernels(SIZE, sanitizer, Config(), stack)
        scenes = {count: itertools.cycle(bench.scene(SIZE, count)) for count in (2, 16)}
        ways = {count: bench.pipeline(sanitizer, Config()) for count in scenes}
        hand = by_hand(pixelate)
        period = bench.period(Config())

        def kernels() -> None:
            for stage in bench.LOOP:
                two[stage]()

        def frames(count: int) -> None:
            for _ in range(period):
                bench.jpeg(ways[count](next(scenes[count])).pixels)

        def pixelated() -> None:
            for _ in range(period):
                bench.jpeg(hand(next(scenes[2])))

        ms = bench.in_turn(
            {
                "int8": bench.feed(bench.start(content, 1), 1),
                "fp32": bench.feed(bench.start(bench.unquantized(proto).SerializeToString(), 1), 1),
                "peak": bench.product("int8", 1),
                "kernels": kernels,
                "frame": two["frame"],
                "2 faces": lambda: frames(2),
                "16 faces": lambda: frames(16),
                "pixelated": pixelated,
            },
            seconds,
        )
    peak = ms["peak"] * bench.cost(proto)[0] / bench.PEAK**3  # ms that the network would take at the peak
    return {
        "int8 against float": ms["int8"] / ms["fp32"],
        "int8 against the peak": ms["int8"] / peak,
        "frame against its kernels": ms["frame"] / ms["kernels"],
        "frames against pixelation by hand": ms["2 faces"] / ms["pixelated"],
        "work of 16 faces against two": ms["16 faces"] / ms["2 faces"],
    }


def worse(stored: dict[str, float], now: dict[str, float]) -> list[str]:
    """The ratios that are worse than the stored ones by more than MOST_WORSE; one that is missing counts as worse."""
    return [name for name, ratio in stored.items() if not now.get(name, float("inf")) <= ratio * (1 + MOST_WORSE)]


def stored_ratios(folder: Path, machine: dict[str, Any]) -> dict[str, float]:
    """The ratios of the same kind of machine: processor, cores, and the int8 products that it has.

    Raises:
        SystemExit: none is stored.
    """
    for path in sorted(folder.glob("*-cores.json")):
        result = json.loads(path.read_text())
        if all(result["machine"][key] == machine[key] for key in ("processor", "cores", "int8")) and "ratios" in result:
            ratios: dict[str, float] = result["ratios"]
            return ratios
    raise SystemExit(
        f"error: no ratios of {machine['processor']} with {machine['cores']} cores ({', '.join(machine['int8'])}) are stored"
        f" in {folder};"
        " store them with `python -m benchmarks.aims --store`, on the version to compare with"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default 20)")
    arguments = parser.parse_args()
    stored = stored_ratios(RESULTS, bench.machine())
    failed = list(stored)
    for attempt in range(ATTEMPTS):
        now = ratios(arguments.seconds)
        failed = [name for name in worse(stored, now) if name in failed]
        print(f"measurement {attempt + 1}:\n\n| ratio, less is better | stored | now | |\n|---|---|---|---|")
        for name, ratio in stored.items():
            print(f"| {name} | {ratio:.3f} | {now[name]:.3f} | {'WORSE' if name in failed else ''} |")
        print(flush=True)
        if not failed:
            return 0
    print(f"error: slower than before by more than {MOST_WORSE:.0%}: {', '.join(failed)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
