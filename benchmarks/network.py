"""How fast the network alone is: `python -m benchmarks.network`.

The int8 network is timed beside its float twin and beside a plain matrix product of the same library, which is the most
that onnxruntime gets out of this machine (the "peak"). `--layers` tells what takes the time, by its own profile.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from benchmarks.results import LabResults, NetworkRow
from edgesan import bench, ort
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs, prepare, read

BATCHES: Final = (1, 2, 4, 8)
THREADS: Final = (1, 2, 4, 8)
RUNS: Final = 200  # in a profile
PEAK: Final = 1024  # rows and columns of the matrices
PRODUCTS: Final = {  # operator, left, right, result
    "int8": ("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
    "fp32": ("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
}


def measure(content: bytes, seconds: float) -> list[NetworkRow]:
    """Time a quantized network for each number of threads, batch and precision.

    Args:
        content: the model file.
        seconds: length of each measurement, of which each contestant gets a quarter.
    """
    quantized = onnx.load_model_from_string(content)
    macs, moved = cost(quantized)
    twins = {"int8": content, "fp32": unquantized(quantized).SerializeToString()}
    rows: list[NetworkRow] = []
    for threads in (t for t in THREADS if t <= (os.cpu_count() or 1)):
        sessions = {precision: ort.session(twin, threads) for precision, twin in twins.items()}
        peaks = {f"{precision} peak": product(precision, threads) for precision in twins}
        for batch in tqdm(BATCHES, desc=f"network, threads {threads}", leave=False):
            calls = {precision: feed(session, batch) for precision, session in sessions.items()}
            taken = bench.in_blocks(calls | peaks, seconds)
            for precision, call in calls.items():
                ms, peak = bench.percentiles(taken[precision]), bench.percentiles(taken[f"{precision} peak"])
                share = bench.ratio(taken, f"{precision} peak", precision) * macs * batch / PEAK**3
                row = NetworkRow(
                    precision=precision,
                    threads=threads,
                    batch=batch,
                    **dataclasses.asdict(ms),
                    gmacs=round(macs * batch / 1e6 / ms.p50, 1),
                    peak_gmacs=round(PEAK**3 / 1e6 / peak.p50, 1),
                    share=round(share, 3),
                    against_float=bench.ratio(taken, "fp32", precision),
                    mmac=round(macs / 1e6, 1),
                    moved_mb=round(moved[precision] * batch / 1e6, 2),
                    allocated_kb=bench.allocated(call),
                )
                rows.append(row)
    return rows


def feed(session: ort.InferenceSession, batch: int) -> Callable[[], object]:
    """Return a call of a sanitizer's session on so many faces."""
    dimensions = next((i.shape[1] for i in session.get_inputs() if i.name == "noise"), 0)
    chips, z = known_inputs(batch, dimensions)
    inputs: dict[str, NDArray[Any]] = {"face": chips, "alpha": np.full((batch, 1), 0.5, np.float32)}
    if dimensions:
        inputs["noise"] = z
    return lambda: session.run(["sanitized"], inputs)


