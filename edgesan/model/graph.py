"""What the graph of a model may contain. Everything else is refused before ONNX Runtime sees it.

ONNX Runtime is C++ that trusts its models: it accepts a stride of zero, or an operator that reads a file or an address.
So this module lists what is known to be plain arithmetic, not what is known to be bad.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from edgesan.errors import ModelError

MOST_PARTS: Final = 2000  # nodes, or tensors: ONNX Runtime takes 4 s to prepare so many
MOST_NAMES: Final = 10 * MOST_PARTS  # inputs and outputs of all nodes together
MOST_DIMENSIONS: Final = 8
MOST_LENGTHS: Final = 64  # numbers in a constant that is a shape
MOST_NUMBER: Final = 65536  # largest integer in an attribute
LEAST_OPSET: Final = 11
DOMAINS: Final = frozenset({"", "ai.onnx"})
RANDOM_OPERATORS: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_OPERATORS: Final = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvInteger ConvTranspose Cos DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Expand
    Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log MatMul
    MatMulInteger Max MaxPool Mean Min Mish Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
"""
OPERATORS: Final = frozenset(_OPERATORS.split())
# Operators whose output has a shape that an input names. All inputs but the first must be constants.
_SHAPED: Final = """
    Expand Pad ReduceMax ReduceMean ReduceMin ReduceSum Reshape Resize Slice Split Squeeze Tile Unsqueeze
"""
SHAPED: Final = frozenset(_SHAPED.split())
NUMBERS: Final = frozenset({AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.FLOATS, AttributeProto.INTS})
ATTRIBUTES: Final = NUMBERS | {AttributeProto.STRING, AttributeProto.TENSOR}
FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
# Operators whose output is not a float although their input is one. Cast and constants state their type.
_TO_INTEGERS: Final = """
    And ArgMax ArgMin ConvInteger DynamicQuantizeLinear Equal Greater GreaterOrEqual Less LessOrEqual MatMulInteger
    Not Or QLinearConv QLinearMatMul QuantizeLinear Shape
"""
TO_INTEGERS: Final = frozenset(_TO_INTEGERS.split())
FROM_ONE: Final = frozenset({"blocksize", "dilations", "group", "kernel_shape", "num_groups", "num_outputs", "strides"})
BYTES: Final[dict[int, int]] = {  # size of one element
    TensorProto.BOOL: 1,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
    TensorProto.FLOAT16: 2,
    TensorProto.FLOAT: 4,
    TensorProto.INT32: 4,
    TensorProto.UINT32: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.INT64: 8,
}
TYPED: Final[dict[int, str]] = {  # field of a tensor's numbers if they are not raw; int32_data for other types
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
}


def check_graph(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a model that is not one plain graph of known operators with all its weights inside.

    Raises:
        ModelError: says what is wrong.
    """
    graph = proto.graph
    if not graph.node:
        raise ModelError(f"{path} is not an ONNX file, or has an empty graph; download it again")
    if len(graph.node) > MOST_PARTS or len(graph.initializer) > MOST_PARTS:
        raise ModelError(
            f"{path} has {len(graph.node)} nodes and {len(graph.initializer)} tensors; at most {MOST_PARTS:,}"
        )
    if sum(len(node.input) + len(node.output) for node in graph.node) > MOST_NAMES:
        raise ModelError(f"{path} has nodes with more than {MOST_NAMES:,} inputs and outputs; make it smaller")
    if len(proto.functions) or len(proto.training_info):
        raise ModelError(f"{path} holds functions or training information; a sanitizer is one plain graph")
    if not all(isinstance(text, str) for text in _names(proto)):  # protobuf returns bytes for what is not UTF-8
        raise ModelError(f"{path} holds a name that is not text: it is damaged; download it again")
    opsets = [opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")]
    if len(opsets) != 1 or opsets[0] < LEAST_OPSET:
        raise ModelError(
            f"{path} uses ONNX opset {opsets}; a sanitizer uses one, from {LEAST_OPSET} on: export it again"
        )
    if len(graph.sparse_initializer):
        raise ModelError(f"{path} holds sparse tensors; a sanitizer holds plain ones: export it again")
    for tensor in graph.initializer:
        _check_tensor(path, tensor)
    for node in graph.node:
        _check_node(path, node)
    _check_names(path, graph)
    _check_divisions(path, graph)


def _check_names(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse one name for two tensors: programs differ about which of the two is meant."""
    seen: set[str] = set()
    given = [value.name for value in (*graph.input, *graph.initializer)]
    for name in (*given, *(name for node in graph.node for name in node.output if name)):
        if name in seen:
            raise ModelError(f"{path} makes the tensor {name!r} twice; export it again")
        seen.add(name)


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Return all constants of the file, by name."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output and len(node.attribute) == 1:
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, TensorProto):
                constants[node.output[0]] = numpy_helper.to_array(value)
            elif node.attribute[0].type in NUMBERS:
                constants[node.output[0]] = np.array(value)
    return constants


