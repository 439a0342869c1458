"""Providers' frozen ONNX networks: their input contracts, and the checks that each one passes before a training.

File, operators, shapes and contract are checked when a `Provider` is made. `validate` runs the network on real faces:
it must run as in onnxruntime, tell faces apart, and have the right gradient. Past that, nothing is checked again.
"""

import copy
import hashlib
import tomllib
from collections.abc import Sequence
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
DIRECTIONS = 5
STEP = 1e-7  # of the finite difference, in units of the network's input
DEFAULTS: dict[str, Any] = {"box": [0, 0, 112, 112], "order": "RGB", "mean": 127.5, "scale": 127.5, "classes": []}
CONTRACT = ("file", "output", "classes", "box", "size", "order", "mean", "scale")


def contract(name: str, folder: Path, said: dict[str, Any] | None = None) -> tuple[Path, dict[str, Any]]:
    """A provider's file and input contract, by its name in a `providers.toml`, or by the path of its .onnx file.

    Each key is looked for in `said`, in the `providers.toml` beside the file, and in DEFAULTS; size and output, where
    nobody says them, are the graph's own.

    Raises:
        NetworkError: nobody of that name, no such file, no TOML, an unknown key or a value of another kind.
    """
    path = Path(name) if name.endswith(".onnx") else None
    tables: dict[str, dict[str, Any]] = tomllib.loads(PROVIDERS.read_text())
    own = (path.parent if path else folder) / PROVIDERS.name  # bring your own: contracts beside the networks
    if own.exists():
        try:
            tables |= tomllib.loads(own.read_text())
        except tomllib.TOMLDecodeError as error:
            raise NetworkError(f"{own} is no TOML: {error}") from error
    if path is None and name not in tables:
        raise NetworkError(f"no provider {name!r} in {PROVIDERS.name}; it has {', '.join(tables)}")
    c = DEFAULTS | tables.get(path.stem if path else name, {}) | (said or {})
    file = path or folder / str(c.get("file", f"{name}.onnx"))
    unknown = sorted(c.keys() - set(CONTRACT))
    if unknown:
        raise NetworkError(
            f"the input contract of {name} has the unknown key {unknown[0]}; known are {', '.join(CONTRACT)}"
        )
    numbers = {"mean": 3, "scale": 3, "box": 4}
    for key, count in numbers.items():
        values = c[key] if isinstance(c[key], list) else [c[key]] * 3
        if len(values) != count or not all(isinstance(v, int | float) for v in values):
            raise NetworkError(f"the input contract of {name}: {key} must be {count} numbers, not {c[key]!r}")
        c[key] = values
    if 0 in c["scale"]:
        raise NetworkError(f"the input contract of {name}: scale divides the picture, and must not be 0")
    if c["order"] not in ("RGB", "BGR"):
        raise NetworkError(f'the input contract of {name}: order must be "RGB" or "BGR", not {c["order"]!r}')
    if not isinstance(c["classes"], list) or not all(isinstance(v, str) for v in c["classes"]):
        raise NetworkError(f"the input contract of {name}: classes must be a list of names, not {c['classes']!r}")
    return file, c


