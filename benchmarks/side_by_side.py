"""edgesan beside what else could stand in its place, in one run on one clip: `python -m benchmarks.side_by_side`.

First whole pipelines, frame in, frame out: edgesan; deface (left out where it is not installed: `pip install --no-deps
deface==1.5.0 scikit-image lazy-loader imageio imageio-ffmpeg`); and the same detector with pixelation or a Gaussian
blur, as one would write it with OpenCV. They run in turn, a few frames each, so that a busy moment of the machine hits
all of them. edgesan does not encode each face in each frame, so each turn has the frames from one code of a face to its
next.

Then networks alone, per face: ours, its float twin, a U-Net of the shape of Bertran et al. in float, and SAN (`--san`).
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from benchmarks import network
from edgesan import bench, faces, ort
from edgesan.config import DEMO_MODEL, Config
from edgesan.frames import Pixels
from edgesan.model.load import load_model

SIZES: Final = ((480, 270), (1280, 720))
FACES: Final = 3
WIDTHS: Final = (16, 32, 64, 128, 256)


def in_turn(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median ms of each call; one call of each follows the other, so that a busy moment hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[next(iter(calls))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[1:])) * 1e3 for name, values in taken.items()}


def period(config: Config) -> int:
    """Return the frames from one code of a track to its next: as most encode no face, only so many show the average."""
    return max(1, round(config.refresh * bench.RATE))


def by_hand(how: Callable[[Pixels], Pixels]) -> Callable[[Pixels], Pixels]:
    """Return a pipeline of the same detector, and `how` for each box."""
    detector = faces.Detector(320)

    def call(pixels: Pixels) -> Pixels:
        canvas = pixels.copy()
        for face in detector(pixels):
            x, y, w, h = face.box.astype(int)
            box = canvas[max(0, y) : y + h, max(0, x) : x + w]
            box[:] = how(box)
        return canvas

    return call


def pixelate(box: Pixels) -> Pixels:
    """Reduce a face to 8x8 squares."""
    small = cv2.resize(box, (8, 8), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, box.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def blur(box: Pixels) -> Pixels:
    """Blur a face by a Gaussian of an eighth of its height."""
    return np.asarray(cv2.GaussianBlur(box, (0, 0), max(1, box.shape[0] / 8)), np.uint8)


def deface_pipeline() -> Callable[[Pixels], object]:
    """Return deface's pipeline, with its own defaults."""
    from deface.centerface import CenterFace  # type: ignore[import-not-found]
    from deface.deface import anonymize_frame  # type: ignore[import-not-found]

    centerface = CenterFace(backend="onnxrt", override_execution_provider="CPUExecutionProvider")

    def call(pixels: Pixels) -> object:
        canvas = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        found, _ = centerface(canvas, threshold=0.2)
        anonymize_frame(found, canvas, 1.3, "blur", True, False, None, 20)
        return canvas

    return call


