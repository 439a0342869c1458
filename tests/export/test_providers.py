"""Providers' networks: their input contracts, and what is refused before a training."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgesan import faces as runtime_faces
from export import data, onnx_torch, providers
from export.errors import NetworkError
from export.providers import ChipDetector, Ensemble, Provider

Graph = onnx.GraphProto
Change = Callable[[Graph], object]


def changed(source: Path, target: Path, change: Change) -> Path:
    """A copy of a network with something wrong in its graph."""
    network = onnx.load(str(source))
    change(network.graph)
    onnx.save(network, str(target))
    return target


def dims(graph: onnx.GraphProto, **values: int | str) -> None:
    """Set dimensions of the input: n, c, h."""
    for i, key in enumerate("nch"):
        dim = graph.input[0].type.tensor_type.shape.dim[i]
        if isinstance(value := values.get(key), int):
            dim.dim_value = value
        elif value:
            dim.dim_param = value


def scaled(graph: onnx.GraphProto, name: str, factor: float, shift: float = 0) -> None:
    """Multiply a weight."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array((numpy_helper.to_array(tensor) * factor + shift).astype(np.float32), name)
            )


def test_the_trainer_sees_faces_as_the_runtimes_detector_does(people: data.Faces) -> None:
    detector = ChipDetector(runtime_faces.DETECTOR)
    chip = people.chips[0]
    log_score, marks = detector(torch.from_numpy(chip.transpose(2, 0, 1)[None].copy()).float() / 255)
    m = ChipDetector.MARGIN
    framed = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), m, m, m, m, cv2.BORDER_REPLICATE)
    (face,) = runtime_faces.Detector(160)(np.asarray(framed, np.uint8))
    assert float(log_score.exp().max()) == pytest.approx(face.score, abs=0.01)
    best = int(log_score.argmax())
    stride = int(detector.stride[best])
    first = [0, 400, 500][[8, 16, 32].index(stride)]  # anchors of the finer grids: 20 * 20 and 10 * 10
    row, column = divmod(best - first, 160 // stride)
    anchor = np.array([column, row]) * stride
    np.testing.assert_allclose(marks[0, best].reshape(5, 2).numpy() + anchor, face.landmarks, atol=0.6)


def test_a_classifier_is_trained_against_by_its_log_odds(tiny_networks: Path) -> None:
    provider = Provider("classifier", tiny_networks)
    assert provider.classes == ["M", "F"]
    out = provider(torch.rand(3, 3, 112, 112))
    assert not torch.allclose(out.sum(1), torch.ones(3))


def test_a_network_that_is_not_there_is_refused(tiny_networks: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no provider 'nobody'"):
        Provider("nobody", tiny_networks)
    with pytest.raises(NetworkError, match=r"missing.onnx cannot be read"):
        Provider(str(tmp_path / "missing.onnx"), tmp_path)


def float_value(name: str, shape: list[int] | None) -> onnx.ValueInfoProto:
    """A float tensor that a graph takes or gives."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def take_bytes(graph: Graph) -> None:
    """Let the graph take uint8."""
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda g: dims(g, n=1),
            r"input input is float \[1, 3, 112, 112\]: N is fixed; export the network with a free",
        ),
        (lambda g: dims(g, c=1), r"is float \['N', 1, 112, 112\]; expected is float \[N, 3, size, size\]"),
        (lambda g: dims(g, h=64), r"expected is a square"),
        (take_bytes, "is uint8 .* expected is float"),
        (lambda g: g.input.append(float_value("key", [1])), "it takes input, key"),
        (lambda g: g.output.append(float_value("r", None)), "has the outputs embedding, r: say which"),
    ],
)
def test_a_network_of_another_shape_is_refused(tiny_networks: Path, tmp_path: Path, change: Change, words: str) -> None:
    path = changed(tiny_networks / "embedder.onnx", tmp_path / "x.onnx", change)
    with pytest.raises(NetworkError, match=words):
        Provider(str(path), tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"means": 0}, "unknown key means; known are file, output"),
        ({"mean": [1, 2]}, "mean must be 3 numbers, not"),
        ({"box": "all"}, "box must be 4 numbers"),
        ({"scale": 0}, "scale divides the picture"),
        ({"order": "GBR"}, 'order must be "RGB" or "BGR"'),
        ({"classes": "M"}, "classes must be a list of names"),
        ({"size": 64}, "expected is a square of size 64"),
    ],
)
def test_a_wrong_input_contract_is_refused(tiny_networks: Path, given: dict[str, object], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        Provider(str(tiny_networks / "embedder.onnx"), tiny_networks, given)


@pytest.fixture
def validate(people: data.Faces, tmp_path: Path) -> Callable[..., None]:
    """Reads a network and tries it on four faces; `private` are the classes of the attribute."""

    def check(path: Path, private: list[str] | None = None, **contract: object) -> None:
        providers.validate(Provider(str(path), tmp_path, contract), people.chips[:4], private)

    return check


def test_networks_that_fit_are_taken(validate: Callable[..., None], tiny_networks: Path) -> None:
    validate(tiny_networks / "embedder.onnx")
    validate(tiny_networks / "classifier.onnx", ["F", "M"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: scaled(g, "w2", 0), "the same for all faces: check mean, scale and output"),
        (lambda g: scaled(g, "b2", 1, math.nan), "is not finite on real faces"),
        (lambda g: g.node[4].input.__setitem__(0, "p"), "does not run on pictures"),
    ],
)
def test_a_network_whose_output_is_useless_is_refused(
    validate: Callable[..., None], tiny_networks: Path, tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(NetworkError, match=words):
        validate(changed(tiny_networks / "embedder.onnx", tmp_path / "x.onnx", change))


@pytest.mark.parametrize(
    ("network", "private", "words"),
    [
        ("classifier", None, "is a classifier of M, F; the utility network must embed faces"),
        ("embedder", ["F", "M"], r"classes is missing .* such as classes = \['F', 'M'\]; say it in a providers.toml"),
        ("classifier", ["<30", ">=30"], "classifies M, F; the private attribute is <30, >=30"),
    ],
)
def test_a_network_with_other_classes_is_refused(
    validate: Callable[..., None], tiny_networks: Path, network: str, private: list[str] | None, words: str
) -> None:
    with pytest.raises(NetworkError, match=words):
        validate(tiny_networks / f"{network}.onnx", private)


def test_a_network_with_fewer_outputs_than_classes_is_refused(
    validate: Callable[..., None], tiny_networks: Path
) -> None:
    with pytest.raises(NetworkError, match=r"output gender is \[4, 2\] for 4 pictures; expected \[N, 3 classes\]"):
        validate(tiny_networks / "classifier.onnx", ["F", "M", "X"], classes=["M", "F", "X"])


def detached(a: onnx_torch.Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """The right values of a PRelu, without a gradient."""
    return onnx_torch._prelu(a, x, slope).detach()


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (lambda a, x, slope: torch.relu(x), "computes something else here than in onnxruntime"),
        (lambda a, x, slope: detached(a, x, slope) + x - x.detach(), "where a finite difference has"),
        (detached, "is not differentiable"),
    ],
)
def test_a_network_that_is_computed_or_differentiated_wrong_is_refused(
    validate: Callable[..., None],
    tiny_networks: Path,
    monkeypatch: pytest.MonkeyPatch,
    operator: onnx_torch.Operator,
    words: str,
) -> None:
    monkeypatch.setitem(onnx_torch.OPERATORS, "PRelu", operator)
    with pytest.raises(NetworkError, match=words):
        validate(tiny_networks / "embedder.onnx")


def test_a_network_by_its_path_needs_no_more_than_its_graph_says(tiny_networks: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes((tiny_networks / "embedder.onnx").read_bytes())
    mine, known = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere")), Provider("embedder", tiny_networks)
    x = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(mine(x), known(x))
    (tmp_path / "providers.toml").write_text("[mine]\nmean = 0\nscale = [255, 255, 255]\n")
    beside = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere"))
    assert not torch.allclose(beside(x), known(x))
    given = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere"), {"mean": 127.5, "scale": 127.5})
    torch.testing.assert_close(given(x), known(x))
    assert len({mine.digest, beside.digest}) == 2
    (tmp_path / "providers.toml").write_text("= 1")
    with pytest.raises(NetworkError, match="is no TOML"):
        Provider(str(tmp_path / "mine.onnx"), tmp_path)


def test_several_networks_say_together_what_each_of_them_says(people: data.Faces, tiny_networks: Path) -> None:
    """Each one's embedding is taken from the mean of all faces, and counts alike."""
    embedder = Provider("embedder", tiny_networks).eval()
    other = Provider(
        str(tiny_networks / "embedder.onnx"), tiny_networks, {"order": "BGR", "box": [6, 6, 100, 100]}
    ).eval()
    teacher = Ensemble([embedder, other], people.chips[:1])
    assert teacher.features == 32
    x = torch.from_numpy(people.chips[:12].transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        views = torch.stack([teacher.raw(x), teacher.raw(x.flip(3)), torch.zeros(12, 32)])
        goal = teacher.unite(views, torch.arange(12))
        torch.testing.assert_close(teacher.centre, views[:2].mean((0, 1)))
        torch.testing.assert_close(goal.norm(dim=2), torch.ones(3, 12))
        torch.testing.assert_close(goal[0], goal[2], msg="all views of a face have one target")
        first, second = goal[0].split(16, 1)
        torch.testing.assert_close(first.norm(dim=1), second.norm(dim=1))
        cosine = teacher.judge(x, goal[0])
        expected = torch.nn.functional.normalize(embedder(x[:6]) - teacher.centre[:16])
        torch.testing.assert_close(cosine[:6], 2**0.5 * (expected * first[:6]).sum(1))
        assert cosine.mean() > teacher.judge(x, goal[0].roll(2, 0)).mean() + 0.1, (
            "rows 2n and 2n + 1 are one face, mirrored"
        )
        assert teacher.digest != Ensemble([embedder], people.chips[:1]).digest


def test_a_single_network_says_what_it_says(people: data.Faces, tiny_networks: Path) -> None:
    embedder = Provider("embedder", tiny_networks).eval()
    teacher = Ensemble([embedder], people.chips[:1])
    x = torch.from_numpy(people.chips[:4].transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), embedder(x))
        views = torch.stack([embedder(x), embedder(x.flip(3))])
        assert teacher.unite(views, torch.arange(4)) is views
