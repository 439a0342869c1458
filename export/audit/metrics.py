"""The figures of the audit, from log-odds, embeddings and pictures; pure functions with a test each.

An attacker's log-odds [N] are log P(positive) / P(negative) per picture; truth [N] is bool; people [N] are numbers.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Odds = NDArray[np.float64]
Truth = NDArray[np.bool_]


def scores(odds: Odds, truth: Truth, fit: tuple[Odds, Truth], people: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, AUC and the leak in nats, with 95 % intervals of the first two and the last.

    `fit`: log-odds and truth of the validation rows, on which the leak is calibrated.
    """
    right = (odds > 0) == truth
    gain = information(odds, truth, *fit)
    spread = bootstrap(people, truth, right.astype(float), gain)
    return {
        "accuracy": float(right.mean()),
        "balanced": float((right[truth].mean() + right[~truth].mean()) / 2),
        "auc": auc(odds, truth),
        "leak_nats": float(gain.mean()),
        "n": len(truth),
        "accuracy_95": spread["mean"][0],
        "balanced_95": spread["balanced"][0],
        "leak_95": spread["mean"][1],
    }


def auc(odds: Odds, truth: Truth) -> float:
    """Area under the ROC curve: P(a positive's log-odds > a negative's), ties counted half (Mann and Whitney 1947)."""
    _, inverse, counts = np.unique(odds, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def information(odds: Odds, truth: Truth, fit_odds: Odds, fit_truth: Truth) -> Odds:
    """What each picture tells the attacker about its truth, in nats [N]; the mean is the leak H(P) - cross-entropy.

    Temperature and bias are fitted on other rows first, so that the attacker's over-confidence does not hide its leak.
    """
    fitted = torch.from_numpy(calibrated(odds, fit_odds, fit_truth))
    crossed = F.binary_cross_entropy_with_logits(fitted, torch.from_numpy(truth).double(), reduction="none")
    p = truth.mean()
    result: Odds = -(p * np.log(p) + (1 - p) * np.log(1 - p)) - crossed.numpy()
    return result


def calibrated(odds: Odds, fit_odds: Odds, fit_truth: Truth) -> Odds:
    """Log-odds after the temperature and bias that fit other rows best (Platt 1999; Guo et al. 2017)."""
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


def bootstrap(
    people: NDArray[np.int64], truth: Truth, *values: NDArray[np.float64], rounds: int = 2000
) -> dict[str, list[list[float]]]:
    """95 % intervals [low, high] of the mean and of the class-balanced mean of each per-picture value [N].

    People, not pictures, are drawn again with replacement (Efron 1979; cluster bootstrap): pictures of one person
    stand or fall together.
    """
    _, who = np.unique(people, return_inverse=True)
    count = int(who.max()) + 1
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), rounds)  # [rounds, people]
    result: dict[str, list[list[float]]] = {"mean": [], "balanced": []}
    for value in values:
        means = []
        for mask in (np.ones_like(truth), truth, ~truth):
            weights = mask.astype(float)
            total = times @ np.bincount(who, weights * value, count)
            means.append(total / np.maximum(times @ np.bincount(who, weights, count), 1))
        for key, mean in (("mean", means[0]), ("balanced", (means[1] + means[2]) / 2)):
            result[key].append([round(float(q), 4) for q in np.quantile(mean, (0.025, 0.975))])
    return result


def separation(odds: Odds, truth: Truth, rounds: int = 2000) -> dict[str, Any]:
    """AUC and balanced accuracy of one log-odds per person, with 95 % intervals over people, drawn again with replacement."""
    n, generator = len(truth), np.random.default_rng(0)
    drawn = (generator.integers(0, n, n) for _ in range(rounds))
    aucs = [auc(odds[rows], truth[rows]) for rows in drawn if 0 < truth[rows].sum() < n]
    right = ((odds > 0) == truth).astype(float)
    return {
        "auc": round(auc(odds, truth), 4),
        "auc_95": [round(float(q), 4) for q in np.quantile(aucs, (0.025, 0.975))],
        "balanced": round(float((right[truth].mean() + right[~truth].mean()) / 2), 4),
        "balanced_95": bootstrap(np.arange(n), truth, right)["balanced"][0],
    }


def pooled(
    odds: Odds, truth: Truth, people: NDArray[np.int64], sizes: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, dict[str, float]]:
    """Balanced accuracy of the mean log-odds over n pictures of one person, for people who have so many.

    All disjoint groups of n that a person's pictures give are judged; a person weighs the same, however many there are.
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
            result[str(n)] = {
                "balanced": float((np.mean(shares[True]) + np.mean(shares[False])) / 2),
                "people": len(shares[True]) + len(shares[False]),
            }
    return result


def tar_at_far(probe: Tensor, gallery: Tensor, people: NDArray[np.int64], rates: Sequence[float]) -> dict[str, float]:
    """Verification: the share of genuine pairs accepted (TAR) at the thresholds that accept so many impostors (FAR).

    probe, gallery: unit embeddings [N, D] of the same N pictures; a picture is never compared with itself.
    """
    similarity = (probe @ gallery.T).numpy()
    same = people[:, None] == people[None, :]
    other = ~np.eye(len(people), dtype=bool)
    impostors, genuine = np.sort(similarity[~same]), similarity[same & other]
    result = {}
    for rate in rates:
        threshold = impostors[min(len(impostors) - 1, int(np.ceil((1 - rate) * len(impostors))))]
        result[f"{rate:g}"] = float((genuine > threshold).mean())
    return result


def ssim(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mean structural similarity of two sets of pictures [N, H, W, 3], on luma (Wang et al. 2004; sigma 1.5)."""

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


def strongest(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The best fresh attacker of a row: the highest mean accuracy over its seeds; its figures are means, too."""
    means = {name: average(cells) for name, cells in row["fresh"].items()}
    return max(means.items(), key=lambda item: item[1]["accuracy"])


def average(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with the range of the accuracy; intervals are those of the first seed."""
    keys = ("accuracy", "balanced", "auc", "leak_nats")
    result: dict[str, Any] = {k: float(np.mean([c[k] for c in cells])) for k in keys}
    accuracies = [c["accuracy"] for c in cells]
    result |= {"seeds": len(cells), "range": [min(accuracies), max(accuracies)], "accuracy_95": cells[0]["accuracy_95"]}
    result["pooled"] = {
        n: float(np.mean([c["pooled"][n]["balanced"] for c in cells])) for n in cells[0].get("pooled", {})
    }
    result["slices"] = {name: float(np.mean([c["slices"][name] for c in cells])) for name in cells[0].get("slices", {})}
    return result


def smallest_loss(table: NDArray[np.float64], budget: float, rounds: int = 3000, seed: int = 0) -> tuple[float, float]:
    """The bound that no sanitizer beats: (I(U;X|Y), I(P;Y)) in nats of the best p(y|u,p) with I(P;Y) <= budget.

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
        loss, told = (entropy_u - known_u).item(), leak.item()
        if told <= budget + 1e-3 and loss < best[0]:
            best = (loss, told)
        excess = leak - budget
        objective = -known_u + multiplier * excess + 10 * F.relu(excess).square()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        multiplier = max(0.0, multiplier + 0.05 * (told - budget))
    return best
