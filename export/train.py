"""Train a sanitizer: `python -m export.train RECIPE --data DIR --networks DIR --out runs/NAME`.

One visible loop. It saves itself every `evaluate_every` steps and goes on from there when started again. On several
devices, `torchrun --nproc-per-node N -m export.train ...` shares each batch among N processes.
"""

import argparse
import copy
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.faces import DETECTOR
from export import data, losses
from export import recipe as recipes
from export.errors import DataError, ExportError
from export.networks import Attacker, Finder, Probe, Provider, Sanitizer
from export.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """What a training looks at, as tensors on its device."""

    chips: Tensor  # uint8 [N, 3, 112, 112]
    private: Tensor  # int64 [N], -1 where unknown
    classes: list[str]  # of the private attribute
    prior: Tensor  # P(p) [K], from the training rows
    embeddings: Tensor  # [N, D] of the raw chips, by the utility network
    prototypes: Tensor  # [people, D]: the utility variable's classes
    train: Tensor  # int64, rows for training
    validation: Tensor  # int64, rows of other people


def gather(faces: data.Faces, r: Recipe, utility: Provider, out: Path, device: torch.device) -> Material:
    """Labels, prior, raw embeddings and the prototypes of the utility variable."""
    private, classes = faces.labels(r.private)
    train = np.flatnonzero(data.training_rows(faces) & (private >= 0))
    validation = np.flatnonzero(data.validation_rows(faces) & (private >= 0))
    if len(train) < r.batch or not len(validation):
        raise DataError(
            f"{len(train)} training and {len(validation)} validation pictures with a known {r.private}: "
            f"at least {r.batch} and 1 are needed"
        )
    validation = np.random.default_rng(0).permutation(validation)[:512]
    chips = torch.from_numpy(np.ascontiguousarray(faces.chips.transpose(0, 3, 1, 2)))
    embeddings = embed_all(utility, chips, device, out / f"embeddings-{r.utility}-{faces.digest()[:16]}.pt")
    people = faces["identity"][train]
    names, counts = np.unique(people[people != ""], return_counts=True)
    chosen = [train[people == name] for name in names[counts >= r.people_min]]
    if len(chosen) < 2:
        raise DataError(f"fewer than two people with {r.people_min} training pictures: nothing to recognise")
    prototypes = F.normalize(torch.stack([embeddings[rows].mean(0) for rows in chosen]))
    prior = torch.from_numpy(np.bincount(private[train], minlength=len(classes)) / len(train)).float()
    return Material(
        chips.to(device),
        torch.from_numpy(private).to(device),
        classes,
        prior.to(device),
        embeddings.to(device),
        prototypes.to(device),
        torch.from_numpy(train),
        torch.from_numpy(validation),
    )


@torch.no_grad()
def embed_all(utility: Provider, chips: Tensor, device: torch.device, cache: Path) -> Tensor:
    """The raw embeddings [N, D], computed once per data set and kept beside the checkpoints."""
    if cache.exists():
        saved: Tensor = torch.load(cache, weights_only=True)
        return saved
    parts = [utility(part.to(device).float() / 255).cpu() for part in tqdm(chips.split(64), desc="raw embeddings")]
    torch.save(torch.cat(parts), cache)
    return torch.cat(parts)


def dial(r: Recipe, n: int, device: torch.device) -> Tensor:
    """alpha [n, 1]: `alpha_focus` of them at the default, the others anywhere in 0..1."""
    anywhere = torch.rand(n, 1, device=device)
    return torch.where(
        torch.rand(n, 1, device=device) < r.alpha_focus, torch.full_like(anywhere, r.alpha_default), anywhere
    )


class Replay:
    """The last sanitized pictures, for the attackers to learn from: a ring of fixed size."""

    def __init__(self, size: int, features: int, device: torch.device) -> None:
        self.pictures = torch.zeros(size, 3, 112, 112, dtype=torch.uint8, device=device)
        self.embeddings = torch.zeros(size, features, device=device)
        self.alpha = torch.zeros(size, 1, device=device)
        self.truth = torch.zeros(size, dtype=torch.int64, device=device)
        self.at, self.filled = 0, 0

    def push(self, pictures: Tensor, embeddings: Tensor, alpha: Tensor, truth: Tensor) -> None:
        size = len(self.truth)
        rows = (torch.arange(len(truth), device=truth.device) + self.at) % size
        self.pictures[rows] = (pictures * 255).round().to(torch.uint8)
        self.embeddings[rows], self.alpha[rows], self.truth[rows] = embeddings, alpha, truth
        self.at, self.filled = (self.at + len(truth)) % size, min(size, self.filled + len(truth))

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.randint(self.filled, (n,), device=self.truth.device)
        return self.pictures[rows].float() / 255, self.embeddings[rows], self.alpha[rows], self.truth[rows]


