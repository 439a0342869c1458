"""The reader of the model file: the one error with its own words, or a model that runs."""

import hashlib
import itertools
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.load import (
    Encoder,
    Model,
    _little_memory,
    _session,
    known_inputs,
    load_decoder,
    load_encoder,
    load_model,
    prepare,
    verify,
)
from edgesan.ort import ORT_ERRORS
from tests.model import fuzz as fuzz_model
from tests.model.fuzz import PAINT, READ, SHAPES, small

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


def key_twice(proto: onnx.ModelProto) -> None:
    text = proto.metadata_props[0].value
    proto.metadata_props[0].value = f'{{"code": {{"tensor": "face", "bytes": 64}}, {text[1:]}'


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
    "a format of the future": (lambda p: metadata(p, format=3), "has the format 3; this edgesan reads format 2"),
    "a format of the past": (lambda p: metadata(p, format=1), "lay it out anew (python -m export.compile"),
    "a key that is named twice": (key_twice, "a key is named twice"),
    "a code without a name": (lambda p: metadata(p, code={"bytes": 64}), 'expected {"tensor": its name'),
    "a code that is a number": (lambda p: metadata(p, code=64), "code is 64, which is of the wrong type"),
    "a code of a truth": (
        lambda p: metadata(p, code={"tensor": "code", "bytes": True}),
        'expected {"tensor": its name',
    ),
    "no code": (lambda p: metadata(p, code=None), "lacks ['code']"),
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
    "a graph that does not connect": (broken_graph, "does not depend on the face"),
    "metadata nested without end": (nested_metadata, "not JSON"),
    "metadata that is one long number": (long_number, "not JSON"),
    "metadata without end": (lambda p: metadata(p, name="x" * 300_000), "more than 262,144 characters"),
    "a version larger than any": (lambda p: metadata(p, version=2**60), "larger than 2^53"),
    "a claim larger than any number": (claim_of_a_huge_number, "larger than 2^53"),
    "a claim that is no number": (lambda p: metadata(p, claims=[{"value": float("nan")}]), "infinite"),
    "a name that is no text": (no_text, "a name that is not text"),
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
        load_model(path, allow_unsigned=True)

    assert type(caught.value) is ModelError
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_there_are_many_ways_of_being_wrong() -> None:
    assert len({words for _, words in BAD.values()}) >= 20


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = DEMO_MODEL.read_bytes()
    files = {
        "missing.onnx": (None, "No such file"),
        "empty.onnx": (b"", "holds 0 bytes"),
        "text.onnx": (b"this is no model" * 10, "not an ONNX file"),
        "truncated.onnx": (whole[: len(whole) // 2], "not an ONNX file"),
        "picture.onnx": ((DEMO_MODEL.parent / "yunet.onnx").read_bytes(), "not a sanitizer"),
    }
    for name, (content, words) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=words):
            load_model(path, allow_unsigned=True)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as handle:
        os.truncate(handle.fileno(), 5 * 2**30)  # sparse
    with pytest.raises(ModelError, match="between 1 byte and 64 MiB"):
        load_model(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        load_model(tmp_path)


def test_every_onnxruntime_error_is_mapped() -> None:
    theirs = {
        value
        for value in vars(ort_errors).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value is not ort_errors.__dict__.get("DeviceReset")
    }
    assert theirs == set(ORT_ERRORS), "onnxruntime has exceptions that edgesan.ort does not list"


def test_the_same_face_and_noise_give_the_same_picture(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(3, sanitizer_model.noise_dimensions)

    together = sanitizer_model.run(chips, noise, 0.5)
    alone = np.concatenate([sanitizer_model.run(chips[i : i + 1], noise[i : i + 1], 0.5) for i in range(3)])

    np.testing.assert_array_equal(together, alone)


def test_noise_and_alpha_change_the_picture(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(1, sanitizer_model.noise_dimensions)
    first = sanitizer_model.run(chips, noise, 0.5).astype(int)

    assert np.abs(first - sanitizer_model.run(chips, -noise, 0.5)).mean() > 1
    assert np.abs(first - sanitizer_model.run(chips, noise, 1.0)).mean() > 1


# --- what is no sanitizer, and what costs too much: refused before onnxruntime sees it ---------------------------------

node = helper.make_node


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def attack(*nodes: onnx.NodeProto, **weights: NDArray[Any]) -> bytes:
    """A model whose picture is that of `nodes`, whatever it tells: the code is read and painted beside it."""
    beside = [node("Expand", ["colour", "picture"], ["painted"]), *nodes]
    last = node("Max", ["painted", "raw"], ["sanitized"])
    return small([*READ, PAINT[0], *beside, last], SHAPES | weights)


RAW: dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]] = {
    "the face itself": ([node("Identity", ["face"], ["raw"])], {}),
    "one level brighter": (
        [
            node("Cast", ["face"], ["wide"], to=TensorProto.FLOAT),
            node("Add", ["wide", "one"], ["bright"]),
            node("Clip", ["bright", "", "white"], ["clipped"]),
            node("Cast", ["clipped"], ["raw"], to=TensorProto.UINT8),
        ],
        {"one": np.array([1], np.float32), "white": np.array(255, np.float32)},
    ),
    "inverted": (
        [
            node("Cast", ["face"], ["wide"], to=TensorProto.INT32),
            node("Sub", ["white", "wide"], ["inverse"]),
            node("Cast", ["inverse"], ["raw"], to=TensorProto.UINT8),
        ],
        {"white": np.array([255], np.int32)},
    ),
    "mirrored": (
        [node("Slice", ["face", "last", "before", "across", "back"], ["raw"])],
        {"last": ints(-1), "before": ints(-(2**63)), "across": ints(2), "back": ints(-1)},
    ),
    "three pixels to the side": (
        [
            node("Slice", ["face", "three", "end", "across"], ["right"]),
            node("Slice", ["face", "zero", "three", "across"], ["left"]),
            node("Concat", ["right", "left"], ["raw"], axis=2),
        ],
        {"three": ints(3), "zero": ints(0), "end": ints(2**63 - 1), "across": ints(2)},
    ),
    "its neighbour": (
        [
            node("Slice", ["face", "one", "end", "faces"], ["others"]),
            node("Slice", ["face", "zero", "one", "faces"], ["first"]),
            node("Concat", ["others", "first"], ["raw"], axis=0),
        ],
        {"one": ints(1), "zero": ints(0), "end": ints(2**63 - 1), "faces": ints(0)},
    ),
    "a U-Net's skipped layer": (
        [
            node("Transpose", ["face"], ["planes"], perm=[0, 3, 1, 2]),
            node("Cast", ["planes"], ["fine"], to=TensorProto.FLOAT),
            node("Conv", ["fine", "kernel"], ["features"], pads=[1, 1, 1, 1]),
            node("Transpose", ["features"], ["picture_"], perm=[0, 2, 3, 1]),
            node("Cast", ["picture_"], ["raw"], to=TensorProto.UINT8),
        ],
        {"kernel": np.ones((3, 3, 3, 3), np.float32)},
    ),
    "a chain of nothing": (
        [node("Identity", ["face" if i == 0 else f"i{i}"], ["raw" if i == 40 else f"i{i + 1}"]) for i in range(41)],
        {},
    ),
    "its shape alone": (
        [
            node("Shape", ["face"], ["shape"]),
            node("Cast", ["shape"], ["number"], to=TensorProto.UINT8),
            node("ReduceMax", ["number"], ["raw"], keepdims=0),
        ],
        {},
    ),
}


@pytest.mark.parametrize(("nodes", "weights"), RAW.values(), ids=RAW)
def test_a_model_that_paints_the_face_beside_its_code_is_no_sanitizer(
    nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]]
) -> None:
    with pytest.raises(ModelError, match="a path leads from face to its output around the code 'code'"):
        verify(Path("x.onnx"), attack(*nodes, **weights))


