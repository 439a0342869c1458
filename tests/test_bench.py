"""The benchmark measures what it says, on the real model and the real processes."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import aims, check, compare, projection
from edgesan import bench, faces, ort
from edgesan.config import DEMO_MODEL, Config
from edgesan.model.load import Model, known_inputs, load_model


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
    chips, z = known_inputs(4, 64)
    feed = {"face": chips, "noise": z, "alpha": np.full((4, 1), 0.5, np.float32)}
    pictures = []
    for content in (proto.SerializeToString(), twin.SerializeToString()):
        session = ort.session(content)
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
    assert 0 < row["ms"]["detect"]["p50"] <= row["loop"]
    assert row["ms"]["sanitize"]["p50"] < row["glass_to_wire"]["p99"]
    assert row["wall_bytes_per_s"] < 2048 * 60
    assert row["cpu_percent"] > 0
    assert row["memory_mb"] > 20
    assert row["first_frame_s"] > 0


def test_the_command_prints_tables_or_json_and_names_machine_and_model() -> None:
    command = [sys.executable, "-m", "edgesan", "bench", "--part", "core", "--seconds", "0.1"]
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert told["machine"]["cores"] >= 1
    assert told["model"]["sha256"] == load_model(DEMO_MODEL).sha256
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


def test_each_stage_can_be_called_alone(sanitizer_model: Model) -> None:
    with ExitStack() as stack:
        calls = bench.kernels((480, 270), sanitizer_model, Config(), stack)
        assert {*bench.LOOP, "capture", "noise", "frame", "jpeg", "send"} == calls.keys()
        assert bench.allocated(calls["frame"]) > 480 * 270 * 3 / 1e3, "a frame needs a canvas"
        for call in calls.values():
            call()
        assert calls["pipe"]() is not None, "the message comes out of the pipe"


def test_the_way_of_a_frame_paints_each_face_of_the_scene(sanitizer_model: Model) -> None:
    way = bench.pipeline(sanitizer_model, Config())
    counts = [way(pixels).stamps.faces for pixels in bench.scene((640, 480), 16)[:9]]
    assert counts == [2, 4, 6, 8, 10, 12, 14, 16, 16], "two new faces a frame"


def stored() -> dict[str, Any]:
    """Real results: of any machine that stored its ratios."""
    results = [json.loads(path.read_text()) for path in sorted(check.RESULTS.glob("*-cores.json"))]
    return next(result for result in results if "ratios" in result)


def test_a_ratio_that_is_worse_by_more_than_15_percent_is_named() -> None:
    ratios = stored()["ratios"]
    assert check.worse(ratios, ratios) == []
    assert check.worse(ratios, {name: 1.14 * ratio for name, ratio in ratios.items()}) == []
    assert check.worse(ratios, {name: 0.1 * ratio for name, ratio in ratios.items()}) == [], "faster is no fault"
    for name, ratio in ratios.items():
        assert check.worse(ratios, ratios | {name: 1.16 * ratio}) == [name]
        assert check.worse(ratios, ratios | {name: float("nan")}) == [name]
        assert check.worse(ratios, {other: r for other, r in ratios.items() if other != name}) == [name]


def test_ratios_are_compared_with_those_of_the_same_kind_of_machine_only() -> None:
    result = stored()
    assert check.stored_ratios(check.RESULTS, result["machine"]) == result["ratios"]
    for change in ({"processor": "Abacus"}, {"cores": 1000}, {"int8": ["abacus"]}):
        with pytest.raises(SystemExit, match="no ratios of"):
            check.stored_ratios(check.RESULTS, result["machine"] | change)


def test_the_ratios_that_are_stored_are_those_that_are_measured() -> None:
    assert check.ratios(0.1).keys() == stored()["ratios"].keys()


def test_every_aim_has_a_measured_value() -> None:
    table = aims.text(stored())
    assert table.count("| met |") + table.count("| missed |") == len(aims.AIMS)
    assert "nan" not in table


def test_results_are_named_after_the_processor() -> None:
    machine = {"processor": "Intel(R) Xeon(R) Processor @ 2.80GHz", "cores": 2}
    assert aims.file_name(machine) == "intel-xeon-2-80ghz-2-cores.json"
    assert aims.file_name({"processor": "Raspberry Pi 5 Model B Rev 1.0", "cores": 4}) == (
        "raspberry-pi-5-model-b-rev-1-0-4-cores.json"
    )


def test_machines_are_drawn_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in sorted(check.RESULTS.glob("*-cores.json"))]
    picture = tmp_path / "machines.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare", *files, "--plot", str(picture)])
        assert compare.main() == 0
    assert capsys.readouterr().out.count("cores |") == len(files)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_projection_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert projection.main() == 0
    told = capsys.readouterr().out
    assert told.startswith("PROJECTION, not measured")
    assert "Pi 4" in told
    assert "Pi 5" in told


def test_a_published_network_takes_what_its_own_rate_says() -> None:
    for board in projection.BOARDS:
        like = board.points[0]
        assert projection.by_multiplications(board, like.gmac)[1] == pytest.approx(like.ms)
