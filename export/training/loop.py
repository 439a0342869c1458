"""The training loop: networks, data, then stage by stage, each from where it was saved to its last step.

A stage saves itself every `evaluate_every` steps, and goes on from there when started again.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.faces import DETECTOR
from export import checkpoint, data, providers
from export import recipe as recipes
from export.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, unpack
from export.errors import ExportError
from export.networks import Sanitizer, Unet
from export.providers import ChipDetector, Contract, Ensemble, Provider, Providers, read_contract
from export.recipe import Recipe
from export.resnet import DLIB, ResidualEncoder
from export.training import distributed
from export.training.batches import TrainingData, attribute, gather
from export.training.stages import Decode, Distill, Privatize, Stage, UnetGame

OLD_STAGES = {"distill": "read", "privatize": "hide", "decode": "paint", "unet": "play"}  # names of earlier versions


@dataclass(frozen=True)
class Options:
    """What a training needs beside its recipe and its faces.

    Attributes:
        networks: the folder of the providers' networks.
        out: the folder for checkpoints and the log.
        minutes: the training stops, saved, after so long.
        start: a model file or the folder of another training, to begin from; a stage of 0 steps is taken over from it.
        cache: where the teachers' targets are kept (None: in `out`); trainings on the same data can share it.
        contracts: input contracts of providers that no `providers.toml` describes, by name (`providers.read_contract`).
    """

    networks: Path
    out: Path
    minutes: float = float("inf")
    start: Path | None = None
    cache: Path | None = None
    contracts: dict[str, Contract] = field(default_factory=dict)


def train(r: Recipe, faces: data.Faces, options: Options) -> Sanitizer | Unet:
    """Run the stages that are not done yet; the finished training is also in `options.out`.

    Raises:
        ExportError: the data, the recipe, a provider's network, or `options.start` do not fit together.
    """
    rank, _ = distributed.join()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True  # shapes stay the same for thousands of steps
    torch.manual_seed(r.seed)
    nets = load_providers(r, faces, options, device)
    for folder in (options.out, options.cache or options.out):  # now, not after the teachers' work
        folder.mkdir(parents=True, exist_ok=True)
    training_data = gather(faces, r, nets, options.cache or options.out, device)
    deadline = time.monotonic() + 60 * options.minutes

    s: Sanitizer | Unet
    origin = Origin()
    if r.unet:
        s = Unet(r.stochastic)
    else:
        s = Sanitizer(training_data.features, recipes.shape(r))
        origin = begin(s, r, options)
    s.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    steps = 0
    for stage in stages(r, training_data, s, nets, origin):
        if not run(stage, r, options.out, deadline):
            return s.eval()
        steps += stage.steps
    if rank == 0:
        done = Checkpoint(
            sanitizer=s,
            recipe=r,
            classes=training_data.classes,
            prior=training_data.prior.tolist(),
            features=training_data.features,
            data_digest=faces.digest(),
            step=steps,
            started_from=origin.digest,
        )
        save_checkpoint(options.out, done)
    return s.eval()


def stages(
    r: Recipe, training_data: TrainingData, s: Sanitizer | Unet, nets: Providers, origin: "Origin"
) -> Iterator[Stage]:
    """Return the stages in their order; each is made when the one before it is done."""
    if isinstance(s, Unet):
        yield UnetGame(r, training_data, s, nets)
        return
    yield Distill(r, training_data, s, nets.utility)
    privatize = Privatize(r, training_data, s)
    if origin.readout:
        privatize.readout.load_state_dict(origin.readout)
    yield privatize
    privatize.readout.requires_grad_(False)
    s.privatizer.requires_grad_(bool(nets.frozen))
    yield Decode(r, training_data, s, privatize, nets)


def run(stage: Stage, r: Recipe, out: Path, deadline: float) -> bool:
    """Train a stage from where it was saved to its last step, or until the deadline; return whether it is done."""
    rank, _ = distributed.join()
    first = resume(out, stage, r)
    for part in stage.state.values():
        if isinstance(part, nn.Module):
            distributed.agree(part)
    if rank or not first:
        torch.manual_seed(r.seed + 7919 * rank + first)  # other faces and other noise in each process
    began = time.monotonic()
    title = f"{r.name}: {stage.name}"
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=title, disable=rank > 0)
    for step in bar:
        for group in stage.optimizer.param_groups:
            group["lr"] = stage.rate(step) * group.get("scale", 1.0)
        shown = stage.step(step)
        if step % 10 == 0:
            bar.set_postfix({key: f"{value.detach().mean():.3f}" for key, value in shown.items()})

        late = distributed.broadcast(time.monotonic() > deadline, stage.data.device)  # all stop at the same step
        last = step + 1 == stage.steps
        if rank == 0 and ((step + 1) % r.evaluate_every == 0 or last or late):
            seconds = round(time.monotonic() - began, 1)  # since this process took it up
            line = json.dumps({"stage": stage.name, "step": step + 1, "seconds": seconds, **stage.validate()})
            with (out / "log.jsonl").open("a") as log:
                log.write(line + "\n")
            bar.write(line)
            state = {key: part.state_dict() for key, part in stage.state.items()}
            progress = {"step": step + 1, "rng": torch.get_rng_state(), "digest": r.digest}
            checkpoint.save(out / f"{stage.name}.pt", state | progress)
        if late and not last:
            return False
    return True


def resume(out: Path, stage: Stage, r: Recipe) -> int:
    """Load the stage's checkpoint, if there is one; return the step to go on with.

    Raises:
        ExportError: another recipe or an earlier version of this program made it.
    """
    old, path = out / f"{OLD_STAGES[stage.name]}.pt", out / f"{stage.name}.pt"
    if old.exists():
        raise ExportError(
            f"{old} is of an earlier version, whose stage {old.stem!r} is now {stage.name!r}: choose another --out, "
            "or remove it to start again"
        )
    if not path.exists():
        return 0
    saved = checkpoint.load(path)
    if saved["digest"] != r.digest:
        raise ExportError(f"{path} was made by another recipe; choose another --out, or remove it to start again")
    for name, part in stage.state.items():
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"])
    return int(saved["step"])


def load_providers(r: Recipe, faces: data.Faces, options: Options, device: torch.device) -> Providers:
    """Read the providers' networks, and check that they fit these faces.

    Raises:
        NetworkError: one of them does not.
    """
    teachers, frozen = (
        [Provider(n, options.networks, options.contracts.get(n)).eval().requires_grad_(False) for n in names]
        for names in (r.utility, r.frozen)
    )
    detector = ChipDetector(DETECTOR).to(device).eval().requires_grad_(False)
    for net in teachers:
        providers.validate(net, faces.chips[:4])
    for net in frozen:
        providers.validate(net, faces.chips[:4], attribute(faces, r.private, r.private_bins)[1])
    for net in (*teachers, *frozen):
        net.to(device)
    return Providers(Ensemble(teachers, faces.chips[:1]).to(device), frozen, detector)


@dataclass(frozen=True)
class Origin:
    """What a training began from: the digest of its file, and another training's readout, if there is one."""

    digest: str = ""
    readout: dict[str, Tensor] = field(default_factory=dict)


