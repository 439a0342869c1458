"""Hostile model files, without end: `make fuzz`, or `python -m tests.model.fuzz --cases 1000000`.

Each case is one of two models, changed at random: bytes, fields of the protobuf (any of ONNX's, also those that no
sanitizer has), or the JSON in it. What must come of it is a verified model or a ModelError, and nothing else. The same
seed gives the same cases; the number of a bad one is printed, and `--only` tries it again.

    --load        also make a session of what passes, in processes of their own: whatever kills onnxruntime is found
    --atheris     guided by coverage (pip install atheris; x86-64 Linux), with the same mutations
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.graph import OPERATORS
from edgesan.model.load import known_inputs, load_model, verify

NUMBERS = (0, 1, -1, 2, 3, 7, 128, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 1e-38, 3e38, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "face",
    "noise",
    "alpha",
    "sanitized",
    "edgesan",
    "N",
    "\0",
    "\x1b[2J",
    "../../etc/passwd",
    "ai.onnx.ml",
    "com.microsoft",
    "*/_ORT_MEM_ADDR_/*",
    "y" * 5000,
    "Conv",
    "Resize",
    "Reshape",
    "Tile",
    "Expand",
    "Gather",
    "ConstantOfShape",
    "Range",
    "Loop",
    "If",
    "Scan",
    "MaxPool",
    "ConvTranspose",
    "QLinearConv",
    "MatMulInteger",
    "RandomNormal",
    "EPContext",
    "Slice",
    "Pad",
    "Einsum",
    "DepthToSpace",
    "Split",
    "OneHot",
    "LSTM",
)
JSONS = (
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x1b[2J",
    "\ud800",
    "z" * 5000,
    [],
    {},
    [[]],
    [0, 1],
    {"value": 10**400},
    [{"value": 1, "figure": "accuracy, sanitized", "attack": 1}],
)
RAW_JSONS = (
    "",
    "{",
    "[" * 100_000,
    '{"a":' * 50_000,
    "1" * 5000,
    '"\\ud800"',
    "NaN",
    "null",
    '{"format": 1}',
    '{"format": 2, "format": 2}',
    "\ufeff{}",
)


def small(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    code: str = "code",
    width: int = 3,
    answer: Mapping[str, Any] | None = None,
    noise: int = 0,
    opset: int = 17,
) -> bytes:
    """A model file of these nodes, with the contract's tensors and metadata."""
    face = helper.make_tensor_value_info("face", TensorProto.UINT8, ["N", 112, 112, 3])
    alpha = helper.make_tensor_value_info("alpha", TensorProto.FLOAT, ["N", 1])
    sanitized = helper.make_tensor_value_info("sanitized", TensorProto.UINT8, ["N", 112, 112, 3])
    inputs = [face, alpha]
    if noise:
        inputs.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", noise]))
    stored = [numpy_helper.from_array(numbers, name) for name, numbers in weights.items()]
    graph = helper.make_graph(nodes, "small", inputs, [sanitized], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    facts = {
        "format": 2,
        "code": {"tensor": code, "bytes": width},
        "name": "small",
        "version": 1,
        "alpha_range": [0.0, 1.0],
        "alpha_default": 0.5,
        "private": "gender",
        "utility": "identity",
        "provenance": {},
        "claims": [{"figure": "gender accuracy, sanitized", "value": 0.5, "attack": "x"}],
        "known_answer": answer or {},
    }
    helper.set_model_props(proto, {"edgesan": json.dumps(facts)})
    return bytes(proto.SerializeToString())


READ: Final = (
    helper.make_node("Slice", ["face", "corner_from", "corner_to", "corner_of"], ["corner"]),
    helper.make_node("ReduceMax", ["corner"], ["code"], axes=[1, 2], keepdims=0),
)
PAINT: Final = (
    helper.make_node("Reshape", ["code", "pixel"], ["colour"]),
    helper.make_node("Expand", ["colour", "picture"], ["sanitized"]),
)
SHAPES: Final = {
    "corner_from": np.array([0, 0]),
    "corner_to": np.array([4, 4]),
    "corner_of": np.array([1, 2]),
    "pixel": np.array([-1, 1, 1, 3]),
    "picture": np.array([1, 112, 112, 3]),
}


def tiny() -> bytes:
    """The smallest sanitizer: its code is the brightest red, green and blue in a corner, and it paints all with it."""
    count = 2
    brightest = known_inputs(count, 0)[0][:, :4, :4].max(axis=(1, 2))
    samples = [[n, y, 5, 1, int(brightest[n, 1])] for n in range(count) for y in range(8)]
    codes = [code.tobytes().hex() for code in brightest]
    answer = {"rule": "waves-1", "count": count, "alpha": 0.5, "tolerance": 0, "samples": samples, "codes": codes}
    return small([*READ, *PAINT], SHAPES, answer=answer)


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 4, 16, 1000)))
        match rng.randrange(6):
            case 0:
                changed[at:end] = rng.randbytes(end - at)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end]
            case 3:
                changed[at:at] = rng.choice((b"\xff" * 9 + b"\x01", b"\x00", b"\x7f", b"\x0b" * 200, b"\x80" * 12))
            case 4:
                del changed[at:]
            case 5 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def value(rng: random.Random, field: Any) -> Any:
    """A nasty one for a protobuf field."""
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 4, 8, 1000)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    bits = 64 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    number = rng.choice(NUMBERS) % 2**bits
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def change_field(rng: random.Random, message: Message) -> None:
    """One field of one message, somewhere below this one."""
    while rng.random() < 0.85:
        below = [
            child
            for field, held in message.ListFields()
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
            for child in ([held] if not field.is_repeated else [held[rng.randrange(len(held))]])
        ]
        if not below:
            break
        message = rng.choice(below)
    # Fields that are set, and any that could be.
    known = [field for field, _ in message.ListFields()] if rng.random() < 0.7 else []
    field = rng.choice(known or list(message.DESCRIPTOR.fields))
    held = getattr(message, field.name)
    inner = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if not field.is_repeated:
        if rng.random() < 0.2:
            message.ClearField(field.name)
        elif inner:
            held.SetInParent()
        else:
            setattr(message, field.name, value(rng, field))
        return
    at = rng.randrange(len(held)) if len(held) else 0
    match rng.randrange(4):
        case 0 if len(held):
            del held[at]
        case 1 if len(held):
            copy = held[at]
            held.add().CopyFrom(copy) if inner else held.append(copy)
        case 2 if len(held) and not inner:
            held[at] = value(rng, field)
        case _ if inner:
            held.add()
        case _:
            held.append(value(rng, field))


