"""The stages of a training. Each learns from one batch at a time, and measures itself on people it does not know.

`Distill`: the encoder learns to describe a face as the provider's network and a detector do. `Privatize`: the game of
Loss_S and Loss_P, on those descriptions alone. `Decode`: a face is drawn from what is left. `UnetGame` is the baseline,
one stage on pictures.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesan.canvas import PLAIN
from edgesan.render import OPACITY
from export.networks import LANDMARKS, LIGHTING, Attacker, Critic, Sanitizer, Unet, half, perceptron, rounded, unshuffle
from export.providers import Ensemble, Provider, Providers
from export.recipe import Recipe
from export.resnet import ResidualEncoder
from export.training import distributed, losses
from export.training.batches import BATCH, TrainingData, augment, encode, warp
from export.training.pairs import Pairs

Figures = dict[str, float | list[float]]
Validation = dict[str, float | Figures]  # a line of the log: figures, or figures by alpha
Losses = dict[str, Tensor]  # by name, one value per picture
MEASURED = 128  # drawn faces on which the decoder measures itself
HEAD_PACE = 10.0  # a new head learns so many times as fast as the layers that begin from another network


class Stage:
    """A part of the training: `optimizer` moves `learner`; all of `state` is saved."""

    name: ClassVar[str]

    def __init__(self, r: Recipe, data: TrainingData, sanitizer: nn.Module, learner: nn.Module) -> None:
        """Read the stage's steps, learning rate and batch from the recipe, by its name."""
        self.r, self.data, self.learner = r, data, learner
        self.steps: int = getattr(r, f"{self.name}_steps")
        self.lr: float = getattr(r, f"{self.name}_lr")
        self.batch = max(2, distributed.share(getattr(r, f"{self.name}_batch")))
        self.optimizer = torch.optim.AdamW(learner.parameters(), self.lr, weight_decay=r.weight_decay)
        self.state: dict[str, nn.Module | torch.optim.Optimizer] = {"sanitizer": sanitizer, "optimizer": self.optimizer}

    def rate(self, step: int) -> float:
        """Return the learning rate: up in 100 steps (a tenth of a short stage), down along a cosine."""
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(1.0, (step + 1) / min(100, 1 + self.steps // 10)) * decay

    def step(self, step: int) -> dict[str, Tensor]:
        """Learn from one batch; return losses to show, each a value or one per picture."""
        raise NotImplementedError

    def validate(self) -> Validation:
        """Measure it on people from whom nothing was learned."""
        raise NotImplementedError

    def alphas(self) -> tuple[float, float, float]:
        """Return the alphas at which a stage measures itself."""
        return 0.0, self.r.alpha_default, 1.0


class Distill(Stage):
    """The encoder becomes the student of the provider's network and of a detector.

    Beside known pictures, whose targets the teachers set once, each step makes `distill_augmented` new ones. Either
    some of them are two blended faces, and the provider's network is asked about them (Beyer et al., "Knowledge
    distillation: a good teacher is patient and consistent", 2022): so a student of few pictures learns the function,
    not the pictures. Or they keep the targets of their pictures, which costs nothing, and the student learns that a
    face stays the same however it is taken.
    """

    name = "distill"

    def __init__(self, r: Recipe, data: TrainingData, s: Sanitizer, utility: Ensemble) -> None:
        super().__init__(r, data, s, s.encoder)
        self.s, self.utility, self.augmented = s, utility, distributed.share(r.distill_augmented)
        if isinstance(s.encoder, ResidualEncoder):  # its head begins at random, the rest does not
            head, rest = s.encoder.head, [p for name, p in s.encoder.named_parameters() if not name.startswith("head.")]
            groups: list[dict[str, Any]] = [{"params": rest}, {"params": [*head.parameters()], "scale": HEAD_PACE}]
            self.optimizer = torch.optim.AdamW(groups, self.lr, weight_decay=r.weight_decay)
            self.state["optimizer"] = self.optimizer

    def losses(self, views: Tensor, rows: Tensor, new: Tensor | None = None, goal: Tensor | None = None) -> Losses:
        """Return losses per picture, known pictures first; `appearance` (landmarks, lighting) of known ones alone.

        Args:
            views: of known pictures [n].
            rows: of known pictures [n].
            new: others [m, 3, 112, 112].
            goal: their targets [m, D]; None to ask the provider's network.
        """
        x, targets, d = self.data.faces.pictures(views, rows), self.data.targets[views, rows], self.data.features
        goals = targets[:, :d]
        with half(self.data.device):
            if new is not None:
                if goal is None:
                    with torch.no_grad():
                        goal = self.utility(new).float()
                goals, x = torch.cat([goals, goal]), torch.cat([x, new])
            descriptions = self.s.encoder(unshuffle(x))[..., 0, 0].float()
        embedding = F.normalize(descriptions[:, :d])
        return {
            "cosine": (embedding * goals).sum(1),
            "u": losses.utility_loss(self.data.service(goals), self.data.service(embedding)),
            "appearance": (descriptions[: len(rows), d:] - targets[:, d:]).square().mean(1),
        }

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw n views and n training rows."""
        return torch.randint(self.r.views, (n,)), self.data.draw_rows(n)

    def step(self, step: int) -> dict[str, Tensor]:
        """Learn from one batch of known and new pictures."""
        self.s.encoder.train()
        new = goal = None
        if self.augmented and self.r.augmented_targets == "picture":
            views, rows = self.draw(self.augmented)
            new, goal = augment(self.data.faces.pictures(views, rows)), self.data.targets[views, rows]
            goal = goal[:, : self.data.features]
        elif self.augmented:
            first, second = (augment(self.data.faces.pictures(*self.draw(self.augmented))) for _ in range(2))
            # less and less of the second: the normalisation layers end with the statistics of single faces
            part = (1 - step / self.steps) * torch.rand(self.augmented, 1, 1, 1, device=first.device)
            new = first + part * (second - first)
        each = self.losses(*self.draw(self.batch), new, goal)
        loss = (4 * (1 - each["cosine"]) + each["u"]).mean() + 0.6 * each["appearance"].mean()
        backward_and_step(loss, self.learner, self.optimizer)
        return each

    @torch.no_grad()
    def validate(self) -> Validation:
        """Measure descriptions against the teachers' targets."""
        self.s.encoder.eval()
        parts = [self.losses(torch.zeros_like(rows), rows) for rows in self.data.validation.split(BATCH)]
        return {key: round(torch.cat([part[key] for part in parts]).mean().item(), 3) for key in parts[0]}


class Privatize(Stage):
    """The privatizer against the attackers, on noisy codes; the readout finds what of a face is still in them."""

    name = "privatize"

    def __init__(self, r: Recipe, data: TrainingData, s: Sanitizer) -> None:
        code, described = r.code + 1, data.features + LANDMARKS + LIGHTING
        self.s = s
        self.readout = perceptron(code, described).to(data.device)
        self.attackers = nn.ModuleList(perceptron(code, len(data.classes), h) for h in r.attackers).to(data.device)
        super().__init__(r, data, s, nn.ModuleList([s.privatizer, self.readout]))
        self.state |= {"readout": self.readout, "attackers": self.attackers}
        self.attacker_optimizer = attackers_optimizer(r, self.attackers)
        if self.attacker_optimizer:
            self.state["attacker_optimizer"] = self.attacker_optimizer
        train = data.train.to(data.device)
        self.pools = [data.train[labels[train].cpu() >= 0] for labels in (data.private, data.useful)]
        self.pairs, self.prior = None, data.prior
        if r.utility_loss == "infonce":  # its batches show all classes equally often
            self.pairs = Pairs(data.train, data.useful.cpu(), data.private.cpu())
            self.prior = torch.full_like(data.prior, 1 / len(data.classes))
        self.descriptions = encode(s, data.faces)

    def noisy(self, descriptions: Tensor, alpha: Tensor) -> Tensor:
        """Return what decoder, readout and attackers see [n, code + 1]: noisy codes, and alpha."""
        z = torch.randn(len(descriptions), self.s.noise_dim, device=descriptions.device)
        return torch.cat([rounded(self.s.privatize(descriptions, z, alpha), self.r.code_bits), alpha], 1)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw training rows, rows of other pictures of the same people, and who it is (the latter two for InfoNCE)."""
        if self.pairs:
            return self.pairs.draw(self.batch)
        rows = torch.cat([pool[torch.randint(len(pool), (self.batch // 2,))] for pool in self.pools])
        return rows, rows, rows

    def step(self, step: int) -> dict[str, Tensor]:
        """Train the attackers, then the privatizer against them."""
        r, data = self.r, self.data
        drawn = self.draw()
        views = torch.randint(r.views, (len(drawn[0]),))
        descriptions = self.descriptions[views, drawn[0]].to(data.device)
        rows, others, who = (part.to(data.device) for part in drawn)
        alpha = sample_alpha(r, len(rows), data.device)
        self.renew_attacker(step)
        self.train_attackers(descriptions, alpha, data.private[rows])

        # Loss_S: the utility's posterior stays, every attacker's goes to the prior
        noisy = self.noisy(descriptions, alpha)
        found, d = self.readout(noisy), data.features
        embedding, targets = F.normalize(found[:, :d]), data.targets[0, rows]
        if self.pairs:
            goal = F.normalize(data.targets[0, others, :d])
            u = losses.contrastive_loss(embedding, goal, who)
            u = u + r.identity_cosine_weight * (1 - (embedding * F.normalize(targets[:, :d])).sum(1))
        else:
            logits = data.service(embedding)
            u = losses.utility_loss(data.service(targets[:, :d]), logits)
            u = u + r.identity_cosine_weight * (1 - (embedding * targets[:, :d]).sum(1))
            u = u + F.cross_entropy(1.5 * logits, data.useful[rows], ignore_index=-1, reduction="none")
        appearance = (found[:, d:] - targets[:, d:]).square()
        verdicts = [losses.privacy_loss(self.prior, attacker(noisy)) for attacker in self.attackers]
        p = torch.stack(verdicts or [torch.zeros_like(u)]).mean(0)
        ramp = min(1.0, r.privacy_ramp * step / self.steps)
        loss = losses.sanitizer_loss(u, ramp * r.privacy_weight * p, alpha) + r.utility_floor * u
        landmarks, light = appearance[:, :LANDMARKS].mean(1), appearance[:, LANDMARKS:].mean(1)
        loss = loss + r.appearance_weight * (landmarks + light)
        loss = loss.mean()
        shown = {"u": u, "p": p, "appearance": appearance}
        if r.code_norm == "power":
            overpower = F.relu(self.s.privatize(descriptions, None, alpha).square().mean() - r.code_power)
            loss = loss + 10 * overpower
        if r.distribution_weight:
            level = sample_alpha(r, 1, data.device)  # one for all: at each alpha, the classes' codes lie alike
            quiet = self.s.privatize(descriptions, None, level.expand(len(rows), 1))
            shown["distance"] = losses.distribution_loss(quiet, data.private[rows])
            loss = loss + ramp * r.distribution_weight * level.squeeze() * shown["distance"]
        backward_and_step(loss, self.learner, self.optimizer)
        return shown

    def renew_attacker(self, step: int) -> None:
        """Begin one attacker anew every `attacker_renewal` steps, each in its turn, alike in all processes."""
        every = self.r.attacker_renewal
        if not (self.attacker_optimizer and every and step) or step % every:
            return
        turn = (step // every - 1) % len(self.attackers)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.r.seed + step)
            new = perceptron(self.r.code + 1, len(self.data.classes), self.r.attackers[turn])
        self.attackers[turn].load_state_dict(new.state_dict())
        for p in self.attackers[turn].parameters():
            self.attacker_optimizer.state.pop(p, None)

    def train_attackers(self, descriptions: Tensor, alpha: Tensor, truth: Tensor) -> None:
        """Loss_P: right on noisy codes, each time with new noise, and still right where nothing is hidden."""
        for _ in range(self.r.attacker_steps if self.attacker_optimizer else 0):
            assert self.attacker_optimizer
            with torch.no_grad():
                hidden, plain = self.noisy(descriptions, alpha), self.noisy(descriptions, torch.zeros_like(alpha))
            each = [losses.attacker_loss(a(hidden), a(plain), truth, truth) for a in self.attackers]
            backward_and_step(torch.stack(each).sum(), self.attackers, self.attacker_optimizer)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Measure noisy codes: cosine of the readout to the raw face, and the share that each attacker gets right."""
        result: Validation = {}
        rows = self.data.validation
        descriptions = self.descriptions[0, rows].to(self.data.device)
        raw, truth = self.data.targets[0, rows, : self.data.features], self.data.private[rows]
        for a in self.alphas():
            noisy = self.noisy(descriptions, torch.full((len(descriptions), 1), a, device=self.data.device))
            embedding = F.normalize(self.readout(noisy)[:, : self.data.features])
            right = [(attacker(noisy).argmax(1) == truth).float().mean().item() for attacker in self.attackers]
            cosine = (embedding * raw).sum(1).mean().item()
            result[f"alpha {a:g}"] = {"cosine": round(cosine, 3), "attackers": [round(share, 3) for share in right]}
        return result


class Decode(Stage):
    """The decoder draws a face in which the provider's network finds what the readout finds in the noisy code.

    Where the recipe names frozen classifiers of the private attribute (plug-and-play), the privatizer learns on, from
    them.
    """

    name = "decode"

    def __init__(self, r: Recipe, data: TrainingData, s: Sanitizer, privatize: Privatize, providers: Providers) -> None:
        frozen = providers.frozen
        super().__init__(r, data, s, nn.ModuleList([s.decoder, s.privatizer]) if frozen else s.decoder)
        self.s, self.readout, self.descriptions = s, privatize.readout, privatize.descriptions[:2]
        s.decoder.bits = r.decoder_bits
        self.utility, self.detector = providers.utility, providers.detector
        self.classifiers = Classifiers(frozen, data.classes)
        self.critic = Critic().to(data.device) if r.realism_weight else None
        if self.critic:
            self.critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), r.critic_lr, betas=(0.5, 0.99))
            self.state |= {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        self.opacity = torch.from_numpy(OPACITY[..., 0] / 255).float().to(data.device)

    def composed(self, y: Tensor) -> Tensor:
        """Return a chip as a provider cuts it out of the composed frame: faded into the canvas, moved, resampled.

        A pattern of single pixels does not survive it, nor do specks of colour: a JPEG keeps colour coarsely, and here
        it is coarser. The features of a face do.
        """
        y = losses.coarse_colour(PLAIN / 255 + self.opacity * (y - PLAIN / 255))
        turn, zoom = 0.02 * torch.randn(len(y)), torch.exp(0.02 * torch.randn(len(y)))
        y = warp(y, turn, zoom, 0.012 * torch.randn(len(y), 2), torch.ones(len(y)))
        if torch.rand(()) < 0.6:
            side = int(torch.randint(48, 80, ()))
            y = F.interpolate(y, (side, side), mode="bilinear", antialias=True)
            y = F.interpolate(y, (112, 112), mode="bilinear")
        return y + 0.02 * torch.randn_like(y)

    def noisy(self, views: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """Return noisy codes [n, code] of views [n] of rows [n]."""
        z = torch.randn(len(rows), self.s.noise_dim, device=self.data.device)
        code = self.s.privatize(self.descriptions[views, rows].to(self.data.device), z, alpha)
        return rounded(code, self.r.code_bits)

    def step(self, step: int) -> dict[str, Tensor]:
        """Draw one batch of faces, and learn from the provider's network, the detector and the raw pictures."""
        r, data, d = self.r, self.data, self.data.features
        views = torch.randint(len(self.descriptions), (self.batch,))
        rows = data.draw_rows(self.batch)
        x, alpha = data.faces.pictures(views, rows), sample_alpha(r, self.batch, data.device)
        noisy = self.noisy(views, rows, alpha)
        # the readout's numbers move while a privatizer still learns: then the raw face is the goal
        if self.classifiers:
            goal = data.targets[views, rows, :d]
        else:
            goal = F.normalize(self.readout(torch.cat([noisy, alpha], 1))[:, :d])
        # first a face, then one that is recognised
        ramp = min(1.0, max(0.0, (step - r.warmup_steps) / max(1.0, 0.6 * r.warmup_steps)))
        detection = spectrum = u = p = torch.zeros(self.batch, device=data.device)
        cosine = realism = torch.ones_like(u)
        verdicts: list[Tensor] = []
        with half(data.device):
            y = self.s.decode(noisy, alpha).float()
            if ramp:
                composed = self.composed(y)
                judged = losses.brightness_alone(composed)  # colours are learned from faces, not from networks
                if len(self.utility.nets) > 1:
                    cosine = self.utility.judge(judged, goal)
                else:
                    embedding = self.utility(judged).float()
                    cosine = (embedding * goal).sum(1)
                    u = losses.utility_loss(data.service(goal), data.service(embedding))
                detection = losses.detection_loss(self.detector(x), self.detector(losses.brightness_alone(coarse(y))))
                verdicts = self.classifiers.logits(composed)
                spectrum = losses.spectrum_loss(x, y) if r.spectrum_weight else spectrum
                realism = self.realism(x, losses.brightness_alone(y)) if self.critic else realism
        recognition = r.recognition_weight * (u + 1 - cosine)
        if verdicts:
            p = torch.stack([losses.privacy_loss(data.prior, logits) for logits in verdicts]).mean(0)
            recognition = losses.sanitizer_loss(recognition, r.privacy_weight * p, alpha)
        variation, distance = losses.total_variation(y), (y - x).abs().mean((1, 2, 3))
        appearance = r.detection_weight * detection + r.spectrum_weight * spectrum + r.realism_weight * realism
        loss = ramp * (recognition + appearance)
        loss = loss + r.reconstruction_weight * distance + r.smoothness_weight * variation
        if r.mean_weight:
            loss = loss + r.mean_weight * losses.mean_loss(x, y)
        if r.chroma_weight:
            loss = loss + r.chroma_weight * losses.total_variation(losses.chroma(y))
        backward_and_step(loss.mean(), self.learner, self.optimizer)
        shown = {"cosine": cosine, "u": u, "p": p, "detection": detection, "l1": distance, "variation": variation}
        return shown | ({"realism": realism} if self.critic else {})

    def realism(self, x: Tensor, y: Tensor) -> Tensor:
        """Train the critic on real faces x and drawn ones y; return what it holds against the latter [n].

        The hinge loss (Lim and Ye, "Geometric GAN", 2017).
        """
        assert self.critic
        verdict = F.relu(1 - self.critic(x)).mean() + F.relu(1 + self.critic(y.detach())).mean()
        backward_and_step(verdict, self.critic, self.critic_optimizer)
        self.critic.requires_grad_(False)
        against: Tensor = 1 - self.critic(y).float().mean((1, 2, 3))
        self.critic.requires_grad_(True)
        return against

    @torch.no_grad()
    def validate(self) -> Validation:
        """Measure drawn faces: cosine to the raw one and to another draw, detection loss, L1, frozen classifiers."""
        result: Validation = {}
        for a in self.alphas():
            parts = [self.measure(rows, a) for rows in self.data.validation[:MEASURED].split(BATCH)]
            cosine, between, detection, l1, *right = (round(v, 3) for v in torch.cat(parts).mean(0).tolist())
            result[f"alpha {a:g}"] = {
                "cosine": cosine,
                "cosine of two draws": between,
                "detection": detection,
                "l1": l1,
                "frozen": right,
            }
        return result

    def measure(self, rows: Tensor, a: float) -> Tensor:
        """Return the figures of `validate` for each of these rows [n, 4 + classifiers]."""
        views, alpha = torch.zeros_like(rows), torch.full((len(rows), 1), a, device=self.data.device)
        x, at = self.data.faces.pictures(views, rows), rows.to(self.data.device)
        with half(self.data.device):
            y, other = (self.s.decode(self.noisy(views, rows, alpha), alpha).float() for _ in range(2))
            first, second = self.utility(y).float(), self.utility(other).float()
            detection = losses.detection_loss(self.detector(x), self.detector(y))
            right = [logits.argmax(1) == self.data.private[at] for logits in self.classifiers.logits(y)]
        raw = self.data.targets[0, at, : self.data.features]
        each = [(first * raw).sum(1), (first * second).sum(1), detection, (y - x).abs().mean((1, 2, 3)), *right]
        return torch.stack([value.float() for value in each], 1)


def coarse(y: Tensor) -> Tensor:
    """Return pictures [N, 3, 112, 112] of a quarter of the detail and coarse colour, in their places.

    A detector that judges every pixel is pleased by specks where the landmarks should be.
    """
    small = F.interpolate(losses.coarse_colour(y), (28, 28), mode="bilinear", antialias=True)
    return F.interpolate(small, (112, 112), mode="bilinear")


class UnetGame(Stage):
    """The baseline: the authors' network shape and the authors' game, on pictures and in one stage."""

    name = "unet"

    def __init__(self, r: Recipe, data: TrainingData, s: Unet, providers: Providers) -> None:
        super().__init__(r, data, s, s)
        self.s, self.utility = s, providers.utility
        self.classifiers = Classifiers(providers.frozen, data.classes)
        self.attackers = nn.ModuleList(Attacker(len(data.classes)) for _ in r.attackers[:1]).to(data.device)
        self.attacker_optimizer = attackers_optimizer(r, self.attackers)
        if self.attacker_optimizer:
            self.state |= {"attackers": self.attackers, "attacker_optimizer": self.attacker_optimizer}

    def sanitized(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Sanitize faces [n, 3, 112, 112], with new noise."""
        with half(self.data.device):
            y: Tensor = self.s(x, torch.randn(len(x), self.s.noise_dim, device=x.device), alpha)
        return y.float()

    def step(self, step: int) -> dict[str, Tensor]:
        """Train the attacker, then the network against it."""
        r, data = self.r, self.data
        rows = data.draw_rows(self.batch)
        views, at = torch.randint(r.views, (self.batch,)), rows.to(data.device)
        x, alpha, truth = data.faces.pictures(views, rows), sample_alpha(r, self.batch, data.device), data.private[at]
        y = self.sanitized(x, alpha)
        for attacker in self.attackers:
            assert self.attacker_optimizer
            loss_p = losses.attacker_loss(attacker(y.detach(), alpha), attacker(x, 0 * alpha), truth, truth)
            backward_and_step(loss_p, self.attackers, self.attacker_optimizer)
        distance = (y - x).abs().mean((1, 2, 3))
        u = p = torch.zeros_like(distance)
        if step >= r.warmup_steps:  # first a face
            with half(data.device):
                embedding = self.utility(y).float()
                verdicts = self.classifiers.logits(y)
            verdicts += [attacker(y, alpha) for attacker in self.attackers]
            u = losses.utility_loss(data.service(data.targets[0, at, : data.features]), data.service(embedding))
            p = torch.stack([losses.privacy_loss(data.prior, v) for v in verdicts]).mean(0) if verdicts else p
        loss = losses.sanitizer_loss(r.recognition_weight * u, r.privacy_weight * p, alpha)
        loss = loss + r.reconstruction_weight * distance
        backward_and_step(loss.mean(), self.learner, self.optimizer)
        return {"u": u, "p": p, "l1": distance}

    @torch.no_grad()
    def validate(self) -> Validation:
        """Measure pictures: cosine to the raw face, the share that the attacker gets right, L1."""
        result: Validation = {}
        rows = self.data.validation[:128]
        x, at = self.data.faces.pictures(torch.zeros_like(rows), rows), rows.to(self.data.device)
        for a in self.alphas():
            alpha = torch.full((len(rows), 1), a, device=self.data.device)
            y = self.sanitized(x, alpha)
            cosine = (self.utility(y) * self.data.targets[0, at, : self.data.features]).sum(1).mean().item()
            right = [(n(y, alpha).argmax(1) == self.data.private[at]).float().mean().item() for n in self.attackers]
            result[f"alpha {a:g}"] = {
                "cosine": round(cosine, 3),
                "attackers": [round(share, 3) for share in right],
                "l1": round((y - x).abs().mean().item(), 3),
            }
        return result


class Classifiers:
    """Frozen classifiers of the private attribute; their outputs are put in the order of the training's classes."""

    def __init__(self, nets: Sequence[Provider], classes: Sequence[str]) -> None:
        self.nets = [(net, [net.classes.index(name) for name in classes]) for net in nets]

    def __len__(self) -> int:
        return len(self.nets)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return each classifier's logits [n, classes] of pictures [n, 3, 112, 112]."""
        return [net(x).float()[:, order] for net, order in self.nets]


def sample_alpha(r: Recipe, n: int, device: torch.device) -> Tensor:
    """Draw alpha [n, 1]: a share `alpha_focus` at the default, the others anywhere in 0..1."""
    anywhere = torch.rand(n, 1, device=device)
    focused = torch.rand(n, 1, device=device) < r.alpha_focus
    return torch.where(focused, torch.full_like(anywhere, r.alpha_default), anywhere)


def attackers_optimizer(r: Recipe, attackers: nn.ModuleList) -> torch.optim.Optimizer | None:
    """Return what moves the attackers, None where the recipe has none."""
    return torch.optim.AdamW(attackers.parameters(), r.attacker_lr, weight_decay=1e-2) if r.attackers else None


def backward_and_step(loss: Tensor, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one step down; the gradients are the mean over all processes, and their norm is at most 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(net)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
