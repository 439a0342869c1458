"""The list of what a graph may hold: all else is refused before ONNX Runtime sees it."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.model.graphs import Damage, check_refused


def random_node(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("RandomNormalLike", ["noise"], ["extra"]))


def custom_node(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Phone", ["noise"], ["home"], domain="evil.example"))


def external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def nested(proto: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    proto.graph.node.append(helper.make_node("If", ["noise"], ["x"], then_branch=branch, else_branch=branch))


SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4]
)


def sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.append(SPARSE)


def sparse_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=SPARSE))


def external_attribute(proto: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def function(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Neg", ["a"], ["b"])
    proto.functions.append(helper.make_function("local", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))


def integer_division(proto: onnx.ModelProto) -> None:
    """-2^63 / -1: SIGFPE, and the process is gone."""
    proto.graph.initializer.extend(
        [
            helper.make_tensor("least", TensorProto.INT64, [1], [-(2**63)]),
            helper.make_tensor("less", TensorProto.INT64, [1], [-1]),
        ]
    )
    proto.graph.node.append(helper.make_node("Div", ["least", "less"], ["extra"]))


def no_text(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "sanitizeX"
    damaged = proto.SerializeToString().replace(b"sanitizeX", b"sanitize\xff")
    proto.ParseFromString(damaged)


def address(proto: onnx.ModelProto) -> None:
    """Memory of this process as weights, in an attribute where tensors are seldom looked for."""
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [0], [])
    tensor.external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")
    node = helper.make_node("Constant", [], ["extra"])
    node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    proto.graph.node.append(node)


def many_nodes(proto: onnx.ModelProto) -> None:
    proto.graph.node.extend(helper.make_node("Neg", ["alpha"], [f"extra{n}"]) for n in range(2000))


def hollow_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[:] = [2**40]


def stride_of_zero(proto: onnx.ModelProto) -> None:
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "strides").ints[0] = 0


BAD: dict[str, tuple[Damage, str]] = {
    "randomness in the graph": (random_node, "draws its own randomness"),
    "a custom operator": (custom_node, "custom operator evil.example:Phone"),
    "weights in another file": (external, "weights in another file"),
    "a nested graph": (nested, "nested graph"),
    "sparse weights": (sparse, "sparse tensors"),
    "sparse weights in an attribute": (
        sparse_attribute,
        "sparse_value of a Constant is out of range or of an unknown kind",
    ),
    "weights of an attribute in another file": (external_attribute, "weights in another file"),
    "a function": (function, "functions or training information"),
    "an empty graph": (lambda p: p.graph.ClearField("node"), "empty graph"),
    "a name that is no text": (no_text, "a name that is not text"),
    "an integer division": (integer_division, "divides integers"),
    "an address as weights": (address, "unknown kind"),
    "an operator that no sanitizer needs": (
        lambda p: p.graph.node.append(helper.make_node("Einsum", ["alpha"], ["x"], equation="..->")),
        "uses the operator Einsum",
    ),
    "nodes without end": (many_nodes, "tensors; at most 2,000"),
    "a tensor that is larger than its numbers": (hollow_tensor, "just as many numbers"),
    "a stride of zero": (stride_of_zero, "strides of a Conv"),
    "two opsets": (lambda p: p.opset_import.append(helper.make_opsetid("ai.onnx", 13)), "opset [17, 13]"),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_bad_graph_is_refused_in_words_of_its_own(damage: Damage, words: str, tmp_path: Path) -> None:
    check_refused(damage, words, tmp_path)
