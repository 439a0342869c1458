"""Trained weights on the disk: what a training writes, and how a sanitizer is read from there or from a model file."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from edgesan import disk
from export import recipe as recipes
from export.errors import ExportError
from export.networks import LANDMARKS, LIGHTING, Sanitizer, Shape, Unet
from export.recipe import Recipe

FILE = "sanitizer.pt"
OLD_WEIGHTS = {"reader": "encoder", "hider": "privatizer", "painter": "decoder"}  # of earlier versions
STEMS = {"small": 3, "resnet": 7}  # sides of the encoder's first kernels
SCALINGS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Checkpoint:
    """A finished training."""

    sanitizer: Sanitizer | Unet
    recipe: Recipe
    classes: list[str]  # of the private attribute
    prior: list[float]  # P(p), in the order of the classes
    features: int  # dimensions of the provider's embedding
    data_digest: str  # SHA-256 of the faces it learned from
    step: int  # steps of all stages
    started_from: str = ""  # SHA-256 of the model or training that it began from


def save(path: Path, content: object) -> None:
    """Write what `torch.save` makes of it, whole or not at all.

    Raises:
        ExportError: the place cannot be written.
    """
    packed = io.BytesIO()
    torch.save(content, packed)
    try:
        disk.write_whole(path, packed.getvalue())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a finished training to the file `sanitizer.pt` of its folder."""
    facts = vars(checkpoint) | {"recipe": asdict(checkpoint.recipe)}
    del facts["sanitizer"]
    save(folder / FILE, facts | {"weights": checkpoint.sanitizer.state_dict()})


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read what `export.train` left in a folder.

    Raises:
        ExportError: there is none, or an earlier version wrote it.
    """
    path = folder / FILE
    if not path.exists():
        raise ExportError(f"no {FILE} in {folder}: train one with python -m export.train")
    saved = load(path)
    recipe = recipes.from_saved(path, saved.pop("recipe"))
    weights = saved.pop("weights")
    check_weights(path, weights)
    net = Unet(recipe.stochastic) if recipe.unet else Sanitizer(saved["features"], recipes.shape(recipe))
    net.load_state_dict(weights)
    return Checkpoint(net.eval(), recipe, **saved)


def load(path: Path) -> dict[str, Any]:
    """Read tensors, numbers and text (never code) from a file that `save` wrote."""
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return saved


def check_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Refuse weights that an earlier version named.

    Raises:
        ExportError: it names the new parts, and what to do.
    """
    for old, new in OLD_WEIGHTS.items():
        if any(key.startswith(f"{old}.") for key in weights):
            raise ExportError(
                f"{path} is of an earlier version: its part `{old}` is now `{new}`; train it anew, "
                "or begin from its model file with --from"
            )


def unpack(path: Path) -> Sanitizer:
    """Return the float sanitizer of an int8 model file: its dequantized weights, the normalisation folded into them.

    What was rounded in the file stays rounded: the two agree within the file's parity.

    Raises:
        ExportError: there is no such file, or it holds another network than `Sanitizer`.
    """
    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is no model file to begin from: {error}") from error
    constants = _Constants(path, graph)
    layers = [[constants[i] for i in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    shapes = [layer[0].shape for layer in layers]
    try:
        features, shape = _shape(graph, shapes)
        sanitizer = Sanitizer(features, shape).eval()
        convolutions = [m for m in sanitizer.modules() if isinstance(m, nn.Conv2d)]
        expected = [tuple(m.weight.shape) for m in convolutions]
    except (IndexError, StopIteration, RuntimeError) as error:
        raise ExportError(f"{path} holds another network than this trainer's: its layers are {shapes}") from error
    if shapes != expected:
        raise ExportError(f"{path} holds another network than this trainer's: layers {shapes}, expected {expected}")
    norms = iter(m for m in sanitizer.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        for convolution, (weight, *bias) in zip(convolutions, layers, strict=True):
            convolution.weight.copy_(torch.from_numpy(weight))
            if convolution.bias is not None:
                convolution.bias.copy_(torch.from_numpy(bias[0]))
            elif bias:  # a folded normalisation: as it is, but for its shift
                norm = next(norms)
                assert norm.running_var is not None
                norm.running_var.fill_(1 - norm.eps)
                norm.bias.copy_(torch.from_numpy(bias[0]))
    if sanitizer.noise_dim:
        sanitizer.noise = _noise_scale(graph, constants)
    return sanitizer


def _shape(graph: onnx.GraphProto, shapes: list[tuple[int, ...]]) -> tuple[int, Shape]:
    """Return the length of the teachers' embedding, and the sanitizer's shape, by those of its layers."""
    encoder = next(name for name, side in STEMS.items() if shapes[0][-1] == side)
    count = sum(isinstance(m, nn.Conv2d) for m in Sanitizer(1, Shape(encoder=encoder)).encoder.modules())
    (outputs, *_), (code, *_) = shapes[count - 1], shapes[count]
    privatizer = 3 if shapes[count + 3][:2] != (code, shapes[count + 1][0]) else 4
    coarse_colour = shapes[-1][2:] == (1, 1)
    first, second, *levels = shapes[count + privatizer : -3 if coarse_colour else -1]
    decoder_hidden = first[0] if second[2:] == (1, 1) else 0
    levels = levels if decoder_hidden else [second, *levels]
    shape = Shape(
        code=code,
        stochastic="noise" in {value.name for value in graph.input},
        encoder=encoder,
        privatizer_hidden=shapes[count + 1][0] if privatizer == 4 else 0,
        unit_code="Sqrt" in {node.op_type for node in graph.node},
        decoder_widths=tuple(level[0] for level in levels[::2]),
        decoder_hidden=decoder_hidden,
        coarse_colour=coarse_colour,
    )
    return outputs - LANDMARKS - LIGHTING, shape


class _Constants:
    """The constants of a quantized graph by their names, dequantized."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self.path = path
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.producers = {node.output[0]: node for node in graph.node}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name in self.stored:
            return np.asarray(self.stored[name], np.float32)
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t), np.float32)
        if node is not None and node.op_type in SCALINGS and node.input[0] not in self.stored:
            return self[node.input[0]]  # some versions of the quantizer leave a number to run time
        if node is None or node.op_type != "DequantizeLinear":
            raise ExportError(f"{self.path} holds another network than this trainer's: {name} is no weight")
        whole, scale, zero = (self.stored[i] for i in node.input)
        shape = (-1,) + (1,) * (whole.ndim - 1) if scale.ndim else ()
        return np.asarray((whole.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape), np.float32)


def _noise_scale(graph: onnx.GraphProto, constants: _Constants) -> float:
    """Return the constant by which the dial is multiplied before it scales the noise."""
    dial = {"alpha"}
    for node in graph.node:
        if node.op_type in SCALINGS and node.input[0] in dial:
            dial.add(node.output[0])
        if node.op_type == "Mul" and dial & set(node.input):
            return float(constants[next(i for i in node.input if i not in dial)])
    return 1.0  # an optimizer took the multiplication by one out
