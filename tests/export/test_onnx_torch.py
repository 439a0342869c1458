"""ONNX graphs as torch modules: the same values as in onnxruntime, and the right gradients."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export import data
from export.errors import NetworkError
from export.onnx_torch import FrozenOnnx
from export.providers import Provider


def test_a_frozen_network_agrees_with_onnxruntime_and_with_finite_differences(tiny_networks: Path) -> None:
    net = FrozenOnnx(tiny_networks / "embedder.onnx", ["embedding"])
    x = torch.rand(2, 3, 112, 112)
    expected = ort.InferenceSession(tiny_networks / "embedder.onnx").run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(net(x)[0].numpy(), expected, rtol=1e-4, atol=1e-5)

    net = net.double()
    x = torch.rand(1, 3, 112, 112, dtype=torch.double, requires_grad=True)
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(net(x)[0].square().sum(), x)
    step = 1e-6
    above, below = (net(x + way * direction)[0].square().sum() for way in (step, -step))
    difference = (above - below) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_a_graph_that_cannot_be_differentiated_is_refused(tiny_networks: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no output 'age'"):
        FrozenOnnx(tiny_networks / "embedder.onnx", ["age"])
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(NetworkError, match="cannot be read"):
        FrozenOnnx(tmp_path / "text.onnx", ["x"])
    graph = onnx.load(str(tiny_networks / "embedder.onnx"))
    graph.graph.node[1].op_type = "Erf"
    onnx.save(graph, str(tmp_path / "erf.onnx"))
    with pytest.raises(NetworkError, match="uses Erf"):
        FrozenOnnx(tmp_path / "erf.onnx", ["embedding"])


@pytest.mark.data
def test_the_real_networks_agree_with_onnxruntime(networks_folder: Path, people: data.Faces) -> None:
    for name, folder_contract in (("id_mobilefacenet_paddle", False), ("gender_faceapi", True), ("gender_dlib", True)):
        provider = Provider(name, networks_folder)
        session = ort.InferenceSession(networks_folder / f"{name}.onnx")
        size = provider.size
        x = torch.rand(2, 3, size, size) * (255 if folder_contract else 2) - (0 if folder_contract else 1)
        expected = session.run(None, {"input": x.numpy()})[0]
        (out,) = provider.net(x)
        actual = torch.softmax(out, 1) if folder_contract else out
        np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-3, atol=2e-4, err_msg=name)
