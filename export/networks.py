"""The networks of a training: the sanitizer S, the attackers that play against it, and providers' frozen ONNX networks.

Pictures are float32 [N, 3, 112, 112] in 0..1 throughout; the sanitizer's ONNX contract (uint8, NHWC) is `Device`.
"""

import hashlib
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from edgesan import ort
from export.errors import NetworkError

PROVIDERS = Path(__file__).with_name("providers.toml")


LANDMARKS, LIGHT = 10, 5  # of a description, behind the embedding


class Reader(nn.Module):
    """What is worth knowing of a face: its embedding by the provider's network, its landmarks, its light.

    A student of larger networks (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015).
    Dense 3x3 blocks at a quarter of the resolution and below run near the peak of int8 kernels; the normalisation
    layers fold into the convolutions. One depthwise 7x7 weighs the places of the last map, as in MobileFaceNet (2018).
    """

    def __init__(self, features: int, width: int = 64, depth: int = 96, deepest: int = 128) -> None:
        super().__init__()
        self.stem = normed(48, width)  # 28x28
        self.fine = normed(width, width)
        self.down1 = normed(width, depth, 2)  # 14x14
        self.middle = nn.ModuleList(normed(depth, depth) for _ in range(3))
        self.down2 = normed(depth, deepest, 2)  # 7x7
        self.coarse = normed(deepest, deepest)
        self.weigh = nn.Sequential(nn.Conv2d(deepest, deepest, 7, groups=deepest, bias=False), nn.BatchNorm2d(deepest))
        nn.init.normal_(self.weigh[0].weight, std=1 / 49)
        self.tell = nn.Conv2d(deepest, features + LANDMARKS + LIGHT, 1)

    def forward(self, x: Tensor) -> Tensor:
        """An unshuffled picture [N, 48, 28, 28] in 0..1 -> a description [N, features + 15, 1, 1]."""
        x = F.relu(self.stem(x * 2 - 1))
        x = F.relu(x + self.fine(x))
        x = F.relu(self.down1(x))
        for block in self.middle:
            x = F.relu(x + block(x))
        x = F.relu(self.down2(x))
        x = F.relu(x + self.coarse(x))
        return self.tell(self.weigh(x))


class Hider(nn.Module):
    """From a description to the code, by the dial: what is said of a face, and how loud."""

    def __init__(self, features: int, code: int, hidden: int = 32) -> None:
        super().__init__()
        self.plain = nn.Conv2d(features + LANDMARKS + LIGHT, code, 1, bias=False)
        self.bend = nn.Conv2d(features + LANDMARKS + LIGHT + 1, hidden, 1)
        self.last = nn.Conv2d(hidden, code, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, description: Tensor, alpha: Tensor) -> Tensor:
        """A description [N, features + 15, 1, 1] and alpha [N, 1, 1, 1] -> the code [N, code, 1, 1]."""
        return self.plain(description) + self.last(F.relu(self.bend(torch.cat([description, alpha], 1))))


class Painter(nn.Module):
    """A face from a noisy code, and from nothing else."""

    def __init__(self, code: int, widths: tuple[int, int, int] = (80, 64, 48), grain: int = 14) -> None:
        super().__init__()
        coarse, middle, fine = widths
        self.grain = grain
        self.spread = nn.Conv2d(code + 1, grain * 49, 1)
        self.first = nn.Conv2d(grain, coarse, 3, padding=1)  # 7x7
        self.block1 = nn.Conv2d(coarse, coarse, 3, padding=1)
        self.up1 = nn.Conv2d(coarse, middle, 3, padding=1)  # 14x14
        self.block2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.up2 = nn.Conv2d(middle, fine, 3, padding=1)  # 28x28
        self.block3 = nn.Conv2d(fine, fine, 3, padding=1)
        self.head = nn.Conv2d(fine, 48, 3, padding=1)
        start_grey([m for m in self.modules() if isinstance(m, nn.Conv2d) and m is not self.spread], self.head)

    def forward(self, noisy: Tensor, alpha: Tensor) -> Tensor:
        """A noisy code [N, code, 1, 1] and alpha [N, 1, 1, 1] -> an unshuffled picture [N, 48, 28, 28]."""
        x = self.spread(torch.cat([noisy, alpha], 1)).reshape(-1, self.grain, 7, 7)
        x = F.relu(self.first(x))
        x = F.relu(x + self.block1(x))
        x = F.relu(self.up1(larger(x)))
        x = F.relu(x + self.block2(x))
        x = F.relu(self.up2(larger(x)))
        x = F.relu(x + self.block3(x))
        return clip(self.head(x), 0, 1)


