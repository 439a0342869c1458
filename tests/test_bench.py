"""The benchmark measures what it says, on the real model and the real processes."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesan import bench, faces, model
from edgesan.config import DEMO_MODEL, Config


def test_multiplications_and_bytes_are_counted_as_by_hand() -> None:
    weights = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 4, 4])], [weights],
    )  # fmt: skip
    macs, moved = bench.cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert macs == 4 * 4 * 4 * 27
    elements = 3 * 8 * 8 + 4 * 3 * 3 * 3 + 4 * 4 * 4
    assert moved == {"int8": elements, "fp32": 4 * elements}


def test_the_float_twin_paints_what_the_shipped_file_does() -> None:
    proto = onnx.load(DEMO_MODEL)
    twin = bench.unquantized(proto)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in twin.graph.node}
    chips, z = model.known_inputs(4, 64)
    feed = {"face": chips, "noise": z, "alpha": np.full((4, 1), 0.5, np.float32)}
    pictures = []
    for content in (proto.SerializeToString(), twin.SerializeToString()):
        session = ort.InferenceSession(content, faces.session_options(1), ["CPUExecutionProvider"])
        pictures.append(session.run(["sanitized"], feed)[0].astype(np.float64))
    error = float(((pictures[0] - pictures[1]) ** 2).mean())
    assert 0 < error < 255**2 / 10**3, "30 dB"


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_clip_shows_as_many_faces_as_it_says(count: int, detector: faces.Detector) -> None:
    found = [len(detector(pixels)) for pixels in bench.scene((640, 480), count)[::10]]
    assert np.median(found) == count


def test_a_run_is_measured_from_glass_to_wire() -> None:
    row = bench.wire((480, 270), 1, Config(), 1)
    assert (row["size"], row["faces"], row["found"]) == ("480x270", 1, 1)
    assert 0 < row["ms"]["infer"]["p50"] < row["loop"] < row["glass_to_wire"]["p99"]
    assert row["cpu_percent"] > 0
    assert row["memory_mb"] > 20
    assert row["first_frame_s"] > 0


def test_the_command_prints_tables_or_json_and_names_machine_and_model() -> None:
    command = [sys.executable, "-m", "edgesan", "bench", "--part", "core", "--seconds", "0.1"]
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert told["machine"]["cores"] >= 1
    assert told["model"]["sha256"] == model.load(DEMO_MODEL).sha256
    assert {(r["precision"], r["batch"]) for r in told["core"]} == {
        (p, b) for p in ("int8", "fp32") for b in (1, 2, 4, 8)
    }
    assert all(0 < r["p50"] <= r["p95"] <= r["p99"] for r in told["core"])
    assert "| precision | threads | batch |" in bench.text(told)


def test_a_matrix_product_of_int8_is_right() -> None:
    """It is the yardstick: if it were another computation, all shares would be wrong."""
    result = bench.product("int8", 1)()
    assert isinstance(result, list)
    assert (result[0].dtype, result[0].shape) == (np.int32, (bench.PEAK, bench.PEAK))
