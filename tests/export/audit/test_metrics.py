"""The figures, by hand: scores, intervals, pooling, verification, similarity and the bound."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.audit import mechanisms, metrics

HALF = np.arange(512) % 2 == 0


def test_scores_agree_with_their_definitions() -> None:
    odds = np.array([2.0, 1.0, -1.0, -2.0, 0.5, -0.5])
    truth = np.array([True, True, False, False, False, True])
    s = metrics.scores(odds, truth, (odds, truth), np.arange(6))
    assert s.accuracy == pytest.approx(4 / 6)
    assert s.balanced == pytest.approx(4 / 6)
    assert s.auc == pytest.approx(8 / 9)  # of 9 pairs one is the wrong way round
    assert 0 < s.leak_nats < math.log(2)
    assert metrics.auc(np.zeros(6), truth) == 0.5  # ties say nothing


def test_a_confident_attacker_that_knows_nothing_leaks_nothing() -> None:
    random = np.random.default_rng(0)
    truth = random.random(4000) < 0.56
    odds = 30 * random.standard_normal(4000)
    assert abs(metrics.information(odds[:2000], truth[:2000], odds[2000:], truth[2000:]).mean()) < 0.005


def test_an_attacker_that_knows_everything_leaks_the_entropy() -> None:
    truth = np.random.default_rng(0).random(1000) < 0.56
    leak = metrics.information(np.where(truth, 5.0, -5.0), truth, np.where(truth, 5.0, -5.0), truth).mean()
    p = truth.mean()
    assert leak == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)), abs=0.01)


def test_intervals_are_wider_when_a_persons_pictures_stand_or_fall_together() -> None:
    right = np.repeat(np.random.default_rng(0).random(50) < 0.7, 10).astype(float)
    truth = np.arange(500) % 20 < 10
    (together,) = metrics.bootstrap(np.repeat(np.arange(50), 10), truth, right).mean
    (alone,) = metrics.bootstrap(np.arange(500), truth, right).mean
    assert alone[0] < right.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_pooling_averages_log_odds_over_groups_of_one_person() -> None:
    people = np.array([0, 0, 0, 1, 1, 1])
    truth = people == 0
    odds = np.array([3.0, -1.0, 1.0, -3.0, 1.0, -1.0])
    result = metrics.pooled(odds, truth, people, (1, 2, 3, 4))
    assert (result["1"].balanced, result["1"].people) == (pytest.approx(2 / 3), 2)
    assert result["2"].balanced == 1.0
    assert result["3"].balanced == 1.0
    assert "4" not in result  # no person has so many


def test_verification_accepts_as_many_impostors_as_it_says() -> None:
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(40, 64))
    people = np.repeat(np.arange(40), 4)
    seen = torch.nn.functional.normalize(centres[people] + 0.12 * torch.randn(160, 64))
    tar = metrics.tar_at_far(seen, seen, people, (1e-1, 1e-2))
    assert tar["0.1"] > tar["0.01"] > 0.5
    strangers = torch.nn.functional.normalize(torch.randn(160, 64))
    assert metrics.tar_at_far(strangers, seen, people, (1e-1,))["0.1"] == pytest.approx(0.1, abs=0.05)


def test_structural_similarity_is_one_for_the_same_and_falls_with_blur() -> None:
    chips = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    assert metrics.ssim(chips, chips) == pytest.approx(1)
    weak, strong = (mechanisms.blur(s).apply(chips, HALF[:3], 0) for s in (0.5, 4))
    assert 1 > metrics.ssim(chips, weak) > metrics.ssim(chips, strong)


@pytest.mark.parametrize("budget", [0.1, 0.4, 0.8])
def test_the_bound_is_the_line_where_the_person_determines_the_attribute(budget: float) -> None:
    table = np.array([[0.2, 0.0], [0.2, 0.0], [0.16, 0.0], [0.0, 0.24], [0.0, 0.2]])
    entropy = -(0.56 * math.log(0.56) + 0.44 * math.log(0.44))
    loss, leak = metrics.smallest_loss(table, budget)
    assert leak <= budget + 1e-3
    assert loss == pytest.approx(max(0.0, entropy - budget), abs=0.02)


def test_the_bound_of_a_label_table_is_the_line_that_descent_finds() -> None:
    person = np.repeat(np.arange(5), [20, 20, 16, 24, 20])
    truth = np.isin(person, [0, 1, 2])
    found = metrics.bound(person, truth)
    entropy = -(0.56 * math.log(0.56) + 0.44 * math.log(0.44))
    assert found.entropy_nats == pytest.approx(entropy)
    joint = np.stack([np.bincount(person[truth == man], minlength=5) for man in (False, True)], 1) / 100
    assert found.points[0] == (0.0, pytest.approx(entropy))
    assert found.points[-1] == (pytest.approx(entropy), pytest.approx(0))
    (loss,) = (loss for budget, loss in found.points if budget == 0.2)
    assert loss == pytest.approx(entropy - 0.2)
    assert loss == pytest.approx(metrics.smallest_loss(joint, 0.2)[0], abs=0.02)


def test_the_bound_of_a_table_that_people_share_is_found_by_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people, each of them a man in half of the pictures: nothing need be lost."""
    monkeypatch.setattr(metrics, "BUDGETS", (0.2,))
    person, truth = np.repeat([0, 1], 20), np.tile([True, False], 20)
    assert metrics.bound(person, truth).points == [(0.2, pytest.approx(0, abs=0.02))]


