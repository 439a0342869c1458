"""Train a sanitizer: `python -m export.train RECIPE --data DIR --networks DIR --out runs/NAME`.

Three stages, one loop. `Read`: the reader learns to say of a face what the provider's network and a detector say of it.
`Hide`: the game of Loss_S and Loss_P, played on those descriptions alone. `Paint`: a face is painted of what is left.

It saves itself every `evaluate_every` steps and goes on from there when started again. On several devices,
`torchrun --nproc-per-node N -m export.train ...` shares each batch among N processes.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
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
from edgesan.sanitize import OPACITY
from export import data, losses
from export import recipe as recipes
from export.errors import DataError, ExportError
from export.networks import LANDMARKS, LIGHT, Finder, Provider, Sanitizer, perceptron, unshuffle
from export.recipe import Recipe

CELLS = 4  # the pixelated surroundings of a chip, in cells a side: about what the device's background leaves there


@dataclass(frozen=True)
class Material:
    """What a training looks at. Each picture is there in several views: as it is, mirrored, and jittered."""

    chips: NDArray[np.uint8]  # [N, 112, 112, 3]
    private: Tensor  # int64 [N], -1 where unknown
    classes: list[str]  # of the private attribute
    prior: Tensor  # P(p) [K], from the training rows
    taught: Tensor  # [views, N, D + 15]: what the teachers say: embedding (unit length), landmarks, light
    person: Tensor  # int64 [N]: the utility variable, -1 where it is none of its classes
    prototypes: Tensor  # [people, D]: mean raw embedding of each class
    train: Tensor  # int64, rows for training
    validation: Tensor  # int64, rows of other people
    device: torch.device

    @property
    def features(self) -> int:
        """D, of the embedding."""
        return self.prototypes.shape[1]

    def pictures(self, views: Tensor, rows: Tensor) -> Tensor:
        """Views [n] of rows [n] as float32 [n, 3, 112, 112] in 0..1."""
        chips = [data.view(self.chips[row], row, v) for v, row in zip(views.tolist(), rows.tolist(), strict=True)]
        x = torch.from_numpy(np.stack(chips)).to(self.device).permute(0, 3, 1, 2)
        return (x.float() / 255).contiguous(memory_format=torch.channels_last)


def gather(
    faces: data.Faces, r: Recipe, utility: Provider, finder: Finder, out: Path, device: torch.device
) -> Material:
    """Labels, prior, what the teachers say of each picture, and the classes of the utility variable."""
    private, classes = faces.labels(r.private)
    train = np.flatnonzero(data.training_rows(faces) & (private >= 0))
    validation = np.flatnonzero(data.validation_rows(faces) & (private >= 0))
    if len(train) < r.read_batch or not len(validation):
        raise DataError(
            f"{len(train)} training and {len(validation)} validation pictures with a known {r.private}: "
            f"at least {r.read_batch} and 1 are needed"
        )
    validation = np.random.default_rng(0).permutation(validation)[:512]
    people = faces["identity"]
    names, counts = np.unique(people[train][people[train] != ""], return_counts=True)
    names = names[counts >= r.people_min]
    if len(names) < 2:
        raise DataError(f"fewer than two people with {r.people_min} training pictures: nothing to recognise")
    person = np.where(np.isin(people, names), np.searchsorted(names, people).clip(0, len(names) - 1), -1)
    taught = teach(faces, r, utility, finder, out, device)
    features = taught.shape[2] - LANDMARKS - LIGHT
    of = torch.from_numpy(person[train])
    raw = taught[0, torch.from_numpy(train), :features]
    prototypes = F.normalize(torch.stack([raw[of == i].mean(0) for i in range(len(names))]))
    prior = torch.from_numpy(np.bincount(private[train], minlength=len(classes)) / len(train)).float()
    return Material(
        faces.chips,
        torch.from_numpy(private).to(device),
        classes,
        prior.to(device),
        taught.to(device),
        torch.from_numpy(person).to(device),
        prototypes.to(device),
        torch.from_numpy(train),
        torch.from_numpy(validation),
        device,
    )


@torch.no_grad()
def teach(faces: data.Faces, r: Recipe, utility: Provider, finder: Finder, out: Path, device: torch.device) -> Tensor:
    """What the teachers say of all views [views, N, D + 15], computed once per data set and kept beside the checkpoints."""
    cache = out / f"taught-{r.utility}-{r.views}-{faces.digest()[:16]}.pt"
    if cache.exists():
        saved: Tensor = torch.load(cache, weights_only=True)
        return saved
    views = []
    for v in range(r.views):
        parts = []
        for rows in tqdm(torch.arange(len(faces)).split(64), desc=f"teachers, view {v + 1} of {r.views}", leave=False):
            chips = np.stack([data.view(faces.chips[row], row, v) for row in rows.tolist()])
            x = torch.from_numpy(chips).to(device).permute(0, 3, 1, 2).float() / 255
            score, marks = finder.best(x)
            offsets = (marks - torch.from_numpy(data.TEMPLATE).to(marks).flatten()) / 4  # of about unit variance
            offsets = (offsets * (score > 0.5)[:, None]).clamp(-4, 4)
            parts.append(torch.cat([utility(x), offsets, light(x)], 1).cpu())
        views.append(torch.cat(parts))
    torch.save(torch.stack(views), cache)
    return torch.stack(views)


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

    def __init__(self, r: Recipe, m: Material, s: Sanitizer, steps: int, lr: float, learner: nn.Module) -> None:
        self.r, self.m, self.s, self.steps, self.lr, self.learner = r, m, s, steps, lr, learner
        self.optimizer = torch.optim.AdamW(learner.parameters(), lr, weight_decay=r.weight_decay)
        self.state: dict[str, Any] = {"sanitizer": s, "optimizer": self.optimizer}
        world = processes()[1]
        self.batch = max(2, getattr(r, f"{self.name}_batch") // world)

    def rate(self, step: int) -> float:
        """The learning rate: up in 100 steps, down along a cosine."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(1.0, (step + 1) / 100) * decay

    def step(self, step: int) -> dict[str, Tensor]:
        """Learn from one batch; what to show on the bar."""
        raise NotImplementedError

    def validate(self) -> dict[str, Any]:
        """How it does on people of whom nothing was learned."""
        raise NotImplementedError