class Provider(nn.Module):
    """A provider's network with its own input contract: chips in 0..1 to embeddings (or logits), frozen.

    For a classifier the output is the log-odds, the input of its last Softmax: the softmax itself saturates.
    """

    def __init__(self, name: str, folder: Path, said: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.path, c = contract(name, folder, said)
        size, output = shapes(self.path, c.get("size"), c.get("output"))
        self.box: tuple[int, int, int, int] = tuple(c["box"])
        self.size, self.bgr, self.classes = size, c["order"] == "BGR", list(c["classes"])
        self.net = FrozenOnnx(self.path, [output], logits=bool(self.classes))
        self.output = output
        self.digest = hashlib.sha256(self.path.read_bytes() + repr(sorted(c.items())).encode()).hexdigest()
        self.register_buffer("mean", torch.tensor(c["mean"], dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(c["scale"], dtype=torch.float32).view(1, 3, 1, 1))

    def prepared(self, face: Tensor) -> Tensor:
        """Chips [N, 3, 112, 112] in 0..1 as the network takes them [N, 3, size, size]."""
        x0, y0, x1, y1 = self.box
        x = F.pad(face, (0, 0, 0, max(0, y1 - face.shape[2])), mode="replicate") * 255
        x = x[:, :, y0:y1, x0:x1]
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.bgr:
            x = x.flip(1)
        return ((x - self.mean) / self.scale).contiguous(memory_format=torch.channels_last)

    def forward(self, face: Tensor) -> Tensor:
        (out,) = self.net(self.prepared(face))
        return out.flatten(1) if self.classes else F.normalize(out.flatten(1).float())


class Finder(nn.Module):
    """The provider's detector (YuNet) on chips, differentiable: is there a face, and where are its landmarks?

    A chip stands in a margin of repeated edge pixels, for a detector sees faces in frames. The decoding is that of
    the detector's own description: score = sqrt(cls * obj), landmark = anchor + offset, both in units of the stride.
    """

    STRIDES: ClassVar = (8, 16, 32)
    MARGIN: ClassVar = 24

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
        """face [N, 3, 112, 112] in 0..1 -> log score [N, anchors], landmarks [N, anchors, 10] in pixels from the anchor."""
        x = F.pad(face, (self.MARGIN,) * 4, mode="replicate").flip(1) * 255
        parts = [part.float().reshape(len(face), -1, part.shape[-1]) for part in self.net(x)]
        cls, obj, kps = (torch.cat(parts[i : i + 3], 1) for i in (0, 3, 6))
        log_score = 0.5 * ((cls + 1e-4).log() + (obj + 1e-4).log())[..., 0]
        return log_score, kps * self.stride[:, None]

    def best(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest face of each chip: its score [N], and its landmarks [N, 10] in pixels of the chip."""
        log_score, marks = self(face)
        score, at = log_score.max(1)
        anchor = self.anchor[at].repeat(1, 5) - self.MARGIN
        return score.exp(), marks[torch.arange(len(face), device=face.device), at] + anchor


def shapes(path: Path, size: int | None, output: str | None) -> tuple[int, str]:
    """The side of the picture that a provider's graph takes, and its output: its own where the contract is silent.

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
    told = f"{path}: input {inputs[0].name} is {onnx.TensorProto.DataType.Name(kind.elem_type).lower()} {dims}"
    if (
        kind.elem_type != onnx.TensorProto.FLOAT
        or len(dims) != 4
        or (dims[1] not in (3, "?") and isinstance(dims[1], int))
    ):
        raise NetworkError(f"{told}; expected is float [N, 3, size, size]")
    if isinstance(dims[0], int):
        raise NetworkError(f"{told}: N is fixed; export the network with a free first dimension")
    own = {d for d in dims[2:] if isinstance(d, int)}
    if len(own) > 1 or (size is not None and own and own != {size}):
        raise NetworkError(
            f"{told}; expected is a square of size {size or 'x size'}: say its size in the input contract"
        )
    outputs = [value.name for value in graph.output]
    if output is None and len(outputs) != 1:
        raise NetworkError(
            f"{path} has the outputs {', '.join(outputs)}: say which one with output in the input contract"
        )
    return size or (own.pop() if own else 112), output or outputs[0]


def validate(provider: Provider, chips: NDArray[np.uint8], classes: Sequence[str] | None = None) -> None:
    """Try a provider's network on a few real chips [n > 1, 112, 112, 3].

    Args:
        provider: an embedder, or a classifier whose contract names its classes.
        chips: uint8, RGB; different ones.
        classes: of the private attribute, which a classifier must tell; None for an embedder.

    Raises:
        NetworkError: it cannot be used in a training; the message says why, and what to do.
    """
    where = str(provider.path)
    if classes is None and provider.classes:
        raise NetworkError(
            f"{where} is a classifier of {', '.join(provider.classes)}; the utility network must embed faces"
        )
    if classes is not None and not provider.classes:
        raise NetworkError(
            f"{where}: classes is missing from its input contract: which output means what, such as "
            f"classes = {list(classes)}; say it in a providers.toml beside the file, under [{provider.path.stem}], "
            "or behind the file on the command line"
        )
    if classes is not None and sorted(classes) != sorted(provider.classes):
        raise NetworkError(
            f"{where} tells {', '.join(provider.classes)}; the private attribute is {', '.join(classes)}"
        )
    x = provider.prepared(torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255).contiguous()
    try:
        (out,) = provider.net(x)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise NetworkError(f"{where} does not run on pictures of {list(x.shape)}: {error}") from error
    width = f"{len(provider.classes)} classes" if provider.classes else "D > 1"
    fits = out.ndim >= 2 and out.shape[0] == len(x) and out[0].numel() > 1
    if not fits or (provider.classes and out[0].numel() != len(provider.classes)):
        raise NetworkError(
            f"{where}: output {provider.output} is {list(out.shape)} for {len(x)} pictures; expected [N, {width}]"
        )
    if not out.isfinite().all():
        raise NetworkError(f"{where}: output {provider.output} is not finite on real faces: check mean and scale")
    if (out - out[:1]).abs().max() <= 1e-6 * out.abs().max():
        raise NetworkError(f"{where}: output {provider.output} is the same for all faces: check mean, scale and output")
    compare(provider, x)
    differentiate(provider, x)


def compare(provider: Provider, x: Tensor) -> None:
    """As onnxruntime has it: the table of operators reads the file as everybody does."""
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
            "an attribute of one of its operators is not understood; simplify the file, or tell us"
        )


def differentiate(provider: Provider, x: Tensor) -> None:
    """The gradient along random directions against central differences, in float64.

    A network of ReLUs has kinks, and a difference across one is no slope: at DIRECTIONS places around the faces, the
    median of the errors counts. A wrong gradient is wrong at all of them.
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
    for _ in range(DIRECTIONS):
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
        found.append((abs(slope - difference) / (max(abs(slope), abs(difference)) + 1e-6), slope, difference))
    error, slope, difference = sorted(found)[DIRECTIONS // 2]
    if error > 1e-2:
        raise NetworkError(
            f"{provider.path}: its gradient is {slope:.6g} along a direction where a finite difference has {difference:.6g}"
        )
