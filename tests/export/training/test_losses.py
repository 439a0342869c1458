"""The losses, computed by hand."""

import math

import torch

from export.training import losses


def test_the_losses_are_the_papers_by_hand() -> None:
    prior = torch.tensor([0.25, 0.75])
    logits = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.25), math.log(0.75)]])
    # KL(P(p) || P(p|S(x))): the prior comes first
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    torch.testing.assert_close(losses.privacy_loss(prior, logits), torch.tensor([by_hand, 0.0]))
    other_way = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert abs(by_hand - other_way) > 0.01, "the two directions differ here, so the test can tell them apart"

    # KL(P(u|x) || P(u|S(x))): the raw posterior comes first
    raw, sanitized = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.tensor([[math.log(0.6), math.log(0.4)]])
    expected = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    torch.testing.assert_close(losses.utility_loss(raw, sanitized), torch.tensor([expected]))
    assert abs(expected - losses.utility_loss(sanitized, raw).item()) > 0.01, "the two directions differ here, too"

    mix = losses.sanitizer_loss(torch.tensor([2.0, 2.0]), torch.tensor([5.0, 5.0]), torch.tensor([[0.0], [0.3]]))
    torch.testing.assert_close(mix, torch.tensor([2.0, 0.7 * 2 + 0.3 * 5]))


def test_the_detection_loss_counts_score_and_landmarks_where_a_face_was() -> None:
    raw = torch.tensor([[math.log(0.9), math.log(0.1)]]), torch.zeros(1, 2, 10)
    sanitized = torch.tensor([[math.log(0.3), math.log(0.9)]]), torch.full((1, 2, 10), 2.0)
    # the second anchor saw no face: its score may rise, its landmarks may move
    torch.testing.assert_close(losses.detection_loss(raw, sanitized), torch.tensor([math.log(3) + 0.2]))


def test_the_attackers_loss_counts_raw_and_sanitized_pictures() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    loss = losses.attacker_loss(logits, -logits, torch.tensor([1]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.75) - math.log(0.25)))
    unknown = losses.attacker_loss(
        logits.repeat(2, 1), -logits.repeat(2, 1), torch.tensor([1, -1]), torch.tensor([1, -1])
    )
    torch.testing.assert_close(unknown, loss)  # who is not known teaches nothing
