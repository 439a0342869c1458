"""The model file: quantized, with its metadata, as the runtime reads it; and model files of earlier formats."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.load import known_inputs, load_model
from export import checkpoint, data
from export import compile as compiler
from export.audit.claims import graph_digest
from export.networks import Sanitizer, Shape
from tests.export.support import small_recipe, small_training


def test_a_small_training_becomes_a_model_that_the_runtime_runs(
    finished: Path, compiled: Path, people: data.Faces
) -> None:
    loaded = load_model(compiled, allow_unsigned=True)
    assert (loaded.noise_dimensions, loaded.metadata.format) == (4, 2)
    assert loaded.metadata.code == {"tensor": "code", "bytes": 4}
    assert loaded.metadata.provenance["recipe_sha256"] == checkpoint.load_checkpoint(finished).recipe.digest
    assert loaded.metadata.provenance["data_sha256"] == people.digest()
    out = loaded.run(people.chips[:5], np.zeros((5, 4), np.float32), 0.5)
    assert out.shape == (5, 112, 112, 3)


def test_a_training_is_compiled_with_the_faces_of_its_recipe(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finished), "--out", str(tmp_path / "x.onnx")]
    assert compiler.main(arguments) == 1
    assert "error: --data is needed" in capsys.readouterr().err
    assert compiler.main([*arguments, "--data", str(tmp_path)]) == 1
    assert "lfw.csv is not there" in capsys.readouterr().err
    assert compiler.main([str(tmp_path), "--out", str(tmp_path / "x.onnx"), "--data", str(tmp_path)]) == 1
    assert "no sanitizer.pt in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_deterministic_model_of_other_attributes_takes_no_noise(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    """Age groups as the private attribute, gender as the utility: a recipe, and no code."""
    known = np.arange(len(people)) % 5 > 0
    ages = np.where(known, np.where(people["gender"] == "F", "25", "50"), "")
    aged = data.Faces(people.chips, people.columns | {"age": ages})
    other = 'private = "age"\nprivate_bins = [40]\nutility_column = "gender"\nidentity_cosine_weight = 0\n'
    r = small_recipe(tmp_path, more=other + "stochastic = false")
    small_training(r, aged, tiny_networks, tmp_path / "run", targets)
    trained = checkpoint.load_checkpoint(tmp_path / "run")
    assert trained.classes == ["<40", ">=40"]
    assert sum(trained.prior) == pytest.approx(1)
    report = compiler.compile_model(tmp_path / "run", aged, tmp_path / "age.onnx", [], alpha_default=0.25)
    assert list(report) == [0.0, 0.25, 1.0]
    assert report[0.25].mean_levels < 3
    loaded = load_model(tmp_path / "age.onnx", allow_unsigned=True)
    assert (loaded.metadata.private, loaded.metadata.utility) == ("age", "gender")
    assert (loaded.noise_dimensions, loaded.code_bytes, loaded.metadata.alpha_default) == (0, 4, 0.25)
    first, second = (loaded.run(people.chips[:2], np.zeros((2, 0), np.float32), 0.5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_model_file_gets_another_default_of_its_dial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "turned.onnx"
    assert compiler.main([str(DEMO_MODEL), "--out", str(out), "--alpha-default", "0.6"]) == 0
    turned, before = load_model(out, allow_unsigned=True), load_model(DEMO_MODEL)
    assert turned.metadata.alpha_default == 0.6
    assert not turned.metadata.claims, "they were made at another alpha"
    assert graph_digest(out) == graph_digest(DEMO_MODEL)
    chips, z = np.full((1, 112, 112, 3), 120, np.uint8), np.zeros((1, 64), np.float32)
    np.testing.assert_array_equal(turned.run(chips, z, 0.5), before.run(chips, z, 0.5))
    assert "in format 2; sign it anew" in capsys.readouterr().out


@pytest.fixture(scope="module")
def format_1(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """An int8 network as format 1 had it: reshapes ask the face for the number of faces, no tensor is the code."""
    torch.manual_seed(0)
    folder, width = tmp_path_factory.mktemp("format-1"), 8
    chips = known_inputs(6, width)[0]
    compiler.export_fp32(Sanitizer(16, Shape(code=width)).eval(), folder / "fp32.onnx")
    quantize_static(
        str(folder / "fp32.onnx"),
        str(folder / "int8.onnx"),
        compiler.CalibrationChips(chips, width),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=compiler.QUANTIZED,
    )
    proto = onnx.load(str(folder / "int8.onnx"))
    graph = proto.graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    stored |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}

    def store(name: str, number: int) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))

    store("none", 0)
    store("once", 1)
    nodes: list[onnx.NodeProto] = [
        helper.make_node("Shape", ["face"], ["shape"]),
        helper.make_node("Slice", ["shape", "none", "once"], ["count"]),
    ]
    for node in graph.node:
        if node.op_type == "Reshape" and stored[node.input[1]][0] == -1:
            lengths = {f"{node.output[0]}_{i}": int(n) for i, n in enumerate(stored[node.input[1]][1:])}
            for name, length in lengths.items():
                store(name, length)
            nodes.append(helper.make_node("Concat", ["count", *lengths], [f"{node.output[0]}_shape"], axis=0))
            node.input[1] = f"{node.output[0]}_shape"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    table = json.loads(onnx.load(str(DEMO_MODEL)).metadata_props[0].value) | {"format": 1}
    del table["code"]
    helper.set_model_props(proto, {"edgesan": json.dumps(table)})
    return proto


def test_a_model_file_of_an_older_format_is_upgraded_and_gives_the_same_to_the_level(
    format_1: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    proto = format_1
    assert "Shape" in {node.op_type for node in proto.graph.node}
    onnx.save(proto, str(old))
    with pytest.raises(ModelError, match=r"has the format 1; .* convert it .python -m export.compile old.onnx --out"):
        load_model(old, allow_unsigned=True)
    assert compiler.main([str(old), "--out", str(new)]) == 0
    assert f"{new}: {old} in format 2; sign it anew" in capsys.readouterr().out
    upgraded = load_model(new, allow_unsigned=True)
    assert upgraded.metadata.code == {"tensor": "code", "bytes": 8}
    assert upgraded.metadata.claims == json.loads(proto.metadata_props[0].value)["claims"]
    chips, z = known_inputs(5, 8)
    for alpha in (0.0, 0.5, 1.0):
        before = compiler.runner(old.read_bytes())(chips, z, alpha)
        np.testing.assert_array_equal(upgraded.run(chips, z, alpha), before)
    assert len(set(upgraded.encoder.encode(chips, z, 0.5))) == 5


def test_a_model_whose_face_goes_around_its_code_gets_no_format(
    format_1: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(format_1)
    last = next(node for node in proto.graph.node if node.output[0] == "sanitized")
    last.output[0] = "drawn"
    proto.graph.node.append(helper.make_node("Max", ["drawn", "face"], ["sanitized"]))
    onnx.save(proto, str(tmp_path / "old.onnx"))
    assert compiler.main([str(tmp_path / "old.onnx"), "--out", str(tmp_path / "new.onnx")]) == 1
    assert "no 8-bit tensor of at most 128 numbers lies on every path" in capsys.readouterr().err
    (tmp_path / "text.onnx").write_text("no model")
    assert compiler.main([str(tmp_path / "text.onnx"), "--out", str(tmp_path / "new.onnx")]) == 1
    assert "is no model file" in capsys.readouterr().err
    assert not (tmp_path / "new.onnx").exists()
