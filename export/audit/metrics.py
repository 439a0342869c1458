"""The figures of the audit, computed from log-odds, embeddings and pictures: pure functions with a test each.

An attacker's log-odds [N] are log P(positive) / P(negative) per picture; truth [N] is bool; people [N] are numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export.audit.report import Bound, Interval, Pooled, Quartiles, Score

BUDGETS = (0.05, 0.1, 0.2, 0.4)  # nats: where the bound is drawn

Kind = TypeVar("Kind", bound=np.generic)
Odds = NDArray[np.float64]
Truth = NDArray[np.bool_]


def scores(odds: Odds, truth: Truth, fit: tuple[Odds, Truth], people: NDArray[np.int64]) -> Score:
    """Return accuracy, balanced accuracy, AUC and the leak in nats, with their 95 % intervals (AUC has none).

    Args:
        odds: of the test rows [N].
        truth: of the test rows [N].
        fit: log-odds and truth of the validation rows, on which the leak is calibrated.
        people: whose pictures the test rows are [N].
    """
    right = (odds > 0) == truth
    gain = information(odds, truth, *fit)
    spread = bootstrap(people, truth, right.astype(float), gain)
    return Score(
        accuracy=float(right.mean()),
        balanced=balanced(right, truth),
        auc=auc(odds, truth),
        leak_nats=float(gain.mean()),
        n=len(truth),
        accuracy_95=spread.mean[0],
        balanced_95=spread.balanced[0],
        leak_95=spread.mean[1],
    )


def balanced(right: Truth | NDArray[np.float64], truth: Truth) -> float:
    """Return the mean of both classes' shares of right answers [N]."""
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def auc(odds: Odds, truth: Truth) -> float:
    """Return the area under the ROC curve, ties counted half (Mann and Whitney 1947).

    It is the probability that a positive's log-odds are greater than a negative's.
    """
    _, inverse, counts = np.unique(odds, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def information(odds: Odds, truth: Truth, fit_odds: Odds, fit_truth: Truth) -> Odds:
    """Return how much each picture's log-odds say about its truth, in nats [N].

    The mean is the leak, H(P) - cross-entropy. Temperature and bias are fitted on other rows first, so that the
    attacker's over-confidence does not hide its leak.
    """
    fitted = torch.from_numpy(calibrated(odds, fit_odds, fit_truth))
    crossed = F.binary_cross_entropy_with_logits(fitted, torch.from_numpy(truth).double(), reduction="none")
    p = truth.mean()
    result: Odds = -(p * np.log(p) + (1 - p) * np.log(1 - p)) - crossed.numpy()
    return result


def calibrated(odds: Odds, fit_odds: Odds, fit_truth: Truth) -> Odds:
    """Return the log-odds after the temperature and bias that fit other rows best (Platt 1999; Guo et al. 2017)."""
    x, y = torch.from_numpy(fit_odds).double(), torch.from_numpy(fit_truth).double()
    scale = torch.ones((), dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(scale * x + bias, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return np.asarray((scale * torch.from_numpy(odds).double() + bias).numpy())


@dataclass(frozen=True)
class Spread:
    """95 % intervals of the mean, and of the class-balanced mean, one for each kind of value."""

    mean: list[Interval]
    balanced: list[Interval]


def bootstrap(people: NDArray[np.int64], truth: Truth, *values: NDArray[np.float64], rounds: int = 2000) -> Spread:
    """Return 95 % intervals for each kind of per-picture value [N].

    People, not pictures, are drawn again with replacement (Efron 1979; cluster bootstrap): pictures of one person
    stand or fall together.
    """
    _, who = np.unique(people, return_inverse=True)
    count = int(who.max()) + 1
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), rounds)  # [rounds, people]
    spread = Spread([], [])
    for value in values:
        means = []
        for mask in (np.ones_like(truth), truth, ~truth):
            weights = mask.astype(float)
            total = times @ np.bincount(who, weights * value, count)
            means.append(total / np.maximum(times @ np.bincount(who, weights, count), 1))
        spread.mean.append(interval(means[0]))
        spread.balanced.append(interval((means[1] + means[2]) / 2))
    return spread


def interval(values: NDArray[np.float64] | list[float]) -> Interval:
    """Return the range that holds 95 % of the values, rounded to four digits."""
    low, high = (round(float(q), 4) for q in np.quantile(values, (0.025, 0.975)))
    return low, high


@dataclass(frozen=True)
class Separation:
    """How well one log-odds per person separates two classes, with 95 % intervals over people."""

    auc: float
    auc_95: Interval
    balanced: float
    balanced_95: Interval


def separation(odds: Odds, truth: Truth, rounds: int = 2000) -> Separation:
    """Return AUC and balanced accuracy of one log-odds per person; for the intervals, people are drawn again."""
    n, generator = len(truth), np.random.default_rng(0)
    drawn = (generator.integers(0, n, n) for _ in range(rounds))
    aucs = [auc(odds[rows], truth[rows]) for rows in drawn if 0 < truth[rows].sum() < n]
    right = ((odds > 0) == truth).astype(float)
    return Separation(
        auc=round(auc(odds, truth), 4),
        auc_95=interval(aucs),
        balanced=round(balanced(right, truth), 4),
        balanced_95=bootstrap(np.arange(n), truth, right).balanced[0],
    )


def pooled(
    odds: Odds, truth: Truth, people: NDArray[np.int64], sizes: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, Pooled]:
    """Return, for each n, the balanced accuracy of the mean log-odds over n pictures of one person.

    A person's pictures give disjoint groups of n, and each of them counts; every person has the same weight. People
    who have fewer than n pictures do not count.
    """
    result = {}
    for n in sizes:
        shares: dict[bool, list[float]] = {True: [], False: []}
        for person in np.unique(people):
            rows = np.flatnonzero(people == person)
            groups = rows[: len(rows) // n * n].reshape(-1, n)
            if len(groups):
                man = bool(truth[rows[0]])
                shares[man].append(float(((odds[groups].mean(1) > 0) == man).mean()))
        if shares[True] and shares[False]:
            result[str(n)] = Pooled(
                balanced=float((np.mean(shares[True]) + np.mean(shares[False])) / 2),
                people=len(shares[True]) + len(shares[False]),
            )
    return result


def tar_at_far(probe: Tensor, gallery: Tensor, people: NDArray[np.int64], rates: Sequence[float]) -> dict[str, float]:
    """Return the share of genuine pairs accepted (TAR) at the thresholds that accept so many impostors (FAR).

    The arguments are those of `accepted`, for several rates.
    """
    similarity = (probe @ gallery.T).numpy()
    return {f"{rate:g}": float(_accepted(similarity, people, rate)[1].mean()) for rate in rates}


def accepted(probe: Tensor, gallery: Tensor, people: NDArray[np.int64], rate: float) -> tuple[NDArray[np.int64], Truth]:
    """Compare all pictures, at the threshold that accepts so many pairs of different people.

    Args:
        probe: unit embeddings [N, D].
        gallery: unit embeddings [N, D] of the same N pictures; a picture is never compared with itself.
        people: whose pictures they are [N].
        rate: the share of impostors that is accepted (FAR).

    Returns:
        Of each pair of pictures of one person, who it is, and whether the pair was accepted.
    """
    return _accepted((probe @ gallery.T).numpy(), people, rate)


def _accepted(
    similarity: NDArray[np.float32], people: NDArray[np.int64], rate: float
) -> tuple[NDArray[np.int64], Truth]:
    same = people[:, None] == people[None, :]
    genuine, impostors = same & ~np.eye(len(people), dtype=bool), similarity[~same]
    at = min(len(impostors) - 1, int(np.ceil((1 - rate) * len(impostors))))
    return people[np.nonzero(genuine)[0]], similarity[genuine] > np.partition(impostors, at)[at]


def household(
    embeddings: Tensor, people: NDArray[np.int64], *, size: int = 8, enrolled: int = 3, rounds: int = 400
) -> float:
    """Return the share of households in which a person is found; arguments and errors are those of `households`."""
    return float(households(embeddings, people, size=size, enrolled=enrolled, rounds=rounds)[1].mean())


def households(
    embeddings: Tensor, people: NDArray[np.int64], *, size: int = 8, enrolled: int = 3, rounds: int = 400
) -> tuple[NDArray[np.int64], Truth]:
    """Ask in many households who somebody is: closed-set identification among a few people.

    In each round, `size` people are drawn; of each, `enrolled` pictures are enrolled by their mean embedding, and
    another one is asked. Only people with more than `enrolled` pictures take part.

    Args:
        embeddings: of unit length [N, D].
        people: whose pictures they are [N].
        size: people of a household.
        enrolled: pictures of each.
        rounds: households.

    Returns:
        Who was asked, and whether the answer was right [size * rounds].

    Raises:
        ValueError: too few people have so many pictures.
    """
    rows = [np.flatnonzero(people == person) for person in np.unique(people)]
    rows = [r for r in rows if len(r) > enrolled]
    if len(rows) < size:
        raise ValueError(f"{len(rows)} people have more than {enrolled} pictures: a household is {size} people")
    generator = np.random.default_rng(0)
    asked, right = [], []
    for _ in range(rounds):
        members = generator.choice(len(rows), size, replace=False)
        drawn = np.stack([generator.choice(rows[i], enrolled + 1, replace=False) for i in members])
        known = F.normalize(embeddings[torch.from_numpy(drawn[:, 1:])].mean(1))
        best = (embeddings[torch.from_numpy(drawn[:, 0])] @ known.T).argmax(1)
        asked.append(people[drawn[:, 0]])
        right.append((best == torch.arange(size)).numpy())
    return np.concatenate(asked), np.concatenate(right)


def ssim(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the mean structural similarity of pictures [N, H, W, 3], on luma (Wang et al. 2004; sigma 1.5)."""

    def local(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5), np.float64)

    total = 0.0
    for a8, b8 in zip(first, second, strict=True):
        a, b = (cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY).astype(np.float64) for x in (a8, b8))
        mean_a, mean_b = local(a), local(b)
        var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
        both = local(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        total += float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
    return total / len(first)


WINDOW = 64  # pixels of a chip's middle: they lie within the painted oval
BANDS = 8


def middle(chips: NDArray[Kind]) -> NDArray[Kind]:
    """Return the middle of chips [N, 112, 112, 3]: [N, WINDOW, WINDOW, 3]."""
    edge = (chips.shape[1] - WINDOW) // 2
    return chips[:, edge : edge + WINDOW, edge : edge + WINDOW]


def radial_power(chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean power of the luma of chips [N, 112, 112, 3] in BANDS rings of spatial frequency, low to high.

    A Hann window of the middle; a ring is WINDOW / 2 / BANDS cycles wide, the highest ends at half a cycle per pixel.
    """
    luma = middle(chips).astype(float) @ [0.299, 0.587, 0.114]
    window = np.hanning(WINDOW)[:, None] * np.hanning(WINDOW)
    power = np.square(np.abs(np.fft.fft2((luma - luma.mean((1, 2), keepdims=True)) * window))).mean(0)
    cycles = np.abs(np.fft.fftfreq(WINDOW) * WINDOW)
    ring = (np.hypot(cycles[:, None], cycles) / (WINDOW / 2 / BANDS)).astype(int)
    return np.array([power[ring == band].mean() for band in range(BANDS)])


def chroma_noise(chips: NDArray[np.uint8]) -> float:
    """Return what is left of the chroma of chips [N, 112, 112, 3] after a blur of sigma 2: root mean square, levels."""
    total = 0.0
    for chip in chips:
        chroma = cv2.cvtColor(np.ascontiguousarray(chip), cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float32)
        rest = middle((chroma - cv2.GaussianBlur(chroma, (0, 0), 2))[None])
        total += float(np.square(rest).mean())
    return float(np.sqrt(total / len(chips)))


def smallest_loss(table: NDArray[np.float64], budget: float, rounds: int = 3000, seed: int = 0) -> tuple[float, float]:
    """Return the bound that no sanitizer beats: (I(U;X|Y), I(P;Y)) in nats of the best p(y|u,p) with I(P;Y) <= budget.

    `table` is the joint distribution p(u, p) [U, P] of the labels alone; X tells U, so I(U;X|Y) = H(U|Y)
    (Bertran et al. 2019, the utility-privacy bound). Found by gradient descent over channels with 2U outputs and a
    multiplier that grows until the budget holds; where P is a function of U the answer is max(0, H(P) - budget).
    """
    joint = torch.from_numpy(table / table.sum()).double()
    torch.manual_seed(seed)
    users, classes = joint.shape
    logits = 0.1 * torch.randn(users, classes, 2 * users, dtype=torch.double)
    logits += 3 * torch.eye(users, dtype=torch.double).repeat(1, 2)[:, None, :]
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)
    multiplier, best = 0.0, (float("inf"), float("inf"))
    p = joint.sum(0)
    entropy_u = -torch.special.xlogy(joint.sum(1), joint.sum(1)).sum()
    for _ in range(rounds):
        y = joint[:, :, None] * logits.softmax(-1)  # p(u, p, y)
        y_only, up = y.sum((0, 1)), y.sum(1)
        known_u = (torch.special.xlogy(up, up) - torch.special.xlogy(up, y_only)).sum() + entropy_u
        py = y.sum(0)
        leak = (torch.special.xlogy(py, py) - torch.special.xlogy(py, p[:, None] * y_only)).sum()
        loss, leaked = (entropy_u - known_u).item(), leak.item()
        if leaked <= budget + 1e-3 and loss < best[0]:
            best = (loss, leaked)
        excess = leak - budget
        objective = -known_u + multiplier * excess + 10 * F.relu(excess).square()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        multiplier = max(0.0, multiplier + 0.05 * (leaked - budget))
    return best


def quartiles(p: NDArray[np.floating[Any]], truth: Truth) -> Quartiles:
    """Return the quartiles of P(M) [N], over women's and over men's pictures."""
    found = {}
    for who in ("F", "M"):
        low, middle, high = (round(float(q), 4) for q in np.quantile(p[truth == (who == "M")], (0.25, 0.5, 0.75)))
        found[who] = low, middle, high
    return found


def bound(person: NDArray[np.int64], truth: Truth) -> Bound:
    """Return the information-theoretic bound of a table of labels: the best sanitizer's H(person | picture), by budget.

    Where the person determines the attribute it is the line H(P) - b; elsewhere `smallest_loss` finds it.
    """
    joint = np.zeros((int(person.max()) + 1, 2))
    np.add.at(joint, (person, truth.astype(int)), 1)
    p = truth.mean()
    entropy = float(-(p * np.log(p) + (1 - p) * np.log(1 - p)))
    if ((joint > 0).sum(1) < 2).all():
        return Bound(entropy, [(b, entropy - b) for b in (0.0, *BUDGETS, entropy)])
    return Bound(entropy, [(b, smallest_loss(joint, b)[0]) for b in BUDGETS])
