"""The losses of Bertran et al. (2018), "Learning to Collaborate for User-Controlled Privacy".

    Loss_S = (1 - alpha) KL(P(u|x) || P(u|S(x))) + alpha KL(P(p) || P(p|S(x)))
    Loss_P = BCE(y_p(x), p(x)) + BCE(y_p(x), p(S(x)))

u is the utility variable, p the private one, P(p) its prior: not the flipped class, and not one half. Everything is
in nats, and one value per picture [N], so that each picture can have an alpha of its own.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) [N] of log-probabilities [N, K] (or [K] for p)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def utility_loss(raw_logits: Tensor, sanitized_logits: Tensor) -> Tensor:
    """Return KL(P(u|x) || P(u|S(x))) [N] from utility logits [N, people]."""
    return kl(F.log_softmax(raw_logits, -1), F.log_softmax(sanitized_logits, -1))


def privacy_loss(prior: Tensor, sanitized_logits: Tensor) -> Tensor:
    """Return KL(P(p) || P(p|S(x))) [N] from the prior [K] and a privacy network's logits [N, K]."""
    return kl(prior.log(), F.log_softmax(sanitized_logits, -1))


def contrastive_loss(found: Tensor, keys: Tensor, people: Tensor, temperature: float = 0.07) -> Tensor:
    """Return InfoNCE [N]: each picture is like its key, and unlike those of the other people.

    Van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018).

    Args:
        found: [N, D] of unit length.
        keys: [N, D] of unit length, the i-th of the same person as the i-th of `found`.
        people: int64 [N], who it is; keys of the same person are no others.
        temperature: by which cosines are divided.
    """
    logits = found @ keys.T / temperature
    same = people[:, None] == people
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -math.inf)
    return F.cross_entropy(logits, torch.arange(len(same), device=same.device), reduction="none")


def distribution_loss(codes: Tensor, classes: Tensor, directions: int = 64) -> Tensor:
    """Return the squared sliced 2-Wasserstein distance (a scalar) between the codes of any two classes, in the mean.

    It is the mean square difference of the codes, in order, along random directions (Bonneel et al., "Sliced and Radon
    Wasserstein Barycenters of Measures", 2015). Classes of fewer than two codes do not count.

    Args:
        codes: [N, code].
        classes: int64 [N], -1 where unknown.
        directions: how many directions are drawn.
    """
    axes = F.normalize(torch.randn(codes.shape[1], directions, device=codes.device), dim=0)
    parts = [codes[classes == i] for i in classes.unique().tolist() if i >= 0]
    parts = [(part @ axes).sort(0).values for part in parts if len(part) > 1]
    if len(parts) < 2:
        return codes.sum() * 0
    count = max(map(len, parts))
    places = [torch.linspace(0, len(part) - 1, count, device=codes.device).round().long() for part in parts]
    ordered = [part[at] for part, at in zip(parts, places, strict=True)]
    return torch.stack([(a - b).square().mean() for a, b in itertools.combinations(ordered, 2)]).mean()


def detection_loss(raw: tuple[Tensor, Tensor], sanitized: tuple[Tensor, Tensor]) -> Tensor:
    """Return how much worse a detector finds the sanitized face [N]: score in nats, landmarks in tenths of a pixel.

    Args:
        raw: log scores [N, anchors] and landmarks [N, anchors, 10] on the raw face; only anchors that saw it count.
        sanitized: the same on the sanitized face.
    """
    (raw_score, raw_marks), (score, marks) = raw, sanitized
    seen = (raw_score > math.log(0.5)).float()
    worse = F.relu(raw_score - score) + (marks - raw_marks).abs().mean(2) / 10
    return (seen * worse).sum(1) / seen.sum(1).clamp(min=1)


def sanitizer_loss(utility: Tensor, privacy: Tensor, alpha: Tensor) -> Tensor:
    """Return Loss_S [N]: the two losses [N] above, mixed by the dial alpha [N, 1]."""
    a = alpha[:, 0]
    return (1 - a) * utility + a * privacy


