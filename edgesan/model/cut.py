"""Cut a model's graph in two at its code, and bound what the two halves can cost.

    face, noise, alpha -> encoder -> code -> decoder (and alpha) -> sanitized

The cut is safe by reachability. If a path from the face or the noise to the output went around the code, the output
could hold more of the face than the code does, up to the raw face itself. Such a graph is refused, and so is one whose
code is wider than 128 bytes. What the decoder paints of a face then depends on these bytes alone (data processing
inequality; Cover and Thomas, "Elements of Information Theory", 2.8).

Costs are bounded before ONNX Runtime sees the graph. The shape of every tensor must follow from the number of faces
alone, and so do the memory and the multiplications. They are also bounded for as many faces as a frame can have,
although `edgesan.model.load` runs a network for one face at a time.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, helper, shape_inference

from edgesan.errors import ModelError
from edgesan.message import MOST_CODE, MOST_FACES
from edgesan.model.graph import BYTES, MOST_DIMENSIONS, MOST_LENGTHS, check_shapes

MOST_MULTIPLICATIONS: Final = 2 * 10**9  # for one face
# For one face: all tensors, as if none were ever freed, and the scratch space of the operator that needs most of it.
MOST_TENSOR_BYTES: Final = 64 * 2**20
# What onnx's C++ code throws for a graph that is wrong, as pybind11 translates it.
INFERENCE_ERRORS: Final = (shape_inference.InferenceError, RuntimeError, ValueError, IndexError, MemoryError)
CODE_TYPES: Final = (TensorProto.UINT8, TensorProto.INT8)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Halves:
    """The two graphs, each a complete model, and the code between them."""

    encoder: onnx.ModelProto
    decoder: onnx.ModelProto
    code_bytes: int
    code_type: int  # of onnx.TensorProto: UINT8 or INT8


def cut(path: Path, proto: onnx.ModelProto, code: str, width: int) -> Halves:
    """Check that no path from a face goes around the code, and cut there.

    Args:
        path: the model's file, for messages.
        proto: a model that `edgesan.model.graph.check_graph` has passed.
        code: the name of the inner tensor.
        width: the bytes of a code according to the metadata.

    Raises:
        ModelError: there is no such tensor, a path goes around it, it is not [N, width] of 8-bit numbers, or the model
            costs too much.
    """
    graph = proto.graph
    if not 1 <= width <= MOST_CODE:
        raise ModelError(f"{path}: the code has {width} numbers a face; a sanitizer's has 1..{MOST_CODE}")
    made = {name: node for node in graph.node for name in node.output if name}
    if code not in made:
        raise ModelError(
            f"{path}: no node makes the tensor {code!r}, which its metadata names as the code; export it again"
        )
    around = _reached(made, "sanitized", without=code)
    if leaks := sorted(around & {"face", "noise"}):
        raise ModelError(
            f"{path} is not a sanitizer: a path leads from {' and '.join(leaks)} to its output around the code"
            f" {code!r}, so that the raw face could pass; every path must lead through the code"
        )
    if "face" not in _reached(made, code):
        raise ModelError(f"{path} is not a sanitizer: its code does not depend on the face")
    if code not in _reached(made, "sanitized"):
        raise ModelError(f"{path} is not a sanitizer: its output does not depend on the code")
    kind = _costs(path, proto, code, width)
    description = helper.make_tensor_value_info(code, kind, ["N", width])
    inputs = {value.name: value for value in graph.input}
    encoder = _part(proto, made, [description], [v for n, v in inputs.items() if n in ("face", "noise", "alpha")])
    rest = [inputs["alpha"]] if "alpha" in around else []
    decoder = _part(proto, made, [v for v in graph.output if v.name == "sanitized"], [description, *rest])
    return Halves(encoder, decoder, width, kind)


def _reached(made: dict[str, onnx.NodeProto], target: str, without: str = "") -> set[str]:
    """Return all tensors that a target depends on, itself included, but not through `without`."""
    reached, waiting = set(), [target]
    while waiting:
        name = waiting.pop()
        if not name or name in reached or name == without:
            continue
        reached.add(name)
        if name in made:
            waiting += made[name].input
    return reached


def _part(
    proto: onnx.ModelProto,
    made: dict[str, onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    inputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return the part of a model between inputs and outputs, with its nodes in their order."""
    given = {value.name for value in inputs}
    needed, waiting = set(), [value.name for value in outputs]
    while waiting:
        name = waiting.pop()
        if name and name not in needed:
            needed.add(name)
            if name in made and name not in given:
                waiting += made[name].input
    nodes = [node for node in proto.graph.node if needed & set(node.output) and not given & set(node.output)]
    weights = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    used = [value for value in inputs if value.name in needed]
    graph = helper.make_graph(nodes, "half", used, outputs, weights)
    part = helper.make_model(graph, opset_imports=list(proto.opset_import))
    part.ir_version = proto.ir_version
    return part


# --- what it costs ----------------------------------------------------------------------------------------------------