def change_sense(rng: random.Random, graph: onnx.GraphProto) -> None:
    """What is well formed and makes no sense: another operator, other inputs, other numbers in a tensor."""
    node = rng.choice(graph.node) if len(graph.node) else graph.node.add()
    match rng.randrange(5):
        case 0:
            node.op_type = rng.choice(sorted(OPERATORS))
        case 1 if len(node.input):
            names = [name for other in (*graph.node, *graph.input) for name in getattr(other, "output", [])]
            names += [tensor.name for tensor in graph.initializer] + ["face", "alpha", ""]
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2 if len(node.attribute):
            a = rng.choice(node.attribute)
            a.i = rng.choice((0, 1, -1, 2, 3, 7, 100, 4096, 65536))
            for at in range(len(a.ints)):
                if rng.random() < 0.5:
                    a.ints[at] = rng.choice((0, 1, -1, 2, 3, 7, 100, 4096, 65536))
        case 3:
            kind, numbers = rng.choice(((np.int64, NUMBERS), (np.float32, FLOATS), (np.int64, (1, 2, 4, 112))))
            content = [rng.choice(numbers) for _ in range(rng.choice((1, 2, 4, 4, 8)))]
            name = f"new{len(graph.initializer)}"
            graph.initializer.append(numpy_helper.from_array(np.array(content, kind), name))
            node.input.append(name) if rng.random() < 0.3 or not len(node.input) else node.input.__setitem__(-1, name)
        case _ if len(graph.initializer):
            tensor = rng.choice(graph.initializer)
            array = np.array(numpy_helper.to_array(tensor))
            numbers = (
                FLOATS if array.dtype.kind == "f" else [n for n in NUMBERS if n == np.array(n).astype(array.dtype)]
            )
            if array.size and numbers:
                array.reshape(-1)[rng.randrange(array.size)] = rng.choice(numbers)
                if rng.random() < 0.2:
                    array = array.reshape(-1)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_json(rng: random.Random, table: Any) -> Any:
    """One value somewhere in it."""
    if isinstance(table, dict) and table and rng.random() < 0.9:
        key = rng.choice(list(table))
        if rng.random() < 0.1:
            table[rng.choice(("x", "value", "\x1b"))] = table.pop(key)
        else:
            table[key] = change_json(rng, table[key])
        return table
    if isinstance(table, list) and table and rng.random() < 0.8:
        at = rng.randrange(len(table))
        table[at] = change_json(rng, table[at])
        return table
    return rng.choice(JSONS)


