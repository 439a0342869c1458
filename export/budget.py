"""Where recognition is lost, stage by stage, on strangers: `python -m export.budget MODEL --data DIR --networks DIR`.

The stages are what a face passes: the encoder's description, the privatizer's noisy code, the picture in float32, the
picture of the int8 file, and the frame that leaves the device. The first two are numbers. A readout says what a matcher
could still see in them: a small network that maps them to the matcher's embedding of the raw face. It learns on people
of `identity_split = train`, and everything is measured on people of `test`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.model.load import Model, prepare
from export import data
from export.audit import attackers, device, mechanisms, metrics, tables
from export.audit.attackers import Chips
from export.audit.cells import Store
from export.audit.claims import graph_digest
from export.audit.command import conclude, errors_as_lines
from export.audit.report import from_json
from export.checkpoint import unpack
from export.errors import ExportError
from export.networks import Sanitizer, unshuffle
from export.providers import Provider

SETS = ("lfw", "glint", "pins", "celeba")  # those that know who somebody is
MATCHERS = ("id_mobilefacenet_paddle", "id_mobilefacenet_b", "id_dlib_resnet")
FALSE_ACCEPTS = 1e-2
BATCH, STEPS, TEMPERATURE = 256, 1500, 0.07  # of a readout
RAW, ENCODER, CODE, FLOAT, INT8, DEVICE = "raw", "encoder", "code", "picture, float32", "picture, int8", "device"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    learn: int = 4000  # pictures of `train` people that the readouts learn on
    photos: int = 5  # of each stranger, at most
    draws: int = 5  # of the noise, over which the figures are averaged
    people: int | None = None  # strangers, at most


@dataclass(frozen=True)
class Recognition:
    """What one matcher recognises at one stage: shares, averaged over draws of the noise."""

    tar_raw: float  # verified at a false accept rate of 1 %, against raw pictures
    tar_sanitized: float  # the same, against sanitized pictures
    household: float  # the person is named among eight, of each of whom three sanitized pictures are enrolled


@dataclass(frozen=True)
class Stage:
    """One line of the budget."""

    name: str
    matchers: dict[str, Recognition]
    alpha: float | None = None  # None: the dial has no effect yet


@dataclass(frozen=True)
class Budget:
    """The budget of one model."""

    model: str
    version: int
    plan: Plan
    people: int
    pictures: int
    stages: list[Stage]


@dataclass(frozen=True)
class People:
    """Chips with their people."""

    chips: Chips
    person: NDArray[np.int64]


def chosen(folder: Path, plan: Plan) -> tuple[People, People]:
    """Return the pictures that readouts learn on, and the strangers, each with at least two pictures.

    Raises:
        DataError: a set is missing or broken.
    """
    everyone = data.join(data.load_set(folder, name) for name in SETS)
    person, _ = everyone.labels("identity")
    split = everyone["identity_split"]
    order = np.random.default_rng(0).permutation(len(everyone))
    learn = order[(split == "train")[order] & (person >= 0)[order]][: plan.learn]
    strangers: dict[int, list[int]] = {}
    for i in order.tolist():
        if split[i] == "test" and person[i] >= 0 and len(strangers.setdefault(int(person[i]), [])) < plan.photos:
            strangers[int(person[i])].append(i)
    kept = sorted((who for who in strangers.values() if len(who) > 1), key=len, reverse=True)[: plan.people]
    rows = np.array([i for who in kept for i in who])
    return People(everyone.chips[learn], person[learn]), People(everyone.chips[rows], person[rows])


class Readout(nn.Module):
    """What a matcher could see in numbers [N, K]: a linear map beside one hidden layer, to a unit embedding [N, D]."""

    def __init__(self, numbers: Tensor, features: int, hidden: int = 384) -> None:
        """Take the scale of the numbers from a sample of them [M, K]."""
        super().__init__()
        self.mean, self.scale = numbers.mean(0), numbers.std(0).clamp(min=1e-3)
        self.linear = nn.Linear(numbers.shape[1], features)
        self.hidden = nn.Sequential(nn.Linear(numbers.shape[1], hidden), nn.GELU(), nn.Linear(hidden, features))

    def forward(self, numbers: Tensor) -> Tensor:
        """Run the network."""
        x = (numbers - self.mean) / self.scale
        return F.normalize(self.linear(x) + self.hidden(x))


def learned(numbers: Tensor, goal: Tensor, noise: float) -> Readout:
    """Train a readout: like the raw face's embedding, and unlike those of the batch's others (InfoNCE, Oord 2018).

    Args:
        numbers: of the training pictures [N, K], without noise.
        goal: the matcher's unit embeddings of the raw faces [N, D].
        noise: standard deviation of the noise, drawn anew in each step.
    """
    torch.manual_seed(0)
    net = Readout(numbers, goal.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS + 1)
    for _ in range(STEPS):
        rows = torch.randint(len(numbers), (min(BATCH, len(numbers)),))
        x = numbers[rows]
        found = net(x + noise * torch.randn_like(x))
        similarity = found @ goal[rows].T
        loss = F.cross_entropy(similarity / TEMPERATURE, torch.arange(len(rows))) + (1 - similarity.diagonal()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def described(net: Sanitizer, chips: Chips) -> Tensor:
    """Return the encoder's descriptions [N, features + 15]."""
    parts = (unshuffle(attackers.pictures(chips[i : i + 64])).cpu() for i in range(0, len(chips), 64))
    return torch.cat([net.encoder(part)[..., 0, 0] for part in parts])


