"""The measurements: what one mechanism keeps of the service and leaves to one attacker."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.model.load import Model
from export.audit import attackers, mechanisms, metrics
from export.audit.attackers import Chips, Convolutional, FineTuned, Judge, Lesson, Linear
from export.audit.cells import Work
from export.audit.device import composed, jpeg, shaken
from export.audit.mechanisms import Mechanism
from export.audit.splits import SHARES, ClosedSet, closed_set, open_set
from export.providers import Provider

UTILITY = "id_mobilefacenet_paddle"  # took part in the training
MATCHERS = (UTILITY, "id_mobilefacenet_b")  # the second did not
FROZEN = ("gender_faceapi", "gender_dlib", "gender_gear")  # the first took part in the training
RAW_ONLY = (
    "CNN 4 of raw faces",
    f"probe of raw faces on {MATCHERS[1]}",
)  # ours, frozen before they see a sanitized one
CANVAS = "plain"  # what is around the faces in an output frame
FALSE_ACCEPTS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    seeds: int = 3  # of every fresh attacker
    baseline_train: int = 4000  # pictures that they learn on there: fewer flatter the baselines, not us
    epochs: int = 6
    draws: int = 2  # of each training picture
    mean_draws: int = 8  # that are averaged, for the attacker who gets one still many times
    limit: int | None = None  # pictures of the closed set: a quick look, no claim
    open_limit: int = 3000  # pictures of the open set
    brief: bool = (
        False  # without the attackers who know z, average draws or frames, recover first, or look around the face
    )
    track: int = 200  # faces that are followed over 150 frames
    again: int = 400  # faces that are looked for again in the output frame


class Audit:
    """One run of the protocol; each method is a part of the table."""

    def __init__(self, folder: Path, networks: Path, work: Path, plan: Plan, cells: Path | None = None) -> None:
        self.networks, self.plan, self.folder = networks, plan, folder
        self.closed = closed_set(folder, plan.limit)
        self.work = Work(work, cells or work, self.closed.faces.digest(), plan.epochs, plan.draws)
        self.matchers = {name: self._provider(name) for name in MATCHERS}
        self.drawn: tuple[str, list[Chips]] = ("", [])
        c = self.closed
        self.raw = {name: self._embed(mechanisms.raw(), name, c.faces.chips, "closed") for name in MATCHERS}
        self.service = identification(
            self.raw[UTILITY][c.train], torch.from_numpy(c.person[c.train]), c.people
        )  # fmt: skip

    def smaller(self, n: int) -> "Audit":
        """The same audit, and the same service, with only n pictures for an attacker to learn on."""
        c, few = self.closed, self.closed.fewer(n)
        part = copy(self)
        masks = (getattr(c, name)[few] for name in SHARES)
        part.closed = ClosedSet(c.faces.where(few), c.person[few], c.truth[few], *masks)
        part.work, part.drawn = Work(self.work.folder, self.work.cells, *self.work.context, n), ("", [])
        part.raw = {name: seen[torch.from_numpy(few)] for name, seen in self.raw.items()}
        return part

    def _provider(self, name: str) -> Provider:
        return Provider(name, self.networks).eval().requires_grad_(False)

    def _embed(self, m: Mechanism, matcher: str, chips: Chips, part: str, draw: int = 0) -> Tensor:
        seen: Tensor = self.work.tensor(
            f"{part} {matcher} draw {draw}",
            lambda: attackers.outputs(self.matchers[matcher], chips, f"{matcher} of {m.name}"),
            m.identity,
        )
        return seen

    def draws(self, m: Mechanism) -> list[Chips]:
        """Draws of the whole closed set: several of a stochastic mechanism, one of another."""
        if self.drawn[0] != m.identity:  # one attacker after the other looks at them
            c, count = self.closed, self.plan.draws if m.stochastic else 1
            self.drawn = m.identity, [self.work.packets(m, c.faces.chips, c.truth, d, "closed") for d in range(count)]
        return self.drawn[1]

    def lesson(self, draws: list[Chips]) -> Lesson:
        c = self.closed
        return Lesson([d[c.train] for d in draws], c.truth[c.train], draws[0][c.val], c.truth[c.val])

    def judged(self, odds: Callable[[NDArray[np.bool_]], metrics.Odds]) -> dict[str, Any]:
        """Scores of an attacker given as a function from a mask of the closed set to log-odds."""
        c = self.closed
        test, val = odds(c.test), odds(c.val)
        result = metrics.scores(test, c.truth[c.test], (val, c.truth[c.val]), c.person[c.test])
        both, person = np.concatenate([test, val]), np.concatenate([c.person[c.test], c.person[c.val]])
        result["pooled"] = metrics.pooled(both, np.concatenate([c.truth[c.test], c.truth[c.val]]), person)
        right = (test > 0) == c.truth[c.test]
        result["slices"] = {
            f"{column} {value}": round(float(right[c.faces[column][c.test] == value].mean()), 4)
            for column in ("gender", "set", "identity_split")
            for value in sorted(set(c.faces[column][c.test].tolist()))
        }
        return result

    def utility(self, m: Mechanism, seen: Tensor | None = None) -> dict[str, float]:
        """The service with its own unchanged algorithm: who is it, among the closed set's people?

        `seen`: its embeddings of the test pictures, where they are known already.
        """
        c = self.closed
        if seen is None:
            seen = self._embed(m, UTILITY, self.draws(m)[0][c.test], "closed test")
        person = torch.from_numpy(c.person[c.test])
        with torch.no_grad():
            logits = 16 * F.linear(seen, F.normalize(self.service.weight))
        crossed = F.cross_entropy(logits, person, reduction="none")
        return {f"top{k}": top(self.service, seen, person, k) for k in (1, 5)} | {"nats": float(crossed.mean())}

    def looks(self, m: Mechanism) -> dict[str, float]:
        """How far from the raw face: structural similarity, and the distance that a matcher perceives."""
        c = self.closed
        sent = self.draws(m)[0][c.test]
        unseen = self._embed(m, MATCHERS[1], self.draws(m)[0], "closed")[c.test]
        return {
            "ssim": metrics.ssim(c.faces.chips[c.test], sent),
            "matcher_distance": float((1 - (unseen * self.raw[MATCHERS[1]][c.test]).sum(1)).mean()),
        }

    def frozen(self, m: Mechanism, name: str) -> dict[str, Any]:
        """A classifier that never saw a sanitized face: a provider's, or one of `RAW_ONLY`."""
        if name in RAW_ONLY:
            return self.raw_only(m, name)
        net, chips = self._provider(name), self.draws(m)[0]
        sign = 1 if net.classes[0] == "M" else -1

        def odds(mask: NDArray[np.bool_]) -> metrics.Odds:
            logits = attackers.outputs(net, chips[mask], f"{name} of {m.name}")
            return np.asarray((sign * (logits[:, 0] - logits[:, 1])).double().numpy())

        return self.judged(odds)

    def raw_only(self, m: Mechanism, name: str) -> dict[str, Any]:
        """Ours of raw faces, as it stood before it saw a sanitized one."""
        c, sent = self.closed, self.draws(m)[0]
        if name == RAW_ONLY[0]:
            judge = attackers.judge(self.begun_on_raw(PIXEL_ATTACKERS[FRESH[0]](self.networks)[0]))
            return self.judged(lambda mask: judge(sent[mask]))
        raw, seen = self.raw[MATCHERS[1]], self._embed(m, MATCHERS[1], sent, "closed")
        net = attackers.probe([raw[c.train]], c.truth[c.train], raw[c.val], c.truth[c.val])
        return self.judged(lambda mask: net.odds(seen[mask]))

    def along(self, m: Mechanism, fresh: tuple[str, ...] = ()) -> dict[str, Any]:
        """One point of the dial's curve: the service, the frozen classifier, and fresh attackers.

        `distribution`: quartiles of P(M) over women's and over men's pictures, as the frozen classifier says it;
        `fresh_distribution`: the same of the best fresh attacker, calibrated on the validation pictures.
        """
        c, net = self.closed, self._provider(FROZEN[0])
        logits = attackers.outputs(net, self.draws(m)[0][c.test], f"{FROZEN[0]} of {m.name}")
        p = logits.softmax(1)[:, net.classes.index("M")].numpy()
        truth, found = c.truth[c.test], {}
        fresh = fresh or ("CNN 4, begun on raw faces", f"probe on {UTILITY}")
        seen = None  # where no attacker asks for all embeddings, the test pictures' are enough
        if f"probe on {UTILITY}" not in fresh:
            seen = attackers.outputs(self.matchers[UTILITY], self.draws(m)[0][c.test], f"{UTILITY} of {m.name}")
        for name in fresh:
            attack = self.attack(m, name, 0)
            found[name] = (self.judged(attack), metrics.calibrated(attack(c.test), attack(c.val), c.truth[c.val]))
        best = max(found, key=lambda name: float(found[name][0]["accuracy"]))
        return self.utility(m, seen) | {
            "attacker": found[best][0]["accuracy"],
            "attacker_95": found[best][0]["accuracy_95"],
            "leak_nats": max(f["leak_nats"] for f, _ in found.values()),
            "attackers": {name: {k: f[k] for k in ("accuracy", "balanced", "auc", "leak_nats")} for name, (f, _) in found.items()},
            "frozen": float(((p > 0.5) == truth).mean()),
            "distribution": quartiles(p, truth),
            "fresh_distribution": quartiles(1 / (1 + np.exp(-found[best][1])), truth),
        }  # fmt: skip

    def fresh(self, m: Mechanism, attacker: str, seed: int) -> dict[str, Any]:
        """An attacker of our own on the sanitized closed set, judged on its test pictures."""
        return self.judged(self.attack(m, attacker, seed))

    def attack(self, m: Mechanism, attacker: str, seed: int) -> Callable[[NDArray[np.bool_]], metrics.Odds]:
        """Train an attacker on the sanitized closed set; its log-odds of the pictures of a mask [N]."""
        draws = self.draws(m)
        if attacker.startswith("probe on "):
            matcher = attacker.removeprefix("probe on ")
            seen = [self._embed(m, matcher, d, "closed", i) for i, d in enumerate(draws)]
            c = self.closed
            net = attackers.probe((s[c.train] for s in seen), c.truth[c.train], seen[0][c.val], c.truth[c.val], seed)
            return lambda mask: net.odds(seen[0][mask])
        judge = self.fit(attacker, draws, seed)
        return lambda mask: judge(draws[0][mask])

    def fit(self, attacker: str, draws: list[Chips], seed: int) -> Judge:
        """Train one of `PIXEL_ATTACKERS` on draws of the closed set."""
        net, rate = PIXEL_ATTACKERS[attacker](self.networks)
        if attacker.endswith("begun on raw faces"):
            net = self.begun_on_raw(net)
        return attackers.fit(net, self.lesson(draws), epochs=self.plan.epochs, seed=seed, rate=rate, name=attacker)

    def begun_on_raw(self, net: nn.Module) -> nn.Module:
        """CNN 4, once it tells raw faces apart."""

        def learn() -> dict[str, Any]:
            lesson = self.lesson(self.draws(mechanisms.raw()))
            attackers.fit(net, lesson, epochs=self.plan.epochs, seed=0, rate=2e-3, name="CNN 4 on raw faces")
            return {name: value.cpu() for name, value in net.state_dict().items()}

        net.load_state_dict(self.work.tensor("CNN 4, raw", learn))
        return net.to(attackers.DEVICE)

    def mean_of_draws(self, m: Mechanism, seed: int) -> dict[str, Any]:
        """An attacker who gets one still many times, averages the pictures, and trained on such averages."""
        c = self.closed
        total = np.zeros(c.faces.chips.shape, np.uint16)
        for draw in range(self.plan.mean_draws):
            total += self.work.packets(m, c.faces.chips, c.truth, 100 + draw, "closed")
        mean = (total / self.plan.mean_draws).round().astype(np.uint8)
        judge = self.fit("CNN 4, begun on raw faces", [mean], seed)
        return self.judged(lambda mask: judge(mean[mask]))

    def knows_noise(self, m: Mechanism, model: Model, alpha: float, seed: int) -> dict[str, Any]:
        """An attacker who is told z: the device's noise is its secret, so this shows what rests on the secret."""
        c = self.closed
        z = [mechanisms.draw_noise(model.noise_dimensions, len(c.truth), draw) for draw in range(self.plan.draws)]
        draws = [attackers.with_noise(chips, noise) for chips, noise in zip(self.draws(m), z, strict=True)]
        judge = attackers.fit(
            attackers.Informed(), self.lesson(draws), epochs=self.plan.epochs, seed=seed,
            rate=2e-3, name="knows z",
        )  # fmt: skip
        return self.judged(lambda mask: judge(draws[0][mask]))

    def recovery(self, m: Mechanism, seed: int) -> dict[str, Any]:
        """Undo first, with a network trained on (sanitized, raw) pairs; then a classifier, begun on raw faces."""
        c, draws = self.closed, self.draws(m)
        undo = attackers.restore(draws[0][c.train], c.faces.chips[c.train], epochs=self.plan.epochs, seed=seed)
        restored = [undo(d) for d in draws]
        judge = self.fit("CNN 4, begun on raw faces", restored, seed)
        return self.judged(lambda mask: judge(restored[0][mask]))

    def track(self, m: Mechanism, model: Model, alpha: float, seed: int) -> dict[str, Any]:
        """The best pixel attacker over many frames of one track, under the device's noise: one draw per track.

        Each of `track` test faces is seen 150 times, as a camera would see it: aligned a little differently each time
        (up to 1.5 pixels and 2 degrees) and with the noise of a sensor (2 levels). z stays.
        """
        c = self.closed
        judge = self.fit("CNN 4, begun on raw faces", self.draws(m), seed)
        generator = np.random.default_rng(seed)
        rows = np.flatnonzero(c.test)[generator.permutation(int(c.test.sum()))[: self.plan.track]]
        z = mechanisms.draw_noise(model.noise_dimensions, len(rows), 900 + seed)
        odds = []
        for _ in tqdm(range(150), desc="frames of a track", leave=False):
            seen = np.stack([shaken(chip, generator) for chip in c.faces.chips[rows]])
            odds.append(judge(jpeg(np.concatenate([model.run(seen[i : i + 20], z[i : i + 20], alpha) for i in range(0, len(seen), 20)]))))  # fmt: skip
        by_frames = {}
        for n in (1, 10, 30, 150):
            right = (np.mean(odds[:n], axis=0) > 0) == c.truth[rows]
            by_frames[str(n)] = float((right[c.truth[rows]].mean() + right[~c.truth[rows]].mean()) / 2)
        return {"balanced_by_frames": by_frames, "faces": len(rows)}

    def context(self, model: Model, alpha: float) -> dict[str, Any]:
        """The best pixel attacker on output frames: what place, size, turn and edge of a painted face give away besides it.

        Each chip goes through the whole runtime in a frame of its own, as in `found_again`; the attacker sees twice the
        face's surroundings. What lies beyond a chip's edge is not in the data: there it is repeated.
        """
        c = self.closed
        frames = [sent for sent, _, _ in composed(model, c.faces.chips, alpha)]
        views = [f[48:-48, 48:-48] for f in frames]  # 224 of 320 pixels: the chip, and half of it on every side
        sent = np.stack([cv2.resize(v[..., ::-1], (112, 112), interpolation=cv2.INTER_AREA) for v in views])
        judge = self.fit(FRESH[0], [sent], 0)
        return self.judged(lambda mask: judge(sent[mask]))

    def strangers(self, m: Mechanism) -> dict[str, Any]:
        """The open set: do matchers still know a stranger again, and do attackers tell a stranger's gender?

        Sanitized probes against raw and against sanitized galleries. The attackers learn from people of
        `identity_split = train`, so they have seen none of these people.
        """
        faces, person, truth = open_set(self.folder, self.plan.open_limit)
        sent = self.work.packets(m, faces.chips, truth, 0, "open")
        known = np.isin(person, np.flatnonzero(np.bincount(person) > 1))
        result: dict[str, Any] = {"pictures": len(faces), "people": len(np.unique(person)), "tar": {}, "attackers": {}}
        for matcher in MATCHERS:
            raw = self._embed(mechanisms.raw(), matcher, faces.chips, "open")[known]
            seen = self._embed(m, matcher, sent, "open")[known]
            for name, probe, gallery in (
                ("raw", raw, raw),
                ("against raw", seen, raw),
                ("against sanitized", seen, seen),
            ):
                result["tar"][f"{matcher}, {name}"] = metrics.tar_at_far(probe, gallery, person[known], FALSE_ACCEPTS)
        c = self.closed
        train = c.train & (c.faces["identity_split"] == "train")
        val = c.val & (c.faces["identity_split"] != "test")
        draws = self.draws(m)
        lesson = Lesson([d[train] for d in draws], c.truth[train], draws[0][val], c.truth[val])
        name = FRESH[0]
        net = self.begun_on_raw(PIXEL_ATTACKERS[name](self.networks)[0])
        judge = attackers.fit(net, lesson, epochs=self.plan.epochs, seed=0, rate=1e-3, name="open set")
        result["attackers"][name] = metrics.scores(judge(sent), truth, (judge(lesson.val), lesson.val_truth), person)
        seen = [self._embed(m, UTILITY, d, "closed", i) for i, d in enumerate(draws)]
        net_p = attackers.probe((s[train] for s in seen), c.truth[train], seen[0][val], c.truth[val])
        strangers = self._embed(m, UTILITY, sent, "open")
        result["attackers"][f"probe on {UTILITY}"] = metrics.scores(
            net_p.odds(strangers), truth, (net_p.odds(seen[0][val]), c.truth[val]), person
        )
        return result


