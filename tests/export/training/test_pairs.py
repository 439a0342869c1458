"""Pairs: another picture of the same person, all classes alike, nobody too often."""

import torch

from export.training.pairs import MOST, Pairs


def test_a_picture_comes_with_another_one_of_the_same_person() -> None:
    torch.manual_seed(0)
    people = torch.tensor([5, 0, 5, -1, 0, 5, -1, 0])
    classes = torch.tensor([1, 0, 1, 0, 0, 1, -1, 0])
    rows, others, who = Pairs(torch.arange(8), people, classes).draw(200)
    assert set(rows.tolist()) == {0, 1, 2, 3, 4, 5, 7}, "the seventh has no class"
    assert (people[rows] == people[others]).all()
    alone = people[rows] < 0
    assert (rows[alone] == others[alone]).all()
    assert (rows[~alone] != others[~alone]).all()
    assert all((people[rows[who == i]] == people[rows[who == i][0]]).all() for i in who.unique())
    assert {(i, j) for i, j in zip(rows.tolist(), others.tolist(), strict=True) if i == 0} == {(0, 2), (0, 5)}


def test_classes_are_drawn_equally_often_and_a_person_of_many_pictures_no_more_than_others() -> None:
    torch.manual_seed(0)
    people = torch.cat([torch.zeros(20 * MOST), torch.ones(MOST), torch.full((3,), 2)]).long()
    classes = torch.cat([torch.zeros(21 * MOST), torch.ones(3)]).long()
    rows, _, who = Pairs(torch.arange(len(people)), people, classes).draw(4000)
    assert classes[rows].bincount().tolist() == [2000, 2000]
    assert 900 < (people[rows] == 0).sum() < 1100
    assert len(who.unique()) == 3


def test_only_training_rows_are_drawn_and_counted() -> None:
    torch.manual_seed(0)
    people, classes = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1])
    rows, others, _ = Pairs(torch.tensor([0, 2, 3]), people, classes).draw(64)
    pairs = set(zip(rows.tolist(), others.tolist(), strict=True))
    assert pairs == {(0, 2), (2, 0), (3, 3)}
