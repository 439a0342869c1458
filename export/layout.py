"""The layout of a model file's graph: rewrites that keep the function, and make its code the one way to the output."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesan.message import MOST_CODE
from export.errors import ExportError


def lay_out(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Lay a quantized model out as the model file holds it: only the code leads from the face to the output.

    Returns:
        The model, and K, the width of its code in bytes.

    Raises:
        ExportError: no tensor can be the code.
    """
    proto, width = name_code(free_batch(proto))
    shorten_names(proto.graph)
    return proto, width


def shorten_names(graph: onnx.GraphProto) -> None:
    """Give all inner tensors short names: those of the exporter take a twentieth of the file."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": "", "code": "code"}

    def short(name: str) -> str:
        return str(names.setdefault(name, f"t{len(names)}"))

    for node in graph.node:
        node.name = ""
        node.input[:], node.output[:] = [short(n) for n in node.input], [short(n) for n in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    del graph.value_info[:]


def free_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same function with -1 for the number of faces in its reshapes, where it asked the face for its shape.

    That shape would be a path from the face to the output around the code, and the runtime refuses every such path.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    graph = fixed.graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    stored |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    for node in graph.node:
        shape = made.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat" or shape.input[0] in stored:
            continue
        lengths = [-1, *(int(stored[name].item()) for name in shape.input[1:])]
        node.input[1] = f"{node.output[0]}_to"
        graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), node.input[1]))
    return without_dead_nodes(fixed)


def without_dead_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the nodes and weights that no output needs; return the model."""
    graph, needed = proto.graph, {value.name for value in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.insert(0, node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    return proto


def name_code(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Name the code: a tensor `code` [N, K] of 8 bits, the narrowest one that lies on every path from face to output.

    Returns:
        The model, and K.

    Raises:
        ExportError: there is none of at most 128 numbers.
    """
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    sizes = {v.name: math.prod(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in inferred.value_info}
    producers = {name: node for node in graph.node for name in node.output}
    quantized = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    places = [
        (sizes[name], name)
        for name in quantized
        if 1 <= sizes.get(name, 0) <= MOST_CODE and _on_every_path(producers, name)
    ]
    if not places:
        raise ExportError(
            f"no 8-bit tensor of at most {MOST_CODE} numbers lies on every path from the face to the output"
        )
    width, place = min(places)
    at = next(i for i, node in enumerate(graph.node) if place in node.output)
    for node in graph.node:
        node.input[:] = [f"{place}_wide" if name == place else name for name in node.input]
    shape = [d.dim_value for d in next(v for v in inferred.value_info if v.name == place).type.tensor_type.shape.dim]
    for name, lengths in (("code_to", [-1, width]), (f"{place}_to", [-1, *shape[1:]])):
        graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), name))
    graph.node.insert(at + 1, helper.make_node("Reshape", [place, "code_to"], ["code"]))
    graph.node.insert(at + 2, helper.make_node("Reshape", ["code", f"{place}_to"], [f"{place}_wide"]))
    return proto, width


def _on_every_path(producers: dict[str, onnx.NodeProto], place: str) -> bool:
    """Return whether no path leads from face or noise to the output around the tensor `place`."""
    waiting, seen = ["sanitized"], {place}
    while waiting:
        name = waiting.pop()
        if name in ("face", "noise"):
            return False
        if name not in seen:
            seen.add(name)
            waiting += producers[name].input if name in producers else []
    return True


def split_transposes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same function with each Transpose of 5 or more axes as swaps of two neighbouring blocks of axes.

    onnxruntime moves whole blocks for such a swap, and single elements for any other transpose. The two transposes that
    cut a face into 4x4 pixels a channel, and put it together again, took a quarter of the network's time. Only a
    transpose of a constant shape is split; its first axis counts the faces, and stays the first.
    """
    quick = onnx.ModelProto()
    quick.CopyFrom(proto)
    graph = quick.graph
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer if t.data_type == TensorProto.INT64}
    shapes = {n.output[0]: stored[n.input[1]] for n in graph.node if n.op_type == "Reshape" and n.input[1] in stored}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
        lengths = shapes.get(node.input[0], []) if node.op_type == "Transpose" else []
        if len(order) < 5 or len(lengths) != len(order) or order[0] or min(lengths[1:]) < 1:
            nodes.append(node)
            continue
        name, lengths = node.input[0], [-1, *lengths[1:]]
        for number, (first, second, end) in enumerate(swaps(order)):
            a, b, inner = (math.prod(lengths[i:j]) for i, j in ((first, second), (second, end), (end, None)))
            result = f"{node.output[0]}_{number}"
            nodes.append(_reshape(graph, [-1, a, b, inner], name, f"{result}_of"))
            nodes.append(helper.make_node("Transpose", [f"{result}_of"], [result], perm=[0, 2, 1, 3]))
            name = result
            lengths[first:end] = lengths[second:end] + lengths[first:second]
        nodes.append(_reshape(graph, lengths, name, node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)
    return quick


def _reshape(graph: onnx.GraphProto, shape: list[int], source: str, result: str) -> onnx.NodeProto:
    """Store the shape in the graph, and return the node that takes it."""
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{result}_to"))
    return helper.make_node("Reshape", [source, f"{result}_to"], [result])


def swaps(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the swaps that bring the axes 0, 1, 2... into an order: (i, j, k) swaps the blocks i..j-1 and j..k-1.

    The swaps of the inverse, reversed, do the same; the shorter list is returned.
    """
    back = [(i, i + k - j, k) for i, j, k in reversed(_swaps(np.argsort(order).tolist()))]
    return min(_swaps(order), back, key=len)


def _swaps(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """Fill the places from first to last; each swap brings the right axis, with those that follow it in the order."""
    now, found = sorted(order), []
    for i, axis in enumerate(order):
        j = now.index(axis)
        k = j + 1
        while k < len(now) and now[k] == order[i + k - j]:
            k += 1
        if j > i:
            found.append((i, j, k))
            now[i:k] = now[j:k] + now[i:j]
    return found
