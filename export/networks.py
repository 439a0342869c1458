"""The networks of a training: the sanitizer S, the attackers that play against it, and providers' frozen ONNX networks.

Pictures are float32 [N, 3, 112, 112] in 0..1 throughout; the sanitizer's ONNX contract (uint8, NHWC) is `Device`.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from export.errors import NetworkError

PROVIDERS = Path(__file__).with_name("providers.toml")


class Film(nn.Module):
    """Feature-wise affine modulation by the dial (Perez et al., "FiLM", 2018)."""

    def __init__(self, channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 2 * channels))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        gain, bias = self.net(alpha)[:, :, None, None].chunk(2, 1)
        return x * (1 + gain) + bias


class Sanitizer(nn.Module):
    """S(x, z, alpha): an encoder that rewrites the face into a narrow code, noise, and a decoder that paints it.

    face [N, 3, 112, 112] -> unshuffle to 28x28 -> U-Net down to 7x7 and back -> `code` channels of 28x28 within -1..1
    -> + sigma(alpha) * noise -> shuffle to 112x112.

    The code is the only way to the picture, so there is no way around the noise. z has the grain in which the private
    attribute lives (coarse shape, shading), steers the encoder at 7x7, and is scattered from there over the code's
    finer cells by a learned mixture of unit norm: noise that is the same all over a cell could be dodged by details. Dense 3x3 blocks at a quarter
    of the resolution and below run near the peak of int8 kernels; there is no transposed convolution (it has no int8
    kernel) and no normalisation layer (nothing to fold).
    """

    GRAIN = 7  # the noise is a picture of 7x7 cells

    def __init__(
        self,
        width: int = 64,
        depth: int = 96,
        code: int = 16,
        noise: tuple[float, float] = (0.1, 0.6),
        stochastic: bool = True,
    ) -> None:
        """`noise`: sigma at alpha = 0 and at alpha = 1. Without `stochastic` there is no noise, and noise_dim is 0."""
        super().__init__()
        self.code, self.noise_low, self.noise_high = code, *noise
        self.noise_dim = code * self.GRAIN**2 if stochastic else 0
        deepest = depth * 4 // 3
        self.stem = nn.Conv2d(48, width, 3, padding=1)  # 28x28
        self.down1 = nn.Conv2d(width, depth, 3, stride=2, padding=1)  # 14x14
        self.block1 = nn.Conv2d(depth, depth, 3, padding=1)
        self.down2 = nn.Conv2d(depth, deepest, 3, stride=2, padding=1)  # 7x7
        if stochastic:
            self.steer = nn.Conv2d(code, deepest, 1)
        self.film2 = Film(deepest)
        self.block2 = nn.Conv2d(deepest, deepest, 3, padding=1)
        self.up2 = nn.Conv2d(deepest, depth, 3, padding=1)
        self.film1 = Film(depth)
        self.block3 = nn.Conv2d(depth, depth, 3, padding=1)  # 14x14
        self.up1 = nn.Conv2d(depth, width, 3, padding=1)
        self.to_code = nn.Conv2d(width, code, 3, padding=1)  # 28x28
        if stochastic:
            self.scatter = nn.Conv2d(code, 16 * code, 1, bias=False)
        self.from_code = nn.Conv2d(code, width, 3, padding=1)
        self.film0 = Film(width)
        self.paint = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 48, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if stochastic:  # each code channel begins with its own noise, the same over the 4x4 cells
            with torch.no_grad():
                self.scatter.weight.copy_(torch.eye(code).repeat_interleave(16, 0)[:, :, None, None])
        # At the start the code must stand out of the noise, or the decoder learns to ignore it and never looks again.
        nn.init.normal_(self.to_code.weight, std=0.4 / (9 * width) ** 0.5)
        nn.init.normal_(self.head.weight, std=0.1 / (9 * width) ** 0.5)
        nn.init.constant_(self.head.bias, 0.5)

    def sigma(self, alpha: Tensor) -> Tensor:
        """Standard deviation of the code's noise [N, 1], against codes within -1..1."""
        return self.noise_low + (self.noise_high - self.noise_low) * alpha

    def encode(self, x: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """The code [N, code, 28, 28] of an unshuffled picture [N, 48, 28, 28], steered by the noise [N, code, 7, 7]."""
        fine = F.relu(self.stem(x))
        middle = F.relu(self.down1(fine))
        middle = F.relu(middle + self.block1(middle))
        coarse = self.down2(middle) if z is None else self.down2(middle) + self.steer(z)
        coarse = F.relu(self.film2(coarse, alpha))
        coarse = F.relu(coarse + self.block2(coarse))
        middle = F.relu(middle + self.film1(larger(self.up2(coarse), 2), alpha))
        middle = F.relu(middle + self.block3(middle))
        return clip(self.to_code(F.relu(fine + larger(self.up1(middle), 2))), -1, 1)

    def decode(self, noisy: Tensor, alpha: Tensor) -> Tensor:
        """An unshuffled picture [N, 48, 28, 28] within 0..1 from a noisy code."""
        h = F.relu(self.film0(self.from_code(noisy), alpha))
        return clip(self.head(F.relu(h + self.paint(h))), 0, 1)

    def body(self, x: Tensor, noise: Tensor | None, alpha: Tensor) -> Tensor:
        """An unshuffled picture in, another out."""
        if not self.noise_dim or noise is None:
            return self.decode(self.encode(x, None, alpha), alpha)
        z = noise.reshape(-1, self.code, self.GRAIN, self.GRAIN)
        scattered = F.pixel_shuffle(self.scatter(z), 4)  # standard normal in each of the code's entries
        return self.decode(self.encode(x, z, alpha) + self.sigma(alpha)[:, :, None, None] * scattered, alpha)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring the mixture of the noise back to unit norm: training may choose where noise goes, not how much."""
        if self.noise_dim:
            self.scatter.weight.div_(self.scatter.weight.norm(dim=1, keepdim=True))

    def forward(self, face: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        """face [N, 3, 112, 112] in 0..1, noise [N, noise_dim] standard normal (unused if noise_dim is 0), alpha [N, 1]."""
        return shuffle(self.body(unshuffle(face), noise, alpha))


def larger(x: Tensor, factor: int) -> Tensor:
    """Nearest upsampling."""
    return F.interpolate(x, scale_factor=factor, mode="nearest")


class Device(nn.Module):
    """The sanitizer with the tensors of the model file: uint8 NHWC in and out; layout and scaling done inside, once.

    The 4x4 pixel (un)shuffle and the change between NHWC and NCHW are one transpose of bytes each.
    """

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__()
        self.sanitizer = sanitizer

    def forward(self, face: Tensor, *rest: Tensor) -> Tensor:
        """face uint8 [N, 112, 112, 3], noise [N, noise_dim] (absent if that is 0), alpha [N, 1] -> as face."""
        noise, alpha = rest if self.sanitizer.noise_dim else (None, *rest)
        assert alpha is not None
        n = face.shape[0]
        x = face.reshape(n, 28, 4, 28, 4, 3).permute(0, 5, 2, 4, 1, 3).reshape(n, 48, 28, 28)
        y = self.sanitizer.body(x.float() / 255, noise, alpha)
        y = (y * 255).round().to(torch.uint8)
        return y.reshape(n, 3, 4, 4, 28, 28).permute(0, 4, 2, 5, 3, 1).reshape(n, 112, 112, 3)


class Clip(torch.autograd.Function):
    """Clamp whose gradient still calls a saturated value back (but never pushes it further out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
        return gradient.masked_fill(outwards, 0), None, None


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """`Clip` while training; a plain clamp otherwise, which exports as one operator."""
    return Clip.apply(x, low, high) if torch.is_grad_enabled() else x.clamp(low, high)


def unshuffle(x: Tensor) -> Tensor:
    """[N, 3, 112, 112] -> [N, 48, 28, 28]."""
    return F.pixel_unshuffle(x, 4)


def shuffle(x: Tensor) -> Tensor:
    """[N, 48, 28, 28] -> [N, 3, 112, 112]."""
    return F.pixel_shuffle(x, 4)


class Attacker(nn.Module):
    """A small residual classifier of chips, told alpha; `stem` chooses how coarse its first look is (1, 2 or 4)."""

    WIDTHS: ClassVar = {1: (16, 32, 64, 96), 2: (32, 64, 96), 4: (64, 96, 128)}

    def __init__(self, classes: int, stem: int = 4) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = []
        channels = 3 * stem * stem + 1
        for i, width in enumerate(self.WIDTHS[stem]):
            layers += [
                nn.Conv2d(channels, width, 3, stride=1 if i == 0 and stem == 4 else 2, padding=1),
                nn.GroupNorm(8, width),
                nn.ReLU(),
                Residual(width),
            ]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, face: Tensor, alpha: Tensor) -> Tensor:
        """face [N, 3, 112, 112] in 0..1, alpha [N, 1] (or a map of the stem's size) -> logits [N, classes]."""
        x = F.pixel_unshuffle(face * 4 - 2, self.stem) if self.stem > 1 else face * 4 - 2
        dial = alpha if alpha.ndim == 4 else alpha[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x = torch.cat([x, dial], 1).contiguous(memory_format=torch.channels_last)
        return self.head(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Probe(nn.Module):
    """An attacker that looks at the provider's face embedding of the sanitized face, not at pixels."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features + 1, 256), nn.ReLU(), nn.Linear(256, classes))

    def forward(self, embedding: Tensor, alpha: Tensor) -> Tensor:
        """embedding [N, features] of unit length, alpha [N, 1] -> logits [N, classes]."""
        return self.net(torch.cat([embedding * features_scale(embedding), alpha], 1))


def features_scale(embedding: Tensor) -> float:
    """Brings a unit vector's entries to unit variance."""
    return float(embedding.shape[1]) ** 0.5


class Provider(nn.Module):
    """A provider's network with its own input contract: chips in 0..1 to embeddings (or logits), frozen.

    For a classifier the output is the log-odds, the input of its last Softmax: the softmax itself saturates.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__()
        contracts = tomllib.loads(PROVIDERS.read_text())
        own = folder / PROVIDERS.name  # bring your own: contracts beside the networks
        if own.exists():
            contracts |= tomllib.loads(own.read_text())
        if name not in contracts:
            raise NetworkError(f"no provider {name!r} in {PROVIDERS.name}; it has {', '.join(contracts)}")
        c = contracts[name]
        self.box: tuple[int, int, int, int] = tuple(c["box"])
        self.size, self.bgr, self.classes = int(c["size"]), c["order"] == "BGR", list(c.get("classes", []))
        self.net = FrozenOnnx(folder / c["file"], [c["output"]], logits=bool(self.classes))
        self.register_buffer("mean", torch.tensor(c["mean"]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(c["scale"]).view(1, 3, 1, 1))

    def forward(self, face: Tensor) -> Tensor:
        x0, y0, x1, y1 = self.box
        x = F.pad(face, (0, 0, 0, max(0, y1 - face.shape[2])), mode="replicate") * 255
        x = x[:, :, y0:y1, x0:x1]
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if self.bgr:
            x = x.flip(1)
        x = ((x - self.mean) / self.scale).contiguous(memory_format=torch.channels_last)
        (out,) = self.net(x)
        return out if self.classes else F.normalize(out.float())


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

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor]:
        """face [N, 3, 112, 112] in 0..1 -> log score [N, anchors], landmarks [N, anchors, 10] in pixels from the anchor."""
        x = F.pad(face, (self.MARGIN,) * 4, mode="replicate").flip(1) * 255
        parts = [part.float().reshape(len(face), -1, part.shape[-1]) for part in self.net(x)]
        cls, obj, kps = (torch.cat(parts[i : i + 3], 1) for i in (0, 3, 6))
        log_score = 0.5 * ((cls + 1e-4).log() + (obj + 1e-4).log())[..., 0]
        return log_score, kps * self.stride[:, None]


class FrozenOnnx(nn.Module):
    """An ONNX graph as a differentiable torch module whose weights never change.

    Raises:
        NetworkError: the file cannot be read, or holds an operator that is not in the table below.
    """

    def __init__(self, path: Path, outputs: Sequence[str], logits: bool = False) -> None:
        """`logits`: an output that is a softmax is taken before it."""
        super().__init__()
        try:
            graph = onnx.load(path).graph
        except (OSError, DecodeError) as error:
            raise NetworkError(f"{path} cannot be read as an ONNX network: {error}") from error
        self.weights: dict[str, str] = {}
        for i, tensor in enumerate(graph.initializer):
            self.weights[tensor.name] = f"w{i}"
            self.register_buffer(f"w{i}", torch.from_numpy(np.array(numpy_helper.to_array(tensor))))
        producers = {name: node for node in graph.node for name in node.output}
        self.outputs: list[str] = []
        for name in outputs:
            if name not in producers:
                raise NetworkError(f"{path} has no output {name!r}; it has {', '.join(o.name for o in graph.output)}")
            source = name
            while producers[source].op_type == "Identity" or (logits and producers[source].op_type == "Softmax"):
                source = producers[source].input[0]
            self.outputs.append(source)
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if unknown:
            raise NetworkError(
                f"{path} uses {', '.join(unknown)}; differentiable here are {', '.join(sorted(OPERATORS))}"
            )
        needed, self.nodes = set(self.outputs), []
        for node in reversed(graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                self.nodes.insert(0, (node.op_type, list(node.input), node.output[0], attributes))
        self.input = next(i.name for i in graph.input if i.name not in self.weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The chosen outputs, in their order."""
        values: dict[str, Tensor | None] = {self.input: x, "": None}
        for op, inputs, output, attributes in self.nodes:
            arguments = [values[i] if i in values else getattr(self, self.weights[i]) for i in inputs]
            values[output] = OPERATORS[op](attributes, *arguments)
        return [value for value in (values[name] for name in self.outputs) if value is not None]


def _pads(x: Tensor, attributes: dict[str, Any], value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """ONNX pads (top, left, bottom, right) as torch's symmetric padding; an uneven one is applied at once."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if top == bottom and left == right:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(a: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x, padding = _pads(x, a)
    strides, groups = tuple(a.get("strides", (1, 1))), a.get("group", 1)
    dilations = tuple(a.get("dilations", (1, 1)))
    if groups > 1 and strides == (2, 2):
        # the gradient of a strided depthwise convolution takes ten times as long on a CPU as this one's
        return F.max_pool2d(F.conv2d(x, w, b, 1, padding, dilations, groups), 1, 2)
    return F.conv2d(x, w, b, strides, padding, dilations, groups)


def _max_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    x, padding = _pads(x, a, float("-inf"))
    return F.max_pool2d(x, tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))), padding)


def _average_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    counted = bool(a.get("count_include_pad", 0))
    return F.avg_pool2d(
        x,
        tuple(a["kernel_shape"]),
        tuple(a.get("strides", (1, 1))),
        tuple(a.get("pads", (0, 0))[:2]),
        count_include_pad=counted,
    )


def _gemm(a: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    y = x @ (w.T if a.get("transB", 0) else w)
    return y if b is None else y + b


def _pad(a: dict[str, Any], x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    p = pads.tolist()
    n = len(p) // 2
    flat = [int(q) for d in reversed(range(n)) for q in (p[d], p[d + n])]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _prelu(a: dict[str, Any], x: Tensor, slope: Tensor) -> Tensor:
    """As a sum: torch's own also computes the slope's gradient, which nobody asks for, and takes twice as long."""
    slope = slope.to(x.dtype)
    return slope * x + (1 - slope) * F.relu(x)


def _resize(a: dict[str, Any], x: Tensor, roi: Tensor | None, scales: Tensor) -> Tensor:
    if a.get("mode") != b"nearest":
        raise NetworkError(f"Resize is differentiable here in mode nearest only, not {a.get('mode')}")
    return F.interpolate(x, scale_factor=scales.tolist()[2:], mode="nearest")


def _clip(a: dict[str, Any], x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = (a.get("min") if low is None else float(low), a.get("max") if high is None else float(high))
    return x.clamp(*bounds)


OPERATORS: dict[str, Any] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _conv,
    "Div": lambda a, x, y: x / y,
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda a, x: x,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "MaxPool": _max_pool,
    "Min": lambda a, x, y: torch.minimum(x, y),
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMax": lambda a, x: x.amax(tuple(a["axes"]), bool(a.get("keepdims", 1))),
    "ReduceMean": lambda a, x, axes=None: x.mean(
        tuple(a["axes"] if axes is None else axes.tolist()), bool(a.get("keepdims", 1))
    ),
    "Relu": lambda a, x: F.relu(x),
    "Reshape": lambda a, x, shape: x.reshape(shape.tolist()),
    "Resize": _resize,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}
