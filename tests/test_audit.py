"""The audit: its figures by hand, its attackers on planted leaks, its baselines and its bound."""

import math

import numpy as np
import pytest
import torch

from export import attackers, measure, mechanisms
from export.attackers import Chips, Convolutional, Lesson, Linear

HALF = np.arange(512) % 2 == 0


def test_scores_agree_with_their_definitions() -> None:
    odds = np.array([2.0, 1.0, -1.0, -2.0, 0.5, -0.5])
    truth = np.array([True, True, False, False, False, True])
    s = measure.scores(odds, truth, (odds, truth), np.arange(6))
    assert s["accuracy"] == pytest.approx(4 / 6)
    assert s["balanced"] == pytest.approx(4 / 6)
    assert s["auc"] == pytest.approx(8 / 9)  # of 9 pairs one is the wrong way round
    assert 0 < s["leak_nats"] < math.log(2)
    assert measure.auc(np.zeros(6), truth) == 0.5  # ties tell nothing


def test_a_confident_attacker_that_knows_nothing_leaks_nothing() -> None:
    random = np.random.default_rng(0)
    truth = random.random(4000) < 0.56
    odds = 30 * random.standard_normal(4000)
    assert abs(measure.information(odds[:2000], truth[:2000], odds[2000:], truth[2000:]).mean()) < 0.005


def test_an_attacker_that_knows_everything_leaks_the_entropy() -> None:
    truth = np.random.default_rng(0).random(1000) < 0.56
    told = measure.information(np.where(truth, 5.0, -5.0), truth, np.where(truth, 5.0, -5.0), truth).mean()
    p = truth.mean()
    assert told == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)), abs=0.01)


def test_intervals_are_wider_when_a_persons_pictures_stand_or_fall_together() -> None:
    right = np.repeat(np.random.default_rng(0).random(50) < 0.7, 10).astype(float)
    truth = np.arange(500) % 20 < 10
    (together,) = measure.bootstrap(np.repeat(np.arange(50), 10), truth, right)["mean"]
    (alone,) = measure.bootstrap(np.arange(500), truth, right)["mean"]
    assert alone[0] < right.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_pooling_averages_log_odds_over_groups_of_one_person() -> None:
    people = np.array([0, 0, 0, 1, 1, 1])
    truth = people == 0
    odds = np.array([3.0, -1.0, 1.0, -3.0, 1.0, -1.0])
    result = measure.pooled(odds, truth, people, (1, 2, 3, 4))
    assert result["1"] == {"balanced": pytest.approx(2 / 3), "people": 2}
    assert result["2"]["balanced"] == 1.0
    assert result["3"]["balanced"] == 1.0
    assert "4" not in result  # nobody has so many


def test_verification_accepts_as_many_impostors_as_it_says() -> None:
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(40, 64))
    people = np.repeat(np.arange(40), 4)
    seen = torch.nn.functional.normalize(centres[people] + 0.12 * torch.randn(160, 64))
    tar = measure.tar_at_far(seen, seen, people, (1e-1, 1e-2))
    assert tar["0.1"] > tar["0.01"] > 0.5
    strangers = torch.nn.functional.normalize(torch.randn(160, 64))
    assert measure.tar_at_far(strangers, seen, people, (1e-1,))["0.1"] == pytest.approx(0.1, abs=0.05)


def test_structural_similarity_is_one_for_the_same_and_falls_with_blur() -> None:
    chips = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    assert measure.ssim(chips, chips) == pytest.approx(1)
    weak, strong = (mechanisms.blur(s).apply(chips, HALF[:3], 0) for s in (0.5, 4))
    assert 1 > measure.ssim(chips, weak) > measure.ssim(chips, strong)


@pytest.mark.parametrize("budget", [0.1, 0.4, 0.8])
def test_the_bound_is_the_line_where_the_person_determines_the_attribute(budget: float) -> None:
    table = np.array([[0.2, 0.0], [0.2, 0.0], [0.16, 0.0], [0.0, 0.24], [0.0, 0.2]])
    entropy = -(0.56 * math.log(0.56) + 0.44 * math.log(0.44))
    loss, told = measure.smallest_loss(table, budget)
    assert told <= budget + 1e-3
    assert loss == pytest.approx(max(0.0, entropy - budget), abs=0.02)