@dataclass(frozen=True)
class Measurement:
    """What the stages of one model are measured with."""

    model: Model
    path: Path
    store: Store
    plan: Plan
    learn: People
    strangers: People
    matchers: dict[str, Provider]

    def embedded(self, name: str, part: str, chips: Chips, *depends: object) -> Tensor:
        """Return a matcher's embeddings of chips, kept."""
        compute = partial(attackers.outputs, self.matchers[name], chips, f"{name} of {part}")
        kept: Tensor = self.store.tensors(f"{part}, {name}", compute, *depends)
        return kept

    def raw(self, name: str) -> Tensor:
        """Return a matcher's embeddings of the raw strangers."""
        return self.embedded(name, "raw strangers", self.strangers.chips)

    def recognised(self, name: str, draws: Sequence[Tensor]) -> Recognition:
        """Measure one matcher on draws of the strangers' embeddings."""
        raw, person = self.raw(name), self.strangers.person
        rate = f"{FALSE_ACCEPTS:g}"
        shares = [
            (
                metrics.tar_at_far(seen, raw, person, (FALSE_ACCEPTS,))[rate],
                metrics.tar_at_far(seen, seen, person, (FALSE_ACCEPTS,))[rate],
                metrics.household(seen, person),
            )
            for seen in draws
        ]
        return Recognition(*(round(float(share), 4) for share in np.mean(shares, axis=0)))

    def stages(self, alphas: Sequence[float]) -> Iterator[Stage]:
        """Measure all stages, in the order in which a face passes them."""
        yield Stage(RAW, {name: self.recognised(name, [self.raw(name)]) for name in self.matchers})
        net = unpack(self.path)
        learn, strangers = described(net, self.learn.chips), described(net, self.strangers.chips)
        yield self.numbers(ENCODER, None, learn, strangers, 0)
        for alpha in alphas:
            kept, shown = (net.privatize(d, None, torch.full((len(d), 1), alpha)).detach() for d in (learn, strangers))
            yield self.numbers(CODE, alpha, kept, shown, net.noise * alpha if net.noise_dim else 0)
        for alpha in alphas:
            yield self.pictures(FLOAT, alpha)
            yield self.pictures(INT8, alpha)
            yield self.pictures(DEVICE, alpha)

    def numbers(self, stage: str, alpha: float | None, learn: Tensor, strangers: Tensor, noise: float) -> Stage:
        """Measure a stage whose faces are numbers, by a readout for each matcher."""
        found = {}
        for name in tqdm(self.matchers, desc=stage, leave=False):
            net = learned(learn, self.embedded(name, "raw people to learn on", self.learn.chips), noise)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                draws = [
                    net(strangers + noise * torch.randn(strangers.shape, generator=generator))
                    for _ in range(self.plan.draws if noise else 1)
                ]
            found[name] = self.recognised(name, draws)
        return Stage(stage, found, alpha)

    def pictures(self, stage: str, alpha: float) -> Stage:
        """Measure a stage whose faces are pictures."""
        seeds = range(self.plan.draws if alpha and self.model.noise_dimensions else 1)
        draws: dict[str, list[Tensor]] = {name: [] for name in self.matchers}
        for seed in seeds:
            chips, found = self.drawn(stage, alpha, seed)
            for name, seen in draws.items():
                depends = graph_digest(self.path), alpha, seed
                embedded = self.embedded(name, stage, chips, *depends)
                seen.append(embedded * torch.from_numpy(found)[:, None])  # what is not found is like nobody
        return Stage(stage, {name: self.recognised(name, seen) for name, seen in draws.items()}, alpha)

    def drawn(self, stage: str, alpha: float, seed: int) -> tuple[Chips, NDArray[np.bool_]]:
        """Return the strangers as pictures of a stage, and where a provider finds a face in them."""
        chips = self.strangers.chips
        if stage == DEVICE:
            sent, graph = device.Labelled("strangers", chips, np.ones(len(chips), np.bool_)), graph_digest(self.path)
            seen = device.seen(device.sending_frames(self.store, self.model, sent, alpha, seed, graph, alpha))
            return seen.chips, seen.found
        make = mechanisms.trained(self.path, alpha) if stage == FLOAT else mechanisms.sanitizer(self.model, alpha)
        everywhere = np.ones(len(chips), np.bool_)
        return device.jpeg(make.apply(chips, everywhere, seed)), everywhere


