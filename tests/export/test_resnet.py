"""The residual encoder begins where dlib's network is, and stands in the model file as in the training."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from edgesan.model.cut import cut
from export import checkpoint, data, resnet
from export import compile as compiler
from export.errors import NetworkError
from export.networks import DeviceGraph, Sanitizer, Shape, unshuffle
from export.onnx_torch import FrozenOnnx
from export.providers import Provider
from export.resnet import ResidualEncoder

SHAPE = Shape(
    code=8,
    encoder="resnet",
    privatizer_hidden=12,
    unit_code=True,
    decoder_widths=(16, 12, 8, 8),
    decoder_hidden=10,
    coarse_colour=True,
)


def test_a_chip_is_cut_and_resized_as_dlibs_contract_says(people: data.Faces, networks_folder: Path) -> None:
    dlib = Provider(resnet.DLIB, networks_folder)
    x = torch.from_numpy(people.chips[:3].transpose(0, 3, 1, 2).copy()).float() / 255
    encoder = ResidualEncoder(4)
    torch.testing.assert_close(255 * (encoder.rows @ x @ encoder.columns), dlib.prepared(x), atol=1e-2, rtol=0)


def test_the_encoder_begins_with_dlibs_features(people: data.Faces, networks_folder: Path) -> None:
    dlib = Provider(resnet.DLIB, networks_folder)
    encoder = ResidualEncoder(4).eval()
    encoder.begin(dlib.path)
    features: list[torch.Tensor] = []
    encoder.blocks[-1].register_forward_hook(lambda module, x, y: features.append(y))
    x = torch.from_numpy(people.chips[:3].transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        encoder(unshuffle(x))
        sums = [node.output for node in dlib.net.nodes if node.operator == "Add"]
        (expected,) = FrozenOnnx(dlib.path, [sums[len(encoder.blocks) - 1]])(dlib.prepared(x))
    torch.testing.assert_close(features[0], F.relu(expected), atol=2e-3, rtol=1e-3)


def test_an_encoder_does_not_begin_from_another_network(tiny_networks: Path) -> None:
    with pytest.raises(NetworkError, match="is not dlib's face recognition network"):
        ResidualEncoder(4).begin(tiny_networks / "embedder.onnx")


def test_a_residual_sanitizer_is_compiled_cut_and_read_back(people: data.Faces, tmp_path: Path) -> None:
    torch.manual_seed(0)
    s = Sanitizer(16, SHAPE).eval()
    assert s.decoder.colour
    for parameter in (*s.decoder.head.parameters(), *s.decoder.colour.parameters()):
        torch.nn.init.normal_(parameter, std=0.05)
    compiler.export_fp32(s, tmp_path / "fp32.onnx")
    model, width = compiler.quantize(tmp_path / "fp32.onnx", people.chips[:24], 8)
    halves = cut(tmp_path / "int8.onnx", model, "code", width)
    assert (width, halves.code_bytes) == (8, 8)
    onnx.save(model, str(tmp_path / "int8.onnx"))
    read = checkpoint.unpack(tmp_path / "int8.onnx")
    assert {k: v.shape for k, v in read.state_dict().items()} == {k: v.shape for k, v in s.state_dict().items()}
    chips, z = people.chips[:4], np.random.default_rng(0).standard_normal((4, 8), np.float32)
    drawn = compiler.runner(model.SerializeToString())(chips, z, 0.5)
    with torch.no_grad():
        inputs = torch.from_numpy(chips), torch.from_numpy(z), torch.full((4, 1), 0.5)
        for sanitizer in (s, read):
            expected = DeviceGraph(sanitizer)(*inputs).numpy()
            assert np.abs(drawn.astype(int) - expected).mean() < 4
    assert np.ptp(drawn) > 20