def unet() -> bytes:
    """Return a U-Net of 128x128 gray: widths 16 to 256, two 3x3 convolutions a level, skips.

    Its weights are random, as only its time is measured.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    rng = np.random.default_rng(0)

    def conv(x: str, ins: int, outs: int) -> str:
        name = f"c{len(weights)}"
        weights.append(numpy_helper.from_array(rng.normal(0, 0.05, (outs, ins, 3, 3)).astype(np.float32), f"{name}_w"))
        nodes.append(helper.make_node("Conv", [x, f"{name}_w"], [name], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [name], [f"{name}_r"]))
        return f"{name}_r"

    x, before = "face", 1
    skips: list[str] = []
    for level, width in enumerate(WIDTHS):
        if level:
            nodes.append(helper.make_node("MaxPool", [x], [f"p{level}"], kernel_shape=[2, 2], strides=[2, 2]))
            x = f"p{level}"
        x = conv(conv(x, before, width), width, width)
        skips.append(x)
        before = width
    weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"))
    for level, width in reversed(list(enumerate(WIDTHS[:-1]))):
        nodes.append(helper.make_node("Resize", [x, "", "twice"], [f"u{level}"], mode="nearest"))
        up = conv(f"u{level}", before, width)
        nodes.append(helper.make_node("Concat", [up, skips[level]], [f"j{level}"], axis=1))
        x = conv(conv(f"j{level}", 2 * width, width), width, width)
        before = width
    last = conv(x, before, 1)
    shape: list[str | int | None] = ["N", 1, 128, 128]
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, shape)
    painted = helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "unet", [face], [painted], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(proto.SerializeToString())


def any_network(content: bytes) -> Callable[[], object]:
    """Return a call of any network on one face, one thread."""
    session = ort.session(content, 1)
    inputs: dict[str, NDArray[Any]] = {}
    for given in session.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in given.shape]
        inputs[given.name] = np.full(shape, 0.5, np.float32)
    return lambda: session.run(None, inputs)


def repeated(call: Callable[[Pixels], object], pixels: Pixels, times: int) -> Callable[[], object]:
    """Return a call of so many calls."""
    return lambda: [call(pixels) for _ in range(times)]


def measure(seconds: float, san: Path | None = None) -> dict[str, dict[str, float]]:
    """Return the median ms by what is compared (a picture's size, or "network, one face") and by contestant.

    Args:
        seconds: for each contestant.
        san: SAN's network, an ONNX file; left out where there is none.
    """
    cv2.setNumThreads(1)
    pipelines: dict[str, Callable[[Pixels], object]] = {
        "edgesan": bench.pipeline(load_model(DEMO_MODEL), Config()),
        "same detector, pixelated": by_hand(pixelate),
        "same detector, blurred": by_hand(blur),
    }
    if importlib.util.find_spec("deface"):
        pipelines["deface 1.5.0"] = deface_pipeline()
    figures: dict[str, dict[str, float]] = {}
    frames = period(Config())
    for size in tqdm(SIZES, desc="side by side", leave=False):
        clip = bench.Clip(size, FACES)
        pixels = bench.draw(clip)[0]
        calls = {name: repeated(call, pixels, frames) for name, call in pipelines.items()}
        taken = in_turn(calls, seconds * len(calls))
        figures[clip.name] = {name: ms / frames for name, ms in taken.items()}
    content = DEMO_MODEL.read_bytes()
    twin = network.unquantized(onnx.load_model_from_string(content)).SerializeToString()
    alone: dict[str, Callable[[], object]] = {
        "edgesan, int8": network.feed(ort.session(content, 1), 1),
        "edgesan, float": network.feed(ort.session(twin, 1), 1),
        "U-Net, float": any_network(unet()),
    }
    if san is not None and san.exists():
        alone["SAN, float"] = any_network(san.read_bytes())
    figures["network, one face"] = in_turn(alone, seconds * len(alone))
    return figures


def text(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return the tables, in Markdown."""
    lines = [f"side by side, {FACES} faces; medians"]
    for where, row in figures.items():
        lines += ["", f"| {where} | ms | a second | against edgesan |", "|---|---|---|---|"]
        first = next(iter(row.values()))
        lines += [f"| {name} | {ms:.2f} | {1e3 / ms:.1f} | {ms / first:.2f}x |" for name, ms in row.items()]
    lines += ["", f"the U-Net has {network.cost(onnx.load_model_from_string(unet()))[0] / 1e6:.0f} MMAC a face"]
    return "\n".join(lines)


def san_network() -> Path:
    """Return where SAN's network lies, if it is here."""
    return Path(os.environ.get("EDGESAN_NETWORKS", "/nowhere")) / "san_celeba.onnx"


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each contestant and size (default 10)")
    parser.add_argument("--san", type=Path, default=san_network(), help="SAN's network")
    arguments = parser.parse_args()
    machine, figures = bench.machine(), measure(arguments.seconds, arguments.san)
    print(f"{machine.processor}, {machine.cores} cores, onnxruntime {machine.onnxruntime}; {text(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
