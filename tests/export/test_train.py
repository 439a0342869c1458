"""Training and compiling: losses by hand, gradients by differences, and a small real training that the runtime runs."""

import io
import itertools
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgesan import faces as runtime_faces
from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.frames import Pixels
from edgesan.model.load import known_inputs, load_model
from export import compile as compiler
from export import data, losses, onnx_torch, pack, providers, recipe, sweep, train
from export.audit import mechanisms
from export.audit.claims import graph_digest
from export.errors import DataError, ExportError, NetworkError, RecipeError
from export.networks import DeviceGraph, Sanitizer, Unet
from export.onnx_torch import FrozenOnnx
from export.providers import Finder, Provider
from tests.support import ROOT

PLAIN = '[{name}]\nfile = "{name}.onnx"\noutput = "{output}"\n{classes}box = [0, 0, 112, 112]\nsize = {size}\norder = "RGB"\nmean = [127.5, 127.5, 127.5]\nscale = [127.5, 127.5, 127.5]\n'


def tiny_network(path: Path, output: str, width: int, seed: int, softmax: bool) -> None:
    """A real, small, frozen ONNX network: convolution, activation, pooling, a linear layer."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(0, 0.2, (8, 3, 3, 3)), "b1": random.normal(0, 0.1, 8), "slope": np.full((8, 1, 1), 0.25),
        "w2": random.normal(0, 0.4, (width, 8 * 49)), "b2": np.zeros(width),
    }  # fmt: skip
    last = "logits" if softmax else output
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c"], strides=[2, 2], pads=[1, 1, 0, 0], kernel_shape=[3, 3]),
        helper.make_node("PRelu", ["c", "slope"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], [last], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], [output], axis=1))
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


@pytest.fixture(scope="module")
def tiny_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provider's folder: an embedder, a classifier, and their contracts."""
    folder = tmp_path_factory.mktemp("networks")
    tiny_network(folder / "embedder.onnx", "embedding", 16, 1, softmax=False)
    tiny_network(folder / "classifier.onnx", "gender", 2, 2, softmax=True)
    (folder / "providers.toml").write_text(
        PLAIN.format(name="embedder", output="embedding", classes="", size=112)
        + PLAIN.format(name="classifier", output="gender", classes='classes = ["M", "F"]\n', size=112)
    )
    return folder


@pytest.fixture(scope="module")
def people() -> data.Faces:
    """Real chips: the two people of the bundled clip, and each of them mirrored as a third and a fourth."""
    from tests.support import CLIP

    detector, chips, names = runtime_faces.Detector(320), [], []
    capture = cv2.VideoCapture(str(CLIP))
    while True:
        done, pixels = capture.read()
        if not done:
            break
        found = sorted(detector(pixels), key=lambda f: float(f.box[0]))
        for name, face in zip(("woman", "man"), found if len(found) == 2 else [], strict=False):
            chip = runtime_faces.cut(pixels, runtime_faces.alignment(face.landmarks))
            chips += [chip, chip[:, ::-1].copy()]
            names += [name, f"{name} mirrored"]
    identity = np.array(names)
    gender = np.where(np.char.startswith(identity, "woman"), "F", "M")
    split = np.where(np.arange(len(names)) % 8 >= 6, "val", "train")
    blank = np.full(len(names), "")
    return data.Faces(np.stack(chips), {"identity": identity, "gender": gender, "age": blank, "identity_split": split,
                                        "closed_set_split": blank, "file": blank})  # fmt: skip


def test_the_losses_are_the_papers_by_hand() -> None:
    prior = torch.tensor([0.25, 0.75])
    logits = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.25), math.log(0.75)]])
    # KL(P(p) || P(p|S(x))): the prior comes first
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    torch.testing.assert_close(losses.privacy_loss(prior, logits), torch.tensor([by_hand, 0.0]))
    other_way = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert abs(by_hand - other_way) > 0.01, "the two directions differ here, so the test can tell them apart"

    # KL(P(u|x) || P(u|S(x))): the raw posterior comes first
    raw, sanitized = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.tensor([[math.log(0.6), math.log(0.4)]])
    expected = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    torch.testing.assert_close(losses.utility_loss(raw, sanitized), torch.tensor([expected]))
    assert abs(expected - losses.utility_loss(sanitized, raw).item()) > 0.01, "the two directions differ here, too"

    mix = losses.sanitizer_loss(torch.tensor([2.0, 2.0]), torch.tensor([5.0, 5.0]), torch.tensor([[0.0], [0.3]]))
    torch.testing.assert_close(mix, torch.tensor([2.0, 0.7 * 2 + 0.3 * 5]))


def test_the_finding_loss_counts_score_and_landmarks_where_a_face_was() -> None:
    raw = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.zeros(1, 2, 10)
    sanitized = torch.tensor([[math.log(0.3), math.log(0.9)]]), torch.full((1, 2, 10), 2.0)
    # the second anchor saw no face: its score may rise, its landmarks may move
    torch.testing.assert_close(losses.finding_loss(raw, sanitized), torch.tensor([math.log(3) + 0.2]))


def test_the_trainer_sees_faces_as_the_runtimes_detector_does(people: data.Faces) -> None:
    finder = Finder(runtime_faces.DETECTOR)
    chip = people.chips[0]
    log_score, marks = finder(torch.from_numpy(chip.transpose(2, 0, 1)[None].copy()).float() / 255)
    framed = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), *(4 * (Finder.MARGIN,)), cv2.BORDER_REPLICATE)
    (face,) = runtime_faces.Detector(160)(framed)
    assert float(log_score.exp().max()) == pytest.approx(face.score, abs=0.01)
    best = int(log_score.argmax())
    stride = int(finder.stride[best])
    first = [0, 400, 500][[8, 16, 32].index(stride)]  # anchors of the finer grids: 20 * 20 and 10 * 10
    row, column = divmod(best - first, 160 // stride)
    anchor = np.array([column, row]) * stride
    np.testing.assert_allclose(marks[0, best].reshape(5, 2).numpy() + anchor, face.landmarks, atol=0.6)


def test_the_attackers_loss_counts_raw_and_sanitized_pictures() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    loss = losses.attacker_loss(logits, -logits, torch.tensor([1]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.75) - math.log(0.25)))
    unknown = losses.attacker_loss(
        logits.repeat(2, 1), -logits.repeat(2, 1), torch.tensor([1, -1]), torch.tensor([1, -1])
    )
    torch.testing.assert_close(unknown, loss)  # who is not known teaches nothing