class Read(Stage):
    """The reader becomes the student of the provider's network and of a detector."""

    name = "read"

    def __init__(self, r: Recipe, m: Material, s: Sanitizer) -> None:
        super().__init__(r, m, s, r.read_steps, r.read_lr, s.reader)

    def losses(self, views: Tensor, rows: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self.m.device.type, dtype=torch.bfloat16):
            told = self.s.reader(unshuffle(self.m.pictures(views, rows)))[..., 0, 0].float()
        taught, d = self.m.taught[views, rows], self.m.features
        embedding = F.normalize(told[:, :d])
        u = losses.utility_loss(
            self.r.cosine_scale * taught[:, :d] @ self.m.prototypes.T,
            self.r.cosine_scale * embedding @ self.m.prototypes.T,
        )
        return {
            "cosine": (embedding * taught[:, :d]).sum(1),
            "u": u,
            "rest": (told[:, d:] - taught[:, d:]).square().mean(1),
        }

    def step(self, step: int) -> dict[str, Tensor]:
        self.s.reader.train()
        rows = self.m.train[torch.randint(len(self.m.train), (self.batch,))]
        each = self.losses(torch.randint(self.r.views, (self.batch,)), rows)
        loss = 4 * (1 - each["cosine"]) + each["u"] + 0.6 * each["rest"]
        descend(loss.mean(), self.learner, self.optimizer)
        return each

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        self.s.reader.eval()
        parts = [self.losses(torch.zeros_like(rows), rows) for rows in self.m.validation.split(64)]
        return {key: round(torch.cat([part[key] for part in parts]).mean().item(), 3) for key in parts[0]}


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
        known = m.person[m.train.to(m.device)].cpu() >= 0
        self.known = m.train[known]
        self.told = tell(s, m, r.views)

    def noisy(self, told: Tensor, alpha: Tensor) -> Tensor:
        """What the painter, the readout and the attackers see [n, code + 1]."""
        z = torch.randn(len(told), self.s.noise_dim, device=told.device)
        return torch.cat([self.s.hide(told, z, alpha), alpha], 1)

    def step(self, step: int) -> dict[str, Tensor]:
        r, m, half = self.r, self.m, self.batch // 2
        rows = torch.cat([pool[torch.randint(len(pool), (half,))] for pool in (m.train, self.known)])
        told = self.told[torch.randint(r.views, (2 * half,)), rows].to(m.device)
        rows = rows.to(m.device)
        alpha, truth = dial(r, 2 * half, m.device), m.private[rows]

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
        logits = r.cosine_scale * embedding @ m.prototypes.T
        u = losses.utility_loss(r.cosine_scale * taught[:, :d] @ m.prototypes.T, logits)
        u = u + 2 * (1 - (embedding * taught[:, :d]).sum(1))
        u = u + F.cross_entropy(1.5 * logits, m.person[rows], ignore_index=-1, reduction="none")
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
    rows = torch.arange(len(m.chips))
    return torch.stack([
        torch.cat([s.reader(unshuffle(m.pictures(torch.full_like(part, v), part)))[..., 0, 0].cpu()
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
        readout: nn.Module,
        utility: Provider,
        finder: Finder,
        frozen: list[Provider],
    ) -> None:
        super().__init__(
            r, m, s, r.paint_steps, r.paint_lr, nn.ModuleList([s.painter, s.hider]) if frozen else s.painter
        )
        self.readout, self.utility, self.finder, self.frozen = readout, utility, finder, frozen
        self.told = tell(s, m, min(2, r.views))
        self.order = [[m.classes.index(c) for c in net.classes] for net in frozen]
        self.opacity = torch.from_numpy(OPACITY).to(m.device)

    def seen(self, y: Tensor, x: Tensor) -> Tensor:
        """A painted chip as a provider cuts it out of the composed frame: faded into blocks, moved a little, resampled.

        A pattern of single pixels does not survive it; the features of a face do.
        """
        blocks = F.interpolate(F.adaptive_avg_pool2d(x, CELLS), 112, mode="nearest")
        y = blocks + self.opacity * (y - blocks)
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
        x, alpha = m.pictures(views, rows), dial(r, self.batch, m.device)
        noisy = self.noisy(views, rows, alpha)
        goal = F.normalize(self.readout(torch.cat([noisy, alpha], 1))[:, :d])
        ramp = min(1.0, max(0.0, (step - r.face_steps) / 300))  # first a face, then one that is recognised
        zero = torch.zeros(self.batch, device=m.device)
        with torch.autocast(m.device.type, dtype=torch.bfloat16):
            y = self.s.paint(noisy, alpha).float()
            seen = self.seen(y, x)
            embedding = self.utility(seen).float() if ramp else goal
            lost = losses.finding_loss(self.finder(x), self.finder(y)) if ramp else zero
            verdicts = (
                [net(seen).float()[:, order] for net, order in zip(self.frozen, self.order, strict=True)]
                if ramp
                else []
            )
        cosine = (embedding * goal).sum(1)
        u = losses.utility_loss(r.cosine_scale * goal @ m.prototypes.T, r.cosine_scale * embedding @ m.prototypes.T)
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
                x, truth = self.m.pictures(views, rows), self.m.private[rows.to(self.m.device)]
                with torch.autocast(self.m.device.type, dtype=torch.bfloat16):
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


def train(r: Recipe, faces: data.Faces, networks: Path, out: Path, minutes: float = float("inf")) -> Sanitizer:
    """Run the stages that are not done yet, for `minutes` at most; the result is also in `out`."""
    rank, world = processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(r.seed)
    utility = Provider(r.utility, networks).to(device).eval().requires_grad_(False)
    frozen = [Provider(name, networks).to(device).eval().requires_grad_(False) for name in r.frozen]
    finder = Finder(DETECTOR).to(device).eval().requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    if rank:
        dist.barrier()  # the first process asks the teachers, the others read what they said
    m = gather(faces, r, utility, finder, out, device)
    if world > 1 and not rank:
        dist.barrier()
    s = Sanitizer(m.features, r.code, r.noise, r.stochastic).to(device, memory_format=torch.channels_last)
    end = time.monotonic() + 60 * minutes
    if run(Read(r, m, s), r, out, end) and run(hide := Hide(r, m, s), r, out, end):
        hide.readout.requires_grad_(False)
        s.hider.requires_grad_(bool(frozen))
        paint = Paint(r, m, s, hide.readout, utility, finder, frozen)
        run(paint, r, out, end)
        if rank == 0:
            keep(out / "sanitizer.pt", {
                "weights": s.state_dict(), "recipe": asdict(r), "classes": m.classes, "prior": m.prior.tolist(),
                "features": m.features, "data_digest": faces.digest(), "step": r.read_steps + r.hide_steps + r.paint_steps,
            })  # fmt: skip
    return s.eval()


def run(stage: Stage, r: Recipe, out: Path, end: float) -> bool:
    """The loop: from where the stage was saved to its last step, or until `end`. Whether it is done."""
    rank, world = processes()
    first = resume(out / f"{stage.name}.pt", stage, r)
    if rank or not first:
        torch.manual_seed(r.seed + 7919 * rank + first)  # other faces and other noise in each process
    bar = tqdm(
        range(first, stage.steps), initial=first, total=stage.steps, desc=f"{r.name}: {stage.name}", disable=rank > 0
    )
    for step in bar:
        for group in stage.optimizer.param_groups:
            group["lr"] = stage.rate(step)
        shown = stage.step(step)
        if step % 10 == 0:
            bar.set_postfix({key: f"{value.detach().mean():.3f}" for key, value in shown.items()})
        late = torch.tensor(float(time.monotonic() > end), device=stage.m.device)
        if world > 1:
            dist.broadcast(late, 0)  # all processes stop at the same step
        last = step + 1 == stage.steps
        if rank == 0 and ((step + 1) % r.evaluate_every == 0 or last or late):
            report = {"stage": stage.name, "step": step + 1, **stage.validate()}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
            bar.write(json.dumps(report))
            saved = {key: value.state_dict() for key, value in stage.state.items()}
            keep(out / f"{stage.name}.pt", saved | {"step": step + 1, "rng": torch.get_rng_state(), "digest": r.digest})
        if late and not last:
            return False
    return True


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    part = path.with_name(f".{path.name}")
    torch.save(content, part)
    part.replace(path)


def resume(path: Path, stage: Stage, r: Recipe) -> int:
    """Load the stage's checkpoint, if there is one; the step to go on with."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
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
    a = parser.parse_args(arguments)
    try:
        r = recipes.read(a.recipe)
        faces = data.join(data.load_set(a.data, name) for name in r.sets)
        faces = faces.where(data.training_rows(faces) | data.validation_rows(faces))
        train(r, faces, a.networks, a.out or Path("runs") / r.name, a.minutes)
        if dist.is_initialized():
            dist.destroy_process_group()
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