def measured(path: Path, folder: Path, networks: Path, work: Path, plan: Plan) -> Budget:
    """Measure the budget of a model file at alpha 0, at its default, and at 1.

    Raises:
        ExportError: a set, a network or the model is missing or broken.
    """
    model = prepare(path, path.read_bytes(), threads=1)
    learn, strangers = chosen(folder, plan)
    if len(np.unique(strangers.person)) < 8:
        raise ExportError("fewer than eight strangers with two pictures: a household is eight people")
    store = Store(work, None, {}, graph_digest(path), plan)
    providers = {name: Provider(name, networks).eval().requires_grad_(False) for name in MATCHERS}
    measurement = Measurement(model, path, store, plan, learn, strangers, providers)
    alphas = sorted({0.0, model.metadata.alpha_default, 1.0})
    cell = store.figure("budget", lambda: [*measurement.stages(alphas)])
    stages = from_json(list[Stage], cell.value())
    about, people = model.metadata, len(np.unique(strangers.person))
    return Budget(about.name, about.version, plan, people, len(strangers.chips), stages)


def table(budget: Budget) -> str:
    """Return the budget as Markdown: of each matcher TAR against raw and sanitized pictures, and the household."""
    about = (
        f"{budget.model} v{budget.version}: {budget.people} strangers, {budget.pictures} pictures, {budget.plan.draws} "
        "draws of the noise. In each cell: % verified at 1 % false accepts against raw pictures / against sanitized "
        "pictures / % named in a household of eight"
    )
    lines = [about, "", *tables.head(("stage", "alpha", *MATCHERS))]
    for stage in budget.stages:
        shown = (
            " / ".join(tables.percent(share) for share in (r.tar_raw, r.tar_sanitized, r.household))
            for r in (stage.matchers[name] for name in MATCHERS)
        )
        lines.append(tables.line((stage.name, "" if stage.alpha is None else f"{stage.alpha:g}", *shown)))
    return "\n".join(lines)


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Measure where recognition is lost, and print it as a table."""
    p = argparse.ArgumentParser(
        prog="python -m export.budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("model", type=Path, help="an edgesan .onnx file")
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--networks", type=Path, required=True, help="folder of the matchers' ONNX networks")
    p.add_argument(
        "--work",
        type=Path,
        default=Path("runs/budget"),
        help="for embeddings on the way: never to be published (default: %(default)s)",
    )
    p.add_argument("--learn", type=int, default=Plan.learn, help="pictures to learn on (default: %(default)s)")
    p.add_argument("--people", type=int, help="strangers, at most (default: all)")
    p.add_argument("--draws", type=int, default=Plan.draws, help="of the noise (default: %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the budget there")
    a = p.parse_args(arguments)
    plan = Plan(learn=a.learn, draws=a.draws, people=a.people)
    budget = measured(a.model, a.data, a.networks, a.work, plan)
    conclude(budget, table(budget), a.json)


if __name__ == "__main__":
    sys.exit(main())
