"""The attackers, on planted leaks: they find what is there, and nothing where nothing is."""

import numpy as np
import torch

from export.audit import attackers, metrics
from export.audit.attackers import AttackData, Chips, Convolutional, Linear

HALF = np.arange(512) % 2 == 0


def marked(n: int, seed: int) -> tuple[Chips, np.ndarray]:
    """A planted cheat: the very same face for all, but for one pixel that marks the class."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.5
    face = np.random.default_rng(9).integers(90, 160, (112, 112, 3)).astype(np.uint8)
    chips = np.repeat(face[None], n, 0)
    chips[truth, 60, 50] = 255
    return chips, truth


def test_a_fresh_attacker_finds_a_mark_of_one_pixel() -> None:
    (train, truth), (val, val_truth), (test, test_truth) = (
        marked(n, seed) for n, seed in ((512, 0), (64, 1), (128, 2))
    )
    known = AttackData([train], truth, val, val_truth)
    scorer = attackers.fit(Linear, known, epochs=8, seed=0, rate=1e-3, name="test")
    assert ((scorer(test) > 0) == test_truth).mean() > 0.95


def test_a_fresh_network_finds_a_mark_that_moves() -> None:
    random = np.random.default_rng(0)
    truth = random.random(640) < 0.5
    chips = random.integers(90, 160, (640, 32, 32, 3)).astype(np.uint8)  # small: the network takes any size
    for i in np.flatnonzero(truth):
        y, x = random.integers(2, 22, 2)
        chips[i, y : y + 8, x : x + 8] = 255
    known = AttackData([chips[:448]], truth[:448], chips[448:512], truth[448:512])
    scorer = attackers.fit(lambda: Convolutional(4), known, epochs=8, seed=0, rate=2e-3, name="test")
    assert ((scorer(chips[512:]) > 0) == truth[512:]).mean() > 0.9


def test_a_fresh_attacker_finds_nothing_where_nothing_is() -> None:
    chips, truth = marked(512, 0)
    chips = chips[:, 32:80, 24:72]
    chips[:, 28, 26] = 128
    known = AttackData([chips[:320]], truth[:320], chips[320:384], truth[320:384])
    scorer = attackers.fit(lambda: Convolutional(4), known, epochs=2, seed=0, rate=2e-3, name="test")
    assert len(np.unique(scorer(chips[384:]) > 0)) == 1  # the same picture, the same answer


def test_a_probe_finds_the_class_in_an_embedding_that_holds_it() -> None:
    torch.manual_seed(0)
    truth = HALF
    seen = torch.randn(512, 16)
    seen[:, 3] += torch.from_numpy(np.where(truth, 3.0, -3.0)).float()
    seen = torch.nn.functional.normalize(seen)
    net = attackers.probe([seen[:256]], truth[:256], seen[256:384], truth[256:384])
    assert ((net.odds(seen[384:]) > 0) == truth[384:]).mean() > 0.95


def test_an_attacker_that_knows_the_noise_gets_all_of_it() -> None:
    z = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    chips = np.zeros((2, 112, 112, 3), np.uint8)
    given = attackers.with_noise(chips, z)
    assert given.shape == (2, 112, 112, 4)
    np.testing.assert_array_equal(given[..., :3], chips)
    plane = (given[:, ::4, ::4, 3].astype(float) - 128) / 32
    np.testing.assert_allclose(plane.reshape(2, 784)[:, :64], z, atol=0.02)


def test_the_reconstruction_attack_undoes_what_can_be_undone() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (256, 8, 8, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    undo = attackers.reconstruction_attack(255 - raw[:192], raw[:192], epochs=20, seed=0)
    before = np.abs((255 - raw[192:]).astype(int) - raw[192:]).mean()
    assert np.abs(undo(255 - raw[192:]).astype(int) - raw[192:]).mean() < 0.5 * before


def test_logistic_regression_learns_what_is_there_and_nothing_where_nothing_is() -> None:
    random = np.random.default_rng(0)
    truth = random.random(600) < 0.5
    x = (random.standard_normal((600, 20)) + 2 * truth[:, None] * (np.arange(20) == 3)).astype(np.float32)
    found = metrics.separation(attackers.logistic(x[:300], truth[:300])(x[300:]), truth[300:])
    assert found.auc_95[0] > 0.85
    same = np.repeat(x[:1], 600, 0)
    nothing = metrics.separation(attackers.logistic(same[:300], truth[:300])(same[300:]), truth[300:])
    assert (nothing.auc, nothing.auc_95) == (0.5, (0.5, 0.5))