def begin(s: Sanitizer, r: Recipe, options: Options) -> Origin:
    """Give `s` the weights of a model file or of another training; without one, a residual encoder those of dlib's.

    Raises:
        ExportError: the recipe takes over a stage and there is nothing to take it from, or it has another shape.
        NetworkError: dlib's network is not among the providers'.
    """
    start = options.start
    taken = [stage for stage in ("distill", "privatize", "decode") if not getattr(r, f"{stage}_steps")]
    if start is None:
        if taken:
            raise ExportError(f"{taken[0]}_steps = 0 takes that stage over from another model: say which with --from")
        if isinstance(s.encoder, ResidualEncoder):
            s.encoder.begin(read_contract(DLIB, options.networks).file)
        return Origin()
    beside = start.with_suffix(".readout.pt")  # what a training's privatize.pt holds, without the rest
    weights, readout = (start / checkpoint.FILE, start / "privatize.pt") if start.is_dir() else (start, beside)
    other = load_checkpoint(start).sanitizer if start.is_dir() else unpack(start)
    own, kept = ({k: v for k, v in net.state_dict().items() if k.split(".")[0] not in r.anew} for net in (s, other))
    mine, theirs = ({k: tuple(v.shape) for k, v in part.items()} for part in (own, kept))
    if mine != theirs:
        key = min(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        raise ExportError(
            f"{start} has another shape than this recipe: {key} is {theirs.get(key)}, not {mine.get(key)}"
        )
    s.load_state_dict(s.state_dict() | kept)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if readout.exists():
        return Origin(digest, checkpoint.load(readout)["readout"])
    if "privatize" in taken and "decode" not in taken:
        raise ExportError(
            f"{start} has no readout, which the decoder needs, and there is no {readout}: give privatize_steps, or a "
            "training's folder"
        )
    return Origin(digest)
