"""How long the network may take on a Raspberry Pi: `python -m benchmarks.projection`.

It is a PROJECTION, measured on no board: `edgesan bench` on one replaces it. There are two ways to it, from what can be
counted here:

    by multiplications   the rate at which a published network of dense 3x3 convolutions, like ours, ran on the board.
                         The check is how far the same rate misses the other published networks: those of depthwise
                         convolutions are bound by memory, and take up to three times as long
    by instructions      those of one face (`benchmarks.instructions`, AVX2: 32 bytes each), twice as many for NEON's
                         16 bytes, at 1 to 2 a cycle; with dot products, 16 multiplications an instruction
"""

import sys
from dataclasses import dataclass
from typing import Final

import onnx

from benchmarks import instructions, network
from edgesan.bench import table
from edgesan.config import DEMO_MODEL

NCNN: Final = "Tencent/ncnn, benchmark/README.md, 4 threads"
ULTRALYTICS: Final = "Ultralytics docs, guides/raspberry-pi (8.3.39), ONNX"
VISION: Final = "visionanalysis.org, ncnn-fp32-vs-onnx-fp32-rpi5, onnxruntime"


@dataclass(frozen=True)
class Point:
    """A published time. Multiplications as the networks' papers give them (half of "FLOPs")."""

    network: str
    precision: str
    gmac: float
    ms: float
    source: str

    @property
    def rate(self) -> float:
        """Multiplications a second, in billions."""
        return self.gmac / self.ms * 1e3


@dataclass(frozen=True)
class Board:
    """A board and its published times."""

    name: str
    ghz: float
    dot_products: bool
    points: tuple[Point, ...]  # the first is a network of dense convolutions, like ours; all use the whole board


PI_4: Final = (
    Point("ResNet18", "int8", 1.81, 84, NCNN),
    Point("MobileNetV1", "int8", 0.569, 34.4, NCNN),
    Point("ResNet18", "fp32", 1.81, 123, NCNN),
    Point("MobileNetV1", "fp32", 0.569, 61.2, NCNN),
    Point("MobileNetV2", "fp32", 0.300, 61.9, NCNN),
)
PI_5: Final = (
    Point("YOLO11s 640", "fp32", 10.75, 324, ULTRALYTICS),
    Point("YOLO11n 640", "fp32", 3.25, 168, ULTRALYTICS),
    Point("YOLOX-Nano 416", "fp32", 0.54, 47, VISION),
)
BOARDS: Final = (
    Board("Pi 4 (Cortex-A72)", 1.8, dot_products=False, points=PI_4),
    Board("Pi 5 (Cortex-A76)", 2.4, dot_products=True, points=PI_5),
)
PER_CYCLE: Final = (1.0, 2.0)  # instructions; both cores have two NEON pipes
DOTS: Final = 4.0  # multiplications of UDOT for one of FMLA


def by_multiplications(board: Board, gmac: float) -> tuple[float, float]:
    """Return the least and the most ms of an int8 network of so many GMAC on the whole board."""
    like = board.points[0]
    most = gmac / like.rate * 1e3
    # No int8 figure with dot products was found: from four times as fast as float, to not faster at all.
    return (most if like.precision == "int8" else most / DOTS), most


def by_instructions(board: Board, gmac: float, million: float) -> tuple[float, float]:
    """Return the least and the most ms of an int8 network on one core; `million` instructions were counted."""
    millions = 2 * million
    if board.dot_products:  # three AVX2 instructions for 32 multiplications become one for 16
        millions += gmac * 1e3 * (1 / 16 - 2 * 3 / 32)
    slow, fast = (millions / (board.ghz * rate) for rate in PER_CYCLE)
    return fast, slow


CHECK: Final = ("board", "network", "published, ms", "by the rate of", "projected, ms", "takes longer by", "source")


def check(board: Board) -> list[list[str | float]]:
    """Project each published network by the rate of the first one of its precision: the rows of a table, by CHECK."""
    rows: list[list[str | float]] = []
    for point in board.points:
        like = next(other for other in board.points if other.precision == point.precision)
        if like is not point:
            ms = point.gmac / like.rate * 1e3
            named = f"{point.network}, {point.precision}"
            longer = f"{point.ms / ms:.1f}x"
            rows.append([board.name, named, point.ms, like.network, f"{ms:.1f}", longer, point.source])
    return rows


def main() -> int:
    """Print the projection and its check."""
    macs, moved = network.cost(onnx.load(DEMO_MODEL))
    gmac = macs / 1e9
    million = instructions.load()[1]["int8, 8-bit products"]
    counted = f"{macs / 1e6:.0f} MMAC, {moved['int8'] / 1e6:.2f} MB moved, {million:g} million instructions (AVX2)"
    print(f"PROJECTION, not measured: the network alone, int8, ms a face\n\ncounted: {counted}\n")
    rows = []
    for board in BOARDS:
        whole = sorted({f"{ms:.1f}" for ms in by_multiplications(board, gmac)}, key=float)
        low, high = by_instructions(board, gmac, million)
        rows.append([f"{board.name}, {board.ghz:g} GHz", " to ".join(whole), f"{low:.0f} to {high:.0f}"])
    print(*table(("", "whole board, by multiplications", "one core, by instructions"), rows), sep="\n")
    print("\nThe check: the first network's rate, on the others of its precision\n")
    print(*table(CHECK, [row for board in BOARDS for row in check(board)]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
