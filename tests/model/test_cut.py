"""The cut at the code: nothing of a face goes around it, and costs are bounded."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.load import (
    _little_memory,
    known_inputs,
    prepare,
    verify,
)
from tests.model import fuzz as fuzz_model
from tests.model.fuzz import PAINT, READ, SHAPES, small
from tests.model.graphs import FLOATS, PLANES, chain, costly, ints, node


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
    return SHAPES | {
        "flat": ints(-1, 112 * 112 * 3),
        "from": ints(0),
        "to": ints(width),
        "along": ints(1),
        "one": ints(-1, 1, 1, 1),
    }


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
    "a code that nothing makes": (
        lambda: small([*READ, *PAINT], SHAPES, code="soul"),
        "no node makes the tensor 'soul'",
    ),
    "the face as the code": (lambda: small([*READ, *PAINT], SHAPES, code="face"), "no node makes the tensor 'face'"),
    "a weight as the code": (lambda: small([*READ, *PAINT], SHAPES, code="pixel"), "no node makes the tensor 'pixel'"),
    "no name of a code": (lambda: small([*READ, *PAINT], SHAPES, code=""), "no node makes the tensor ''"),
    "the picture as the code": (
        lambda: small([*READ, *PAINT], SHAPES, code="sanitized"),
        "the code 'sanitized' is UINT8 [1, 112, 112, 3]",
    ),
    "a code of the dial alone": (
        lambda: small(
            [
                node("Cast", ["alpha"], ["code"], to=TensorProto.UINT8),
                node("Reshape", ["code", "one"], ["grey"]),
                node("Expand", ["grey", "picture"], ["sanitized"]),
            ],
            SHAPES | {"one": ints(-1, 1, 1, 1)},
            width=1,
        ),
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
            [
                *READ,
                PAINT[0],
                node("Expand", ["colour", "picture"], ["all"]),
                node("Slice", ["all", "zero", "one", "zero"], ["sanitized"]),
            ],
            SHAPES | {"zero": ints(0), "one": ints(1)},
        ),
        "for faces [16, 112, 112, 3] its output is [1, 112, 112, 3]",
    ),
}


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a tensor that grows with the square of the faces": (
        lambda: costly(
            FLOATS,
            node("Slice", ["floats", "zero", "some", "rows"], ["strip"]),
            node("Reshape", ["strip", "column"], ["all"]),
            node("Transpose", ["all"], ["turned"]),
            node("MatMul", ["all", "turned"], ["much"]),
            zero=ints(0),
            some=ints(9),
            rows=ints(1),
            column=ints(-1, 1),
        ),
        "for 16 faces; at most 64 MiB",
    ),
    "a product of all pixels with all pixels": (
        lambda: costly(
            FLOATS,
            node("Reshape", ["floats", "column"], ["all"]),
            node("Transpose", ["all"], ["turned"]),
            node("MatMul", ["all", "turned"], ["much"]),
            column=ints(-1, 1),
        ),
        "for 1 faces; at most 64 MiB",
    ),
    "a huge tile": (
        lambda: costly(node("Tile", ["face", "times"], ["much"]), times=ints(1, 60000, 1, 1)),
        "at most 64 MiB",
    ),
    "a huge expansion": (
        lambda: costly(node("Expand", ["alpha", "wide"], ["much"]), wide=ints(1, 65536, 65536)),
        "at most 64 MiB",
    ),
    "expansions of expansions": (
        lambda: costly(
            node("Expand", ["alpha", "wide"], ["first"]),
            node("Tile", ["first", "times"], ["second"]),
            node("Tile", ["second", "times"], ["third"]),
            node("Tile", ["third", "times"], ["fourth"]),
            node("Tile", ["fourth", "times"], ["much"]),
            wide=ints(1, 65536),
            times=ints(1, 65536),
        ),
        "overflow",
    ),
    "a huge border": (
        lambda: costly(node("Pad", ["face", "border"], ["much"]), border=ints(0, 0, 60000, 0, 0, 60000, 0, 0)),
        "at most 64 MiB",
    ),
    "a huge picture": (
        lambda: costly(
            *PLANES,
            node("Resize", ["planes", "", "scale"], ["much"], mode="nearest"),
            scale=np.array([1, 1, 60000, 60000], np.float32),
        ),
        "at most 64 MiB",
    ),
    "a picture without end": (
        lambda: costly(
            *PLANES,
            node("Resize", ["planes", "", "scale"], ["much"], mode="nearest"),
            scale=np.array([1, 1, np.inf, 1], np.float32),
        ),
        "holds numbers that are out of range",
    ),
    "a constant that is large": (
        lambda: costly(node("ConstantOfShape", ["wide"], ["much"]), wide=ints(60000, 60000)),
        "at most 64 MiB",
    ),
    "a transposed convolution with long strides": (
        lambda: costly(
            *PLANES,
            node("ConvTranspose", ["planes", "kernel"], ["much"], strides=[60000, 60000]),
            kernel=np.ones((3, 1, 2, 2), np.float32),
        ),
        "at most 64 MiB",
    ),
    "a convolution with a huge border": (
        lambda: costly(
            *PLANES,
            node("Conv", ["planes", "kernel"], ["much"], pads=[30000] * 4),
            kernel=np.ones((1, 3, 1, 1), np.float32),
        ),
        "at most 64 MiB",
    ),
    "a convolution that copies its input for each pixel": (
        lambda: costly(
            *PLANES,
            node("Conv", ["planes", "kernel"], ["much"], pads=[50, 50, 49, 49]),
            kernel=np.ones((1, 3, 100, 100), np.float32),
        ),
        "at most 64 MiB",
    ),
    "a chain of convolutions": (
        lambda: costly(
            *PLANES,
            node("Conv", ["planes", "first"], ["wide"], pads=[1, 1, 1, 1]),
            *chain("Conv", 6, ["kernel"], "wide", pads=[1, 1, 1, 1]),
            first=np.ones((64, 3, 3, 3), np.float32),
            kernel=np.ones((64, 64, 3, 3), np.float32),
        ),
        "billion multiplications",
    ),
    "a chain of products of large matrices": (
        lambda: costly(
            node("Expand", ["alpha", "large"], ["matrix"]),
            node("MatMul", ["matrix", "matrix"], ["much"]),
            large=ints(1, 1600, 1600),
        ),
        "billion multiplications",
    ),
    "a chain of means over large windows": (
        lambda: costly(*PLANES, *chain("AveragePool", 8, [], kernel_shape=[101, 101], pads=[50, 50, 50, 50])),
        "billion multiplications",
    ),
    "a sum of thousands": (
        lambda: costly(
            FLOATS,
            node("Tile", ["floats", "times"], ["large"]),
            node("Reshape", ["alpha", "one"], ["dial"]),
            node("Sum", ["large", *["dial"] * 15000], ["much"]),
            times=ints(1, 1, 1, 8),
            one=ints(-1, 1, 1, 1),
        ),
        "billion multiplications",
    ),
    "a node of a million inputs": (
        lambda: costly(FLOATS, node("Sum", ["floats"] * 10**6, ["much"])),
        "more than 20,000 inputs",
    ),
    "one that waits for six faces": (
        lambda: costly(
            node("Shape", ["face"], ["shape"]),
            node("Gather", ["shape", "zero"], ["count"]),
            node("Equal", ["count", "six"], ["now"]),
            node("Where", ["now", "large", "little"], ["times"]),
            node("Tile", ["face", "times"], ["much"]),
            zero=ints(0),
            six=ints(6),
            large=ints(1, 60000, 1, 1),
            little=ints(1, 1, 1, 1),
        ),
        "times of a Tile is computed when the model runs",
    ),
    "one that waits for more than five faces": (
        lambda: costly(
            node("Shape", ["face"], ["shape"]),
            node("Slice", ["shape", "zero", "one"], ["count"]),
            node("Sub", ["count", "five"], ["over"]),
            node("Max", ["over", "one"], ["first"]),
            node("Mul", ["first", "many"], ["second"]),
            node("Concat", ["second", "rest"], ["times"], axis=0),
            node("Expand", ["alpha", "times"], ["much"]),
            zero=ints(0),
            one=ints(1),
            five=ints(5),
            many=ints(1000),
            rest=ints(1000),
        ),
        "times of a Expand is computed when the model runs",
    ),
    "one that waits for a certain face": (
        lambda: costly(
            node("Cast", ["face"], ["numbers"], to=TensorProto.INT64),
            node("ReduceMax", ["numbers"], ["level"], keepdims=0),
            node("Reshape", ["level", "one"], ["row"]),
            node("Concat", ["row", "row", "row", "row"], ["times"], axis=0),
            node("Tile", ["face", "times"], ["much"]),
            one=ints(1),
        ),
        "times of a Tile is computed when the model runs",
    ),
    "one that computes the edge of its picture": (
        lambda: costly(
            FLOATS,
            node("Cast", ["alpha"], ["long"], to=TensorProto.INT64),
            node("Slice", ["floats", "long", "end", "one"], ["much"]),
            end=ints(112),
            one=ints(1),
        ),
        "long of a Slice is computed when the model runs",
    ),
    "numbers that go round": (
        lambda: costly(node("Tile", ["face", "times"], ["much"]), times=ints(1, 2**62 + 1, 1, 1)),
        "holds numbers that are out of range",
    ),
    "numbers that go round in a chain": (
        lambda: costly(
            node("Cast", ["big"], ["more"], to=TensorProto.INT64),
            node("Mul", ["more", "more"], ["times"]),
            node("Tile", ["face", "times"], ["much"]),
            big=np.array([1, 2**31 + 1, 1, 1], np.float64),
        ),
        "times of a Tile is computed",
    ),
    "a shape below nothing": (
        lambda: costly(FLOATS, node("Reshape", ["floats", "odd"], ["much"]), odd=ints(-2, 3)),
        "do not fit together",
    ),
    "a tensor of nothing": (
        lambda: costly(
            FLOATS,
            node("Slice", ["floats", "end", "end", "one"], ["none"]),
            node("Reshape", ["none", "flat"], ["much"]),
            end=ints(112),
            one=ints(1),
            flat=ints(-1),
        ),
        "is empty for 1",
    ),
    "a weight of nothing, very long": (
        lambda: costly(
            node("Gather", ["none", "zero"], ["much"], axis=0), zero=ints(0), none=np.zeros((2**40, 0), np.float32)
        ),
        "without just as many numbers",
    ),
    "texts": (
        lambda: costly(
            node("Cast", ["face"], ["texts"], to=TensorProto.STRING),
            node("Cast", ["texts"], ["much"], to=TensorProto.FLOAT),
        ),
        "the type or the shape of the tensor 'texts'",
    ),
    "nine dimensions": (
        lambda: costly(FLOATS, node("Unsqueeze", ["floats", "ones"], ["much"]), ones=ints(*range(5))),
        "the type or the shape of the tensor 'much'",
    ),
    "an attribute twice": (
        lambda: twice(costly(*PLANES, *chain("AveragePool", 1, [], kernel_shape=[1, 1], pads=[0] * 4))),
        "has an attribute twice",
    ),
    "a node that makes nothing": (
        lambda: costly(FLOATS, node("Neg", ["floats"], []), node("Neg", ["floats"], ["much"])),
        "has no output",
    ),
    "a shape behind an operator of later days": (
        lambda: costly(
            FLOATS,
            node("Cast", ["alpha"], ["long"], to=TensorProto.INT64),
            node("ReduceMax", ["floats", "long"], ["much"]),
            opset=18,
        ),
        "long of a ReduceMax is computed",
    ),
    "a pad of axes that are computed": (
        lambda: costly(
            node("Cast", ["alpha"], ["long"], to=TensorProto.INT64),
            node("Pad", ["face", "two", "", "long"], ["much"]),
            opset=18,
            two=ints(2, 2),
        ),
        "long of a Pad is computed",
    ),
}


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
