"""How long the network and a frame may take on a Raspberry Pi: `python -m benchmarks.projection`.

It is a PROJECTION, measured on no board: `edgesan bench` on one replaces it. There are two ways to it, from what can be
counted here, and only the second is one for the whole frame:

    by multiplications   the rate at which a published network of dense 3x3 convolutions, like ours, ran on the board.
                         The check is how far the same rate misses the other published networks: those of depthwise
                         convolutions are bound by memory, and take up to three times as long
    by instructions      those that were counted on the board's processor, emulated (`benchmarks.emulated`), at 1 to 2 a
                         cycle of one core; and the bytes between its last cache and its memory, at the rate at which
                         a published copy ran there. At the least, the memory works while the core does; at the most,
                         the core waits for each byte
"""

import sys
from dataclasses import dataclass
from typing import Final

import onnx

from benchmarks import emulated, instructions, network
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
    processor: str  # of `benchmarks.emulated`
    ghz: float
    gb_s: float  # between the last cache and the memory
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
# Bytes read and written: geerlingguy/sbc-reviews, tinymembench, "C copy", issues 110 (a Pi 4 of 1.25 GHz) and 21.
COPIED: Final = 2 * 2.777, 2 * 4.870
BOARDS: Final = (
    Board("Pi 4 (Cortex-A72)", "cortex-a72", 1.8, COPIED[0], PI_4),
    Board("Pi 5 (Cortex-A76)", "cortex-a76", 2.4, COPIED[1], PI_5),
)
PER_CYCLE: Final = (1.0, 2.0)  # instructions; both cores have two NEON pipes
DOTS: Final = 4.0  # multiplications of UDOT for one of FMLA


def by_multiplications(board: Board, gmac: float) -> tuple[float, float]:
    """Return the least and the most ms of an int8 network of so many GMAC on the whole board."""
    like = board.points[0]
    most = gmac / like.rate * 1e3
    # No int8 figure with dot products was found: from four times as fast as float, to not faster at all.
    return (most if like.precision == "int8" else most / DOTS), most


def by_instructions(board: Board, million: float, megabytes: float) -> tuple[float, float]:
    """Return the least and the most ms on one core, of so many instructions and bytes."""
    slow, fast = (million / (board.ghz * rate) for rate in PER_CYCLE)
    memory = megabytes / board.gb_s
    return max(fast, memory), slow + memory


def frame(board: Board, counts: emulated.Counts, clip: str) -> list[str]:
    """Return the ms of a frame of a clip, by FRAME: a row of a table."""
    sums = []
    for parts in FRAME.values():
        million, megabytes = (sum(counts[what][f"{part}, {clip}"] for part in parts) for what in counts)
        sums.append(between(*by_instructions(board, million, megabytes)))
    return [f"{board.name}, {clip.replace('-', ' ')}", *sums]


def between(least: float, most: float) -> str:
    """Return a range as text."""
    return f"{least:.1f} to {most:.1f}" if least < most else f"{most:.1f}"


NETWORK: Final = (
    *("", "whole board, by multiplications", "one core, by instructions"),
    *("million instructions", "MB from and to memory"),
)
FRAME: Final = {
    "until it has left": ("sanitize", "transmit"),
    "all, the process of the camera": ("sanitize", "encode"),
    "all, the process of the network": ("transmit", "decode"),
}
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
    counts = emulated.load()
    counted = f"{macs / 1e6:.0f} MMAC, {moved['int8'] / 1e6:.2f} MB moved"
    print(f"PROJECTION, not measured: the network alone, int8, ms a face, from {counted}; and what was counted there\n")
    rows = []
    for board in BOARDS:
        million, megabytes = (counts[board.processor][what]["int8"] for what in ("millions", "megabytes"))
        whole = between(*by_multiplications(board, macs / 1e9))
        one = between(*by_instructions(board, million, megabytes))
        rows.append([f"{board.name}, {board.ghz:g} GHz", whole, one, f"{million:g}", f"{megabytes:.1f}"])
    print(*table(NETWORK, rows), sep="\n")
    print("\nPROJECTION, not measured: a frame, mean ms, each process on one core, by instructions\n")
    clips = [clip for clip in instructions.CLIPS if f"sanitize, {clip}" in counts[BOARDS[0].processor]["millions"]]
    frames = [frame(board, counts[board.processor], clip) for clip in clips for board in BOARDS]
    print(*table(("", *FRAME), frames), sep="\n")
    print("\nThe check: the first network's rate, on the others of its precision\n")
    print(*table(CHECK, [row for board in BOARDS for row in check(board)]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
