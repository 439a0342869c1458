"""The measurements: each method measures one thing about one mechanism, and returns one of the types in `report`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.model.load import Model
from export.audit import attackers, cells, device, mechanisms, metrics
from export.audit.attackers import AttackData, Chips, Convolutional, FineTuned, Linear, Scorer
from export.audit.cells import Store
from export.audit.mechanisms import Mechanism
from export.audit.report import Brief, Looks, Plan, Point, Score, Track, Utility
from export.audit.splits import ClosedSet, Mask, closed_set
from export.providers import Provider

UTILITY = "id_mobilefacenet_paddle"  # took part in the training
MATCHERS = (UTILITY, "id_mobilefacenet_b")  # the second did not
FROZEN = ("gender_faceapi", "gender_dlib", "gender_gear")  # none has seen a sanitized face
RAW_CNN, RAW_PROBE = "CNN 4 of raw faces", f"probe of raw faces on {MATCHERS[1]}"
RAW_ONLY = (RAW_CNN, RAW_PROBE)  # our own, which have seen only raw faces
FALSE_ACCEPTS = (1e-2, 1e-3)
TRACK_FRAMES = (1, 10, 30, 150)
SERVICE_SCALE = 16  # of the service's cosines before the softmax

PIXEL_ATTACKERS: dict[str, tuple[Callable[[Path], nn.Module], float]] = {
    "CNN 4, begun on raw faces": (lambda networks: Convolutional(4), 1e-3),
    "CNN 2": (lambda networks: Convolutional(2), 2e-3),
    "CNN 1": (lambda networks: Convolutional(1), 2e-3),
    "linear on pixels": (lambda networks: Linear(), 1e-3),
    "gender_faceapi, trained on": (lambda networks: FineTuned("gender_faceapi", networks), 3e-4),
}
"""Attackers on pictures: what makes the network to train, of the folder of networks, and its learning rate."""
BEST_PIXEL = next(iter(PIXEL_ATTACKERS))
FRESH = (*PIXEL_ATTACKERS, *(f"probe on {matcher}" for matcher in MATCHERS))

Attack = Callable[[Mask], metrics.Odds]
"""A trained attacker: from a mask of the closed set to the log-odds of its pictures."""


@dataclass(frozen=True)
class Folders:
    """Where everything lies: inputs, and the cells of a run."""

    data: Path  # sets (.tar and .csv)
    networks: Path  # the providers' ONNX networks
    work: Path  # pictures, embeddings and weights: never to be published
    cells: Path | None = None  # figures (None: in `work`)
    known: Path | None = None  # a file of figures that were measured before

    def store(self, *context: object) -> Store:
        """Return the store of cells that depend on `context`."""
        known = cells.read_known(self.known) if self.known is not None else {}
        return Store(self.work, self.cells, known, *context)


@dataclass(eq=False)
class Measurements:
    """All measurements on one closed set, under one plan. A part of another's has the other's service."""

    folders: Folders
    plan: Plan
    closed: ClosedSet
    store: Store
    part_of: "tuple[Measurements, Mask] | None" = None
    _drawn: tuple[str, list[Chips]] = ("", [])

    @classmethod
    def of(cls, folders: Folders, plan: Plan) -> "Measurements":
        """Read the closed set.

        Raises:
            ExportError: a set or the file of known cells is missing or broken.
        """
        closed = closed_set(folders.data, plan.limit)
        return cls(folders, plan, closed, folders.store(closed.faces.digest(), plan.epochs, plan.draws))

    def smaller(self, n: int) -> "Measurements":
        """Return the same measurements for attackers who learn on only n pictures."""
        few = self.closed.fewer(n)
        return Measurements(self.folders, self.plan, self.closed.where(few), self.store.within(n), (self, few))

    def prepare(self) -> None:
        """Embed the raw faces and train the service, before anything is measured."""
        _ = self.raw, self.service

    @cached_property
    def matchers(self) -> dict[str, Provider]:
        """The matchers' networks."""
        return {name: self.provider(name) for name in MATCHERS}

    @cached_property
    def raw(self) -> dict[str, Tensor]:
        """Each matcher's embeddings [N, D] of the raw faces."""
        if self.part_of is not None:
            whole, rows = self.part_of
            return {name: seen[torch.from_numpy(rows)] for name, seen in whole.raw.items()}
        return {name: self._embed(mechanisms.raw(), name, self.closed.faces.chips, "closed") for name in MATCHERS}

    @cached_property
    def service(self) -> nn.Linear:
        """Who is it, among the closed set's people? Trained on raw faces only."""
        if self.part_of is not None:
            return self.part_of[0].service
        c = self.closed
        return identification(self.raw[UTILITY][c.train], torch.from_numpy(c.person[c.train]), c.people)

    def provider(self, name: str) -> Provider:
        """Read a provider's network, frozen."""
        return Provider(name, self.folders.networks).eval().requires_grad_(False)

    def _embed(self, m: Mechanism, matcher: str, chips: Chips, part: str, draw: int = 0) -> Tensor:
        seen: Tensor = self.store.tensors(
            f"{part} {matcher} draw {draw}",
            lambda: attackers.outputs(self.matchers[matcher], chips, f"{matcher} of {m.name}"),
            m.identity,
        )
        return seen

    def draws(self, m: Mechanism) -> list[Chips]:
        """Return draws of the whole closed set: several of a stochastic mechanism, one of another."""
        if self._drawn[0] != m.identity:  # one attacker after the other looks at them
            count = self.plan.draws if m.stochastic else 1
            self._drawn = m.identity, [self._received(m, draw) for draw in range(count)]
        return self._drawn[1]

    def _received(self, m: Mechanism, draw: int) -> Chips:
        return device.received(self.store, m, self._labelled(), draw)

    def _labelled(self) -> device.Labelled:
        return device.Labelled("closed", self.closed.faces.chips, self.closed.truth)

    def averaged(self, m: Mechanism) -> list[cells.Cell]:
        """Return the cells of the draws that `mean_of_draws` averages."""
        numbers = range(100, 100 + self.plan.mean_draws)
        return [device.sending(self.store, m, self._labelled(), n) for n in numbers]

    def attack_data(self, draws: list[Chips]) -> AttackData:
        """Return the part of draws of the closed set that attackers learn from."""
        c = self.closed
        return AttackData([d[c.train] for d in draws], c.truth[c.train], draws[0][c.val], c.truth[c.val])

    def score(self, attack: Attack) -> Score:
        """Return an attacker's score on the test pictures, with parts of them and with pooled pictures."""
        c = self.closed
        test, val = attack(c.test), attack(c.val)
        score = metrics.scores(test, c.truth[c.test], (val, c.truth[c.val]), c.person[c.test])
        truth, person = (np.concatenate([of[c.test], of[c.val]]) for of in (c.truth, c.person))
        right = (test > 0) == c.truth[c.test]
        slices = {
            f"{column} {value}": round(float(right[c.faces[column][c.test] == value].mean()), 4)
            for column in ("gender", "set", "identity_split")
            for value in sorted(set(c.faces[column][c.test].tolist()))
        }
        pooled = metrics.pooled(np.concatenate([test, val]), truth, person)
        return replace(score, pooled=pooled, slices=slices)

    def utility(self, m: Mechanism, seen: Tensor | None = None) -> Utility:
        """Measure whether the service, unchanged, recognises who is in each test picture.

        Args:
            m: the mechanism.
            seen: the service's embeddings of the test pictures, where they are known already.
        """
        c = self.closed
        if seen is None:
            seen = self._embed(m, UTILITY, self.draws(m)[0][c.test], "closed test")
        person = torch.from_numpy(c.person[c.test])
        with torch.no_grad():
            logits = SERVICE_SCALE * F.linear(seen, F.normalize(self.service.weight))
        crossed = F.cross_entropy(logits, person, reduction="none")
        first, fifth = (top(self.service, seen, person, k) for k in (1, 5))
        return Utility(first, fifth, float(crossed.mean()))

    def looks(self, m: Mechanism) -> Looks:
        """Compare the test pictures with the raw ones."""
        c, matcher = self.closed, MATCHERS[1]
        seen = self._embed(m, matcher, self.draws(m)[0], "closed")[c.test]
        return Looks(
            metrics.ssim(c.faces.chips[c.test], self.draws(m)[0][c.test]),
            float((1 - (seen * self.raw[matcher][c.test]).sum(1)).mean()),
        )

    def frozen(self, m: Mechanism, name: str) -> Score:
        """Score a classifier that has never seen a sanitized face: a provider's, or one of `RAW_ONLY`."""
        if name in RAW_ONLY:
            return self._raw_only(m, name)
        net, chips = self.provider(name), self.draws(m)[0]
        sign = 1 if net.classes[0] == "M" else -1

        def odds(mask: Mask) -> metrics.Odds:
            logits = attackers.outputs(net, chips[mask], f"{name} of {m.name}")
            return np.asarray((sign * (logits[:, 0] - logits[:, 1])).double().numpy())

        return self.score(odds)

    def _raw_only(self, m: Mechanism, name: str) -> Score:
        """Score an attacker of our own that has seen only raw faces."""
        c, sent = self.closed, self.draws(m)[0]
        if name == RAW_CNN:
            scorer = attackers.scorer(self._begun_on_raw().to(attackers.DEVICE))
            return self.score(lambda mask: scorer(sent[mask]))
        raw, seen = self.raw[MATCHERS[1]], self._embed(m, MATCHERS[1], sent, "closed")
        net = attackers.probe([raw[c.train]], c.truth[c.train], raw[c.val], c.truth[c.val])
        return self.score(lambda mask: net.odds(seen[mask]))

    def along(self, m: Mechanism, fresh: tuple[str, ...] = (BEST_PIXEL, f"probe on {UTILITY}")) -> Point:
        """Measure one point of the dial's curve: the service, the frozen classifier, and fresh attackers."""
        c, net = self.closed, self.provider(FROZEN[0])
        logits = attackers.outputs(net, self.draws(m)[0][c.test], f"{FROZEN[0]} of {m.name}")
        p = logits.softmax(1)[:, net.classes.index("M")].numpy()
        truth, scores, odds = c.truth[c.test], {}, {}
        seen = None  # where no attacker needs all embeddings, those of the test pictures are enough
        if f"probe on {UTILITY}" not in fresh:
            seen = attackers.outputs(self.matchers[UTILITY], self.draws(m)[0][c.test], f"{UTILITY} of {m.name}")
        for name in fresh:
            attack = self.attack(m, name, 0)
            scores[name] = self.score(attack)
            odds[name] = metrics.calibrated(attack(c.test), attack(c.val), c.truth[c.val])
        best = max(scores, key=lambda name: scores[name].accuracy)
        return Point(
            **asdict(self.utility(m, seen)),
            attacker=scores[best].accuracy,
            attacker_95=scores[best].accuracy_95,
            leak_nats=max(s.leak_nats for s in scores.values()),
            attackers={n: Brief(s.accuracy, s.balanced, s.auc, s.leak_nats) for n, s in scores.items()},
            frozen=float(((p > 0.5) == truth).mean()),
            distribution=metrics.quartiles(p, truth),
            fresh_distribution=metrics.quartiles(1 / (1 + np.exp(-odds[best])), truth),
        )

    def fresh(self, m: Mechanism, attacker: str, seed: int) -> Score:
        """Train an attacker of our own on the sanitized closed set, and score it."""
        return self.score(self.attack(m, attacker, seed))

    def attack(self, m: Mechanism, attacker: str, seed: int) -> Attack:
        """Train one of `FRESH` on the sanitized closed set."""
        draws = self.draws(m)
        if attacker.startswith("probe on "):
            matcher = attacker.removeprefix("probe on ")
            seen = [self._embed(m, matcher, d, "closed", i) for i, d in enumerate(draws)]
            c = self.closed
            net = attackers.probe((s[c.train] for s in seen), c.truth[c.train], seen[0][c.val], c.truth[c.val], seed)
            return lambda mask: net.odds(seen[0][mask])
        scorer = self._fit(attacker, draws, seed)
        return lambda mask: scorer(draws[0][mask])

    def _fit(self, attacker: str, draws: list[Chips], seed: int) -> Scorer:
        """Train one of `PIXEL_ATTACKERS` on draws of the closed set."""
        return self._trained(attacker, self.attack_data(draws), seed)

    def _trained(self, attacker: str, known: AttackData, seed: int) -> Scorer:
        make, rate = PIXEL_ATTACKERS[attacker]
        network = (
            self._begun_on_raw if attacker.endswith("begun on raw faces") else partial(make, self.folders.networks)
        )
        return attackers.fit(network, known, epochs=self.plan.epochs, seed=seed, rate=rate, name=attacker)

    def _begun_on_raw(self) -> nn.Module:
        """Return a CNN 4 with the weights of one that has learned on raw faces."""

        def learn() -> dict[str, Tensor]:
            known = self.attack_data(self.draws(mechanisms.raw()))
            return attackers.learned_on_raw(known, self.plan.epochs)

        net = Convolutional(4)
        net.load_state_dict(self.store.tensors("CNN 4, raw", learn))
        return net

    def mean_of_draws(self, m: Mechanism, seed: int) -> Score:
        """Score an attacker who gets one still many times, averages the pictures, and has learned on such averages."""
        total = np.zeros(self.closed.faces.chips.shape, np.uint16)
        for draw in range(self.plan.mean_draws):
            total += self._received(m, 100 + draw)
        mean = (total / self.plan.mean_draws).round().astype(np.uint8)
        scorer = self._fit(BEST_PIXEL, [mean], seed)
        return self.score(lambda mask: scorer(mean[mask]))

    def knows_noise(self, m: Mechanism, model: Model, seed: int) -> Score:
        """Score an attacker who knows z. The noise is the device's secret: this shows what rests on it."""
        dimensions, n = model.noise_dimensions, len(self.closed.truth)
        z = [mechanisms.draw_noise(dimensions, n, draw) for draw in range(self.plan.draws)]
        draws = [attackers.with_noise(chips, noise) for chips, noise in zip(self.draws(m), z, strict=True)]
        known, epochs = self.attack_data(draws), self.plan.epochs
        scorer = attackers.fit(attackers.Informed, known, epochs=epochs, seed=seed, rate=2e-3, name="knows z")
        return self.score(lambda mask: scorer(draws[0][mask]))

    def reconstruction(self, m: Mechanism, seed: int) -> Score:
        """Undo the mechanism with a network trained on (sanitized, raw) pairs; score a classifier of its output."""
        c, draws = self.closed, self.draws(m)
        sanitized, raw = draws[0][c.train], c.faces.chips[c.train]
        undo = attackers.reconstruction_attack(sanitized, raw, epochs=self.plan.epochs, seed=seed)
        undone = [undo(d) for d in draws]
        scorer = self._fit(BEST_PIXEL, undone, seed)
        return self.score(lambda mask: scorer(undone[0][mask]))

    def track(self, m: Mechanism, model: Model, alpha: float, seed: int) -> Track:
        """Score the best pixel attacker over many frames of one track, under the device's noise: one draw per track.

        Each of `plan.track` test faces is seen 150 times, as a camera would see it: aligned a little differently each
        time (`device.shaken`). z stays.
        """
        c = self.closed
        scorer = self._fit(BEST_PIXEL, self.draws(m), seed)
        generator = np.random.default_rng(seed)
        rows = np.flatnonzero(c.test)[generator.permutation(int(c.test.sum()))[: self.plan.track]]
        z = mechanisms.draw_noise(model.noise_dimensions, len(rows), 900 + seed)
        odds = []
        for _ in tqdm(range(max(TRACK_FRAMES)), desc="frames of a track", leave=False):
            seen = np.stack([device.shaken(chip, generator) for chip in c.faces.chips[rows]])
            parts = (slice(i, i + 20) for i in range(0, len(seen), 20))
            odds.append(scorer(device.jpeg(np.concatenate([model.run(seen[p], z[p], alpha) for p in parts]))))
        right = {n: (np.mean(odds[:n], axis=0) > 0) == c.truth[rows] for n in TRACK_FRAMES}
        return Track({str(n): metrics.balanced(r, c.truth[rows]) for n, r in right.items()}, len(rows))

    def context(self, model: Model, alpha: float) -> Score:
        """Score the best pixel attacker on output frames: what do place, size, turn and edge of a face give away?

        Each chip goes through the whole runtime in a frame of its own; the attacker sees twice the face's surroundings.
        """
        frames = [out.sent for out in device.composed(model, self.closed.faces.chips, alpha)]
        views = [f[48:-48, 48:-48] for f in frames]  # 224 of 320 pixels: the chip, and half of it on every side
        sent = np.stack([device.shrunk(view[..., ::-1]) for view in views])
        scorer = self._fit(BEST_PIXEL, [sent], 0)
        return self.score(lambda mask: scorer(sent[mask]))


def identification(train: Tensor, labels: Tensor, people: int) -> nn.Linear:
    """Train the service: a softmax over the closed set's people on the provider's embeddings of raw pictures."""
    torch.manual_seed(0)
    head = nn.Linear(train.shape[1], people, bias=False)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(300):
        loss = F.cross_entropy(SERVICE_SCALE * F.linear(train, F.normalize(head.weight)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def top(head: nn.Linear, embeddings: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of pictures whose person is among the first k."""
    best = F.linear(embeddings, F.normalize(head.weight)).topk(k).indices
    return float((best == labels[:, None]).any(1).float().mean())
