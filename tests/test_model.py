"""The reader of the model file: the one error with its own words, or a model that runs."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesan import model
from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError

Damage = Callable[[onnx.ModelProto], Any]


def metadata(proto: onnx.ModelProto, **changes: Any) -> None:
    table = json.loads(proto.metadata_props[0].value)
    for key, value in changes.items():
        if value is None:
            del table[key]
        else:
            table[key] = value
    proto.metadata_props[0].value = json.dumps(table)


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


def extra_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("gender", TensorProto.FLOAT, ["N", 1]))


def extra_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", 784]))


def renamed_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "picture"


def float_face(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "face").type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "noise").type.tensor_type.shape.dim[0].dim_value = 1


def wrong_answer(proto: onnx.ModelProto) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    answer["samples"][0][4] = (answer["samples"][0][4] + 100) % 256
    metadata(proto, known_answer=answer)


def changed_weight(proto: onnx.ModelProto) -> None:
    largest = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))


def tolerant_answer(proto: onnx.ModelProto) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    metadata(proto, known_answer=answer | {"tolerance": 255})


def no_alpha(proto: onnx.ModelProto) -> None:
    proto.graph.input.remove(next(v for v in proto.graph.input if v.name == "alpha"))


def small_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 56


def one_dial(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "alpha").type.tensor_type.shape.dim[0].dim_value = 1


def future_type(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "alpha").type.tensor_type.elem_type = 999


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


def deep_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[" * 10**5


def list_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[1]"


def changed_samples(proto: onnx.ModelProto, change: Callable[[list[list[int]]], Any]) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    metadata(proto, known_answer=answer | {"samples": change(answer["samples"])})


def short_answer(proto: onnx.ModelProto) -> None:
    changed_samples(proto, lambda samples: samples[:1])


def outside_answer(proto: onnx.ModelProto) -> None:
    changed_samples(proto, lambda samples: [[0, 112, 0, 0, 0], *samples])


def no_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def garbled_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "{"


def broken_graph(proto: onnx.ModelProto) -> None:
    next(n for n in proto.graph.node if n.op_type == "Conv").input[0] = "nowhere"


def integer_division(proto: onnx.ModelProto) -> None:
    """-2^63 / -1: SIGFPE, and the process is gone."""
    proto.graph.initializer.extend(
        [
            helper.make_tensor("least", TensorProto.INT64, [1], [-(2**63)]),
            helper.make_tensor("less", TensorProto.INT64, [1], [-1]),
        ]
    )
    proto.graph.node.append(helper.make_node("Div", ["least", "less"], ["extra"]))


def nested_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[" * 100_000


def long_number(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "1" * 5000


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


def wide_noise(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "noise").type.tensor_type.shape.dim[1].dim_value = 2**40


def claim_of_a_huge_number(proto: onnx.ModelProto) -> None:
    metadata(proto, claims=[{"figure": "gender accuracy, sanitized", "value": 10**400, "attack": "x"}])


def stride_of_zero(proto: onnx.ModelProto) -> None:
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "strides").ints[0] = 0


BAD: dict[str, tuple[Damage, str]] = {
    "randomness in the graph": (random_node, "draws its own randomness"),
    "a custom operator": (custom_node, "custom operator evil.example:Phone"),
    "weights in another file": (external, "weights in another file"),
    "a nested graph": (nested, "nested graph"),
    "one input too many": (extra_input, "its inputs are face, noise, alpha, gender"),
    "one input too few": (no_alpha, "its inputs are face, noise;"),
    "one output too many": (extra_output, "its outputs are sanitized, noise"),
    "a renamed output": (renamed_output, "its outputs are picture"),
    "float pixels": (float_face, "face is FLOAT [N, 112, 112, 3]; expected UINT8"),
    "a small picture": (small_output, "sanitized is UINT8 [N, 56, 112, 3]; expected"),
    "a dial for all faces at once": (one_dial, "alpha is FLOAT [1, 1]; expected FLOAT [N, 1]"),
    "a type of the future": (future_type, "alpha is of no known type"),
    "a fixed batch": (fixed_batch, "noise is FLOAT [1, 64]; expected FLOAT [N, Z]"),
    "sparse weights": (sparse, "sparse tensors"),
    "sparse weights in an attribute": (
        sparse_attribute,
        "sparse_value of a Constant is out of range or of an unknown kind",
    ),
    "weights of an attribute in another file": (external_attribute, "weights in another file"),
    "a function": (function, "functions or training information"),
    "an empty graph": (lambda p: p.graph.ClearField("node"), "empty graph"),
    "no metadata": (no_metadata, "no `edgesan` metadata"),
    "metadata that is no JSON": (garbled_metadata, "not JSON"),
    "metadata that is too deep": (deep_metadata, "not JSON"),
    "metadata that is a list": (list_metadata, "has the format None"),
    "a format of the future": (lambda p: metadata(p, format=2), "format 2"),
    "a missing key": (lambda p: metadata(p, claims=None), "lacks ['claims']"),
    "an unknown key": (lambda p: metadata(p, licence="x"), "unknown ['licence']"),
    "a version of zero": (lambda p: metadata(p, version=0), "version is 0; expected a whole number from 1"),
    "a version that is a truth": (lambda p: metadata(p, version=True), "version is True, which is of the wrong type"),
    "a version with a fraction": (lambda p: metadata(p, version=1.5), "version is 1.5, which is of the wrong type"),
    "a name that is a number": (lambda p: metadata(p, name=7), "name is 7"),
    "a name that steers a terminal": (
        lambda p: metadata(p, name="\x1b[2Jok"),
        "holds '\\x1b[2Jok': at most 500 printable",
    ),
    "an empty private attribute": (lambda p: metadata(p, private=""), "private is ''"),
    "an alpha out of range": (lambda p: metadata(p, alpha_default=1.5), "alpha_default 1.5; expected 0 <= low"),
    "an alpha that is no number": (lambda p: metadata(p, alpha_default=float("nan")), "a number that is infinite"),
    "an alpha range of three": (lambda p: metadata(p, alpha_range=[0, 0.5, 1]), "alpha_range is [0, 0.5, 1]"),
    "an alpha range upside down": (lambda p: metadata(p, alpha_range=[1, 0]), "alpha_range is [1, 0]"),
    "claims that are words": (lambda p: metadata(p, claims=["private!"]), "must be an object"),
    "another known answer": (wrong_answer, "wrong known answer"),
    "other weights": (changed_weight, "wrong known answer"),
    "an answer that tolerates all": (tolerant_answer, "waves-1"),
    "an answer of one sample": (short_answer, "at least 16 samples"),
    "an answer outside the picture": (outside_answer, "waves-1"),
    "an answer that is empty": (lambda p: metadata(p, known_answer={}), "lacks or garbles 'rule'"),
    "a graph that does not connect": (broken_graph, "does not run"),
    "metadata nested without end": (nested_metadata, "not JSON"),
    "metadata that is one long number": (long_number, "not JSON"),
    "metadata without end": (lambda p: metadata(p, name="x" * 300_000), "more than 262,144 characters"),
    "a version larger than any": (lambda p: metadata(p, version=2**60), "larger than 2^53"),
    "a claim larger than any number": (claim_of_a_huge_number, "larger than 2^53"),
    "a claim that is no number": (lambda p: metadata(p, claims=[{"value": float("nan")}]), "infinite"),
    "a name that is no text": (no_text, "no text"),
    "an integer division": (integer_division, "divides integers"),
    "an address as weights": (address, "unknown kind"),
    "an operator that no sanitizer needs": (
        lambda p: p.graph.node.append(helper.make_node("Einsum", ["alpha"], ["x"], equation="..->")),
        "uses the operator Einsum",
    ),
    "nodes without end": (many_nodes, "tensors; at most 2,000"),
    "a tensor that is larger than its numbers": (hollow_tensor, "just as many numbers"),
    "noise without end": (wide_noise, "1..4096"),
    "a stride of zero": (stride_of_zero, "strides of a Conv"),
    "two opsets": (lambda p: p.opset_import.append(helper.make_opsetid("ai.onnx", 13)), "opset [17, 13]"),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_bad_model_is_refused_in_words_of_its_own(damage: Damage, words: str, tmp_path: Path) -> None:
    proto = onnx.load(str(DEMO_MODEL))
    damage(proto)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError) as caught:
        model.load(path, allow_unsigned=True)

    assert type(caught.value) is ModelError
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_there_are_many_ways_of_being_wrong() -> None:
    assert len({words for _, words in BAD.values()}) >= 20


def test_a_small_model_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    proto = onnx.load(str(DEMO_MODEL))
    proto.graph.initializer.append(helper.make_tensor("times", TensorProto.INT64, [4], [100_000, 1, 1, 1]))
    last = next(node for node in proto.graph.node if node.output[0] == "sanitized")
    last.output[0] = "picture"
    proto.graph.node.extend(
        [
            helper.make_node("Tile", ["face", "times"], ["much"]),
            helper.make_node("ReduceMax", ["much"], ["level"]),
            helper.make_node("Max", ["picture", "level"], ["sanitized"]),
        ]
    )
    path = tmp_path / "much.onnx"
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError, match="failed on"):
        model.load(path, allow_unsigned=True)

    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = DEMO_MODEL.read_bytes()
    files = {
        "missing.onnx": (None, "No such file"),
        "empty.onnx": (b"", "holds 0 bytes"),
        "text.onnx": (b"this is no model" * 10, "no ONNX file"),
        "truncated.onnx": (whole[: len(whole) // 2], "no ONNX file"),
        "picture.onnx": ((DEMO_MODEL.parent / "yunet.onnx").read_bytes(), "not a sanitizer"),
    }
    for name, (content, words) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=words):
            model.load(path, allow_unsigned=True)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as handle:
        os.truncate(handle.fileno(), 5 * 2**30)  # sparse
    with pytest.raises(ModelError, match="between 1 byte and 64 MiB"):
        model.load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        model.load(tmp_path)


def test_every_onnxruntime_error_is_mapped() -> None:
    theirs = {
        value
        for value in vars(ort_errors).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value is not ort_errors.__dict__.get("DeviceReset")
    }
    assert theirs == set(model.ORT_ERRORS), "onnxruntime has exceptions that edgesan.model does not map"


def test_the_same_face_and_noise_give_the_same_picture(sanitizer_model: model.Model) -> None:
    chips, noise = model.known_inputs(3, sanitizer_model.noise_dimensions)

    together = sanitizer_model.run(chips, noise, 0.5)
    alone = np.concatenate([sanitizer_model.run(chips[i : i + 1], noise[i : i + 1], 0.5) for i in range(3)])

    np.testing.assert_array_equal(together, alone)


def test_noise_and_alpha_change_the_picture(sanitizer_model: model.Model) -> None:
    chips, noise = model.known_inputs(1, sanitizer_model.noise_dimensions)
    first = sanitizer_model.run(chips, noise, 0.5).astype(int)

    assert np.abs(first - sanitizer_model.run(chips, -noise, 0.5)).mean() > 1
    assert np.abs(first - sanitizer_model.run(chips, noise, 1.0)).mean() > 1