def test_a_frozen_network_agrees_with_onnxruntime_and_with_finite_differences(tiny_networks: Path) -> None:
    import onnxruntime as ort

    net = FrozenOnnx(tiny_networks / "embedder.onnx", ["embedding"])
    x = torch.rand(2, 3, 112, 112)
    expected = ort.InferenceSession(tiny_networks / "embedder.onnx").run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(net(x)[0].numpy(), expected, rtol=1e-4, atol=1e-5)

    net = net.double()
    x = torch.rand(1, 3, 112, 112, dtype=torch.double, requires_grad=True)
    direction = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(net(x)[0].square().sum(), x)
    step = 1e-6
    difference = (net(x + step * direction)[0].square().sum() - net(x - step * direction)[0].square().sum()) / (
        2 * step
    )
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_a_classifier_is_trained_against_by_its_log_odds(tiny_networks: Path) -> None:
    provider = Provider("classifier", tiny_networks)
    assert provider.classes == ["M", "F"]
    out = provider(torch.rand(3, 3, 112, 112))
    assert not torch.allclose(out.sum(1), torch.ones(3))


def test_a_network_that_cannot_be_used_is_refused_at_the_door(tiny_networks: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no output 'age'"):
        FrozenOnnx(tiny_networks / "embedder.onnx", ["age"])
    with pytest.raises(NetworkError, match="no provider 'nobody'"):
        Provider("nobody", tiny_networks)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(NetworkError, match="cannot be read"):
        FrozenOnnx(tmp_path / "text.onnx", ["x"])
    with pytest.raises(NetworkError, match=r"missing.onnx cannot be read"):
        Provider(str(tmp_path / "missing.onnx"), tmp_path)
    graph = onnx.load(str(tiny_networks / "embedder.onnx"))
    graph.graph.node[1].op_type = "Erf"
    onnx.save(graph, str(tmp_path / "erf.onnx"))
    with pytest.raises(NetworkError, match="uses Erf"):
        FrozenOnnx(tmp_path / "erf.onnx", ["embedding"])


def changed(source: Path, target: Path, change: Callable[[onnx.GraphProto], object]) -> str:
    """A copy of a network with something wrong in its graph."""
    network = onnx.load(str(source))
    change(network.graph)
    onnx.save(network, str(target))
    return str(target)


def dims(graph: onnx.GraphProto, **values: int | str) -> None:
    """Set dimensions of the input: n, c, h."""
    for i, key in enumerate("nch"):
        dim = graph.input[0].type.tensor_type.shape.dim[i]
        if isinstance(value := values.get(key), int):
            dim.dim_value = value
        elif value:
            dim.dim_param = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: dims(g, n=1), r"input input is float \[1, 3, 112, 112\]: N is fixed; export the network with a free first"),
        (lambda g: dims(g, c=1), r"is float \['N', 1, 112, 112\]; expected is float \[N, 3, size, size\]"),
        (lambda g: dims(g, h=64), r"expected is a square"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.UINT8), "is uint8 .* expected is float"),
        (lambda g: g.input.append(helper.make_tensor_value_info("key", TensorProto.FLOAT, [1])), "it takes input, key"),
        (lambda g: g.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None)), "has the outputs embedding, r: say which"),
    ],
)  # fmt: skip
def test_a_network_of_another_shape_is_refused(
    tiny_networks: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], object], words: str
) -> None:
    path = changed(tiny_networks / "embedder.onnx", tmp_path / "x.onnx", change)
    with pytest.raises(NetworkError, match=words):
        Provider(path, tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
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
def test_a_wrong_input_contract_is_refused(tiny_networks: Path, said: dict[str, object], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        Provider(str(tiny_networks / "embedder.onnx"), tiny_networks, said)


def scaled(graph: onnx.GraphProto, name: str, factor: float, shift: float = 0) -> None:
    """Multiply a weight."""
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array((numpy_helper.to_array(tensor) * factor + shift).astype(np.float32), name)
            )


def test_a_network_that_is_useless_in_a_training_is_refused(
    people: data.Faces, tiny_networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, classifier, chips = (
        tiny_networks / "embedder.onnx",
        str(tiny_networks / "classifier.onnx"),
        people.chips[:4],
    )

    def examine(path: str, tells: list[str] | None = None, **said: object) -> None:
        providers.validate(Provider(path, tmp_path, said), chips, tells)

    examine(str(embedder))
    examine(classifier, ["F", "M"])
    with pytest.raises(NetworkError, match="the same for all faces: check mean, scale and output"):
        examine(changed(embedder, tmp_path / "constant.onnx", lambda g: scaled(g, "w2", 0, 0)))
    with pytest.raises(NetworkError, match="is not finite on real faces"):
        examine(changed(embedder, tmp_path / "nan.onnx", lambda g: scaled(g, "b2", 1, math.nan)))
    with pytest.raises(NetworkError, match="is a classifier of M, F; the utility network must embed faces"):
        examine(classifier)
    with pytest.raises(
        NetworkError, match=r"classes is missing .* such as classes = \['F', 'M'\]; say it in a providers.toml"
    ):
        examine(str(embedder), ["F", "M"])
    with pytest.raises(NetworkError, match="tells M, F; the private attribute is <30, >=30"):
        examine(classifier, ["<30", ">=30"])
    with pytest.raises(NetworkError, match=r"output gender is \[4, 2\] for 4 pictures; expected \[N, 3 classes\]"):
        examine(classifier, ["F", "M", "X"], classes=["M", "F", "X"])
    with pytest.raises(NetworkError, match="does not run on pictures"):
        examine(changed(embedder, tmp_path / "deep.onnx", lambda g: g.node[4].input.__setitem__(0, "p")))
    with monkeypatch.context() as patch:  # an attribute that is not understood
        patch.setitem(onnx_torch.OPERATORS, "PRelu", lambda a, x, slope: torch.relu(x))
        with pytest.raises(NetworkError, match="computes something else here than in onnxruntime"):
            examine(str(embedder))
    with monkeypatch.context() as patch:  # right values, wrong gradient
        patch.setitem(
            onnx_torch.OPERATORS, "PRelu", lambda a, x, slope: onnx_torch._prelu(a, x, slope).detach() + x - x.detach()
        )
        with pytest.raises(NetworkError, match="where a finite difference has"):
            examine(str(embedder))
    with monkeypatch.context() as patch:
        patch.setitem(onnx_torch.OPERATORS, "PRelu", lambda a, x, slope: onnx_torch._prelu(a, x, slope).detach())
        with pytest.raises(NetworkError, match="is not differentiable"):
            examine(str(embedder))


def test_a_network_by_its_path_needs_no_more_than_its_graph_says(tiny_networks: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes((tiny_networks / "embedder.onnx").read_bytes())
    mine, known = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere")), Provider("embedder", tiny_networks)
    x = torch.rand(2, 3, 112, 112)
    torch.testing.assert_close(mine(x), known(x))
    (tmp_path / "providers.toml").write_text("[mine]\nmean = 0\nscale = [255, 255, 255]\n")
    beside = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere"))
    assert not torch.allclose(beside(x), known(x))
    said = Provider(str(tmp_path / "mine.onnx"), Path("/nowhere"), {"mean": 127.5, "scale": 127.5})
    torch.testing.assert_close(said(x), known(x))
    assert len({mine.digest, beside.digest}) == 2
    (tmp_path / "providers.toml").write_text("= 1")
    with pytest.raises(NetworkError, match="is no TOML"):
        Provider(str(tmp_path / "mine.onnx"), tmp_path)


def test_the_painter_sees_the_noisy_code_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one code for all, all faces come out the same: there is no way around the noise."""
    torch.manual_seed(0)
    sanitizer = Sanitizer(16, 4).eval()
    faces, alpha, z = torch.rand(2, 3, 112, 112), torch.ones(2, 1), torch.randn(1, 4).expand(2, -1)
    with torch.no_grad():
        first, second = sanitizer(faces, z, alpha)
        assert not torch.equal(first, second)
        monkeypatch.setattr(
            sanitizer.hider, "forward", lambda description, dial: torch.zeros(len(description), 4, 1, 1)
        )
        first, second = sanitizer(faces, z, alpha)
        torch.testing.assert_close(first, second)
        assert not torch.allclose(sanitizer(faces, -z, alpha)[0], first)


def test_the_parts_of_the_training_are_the_sanitizer() -> None:
    torch.manual_seed(0)
    s = Sanitizer(16, 4).eval()
    faces, alpha, z = torch.rand(2, 3, 112, 112), torch.tensor([[0.3], [0.9]]), torch.randn(2, 4)
    with torch.no_grad():
        description = s.reader(torch.nn.functional.pixel_unshuffle(faces, 4))[..., 0, 0]
        quiet, noisy = s.hide(description, None, alpha), s.hide(description, z, alpha)
        torch.testing.assert_close(noisy - quiet, alpha * z)
        torch.testing.assert_close(s.paint(noisy, alpha), s(faces, z, alpha))


def test_a_view_of_a_picture_is_always_the_same(people: data.Faces) -> None:
    chip = people.chips[3]
    np.testing.assert_array_equal(data.view(chip, 3, 0), chip)
    np.testing.assert_array_equal(data.view(chip, 3, 1), chip[:, ::-1])
    np.testing.assert_array_equal(data.view(chip, 3, 2), data.view(chip, 3, 2))
    assert not np.array_equal(data.view(chip, 3, 2), data.view(chip, 3, 3))
    assert not np.array_equal(data.view(chip, 3, 2), data.view(chip, 4, 2))


def test_views_that_are_drawn_at_once_are_those_that_are_cut_one_by_one(
    people: data.Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU holds all of them; here the CPU plays its part."""
    cpu, views, rows = torch.device("cpu"), torch.tensor([0, 1, 2, 2]), torch.tensor([0, 3, 1, 4])
    chips = people.chips[:6]
    album = train.Album(chips, 3, cpu)
    cut = album.pictures(views, rows)
    monkeypatch.setattr(album, "drawn", album.draw(3))
    torch.testing.assert_close(album.pictures(views, rows), cut, rtol=0, atol=0)
    torch.testing.assert_close(cut[0], torch.from_numpy(chips[0]).permute(2, 0, 1) / 255)


def test_a_moved_face_is_another_picture_of_the_same_face(people: data.Faces) -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(people.chips[:16].transpose(0, 3, 1, 2).copy()).float() / 255
    y = train.moved(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert ((y - x).abs().mean((1, 2, 3)) > 0.01).all()
    score, _ = Finder(runtime_faces.DETECTOR).best(y)
    assert (score > 0.3).float().mean() > 0.8, "it is still a face"


def test_the_reader_asks_the_provider_about_pictures_that_nobody_has_seen(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    text = RECIPE.format(steps=3, every=3) + "unseen = 6\n"
    (tmp_path / "r.toml").write_text(text.replace("hide_steps = 3", "hide_steps = 1").replace("paint_steps = 3", "paint_steps = 1"))  # fmt: skip
    train.train(recipe.read(tmp_path / "r.toml"), people, tiny_networks, tmp_path / "run")
    read = torch.load(tmp_path / "run" / "read.pt", weights_only=True)
    (tmp_path / "r.toml").write_text(text.replace("unseen = 6", "unseen = 0"))
    train.train(recipe.read(tmp_path / "r.toml"), people, tiny_networks, tmp_path / "other")
    other = torch.load(tmp_path / "other" / "read.pt", weights_only=True)
    assert any(not torch.equal(read["sanitizer"][k], other["sanitizer"][k]) for k in read["sanitizer"])
    assert (tmp_path / "run" / "sanitizer.pt").exists()


def test_the_teachers_say_where_the_landmarks_are(people: data.Faces) -> None:
    """A chip was cut by its landmarks, so the detector finds them near the template again."""
    score, marks = Finder(runtime_faces.DETECTOR).best(
        torch.from_numpy(people.chips[:4].transpose(0, 3, 1, 2).copy()).float() / 255
    )
    assert score.min() > 0.5
    assert np.abs(marks.numpy().reshape(-1, 5, 2) - data.TEMPLATE).mean() < 5  # these heads are tilted


def test_light_tells_left_from_right_and_above_from_below() -> None:
    x = torch.full((1, 3, 112, 112), 0.5)
    x[:, :, :, :56] = 0.74
    colour, across, down = train.light(x).split([3, 1, 1], 1)
    torch.testing.assert_close(colour, torch.full((1, 3), 0.12 / 0.18))
    torch.testing.assert_close(across, torch.full((1, 1), 0.24 / 0.12))
    torch.testing.assert_close(down, torch.zeros(1, 1), atol=1e-5, rtol=0)


RECIPE = """
utility = "embedder"
views = 3
code = 4
attackers = [16]
people_min = 2
read_steps = {steps}
hide_steps = {steps}
paint_steps = {steps}
read_batch = 8
hide_batch = 8
paint_batch = 8
face_steps = 2
alpha_default = 0.5
evaluate_every = {every}
"""


def test_a_small_training_becomes_a_model_that_the_runtime_runs(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(RECIPE.format(steps=6, every=3))
    r = recipe.read(tmp_path / "small.toml")

    train.train(r, people, tiny_networks, tmp_path / "run")

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in log] == [
        (stage, step) for stage in ("read", "hide", "paint") for step in (3, 6)
    ]
    report = compiler.compile_model(tmp_path / "run", people, tmp_path / "small.onnx", [])
    assert report["0.5"]["mean_levels"] < 3
    loaded = load_model(tmp_path / "small.onnx", allow_unsigned=True)
    assert (loaded.noise_dimensions, loaded.metadata.format, loaded.metadata.code) == (
        4,
        2,
        {"tensor": "code", "bytes": 4},
    )
    assert loaded.metadata.provenance["recipe_sha256"] == r.digest
    out = loaded.run(people.chips[:5], np.zeros((5, 4), np.float32), 0.5)
    assert out.shape == (5, 112, 112, 3)


def test_a_deterministic_plug_and_play_sanitizer_is_a_recipe(
    people: data.Faces, tiny_networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.format(steps=4, every=4).replace("attackers = [16]", 'attackers = []\nfrozen = ["classifier"]')
    (tmp_path / "plain.toml").write_text(text + "stochastic = false\n")
    used: list[Provider] = []
    monkeypatch.setattr(train, "Provider", lambda *given: used.append(Provider(*given)) or used[-1])
    train.train(recipe.read(tmp_path / "plain.toml"), people, tiny_networks, tmp_path / "run")
    assert [net.name for net in used] == ["embedder", "classifier"]
    for net in used:  # those that the training held, against the files
        assert not list(net.parameters())
        before = Provider(net.name, tiny_networks).state_dict()
        assert all(torch.equal(before[key], after) for key, after in net.state_dict().items()), (
            "a provider's weights never change"
        )
    compiler.compile_model(tmp_path / "run", people, tmp_path / "plain.onnx", [])
    loaded = load_model(tmp_path / "plain.onnx", allow_unsigned=True)
    assert (loaded.noise_dimensions, loaded.code_bytes) == (0, 4)
    first, second = (loaded.run(people.chips[:2], np.zeros((2, 0), np.float32), 0.5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_frozen_classifier_teaches_the_hider_and_an_attacker_does_not_touch_the_picture(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    """Plug-and-play: the hider goes on learning while the painter paints. Adversarial: it is done by then."""
    for frozen, moves in (("[]", False), ('["classifier"]', True)):
        (tmp_path / "r.toml").write_text(RECIPE.format(steps=5, every=5) + f"frozen = {frozen}\n")
        out = tmp_path / f"run {moves}"
        train.train(recipe.read(tmp_path / "r.toml"), people, tiny_networks, out)
        hidden, painted = (
            torch.load(out / f"{stage}.pt", weights_only=True)["sanitizer"] for stage in ("hide", "paint")
        )
        moved = any(not torch.equal(hidden[k], painted[k]) for k in hidden if k.startswith("hider"))
        assert moved == moves
        assert all(torch.equal(hidden[k], painted[k]) for k in hidden if k.startswith("reader"))


def test_plug_and_play_keeps_to_the_raw_face_and_not_to_what_its_readout_made_of_it(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    """Who judges utility by a readout of what the hider left lets a hider that still learns leave nothing."""
    (tmp_path / "r.toml").write_text(RECIPE.format(steps=5, every=5) + 'frozen = ["classifier"]\n')
    r, device = recipe.read(tmp_path / "r.toml"), torch.device("cpu")
    utility, frozen = (Provider(name, tiny_networks).eval() for name in ("embedder", "classifier"))
    finder = Finder(runtime_faces.DETECTOR).eval()
    m = train.gather(people, r, utility, finder, tmp_path, device)
    s = Sanitizer(m.features, r.code, r.noise, r.stochastic)
    hide = train.Hide(r, m, s)
    for p in hide.readout.parameters():
        torch.nn.init.constant_(p, float("nan"))  # whatever asks it is lost
    judged = {len(nets): train.Paint(r, m, s, hide, utility, finder, nets).step(5) for nets in ([frozen], [])}
    assert all(value.isfinite().all() for value in judged[1].values())
    assert judged[0]["cosine"].isnan().all(), "where the hider is done, its readout is the goal"


def test_a_training_begins_from_a_model_file(people: data.Faces, tiny_networks: Path, tmp_path: Path) -> None:
    """Float weights from int8 ones: they agree within the parity of the file, and a stage of 0 steps is taken over."""
    model = load_model(DEMO_MODEL)
    s, chips = compiler.unpack(DEMO_MODEL), people.chips[:8]
    assert (s.noise_dim, s.noise) == (64, pytest.approx(1, abs=0.01))
    z = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for alpha in (0.0, 0.25, 1.0):
        with torch.no_grad():
            float_ = DeviceGraph(s)(torch.from_numpy(chips), torch.from_numpy(z), torch.full((8, 1), alpha)).numpy()
        difference = np.abs(float_.astype(int) - model.run(chips, z, alpha))
        assert difference.mean() < 3  # as in the test of quantization
    with pytest.raises(ExportError, match="no model file to begin from"):
        compiler.unpack(tmp_path / "missing.onnx")
    with pytest.raises(ExportError, match="holds another network than this trainer's"):
        compiler.unpack(tiny_networks / "embedder.onnx")


def test_a_stage_of_no_steps_is_taken_over(people: data.Faces, tiny_networks: Path, tmp_path: Path) -> None:
    def of(steps: tuple[int, int, int], name: str) -> recipe.Recipe:
        text = RECIPE.format(steps=2, every=2)
        for stage, n in zip(("read", "hide", "paint"), steps, strict=True):
            text = text.replace(f"{stage}_steps = 2", f"{stage}_steps = {n}")
        (tmp_path / f"{name}.toml").write_text(text)
        return recipe.read(tmp_path / f"{name}.toml")

    first = train.train(of((2, 2, 2), "first"), people, tiny_networks, tmp_path / "first").state_dict()
    with pytest.raises(ExportError, match=r"read_steps = 0 takes that stage over .* say which with --from"):
        train.train(of((0, 2, 2), "second"), people, tiny_networks, tmp_path / "second")
    compiler.compile_model(tmp_path / "first", people, tmp_path / "first.onnx", [])
    with pytest.raises(ExportError, match="holds no readout"):
        train.train(of((0, 0, 2), "third"), people, tiny_networks, tmp_path / "third", start=tmp_path / "first.onnx")
    for start in (tmp_path / "first", tmp_path / "first.onnx"):
        out = tmp_path / f"from {start.suffix}"
        second = train.train(
            of((0, 2, 2), "second"), people, tiny_networks, out, start=start, cache=tmp_path / "first"
        ).state_dict()
        assert all(torch.equal(first[k], second[k]) for k in first if "reader" in k) == start.is_dir()
        assert not torch.equal(first["painter.head.weight"], second["painter.head.weight"])
        assert len(torch.load(out / "sanitizer.pt", weights_only=True)["from"]) == 64
        assert not list(out.glob("taught*")), "what the teachers say lies in the cache"
    wide = of((0, 2, 2), "wide")
    object.__setattr__(wide, "code", 5)
    with pytest.raises(ExportError, match="another shape than this recipe: hider"):
        train.train(wide, people, tiny_networks, tmp_path / "wide", start=tmp_path / "first")


def test_a_column_of_the_table_is_hidden_and_another_kept(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    """Age groups as the private attribute, gender as the utility: a recipe, and no code."""
    columns = people.columns | {
        "age": np.where(np.arange(len(people)) % 5 == 0, "", np.where(people["gender"] == "F", "25", "50"))
    }
    aged = data.Faces(people.chips, columns)
    text = (
        RECIPE.format(steps=30, every=30)
        .replace("read_steps = 30", "read_steps = 2")
        .replace("paint_steps = 30", "paint_steps = 2")
    )
    (tmp_path / "age.toml").write_text(
        text + 'private = "age"\nprivate_bins = [40]\nutility_column = "gender"\nalike = 0\n'
    )
    r = recipe.read(tmp_path / "age.toml")
    train.train(r, aged, tiny_networks, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "sanitizer.pt", weights_only=True)
    assert saved["classes"] == ["<40", ">=40"]
    assert sum(saved["prior"]) == pytest.approx(1)
    compiler.compile_model(tmp_path / "run", aged, tmp_path / "age.onnx", [])
    metadata = load_model(tmp_path / "age.onnx", allow_unsigned=True).metadata
    assert (metadata.private, metadata.utility) == ("age", "gender")
    for key, value, words in (
        ("private_bins", (20.0, 40.0), "no training picture has the age '<20'"),
        ("private", "file", "column 'file' has 1 different values|column 'file' has 0 different values"),
        ("private", "hair", "no column 'hair'"),
    ):
        other = recipe.read(tmp_path / "age.toml")
        object.__setattr__(other, key, value)
        if key == "private":
            object.__setattr__(other, "private_bins", ())
        with pytest.raises(DataError, match=words):
            train.train(other, aged, tiny_networks, tmp_path / "other")


def test_numbers_become_groups_by_their_edges(people: data.Faces) -> None:
    faces = data.Faces(people.chips[:5], {"age": np.array(["29", "30", "", "45", "44.5"]), "hair": np.array(["a"] * 5)})
    groups, names = faces.labels("age", (30, 45))
    assert names == ["<30", "30 to <45", ">=45"]
    assert groups.tolist() == [0, 1, -1, 2, 1]
    with pytest.raises(DataError, match="'hair' cannot be grouped by 30"):
        faces.labels("hair", (30,))


def test_networks_of_the_command_line_replace_the_recipes(tiny_networks: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("")
    r = recipe.read(tmp_path / "r.toml")
    mine, said = train.bring(r, ["a.onnx", "mean=0.5", 'order="BGR"'], ["b.onnx", 'classes=["M", "F"]'])
    assert (mine.utility, mine.frozen) == ("a.onnx", ("b.onnx",))
    assert said == {"a.onnx": {"mean": 0.5, "order": "BGR"}, "b.onnx": {"classes": ["M", "F"]}}
    assert mine.digest != r.digest
    assert train.bring(r, None, None) == (r, {})
    with pytest.raises(NetworkError, match="is no input contract"):
        train.bring(r, ["a.onnx", "mean 3"], None)


def test_the_baseline_of_the_authors_shape_is_trained_by_the_same_loop(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    (tmp_path / "unet.toml").write_text(
        RECIPE.format(steps=1, every=2) + "unet = true\nplay_steps = 3\nplay_batch = 4\n"
    )
    train.train(recipe.read(tmp_path / "unet.toml"), people, tiny_networks, tmp_path / "run")
    m = mechanisms.trained(tmp_path / "run", 0.5, "U-Net")
    chips = people.chips[:2]
    first, second = (m.apply(chips, np.ones(2, bool), seed) for seed in (0, 1))
    assert m.stochastic
    assert first.shape == chips.shape
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first[..., 0], first[..., 1])  # gray
    with pytest.raises(ExportError, match="is the baseline, which has no int8 file"):
        compiler.compile_model(tmp_path / "run", people, tmp_path / "x.onnx", [])


def test_the_baseline_has_the_authors_size() -> None:
    """0.946 GMAC, as published; the maps of the dial and of the noise add half a per cent."""
    counted = []
    net = Unet()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda m, x, y: counted.append(m.weight.numel() * y.shape[2] * y.shape[3]))
    net(torch.rand(1, 3, 112, 112), torch.randn(1, 64), torch.ones(1, 1))
    assert sum(counted) / 1e9 == pytest.approx(0.946, rel=0.1)


def test_a_training_that_was_stopped_goes_on_where_it_was(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(RECIPE.format(steps=4, every=4))
    r = recipe.read(tmp_path / "small.toml")
    for step in (1, 2):
        train.train(r, people, tiny_networks, tmp_path / "run", minutes=0)  # stops, saved, after a step
        assert torch.load(tmp_path / "run" / "read.pt", weights_only=True)["step"] == step
        assert not (tmp_path / "run" / "hide.pt").exists()
    train.train(r, people, tiny_networks, tmp_path / "run")
    steps = [torch.load(tmp_path / "run" / f"{s}.pt", weights_only=True)["step"] for s in ("read", "hide", "paint")]
    assert steps == [4, 4, 4]
    other = recipe.read(tmp_path / "small.toml")
    object.__setattr__(other, "digest", "another")
    with pytest.raises(ExportError, match="made by another recipe"):
        train.train(other, people, tiny_networks, tmp_path / "run")


def test_training_is_reproducible(people: data.Faces, tiny_networks: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RECIPE.format(steps=4, every=4))
    r = recipe.read(tmp_path / "small.toml")
    first, second = (train.train(r, people, tiny_networks, tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def clip_set(people: data.Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clip's chips as a set."""
    folder = tmp_path_factory.mktemp("sets")
    table = [",".join(data.COLUMNS)]
    with tarfile.open(folder / "clip.tar", "w") as tar:
        for i, chip in enumerate(people.chips):
            packet = cv2.imencode(".png", np.ascontiguousarray(chip[..., ::-1]))[1].tobytes()
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(packet)
            tar.addfile(member, io.BytesIO(packet))
            table.append(",".join([f"{i}.png", *(people[c][i] for c in data.COLUMNS[1:])]))
    (folder / "clip.csv").write_text("\n".join(table))
    return folder


def test_a_part_of_the_data_is_packed_for_a_machine_with_little_room(
    people: data.Faces,
    clip_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pack, "VALIDATION", 3)
    monkeypatch.setattr(pack.Recipe, "sets", ("clip",))
    assert pack.main(["training", str(tmp_path / "part"), "--data", str(clip_set)]) == 0
    assert "MiB" in capsys.readouterr().out
    part, whole = data.load_set(tmp_path / "part", "clip"), data.load_set(clip_set, "clip")
    rows = np.isin(whole["file"], part["file"])
    assert np.array_equal(part.chips, whole.chips[rows]), "picture for picture as they are"
    split = part["identity_split"].tolist()
    assert (split.count("train"), split.count("val")) == (int((whole["identity_split"] == "train").sum()), 3)
    assert pack.main(["training", str(tmp_path / "small"), "--data", str(clip_set), "--quality", "40"]) == 0
    small = data.load_set(tmp_path / "small", "clip")
    assert 0.5 < np.abs(small.chips.astype(int) - part.chips).mean() < 8
    assert pack.main(["audit", str(tmp_path / "no"), "--data", str(clip_set), "--quality", "40"]) == 1
    assert "as they are" in capsys.readouterr().err
    assert pack.main(["training", str(tmp_path / "no"), "--data", str(tmp_path)]) == 1
    assert "clip.csv" in capsys.readouterr().err


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


def past(width: int = 8) -> onnx.ModelProto:
    """An int8 network as format 1 had it: its reshapes ask the face for the number of faces, and no tensor is the code."""
    chips = compiler.known_inputs(6, width)[0]
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        compiler.export_fp32(Sanitizer(16, width).eval(), fp32)
        compiler.quantize_static(
            str(fp32), str(int8), compiler.Chips(chips, width), quant_format=compiler.QuantFormat.QDQ,
            activation_type=compiler.QuantType.QUInt8, weight_type=compiler.QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["Conv", "Add", "Mul", "Resize", "Relu", "Clip", "Concat"],
        )  # fmt: skip
        proto = onnx.load(str(int8))
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    stored |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in proto.graph.node if n.op_type == "Constant"
    }
    nodes: list[onnx.NodeProto] = [
        helper.make_node("Shape", ["face"], ["shape"]),
        helper.make_node("Slice", ["shape", "none", "once"], ["count"]),
    ]
    for name, number in (("none", 0), ("once", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))
    for node in proto.graph.node:
        if node.op_type == "Reshape" and stored[node.input[1]][0] == -1:
            rest = [f"{node.output[0]}_{i}" for i in range(1, len(stored[node.input[1]]))]
            for name, length in zip(rest, stored[node.input[1]][1:], strict=True):
                proto.graph.initializer.append(numpy_helper.from_array(np.array([length], np.int64), name))
            nodes.append(helper.make_node("Concat", ["count", *rest], [f"{node.output[0]}_shape"], axis=0))
            node.input[1] = f"{node.output[0]}_shape"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    table = json.loads(onnx.load(str(DEMO_MODEL)).metadata_props[0].value) | {"format": 1}
    del table["code"]
    helper.set_model_props(proto, {"edgesan": json.dumps(table)})
    return proto


def test_a_model_file_of_the_past_is_laid_anew_and_paints_the_same_to_the_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    proto = past()
    assert "Shape" in {node.op_type for node in proto.graph.node}
    onnx.save(proto, str(old))
    with pytest.raises(
        ModelError, match=r"has the format 1; .* lay it out anew .python -m export.compile old.onnx --out"
    ):
        load_model(old, allow_unsigned=True)
    assert compiler.main([str(old), "--out", str(new)]) == 0
    assert f"{new}: {old} in format 2; sign it anew" in capsys.readouterr().out
    laid = load_model(new, allow_unsigned=True)
    assert laid.metadata.code == {"tensor": "code", "bytes": 8}
    assert laid.metadata.claims == json.loads(proto.metadata_props[0].value)["claims"]
    chips, z = compiler.known_inputs(5, 8)
    for alpha in (0.0, 0.5, 1.0):
        before = compiler.runner(old.read_bytes())(chips, z, alpha)
        np.testing.assert_array_equal(laid.run(chips, z, alpha), before)
    assert len(set(laid.encoder.encode(chips, z, 0.5))) == 5


def test_a_model_whose_face_goes_around_its_code_gets_no_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = past()
    last = next(node for node in proto.graph.node if node.output[0] == "sanitized")
    last.output[0] = "painted"
    proto.graph.node.append(helper.make_node("Max", ["painted", "face"], ["sanitized"]))
    onnx.save(proto, str(tmp_path / "old.onnx"))
    assert compiler.main([str(tmp_path / "old.onnx"), "--out", str(tmp_path / "new.onnx")]) == 1
    assert "no 8-bit tensor of at most 128 numbers lies on every path" in capsys.readouterr().err
    (tmp_path / "text.onnx").write_text("no model")
    assert compiler.main([str(tmp_path / "text.onnx"), "--out", str(tmp_path / "new.onnx")]) == 1
    assert "is no model file" in capsys.readouterr().err
    assert not (tmp_path / "new.onnx").exists()


def test_two_processes_learn_as_one_does(
    people: data.Faces, tiny_networks: Path, clip_set: Path, tmp_path: Path
) -> None:
    """The command line itself, alone and under torchrun: the same curve within noise, and one log, one checkpoint."""
    text = 'sets = ["clip"]\n' + RECIPE.format(steps=30, every=30).replace("face_steps = 2", "face_steps = 30")
    (tmp_path / "small.toml").write_text(text.replace("views = 3", "views = 1"))
    arguments = [str(tmp_path / "small.toml"), "--data", str(clip_set), "--networks", str(tiny_networks), "--out"]
    two = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "export.train", *arguments, str(tmp_path / "two")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert train.main([*arguments, str(tmp_path / "one")]) == 0  # meanwhile
        _, told = two.communicate()
    finally:
        two.kill()
    assert two.returncode == 0, f"{told[:6000]}\n[...]\n{told[-3000:]}"
    one, two_ = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two"))  # fmt: skip
    assert [entry["stage"] for entry in one] == [entry["stage"] for entry in two_] == ["read", "hide", "paint"]
    first = float((people.chips.astype(float) / 255 - 0.5).__abs__().mean())  # a grey picture, as at the start
    assert one[2]["alpha 0"]["l1"] < 0.9 * first
    assert two_[2]["alpha 0"]["l1"] == pytest.approx(one[2]["alpha 0"]["l1"], rel=0.1)
    assert torch.load(tmp_path / "two" / "sanitizer.pt", weights_only=True)["step"] == 90


def test_what_is_wrong_is_told_by_all_processes_and_none_hangs(
    tiny_networks: Path, clip_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong.toml").write_text('sets = ["clip"]\n' + RECIPE.format(steps=0, every=2))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "export.train", str(tmp_path / "wrong.toml"),
         "--data", str(clip_set), "--networks", str(tiny_networks), "--out", str(tmp_path / "run")],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: read_steps = 0 takes that stage over" in done.stderr
    assert "exitcode  : -6" not in done.stderr


def test_a_sweep_runs_each_point_of_its_grid(
    tiny_networks: Path, clip_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = 'sets = ["clip"]\n' + RECIPE.format(steps=2, every=2)
    (tmp_path / "base.toml").write_text(base)
    grid = '[grid]\nmethod = ["plain", "quiet"]\nseed = [0, 1]\nviews = [2]\n'
    methods = "[methods]\nplain = {}\nquiet = { stochastic = false, attackers = [] }\n"
    (tmp_path / "s.toml").write_text('recipe = "base.toml"\n' + grid + methods)
    recipes = sweep.points(tomllib.loads((tmp_path / "s.toml").read_text()), recipe.read(tmp_path / "base.toml"))
    assert [(r.name, r.stochastic, r.seed, r.views) for r in recipes] == [
        ("base-method-plain-seed-0", True, 0, 2), ("base-method-plain-seed-1", True, 1, 2),
        ("base-method-quiet-seed-0", False, 0, 2), ("base-method-quiet-seed-1", False, 1, 2),
    ]  # fmt: skip
    assert len({r.digest for r in recipes}) == 4
    with pytest.raises(RecipeError, match="varies stepz"):
        sweep.points({"grid": {"stepz": [1]}}, recipes[0])
    with pytest.raises(RecipeError, match="no method 'x'"):
        sweep.points({"grid": {"method": ["x"]}}, recipes[0])
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    (tmp_path / "s.toml").write_text('recipe = "base.toml"\n' + grid.replace('"plain", ', "") + methods)
    out = tmp_path / "out"
    done = sweep.main([str(tmp_path / "s.toml"), "--data", str(clip_set), "--networks", str(tiny_networks), "--out", str(out)])  # fmt: skip
    assert done == 0, capsys.readouterr().err
    found = json.loads((out / "sweep.json").read_text())
    assert [(line["name"], line["stage"], line["step"]) for line in found] == [
        (f"base-seed-{seed}", "paint", 2) for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("stepz = 3", "unknown key stepz"), ('code = "3"', "must be a int"), ("alpha_default = 2.0", "within 0..1"),
     ("read_steps = -1", "read_steps must be positive, or 0 for a stage that --from takes over"), ("code = 0", "code must be positive"),
     ("private_bins = [45, 30]", "numbers that ascend"), ('utility_column = "gender"', "hidden and kept at once"),
     ("stochastic = 1", "must be a bool"), ("= 1", "is not TOML")],
)  # fmt: skip
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        recipe.read(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="no recipe at"):
        recipe.read(tmp_path / "missing.toml")


def test_every_recipe_of_the_project_can_be_read() -> None:
    recipes = sorted(Path(recipe.__file__).parent.glob("recipes/*.toml"))
    assert [recipe.read(path).name for path in recipes] == [path.stem for path in recipes]


def test_the_known_answers_inputs_are_the_same_on_both_sides() -> None:
    for ours, theirs in zip(compiler.known_inputs(3, 50), known_inputs(3, 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_in_lfws_layout_is_read_and_split_by_people(tmp_path: Path, clip: list[Pixels]) -> None:
    for person, columns in (("Ann", slice(0, 240)), ("Bob", slice(240, 480))):
        (tmp_path / "people" / person).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / "people" / person / f"{i}.png"), clip[i][:, columns])
    (tmp_path / "who.csv").write_text("person,gender,hair\nAnn,F,dark\nBob,M,short\n")
    read = data.load_folder(tmp_path / "people", tmp_path / "who.csv", runtime_faces.DETECTOR)
    assert read.chips.shape == (4, 112, 112, 3)
    assert read["hair"].tolist() == ["dark", "dark", "short", "short"]
    assert len(set(zip(read["identity"].tolist(), read["identity_split"].tolist(), strict=True))) == 2
    (tmp_path / "who.csv").write_text("person,gender\nAnn,F\n")
    with pytest.raises(DataError, match="no row for 'Bob'"):
        data.load_folder(tmp_path / "people", tmp_path / "who.csv", runtime_faces.DETECTOR)
    with pytest.raises(DataError, match="expected a folder"):
        data.load_folder(tmp_path / "x", tmp_path / "y", runtime_faces.DETECTOR)


def test_both_sides_cut_the_same_chip(clip: list[Pixels]) -> None:
    landmarks = runtime_faces.Detector(320)(clip[0])[0].landmarks
    ours = data.align(clip[0][..., ::-1], landmarks)
    theirs = runtime_faces.cut(clip[0], runtime_faces.alignment(landmarks))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 3  # float32 against float64 in the template
    assert difference.mean() < 0.05


@pytest.mark.data
def test_the_real_networks_agree_with_onnxruntime(networks_folder: Path, people: data.Faces) -> None:
    import onnxruntime as ort

    for name, folder_contract in (("id_mobilefacenet_paddle", False), ("gender_faceapi", True), ("gender_dlib", True)):
        provider = Provider(name, networks_folder)
        session = ort.InferenceSession(networks_folder / f"{name}.onnx")
        size = provider.size
        x = torch.rand(2, 3, size, size) * (255 if folder_contract else 2) - (0 if folder_contract else 1)
        expected = session.run(None, {"input": x.numpy()})[0]
        (out,) = provider.net(x)
        actual = torch.softmax(out, 1) if folder_contract else out
        np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_relaid_graph_paints_the_same(tmp_path: Path) -> None:
    """Its transposes of many axes become swaps of two blocks each, which onnxruntime moves as they are."""
    compiler.export_fp32(Sanitizer(16, 8, 1.0).eval(), tmp_path / "fp32.onnx")
    compiler.quant_pre_process(str(tmp_path / "fp32.onnx"), str(tmp_path / "plain.onnx"), skip_symbolic_shape=True)
    plain = onnx.load(tmp_path / "plain.onnx")
    relaid = compiler.relay(plain)
    axes = [
        [len(node.attribute[0].ints) for node in p.graph.node if node.op_type == "Transpose"] for p in (plain, relaid)
    ]
    assert max(axes[0]) == 6
    assert set(axes[1]) == {4}
    chips, noise = compiler.known_inputs(3, 8)
    pictures = [compiler.runner(p.SerializeToString())(chips, noise, 0.5) for p in (plain, relaid)]
    np.testing.assert_array_equal(*pictures)
    assert compiler.relay(relaid) == relaid


def test_swaps_of_blocks_bring_axes_into_any_order() -> None:
    whole = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    for order in itertools.permutations(range(5)):
        shape, turned = list(whole.shape), whole
        for i, j, k in compiler.swaps(order):
            blocks = turned.reshape(math.prod(shape[:i]), math.prod(shape[i:j]), math.prod(shape[j:k]), -1)
            turned = blocks.transpose(0, 2, 1, 3)
            shape[i:k] = shape[j:k] + shape[i:j]
        np.testing.assert_array_equal(turned.reshape(shape), whole.transpose(order))


@pytest.mark.data
def test_a_set_is_read_with_its_labels(data_folder: Path) -> None:
    glint = data.load_set(data_folder, "glint")
    assert glint.chips.shape == (4148, 112, 112, 3)
    assert set(glint["gender"].tolist()) == {"M", "F"}
    assert not (data.training_rows(glint) & data.validation_rows(glint)).any()
    assert not (data.training_rows(glint) & (glint["closed_set_split"] == "test")).any()