def _costs(path: Path, proto: onnx.ModelProto, code: str, width: int) -> int:
    """Bound memory and work for one face and for MOST_FACES, and return the element type of the code.

    Raises:
        ModelError: a shape depends on more than the number of faces, the costs are too high, or the code or the output
            has another shape.
    """
    check_shapes(path, proto.graph)
    skeleton, constants = _skeleton(proto)
    kind = 0
    for faces in (1, MOST_FACES):  # all else in a shape is constant, so numbers in between cost no more
        shapes = _shapes(path, skeleton, faces) | constants
        kind, shape = shapes[code]
        if kind not in CODE_TYPES or shape != (faces, width):
            name = TensorProto.DataType.Name(kind)
            raise ModelError(
                f"{path}: the code {code!r} is {name} {list(shape)} for {faces} faces; expected UINT8 or INT8"
                f" [{faces}, {width}]"
            )
        if shapes["sanitized"] != shapes["face"]:
            raise ModelError(
                f"{path} is not a sanitizer: for faces {list(shapes['face'][1])} its output is"
                f" {list(shapes['sanitized'][1])}; expected one picture of the same size for each face"
            )
        tensors = sum(BYTES.get(kind, 8) * math.prod(shape) for kind, shape in shapes.values())
        work = scratch = 0
        for node in proto.graph.node:
            products, elements = _work(node, shapes)
            work, scratch = work + products, max(scratch, 4 * elements)  # operators run one by one
        if tensors + scratch > faces * MOST_TENSOR_BYTES or work > faces * MOST_MULTIPLICATIONS:
            raise ModelError(
                f"{path} needs up to {(tensors + scratch) / 2**20:,.0f} MiB and {work / 1e9:,.1f} billion"
                f" multiplications for {faces} faces; at most {MOST_TENSOR_BYTES >> 20} MiB and"
                f" {MOST_MULTIPLICATIONS / 1e9:g} billion a face: make it smaller"
            )
    return kind


def _skeleton(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[int, Shape]]]:
    """Return the graph with large weights as inputs, so that shape inference copies none, and all weights' shapes.

    The shapes that the file states for inner tensors and for the output are left out: they are inferred, not believed.
    """
    weights = proto.graph.initializer
    constants = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in weights}
    small = [tensor for tensor in weights if math.prod(tensor.dims) <= MOST_LENGTHS]  # inference reads these
    large = [(name, *of) for name, of in constants.items() if math.prod(of[1]) > MOST_LENGTHS]
    inputs = [*proto.graph.input, *(helper.make_tensor_value_info(*of) for of in large)]
    output = helper.make_tensor_value_info("sanitized", TensorProto.UINT8, None)
    graph = helper.make_graph(proto.graph.node, "skeleton", inputs, [output], small)
    skeleton = helper.make_model(graph, opset_imports=proto.opset_import)
    skeleton.ir_version = proto.ir_version
    return skeleton, constants


def _shapes(path: Path, skeleton: onnx.ModelProto, faces: int) -> dict[str, tuple[int, Shape]]:
    """Return the element types and shapes of all tensors for a number of faces."""
    for value in skeleton.graph.input:
        if value.name in ("face", "noise", "alpha"):
            value.type.tensor_type.shape.dim[0].dim_value = faces
    try:
        inferred = shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True).graph
    except INFERENCE_ERRORS as error:
        raise ModelError(
            f"{path}: its shapes do not fit together for {faces} faces ({str(error)[:300]!r}); export it again"
        ) from error
    shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        if kind.HasField("shape") and min(dims, default=0) >= 0:
            shapes[value.name] = (kind.elem_type, dims)
    for node in skeleton.graph.node:
        least = 0 if node.op_type == "Constant" else 1
        for name in filter(None, node.output):
            kind, shape = shapes.get(name, (0, ()))
            if kind not in BYTES or min(shape, default=1) < least or len(shape) > MOST_DIMENSIONS:
                raise ModelError(
                    f"{path}: the type or the shape of the tensor {name!r} does not follow from the number of faces,"
                    f" or it is empty for {faces} of them, so its cost is not known; export it again"
                )
    return shapes


def _work(node: onnx.NodeProto, shapes: dict[str, tuple[int, Shape]]) -> tuple[int, int]:
    """Return upper bounds of a node's multiplications, and of the elements that it may copy (im2col)."""

    def shape(name: str) -> Shape:
        return shapes[name][1] if name in shapes else (0,)

    made = sum(math.prod(shape(name)) for name in node.output)
    taken = sum(math.prod(shape(name)) for name in node.input)
    kernel = math.prod(next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), (1,)))
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose"):
        weight = shape(node.input[3 if node.op_type == "QLinearConv" else 1])
        window = math.prod(weight[1:])  # of one output; of a transposed convolution: of one input
        if node.op_type == "ConvTranspose":
            count = math.prod(shape(node.input[0]))
            return count * window, count * window
        return made * window, made * window // max(1, weight[0] if weight else 1)
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        first = shape(node.input[0])
        return made * (first[0 if transposed else -1] if first else 1), taken
    return made * kernel * len(node.input) + taken, 0
