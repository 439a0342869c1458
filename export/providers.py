"""Providers' frozen ONNX networks: their input contracts, and the checks that each one passes before a training.

File, operators, shapes and contract are checked when a `Provider` is made. `validate` runs the network on real faces:
it must run as in onnxruntime, tell faces apart, and have the right gradient. Nothing is checked again after that.
"""

import copy
import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesan import ort
from export.errors import NetworkError
from export.onnx_torch import FrozenOnnx, read_graph

PROVIDERS = Path(__file__).with_name("providers.toml")
PROBES = 5  # places at which a gradient is checked
EMBEDDED = 2  # views that several networks embed: the face as it is, and mirrored
STEP = 1e-7  # of the finite difference, in units of the network's input

Contract = dict[str, Any]  # an input contract as TOML has it: some of KEYS
KEYS = ("file", "output", "classes", "box", "size", "order", "mean", "scale")
DEFAULTS: Contract = {"box": [0, 0, 112, 112], "order": "RGB", "mean": 127.5, "scale": 127.5, "classes": []}


@dataclass(frozen=True)
class InputContract:
    """What a provider's network takes: cut `box` out of the chip, resize to `size`, reorder, (x - mean) / scale."""

    file: Path
    box: tuple[int, int, int, int]  # x0, y0, x1, y1
    order: str  # "RGB" or "BGR"
    mean: list[float]  # of levels 0..255, one per channel
    scale: list[float]
    classes: list[str]  # a classifier's outputs in their order; none for an embedder
    size: int | None  # None: the graph's own
    output: str | None  # None: the graph's only one
    text: str  # all keys and values, for a digest


def read_contract(name: str, folder: Path, given: Contract | None = None) -> InputContract:
    """Read a provider's input contract, by its name in a `providers.toml`, or by the path of its .onnx file.

    Args:
        name: of the provider, or the path of its file.
        folder: where the networks of known names are.
        given: keys that come before those of the `providers.toml` beside the file, and before DEFAULTS.

    Raises:
        NetworkError: no provider of that name, no TOML, an unknown key, or a value of another kind.
    """
    path = Path(name) if name.endswith(".onnx") else None
    tables: dict[str, Contract] = tomllib.loads(PROVIDERS.read_text())
    own = (path.parent if path else folder) / PROVIDERS.name  # bring your own: contracts beside the networks
    if own.exists():
        try:
            tables |= tomllib.loads(own.read_text())
        except tomllib.TOMLDecodeError as error:
            raise NetworkError(f"{own} is no TOML: {error}") from error
    if path is None and name not in tables:
        raise NetworkError(f"no provider {name!r} in {PROVIDERS.name}; it has {', '.join(tables)}")
    table = DEFAULTS | tables.get(path.stem if path else name, {}) | (given or {})
    _check_contract(name, table)
    file = path or folder / str(table.get("file", f"{name}.onnx"))
    box, order, mean, scale, classes = (table[key] for key in ("box", "order", "mean", "scale", "classes"))
    text = repr(sorted(table.items()))
    return InputContract(
        file, tuple(box), order, mean, scale, list(classes), table.get("size"), table.get("output"), text
    )


def _check_contract(name: str, table: Contract) -> None:
    """Refuse values of a wrong kind; one number for mean or scale becomes three."""
    where = f"the input contract of {name}"
    unknown = sorted(table.keys() - set(KEYS))
    if unknown:
        raise NetworkError(f"{where} has the unknown key {unknown[0]}; known are {', '.join(KEYS)}")
    for key, count in {"mean": 3, "scale": 3, "box": 4}.items():
        values = table[key] if isinstance(table[key], list) else [table[key]] * 3
        if len(values) != count or not all(isinstance(v, int | float) for v in values):
            raise NetworkError(f"{where}: {key} must be {count} numbers, not {table[key]!r}")
        table[key] = values
    if 0 in table["scale"]:
        raise NetworkError(f"{where}: scale divides the picture, and must not be 0")
    if table["order"] not in ("RGB", "BGR"):
        raise NetworkError(f'{where}: order must be "RGB" or "BGR", not {table["order"]!r}')
    if not isinstance(table["classes"], list) or not all(isinstance(v, str) for v in table["classes"]):
        raise NetworkError(f"{where}: classes must be a list of names, not {table['classes']!r}")