# name -> (network, learning rate), given the folder of networks
PIXEL_ATTACKERS: dict[str, Callable[[Path], tuple[nn.Module, float]]] = {
    "CNN 4, begun on raw faces": lambda networks: (Convolutional(4), 1e-3),
    "CNN 2": lambda networks: (Convolutional(2), 2e-3),
    "CNN 1": lambda networks: (Convolutional(1), 2e-3),
    "linear on pixels": lambda networks: (Linear(), 1e-3),
    "gender_faceapi, trained on": lambda networks: (FineTuned("gender_faceapi", networks), 3e-4),
}
FRESH = (*PIXEL_ATTACKERS, *(f"probe on {matcher}" for matcher in MATCHERS))


def quartiles(p: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> dict[str, list[float]]:
    """Of P(M) [N], over women's and over men's pictures."""
    return {
        who: [round(float(q), 4) for q in np.quantile(p[truth == (who == "M")], (0.25, 0.5, 0.75))]
        for who in ("F", "M")
    }


def identification(train: Tensor, labels: Tensor, people: int) -> nn.Linear:
    """The service: a softmax over the closed set's people on the provider's embedding, trained on raw pictures only."""
    torch.manual_seed(0)
    head = nn.Linear(train.shape[1], people, bias=False)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(300):
        loss = F.cross_entropy(16 * F.linear(train, F.normalize(head.weight)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def top(head: nn.Linear, embeddings: Tensor, labels: Tensor, k: int) -> float:
    """Share of pictures whose person is among the first k."""
    best = F.linear(embeddings, F.normalize(head.weight)).topk(k).indices
    return float((best == labels[:, None]).any(1).float().mean())