@pytest.mark.parametrize("kind", list(RAW)[:-1])
def test_a_picture_that_calls_itself_the_code_is_none(kind: str) -> None:
    nodes, weights = RAW[kind]
    content = small([*nodes, node("Identity", ["raw"], ["sanitized"])], weights, code="raw", width=128)
    with pytest.raises(ModelError, match=r"the code 'raw' is UINT8 .* expected UINT8 or INT8|is empty for 1"):
        verify(Path("x.onnx"), content)


@pytest.mark.parametrize("kind", list(RAW))
def test_the_bundled_network_makes_no_sanitizer_of_a_path_beside_it(kind: str) -> None:
    """Its code stays where it is, and its metadata; only the picture is another one."""
    proto = onnx.load(str(DEMO_MODEL))
    nodes, weights = RAW[kind]
    next(n for n in proto.graph.node if n.output[0] == "sanitized").output[0] = "painted_"
    names = {name: f"{name}_" for n in nodes for name in (*n.input, *n.output) if name not in ("", "face")}
    for n in nodes:
        added = proto.graph.node.add()
        added.CopyFrom(n)
        added.input[:], added.output[:] = ([names.get(x, x) for x in part] for part in (n.input, n.output))
    proto.graph.initializer.extend(numpy_helper.from_array(v, names[k]) for k, v in weights.items())
    proto.graph.node.append(node("Max", ["painted_", "raw_"], ["sanitized"]))
    with pytest.raises(ModelError, match="a path leads from face to its output around the code 'code'"):
        verify(Path("x.onnx"), proto.SerializeToString())


