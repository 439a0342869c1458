"""The losses, computed by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

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


def test_the_contrastive_loss_leaves_other_pictures_of_the_same_person_out() -> None:
    found = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    keys = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 0.5]]))
    cosines = found @ keys.T
    # the first and the third are one person: neither is another for the other
    first = -torch.log_softmax(cosines[0, :2] / 0.5, 0)[0]
    second = -torch.log_softmax(cosines[1] / 0.5, 0)[1]
    third = -torch.log_softmax(cosines[2, 1:] / 0.5, 0)[1]
    loss = losses.contrastive_loss(found, keys, torch.tensor([7, 3, 7]), temperature=0.5)
    torch.testing.assert_close(loss, torch.stack([first, second, third]))


def test_the_distribution_loss_is_the_distance_between_the_codes_of_two_classes() -> None:
    torch.manual_seed(0)
    codes = torch.randn(40, 4)
    moved = torch.cat([codes, codes[torch.randperm(40)] + torch.tensor([2.0, 0.0, 0.0, 0.0])])
    classes = torch.arange(80) // 40
    assert losses.distribution_loss(moved - 2 * classes[:, None] * F.one_hot(torch.tensor(0), 4), classes) < 1e-9
    # a shift of length 2 is seen along each direction by its part: the mean square of four dimensions is 4 / 4
    found = losses.distribution_loss(moved, classes, directions=4096)
    assert found.item() == pytest.approx(1.0, rel=0.1)
    fewer = losses.distribution_loss(moved[:60], classes[:60], directions=4096)
    assert 0.5 < fewer.item() < 2, "classes need not be as large as each other"
    unknown = torch.where(classes == 1, -1, classes)
    assert losses.distribution_loss(moved, unknown) == 0
    three = torch.cat([moved, moved[:40]]), torch.arange(120) // 40
    assert losses.distribution_loss(*three, directions=4096).item() == pytest.approx(2 / 3, rel=0.15), "of three pairs"


def test_coarse_colour_keeps_the_brightness_and_loses_specks() -> None:
    grey = torch.rand(2, 1, 16, 16).expand(-1, 3, -1, -1)
    torch.testing.assert_close(losses.coarse_colour(grey), grey)
    speck = torch.full((1, 3, 16, 16), 0.5)
    speck[:, 0, 4, 4] += 0.2
    coarse = losses.coarse_colour(speck)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(torch.einsum("c,nchw->nhw", luma, coarse), torch.einsum("c,nchw->nhw", luma, speck))
    assert losses.chroma(coarse).abs().max() < losses.chroma(speck).abs().max() / 20


def test_only_the_brightness_of_a_judged_picture_has_a_gradient() -> None:
    picture = torch.rand(2, 3, 8, 8, requires_grad=True)
    judged = losses.brightness_alone(picture)
    torch.testing.assert_close(judged, picture)
    losses.chroma(judged).square().sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().max() < 1e-6, "a judge that likes a colour changes nothing"
    (gradient,) = torch.autograd.grad(losses.brightness_alone(picture)[:, 1].sum(), picture)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 3), msg="one colour alone would tint the face")


def test_the_spectrum_loss_sees_softness_and_nothing_shared_makes_up_for_it() -> None:
    torch.manual_seed(0)
    raw, others = torch.rand(2, 24, 3, 112, 112)
    assert losses.spectrum_loss(raw, raw) == 0
    alike = losses.spectrum_loss(raw, others)
    assert alike < 0.1, "of other pictures of the same kind"
    blurred = F.avg_pool2d(others, 3, 1, 1)
    soft = losses.spectrum_loss(raw, blurred)
    assert soft > 20 * alike
    speck, grid = blurred.clone(), blurred.clone()
    speck[::2, ..., 50:52, 50:52] = 30
    assert losses.spectrum_loss(raw, speck) > 0.9 * soft, "a speck in some of the faces"
    grid[..., ::4, ::4] += 0.5
    assert losses.spectrum_loss(raw, grid) > 0.99 * soft, "a grid over all of them"


def test_the_mean_loss_sees_a_mark_that_all_faces_share() -> None:
    torch.manual_seed(0)
    raw, drawn = torch.rand(2, 24, 3, 112, 112)
    marked = drawn.clone()
    marked[..., 50:54, 50:54] += 0.5
    by_chance = losses.mean_loss(raw, drawn)
    assert losses.mean_loss(raw, raw) == 0
    assert losses.mean_loss(raw, marked) - by_chance == pytest.approx(0.25 * 16 / 112**2, rel=0.3)


def test_chroma_is_what_a_picture_has_beside_its_brightness() -> None:
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    torch.testing.assert_close(losses.chroma(grey), torch.zeros(2, 2, 8, 8), atol=1e-6, rtol=0)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    blue_less, red_more = losses.chroma(red).mean((0, 2, 3)).tolist()
    assert red_more == pytest.approx(0.5, abs=0.01)
    assert blue_less == pytest.approx(-0.169, abs=0.01)