def product(precision: str, threads: int) -> Callable[[], object]:
    """Return a call of the product of two square matrices."""
    operator, left, right, out = PRODUCTS[precision]
    shape = (PEAK, PEAK)
    values = np.frombuffer(os.urandom(PEAK * PEAK), np.uint8).reshape(shape)
    weights = (values // 2).astype(helper.tensor_dtype_to_np_dtype(right))
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "peak",
        [helper.make_tensor_value_info("a", left, shape)],
        [helper.make_tensor_value_info("c", out, shape)],
        [numpy_helper.from_array(weights, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.session(proto.SerializeToString(), threads)
    inputs = {"a": values.astype(helper.tensor_dtype_to_np_dtype(left))}
    return lambda: session.run(["c"], inputs)


def cost(proto: onnx.ModelProto) -> tuple[int, dict[str, int]]:
    """Count the multiplications of one face, and the bytes that its layers read and write at each precision.

    Only convolutions are counted, as the rest is nothing beside them: weights, input and output once each.
    """
    convolutions = _convolutions(proto)
    elements = sum(elements for _, _, elements in convolutions)
    return sum(macs for _, macs, _ in convolutions), {"int8": elements, "fp32": 4 * elements}


def _convolutions(proto: onnx.ModelProto) -> list[tuple[list[int], int, int]]:
    """Return of each convolution the shape of its output, its multiplications, and the elements that it touches."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            taken, weights, output = (shapes[name] for name in (*node.input[:2], node.output[0]))
            elements = math.prod(output) + math.prod(weights) + math.prod(taken)
            found.append((output, math.prod(output) * math.prod(weights[1:]), elements))
    return found


def layers(content: bytes) -> list[str]:
    """Profile an int8 network on one face, with one thread: a table in Markdown, the longest first.

    Convolutions whose outputs have one shape share a row. Their share of the peak is that of their multiplications.
    """
    options = ort.session_options(1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.session(content, options=options)
        call = feed(session, 1)
        for _ in range(RUNS):
            call()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            kind, shape = event["args"]["op_name"], next(iter(event["args"]["output_type_shape"][0].values()))
            taken[_layer(shape[1:]) if kind == "QLinearConv" else kind].append(event["dur"] / 1000)
    macs: defaultdict[str, int] = defaultdict(int)
    for (_, channels, height, width), count, _ in _convolutions(onnx.load_model_from_string(content)):
        macs[_layer([height, width, channels])] += count
    rate = PEAK**3 / bench.percentiles(bench.in_blocks({"peak": product("int8", 1)}, 1)["peak"]).p50
    rows: list[list[str | float]] = []
    for name, each in sorted(taken.items(), key=lambda item: -sum(item[1])):
        ms, count = sum(each) / RUNS, round(len(each) / RUNS)
        share = f"{macs[name] / ms / rate:.0%}" if name in macs else "–"
        rows.append([name, count, round(ms, 2), round(macs.get(name, 0) / 1e6, 1), share])
    return bench.table(("layers", "how many", "ms", "MMAC", "share of the peak"), rows)


def _layer(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"convolutions to {height}x{width}, {channels} channels"


def unquantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float twin of a quantized model.

    It has the same layers and weights, and the same limits of each activation, which do the work of the ReLUs. Nothing
    is rounded.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    graph = twin.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.float32]] = {}
    same: dict[str, str] = {}
    for node in graph.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            constants[node.output[0]] = _dequantized(node, values)
        elif node.op_type == "DequantizeLinear":
            same[node.output[0]] = inputs[0]
        elif node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            limits = np.iinfo(zero.dtype)
            names = [f"{node.output[0]}_least", f"{node.output[0]}_most"]
            for name, limit in zip(names, (limits.min, limits.max), strict=True):
                constants[name] = np.asarray((limit - float(zero)) * scale, np.float32)
            nodes.append(helper.make_node("Clip", [inputs[0], *names], [node.output[0]]))
        else:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            kept.input[:] = inputs
            nodes.append(kept)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tensors += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return twin


def _dequantized(node: onnx.NodeProto, values: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the floats of a quantized weight: (whole - zero) * scale, along the axis of the node."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    whole, scale = values[node.input[0]], values[node.input[1]]
    zero = values[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, np.int8)
    spread = [-1 if i == axis and scale.ndim else 1 for i in range(whole.ndim)]
    away = whole.astype(np.float32) - zero.astype(np.float32).reshape(spread if zero.ndim else ())
    return np.asarray(away * scale.reshape(spread if scale.ndim else ()), np.float32)


def text(rows: Sequence[NetworkRow]) -> str:
    """Return the table, in Markdown."""
    names = [f.name for f in dataclasses.fields(NetworkRow) if f.name not in ("peak_gmacs", "mmac")]
    cells = [[getattr(row, name) for name in names] for row in rows]
    columns = [name.replace("_", " ") for name in names]
    return "\n".join([f"network: {rows[0].mmac:g} MMAC a face", *bench.table(columns, cells)])


def main() -> int:
    """Print the table, or the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, metavar="FILE", help="a sanitizer of int8")
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement (default 4)")
    parser.add_argument("--json", action="store_true", help="as JSON, for benchmarks.compare")
    parser.add_argument("--layers", action="store_true", help="only which layers of the network take how long")
    arguments = parser.parse_args()
    content = read(arguments.model)
    if arguments.layers:
        print("\n".join(layers(content)))
        return 0
    model = prepare(arguments.model, content)
    name = bench.ModelName(model.metadata.name, model.metadata.version, model.sha256)
    rows, machine = measure(content, arguments.seconds), bench.machine()
    if arguments.json:
        print(json.dumps(bench.plain(LabResults(machine, name, network=rows)), indent=1))
    else:
        print("\n".join([*bench.head(machine, name), "", text(rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
