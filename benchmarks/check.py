"""Did it become slower? `python -m benchmarks.check` (`make bench-check`).

It measures ratios, never times: each compares two things that ran in turn in one run, so that a slow or busy machine
does not matter. Less is better for all of them. They are compared with the ratios that `benchmarks/results` holds for
this kind of machine. A ratio that is worse by more than 15 % in three measurements in a row fails.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import onnx

from benchmarks import network
from benchmarks.results import FOLDER, load
from benchmarks.side_by_side import by_hand, in_turn, period, pixelate
from edgesan import bench, ort
from edgesan.bench import Clip, Machine
from edgesan.config import DEMO_MODEL, Config
from edgesan.frames import Pixels
from edgesan.model.load import prepare

MOST_WORSE: Final = 0.15
ATTEMPTS: Final = 3
SIZE: Final = (640, 480)


def ratios(seconds: float) -> dict[str, float]:
    """Measure the ratios.

    The network is compared with its float twin and with the peak; a frame whose faces are encoded with its stages; the
    frames of a refresh, in which each face is encoded once if it can, with pixelation by hand; and those of 16 faces
    with those of two.
    """
    content = DEMO_MODEL.read_bytes()
    proto = onnx.load_model_from_string(content)
    model = prepare(DEMO_MODEL, content)
    with ExitStack() as stack:
        stages = bench.stage_calls(Clip(SIZE, 2), model, Config(), stack)
        two, sixteen, hand = bench.pipeline(model, Config()), bench.pipeline(model, Config()), by_hand(pixelate)

        def kernels() -> None:
            for stage in bench.STAGES:
                stages[stage]()

        calls: dict[str, Callable[[], object]] = {
            "int8": network.feed(ort.session(content, 1), 1),
            "fp32": network.feed(ort.session(network.unquantized(proto).SerializeToString(), 1), 1),
            "peak": network.product("int8", 1),
            "kernels": kernels,
            "frame": stages["frame"],
            "2 faces": _refresh(2, lambda pixels: two(pixels).pixels),
            "16 faces": _refresh(16, lambda pixels: sixteen(pixels).pixels),
            "pixelated": _refresh(2, hand),
        }
        ms = in_turn(calls, seconds)
    peak = ms["peak"] * network.cost(proto)[0] / network.PEAK**3  # ms that the network would take at the peak
    return {
        "int8 against float": ms["int8"] / ms["fp32"],
        "int8 against the peak": ms["int8"] / peak,
        "frame against its kernels": ms["frame"] / ms["kernels"],
        "frames against pixelation by hand": ms["2 faces"] / ms["pixelated"],
        "work of 16 faces against two": ms["16 faces"] / ms["2 faces"],
    }


def _refresh(faces: int, way: Callable[[Pixels], Pixels]) -> Callable[[], object]:
    """Return a call that takes the frames of a refresh from raw pixels to JPEG."""
    frames, count = itertools.cycle(bench.draw(Clip(SIZE, faces))), period(Config())

    def call() -> None:
        for _ in range(count):
            bench.jpeg(way(next(frames)))

    return call


def worse(stored: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Return the ratios that are worse than the stored ones by more than MOST_WORSE, and those that are missing."""
    return [name for name, ratio in stored.items() if not now.get(name, float("inf")) <= ratio * (1 + MOST_WORSE)]


def stored_ratios(folder: Path, machine: Machine) -> Mapping[str, float]:
    """Return the ratios of the same kind of machine: the same processor, cores, and int8 products.

    Raises:
        SystemExit: none is stored.
    """
    kind = (machine.processor, machine.cores, machine.int8)
    for path in sorted(folder.glob("*-cores.json")):
        results = load(path)
        if (results.machine.processor, results.machine.cores, results.machine.int8) == kind and results.ratios:
            return results.ratios
    raise SystemExit(
        f"error: {folder} holds no ratios of {machine.processor}, {machine.cores} cores ({', '.join(machine.int8)});"
        " store them with `python -m benchmarks.aims --store`, on the version to compare with"
    )


def main() -> int:
    """Compare the ratios with the stored ones; exit code 1 if one is worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="length of each measurement (default 20)")
    arguments = parser.parse_args()
    stored = stored_ratios(FOLDER, bench.machine())
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