def test_the_bound_is_nothing_where_the_attribute_is_independent() -> None:
    loss, leak = metrics.smallest_loss(np.full((3, 2), 1 / 6), 0.0)
    assert loss == pytest.approx(0, abs=0.02)
    assert leak == pytest.approx(0, abs=1e-3)


def test_calibration_undoes_overconfidence_and_a_wrong_prior() -> None:
    random = np.random.default_rng(0)
    truth = random.random(20000) < 0.5
    honest = np.where(truth, 0.8, -0.8) + 2**0.5 * 0.8**0.5 * random.standard_normal(20000)  # their own log-odds
    fitted = metrics.calibrated(5 * honest + 3, (5 * honest + 3)[:10000], truth[:10000])
    np.testing.assert_allclose(fitted, honest, atol=0.15)


def test_quartiles_are_those_of_each_class() -> None:
    p, truth = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0]), HALF[:6] & False | (np.arange(6) > 2)
    assert metrics.quartiles(p, truth) == {"F": (0.05, 0.1, 0.15), "M": (0.85, 0.9, 0.95)}


def test_the_separation_of_two_classes_has_intervals_over_people() -> None:
    truth = np.random.default_rng(0).random(300) < 0.5
    found = metrics.separation(np.where(truth, 1.0, -1.0) + np.random.default_rng(1).standard_normal(300), truth)
    assert found.auc_95[0] < found.auc < found.auc_95[1]
    assert found.balanced_95[0] < found.balanced < found.balanced_95[1]
    nothing = metrics.separation(np.zeros(300), truth)
    assert (nothing.auc, nothing.auc_95) == (0.5, (0.5, 0.5))


def test_a_household_names_who_is_asked_if_embeddings_tell_people_apart() -> None:
    people = np.repeat(np.arange(10), 4)
    apart = torch.eye(10)[torch.from_numpy(people)]
    assert metrics.household(apart, people, rounds=20) == 1
    torch.manual_seed(0)
    by_chance = metrics.household(F.normalize(torch.randn(800, 64)), np.repeat(np.arange(200), 4))
    assert by_chance == pytest.approx(1 / 8, abs=0.03)


def test_a_household_needs_people_with_one_picture_more_than_are_enrolled() -> None:
    with pytest.raises(ValueError, match="7 people have more than 3 pictures: a household is 8 people"):
        metrics.household(torch.eye(28), np.repeat(np.arange(7), 4))


def test_power_and_chroma_noise_tell_smooth_pictures_from_noisy_ones() -> None:
    random = np.random.default_rng(0)
    smooth = np.full((4, 112, 112, 3), 128, np.uint8) + (np.arange(112, dtype=np.uint8) // 2)[:, None, None]
    gray = random.integers(-20, 20, (4, 112, 112, 1))
    noisy = np.clip(smooth.astype(int) + gray, 0, 255).astype(np.uint8)
    coloured = np.clip(smooth.astype(int) + random.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
    ratio = metrics.radial_power(noisy) / metrics.radial_power(smooth)
    assert ratio[0] < 2
    assert ratio[-1] > 10
    assert metrics.chroma_noise(noisy) < 1
    assert metrics.chroma_noise(coloured) > 5


def test_a_pair_is_accepted_above_the_threshold_that_accepts_so_many_impostors() -> None:
    people = np.repeat(np.arange(3), 2)
    seen = torch.eye(3)[torch.from_numpy(people)]
    who, right = metrics.accepted(seen, seen, people, 0.5)
    assert who.tolist() == people.tolist(), "each picture with the other one of its person"
    assert right.all()
    assert metrics.tar_at_far(seen, seen, people, (0.5,)) == {"0.5": 1.0}
