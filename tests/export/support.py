"""Shared by the tests of `export`: small frozen networks, a small recipe, and a training of it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import data, recipe
from export.networks import Sanitizer, Unet
from export.recipe import Recipe
from export.training.loop import Options, train

CONTRACT = """
[{name}]
file = "{name}.onnx"
output = "{output}"
{classes}
box = [0, 0, 112, 112]
size = 112
order = "RGB"
mean = [127.5, 127.5, 127.5]
scale = [127.5, 127.5, 127.5]
"""
RECIPE = """
utility = "embedder"
views = 2
code = 4
attackers = [16]
people_min = 2
distill_steps = {steps}
privatize_steps = {steps}
decode_steps = {steps}
distill_batch = 8
privatize_batch = 8
decode_batch = 8
warmup_steps = 1
alpha_default = 0.5
evaluate_every = 100
"""


def small_recipe(folder: Path, steps: int = 1, more: str = "", **values: object) -> Recipe:
    """Write a small recipe to a folder, and read it.

    Args:
        folder: where the file `small.toml` is written.
        steps: of each stage.
        more: lines of TOML behind it.
        values: numbers, for keys that the recipe has.
    """
    lines = RECIPE.format(steps=steps).splitlines()
    for key, value in values.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[at] = f"{key} = {value}"
    (folder / "small.toml").write_text("\n".join([*lines, more]))
    return recipe.read(folder / "small.toml")


def small_training(r: Recipe, faces: data.Faces, networks: Path, out: Path, cache: Path) -> Sanitizer | Unet:
    """Train, with targets that all tests share."""
    return train(r, faces, Options(networks, out, cache=cache))


def write_network(path: Path, output: str, width: int, seed: int, softmax: bool) -> None:
    """Write a real, small, frozen ONNX network: convolution, activation, pooling, a linear layer."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(0, 0.2, (8, 3, 3, 3)),
        "b1": random.normal(0, 0.1, 8),
        "slope": np.full((8, 1, 1), 0.25),
        "w2": random.normal(0, 0.4, (width, 8 * 49)),
        "b2": np.zeros(width),
    }
    last = "logits" if softmax else output
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c"], strides=[2, 2], pads=[1, 1, 0, 0], kernel_shape=[3, 3]),
        helper.make_node("PRelu", ["c", "slope"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], [last], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], [output], axis=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
