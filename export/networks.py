"""Our own networks: the sanitizer S, the attackers that play against it, and the baseline of the authors' shape.

Pictures are float32 [N, 3, 112, 112] in 0..1 throughout; `DeviceGraph` has the tensors of the model file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from edgesan import ort
from export.resnet import ResidualEncoder

LANDMARKS, LIGHTING = 10, 5  # numbers of a description, behind the embedding


class Encoder(nn.Module):
    """A face as a description: its embedding by the provider's network, its landmarks, its lighting.

    A student of larger networks (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015).
    Dense 3x3 blocks at a quarter of the resolution and below run near the peak of int8 kernels; the normalisation
    layers fold into the convolutions. One depthwise 7x7 pools the last map, as in MobileFaceNet (2018).
    """

    def __init__(self, outputs: int, width: int = 64, depth: int = 96, deepest: int = 128) -> None:
        """Build the network; `outputs` is the length of a description."""
        super().__init__()
        self.stem = conv_norm(48, width)  # 28x28
        self.fine = conv_norm(width, width)
        self.down1 = conv_norm(width, depth, 2)  # 14x14
        self.middle = nn.ModuleList(conv_norm(depth, depth) for _ in range(3))
        self.down2 = conv_norm(depth, deepest, 2)  # 7x7
        self.coarse = conv_norm(deepest, deepest)
        depthwise = nn.Conv2d(deepest, deepest, 7, groups=deepest, bias=False)
        self.pool = nn.Sequential(depthwise, nn.BatchNorm2d(deepest))
        nn.init.normal_(depthwise.weight, std=1 / 49)
        self.head = nn.Conv2d(deepest, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Describe unshuffled pictures [N, 48, 28, 28] in 0..1: [N, outputs, 1, 1]."""
        x = F.relu(self.stem(x * 2 - 1))
        x = F.relu(x + self.fine(x))
        x = F.relu(self.down1(x))
        for block in self.middle:
            x = F.relu(x + block(x))
        x = F.relu(self.down2(x))
        x = F.relu(x + self.coarse(x))
        description: Tensor = self.head(self.pool(x))
        return description


class Privatizer(nn.Module):
    """From a description to the code, by the dial: what of a face is kept, and how far it stands out of the noise."""

    def __init__(self, features: int, code: int, hidden: int = 0, unit: bool = False) -> None:
        """Build a linear map, and hidden layers beside it.

        Args:
            features: dimensions of the embedding in the description.
            code: numbers of the code.
            hidden: units of each of two hidden layers; 0 for one layer of 32.
            unit: True to divide a face's code by the root mean square of its numbers.
        """
        super().__init__()
        width, self.unit = hidden or 32, unit
        self.linear = nn.Conv2d(features + LANDMARKS + LIGHTING, code, 1, bias=False)
        self.hidden = nn.Conv2d(features + LANDMARKS + LIGHTING + 1, width, 1)
        self.deep = nn.Conv2d(width, width, 1) if hidden else None
        self.output = nn.Conv2d(width, code, 1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, description: Tensor, alpha: Tensor) -> Tensor:
        """Map a description [N, features + 15, 1, 1] and alpha [N, 1, 1, 1] to the code [N, code, 1, 1]."""
        hidden = F.relu(self.hidden(torch.cat([description, alpha], 1)))
        if self.deep is not None:
            hidden = F.relu(self.deep(hidden))
        code: Tensor = self.linear(description) + self.output(hidden)
        return unit_power(code) if self.unit else code


def unit_power(code: Tensor) -> Tensor:
    """Return codes [N, code, ...], each divided by the root mean square of its numbers.

    The operators are those that the quantizer leaves in float32: a squared number of 8 bits would be too coarse.
    """
    power = code.pow(2).mean(1, keepdim=True)
    unit: Tensor = code / torch.maximum(power, power.new_tensor(1e-6)).sqrt()
    return unit


def rounded(code: Tensor, bits: int) -> Tensor:
    """Return numbers, such as codes [n, code], rounded to so many bits; the gradient passes. 0 bits leave them alone.

    The steps are those of `export.compile`: equal ones from the smallest number of all to the largest, 0 among
    them (Jacob et al., "Quantization and Training of Neural Networks", 2018).
    """
    if not bits:
        return code
    low, high = code.detach().amin().clamp(max=0), code.detach().amax().clamp(min=0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-9)
    zero = (-low / step).round()
    whole = ((code.detach() / step).round() + zero).clamp(0, 2**bits - 1)
    straight: Tensor = code + ((whole - zero) * step - code).detach()  # y - x + x: y, but for the last bit
    return straight


