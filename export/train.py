"""Train a sanitizer: `python -m export.train RECIPE --data DIR --networks DIR --out runs/NAME`.

Three stages, one loop. `Read`: the reader learns to say of a face what the provider's network and a detector say of it.
`Hide`: the game of Loss_S and Loss_P, played on those descriptions alone. `Paint`: a face is painted of what is left.

It saves itself every `evaluate_every` steps and goes on from there when started again. On several devices,
`torchrun --nproc-per-node N -m export.train ...` shares each batch among N processes.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.faces import DETECTOR
from edgesan.render import OPACITY, PLAIN
from export import compile as compiler
from export import data, losses, providers
from export import recipe as recipes
from export.errors import DataError, ExportError, NetworkError
from export.networks import LANDMARKS, LIGHT, Attacker, Sanitizer, Unet, half, perceptron, unshuffle
from export.providers import Finder, Provider
from export.recipe import Recipe

MOST_CLASSES = 16  # of an attribute


class Album:
    """Chips [N, 112, 112, 3], each in several views: as it is, mirrored, and jittered (`data.view`).

    On a GPU all views are drawn at once and stay there: cut one by one, they would take longer than the learning.
    """

    def __init__(self, chips: NDArray[np.uint8], views: int, device: torch.device) -> None:
        self.chips, self.device = chips, device
        self.drawn = self.draw(views) if device.type == "cuda" else None

    def draw(self, views: int) -> Tensor:
        """All views [views, N, 112, 112, 3]."""
        with ThreadPoolExecutor() as pool:
            drawn = [
                np.stack([*pool.map(data.view, self.chips, range(len(self.chips)), [v] * len(self.chips))])
                for v in range(views)
            ]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    def pictures(self, views: Tensor, rows: Tensor) -> Tensor:
        """Views [n] of rows [n] as float32 [n, 3, 112, 112] in 0..1."""
        if self.drawn is not None:
            x = self.drawn[views.to(self.device), rows.to(self.device)]
        else:
            chips = [data.view(self.chips[row], row, v) for v, row in zip(views.tolist(), rows.tolist(), strict=True)]
            x = torch.from_numpy(np.stack(chips))
        return (x.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Material:
    """What a training looks at."""

    album: Album
    private: Tensor  # int64 [N], -1 where unknown
    classes: list[str]  # of the private attribute
    prior: Tensor  # P(p) [K], from the training rows
    taught: Tensor  # [views, N, D + 15]: what the teachers say: embedding (unit length), landmarks, light
    useful: Tensor  # int64 [N]: the utility variable, -1 where it is unknown or none of its classes
    service: nn.Linear  # an embedding [n, D] -> logits [n, U] of the utility variable
    train: Tensor  # int64, rows for training
    validation: Tensor  # int64, rows of other people
    device: torch.device

    @property
    def features(self) -> int:
        """D, of the embedding."""
        return self.service.in_features


def gather(
    faces: data.Faces, r: Recipe, utility: Provider, finder: Finder, cache: Path, device: torch.device
) -> Material:
    """Labels, prior, what the teachers say of each picture, and the classes of the utility variable.

    Raises:
        DataError: too few pictures, a class that none of them shows, or a column that is no attribute.
    """
    private, classes = attribute(faces, r.private, r.private_bins)
    rows = data.training_rows(faces)
    if r.utility_column:
        useful, names = attribute(faces, r.utility_column, r.utility_bins)
    else:
        useful, names = people(faces, rows, r.people_min)
    train = np.flatnonzero(rows & ((private >= 0) | (useful >= 0)))
    validation = np.flatnonzero(data.validation_rows(faces) & (private >= 0))
    counts = np.bincount(private[train][private[train] >= 0], minlength=len(classes))
    if counts.sum() < r.read_batch or not len(validation):
        raise DataError(
            f"{counts.sum()} training and {len(validation)} validation pictures with a known {r.private}: "
            f"at least {r.read_batch} and 1 are needed"
        )
    for column, names_, seen in ((r.private, classes, private), (r.utility_column, names, useful)):
        lacking = [names_[i] for i in range(len(names_)) if not (seen[train] == i).any()]
        if lacking:
            raise DataError(f"no training picture has the {column} {lacking[0]!r}; choose other sets or bins")
    validation = np.random.default_rng(0).permutation(validation)[:512]
    album = Album(faces.chips, r.views, device)
    taught = teach(faces, album, r.views, utility, finder, cache)
    raw = taught[0, torch.from_numpy(train), : taught.shape[2] - LANDMARKS - LIGHT]
    service = probe if r.utility_column else prototypes
    return Material(
        album,
        torch.from_numpy(private).to(device),
        classes,
        torch.from_numpy(counts / counts.sum()).float().to(device),
        taught.to(device),
        torch.from_numpy(useful).to(device),
        service(raw, torch.from_numpy(useful[train]), len(names), r.cosine_scale).to(device),
        torch.from_numpy(train),
        torch.from_numpy(validation),
        device,
    )


def attribute(faces: data.Faces, column: str, bins: tuple[float, ...]) -> tuple[NDArray[np.int64], list[str]]:
    """Class numbers [N] of a CSV column and their names; -1 where unknown.

    Raises:
        DataError: the column has fewer than two values, or so many that it is no class.
    """
    values, names = faces.labels(column, bins)
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"column {column!r} has {len(names)} different values, 2 to {MOST_CLASSES} make an attribute: "
            "group a column of numbers with private_bins or utility_bins"
        )
    return values, names


def people(faces: data.Faces, rows: NDArray[np.bool_], least: int) -> tuple[NDArray[np.int64], list[str]]:
    """The people with at least so many of these rows as the utility variable's classes; -1 where it is none of them."""
    who = faces["identity"]
    names, counts = np.unique(who[rows & (who != "")], return_counts=True)
    names = names[counts >= least]
    if len(names) < 2:
        raise DataError(f"fewer than two people with {least} training pictures: nothing to recognise")
    return np.where(np.isin(who, names), np.searchsorted(names, who).clip(0, len(names) - 1), -1), names.tolist()