def attacker_loss(sanitized_logits: Tensor, raw_logits: Tensor, truth: Tensor, raw_truth: Tensor) -> Tensor:
    """Return Loss_P (a scalar): the privacy network is right on sanitized pictures, and stays right on raw ones.

    Pictures whose truth is unknown (-1) do not count.
    """
    sanitized = F.cross_entropy(sanitized_logits, truth, ignore_index=-1)
    return sanitized + F.cross_entropy(raw_logits, raw_truth, ignore_index=-1)


def chroma(picture: Tensor) -> Tensor:
    """Return the two colour differences [N, 2, H, W] of RGB pictures [N, 3, H, W] in 0..1 (ITU-R BT.601)."""
    luma, red, blue = brightness(picture)[:, 0], picture[:, 0], picture[:, 2]
    return torch.stack([0.564 * (blue - luma), 0.713 * (red - luma)], 1)


def brightness_alone(picture: Tensor) -> Tensor:
    """Return RGB pictures [N, 3, H, W] as they are; the gradient is the same for all three colours of a pixel.

    What a network is to find in a face is written in brightness then, and colours are those of faces.
    """
    grey = picture.mean(1, keepdim=True)
    return picture.detach() + (grey - grey.detach())


def brightness(picture: Tensor) -> Tensor:
    """Return the brightness [N, 1, H, W] of RGB pictures [N, 3, H, W] (ITU-R BT.601)."""
    return (picture * picture.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)


def spectrum_loss(raw: Tensor, sanitized: Tensor, side: int = 28, cell: int = 4) -> Tensor:
    """Return how far the spectra of two batches [N, 3, S, S] are apart (a scalar), as logarithms of amplitudes.

    The mean of each batch is taken off first: marks that all its faces share would make up for softness. They are
    compared place by place, in squares that overlap by half: else a single speck would do so everywhere. The power at a
    spatial frequency is its mean over the batch and `cell` x `cell` frequencies, under a Hann window. The gradient is
    that of `brightness_alone`.
    """
    window = torch.hann_window(side, periodic=False, device=raw.device)

    def power(picture: Tensor) -> Tensor:
        squares = (
            brightness(picture - picture.mean(0))[:, 0]
            .unfold(1, side, side // 2)
            .unfold(2, side, side // 2)
            .flatten(1, 2)
        )
        waves = torch.fft.rfft2((squares - squares.mean((2, 3), keepdim=True)) * window[:, None] * window)
        return F.avg_pool2d(waves.abs().square().mean(0), cell).clamp(min=1e-6)

    return 0.5 * (power(brightness_alone(sanitized)).log() - power(raw).log()).abs().mean()


def mean_loss(raw: Tensor, sanitized: Tensor) -> Tensor:
    """Return the mean square distance (a scalar) between the mean pictures of two batches [N, 3, H, W].

    It is large where all drawn faces have a mark in the same place, which no loss of a single face sees.
    """
    return (sanitized.mean(0) - raw.mean(0)).square().mean()


def coarse_colour(picture: Tensor, block: int = 8) -> Tensor:
    """Return RGB pictures [N, 3, H, W] whose brightness (ITU-R BT.601) stays, and whose colour is coarse.

    Args:
        picture: H and W are multiples of `block`.
        block: pixels, each way, that share a colour; it changes smoothly from one block to the next.
    """
    luma = brightness(picture)
    return luma + F.interpolate(F.avg_pool2d(picture - luma, block), picture.shape[2:], mode="bilinear")


def total_variation(picture: Tensor) -> Tensor:
    """Return the mean difference of neighbouring pixels [N] of pictures [N, channels, H, W]."""
    down = (picture[:, :, 1:] - picture[:, :, :-1]).abs().mean((1, 2, 3))
    return down + (picture[..., 1:] - picture[..., :-1]).abs().mean((1, 2, 3))
