"""Rewrites of a model's graph keep its function."""

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgesan.model.load import known_inputs
from export import compile as compiler
from export.layout import split_transposes, swaps
from export.networks import Sanitizer, Shape


def test_a_graph_with_split_transposes_gives_the_same_pictures(tmp_path: Path) -> None:
    """Its transposes of many axes become swaps of two blocks each, which onnxruntime moves as they are."""
    compiler.export_fp32(Sanitizer(16, Shape(code=8)).eval(), tmp_path / "fp32.onnx")
    quant_pre_process(str(tmp_path / "fp32.onnx"), str(tmp_path / "plain.onnx"), skip_symbolic_shape=True)
    plain = onnx.load(tmp_path / "plain.onnx")
    split = split_transposes(plain)
    axes = [
        [len(node.attribute[0].ints) for node in p.graph.node if node.op_type == "Transpose"] for p in (plain, split)
    ]
    assert max(axes[0]) == 6
    assert set(axes[1]) == {4}
    chips, noise = known_inputs(3, 8)
    before, after = (compiler.runner(p.SerializeToString())(chips, noise, 0.5) for p in (plain, split))
    np.testing.assert_array_equal(after, before)
    assert split_transposes(split) == split


def test_swaps_of_blocks_bring_axes_into_any_order() -> None:
    whole = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    for order in itertools.permutations(range(5)):
        shape, turned = list(whole.shape), whole
        for i, j, k in swaps(order):
            blocks = turned.reshape(math.prod(shape[:i]), math.prod(shape[i:j]), math.prod(shape[j:k]), -1)
            turned = blocks.transpose(0, 2, 1, 3)
            shape[i:k] = shape[j:k] + shape[i:j]
        np.testing.assert_array_equal(turned.reshape(shape), whole.transpose(order))
