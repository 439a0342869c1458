"""An ONNX graph as a differentiable torch module, with a table of operators.

The table holds the operators of the networks that the project knows; a graph with another one is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from edgesan import ort
from export.errors import NetworkError

Attributes = dict[str, Any]  # of an ONNX node, by name
Operator = Callable[..., Tensor]  # (attributes, *inputs) -> output; an input that is left out is None


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph with one output."""

    operator: str
    inputs: list[str]
    output: str
    attributes: Attributes


def read_graph(path: Path) -> onnx.GraphProto:
    """Read the graph of an ONNX file.

    Raises:
        NetworkError: it cannot be read.
    """
    try:
        return onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise NetworkError(f"{path} cannot be read as an ONNX network: {error}") from error


class FrozenOnnx(nn.Module):
    """An ONNX graph as a differentiable torch module whose weights never change."""

    def __init__(self, path: Path, outputs: Sequence[str], logits: bool = False) -> None:
        """Read a graph.

        Args:
            path: the ONNX file.
            outputs: what to compute, by name.
            logits: take an output that is a softmax before it.

        Raises:
            NetworkError: the file cannot be read, lacks an output, or holds an operator that OPERATORS lacks.
        """
        super().__init__()
        graph, self.path = read_graph(path), path
        self.weights: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}  # shapes, paddings, limits: read on the CPU, wherever the weights are
        for i, tensor in enumerate(graph.initializer):
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            if value.is_floating_point() and value.ndim:
                self.weights[tensor.name] = f"w{i}"
                self.register_buffer(f"w{i}", value)
            else:
                self.constants[tensor.name] = value
        self.outputs = [_source(path, graph, name, logits) for name in outputs]
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if unknown:
            raise NetworkError(
                f"{path} uses {', '.join(unknown)}; differentiable here are {', '.join(sorted(OPERATORS))}"
            )
        needed = set(self.outputs)
        self.nodes: list[Node] = []
        for node in reversed(graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                self.nodes.insert(0, Node(node.op_type, list(node.input), node.output[0], attributes))
        self.input = next(i.name for i in graph.input if i.name not in self.weights | self.constants)

    def session(self) -> Callable[[Tensor], list[Tensor]]:
        """Return the same function by onnxruntime: without gradients, and on a CPU in half the time."""
        model = onnx.load(self.path)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        session = ort.session(model.SerializeToString(), 2)
        return lambda x: [torch.from_numpy(y) for y in session.run(self.outputs, {self.input: x.contiguous().numpy()})]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the chosen outputs, in their order."""
        values: dict[str, Tensor | None] = {**self.constants, self.input: x, "": None}
        for node in self.nodes:
            arguments = [values[i] if i in values else getattr(self, self.weights[i]) for i in node.inputs]
            values[node.output] = OPERATORS[node.operator](node.attributes, *arguments)
        return [value for value in (values[name] for name in self.outputs) if value is not None]


def _source(path: Path, graph: onnx.GraphProto, name: str, logits: bool) -> str:
    """Return the tensor that an output is a copy of; with `logits`, the input of its softmax."""
    producers = {name: node for node in graph.node for name in node.output}
    if name not in producers:
        raise NetworkError(f"{path} has no output {name!r}; it has {', '.join(o.name for o in graph.output)}")
    while producers[name].op_type == "Identity" or (logits and producers[name].op_type == "Softmax"):
        name = producers[name].input[0]
    return name


def _pads(x: Tensor, attributes: Attributes, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Return ONNX pads (top, left, bottom, right) as torch's symmetric padding; an uneven one is applied at once."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x, padding = _pads(x, a)
    strides, groups = tuple(a.get("strides", (1, 1))), a.get("group", 1)
    dilations = tuple(a.get("dilations", (1, 1)))
    if groups > 1 and strides == (2, 2):
        # the gradient of a strided depthwise convolution takes ten times as long on a CPU as this one's
        return F.max_pool2d(F.conv2d(x, w, b, 1, padding, dilations, groups), 1, 2)
    return F.conv2d(x, w, b, strides, padding, dilations, groups)


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, padding = _pads(x, a, float("-inf"))
    return F.max_pool2d(x, tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))), padding)


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    counted = bool(a.get("count_include_pad", 0))
    return F.avg_pool2d(
        x,
        tuple(a["kernel_shape"]),
        tuple(a.get("strides", (1, 1))),
        tuple(a.get("pads", (0, 0))[:2]),
        count_include_pad=counted,
    )


def _gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    y = x @ (w.T if a.get("transB", 0) else w)
    return y if b is None else y + b


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    p = pads.tolist()
    n = len(p) // 2
    flat = [int(q) for d in reversed(range(n)) for q in (p[d], p[d + n])]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """Compute it as a sum: torch's own also computes the gradient of the slope, and takes twice as long."""
    slope = slope.to(x.dtype)
    return slope * x + (1 - slope) * F.relu(x)


def _resize(a: Attributes, x: Tensor, roi: Tensor | None, scales: Tensor) -> Tensor:
    if a.get("mode") != b"nearest":
        raise NetworkError(f"Resize is differentiable here in mode nearest only, not {a.get('mode')}")
    return F.interpolate(x, scale_factor=scales.tolist()[2:], mode="nearest")


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = (a.get("min") if low is None else float(low), a.get("max") if high is None else float(high))
    return x.clamp(*bounds)


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda a, x: x,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "MaxPool": _max_pool,
    "Min": lambda a, x, y: torch.minimum(x, y),
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": lambda a, x: x.amax(tuple(a["axes"]), bool(a.get("keepdims", 1))),
    "ReduceMean": lambda a, x, axes=None: x.mean(
        tuple(a["axes"] if axes is None else axes.tolist()), bool(a.get("keepdims", 1))
    ),
    "Relu": lambda a, x: F.relu(x),
    "Reshape": lambda a, x, shape: x.reshape(shape.tolist()),
    "Resize": _resize,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}
