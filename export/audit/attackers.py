"""The attackers of the audit. Each learns from sanitized training chips, and then returns log-odds [N] of others.

All are *fresh*: they know the mechanism and train on its output, of which they get several draws. The epoch that is
best on the validation pictures is kept.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from export.audit.metrics import Odds, Truth
from export.networks import Attacker, half
from export.providers import Provider

Chips = NDArray[np.uint8]
Scorer = Callable[[Chips], Odds]
"""A trained attacker."""
Make = Callable[[], nn.Module]
"""Makes an attacker's network, with new weights."""
BATCH = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class AttackData:
    """What an attacker learns from: draws of the training chips [N, 112, 112, 3] each, and the validation chips."""

    draws: list[Chips]
    truth: Truth
    val: Chips
    val_truth: Truth


def pictures(chips: Chips) -> Tensor:
    """Return chips [N, 112, 112, C] uint8 as pictures [N, C, 112, 112] in 0..1, on `DEVICE`."""
    return torch.from_numpy(np.array(chips)).to(DEVICE).permute(0, 3, 1, 2).contiguous().float() / 255


def channels_last(net: Net) -> Net:
    """Return the network with its weights in the layout that convolutions are fastest in."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack this keyword
    return net


class Convolutional(nn.Module):
    """The trainer's attacker shape without a dial: pictures [N, 3, 112, 112] to logits [N, 2]."""

    def __init__(self, stem: int) -> None:
        super().__init__()
        self.net = channels_last(Attacker(2, stem))

    def forward(self, face: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.net(face, face.new_zeros(len(face), 1))
        return logits


class Linear(nn.Module):
    """One weight per pixel: it sees no shapes, but at once a mark that is always in the same place."""

    def __init__(self) -> None:
        super().__init__()
        # differences to the mean training picture, in units of at least 2.5 levels: else the mean face hides the mark
        self.scale = nn.BatchNorm1d(3 * 112 * 112, eps=1e-4, momentum=None, affine=False)
        self.net = nn.Linear(3 * 112 * 112, 2)
        nn.init.zeros_(self.net.weight)

    def forward(self, face: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.net(self.scale(face.flatten(1)))
        return logits


class Informed(nn.Module):
    """An attacker that knows z: pictures with z as a fourth channel, see `with_noise`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = channels_last(Attacker(2, 4))

    def forward(self, face: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.net(face[:, :3], face[:, 3:, ::4, ::4] * 8 - 4)
        return logits


def with_noise(chips: Chips, z: NDArray[np.float32]) -> Chips:
    """Return chips [N, 112, 112, 4] with z [N, up to 784] as the fourth channel.

    Its numbers lie in rows over the picture, 4x4 pixels each, in steps of 1/32.
    """
    rows = np.zeros((len(chips), 28 * 28), np.float32)
    rows[:, : z.shape[1]] = z
    levels = np.clip(np.round(rows * 32 + 128), 0, 255).astype(np.uint8).reshape(-1, 28, 28)
    return np.concatenate([chips, levels.repeat(4, 1).repeat(4, 2)[..., None]], -1)


class FineTuned(nn.Module):
    """A pretrained classifier whose weights learn on: pictures to logits [N, 2], the positive class second."""

    def __init__(self, name: str, networks: Path) -> None:
        super().__init__()
        self.net = Provider(name, networks)
        self.order = [self.net.classes.index(c) for c in ("F", "M")]
        for key, buffer in list(self.net.net.named_buffers()):
            if buffer.is_floating_point():
                del self.net.net._buffers[key]
                self.net.net.register_parameter(key, nn.Parameter(buffer.clone()))

    def forward(self, face: Tensor) -> Tensor:
        """Run the network."""
        logits: Tensor = self.net(face).flatten(1)[:, self.order]
        return logits


def fit(make: Make, data: AttackData, *, epochs: int, seed: int, rate: float, name: str) -> Scorer:  # noqa: PLR0913
    """Train a network, and return it as a scorer; the arguments are those of `trained`."""
    return scorer(trained(make, data, epochs=epochs, seed=seed, rate=rate, name=name))


def trained(  # noqa: PLR0913 - a training has that many settings, and each is named where it is given
    make: Make, data: AttackData, *, epochs: int, seed: int, rate: float, name: str
) -> nn.Module:
    """Train the network that `make` makes (pictures to logits [N, 2]), and return it.

    Its first weights are drawn by the seed, too, so an audit that goes on ends as one that was never stopped. Pictures
    are mirrored and shifted by up to four pixels while it learns; `Linear` sees them as they are.
    """
    torch.manual_seed(seed)
    net = make().to(DEVICE)
    moved = not isinstance(net, Linear)
    torch.manual_seed(seed)  # again: `make` may have trained another network, or have found that one's weights
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.02)
    labels = torch.from_numpy(data.truth).long().to(DEVICE)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    best, kept = float("inf"), clone(net)
    bar = tqdm(total=steps, desc=f"{name}, seed {seed}", leave=False)
    for epoch in range(epochs):
        chips = data.draws[epoch % len(data.draws)]
        net.train()
        for rows in torch.randperm(len(labels))[: len(labels) // BATCH * BATCH].split(BATCH):
            x = pictures(chips[rows.numpy()])
            if moved:
                x = torch.where((torch.rand(len(x), 1, 1, 1) < 0.5).to(DEVICE), x.flip(3), x)
                dx, dy = (int(v) for v in torch.randint(-4, 5, (2,)))
                x = torch.roll(x, (dy, dx), (2, 3)).contiguous(memory_format=torch.channels_last)
            with half(DEVICE):
                logits = net(x)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
        odds = scorer(net)(data.val)
        crossed = cross_entropy(odds, data.val_truth)
        bar.set_postfix(val=f"{((odds > 0) == data.val_truth).mean():.3f}")
        if crossed < best:
            best, kept = crossed, clone(net)
    bar.close()
    net.load_state_dict(kept)
    return net


def learned_on_raw(data: AttackData, epochs: int) -> dict[str, Tensor]:
    """Return the weights of a CNN 4 that has learned on raw faces, with which others begin."""
    net = trained(partial(Convolutional, 4), data, epochs=epochs, seed=0, rate=2e-3, name="CNN 4 on raw faces")
    return {name: value.cpu() for name, value in net.state_dict().items()}


def scorer(net: nn.Module) -> Scorer:
    """Return a trained network as a scorer.

    Its log-odds are the mean over a picture and its mirror image (`Linear`: the picture alone).
    """

    @torch.no_grad()
    def odds(chips: Chips) -> Odds:
        net.eval()
        parts = []
        for i in range(0, len(chips), 128):
            x = pictures(chips[i : i + 128]).contiguous(memory_format=torch.channels_last)
            with half(DEVICE):
                logits = net(x).float()
                if not isinstance(net, Linear):
                    logits = (logits + net(x.flip(3)).float()) / 2
            parts.append((logits[:, 1] - logits[:, 0]).double().cpu())
        return np.asarray(torch.cat(parts).numpy())

    return odds


def clone(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's weights."""
    return {k: v.clone() for k, v in net.state_dict().items()}


def cross_entropy(odds: Odds, truth: Truth) -> float:
    """Return the mean cross-entropy in nats."""
    return float(F.binary_cross_entropy_with_logits(torch.from_numpy(odds), torch.from_numpy(truth).double()))


@torch.no_grad()
def outputs(network: Provider, chips: Chips, name: str) -> Tensor:
    """Return a provider's embeddings [N, D] or logits [N, classes] of all chips."""
    network.to(DEVICE)
    run = network.net if DEVICE.type == "cuda" else network.net.session()
    parts = []
    for i in tqdm(range(0, len(chips), 128), desc=name, leave=False):
        with half(DEVICE) if not network.classes else nullcontext():
            (out,) = run(network.prepared(pictures(chips[i : i + 128])))
        out = out.flatten(1).float().cpu()
        parts.append(out if network.classes else F.normalize(out))
    return torch.cat(parts)


def probe(embeddings: Iterable[Tensor], truth: Truth, val: Tensor, val_truth: Truth, seed: int = 0) -> "Probe":
    """Train two layers on face embeddings of the sanitized chips.

    Args:
        embeddings: of the training chips [N, D], one tensor for each draw.
        truth: of the training chips [N].
        val: embeddings of the validation chips [V, D].
        val_truth: of the validation chips [V].
        seed: of weights, order and dropout.
    """
    draws = list(embeddings)
    torch.manual_seed(seed)
    net = Probe(draws[0].shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    y, best, kept = torch.from_numpy(truth).float(), float("inf"), clone(net)
    for epoch in range(40):
        net.train()
        for rows in torch.randperm(len(y)).split(128):
            loss = F.binary_cross_entropy_with_logits(net(draws[epoch % len(draws)][rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        crossed = cross_entropy(net.odds(val), val_truth)
        if crossed < best:
            best, kept = crossed, clone(net)
    net.load_state_dict(kept)
    return net


class Probe(nn.Module):
    """Embeddings [N, D] of unit length to log-odds [N]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = features**0.5
        self.net = nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """Run the network."""
        out: Tensor = self.net(embedding * self.scale)[:, 0]
        return out

    @torch.no_grad()
    def odds(self, embedding: Tensor) -> Odds:
        """Return log-odds [N]."""
        self.eval()
        return np.asarray(self(embedding).double().numpy())


def logistic(x: NDArray[np.float32], truth: Truth, decay: float = 0.1) -> Callable[[NDArray[np.float32]], Odds]:
    """Fit a logistic regression with an L2 penalty: features [N, D] to log-odds [N]."""
    features = torch.from_numpy(np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)).double()
    weights = torch.zeros(features.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(features @ weights, torch.from_numpy(truth).double())
        loss = loss + decay * weights[:-1].square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    learned = weights.detach().numpy()

    def odds(z: NDArray[np.float32]) -> Odds:
        # rounded: the same features are the same odds, also where the sums were made in another order
        return np.asarray(np.round(z.astype(np.float64) @ learned[:-1] + learned[-1], 6))

    return odds


class Reconstructor(nn.Module):
    """The reconstruction attack's U-Net: sanitized [N, 3, 112, 112] to its guess of the raw picture."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(48, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(3))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 48, 3, padding=1)

    def forward(self, face: Tensor) -> Tensor:
        """Run the network."""
        x = F.pixel_unshuffle(face, 4)
        fine = F.relu(self.stem(x))
        deep = F.relu(self.down(fine))
        for layer in self.deep:
            deep = F.relu(deep + layer(deep))
        fine = F.relu(fine + F.interpolate(self.up(deep), scale_factor=2, mode="nearest"))
        return F.pixel_shuffle(x + self.head(F.relu(fine + self.smooth(fine))), 4)


def reconstruction_attack(sanitized: Chips, raw: Chips, *, epochs: int, seed: int) -> Callable[[Chips], Chips]:
    """Learn to undo a mechanism from pairs of sanitized and raw training chips; return the map from chips to chips."""
    torch.manual_seed(seed)
    net = channels_last(Reconstructor().to(DEVICE))
    steps = epochs * (len(raw) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    bar = tqdm(total=steps, desc="reconstruction", leave=False)
    for _ in range(epochs):
        for rows in torch.randperm(len(raw))[: len(raw) // BATCH * BATCH].split(BATCH):
            x = pictures(sanitized[rows.numpy()]).contiguous(memory_format=torch.channels_last)
            with half(DEVICE):
                loss = (net(x).float() - pictures(raw[rows.numpy()])).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()

    @torch.no_grad()
    def undo(chips: Chips) -> Chips:
        parts = [
            (net(pictures(chips[i : i + 128])) * 255).round().clamp(0, 255).cpu() for i in range(0, len(chips), 128)
        ]
        return np.ascontiguousarray(torch.cat(parts).to(torch.uint8).numpy().transpose(0, 2, 3, 1))

    return undo
