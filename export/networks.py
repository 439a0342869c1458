"""Our own networks: the sanitizer S, the attackers that play against it, and the baseline of the authors' shape.

Pictures are float32 [N, 3, 112, 112] in 0..1 throughout; the tensors of the model file (uint8, NHWC) are `DeviceGraph`'s.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class DeviceGraph(nn.Module):
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