class Sanitizer(nn.Module):
    """S(x, z, alpha): read the face into a few numbers, add noise to them, paint a face from what is left.

    face [N, 3, 112, 112] -> `Reader` -> a description -> `Hider` -> a code of a few dozen numbers -> + alpha * noise * z
    -> `Painter` -> face.

    The noisy code is all that the painter sees: whatever anybody reads from the picture, he could have read from these
    numbers (data processing inequality; Cover and Thomas, 2.8). So the game against the attackers is played on them, where
    an attacker is small, sees new noise at each look, and can be as strong as we like.
    """

    def __init__(self, features: int = 128, code: int = 64, noise: float = 1.0, stochastic: bool = True) -> None:
        """`noise`: standard deviation at alpha = 1. Without `stochastic` there is none, and noise_dim is 0."""
        super().__init__()
        self.reader, self.hider, self.painter = Reader(features), Hider(features, code), Painter(code)
        self.noise, self.noise_dim = noise, code if stochastic else 0

    def hide(self, description: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """The noisy code [N, code] of a description [N, features + 15], given z [N, code] and alpha [N, 1]."""
        code = self.hider(description[..., None, None], alpha[..., None, None])[..., 0, 0]
        return code if z is None or not self.noise_dim else code + self.noise * alpha * z

    def paint(self, noisy: Tensor, alpha: Tensor) -> Tensor:
        """The picture [N, 3, 112, 112] of a noisy code [N, code]."""
        return shuffle(self.painter(noisy[..., None, None], alpha[..., None, None]))

    def body(self, x: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """An unshuffled picture in, another out."""
        dial = alpha[..., None, None]
        code = self.hider(self.reader(x), dial)
        if self.noise_dim and z is not None:
            code = code + (self.noise * alpha * z)[..., None, None]
        return self.painter(code, dial)

    def forward(self, face: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """face [N, 3, 112, 112] in 0..1, z [N, noise_dim] standard normal (unused if noise_dim is 0), alpha [N, 1]."""
        return shuffle(self.body(unshuffle(face), z, alpha))


def start_grey(layers: Sequence[nn.Conv2d], head: nn.Conv2d) -> None:
    """Weights that carry what comes in through (He et al. 2015), and a last layer that begins with a grey picture."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    nn.init.normal_(head.weight, std=0.1 / (9 * head.in_channels) ** 0.5)
    nn.init.constant_(head.bias, 0.5)


def normed(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and a normalisation that folds into it."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def larger(x: Tensor) -> Tensor:
    """Nearest upsampling to twice the size."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def half(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor computes in it: where it does not, it is emulated, at half the speed."""
    fast = device.type == "cuda" or "avx512_bf16" in processor_flags()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@cache
def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do (x86)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def perceptron(inputs: int, outputs: int, hidden: int = 256) -> nn.Sequential:
    """Two hidden layers: what reads a code, for the service or against it."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


class Unet(nn.Module):
    """The authors' shape, for comparison: gray 128x128, five levels of two 3x3 convolutions, skips, noise at the bottleneck.

    0.95 GMAC a face. The skips carry the picture around the noise; that is the point of comparing.
    """

    WIDTHS: ClassVar = (16, 32, 64, 128, 256)

    def __init__(self, stochastic: bool = True) -> None:
        """The noise is one map of 8x8 beside the bottleneck's input; the dial is a map there and beside the picture."""
        super().__init__()
        self.noise_dim = 64 if stochastic else 0
        before = (2, *self.WIDTHS[:-2], self.WIDTHS[-2] + 1 + bool(stochastic))
        self.down = nn.ModuleList(twice(i, o) for i, o in zip(before, self.WIDTHS, strict=True))
        pairs = list(zip(self.WIDTHS[::-1], self.WIDTHS[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.join = nn.ModuleList(twice(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(self.WIDTHS[0], 1, 3, padding=1)
        start_grey([m for m in self.modules() if isinstance(m, nn.Conv2d)], self.head)

    def forward(self, face: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """face [N, 3, 112, 112] in 0..1, z [N, 64], alpha [N, 1] -> a gray face [N, 3, 112, 112]."""
        gray = (face * face.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        x = F.interpolate(gray, (128, 128), mode="bilinear", antialias=True)
        dial, kept = alpha[..., None, None], []
        x = torch.cat([x, dial.expand(-1, 1, 128, 128)], 1)
        for level, block in enumerate(self.down):
            x = F.max_pool2d(x, 2) if level else x
            if level == len(self.down) - 1:
                maps = [x, dial.expand(-1, 1, 8, 8)]
                x = torch.cat([*maps, z.reshape(-1, 1, 8, 8)] if self.noise_dim and z is not None else maps, 1)
            x = block(x)
            kept.append(x)
        for up, block, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = block(torch.cat([F.relu(up(larger(x))), skip], 1))
        y = F.interpolate(clip(self.head(x).float(), 0, 1), (112, 112), mode="bilinear", antialias=True)
        return y.expand(-1, 3, -1, -1)


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


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
        x = face.reshape(-1, 28, 4, 28, 4, 3).permute(0, 5, 2, 4, 1, 3).reshape(-1, 48, 28, 28)
        y = self.sanitizer.body(x.float() / 255, noise, alpha)
        y = (y * 255).round().to(torch.uint8)
        return y.reshape(-1, 3, 4, 4, 28, 28).permute(0, 4, 2, 5, 3, 1).reshape(-1, 112, 112, 3)


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


def read_graph(path: Path) -> onnx.GraphProto:
    """The graph of an ONNX file.

    Raises:
        NetworkError: it cannot be read.
    """
    try:
        return onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise NetworkError(f"{path} cannot be read as an ONNX network: {error}") from error


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


class FrozenOnnx(nn.Module):
    """An ONNX graph as a differentiable torch module whose weights never change.

    Raises:
        NetworkError: the file cannot be read, or holds an operator that is not in the table below.
    """

    def __init__(self, path: Path, outputs: Sequence[str], logits: bool = False) -> None:
        """`logits`: an output that is a softmax is taken before it."""
        super().__init__()
        graph, self.path = read_graph(path), path
        self.weights: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}  # shapes, paddings, limits: read on the CPU, wherever the weights are
        for i, tensor in enumerate(graph.initializer):
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            if value.is_floating_point() and value.ndim:
                self.weights[tensor.name] = f"w{i}"
                self.register_buffer(f"w{i}", value)
            else:
                self.constants[tensor.name] = value
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
        self.input = next(i.name for i in graph.input if i.name not in self.weights | self.constants)

    def session(self) -> Callable[[Tensor], list[Tensor]]:
        """The same function by onnxruntime: without gradients, and on a CPU in half the time."""
        model = onnx.load(self.path)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        session = ort.session(model.SerializeToString(), 2)
        return lambda x: [torch.from_numpy(y) for y in session.run(self.outputs, {self.input: x.contiguous().numpy()})]

    def forward(self, x: Tensor) -> list[Tensor]:
        """The chosen outputs, in their order."""
        values: dict[str, Tensor | None] = {**self.constants, self.input: x, "": None}
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