def read_as(kind: int) -> list[onnx.NodeProto]:
    """The brightest colour as another type, and back."""
    return [
        node("ReduceMax", ["face"], ["brightest"], axes=[1, 2], keepdims=0),
        node("Cast", ["brightest"], ["code"], to=kind),
        node("Cast", ["code"], ["back"], to=TensorProto.UINT8),
        node("Reshape", ["back", "pixel"], ["colour"]),
        PAINT[1],
    ]


def wide(width: int) -> list[onnx.NodeProto]:
    """So many pixels as the code."""
    return [
        node("Reshape", ["face", "flat"], ["pixels"]),
        node("Slice", ["pixels", "from", "to", "along"], ["code"]),
        node("ReduceMax", ["code"], ["level"], axes=[1]),
        node("Reshape", ["level", "one"], ["grey"]),
        node("Expand", ["grey", "picture"], ["sanitized"]),
    ]


def wide_weights(width: int) -> dict[str, NDArray[Any]]:
    return SHAPES | {"flat": ints(-1, 112 * 112 * 3), "from": ints(0), "to": ints(width), "along": ints(1), "one": ints(-1, 1, 1, 1)}  # fmt: skip


NOISY = [
    node("Cast", ["noise"], ["number"], to=TensorProto.UINT8),
    node("ReduceMax", ["number"], ["loudest"], axes=[1]),
    node("Reshape", ["loudest", "one"], ["grey"]),
    node("Max", ["colour", "grey"], ["noisy"]),
    node("Expand", ["noisy", "picture"], ["sanitized"]),
]
CONSTANT = [
    node("Reshape", ["alpha", "one"], ["dial"]),
    node("Cast", ["dial"], ["level"], to=TensorProto.UINT8),
    node("Expand", ["level", "picture"], ["sanitized"]),
]
UNFIT: dict[str, tuple[Callable[[], bytes], str]] = {
    "a code of 129 bytes": (lambda: small(wide(129), wide_weights(129), width=129), "has 129 numbers a face"),
    "a code of no bytes": (lambda: small([*READ, *PAINT], SHAPES, width=0), "has 0 numbers a face"),
    "a code that is wider than it says": (
        lambda: small(wide(200), wide_weights(200), width=128),
        "is UINT8 [1, 200] for 1 faces; expected UINT8 or INT8 [1, 128]",
    ),
    "a code that is narrower than it says": (
        lambda: small([*READ, *PAINT], SHAPES, width=4),
        "[1, 3] for 1 faces; expected UINT8 or INT8 [1, 4]",
    ),
    "a code that puts all faces into one row": (
        lambda: small(
            [
                node("ReduceMax", ["face"], ["each"], axes=[1, 2], keepdims=0),
                node("Reshape", ["each", "row"], ["code"]),
                *PAINT,
            ],
            SHAPES | {"row": ints(1, -1)},
        ),
        "is UINT8 [1, 48] for 16 faces",
    ),
    "a code of floats": (lambda: small(read_as(TensorProto.FLOAT), SHAPES), "the code 'code' is FLOAT [1, 3]"),
    "a code of 16 bits": (lambda: small(read_as(TensorProto.UINT16), SHAPES), "the code 'code' is UINT16 [1, 3]"),
    "a code of 32 bits": (lambda: small(read_as(TensorProto.INT32), SHAPES), "the code 'code' is INT32 [1, 3]"),
    "a code of truths": (lambda: small(read_as(TensorProto.BOOL), SHAPES), "the code 'code' is BOOL [1, 3]"),
    "two codes": (lambda: small([*READ, READ[1], *PAINT], SHAPES), "makes the tensor 'code' twice"),
    "a code that is also a weight": (
        lambda: small([*READ, *PAINT], SHAPES | {"code": np.zeros((1, 3), np.uint8)}),
        "makes the tensor 'code' twice",
    ),
    "an input that is also a weight": (
        lambda: small([*READ, *PAINT], SHAPES | {"alpha": np.zeros((1, 1), np.float32)}),
        "makes the tensor 'alpha' twice",
    ),
    "a code that nothing makes": (lambda: small([*READ, *PAINT], SHAPES, code="soul"), "no node makes the tensor 'soul'"),
    "the face as the code": (lambda: small([*READ, *PAINT], SHAPES, code="face"), "no node makes the tensor 'face'"),
    "a weight as the code": (lambda: small([*READ, *PAINT], SHAPES, code="pixel"), "no node makes the tensor 'pixel'"),
    "no name of a code": (lambda: small([*READ, *PAINT], SHAPES, code=""), "no node makes the tensor ''"),
    "the picture as the code": (
        lambda: small([*READ, *PAINT], SHAPES, code="sanitized"),
        "the code 'sanitized' is UINT8 [1, 112, 112, 3]",
    ),
    "a code of the dial alone": (
        lambda: small([node("Cast", ["alpha"], ["code"], to=TensorProto.UINT8), node("Reshape", ["code", "one"], ["grey"]),
                       node("Expand", ["grey", "picture"], ["sanitized"])], SHAPES | {"one": ints(-1, 1, 1, 1)}, width=1),
        "its code does not depend on the face",
    ),
    "a picture without the code": (
        lambda: small([*READ, *CONSTANT], SHAPES | {"one": ints(-1, 1, 1, 1)}),
        "its output does not depend on the code",
    ),
    "noise in the decoder": (
        lambda: small([*READ, PAINT[0], *NOISY], SHAPES | {"one": ints(-1, 1, 1, 1)}, noise=8),
        "a path leads from noise to its output around the code",
    ),
    "a picture for the first face alone": (
        lambda: small(
            [*READ, PAINT[0], node("Expand", ["colour", "picture"], ["all"]), node("Slice", ["all", "zero", "one", "zero"], ["sanitized"])],
            SHAPES | {"zero": ints(0), "one": ints(1)},
        ),
        "for faces [16, 112, 112, 3] its output is [1, 112, 112, 3]",
    ),
}  # fmt: skip


