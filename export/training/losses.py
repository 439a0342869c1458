"""The losses of Bertran et al. (2018), "Learning to Collaborate for User-Controlled Privacy".

    Loss_S = (1 - alpha) KL(P(u|x) || P(u|S(x))) + alpha KL(P(p) || P(p|S(x)))
    Loss_P = BCE(y_p(x), p(x)) + BCE(y_p(x), p(S(x)))

u is the utility variable, p the private one, P(p) its prior: not the flipped class, and not one half. Everything is
in nats, and one value per picture [N], so that each picture can have an alpha of its own.
"""

import math

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


def total_variation(picture: Tensor) -> Tensor:
    """Return the mean difference of neighbouring pixels [N] of pictures [N, 3, H, W]."""
    down = (picture[:, :, 1:] - picture[:, :, :-1]).abs().mean((1, 2, 3))
    return down + (picture[..., 1:] - picture[..., :-1]).abs().mean((1, 2, 3))