def check_shapes(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse shapes that are computed when the model runs: they could become large for some face or number of faces.

    Args:
        path: the model's file, for messages.
        graph: a graph that `check_graph` has passed.

    Raises:
        ModelError: says which shape.
    """
    constants = _constants(graph)
    for node in graph.node:
        at = 0 if node.op_type == "ConstantOfShape" else 1 if node.op_type in SHAPED else len(node.input)
        for name in filter(None, node.input[at:]):
            if name not in constants:
                raise ModelError(
                    f"{path}: {name} of a {node.op_type} is computed when the model runs, so its cost"
                    " is not known; shapes must be constants, with -1 for the number of faces"
                )
            numbers = constants[name].reshape(-1).astype(float)
            if node.op_type == "Slice":  # "to the last one" is written as 2^63 - 1
                numbers = numbers[np.abs(numbers) < 2**62]
            if len(numbers) > MOST_LENGTHS or not (np.abs(numbers) <= MOST_NUMBER).all():
                raise ModelError(
                    f"{path}: {name} of a {node.op_type} holds numbers that are out of range; export it again"
                )


def _check_divisions(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse divisions of integers, except by constants of at least 1: -2^63 / -1 kills the process (SIGFPE)."""
    constants = _constants(graph)
    floats = {v.name for v in graph.input if v.type.tensor_type.elem_type in FLOATS}
    floats |= {name for name, array in constants.items() if array.dtype.kind == "f"}
    for node in graph.node:
        made = node.output[0] if node.output else ""
        first = node.input[1 if node.op_type == "Where" and len(node.input) > 1 else 0] if node.input else ""
        if node.op_type == "Cast":
            is_float = any(a.name == "to" and a.i in FLOATS for a in node.attribute)
        elif node.op_type == "ConstantOfShape":
            is_float = all(a.t.data_type in FLOATS for a in node.attribute)
        elif node.op_type == "Constant":
            is_float = made in floats
        else:
            is_float = node.op_type == "DequantizeLinear" or (first in floats and node.op_type not in TO_INTEGERS)
        if is_float:
            floats.update(node.output if node.op_type == "Split" else [made])
        elif node.op_type == "Div":
            divisor = constants.get(node.input[1]) if len(node.input) > 1 else None
            if divisor is None or not (divisor >= 1).all():
                raise ModelError(
                    f"{path} divides integers by a number that may be zero or less; divide floats, or divide by"
                    " constants"
                )


def _names(proto: onnx.ModelProto) -> Iterator[object]:
    """Yield every text that later checks read."""
    for entry in proto.metadata_props:
        yield from (entry.key, entry.value)
    yield from (opset.domain for opset in proto.opset_import)
    for tensor in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        yield tensor.name
    for node in proto.graph.node:
        yield from (node.domain, node.op_type, *node.input, *node.output, *(a.name for a in node.attribute))


def _check_node(path: Path, node: onnx.NodeProto) -> None:
    if node.domain not in DOMAINS:
        raise ModelError(f"{path} needs the custom operator {node.domain}:{node.op_type}; only ONNX's own are allowed")
    if node.op_type in RANDOM_OPERATORS:
        raise ModelError(f"{path} draws its own randomness ({node.op_type}); noise must come from the noise input")
    if not any(node.output) or len({a.name for a in node.attribute}) < len(node.attribute):
        raise ModelError(f"{path}: a {node.op_type} has no output, or has an attribute twice; export it again")
    for a in node.attribute:
        if a.HasField("g") or a.graphs:
            raise ModelError(f"{path} holds a nested graph ({node.op_type}); a sanitizer is one plain graph")
        if a.HasField("t"):
            _check_tensor(path, a.t)
        numbers = (a.i, *a.ints)
        odd = (
            a.type not in ATTRIBUTES or a.ref_attr_name or a.tensors or a.HasField("sparse_tensor") or a.sparse_tensors
        )
        low = 1 if a.name in FROM_ONE and a.type in (AttributeProto.INT, AttributeProto.INTS) else -MOST_NUMBER
        given = numbers[:1] if a.type == AttributeProto.INT else numbers[1:]
        if odd or len(given) > MOST_PARTS or not all(low <= number <= MOST_NUMBER for number in given):
            raise ModelError(
                f"{path}: {a.name} of a {node.op_type} is out of range or of an unknown kind; export it again"
            )
    if node.op_type not in OPERATORS:
        raise ModelError(
            f"{path} uses the operator {node.op_type}, which is not on the list of allowed operators; export it with"
            " other ones"
        )


def _check_tensor(path: Path, tensor: TensorProto) -> None:
    if tensor.data_location or tensor.external_data:
        raise ModelError(f"{path} keeps its weights in another file; a sanitizer is one file: export it again")
    size = BYTES.get(tensor.data_type)
    if size is None:
        raise ModelError(f"{path} holds a tensor of the type {tensor.data_type}, which is not allowed; export it again")
    count = math.prod(tensor.dims)
    own = TYPED.get(tensor.data_type, "int32_data")
    names = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    typed = {name: len(getattr(tensor, name)) for name in names}
    held = len(tensor.raw_data) // size if len(tensor.raw_data) % size == 0 else -1
    if not tensor.HasField("raw_data"):
        held = typed.pop(own)
    if any(typed.values()):
        held = -1
    negative = any(d < 0 for d in tensor.dims)
    if held != count or negative or len(tensor.dims) > (MOST_DIMENSIONS if count else 1) or tensor.HasField("segment"):
        raise ModelError(
            f"{path} holds a tensor {list(tensor.dims)[:MOST_DIMENSIONS]} without just as many numbers; it is damaged,"
            " so download it again"
        )