class Decoder(nn.Module):
    """A face from a noisy code, and from nothing else: level by level, each twice as fine as the one before it.

    With coarse colour, as pictures are often coded, the last level makes brightness pixel by pixel, and colour as means
    over 5x5 of its cells: networks that judge a face would be pleased by coloured fringes, and people are not.
    """

    def __init__(
        self,
        code: int,
        widths: Sequence[int] = (80, 64, 48),
        hidden: int = 0,
        coarse_colour: bool = False,
        channels: int = 14,
    ) -> None:
        """Build the levels.

        Args:
            code: numbers of the code.
            widths: channels of each level, from 7x7 upwards; three end at 28x28, and four at 56x56.
            hidden: units of a layer that sees the whole code before there is a map; 0 for none.
            coarse_colour: True for coarse colour, False for three numbers of each pixel.
            channels: of the first map.
        """
        super().__init__()
        self.channels, side = channels, 7 * 2 ** (len(widths) - 1)
        self.bits = 0  # to which numbers between layers are rounded while it learns; 0: not at all
        self.block = 112 // side  # pixels that the last level's numbers make, in each direction
        self.hidden = nn.Conv2d(code + 1, hidden, 1) if hidden else None
        self.expand = nn.Conv2d(hidden or code + 1, channels * 49, 1)
        pairs = zip((channels, *widths[:-1]), widths, strict=True)
        self.levels = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(i, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)]) for i, o in pairs
        )
        pixels = self.block**2
        self.colour = nn.Conv2d(widths[-1], 3, 3, padding=1) if coarse_colour else None
        self.head = nn.Conv2d(widths[-1], pixels if coarse_colour else 3 * pixels, 3, padding=1)
        self.sum = sum_of_brightness_and_colour(pixels) if coarse_colour else None
        init_grey([m for m in self.levels.modules() if isinstance(m, nn.Conv2d)], self.head)

    def forward(self, code: Tensor, alpha: Tensor) -> Tensor:
        """Draw unshuffled pictures, such as [N, 48, 28, 28], of codes [N, code, 1, 1] and alpha [N, 1, 1, 1]."""
        x = torch.cat([code, alpha], 1)
        x = x if self.hidden is None else F.relu(self.hidden(x))
        x = self.expand(x).reshape(-1, self.channels, 7, 7)
        for number, level in enumerate(self.levels):
            assert isinstance(level, nn.ModuleList)
            enter, refine = level
            x = self._stored(F.relu(enter(upsample(x) if number else x)))
            x = self._stored(F.relu(x + self._stored(refine(x))))
        if self.colour is None or self.sum is None:
            return clip(self.head(x), 0, 1)
        brightness = clip(self.head(x), 0, 1)
        colour = F.avg_pool2d(self.colour(x), 5, stride=1, padding=2, count_include_pad=False)
        return clip(self.sum(torch.cat([brightness, colour], 1)), 0, 1)

    def _stored(self, x: Tensor) -> Tensor:
        """Return numbers as the model file will hold them, so that the decoder learns to do with these."""
        return rounded(x, self.bits) if self.training else x


def sum_of_brightness_and_colour(pixels: int) -> nn.Conv2d:
    """Return what adds to the brightness of each of a cell's pixels the three colours of the cell; it never learns."""
    layer = nn.Conv2d(pixels + 3, 3 * pixels, 1, bias=False).requires_grad_(False)
    brightness, colour = torch.eye(pixels).repeat(3, 1), torch.eye(3).repeat_interleave(pixels, 0)
    layer.weight.copy_(torch.cat([brightness, colour], 1)[..., None, None])
    return layer


@dataclass(frozen=True)
class Shape:
    """The choices that shape a sanitizer.

    Attributes:
        code: numbers between the privatizer and the decoder.
        noise: standard deviation of what is added to each of them at alpha = 1.
        stochastic: False for a sanitizer without noise, whose `noise_dim` is 0.
        encoder: "small", or "resnet" for a `ResidualEncoder`.
        privatizer_hidden: as `hidden` of `Privatizer`.
        unit_code: as `unit` of `Privatizer`.
        decoder_widths: as `widths` of `Decoder`.
        decoder_hidden: as `hidden` of `Decoder`.
        coarse_colour: as that of `Decoder`.
    """

    code: int = 64
    noise: float = 1.0
    stochastic: bool = True
    encoder: str = "small"
    privatizer_hidden: int = 0
    unit_code: bool = False
    decoder_widths: tuple[int, ...] = (80, 64, 48)
    decoder_hidden: int = 0
    coarse_colour: bool = False