def test_the_bound_is_nothing_where_the_attribute_is_independent() -> None:
    loss, told = measure.smallest_loss(np.full((3, 2), 1 / 6), 0.0)
    assert loss == pytest.approx(0, abs=0.02)
    assert told == pytest.approx(0, abs=1e-3)


def marked(n: int, seed: int) -> tuple[Chips, np.ndarray]:
    """A planted cheat: the very same face for all, but for one pixel that tells the class."""
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
    lesson = Lesson([train], truth, val, val_truth)
    judge = attackers.fit(Linear(), lesson, epochs=8, seed=0, rate=1e-3, name="test")
    assert ((judge(test) > 0) == test_truth).mean() > 0.95


def test_a_fresh_network_finds_a_mark_that_moves() -> None:
    random = np.random.default_rng(0)
    truth = random.random(640) < 0.5
    chips = random.integers(90, 160, (640, 112, 112, 3)).astype(np.uint8)
    for i in np.flatnonzero(truth):
        y, x = random.integers(20, 80, 2)
        chips[i, y : y + 8, x : x + 8] = 255
    lesson = Lesson([chips[:448]], truth[:448], chips[448:512], truth[448:512])
    judge = attackers.fit(Convolutional(4), lesson, epochs=12, seed=0, rate=2e-3, name="test")
    assert ((judge(chips[512:]) > 0) == truth[512:]).mean() > 0.9


def test_a_fresh_attacker_finds_nothing_where_nothing_is() -> None:
    chips, truth = marked(512, 0)
    chips[:, 60, 50] = 128
    lesson = Lesson([chips[:320]], truth[:320], chips[320:384], truth[320:384])
    judge = attackers.fit(Convolutional(4), lesson, epochs=2, seed=0, rate=2e-3, name="test")
    assert len(np.unique(judge(chips[384:]) > 0)) == 1  # the same picture, the same verdict


def test_a_probe_reads_an_embedding_that_tells() -> None:
    torch.manual_seed(0)
    truth = HALF
    seen = torch.randn(512, 16)
    seen[:, 3] += torch.from_numpy(np.where(truth, 3.0, -3.0)).float()
    seen = torch.nn.functional.normalize(seen)
    net = attackers.probe([seen[:256]], truth[:256], seen[256:384], truth[256:384])
    assert ((net.odds(seen[384:]) > 0) == truth[384:]).mean() > 0.95


def test_an_attacker_that_is_told_the_noise_gets_all_of_it() -> None:
    z = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    chips = np.zeros((2, 112, 112, 3), np.uint8)
    told = attackers.with_noise(chips, z)
    assert told.shape == (2, 112, 112, 4)
    np.testing.assert_array_equal(told[..., :3], chips)
    plane = (told[:, ::4, ::4, 3].astype(float) - 128) / 32
    np.testing.assert_allclose(plane.reshape(2, 784)[:, :64], z, atol=0.02)


def test_recovery_undoes_what_can_be_undone() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (256, 28, 28, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    undo = attackers.restore(255 - raw[:192], raw[:192], epochs=20, seed=0)
    before = np.abs((255 - raw[192:]).astype(int) - raw[192:]).mean()
    assert np.abs(undo(255 - raw[192:]).astype(int) - raw[192:]).mean() < 0.5 * before


def test_the_baselines_do_what_they_say() -> None:
    random = np.random.default_rng(0)
    chips = random.integers(0, 256, (64, 112, 112, 3)).astype(np.uint8)
    blocks = mechanisms.pixelate(8).apply(chips, HALF[:64], 0)
    assert np.all(blocks.reshape(64, 8, 14, 8, 14, 3).std((2, 4)) == 0)
    assert np.abs(blocks[:, ::14, ::14].astype(float) - chips.reshape(64, 8, 14, 8, 14, 3).mean((2, 4))).max() <= 1

    grey = np.full((64, 112, 112, 3), 128, np.uint8)
    noisy = mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 0)  # Laplace of scale 255 * 16 / (256 * 2) = 8
    assert np.abs(noisy[:, ::16, ::16].astype(float) - 128).mean() == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 0))
    assert not np.array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 1))