def prototypes(raw: Tensor, useful: Tensor, classes: int, scale: float) -> nn.Linear:
    """Who is it? logits = scale * cosine to each person's mean raw embedding."""
    mean = F.normalize(torch.stack([raw[useful == i].mean(0) for i in range(classes)]))
    service = nn.Linear(raw.shape[1], classes, bias=False).requires_grad_(False)
    service.weight.copy_(scale * mean)
    return service


def probe(raw: Tensor, useful: Tensor, classes: int, scale: float) -> nn.Linear:
    """What a CSV column says, as far as the raw embedding tells it: a logistic regression on it, then frozen."""
    torch.manual_seed(0)
    service = nn.Linear(raw.shape[1], classes)
    optimizer = torch.optim.Adam(service.parameters(), 0.1, weight_decay=1e-4)
    with torch.enable_grad():
        for _ in range(200):
            loss = F.cross_entropy(service(raw), useful, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return service.requires_grad_(False)


@torch.no_grad()
def teach(faces: data.Faces, album: Album, views: int, utility: Provider, finder: Finder, cache: Path) -> Tensor:
    """What the teachers say of all views [views, N, D + 15], computed once per data set and kept in the folder `cache`."""
    kept = cache / f"taught-{utility.digest[:16]}-{views}-{faces.digest()[:16]}.pt"
    if kept.exists():
        saved: Tensor = torch.load(kept, weights_only=True, map_location="cpu")
        return saved
    said = []
    for v in range(views):
        parts = []
        for rows in tqdm(torch.arange(len(faces)).split(64), desc=f"teachers, view {v + 1} of {views}", leave=False):
            x = album.pictures(torch.full_like(rows, v), rows)
            score, marks = finder.best(x)
            offsets = (marks - torch.from_numpy(data.TEMPLATE).to(marks).flatten()) / 4  # of about unit variance
            offsets = (offsets * (score > 0.5)[:, None]).clamp(-4, 4)
            parts.append(torch.cat([utility(x), offsets, light(x)], 1).cpu())
        said.append(torch.cat(parts))
    taught = torch.stack(said)
    keep(kept, taught)
    return taught


def light(x: Tensor) -> Tensor:
    """How a face is lit [N, 5], each of about unit variance: mean colour, from left to right, from above to below."""
    inner = x[:, :, 30:102, 26:86]
    brightness = inner.mean(1)
    colour = (inner.mean((2, 3)) - 0.5) / 0.18
    across = (brightness[:, :, :30].mean((1, 2)) - brightness[:, :, 30:].mean((1, 2))) / 0.12
    down = (brightness[:, :36].mean((1, 2)) - brightness[:, 36:].mean((1, 2))) / 0.1
    return torch.cat([colour, across[:, None], down[:, None]], 1)


def dial(r: Recipe, n: int, device: torch.device) -> Tensor:
    """alpha [n, 1]: `alpha_focus` of them at the default, the others anywhere in 0..1."""
    anywhere = torch.rand(n, 1, device=device)
    return torch.where(
        torch.rand(n, 1, device=device) < r.alpha_focus, torch.full_like(anywhere, r.alpha_default), anywhere
    )


def processes() -> tuple[int, int]:
    """This process's number and how many there are: what torchrun says, else 0 of 1."""
    if "RANK" not in os.environ:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def descend(loss: Tensor, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step down; the gradients are the mean over all processes: one batch, spread over them."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for p in net.parameters():
        if dist.is_initialized() and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


class Stage:
    """A part of the training: `learner` is what `optimizer` moves; all of `state` is saved."""

    name: ClassVar[str]

    def __init__(self, r: Recipe, m: Material, s: Any, steps: int, lr: float, learner: nn.Module) -> None:
        self.r, self.m, self.s, self.steps, self.lr, self.learner = r, m, s, steps, lr, learner
        self.optimizer = torch.optim.AdamW(learner.parameters(), lr, weight_decay=r.weight_decay)
        self.state: dict[str, Any] = {"sanitizer": s, "optimizer": self.optimizer}
        world = processes()[1]
        self.batch = max(2, getattr(r, f"{self.name}_batch") // world)

    def rate(self, step: int) -> float:
        """The learning rate: up in 100 steps (a tenth of a short stage), down along a cosine."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(1.0, (step + 1) / min(100, 1 + self.steps // 10)) * decay

    def step(self, step: int) -> dict[str, Tensor]:
        """Learn from one batch; what to show on the bar."""
        raise NotImplementedError

    def validate(self) -> dict[str, Any]:
        """How it does on people of whom nothing was learned."""
        raise NotImplementedError


class Read(Stage):
    """The reader becomes the student of the provider's network and of a detector.

    Beside the pictures on which the teachers were heard once, the provider's network is asked about `unseen` new ones
    in each step, two faces over one another among them (Beyer et al., "Knowledge distillation: a good teacher is
    patient and consistent", 2022): a student of few pictures learns the function, not the pictures.
    """

    name = "read"

    def __init__(self, r: Recipe, m: Material, s: Sanitizer, utility: Provider) -> None:
        super().__init__(r, m, s, r.read_steps, r.read_lr, s.reader)
        self.utility, self.unseen = utility, r.unseen // processes()[1]

    def losses(self, views: Tensor, rows: Tensor, new: Tensor | None = None) -> dict[str, Tensor]:
        """Of each picture, known ones first; of the landmarks and the light, of the known ones alone."""
        x, taught, d = self.m.album.pictures(views, rows), self.m.taught[views, rows], self.m.features
        goal = taught[:, :d]
        with half(self.m.device):
            if new is not None:
                with torch.no_grad():
                    goal = torch.cat([goal, self.utility(new).float()])
                x = torch.cat([x, new])
            told = self.s.reader(unshuffle(x))[..., 0, 0].float()
        embedding = F.normalize(told[:, :d])
        return {
            "cosine": (embedding * goal).sum(1),
            "u": losses.utility_loss(self.m.service(goal), self.m.service(embedding)),
            "rest": (told[: len(rows), d:] - taught[:, d:]).square().mean(1),
        }

    def some(self, n: int) -> tuple[Tensor, Tensor]:
        """Views [n] and rows [n], by chance."""
        return torch.randint(self.r.views, (n,)), self.m.train[torch.randint(len(self.m.train), (n,))]

    def step(self, step: int) -> dict[str, Tensor]:
        self.s.reader.train()
        new = None
        if self.unseen:
            first, second = (moved(self.m.album.pictures(*self.some(self.unseen))) for _ in range(2))
            # less and less of the second: the normalisation layers end with the statistics of single faces
            share = (1 - step / self.steps) * torch.rand(self.unseen, 1, 1, 1, device=first.device)
            new = first + share * (second - first)
        each = self.losses(*self.some(self.batch), new)
        loss = (4 * (1 - each["cosine"]) + each["u"]).mean() + 0.6 * each["rest"].mean()
        descend(loss, self.learner, self.optimizer)
        return each

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        self.s.reader.eval()
        parts = [self.losses(torch.zeros_like(rows), rows) for rows in self.m.validation.split(64)]
        return {key: round(torch.cat([part[key] for part in parts]).mean().item(), 3) for key in parts[0]}


def moved(x: Tensor) -> Tensor:
    """Faces [n, 3, 112, 112] a little elsewhere: turned, shifted, scaled, perhaps mirrored, in other light, half of them coarser."""
    n, of = len(x), {"device": x.device}
    turn, zoom, shift = (
        0.06 * torch.randn(n, **of),
        torch.exp(0.06 * torch.randn(n, **of)),
        0.03 * torch.randn(n, 2, **of),
    )
    side = torch.where(torch.rand(n, **of) < 0.5, -1.0, 1.0)
    rows = [torch.stack([side * zoom * turn.cos(), -zoom * turn.sin(), shift[:, 0]], 1),
            torch.stack([side * zoom * turn.sin(), zoom * turn.cos(), shift[:, 1]], 1)]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(0.2 * torch.randn(n, 1, 1, 1, **of)) * torch.exp(0.06 * torch.randn(n, 3, 1, 1, **of))
    x = (x - mean) * contrast + mean + 0.07 * torch.randn(n, 1, 1, 1, **of)
    width = int(torch.randint(36, 100, ()))
    coarse = F.interpolate(x[: n // 2], (width, width), mode="bilinear", antialias=True)
    x = torch.cat([F.interpolate(coarse, (112, 112), mode="bilinear"), x[n // 2 :]])
    return (x + 0.015 * torch.randn_like(x)).clamp(0, 1)


class Hide(Stage):
    """The hider against the attackers, on noisy codes; the readout says what of a face is still in them."""

    name = "hide"

    def __init__(self, r: Recipe, m: Material, s: Sanitizer) -> None:
        code, said = r.code + 1, m.features + LANDMARKS + LIGHT
        self.readout = perceptron(code, said).to(m.device)
        self.attackers = nn.ModuleList(perceptron(code, len(m.classes), h) for h in r.attackers).to(m.device)
        super().__init__(r, m, s, r.hide_steps, r.hide_lr, nn.ModuleList([s.hider, self.readout]))
        self.optimizer_p = (
            torch.optim.AdamW(self.attackers.parameters(), r.attacker_lr, weight_decay=1e-2) if r.attackers else None
        )
        self.state |= {"readout": self.readout, "attackers": self.attackers}
        self.state |= {"optimizer_p": self.optimizer_p} if self.optimizer_p else {}
        self.pools = [m.train[labels[m.train.to(m.device)].cpu() >= 0] for labels in (m.private, m.useful)]
        self.told = tell(s, m, r.views)

    def noisy(self, told: Tensor, alpha: Tensor) -> Tensor:
        """What the painter, the readout and the attackers see [n, code + 1]."""
        z = torch.randn(len(told), self.s.noise_dim, device=told.device)
        return torch.cat([self.s.hide(told, z, alpha), alpha], 1)

    def step(self, step: int) -> dict[str, Tensor]:
        r, m, part = self.r, self.m, self.batch // 2
        rows = torch.cat([pool[torch.randint(len(pool), (part,))] for pool in self.pools])
        told = self.told[torch.randint(r.views, (2 * part,)), rows].to(m.device)
        rows = rows.to(m.device)
        alpha, truth = dial(r, 2 * part, m.device), m.private[rows]

        # Loss_P: right on noisy codes, each time with new noise, and still right where nothing is hidden
        for _ in range(r.attacker_steps if self.optimizer_p else 0):
            with torch.no_grad():
                hidden, plain = self.noisy(told, alpha), self.noisy(told, torch.zeros_like(alpha))
            loss_p = torch.stack([losses.attacker_loss(a(hidden), a(plain), truth, truth) for a in self.attackers])
            descend(loss_p.sum(), self.attackers, self.optimizer_p)

        # Loss_S: the utility's posterior stays, every attacker's goes to the prior
        noisy = self.noisy(told, alpha)
        said, d = self.readout(noisy), m.features
        embedding, taught = F.normalize(said[:, :d]), m.taught[0, rows]
        logits = m.service(embedding)
        u = losses.utility_loss(m.service(taught[:, :d]), logits)
        u = u + r.alike * (1 - (embedding * taught[:, :d]).sum(1))
        u = u + F.cross_entropy(1.5 * logits, m.useful[rows], ignore_index=-1, reduction="none")
        rest = (said[:, d:] - taught[:, d:]).square()
        p = torch.stack([losses.privacy_loss(m.prior, a(noisy)) for a in self.attackers] or [torch.zeros_like(u)]).mean(
            0
        )
        ramp = min(1.0, 7 * step / self.steps)
        loss = losses.sanitizer_loss(u, ramp * r.privacy * p, alpha) + r.keep * u
        loss = loss + r.look * (rest[:, :LANDMARKS].mean(1) + rest[:, LANDMARKS:].mean(1))
        loud = F.relu(self.s.hide(told, None, alpha).square().mean() - r.power)
        descend(loss.mean() + 10 * loud, self.learner, self.optimizer)
        return {"u": u, "p": p, "rest": rest}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        result = {}
        told, taught = self.told[0, self.m.validation].to(self.m.device), self.m.taught[0, self.m.validation]
        truth = self.m.private[self.m.validation]
        for a in (0.0, self.r.alpha_default, 1.0):
            noisy = self.noisy(told, torch.full((len(told), 1), a, device=told.device))
            embedding = F.normalize(self.readout(noisy)[:, : self.m.features])
            hits = [(attacker(noisy).argmax(1) == truth).float().mean().item() for attacker in self.attackers]
            cosine = (embedding * taught[:, : self.m.features]).sum(1).mean().item()
            result[f"alpha {a:g}"] = {"cosine": round(cosine, 3), "attackers": [round(hit, 3) for hit in hits]}
        return result


@torch.no_grad()
def tell(s: Sanitizer, m: Material, views: int) -> Tensor:
    """What the reader says of all views [views, N, D + 15]."""
    s.reader.eval()
    rows = torch.arange(len(m.album.chips))
    return torch.stack([
        torch.cat([s.reader(unshuffle(m.album.pictures(torch.full_like(part, v), part)))[..., 0, 0].cpu()
                   for part in tqdm(rows.split(64), desc=f"reading view {v + 1} of {views}", leave=False)])
        for v in range(views)
    ])  # fmt: skip


class Paint(Stage):
    """The painter shows the provider's network, in a face, what the readout finds in the noisy code.

    Where the recipe names frozen classifiers of the private attribute (plug-and-play), the hider learns on, from them.
    """

    name = "paint"

    def __init__(
        self,
        r: Recipe,
        m: Material,
        s: Sanitizer,
        hide: Hide,
        utility: Provider,
        finder: Finder,
        frozen: list[Provider],
    ) -> None:
        super().__init__(
            r, m, s, r.paint_steps, r.paint_lr, nn.ModuleList([s.painter, s.hider]) if frozen else s.painter
        )
        self.readout, self.utility, self.finder, self.frozen = hide.readout, utility, finder, frozen
        self.told = hide.told[:2]
        self.order = [[net.classes.index(c) for c in m.classes] for net in frozen]
        self.opacity = torch.from_numpy(OPACITY[..., 0] / 255).float().to(m.device)

    def seen(self, y: Tensor) -> Tensor:
        """A painted chip as a provider cuts it out of the composed frame: faded into the canvas, moved a little, resampled.

        A pattern of single pixels does not survive it; the features of a face do.
        """
        y = PLAIN / 255 + self.opacity * (y - PLAIN / 255)
        turn, zoom = 0.02 * torch.randn(len(y)), torch.exp(0.02 * torch.randn(len(y)))
        shift = 0.012 * torch.randn(len(y), 2)
        rows = [torch.stack([zoom * turn.cos(), -zoom * turn.sin(), shift[:, 0]], 1),
                torch.stack([zoom * turn.sin(), zoom * turn.cos(), shift[:, 1]], 1)]  # fmt: skip
        grid = F.affine_grid(torch.stack(rows, 1).to(y), list(y.shape), align_corners=False)
        y = F.grid_sample(y, grid, padding_mode="border", align_corners=False)
        if torch.rand(()) < 0.6:
            side = int(torch.randint(48, 80, ()))
            y = F.interpolate(y, (side, side), mode="bilinear", antialias=True)
            y = F.interpolate(y, (112, 112), mode="bilinear")
        return y + 0.02 * torch.randn_like(y)

    def noisy(self, views: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        z = torch.randn(len(rows), self.s.noise_dim, device=self.m.device)
        return self.s.hide(self.told[views, rows].to(self.m.device), z, alpha)

    def step(self, step: int) -> dict[str, Tensor]:
        r, m, d = self.r, self.m, self.m.features
        views = torch.randint(len(self.told), (self.batch,))
        rows = m.train[torch.randint(len(m.train), (self.batch,))]
        x, alpha = m.album.pictures(views, rows), dial(r, self.batch, m.device)
        noisy = self.noisy(views, rows, alpha)
        # what the readout finds moves with a hider that still learns: then the raw face is the goal
        goal = (
            m.taught[views, rows, :d] if self.frozen else F.normalize(self.readout(torch.cat([noisy, alpha], 1))[:, :d])
        )
        # first a face, then one that is recognised
        ramp = min(1.0, max(0.0, (step - r.face_steps) / max(1.0, 0.6 * r.face_steps)))
        zero = torch.zeros(self.batch, device=m.device)
        with half(m.device):
            y = self.s.paint(noisy, alpha).float()
            seen = self.seen(y)
            embedding = self.utility(seen).float() if ramp else goal
            lost = losses.finding_loss(self.finder(x), self.finder(y)) if ramp else zero
            verdicts = (
                [net(seen).float()[:, order] for net, order in zip(self.frozen, self.order, strict=True)]
                if ramp
                else []
            )
        cosine = (embedding * goal).sum(1)
        u = losses.utility_loss(m.service(goal), m.service(embedding))
        p = torch.stack([losses.privacy_loss(m.prior, v) for v in verdicts]).mean(0) if verdicts else zero
        rough = (y[:, :, 1:] - y[:, :, :-1]).abs().mean((1, 2, 3)) + (y[..., 1:] - y[..., :-1]).abs().mean((1, 2, 3))
        distance = (y - x).abs().mean((1, 2, 3))
        loss = (
            losses.sanitizer_loss(r.match * (u + 1 - cosine), r.privacy * p, alpha)
            if verdicts
            else r.match * (u + 1 - cosine)
        )
        loss = ramp * (loss + r.detect * lost) + r.reconstruct * distance + r.smooth * rough
        descend(loss.mean(), self.learner, self.optimizer)
        return {"cosine": cosine, "u": u, "p": p, "lost": lost, "l1": distance, "rough": rough}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """At three alphas: cosine of the painted embedding to the raw one and to another draw's, what the detector
        lost, the distance, and each frozen classifier's accuracy."""
        result: dict[str, Any] = {}
        for a in (0.0, self.r.alpha_default, 1.0):
            parts = []
            for rows in self.m.validation.split(64):
                views, alpha = torch.zeros_like(rows), torch.full((len(rows), 1), a, device=self.m.device)
                x, truth = self.m.album.pictures(views, rows), self.m.private[rows.to(self.m.device)]
                with half(self.m.device):
                    y, other = (self.s.paint(self.noisy(views, rows, alpha), alpha).float() for _ in range(2))
                    first, second = self.utility(y).float(), self.utility(other).float()
                    lost = losses.finding_loss(self.finder(x), self.finder(y))
                    hits = [
                        net(y).float()[:, o].argmax(1) == truth for net, o in zip(self.frozen, self.order, strict=True)
                    ]
                raw = self.m.taught[0, rows.to(self.m.device), : self.m.features]
                each = [(first * raw).sum(1), (first * second).sum(1), lost, (y - x).abs().mean((1, 2, 3)), *hits]
                parts.append(torch.stack([value.float() for value in each], 1))
            cosine, alike, lost_, l1, *right = (round(v, 3) for v in torch.cat(parts).mean(0).tolist())
            result[f"alpha {a:g}"] = {"cosine": cosine, "alike": alike, "lost": lost_, "l1": l1, "frozen": right}
        return result


class Play(Stage):
    """The baseline: the authors' network shape and the authors' game, on pictures and in one stage."""

    name = "play"

    def __init__(self, r: Recipe, m: Material, s: Unet, utility: Provider, frozen: list[Provider]) -> None:
        super().__init__(r, m, s, r.play_steps, r.play_lr, s)
        self.utility, self.frozen = utility, frozen
        self.order = [[net.classes.index(c) for c in m.classes] for net in frozen]
        self.attackers = nn.ModuleList(Attacker(len(m.classes)) for _ in r.attackers[:1]).to(m.device)
        if r.attackers:
            self.optimizer_p = torch.optim.AdamW(self.attackers.parameters(), r.attacker_lr, weight_decay=1e-2)
            self.state |= {"attackers": self.attackers, "optimizer_p": self.optimizer_p}

    def sanitized(self, x: Tensor, alpha: Tensor) -> Tensor:
        with half(self.m.device):
            y: Tensor = self.s(x, torch.randn(len(x), self.s.noise_dim, device=x.device), alpha)
        return y.float()

    def step(self, step: int) -> dict[str, Tensor]:
        r, m = self.r, self.m
        rows = m.train[torch.randint(len(m.train), (self.batch,))]
        views, at = torch.randint(r.views, (self.batch,)), rows.to(m.device)
        x, alpha, truth = m.album.pictures(views, rows), dial(r, self.batch, m.device), m.private[at]
        y = self.sanitized(x, alpha)
        for attacker in self.attackers:
            loss_p = losses.attacker_loss(attacker(y.detach(), alpha), attacker(x, 0 * alpha), truth, truth)
            descend(loss_p, self.attackers, self.optimizer_p)
        distance = (y - x).abs().mean((1, 2, 3))
        u = p = torch.zeros_like(distance)
        if step >= r.face_steps:  # first a face
            with half(m.device):
                embedding = self.utility(y).float()
                verdicts = [net(y).float()[:, order] for net, order in zip(self.frozen, self.order, strict=True)]
            verdicts += [attacker(y, alpha) for attacker in self.attackers]
            u = losses.utility_loss(m.service(m.taught[0, at, : m.features]), m.service(embedding))
            p = torch.stack([losses.privacy_loss(m.prior, v) for v in verdicts]).mean(0) if verdicts else p
        loss = losses.sanitizer_loss(r.match * u, r.privacy * p, alpha) + r.reconstruct * distance
        descend(loss.mean(), self.learner, self.optimizer)
        return {"u": u, "p": p, "l1": distance}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        rows = self.m.validation[:128]
        x, at = self.m.album.pictures(torch.zeros_like(rows), rows), rows.to(self.m.device)
        for a in (0.0, self.r.alpha_default, 1.0):
            alpha = torch.full((len(rows), 1), a, device=self.m.device)
            y = self.sanitized(x, alpha)
            cosine = (self.utility(y) * self.m.taught[0, at, : self.m.features]).sum(1).mean().item()
            hits = [(n(y, alpha).argmax(1) == self.m.private[at]).float().mean().item() for n in self.attackers]
            l1 = (y - x).abs().mean().item()
            result[f"alpha {a:g}"] = {"cosine": round(cosine, 3), "attackers": [round(h, 3) for h in hits], "l1": round(l1, 3)}  # fmt: skip
        return result


def train(
    r: Recipe,
    faces: data.Faces,
    networks: Path,
    out: Path,
    minutes: float = float("inf"),
    start: Path | None = None,
    cache: Path | None = None,
    said: dict[str, dict[str, Any]] | None = None,
) -> nn.Module:
    """Run the stages that are not done yet, for `minutes` at most; the result is also in `out`.

    Args:
        start: a model file or the folder of another training, to begin from; a stage of 0 steps is taken over from it.
        cache: where what the teachers say is kept (default: `out`); trainings on the same data can share it.
        said: input contracts of providers that no `providers.toml` describes, by name (`providers.contract`).

    Raises:
        ExportError: what was given does not fit: the data, the recipe, a provider's network, or `start`.
    """
    rank, world = processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True  # shapes stay the same for thousands of steps
    torch.manual_seed(r.seed)
    utility, *frozen = (
        Provider(name, networks, (said or {}).get(name)).eval().requires_grad_(False) for name in (r.utility, *r.frozen)
    )
    finder = Finder(DETECTOR).to(device).eval().requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    providers.validate(utility, faces.chips[:4])
    for net in frozen:
        providers.validate(net, faces.chips[:4], attribute(faces, r.private, r.private_bins)[1])
    for net in (utility, *frozen):
        net.to(device)
    if rank:
        dist.barrier()  # the first process asks the teachers, the others read what they said
    m = gather(faces, r, utility, finder, cache or out, device)
    if world > 1 and not rank:
        dist.barrier()
    end = time.monotonic() + 60 * minutes
    s: nn.Module
    if r.unet:
        s = Unet(r.stochastic).to(device, memory_format=torch.channels_last)
        done = run(Play(r, m, s, utility, frozen), r, out, end)
        origin, steps = "", r.play_steps
    else:
        s = Sanitizer(m.features, r.code, r.noise, r.stochastic)
        origin, readout = begin(s, r, start)
        s.to(device, memory_format=torch.channels_last)
        done, steps = three_stages(r, m, s, readout, utility, finder, frozen, out, end), r.read_steps + r.hide_steps + r.paint_steps  # fmt: skip
    if done and rank == 0:
        keep(out / "sanitizer.pt", {
            "weights": s.state_dict(), "recipe": asdict(r), "classes": m.classes, "prior": m.prior.tolist(),
            "features": m.features, "data_digest": faces.digest(), "step": steps, "from": origin,
        })  # fmt: skip
    return s.eval()


def three_stages(r: Recipe, m: Material, s: Sanitizer, readout: dict[str, Tensor], utility: Provider, finder: Finder,
                 frozen: list[Provider], out: Path, end: float) -> bool:  # fmt: skip
    """Read, hide, paint; whether all is done."""
    if not run(Read(r, m, s, utility), r, out, end):
        return False
    hide = Hide(r, m, s)
    if readout:
        hide.readout.load_state_dict(readout)
    if not run(hide, r, out, end):
        return False
    hide.readout.requires_grad_(False)
    s.hider.requires_grad_(bool(frozen))
    return run(Paint(r, m, s, hide, utility, finder, frozen), r, out, end)


def begin(s: Sanitizer, r: Recipe, start: Path | None) -> tuple[str, dict[str, Tensor]]:
    """Give `s` the weights of a model file or of another training; their digest, and that training's readout.

    Raises:
        ExportError: the recipe takes over a stage and there is nothing to take it from, or another shape is there.
    """
    taken = [stage for stage in ("read", "hide", "paint") if not getattr(r, f"{stage}_steps")]
    if start is None:
        if taken:
            raise ExportError(f"{taken[0]}_steps = 0 takes that stage over from another model: say which with --from")
        return "", {}
    weights, readout = (start / "sanitizer.pt", start / "hide.pt") if start.is_dir() else (start, start)
    other = compiler.restore(start)[0] if start.is_dir() else compiler.unpack(start)
    mine, theirs = ({k: tuple(v.shape) for k, v in net.state_dict().items()} for net in (s, other))
    if mine != theirs:
        key = min(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        raise ExportError(
            f"{start} has another shape than this recipe: {key} is {theirs.get(key)}, not {mine.get(key)}"
        )
    s.load_state_dict(other.state_dict())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if readout.suffix == ".pt" and readout.exists():
        return digest, torch.load(readout, weights_only=True, map_location="cpu")["readout"]
    if "hide" in taken and "paint" not in taken:
        raise ExportError(f"{start} holds no readout, which painting needs: give hide_steps, or a training's folder")
    return digest, {}


def run(stage: Stage, r: Recipe, out: Path, end: float) -> bool:
    """The loop: from where the stage was saved to its last step, or until `end`. Whether it is done."""
    rank, world = processes()
    first = resume(out / f"{stage.name}.pt", stage, r)
    if rank or not first:
        torch.manual_seed(r.seed + 7919 * rank + first)  # other faces and other noise in each process
    began = time.monotonic()
    bar = tqdm(
        range(first, stage.steps), initial=first, total=stage.steps, desc=f"{r.name}: {stage.name}", disable=rank > 0
    )
    for step in bar:
        for group in stage.optimizer.param_groups:
            group["lr"] = stage.rate(step)
        shown = stage.step(step)
        if step % 10 == 0:
            bar.set_postfix({key: f"{value.detach().mean():.3f}" for key, value in shown.items()})
        late = time.monotonic() > end
        if world > 1:
            said = torch.tensor(float(late), device=stage.m.device)
            dist.broadcast(said, 0)  # all processes stop at the same step
            late = bool(said)
        last = step + 1 == stage.steps
        if rank == 0 and ((step + 1) % r.evaluate_every == 0 or last or late):
            seconds = round(time.monotonic() - began, 1)  # since this process took it up
            report = {"stage": stage.name, "step": step + 1, "seconds": seconds, **stage.validate()}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
            bar.write(json.dumps(report))
            saved = {key: value.state_dict() for key, value in stage.state.items()}
            keep(out / f"{stage.name}.pt", saved | {"step": step + 1, "rng": torch.get_rng_state(), "digest": r.digest})
        if late and not last:
            return False
    return True


def keep(path: Path, content: Any) -> None:
    """Write it whole or not at all."""
    part = path.with_name(f".{path.name}")
    torch.save(content, part)
    part.replace(path)


def resume(path: Path, stage: Stage, r: Recipe) -> int:
    """Load the stage's checkpoint, if there is one; the step to go on with."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True, map_location="cpu")
    if saved["digest"] != r.digest:
        raise ExportError(f"{path} was made by another recipe; choose another --out, or remove it to start again")
    for name, part in stage.state.items():
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"])
    return int(saved["step"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.train", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a TOML file; see export/recipes")
    parser.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    parser.add_argument("--networks", type=Path, required=True, help="folder of the providers' ONNX networks")
    parser.add_argument("--out", type=Path, help="where to write checkpoints and the log (default: runs/NAME)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, saved, after so long")
    parser.add_argument("--from", dest="start", type=Path, metavar="MODEL_OR_RUN",
                        help="begin from a model file or another training; stages of 0 steps are taken over")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="FOLDER",
                        help="where to keep what the teachers say, for other trainings on the same data (default: --out)")  # fmt: skip
    for role, help_ in (("utility", "embeds faces"), ("privacy", "tells the private attribute; frozen")):
        parser.add_argument(
            f"--{role}", nargs="+", metavar=("FILE.onnx", "KEY=VALUE"),
            help=f"a provider's network that {help_}, instead of the recipe's; its input contract from providers.toml "
            "beside it, or as TOML here: mean=127.5 scale=128 order='\"BGR\"' classes='[\"M\", \"F\"]'",
        )  # fmt: skip
    a = parser.parse_args(arguments)
    try:
        r, said = bring(recipes.read(a.recipe), a.utility, a.privacy)
        faces = data.join(data.load_set(a.data, name) for name in r.sets)
        faces = faces.where(data.training_rows(faces) | data.validation_rows(faces))
        train(r, faces, a.networks, a.out or Path("runs") / r.name, a.minutes, a.start, a.cache, said)
        if dist.is_initialized():
            dist.barrier()  # the first process still measures and saves: whoever leaves earlier cuts its connections
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def bring(r: Recipe, utility: list[str] | None, privacy: list[str] | None) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The recipe with the networks of the command line instead of its own, and what was said of them there."""
    said: dict[str, dict[str, Any]] = {}
    for given in (utility, privacy):
        if given:
            said[given[0]] = contract_of(given[1:])
    if said:
        digest = hashlib.sha256(repr((r.digest, utility, privacy)).encode()).hexdigest()
        r = replace(
            r,
            utility=utility[0] if utility else r.utility,
            frozen=(privacy[0],) if privacy else r.frozen,
            digest=digest,
        )
    return r, said


def contract_of(said: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts as TOML.

    Raises:
        NetworkError: one of them is none.
    """
    try:
        return tomllib.loads("\n".join(said))
    except tomllib.TOMLDecodeError as error:
        raise NetworkError(f"{' '.join(said)} is no input contract: {error}; write KEY=VALUE in TOML") from error


if __name__ == "__main__":
    sys.exit(main())
