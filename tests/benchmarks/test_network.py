"""The laboratory's measures of the network: what is counted, the float twin, and the yardstick."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import network, results
from edgesan import ort
from edgesan.config import DEMO_MODEL
from edgesan.model.load import known_inputs


def test_multiplications_and_bytes_are_counted_as_by_hand() -> None:
    weights = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    convolution = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 4, 4])
    graph = helper.make_graph([convolution], "g", [x], [y], [weights])
    macs, moved = network.cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert macs == 4 * 4 * 4 * 27
    elements = 3 * 8 * 8 + 4 * 3 * 3 * 3 + 4 * 4 * 4
    assert moved == {"int8": elements, "fp32": 4 * elements}


def test_the_float_twin_paints_what_the_shipped_file_does() -> None:
    proto = onnx.load(DEMO_MODEL)
    twin = network.unquantized(proto)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in twin.graph.node}
    chips, z = known_inputs(4, 64)
    feed = {"face": chips, "noise": z, "alpha": np.full((4, 1), 0.5, np.float32)}
    whole, rounded = (ort.session(p.SerializeToString(), 1).run(["sanitized"], feed)[0] for p in (twin, proto))
    error = float(((whole.astype(np.float64) - rounded) ** 2).mean())
    assert 0 < error < 255**2 / 10**3, "30 dB"


def test_the_profile_has_every_multiplication_in_one_row_of_its_shape() -> None:
    content = DEMO_MODEL.read_bytes()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in network.layers(content)[2:]]
    macs, _ = network.cost(onnx.load_model_from_string(content))
    assert sum(float(row[3]) for row in rows) == pytest.approx(macs / 1e6, abs=1)
    convolutions = [row for row in rows if row[0].startswith("convolutions")]
    assert len({row[0] for row in convolutions}) == len(convolutions) > 5
    assert all(row[4] == "–" for row in rows if row not in convolutions), "nothing else multiplies"


def test_a_matrix_product_of_int8_is_right() -> None:
    """It is the yardstick: if it were another computation, all shares would be wrong."""
    result = network.product("int8", 1)()
    assert isinstance(result, list)
    assert (result[0].dtype, result[0].shape) == (np.int32, (network.PEAK, network.PEAK))


def test_the_command_prints_results_that_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "THREADS", (1,))
    monkeypatch.setattr(sys, "argv", ["network", "--seconds", "0.1", "--json"])
    assert network.main() == 0
    (tmp_path / "machine.json").write_text(capsys.readouterr().out)
    rows = results.load(tmp_path / "machine.json").network
    assert {(r.precision, r.batch) for r in rows} == {(p, b) for p in ("int8", "fp32") for b in network.BATCHES}
    assert all(0 < r.p50 <= r.p95 <= r.p99 for r in rows)
    assert "| precision | threads | batch |" in network.text(rows)


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "benchmarks.network", "--model", "nowhere.onnx"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "nowhere.onnx" in done.stderr