def change(rng: random.Random, content: bytes) -> bytes:
    """The model with a few things changed."""
    kind = rng.randrange(6)
    if kind == 0:
        return change_bytes(rng, content)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if kind < 3:
                change_field(rng, proto)
            elif kind > 3:
                change_sense(rng, proto.graph)
            elif not proto.metadata_props:
                break
            elif rng.random() < 0.1:
                proto.metadata_props[0].value = rng.choice(RAW_JSONS)
            else:
                table = change_json(rng, json.loads(proto.metadata_props[0].value))
                proto.metadata_props[0].value = json.dumps(table)
        return bytes(proto.SerializeToString())
    except (DecodeError, EncodeError, ValueError, TypeError, RecursionError):  # it is too broken for that already
        return change_bytes(rng, content)


SEEDS = (tiny(), DEMO_MODEL.read_bytes())


def case(seed: int, number: int) -> bytes:
    """The case of that number: the tiny model seven times in eight, where a change hits more often."""
    rng = random.Random(f"{seed}/{number}")
    return change(rng, SEEDS[number % 8 == 7])


def verdict(content: bytes) -> str:
    """What the reader says of it, before onnxruntime sees it; any other error than its own goes on."""
    try:
        verify(Path("fuzz.onnx"), content)
    except ModelError:
        return "refused"
    return "verified"


def run(seed: int, cases: int) -> int:
    started, counts = time.monotonic(), dict.fromkeys(("refused", "verified"), 0)
    for number in range(cases):
        try:
            counts[verdict(case(seed, number))] += 1
        except BaseException:
            print(f"case {number} of seed {seed}:", file=sys.stderr)
            raise
        if (number + 1) % 100_000 == 0 or number + 1 == cases:
            seconds = time.monotonic() - started
            print(f"{number + 1} cases, {counts}, {(number + 1) / seconds:.0f}/s", flush=True)
    return 0


def load_all(seed: int, numbers: range, report: int, folder: Path) -> None:
    """Load each case that passes; writes the number of each before, so that it is known which one was the last."""
    path = folder / "case.onnx"
    for number in numbers:
        content = case(seed, number)
        os.write(report, (2 * number).to_bytes(8))
        if verdict(content) == "refused":
            continue
        os.write(report, (2 * number + 1).to_bytes(8))
        path.write_bytes(content)
        # 20 seconds of CPU, then it is killed: a model that takes so long is a finding as well.
        signal.setitimer(signal.ITIMER_PROF, 20)
        with suppress(ModelError):
            load_model(path, allow_unsigned=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def run_loading(seed: int, cases: int) -> int:
    """As `run`, with sessions; each batch in a forked process, which may die."""
    bad, loaded, started, at = 0, 0, time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        while at < cases:
            numbers = range(at, min(cases, at + 500))
            read, write = os.pipe()
            child = os.fork()
            if not child:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                code = 1
                try:
                    load_all(seed, numbers, write, Path(folder))
                    code = 0
                finally:  # whatever happened, nothing of the parent's is done twice
                    if code:
                        traceback.print_exc()
                    os._exit(code)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                tried = np.frombuffer(pipe.read(), ">u8")
            _, status = os.waitpid(child, 0)
            loaded += int((tried % 2).sum())
            at = numbers.stop
            if status:
                at = int(tried[-1]) // 2 + 1
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
                print(f"case {at - 1} of seed {seed}: the process ended by {how}", flush=True)
                bad += 1
    print(f"{cases} cases, {loaded} of them loaded, {bad} deaths, {cases / (time.monotonic() - started):.0f}/s")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="try this case alone")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--atheris", action="store_true")
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(verdict(case(arguments.seed, arguments.only)))
        return 0
    if arguments.atheris:
        import atheris

        atheris.instrument_func(verify)
        atheris.Setup(
            [sys.argv[0], f"-runs={arguments.cases}", f"-seed={arguments.seed + 1}", "-max_len=65536"],
            lambda data: verdict(bytes(data)) and None,
            custom_mutator=lambda data, size, seed: change(random.Random(seed), bytes(data) or SEEDS[0])[:size],
        )
        atheris.Fuzz()
        return 0
    return run_loading(arguments.seed, arguments.cases) if arguments.load else run(arguments.seed, arguments.cases)


if __name__ == "__main__":
    sys.exit(main())