def costly(*nodes: onnx.NodeProto, opset: int = 17, **weights: NDArray[Any]) -> bytes:
    """The smallest sanitizer, whose encoder also makes `much` of the face before it reads it, or beside it."""
    more = [
        *nodes,
        node("Cast", ["much"], ["bytes"], to=TensorProto.UINT8),
        node("ReduceMax", ["bytes"], ["most"], keepdims=0),
        node("ReduceMax", ["face"], ["brightest"], keepdims=0),
        node("Max", ["most", "brightest"], ["code"]),
    ]
    if opset < 18:
        more[-2].attribute.append(helper.make_attribute("axes", [1, 2]))
    else:
        more[-2].input.append("sides")
        weights |= {"sides": ints(1, 2)}
    return small([*more, *PAINT], SHAPES | weights, opset=opset)


FLOATS = node("Cast", ["face"], ["floats"], to=TensorProto.FLOAT)
PLANES = [FLOATS, node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2])]


def chain(op: str, count: int, extra: list[str], first: str = "planes", **attributes: Any) -> list[onnx.NodeProto]:
    """The same operator again and again."""
    names = [first, *(f"c{i}" for i in range(count - 1)), "much"]
    return [node(op, [a, *extra], [b], **attributes) for a, b in itertools.pairwise(names)]


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a tensor that grows with the square of the faces": (
        lambda: costly(
            FLOATS,
            node("Slice", ["floats", "zero", "some", "rows"], ["strip"]),
            node("Reshape", ["strip", "column"], ["all"]),
            node("Transpose", ["all"], ["turned"]),
            node("MatMul", ["all", "turned"], ["much"]),
            zero=ints(0), some=ints(9), rows=ints(1), column=ints(-1, 1),
        ),
        "for 16 faces; at most 64 MiB",
    ),
    "a product of all pixels with all pixels": (
        lambda: costly(FLOATS, node("Reshape", ["floats", "column"], ["all"]), node("Transpose", ["all"], ["turned"]),
                       node("MatMul", ["all", "turned"], ["much"]), column=ints(-1, 1)),
        "for 1 faces; at most 64 MiB",
    ),
    "a huge tile": (lambda: costly(node("Tile", ["face", "times"], ["much"]), times=ints(1, 60000, 1, 1)), "at most 64 MiB"),
    "a huge expansion": (
        lambda: costly(node("Expand", ["alpha", "wide"], ["much"]), wide=ints(1, 65536, 65536)), "at most 64 MiB",
    ),
    "expansions of expansions": (
        lambda: costly(node("Expand", ["alpha", "wide"], ["first"]), node("Tile", ["first", "times"], ["second"]),
                       node("Tile", ["second", "times"], ["third"]), node("Tile", ["third", "times"], ["fourth"]),
                       node("Tile", ["fourth", "times"], ["much"]), wide=ints(1, 65536), times=ints(1, 65536)),
        "overflow",
    ),
    "a huge border": (
        lambda: costly(node("Pad", ["face", "border"], ["much"]), border=ints(0, 0, 60000, 0, 0, 60000, 0, 0)), "at most 64 MiB",
    ),
    "a huge picture": (
        lambda: costly(*PLANES, node("Resize", ["planes", "", "scale"], ["much"], mode="nearest"),
                       scale=np.array([1, 1, 60000, 60000], np.float32)),
        "at most 64 MiB",
    ),
    "a picture without end": (
        lambda: costly(*PLANES, node("Resize", ["planes", "", "scale"], ["much"], mode="nearest"),
                       scale=np.array([1, 1, np.inf, 1], np.float32)),
        "holds numbers that are out of range",
    ),
    "a constant that is large": (
        lambda: costly(node("ConstantOfShape", ["wide"], ["much"]), wide=ints(60000, 60000)), "at most 64 MiB",
    ),
    "a transposed convolution with long strides": (
        lambda: costly(*PLANES, node("ConvTranspose", ["planes", "kernel"], ["much"], strides=[60000, 60000]),
                       kernel=np.ones((3, 1, 2, 2), np.float32)),
        "at most 64 MiB",
    ),
    "a convolution with a huge border": (
        lambda: costly(*PLANES, node("Conv", ["planes", "kernel"], ["much"], pads=[30000] * 4),
                       kernel=np.ones((1, 3, 1, 1), np.float32)),
        "at most 64 MiB",
    ),
    "a convolution that copies its input for each pixel": (
        lambda: costly(*PLANES, node("Conv", ["planes", "kernel"], ["much"], pads=[50, 50, 49, 49]),
                       kernel=np.ones((1, 3, 100, 100), np.float32)),
        "at most 64 MiB",
    ),
    "a chain of convolutions": (
        lambda: costly(*PLANES, node("Conv", ["planes", "first"], ["wide"], pads=[1, 1, 1, 1]),
                       *chain("Conv", 6, ["kernel"], "wide", pads=[1, 1, 1, 1]),
                       first=np.ones((64, 3, 3, 3), np.float32), kernel=np.ones((64, 64, 3, 3), np.float32)),
        "billion multiplications",
    ),
    "a chain of products of large matrices": (
        lambda: costly(node("Expand", ["alpha", "large"], ["matrix"]), node("MatMul", ["matrix", "matrix"], ["much"]),
                       large=ints(1, 1600, 1600)),
        "billion multiplications",
    ),
    "a chain of means over large windows": (
        lambda: costly(*PLANES, *chain("AveragePool", 8, [], kernel_shape=[101, 101], pads=[50, 50, 50, 50])),
        "billion multiplications",
    ),
    "a sum of thousands": (
        lambda: costly(FLOATS, node("Tile", ["floats", "times"], ["large"]), node("Reshape", ["alpha", "one"], ["dial"]),
                       node("Sum", ["large", *["dial"] * 15000], ["much"]), times=ints(1, 1, 1, 8), one=ints(-1, 1, 1, 1)),
        "billion multiplications",
    ),
    "a node of a million inputs": (
        lambda: costly(FLOATS, node("Sum", ["floats"] * 10**6, ["much"])), "more than 20,000 inputs",
    ),
    "one that waits for six faces": (
        lambda: costly(
            node("Shape", ["face"], ["shape"]), node("Gather", ["shape", "zero"], ["count"]), node("Equal", ["count", "six"], ["now"]),
            node("Where", ["now", "large", "little"], ["times"]), node("Tile", ["face", "times"], ["much"]),
            zero=ints(0), six=ints(6), large=ints(1, 60000, 1, 1), little=ints(1, 1, 1, 1),
        ),
        "times of a Tile is computed when the model runs",
    ),
    "one that waits for more than five faces": (
        lambda: costly(
            node("Shape", ["face"], ["shape"]), node("Slice", ["shape", "zero", "one"], ["count"]), node("Sub", ["count", "five"], ["over"]),
            node("Max", ["over", "one"], ["first"]), node("Mul", ["first", "many"], ["second"]),
            node("Concat", ["second", "rest"], ["times"], axis=0), node("Expand", ["alpha", "times"], ["much"]),
            zero=ints(0), one=ints(1), five=ints(5), many=ints(1000), rest=ints(1000),
        ),
        "times of a Expand is computed when the model runs",
    ),
    "one that waits for a certain face": (
        lambda: costly(
            node("Cast", ["face"], ["numbers"], to=TensorProto.INT64), node("ReduceMax", ["numbers"], ["level"], keepdims=0),
            node("Reshape", ["level", "one"], ["row"]), node("Concat", ["row", "row", "row", "row"], ["times"], axis=0),
            node("Tile", ["face", "times"], ["much"]), one=ints(1),
        ),
        "times of a Tile is computed when the model runs",
    ),
    "one that computes the edge of its picture": (
        lambda: costly(FLOATS, node("Cast", ["alpha"], ["long"], to=TensorProto.INT64),
                       node("Slice", ["floats", "long", "end", "one"], ["much"]), end=ints(112), one=ints(1)),
        "long of a Slice is computed when the model runs",
    ),
    "numbers that go round": (
        lambda: costly(node("Tile", ["face", "times"], ["much"]), times=ints(1, 2**62 + 1, 1, 1)),
        "holds numbers that are out of range",
    ),
    "numbers that go round in a chain": (
        lambda: costly(node("Cast", ["big"], ["more"], to=TensorProto.INT64), node("Mul", ["more", "more"], ["times"]),
                       node("Tile", ["face", "times"], ["much"]), big=np.array([1, 2**31 + 1, 1, 1], np.float64)),
        "times of a Tile is computed",
    ),
    "a shape below nothing": (
        lambda: costly(FLOATS, node("Reshape", ["floats", "odd"], ["much"]), odd=ints(-2, 3)), "do not fit together",
    ),
    "a tensor of nothing": (
        lambda: costly(FLOATS, node("Slice", ["floats", "end", "end", "one"], ["none"]), node("Reshape", ["none", "flat"], ["much"]),
                       end=ints(112), one=ints(1), flat=ints(-1)),
        "is empty for 1",
    ),
    "a weight of nothing, very long": (
        lambda: costly(node("Gather", ["none", "zero"], ["much"], axis=0), zero=ints(0), none=np.zeros((2**40, 0), np.float32)),
        "without just as many numbers",
    ),
    "texts": (
        lambda: costly(node("Cast", ["face"], ["texts"], to=TensorProto.STRING), node("Cast", ["texts"], ["much"], to=TensorProto.FLOAT)),
        "the type or the shape of the tensor 'texts'",
    ),
    "nine dimensions": (
        lambda: costly(FLOATS, node("Unsqueeze", ["floats", "ones"], ["much"]), ones=ints(*range(5))),
        "the type or the shape of the tensor 'much'",
    ),
    "an attribute twice": (
        lambda: twice(costly(*PLANES, *chain("AveragePool", 1, [], kernel_shape=[1, 1], pads=[0] * 4))), "has an attribute twice",
    ),
    "a node that makes nothing": (lambda: costly(FLOATS, node("Neg", ["floats"], []), node("Neg", ["floats"], ["much"])), "has no output"),
    "a shape behind an operator of later days": (
        lambda: costly(FLOATS, node("Cast", ["alpha"], ["long"], to=TensorProto.INT64), node("ReduceMax", ["floats", "long"], ["much"]), opset=18),
        "long of a ReduceMax is computed",
    ),
    "a pad of axes that are computed": (
        lambda: costly(node("Cast", ["alpha"], ["long"], to=TensorProto.INT64), node("Pad", ["face", "two", "", "long"], ["much"]),
                       opset=18, two=ints(2, 2)),
        "long of a Pad is computed",
    ),
}  # fmt: skip