class Provider(nn.Module):
    """A provider's network with its own input contract: chips in 0..1 to embeddings (or logits), frozen.

    For a classifier the output is the log-odds, the input of its last Softmax: the softmax itself saturates.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, name: str, folder: Path, given: Contract | None = None) -> None:
        """Read a network and its contract; the arguments are those of `read_contract`.

        Raises:
            NetworkError: one of them cannot be used.
        """
        super().__init__()
        c = read_contract(name, folder, given)
        self.name, self.path, self.box, self.classes = name, c.file, c.box, c.classes
        self.size, self.output = graph_shapes(c.file, c.size, c.output)
        self.bgr = c.order == "BGR"
        self.net = FrozenOnnx(c.file, [self.output], logits=bool(c.classes))
        self.digest = hashlib.sha256(c.file.read_bytes() + c.text.encode()).hexdigest()
        self.register_buffer("mean", torch.tensor(c.mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(c.scale, dtype=torch.float32).view(1, 3, 1, 1))

    def prepared(self, face: Tensor) -> Tensor:
        """Return chips [N, 3, 112, 112] in 0..1 as the network takes them [N, 3, size, size]."""
        x0, y0, x1, y1 = self.box
        x = F.pad(face, (0, 0, 0, max(0, y1 - face.shape[2])), mode="replicate") * 255
        x = x[:, :, y0:y1, x0:x1]
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.bgr:
            x = x.flip(1)
        return ((x - self.mean) / self.scale).contiguous(memory_format=torch.channels_last)

    def forward(self, face: Tensor) -> Tensor:
        """Return logits [N, classes], or embeddings [N, D] of unit length, of chips [N, 3, 112, 112] in 0..1."""
        (out,) = self.net(self.prepared(face))
        out = out.flatten(1)
        return out if self.classes else F.normalize(out.float())


class Ensemble(nn.Module):
    """The provider's networks as one teacher: their embeddings side by side, at unit length.

    Several networks agree on who somebody is and differ in how they write it. Each one's embedding is taken from the
    mean of all faces, and counts alike. A single network's embedding is what it is.
    """

    centre: Tensor

    def __init__(self, nets: Sequence[Provider], chips: NDArray[np.uint8]) -> None:
        """Try the networks on one face.

        Args:
            nets: embedders, frozen.
            chips: uint8 [1, 112, 112, 3].
        """
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.digest = hashlib.sha256("".join(net.digest for net in nets).encode()).hexdigest()
        face = torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255
        with torch.no_grad():
            self.widths = [net(face.to(net.mean)).shape[1] for net in nets]
        self.features = sum(self.widths)
        self.register_buffer("centre", torch.zeros(self.features))

    def raw(self, face: Tensor) -> Tensor:
        """Return the embeddings [N, D] of chips [N, 3, 112, 112] in 0..1: each network's own, side by side."""
        return torch.cat([net(face) for net in self.nets], 1)

    def forward(self, face: Tensor) -> Tensor:
        """Return what the networks say together, [N, D] of unit length, of chips [N, 3, 112, 112] in 0..1."""
        return self.united(self.raw(face))

    def judge(self, face: Tensor, goal: Tensor) -> Tensor:
        """Return the cosine [N] of faces to their goals [N, D]; the networks share the faces, each judges as many."""
        parts = torch.arange(len(face)).chunk(len(self.nets))
        found = []
        for net, rows, columns in zip(self.nets, parts, torch.arange(self.features).split(self.widths), strict=False):
            at = slice(int(columns[0]), int(columns[-1]) + 1)
            embedding = F.normalize(net(face[rows]).float() - self.centre[at])
            found.append((embedding * F.normalize(goal[rows, at])).sum(1))
        return torch.cat(found)

    def unite(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Take the networks' centres from rows [n] of embeddings [views, N, D]; return what they say together.

        Of several networks, all views of a face have the mean of the first two: as it is, and mirrored.
        """
        if len(self.nets) == 1:
            return embeddings
        self.centre.copy_(embeddings[:EMBEDDED, rows].mean((0, 1)))
        return self.united(embeddings[:EMBEDDED].mean(0).to(self.centre)).to(embeddings).expand_as(embeddings)

    def united(self, embeddings: Tensor) -> Tensor:
        """Return embeddings [N, D], each network's less its centre at the same length, all together at unit length."""
        parts = (embeddings.float() - self.centre).split(self.widths, 1)
        together: Tensor = torch.cat([F.normalize(part) for part in parts], 1) / len(self.widths) ** 0.5
        return together


class ChipDetector(nn.Module):
    """The provider's detector (YuNet) on chips, differentiable: is there a face, and where are its landmarks?

    A chip stands in a margin of repeated edge pixels, for a detector sees faces in frames. The decoding is that of
    the detector's own description: score = sqrt(cls * obj), landmark = anchor + offset, both in units of the stride.
    """

    STRIDES: ClassVar = (8, 16, 32)
    MARGIN: ClassVar = 24
    stride: Tensor
    anchor: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        heads = [f"{head}_{stride}" for head in ("cls", "obj", "kps") for stride in self.STRIDES]
        self.net = FrozenOnnx(path, heads)
        side = 112 + 2 * self.MARGIN
        self.register_buffer("stride", torch.cat([torch.full(((side // s) ** 2,), float(s)) for s in self.STRIDES]))
        grids = [
            torch.cartesian_prod(torch.arange(side // s), torch.arange(side // s)).flip(1) * s for s in self.STRIDES
        ]
        self.register_buffer("anchor", torch.cat(grids).float())  # [anchors, 2]: x, y

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """Search faces [N, 3, 112, 112] in 0..1: log scores [N, anchors], landmarks [N, anchors, 10] from anchors."""
        x = F.pad(face, (self.MARGIN,) * 4, mode="replicate").flip(1) * 255
        parts = [part.float().reshape(len(face), -1, part.shape[-1]) for part in self.net(x)]
        cls, obj, kps = (torch.cat(parts[i : i + 3], 1) for i in (0, 3, 6))
        log_score = 0.5 * ((cls + 1e-4).log() + (obj + 1e-4).log())[..., 0]
        return log_score, kps * self.stride[:, None]

    def best(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest face of each chip: its score [N], and its landmarks [N, 10] in pixels of the chip."""
        log_score, marks = self(face)
        score, at = log_score.max(1)
        anchor = self.anchor[at].repeat(1, 5) - self.MARGIN
        return score.exp(), marks[torch.arange(len(face), device=face.device), at] + anchor


@dataclass(frozen=True)
class Providers:
    """The frozen networks of a training."""

    utility: Ensemble  # embeds faces
    frozen: list[Provider]  # classifiers of the private attribute (plug-and-play)
    detector: ChipDetector


def graph_shapes(path: Path, size: int | None, output: str | None) -> tuple[int, str]:
    """Return the side of the picture that a graph takes, and its output.

    Args:
        path: the network.
        size: what its contract says; None: the graph's own.
        output: the same.

    Raises:
        NetworkError: it is no function of one float32 picture [N, 3, size, size] with a free N, or the contract names
            another size or output than its own.
    """
    graph = read_graph(path)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise NetworkError(f"{path} must take one input, a picture; it takes {names}")
    kind = inputs[0].type.tensor_type
    dims = [d.dim_value or d.dim_param or "?" for d in kind.shape.dim]
    found = f"{path}: input {inputs[0].name} is {onnx.TensorProto.DataType.Name(kind.elem_type).lower()} {dims}"
    free_or_3 = len(dims) == 4 and (dims[1] == 3 or isinstance(dims[1], str))
    if kind.elem_type != onnx.TensorProto.FLOAT or not free_or_3:
        raise NetworkError(f"{found}; expected is float [N, 3, size, size]")
    if isinstance(dims[0], int):
        raise NetworkError(f"{found}: N is fixed; export the network with a free first dimension")
    own = {d for d in dims[2:] if isinstance(d, int)}
    if len(own) > 1 or (size is not None and own and own != {size}):
        raise NetworkError(
            f"{found}; expected is a square of size {size or 'x size'}: say its size in the input contract"
        )
    outputs = [value.name for value in graph.output]
    if output is None and len(outputs) != 1:
        raise NetworkError(
            f"{path} has the outputs {', '.join(outputs)}: say which one with output in the input contract"
        )
    return size or (own.pop() if own else 112), output or outputs[0]


def validate(provider: Provider, chips: NDArray[np.uint8], classes: Sequence[str] | None = None) -> None:
    """Try a provider's network on a few real chips.

    Args:
        provider: an embedder, or a classifier whose contract names its classes.
        chips: uint8 [n > 1, 112, 112, 3], RGB; different ones.
        classes: of the private attribute, which a classifier must know; None for an embedder.

    Raises:
        NetworkError: it cannot be used in a training; the message says why, and what to do.
    """
    if classes is None and provider.classes:
        raise NetworkError(
            f"{provider.path} is a classifier of {', '.join(provider.classes)}; the utility network must embed faces"
        )
    if classes is not None:
        _check_classes(provider, classes)
    x = provider.prepared(torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255).contiguous()
    _check_output(provider, x)
    _check_values(provider, x)
    _check_gradient(provider, x)


def _check_classes(provider: Provider, classes: Sequence[str]) -> None:
    """Its classes are those of the private attribute."""
    if not provider.classes:
        raise NetworkError(
            f"{provider.path}: classes is missing from its input contract: which output means what, such as "
            f"classes = {list(classes)}; say it in a providers.toml beside the file, under [{provider.path.stem}], "
            "or behind the file on the command line"
        )
    if sorted(classes) != sorted(provider.classes):
        raise NetworkError(
            f"{provider.path} classifies {', '.join(provider.classes)}; the private attribute is {', '.join(classes)}"
        )


def _check_output(provider: Provider, x: Tensor) -> None:
    """It runs, and its output has a shape that can be used, is finite, and differs between faces."""
    where = f"{provider.path}: output {provider.output}"
    try:
        (out,) = provider.net(x)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise NetworkError(f"{provider.path} does not run on pictures of {list(x.shape)}: {error}") from error
    width = f"{len(provider.classes)} classes" if provider.classes else "D > 1"
    fits = out.ndim >= 2 and out.shape[0] == len(x) and out[0].numel() > 1
    if not fits or (provider.classes and out[0].numel() != len(provider.classes)):
        raise NetworkError(f"{where} is {list(out.shape)} for {len(x)} pictures; expected [N, {width}]")
    if not out.isfinite().all():
        raise NetworkError(f"{where} is not finite on real faces: check mean and scale")
    if (out - out[:1]).abs().max() <= 1e-6 * out.abs().max():
        raise NetworkError(f"{where} is the same for all faces: check mean, scale and output")


def _check_values(provider: Provider, x: Tensor) -> None:
    """It computes what onnxruntime computes: the table of operators reads the file right."""
    try:
        session = ort.session(provider.path.read_bytes())
        (expected,) = session.run([provider.output], {provider.net.input: x.numpy()})
    except ort.ORT_ERRORS as error:
        raise NetworkError(f"{provider.path} does not run in onnxruntime: {error}") from error
    (actual,) = FrozenOnnx(provider.path, [provider.output])(x)
    off = float(np.abs(actual.numpy() - expected).max())
    if off > 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise NetworkError(
            f"{provider.path} computes something else here than in onnxruntime (off by {off:.3g}): "
            "an attribute of one of its operators is not understood; simplify the file, or report it"
        )


def _check_gradient(provider: Provider, x: Tensor) -> None:
    """Its gradient along random directions agrees with central differences, in float64.

    A network of ReLUs has kinks, and a difference across one is no slope. So it is tried at PROBES places around the
    faces, and the median of the errors counts; a wrong gradient is wrong at all of them.
    """
    net = copy.deepcopy(provider.net).double()
    generator = torch.Generator().manual_seed(0)

    def score(at: Tensor) -> Tensor:
        (out,) = net(at)
        weights = torch.linspace(-1, 1, out[0].numel(), dtype=torch.double)
        total: Tensor = (out.flatten(1) * weights).sum()
        return total

    step = STEP * max(1.0, float(x.abs().max()))
    found: list[tuple[float, float, float]] = []  # error, slope, difference
    for _ in range(PROBES):
        aside, direction = (torch.randn(x[:1].shape, generator=generator, dtype=torch.double) for _ in range(2))
        at = (x[:1].double() + 1e-3 * aside).requires_grad_()
        value = score(at)
        if not value.requires_grad:
            raise NetworkError(
                f"{provider.path} is not differentiable: no gradient leads from its output to the picture"
            )
        (gradient,) = torch.autograd.grad(value, at)
        if not gradient.isfinite().all() or not gradient.abs().max() > 0:
            kind = "zero" if gradient.isfinite().all() else "not finite"
            raise NetworkError(f"{provider.path}: its gradient is {kind} on real faces: nothing can be learned from it")
        slope = float((gradient * direction).sum())
        with torch.no_grad():
            difference = float(score(at + step * direction) - score(at - step * direction)) / (2 * step)
        # slopes along random directions are about as large as the gradient is long; a slope near 0 says little
        typical = max(abs(slope), abs(difference), float(gradient.norm()))
        found.append((abs(slope - difference) / (typical + 1e-6), slope, difference))
    error, slope, difference = sorted(found)[PROBES // 2]
    if error > 1e-2:
        raise NetworkError(
            f"{provider.path}: its gradient is {slope:.6g} along a direction where a finite difference has "
            f"{difference:.6g}"
        )
