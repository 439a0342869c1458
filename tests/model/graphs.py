"""Graphs for the tests of models: small sanitizers, costly ones, and a damaged bundled one."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.load import (
    load_model,
)
from tests.model.fuzz import PAINT, SHAPES, small

Damage = Callable[[onnx.ModelProto], Any]


def metadata(proto: onnx.ModelProto, **changes: Any) -> None:
    table = json.loads(proto.metadata_props[0].value)
    for key, value in changes.items():
        if value is None:
            del table[key]
        else:
            table[key] = value
    proto.metadata_props[0].value = json.dumps(table)


node = helper.make_node


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


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


def check_refused(damage: Damage, words: str, folder: Path) -> None:
    """Damage the bundled model, and check that loading it says what is wrong with it."""
    proto = onnx.load(str(DEMO_MODEL))
    damage(proto)
    path = folder / "bad.onnx"
    path.write_bytes(proto.SerializeToString())

    with pytest.raises(ModelError) as caught:
        load_model(path, allow_unsigned=True)

    assert type(caught.value) is ModelError
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