class Sanitizer(nn.Module):
    """S(x, z, alpha): encode the face to a few numbers, add noise to them, decode another face.

    face [N, 3, 112, 112] -> `Encoder` -> a description -> `Privatizer` -> a code of a few dozen numbers
    -> + alpha * noise * z -> `Decoder` -> face.

    The noisy code is all that the decoder sees. Whatever an attacker reads from the picture could be read from these
    numbers (data processing inequality; Cover and Thomas, 2.8). So the game against the attackers is played on the
    numbers: there an attacker is small, sees new noise at each look, and can be as strong as we like.
    """

    def __init__(self, features: int = 128, shape: Shape | None = None) -> None:
        """Build the three parts; `features` is the length of the teachers' embedding."""
        super().__init__()
        shape = shape or Shape()
        outputs = features + LANDMARKS + LIGHTING
        self.encoder = ResidualEncoder(outputs) if shape.encoder == "resnet" else Encoder(outputs)
        self.privatizer = Privatizer(features, shape.code, shape.privatizer_hidden, shape.unit_code)
        self.decoder = Decoder(shape.code, shape.decoder_widths, shape.decoder_hidden, shape.coarse_colour)
        self.noise, self.noise_dim = shape.noise, shape.code if shape.stochastic else 0

    def privatize(self, description: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """Return the noisy code [N, code] of a description [N, features + 15], given z [N, code] and alpha [N, 1]."""
        code: Tensor = self.privatizer(description[..., None, None], alpha[..., None, None])[..., 0, 0]
        return code if z is None or not self.noise_dim else code + self.noise * alpha * z

    def decode(self, code: Tensor, alpha: Tensor) -> Tensor:
        """Return the pictures [N, 3, 112, 112] of noisy codes [N, code]."""
        return F.pixel_shuffle(self.decoder(code[..., None, None], alpha[..., None, None]), self.decoder.block)

    def unshuffled(self, x: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """Return unshuffled pictures of such ones [N, 48, 28, 28], by the decoder's block; the rest as in `forward`."""
        dial = alpha[..., None, None]
        code = self.privatizer(self.encoder(x), dial)
        if self.noise_dim and z is not None:
            code = code + (self.noise * alpha * z)[..., None, None]
        picture: Tensor = self.decoder(code, dial)
        return picture

    def forward(self, face: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """Sanitize faces [N, 3, 112, 112] in 0..1.

        Args:
            face: float32, RGB.
            z: [N, noise_dim], standard normal; unused where noise_dim is 0.
            alpha: [N, 1].
        """
        return F.pixel_shuffle(self.unshuffled(unshuffle(face), z, alpha), self.decoder.block)


def init_grey(layers: Sequence[nn.Conv2d], head: nn.Conv2d) -> None:
    """Initialize layers so that they carry their input through (He et al. 2015), and the head to a grey picture."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    nn.init.normal_(head.weight, std=0.1 / (9 * head.in_channels) ** 0.5)
    assert head.bias is not None
    nn.init.constant_(head.bias, 0.5)


def conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution and a normalisation that folds into it."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def upsample(x: Tensor) -> Tensor:
    """Repeat each pixel: twice the size, by nearest neighbour."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def half(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 where the processor computes in it; where it is emulated, it takes twice the time."""
    fast = device.type == "cuda" or computes_bfloat16()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@cache
def computes_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16."""
    return "avx512_bf16" in ort.cpu_flags()


def perceptron(inputs: int, outputs: int, hidden: int = 256) -> nn.Sequential:
    """Return two hidden layers and a head: what reads a code, for the service or against it."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


class Unet(nn.Module):
    """The authors' shape, for comparison: gray 128x128, five levels of two 3x3 convolutions, noise at the bottleneck.

    0.95 GMAC a face. Its skips carry the picture around the noise, which is the point of the comparison.
    """

    WIDTHS: ClassVar = (16, 32, 64, 128, 256)

    def __init__(self, stochastic: bool = True) -> None:
        """Add the noise as one 8x8 map to the bottleneck's input, the dial as a map there and beside the picture."""
        super().__init__()
        self.noise_dim = 64 if stochastic else 0
        before = (2, *self.WIDTHS[:-2], self.WIDTHS[-2] + 1 + bool(stochastic))
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip(before, self.WIDTHS, strict=True))
        pairs = list(zip(self.WIDTHS[::-1], self.WIDTHS[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.join = nn.ModuleList(double_conv(2 * o, o) for _, o in pairs)
        self.head = nn.Conv2d(self.WIDTHS[0], 1, 3, padding=1)
        init_grey([m for m in self.modules() if isinstance(m, nn.Conv2d)], self.head)

    def forward(self, face: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        """Return gray faces [N, 3, 112, 112] of faces [N, 3, 112, 112] in 0..1, z [N, 64] and alpha [N, 1]."""
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
            x = block(torch.cat([F.relu(up(upsample(x))), skip], 1))
        y = F.interpolate(clip(self.head(x).float(), 0, 1), (112, 112), mode="bilinear", antialias=True)
        return y.expand(-1, 3, -1, -1)


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with its ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


class DeviceGraph(nn.Module):
    """The sanitizer with the tensors of the model file: uint8 NHWC in and out; layout and scaling are inside, once.

    The pixel (un)shuffle and the change between NHWC and NCHW are one transpose of bytes each.
    """

    def __init__(self, sanitizer: Sanitizer) -> None:
        super().__init__()
        self.sanitizer = sanitizer

    def forward(self, face: Tensor, *rest: Tensor) -> Tensor:
        """Sanitize faces uint8 [N, 112, 112, 3]; `rest` is noise [N, noise_dim] (absent if that is 0), alpha [N, 1]."""
        noise, alpha = rest if self.sanitizer.noise_dim else (None, *rest)
        assert alpha is not None
        x = face.reshape(-1, 28, 4, 28, 4, 3).permute(0, 5, 2, 4, 1, 3).reshape(-1, 48, 28, 28)
        y = self.sanitizer.unshuffled(x.float() / 255, noise, alpha)
        y = (y * 255).round().to(torch.uint8)
        b = self.sanitizer.decoder.block
        return y.reshape(-1, 3, b, b, 112 // b, 112 // b).permute(0, 4, 2, 5, 3, 1).reshape(-1, 112, 112, 3)


class Clip(torch.autograd.Function):
    """A clamp whose gradient calls a saturated value back, and never pushes it further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        """Clamp x."""
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Drop the gradient where a step along it leads further out."""
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
        return gradient.masked_fill(outwards, 0), None, None


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp x: by `Clip` while training, else by a plain clamp, which exports as one operator."""
    if not torch.is_grad_enabled():
        return x.clamp(low, high)
    clamped: Tensor = Clip.apply(x, low, high)  # type: ignore[no-untyped-call]  # torch gives it no type
    return clamped


def unshuffle(x: Tensor) -> Tensor:
    """Return pictures [N, 3, 112, 112] as [N, 48, 28, 28]: 4x4 pixels become channels."""
    return F.pixel_unshuffle(x, 4)


class Attacker(nn.Module):
    """A small residual classifier of chips that knows alpha; `stem` (1, 2 or 4) is the size of its first patches."""

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
        """Return logits [N, classes] of faces [N, 3, 112, 112] in 0..1; alpha is [N, 1] or a map of the stem's size."""
        x = F.pixel_unshuffle(face * 4 - 2, self.stem) if self.stem > 1 else face * 4 - 2
        dial = alpha if alpha.ndim == 4 else alpha[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x = torch.cat([x, dial], 1).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


class Critic(nn.Module):
    """Tells drawn faces from real ones, patch by patch.

    Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017); spectral normalisation of
    Miyato et al. (2018).
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths[:-1]), widths, strict=True):  # means: strides leave grids in gradients
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1)), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
        self.body = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return how real each patch of pictures [N, 3, 112, 112] in 0..1 looks, [N, 1, 14, 14]."""
        verdict: Tensor = self.body(x * 4 - 2)
        return verdict


class Residual(nn.Module):
    """A normalised 3x3 convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same shape."""
        return F.relu(x + self.norm(self.conv(x)))