class Opponents(nn.Module):
    """The attackers that train in turn with S: convolutional ones on pixels, and a probe on the utility's embedding."""

    def __init__(self, r: Recipe, classes: int, features: int) -> None:
        super().__init__()
        self.makers = [lambda stem=stem: Attacker(classes, stem) for stem in r.attackers]
        if r.probe:
            self.makers.append(lambda: Probe(classes, features))
        self.nets = nn.ModuleList(make() for make in self.makers)

    def logits(self, pictures: Tensor, embeddings: Tensor, alpha: Tensor) -> list[Tensor]:
        """One tensor [N, classes] per attacker."""
        return [net(embeddings if isinstance(net, Probe) else pictures, alpha).float() for net in self.nets]


def processes() -> tuple[int, int]:
    """This process's number and how many there are: what torchrun says, else 0 of 1."""
    if "RANK" not in os.environ:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def average_gradients(net: nn.Module, world: int) -> None:
    """Make a network's gradients the mean over all processes: one batch, spread over them."""
    for p in net.parameters() if world > 1 else ():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= world


def train(
    r: Recipe, faces: data.Faces, networks: Path, out: Path, minutes: float = float("inf"), until: int | None = None
) -> Sanitizer:
    """Run the loop to its end, for `minutes`, or `until` a step; the result is the running mean of the weights, also in `out`."""
    rank, world = processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(r.seed)
    utility = Provider(r.utility, networks).to(device).eval().requires_grad_(False)
    frozen = [Provider(name, networks).to(device).eval().requires_grad_(False) for name in r.frozen]
    finder = Finder(DETECTOR).to(device).eval().requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    if rank:
        dist.barrier()  # the first process computes the raw embeddings, the others read them
    m = gather(faces, r, utility, out, device)
    if world > 1 and not rank:
        dist.barrier()
    order = [[m.classes.index(c) for c in net.classes] for net in frozen]

    sanitizer = Sanitizer(r.width, r.depth, r.code, r.noise, r.stochastic).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(sanitizer).requires_grad_(False)
    opponents = Opponents(r, len(m.classes), m.prototypes.shape[1]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(sanitizer.parameters(), r.lr, weight_decay=1e-4)
    optimizer_p = [torch.optim.AdamW(net.parameters(), r.attacker_lr, weight_decay=1e-3) for net in opponents.nets]
    replay = Replay(r.replay, m.prototypes.shape[1], device)
    state = {"sanitizer": sanitizer, "average": average, "opponents": opponents, "optimizer": optimizer}
    state |= {f"optimizer_p{i}": o for i, o in enumerate(optimizer_p)}
    if r.start:
        begin(out.parent / r.start, state)
    first = resume(out, state, r)
    if rank or not first:
        torch.manual_seed(r.seed + 7919 * rank + first)  # other faces and other noise in each process
    if first == 0 and not r.start:
        warm_up(opponents, optimizer_p, m, r, device, world)
    veteran = copy.deepcopy(opponents)  # what a renewed attacker begins from
    started = time.monotonic()

    last = r.steps if until is None else min(until, r.steps)
    bar = tqdm(range(first, last), initial=first, total=r.steps, desc=r.name, disable=rank > 0)
    for step in bar:
        # first a face (half of the warm-up), then a recognisable one, then the game, which comes in as slowly
        start = min(1.0, max(0.0, 2 * step / max(1, r.warm_up) - 1))
        warm, eager = step < r.warm_up, min(1.0, max(0.0, 2 * step / max(1, r.warm_up) - 2))
        lr = r.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / r.steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr

        # a batch of raw faces x, half of them mirrored; each is there twice, for two draws of S
        half = max(1, r.batch // 2 // world)
        rows = m.train[torch.randint(len(m.train), (half,))].to(device).repeat(2)
        x, truth = m.chips[rows].float() / 255, m.private[rows]
        mirrored = (torch.rand(half, 1, 1, 1, device=device) < 0.5).repeat(2, 1, 1, 1)
        x = torch.where(mirrored, x.flip(3), x).contiguous(memory_format=torch.channels_last)
        # noise comes in slowly: drowned in it from the start, the code would carry nothing, and never learn to
        alpha, z = dial(r, half, device).repeat(2, 1), torch.randn(2 * half, sanitizer.noise_dim, device=device)
        z = z * min(1.0, step / max(1, r.warm_up))

        # Loss_S: the utility's posterior stays where the dial allows it, every opponent's goes to the prior, and a
        # detector still finds the face
        opponents.requires_grad_(False)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            y = sanitizer(x, z, alpha).float()
            embedding = utility(y) if start else m.embeddings[rows]
            verdicts = [] if warm else opponents.logits(y, embedding, alpha)
            verdicts += [] if warm else [net(y).float()[:, order[i]] for i, net in enumerate(frozen)]
            lost = losses.finding_loss(finder(x), finder(y))
        raw_embedding = m.embeddings[rows]
        u = losses.utility_loss(
            r.cosine_scale * raw_embedding @ m.prototypes.T, r.cosine_scale * embedding @ m.prototypes.T
        )
        share = losses.likeness(alpha[:half], r.spread, embedding.shape[1])
        channel = losses.channel_loss(raw_embedding[:half], *embedding.chunk(2), share).repeat(2)
        p = (
            torch.stack([losses.privacy_loss(m.prior, v) for v in verdicts]).mean(0)
            if verdicts
            else torch.zeros_like(u)
        )
        distance = (y - x).abs().mean((1, 2, 3))
        loss = start * (losses.sanitizer_loss(u, eager * p, alpha) + r.match * channel + r.detect * lost)
        loss = loss + r.reconstruct * distance
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        average_gradients(sanitizer, world)
        norm = nn.utils.clip_grad_norm_(sanitizer.parameters(), 1.0)
        optimizer.step()
        sanitizer.renormalise()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), sanitizer.parameters(), strict=True):
                mean.lerp_(now, 1 - min(r.average, (step + 1) / (step + 10)))
        average.renormalise()

        # Loss_P: the opponents learn from what S has made lately, and stay right on raw pictures
        opponents.requires_grad_(True)
        replay.push(y.detach(), embedding.detach(), alpha, truth)
        if r.renew_every and optimizer_p and step > r.warm_up and step % r.renew_every == 0:
            which = (step // r.renew_every) % len(optimizer_p)
            opponents.nets[which].load_state_dict(veteran.nets[which].state_dict())
            optimizer_p[which].state.clear()
        loss_p = torch.zeros(len(opponents.nets))
        for _ in range(r.attacker_steps if len(opponents.nets) else 0):
            pictures, embeddings, dials, labels = replay.draw(max(1, r.attacker_batch // world))
            pictures = torch.where(torch.rand(len(labels), 1, 1, 1, device=device) < 0.5, pictures.flip(3), pictures)
            raw = m.train[torch.randint(len(m.train), (max(1, r.attacker_batch // 4 // world),))].to(device)
            zeros = torch.zeros(len(raw), 1, device=device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                on_sanitized = opponents.logits(pictures, embeddings, dials)
                on_raw = opponents.logits(m.chips[raw].float() / 255, m.embeddings[raw], zeros)
            each = [
                losses.attacker_loss(s, q, labels, m.private[raw]) for s, q in zip(on_sanitized, on_raw, strict=True)
            ]
            for o in optimizer_p:
                o.zero_grad(set_to_none=True)
            loss_p = torch.stack(each)
            loss_p.sum().backward()
            average_gradients(opponents, world)
            for o in optimizer_p:
                o.step()

        if step % 10 == 0:
            bar.set_postfix(
                u=f"{u.mean():.2f}",
                channel=f"{channel.mean():.2f}",
                lost=f"{lost.mean():.2f}",
                p=f"{p.mean():.3f}",
                l1=f"{distance.mean():.3f}",
                norm=f"{norm:.1f}",
                attackers=" ".join(f"{v:.2f}" for v in loss_p.tolist()),
            )
        late = torch.tensor(float(time.monotonic() - started > 60 * minutes), device=device)
        if world > 1:
            dist.broadcast(late, 0)  # all processes stop at the same step
        over = bool(late)
        if rank == 0 and ((step + 1) % r.evaluate_every == 0 or step + 1 == last or over):
            report = {
                "step": step + 1,
                "loss_p": [round(v, 3) for v in loss_p.tolist()],
                **validate(average, finder, utility, frozen, order, opponents, m, r, device),
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
            bar.write(json.dumps(report))
            save(out, state, r, step + 1, m, faces)
        if over:
            break
    return average


def warm_up(
    opponents: Opponents,
    optimizers: list[torch.optim.Optimizer],
    m: Material,
    r: Recipe,
    device: torch.device,
    world: int,
) -> None:
    """Teach the attackers raw faces first: an opponent that knows what it looks for is a strong one from the start."""
    for step in tqdm(range(r.attacker_warm_up if optimizers else 0), desc="attackers on raw faces"):
        rows = m.train[torch.randint(len(m.train), (max(1, r.attacker_batch // world),))].to(device)
        pictures = m.chips[rows].float() / 255
        pictures = torch.where(torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, pictures.flip(3), pictures)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            verdicts = opponents.logits(pictures, m.embeddings[rows], torch.rand(len(rows), 1, device=device))
        loss = torch.stack([F.cross_entropy(v, m.private[rows]) for v in verdicts]).sum()
        for o in optimizers:
            o.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(opponents, world)
        for o in optimizers:
            o.step()
        if step % 100 == 0:
            tqdm.write(f"attackers on raw faces, step {step}: {loss / len(optimizers):.3f} nats each")


@torch.no_grad()
def validate(
    s: Sanitizer,
    finder: Finder,
    utility: Provider,
    frozen: list[Provider],
    order: list[list[int]],
    opponents: Opponents,
    m: Material,
    r: Recipe,
    device: torch.device,
) -> dict[str, Any]:
    """On people whom S has not seen, at three alphas: cosine of the sanitized embedding to the raw one and to another
    draw's, what the detector lost, and each attacker's accuracy."""
    result: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for a in (0.0, r.alpha_default, 1.0):
        cosines, alike, missed, hits, moved = [], [], [], [], []
        for rows in m.validation.to(device).split(64):
            x = m.chips[rows].float() / 255
            alpha = torch.full((len(rows), 1), a, device=device)
            z, other = torch.randn(2, len(rows), s.noise_dim, generator=generator).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                y = s(x, z, alpha).float()
                e = utility(y)
                alike.append((e * utility(s(x, other, alpha).float())).sum(1))
                verdicts = opponents.logits(y, e, alpha) + [n(y)[:, order[i]] for i, n in enumerate(frozen)]
                missed.append(losses.finding_loss(finder(x), finder(y)))
            cosines.append((e * m.embeddings[rows]).sum(1))
            moved.append((y - x).abs().mean((1, 2, 3)))
            hits.append(
                torch.stack([v.argmax(1) == m.private[rows] for v in verdicts], 1)
                if verdicts
                else torch.zeros(len(rows), 0)
            )
        result[f"alpha {a:g}"] = {
            "cosine": round(torch.cat(cosines).mean().item(), 3),
            "alike": round(torch.cat(alike).mean().item(), 3),
            "lost": round(torch.cat(missed).mean().item(), 3),
            "l1": round(torch.cat(moved).mean().item(), 3),
            "attackers": [round(v, 3) for v in torch.cat(hits).float().mean(0).tolist()],
        }
    return result


def save(out: Path, state: dict[str, Any], r: Recipe, step: int, m: Material, faces: data.Faces) -> None:
    """The checkpoint to go on from, and the sanitizer with all that `export.compile` needs; each written whole or not."""
    files = {
        "checkpoint.pt": {k: v.state_dict() for k, v in state.items()}
        | {"step": step, "rng": torch.get_rng_state(), "digest": r.digest},
        "sanitizer.pt": {
            "weights": state["average"].state_dict(),
            "recipe": asdict(r),
            "classes": m.classes,
            "prior": m.prior.tolist(),
            "data_digest": faces.digest(),
            "step": step,
        },
    }
    for name, content in files.items():
        torch.save(content, out / f".{name}")
        (out / f".{name}").replace(out / name)


def begin(path: Path, state: dict[str, Any]) -> None:
    """Take another run's sanitizer and opponents.

    Raises:
        ExportError: there is no such run, or its networks have other shapes.
    """
    if not (path / "checkpoint.pt").exists():
        raise ExportError(f"the recipe starts from {path}, which holds no checkpoint.pt: train that recipe first")
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    try:
        state["sanitizer"].load_state_dict(saved["average"])
        state["average"].load_state_dict(saved["average"])
        state["opponents"].load_state_dict(saved["opponents"])
    except RuntimeError as error:
        raise ExportError(f"the run {path} has networks of other shapes than this recipe: {error}") from error


def resume(out: Path, state: dict[str, Any], r: Recipe) -> int:
    """Load the checkpoint in `out`, if there is one; the step to go on with."""
    path = out / "checkpoint.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    if saved["digest"] != r.digest:
        raise ExportError(f"{path} was made by another recipe; choose another --out, or remove it to start again")
    for name, part in state.items():
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
    parser.add_argument("--until", type=int, help="stop, saved, after this step (the schedule stays the recipe's)")
    a = parser.parse_args(arguments)
    try:
        r = recipes.read(a.recipe)
        faces = data.join(data.load_set(a.data, name) for name in r.sets)
        faces = faces.where(data.training_rows(faces) | data.validation_rows(faces))
        train(r, faces, a.networks, a.out or Path("runs") / r.name, a.minutes, a.until)
        if dist.is_initialized():
            dist.destroy_process_group()
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