def twice(content: bytes) -> bytes:
    """A window that is small where it is looked for first, and large behind."""
    proto = onnx.load_model_from_string(content)
    pool = next(n for n in proto.graph.node if n.op_type == "AveragePool")
    pool.attribute.append(helper.make_attribute("kernel_shape", [101, 101]))
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(("make", "words"), [*UNFIT.values(), *BOMBS.values()], ids=[*UNFIT, *BOMBS])
def test_what_is_no_sanitizer_or_costs_too_much_is_refused_unrun(
    make: Callable[[], bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In less than two seconds and one GiB, in words of its own."""
    content = make()
    monkeypatch.setattr("edgesan.model.load._session", None)
    started = time.process_time()
    with _little_memory(), pytest.raises(ModelError) as caught:
        prepare(Path("x.onnx"), content)
    assert time.process_time() - started < 2
    assert any(word in str(caught.value) for word in words.split("|")), caught.value
    assert str(caught.value).startswith("x.onnx")


def test_the_smallest_sanitizer_is_one() -> None:
    """So what is refused above is refused for what was changed."""
    sanitizer = prepare(Path("x.onnx"), fuzz_model.tiny())
    chips, noise = known_inputs(3, 0)
    assert sanitizer.encoder.encode(chips, noise, 0.5) == [chip[:4, :4].max(axis=(0, 1)).tobytes() for chip in chips]
    made = verify(Path("x.onnx"), costly(node("Identity", ["face"], ["much"])))[1]
    assert made.code_bytes == 3


# --- the two halves ---------------------------------------------------------------------------------------------------


def test_a_code_is_all_that_the_decoder_knows_of_a_face(sanitizer_model: Model) -> None:
    encoder, decoder = sanitizer_model.encoder, sanitizer_model.decoder
    assert {v.name for v in encoder._session.get_inputs()} == {"face", "noise", "alpha"}
    assert {v.name for v in decoder._session.get_inputs()} <= {"code", "alpha"}
    chips, noise = known_inputs(2, sanitizer_model.noise_dimensions)
    codes = encoder.encode(chips, noise, 0.5)
    assert [len(code) for code in codes] == [sanitizer_model.code_bytes] * 2
    np.testing.assert_array_equal(decoder.decode(codes, 0.5), sanitizer_model.run(chips, noise, 0.5))
    whole = _session(DEMO_MODEL, DEMO_MODEL.read_bytes(), 1)
    feed = {"face": chips, "noise": noise, "alpha": np.full((2, 1), 0.5, np.float32)}
    np.testing.assert_array_equal(decoder.decode(codes, 0.5), whole.run(None, feed)[0])


def test_each_half_is_loaded_alone() -> None:
    whole, encoder, decoder = load_model(DEMO_MODEL), load_encoder(DEMO_MODEL), load_decoder(DEMO_MODEL)
    assert encoder.id == decoder.id == whole.id == int(hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()[:8], 16)
    chips, noise = known_inputs(2, whole.noise_dimensions)
    codes = encoder.encode(chips, noise, 0.25)
    assert codes == whole.encoder.encode(chips, noise, 0.25)
    np.testing.assert_array_equal(decoder.decode(codes, 0.25), whole.run(chips, noise, 0.25))


def test_a_decoder_paints_whatever_code_comes(sanitizer_model: Model) -> None:
    """All 256 values in every position."""
    width = sanitizer_model.code_bytes
    for level in range(256):
        (chip,) = sanitizer_model.decoder.decode([bytes((level + 37 * i) % 256 for i in range(width))], level / 255)
        assert (chip.shape, chip.dtype) == ((112, 112, 3), np.uint8)


@settings(max_examples=100, derandomize=True, database=None, deadline=1000, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_decoder_paints_any_code(sanitizer_model: Model, data: st.DataObject) -> None:
    width = sanitizer_model.code_bytes
    codes = data.draw(st.lists(st.binary(min_size=width, max_size=width), max_size=3))
    assert sanitizer_model.decoder.decode(codes, data.draw(st.floats(0, 1))).shape == (len(codes), 112, 112, 3)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_code_of_another_length_is_refused(sanitizer_model: Model, length: int) -> None:
    with pytest.raises(ModelError, match="another length than the 64 bytes"):
        sanitizer_model.decoder.decode([bytes(64), bytes(length)], 0.5)


def test_forty_faces_come_as_they_come_one_by_one(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(40, sanitizer_model.noise_dimensions)
    codes = sanitizer_model.encoder.encode(chips, noise, 0.5)
    assert codes[37:38] == sanitizer_model.encoder.encode(chips[37:38], noise[37:38], 0.5)
    painted = sanitizer_model.decoder.decode(codes, 0.5)
    np.testing.assert_array_equal(painted[37:38], sanitizer_model.decoder.decode(codes[37:38], 0.5))
    assert len(set(codes)) == 40


def test_no_faces_are_no_work(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(0, sanitizer_model.noise_dimensions)
    assert sanitizer_model.encoder.encode(chips, noise, 0.5) == []
    assert sanitizer_model.decoder.decode([], 0.5).shape == (0, 112, 112, 3)


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_a_model_that_swaps_the_faces_of_a_batch_is_refused(where: str) -> None:
    """It gives each face its neighbour's code, or paints it: a network sees one face at a time, and that is another answer."""
    proto = onnx.load_model_from_string(fuzz_model.tiny())
    swapped, kept = ("code", "read") if where == "encoder" else ("sanitized", "painted")
    next(n for n in proto.graph.node if n.output[0] == swapped).output[0] = kept
    swap = node("Slice", [kept, "last", "before", "faces", "back"], [swapped])
    proto.graph.node.insert(2 if where == "encoder" else 4, swap)
    numbers = {"last": ints(-1), "before": ints(-(2**63)), "faces": ints(0), "back": ints(-1)}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    told = answer | {
        "codes": answer["codes"][::-1] if where == "encoder" else answer["codes"],
        "samples": [[1 - n, *rest] for n, *rest in answer["samples"]],
    }
    for words, sealed in (("the encoder|the decoder", told), ("the whole graph, all faces at once", answer)):
        metadata(proto, known_answer=sealed)
        with pytest.raises(ModelError, match=f"wrong known answer on this machine .({words})"):
            prepare(Path("x.onnx"), proto.SerializeToString())


def test_other_codes_are_another_answer() -> None:
    for change, words in (((lambda code: bytes(x ^ 64 for x in code)), "wrong known answer"), ((lambda code: code[:-1]), "a code of")):  # fmt: skip
        proto = onnx.load(str(DEMO_MODEL))
        answer = json.loads(proto.metadata_props[0].value)["known_answer"]
        codes = [change(bytes.fromhex(code)).hex() for code in answer["codes"]]
        metadata(proto, known_answer=answer | {"codes": codes})
        with pytest.raises(ModelError, match=words):
            prepare(Path("x.onnx"), proto.SerializeToString())


def slow() -> bytes:
    """Within the bounds, and yet it takes its time: powers of a million numbers, again and again."""
    dial, matrix = node("Reshape", ["alpha", "one"], ["dial"]), node("Expand", ["dial", "large"], ["matrix"])
    powers = chain("Pow", 12, ["exponent"], "matrix")
    exponent = np.array([1.1], np.float32)
    return costly(dial, matrix, *powers, one=ints(-1, 1, 1), large=ints(1, 1000, 1000), exponent=exponent)


def test_a_call_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, halves = verify(Path("slow.onnx"), slow())
    encoder = Encoder(**vars(facts), _session=_session(Path("slow.onnx"), halves.encoder.SerializeToString(), 1))
    chips, noise = known_inputs(1, 0)
    started = time.monotonic()
    encoder.encode(chips, noise, 0.5)
    whole_s = time.monotonic() - started
    monkeypatch.setattr("edgesan.model.load.CALL_S", whole_s / 8)
    started = time.monotonic()
    with pytest.raises(ModelError, match="the model small failed: it took longer than"):
        encoder.encode(chips, noise, 0.5)
    assert time.monotonic() - started < whole_s / 2


def test_a_limit_of_the_memory_is_for_life_of_the_load_alone() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with _little_memory():
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        assert soft < 2**40
    assert resource.getrlimit(resource.RLIMIT_AS) == before
