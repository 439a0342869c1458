"""What the network may take on a Raspberry Pi: `python -m benchmarks.projection`. A PROJECTION, measured on no board;
`edgesan bench` on one replaces it.

Two ways, from what can be counted here:

    by multiplications   the rate at which a published network of dense 3x3 convolutions, as ours, ran on the board. How far
                         the same rate misses the other published networks tells what the projection is worth: those of
                         depthwise convolutions are bound by memory, and take up to three times as long
    by instructions      those of one face (`benchmarks.instructions`, AVX2: 32 bytes each), twice as many for NEON's 16 bytes,
                         at 1 to 2 a cycle; with dot products, 16 multiplications an instruction
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from edgesan import bench
from edgesan.config import DEMO_MODEL

INSTRUCTIONS: Final = Path(__file__).parent / "results" / "instructions.json"
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
        """GMAC/s."""
        return self.gmac / self.ms * 1e3


@dataclass(frozen=True)
class Board:
    """A board, its published points, and which of them ran a network like ours."""

    name: str
    ghz: float
    dot_products: bool
    points: tuple[Point, ...]  # the first is the network of dense convolutions; all use the whole board


BOARDS: Final = (
    Board("Pi 4 (Cortex-A72)", 1.8, False, (
        Point("ResNet18", "int8", 1.81, 84, NCNN),
        Point("MobileNetV1", "int8", 0.569, 34.4, NCNN),
        Point("ResNet18", "fp32", 1.81, 123, NCNN),
        Point("MobileNetV1", "fp32", 0.569, 61.2, NCNN),
        Point("MobileNetV2", "fp32", 0.300, 61.9, NCNN),
    )),
    Board("Pi 5 (Cortex-A76)", 2.4, True, (
        Point("YOLO11s 640", "fp32", 10.75, 324, ULTRALYTICS),
        Point("YOLO11n 640", "fp32", 3.25, 168, ULTRALYTICS),
        Point("YOLOX-Nano 416", "fp32", 0.54, 47, VISION),
    )),
)  # fmt: skip
PER_CYCLE: Final = (1.0, 2.0)  # instructions; both cores have two NEON pipes
DOTS: Final = 4.0  # multiplications of UDOT for one of FMLA


def by_multiplications(board: Board, gmac: float) -> tuple[float, float]:
    """ms, least and most, of an int8 network on the whole board."""
    like = board.points[0]
    most = gmac / like.rate * 1e3
    # No int8 figure with dot products was found: from four times as fast as float, to not faster at all.
    return (most if like.precision == "int8" else most / DOTS), most


def by_instructions(board: Board, gmac: float, million: float) -> tuple[float, float]:
    """ms, least and most, of an int8 network on one core."""
    millions = 2 * million
    if board.dot_products:  # three AVX2 instructions for 32 multiplications become one for 16
        millions += gmac * 1e3 * (1 / 16 - 2 * 3 / 32)
    slow, fast = (millions / (board.ghz * rate) for rate in PER_CYCLE)
    return fast, slow


def main() -> int:
    macs, moved = bench.cost(onnx.load(DEMO_MODEL))
    gmac = macs / 1e9
    million = json.loads(INSTRUCTIONS.read_text())["int8"]
    print("PROJECTION, not measured: the network alone, int8, ms a face\n")
    print(
        f"counted: {macs / 1e6:.0f} MMAC, {moved['int8'] / 1e6:.2f} MB moved, {million:g} million instructions (AVX2)\n"
    )
    print("| | whole board, by multiplications | one core, by instructions |\n|---|---|---|")
    for board in BOARDS:
        whole = sorted({f"{ms:.1f}" for ms in by_multiplications(board, gmac)}, key=float)
        low, high = by_instructions(board, gmac, million)
        print(f"| {board.name}, {board.ghz:g} GHz | {' to '.join(whole)} | {low:.0f} to {high:.0f} |")
    print("\nThe check: the first network's rate, on the others of its precision\n")
    print(
        "| board | network | published, ms | by the rate of | projected, ms | takes longer by | source |\n|---|---|---|---|---|---|---|"
    )
    for board in BOARDS:
        for point in board.points:
            like = next(other for other in board.points if other.precision == point.precision)
            if like is not point:
                ms = point.gmac / like.rate * 1e3
                print(f"| {board.name} | {point.network}, {point.precision} | {point.ms:g} | {like.network} | {ms:.1f} |"
                      f" {point.ms / ms:.1f}x | {point.source} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
