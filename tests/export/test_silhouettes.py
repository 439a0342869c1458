"""What silhouettes say: an attacker finds what is in what he sees, and nothing in noise."""

import numpy as np

from export import missed, silhouettes
from export.missed import People
from export.silhouettes import Plan, Vectors

PLAN = Plan(columns=(24,), sides=(112,), size=(320, 240), frames=12)


def crowd(count: int, learn: int) -> People:
    chips = np.zeros((1, 112, 112, 3), np.uint8)
    return People(chips, chips, np.arange(count) % 2 == 0, chips, np.arange(learn) % 2 == 0, chips)


def traits(people: People, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    """Of those who walk and of those who are learned on: 16 numbers each, of which the first is their gender."""
    both = []
    for truth in (people.truth, people.learn_truth):
        own = rng.normal(size=(len(truth), 16)).astype(np.float32)
        own[:, 0] = np.where(truth, 3, -3)
        both.append(own)
    return both[0], both[1]


def test_an_attacker_finds_people_in_what_shows_them_and_nobody_in_noise() -> None:
    rng, people = np.random.default_rng(0), crowd(40, 80)
    own, others = traits(people, rng)
    known = {"matcher": (others, own)}
    mixed = rng.normal(size=(16, 300)).astype(np.float32)
    ranks, gender = silhouettes.attack("traits", own @ mixed, others @ mixed, people, known)
    assert ranks["matcher"].share > 0.9
    assert all(found.auc > 0.95 for found in gender.values())
    seen, learned = (rng.normal(size=(n, 300)).astype(np.float32) for n in (40, 80))
    ranks, gender = silhouettes.attack("noise", seen, learned, people, known)
    assert ranks["matcher"].share < 0.2
    assert all(found.auc_95[0] < 0.5 < found.auc_95[1] for found in gender.values())


def test_bits_tell_a_face_from_the_room_and_shades_tell_faces_apart() -> None:
    way, grain = silhouettes.walk(PLAN, 112), silhouettes.grains(PLAN, np.random.default_rng(1))
    bright, brighter = np.full((112, 112, 3), 235, np.uint8), np.full((112, 112, 3), 250, np.uint8)
    bits, shades = silhouettes.looks(way, bright, 24, 112, grain)
    other_bits, other_shades = silhouettes.looks(way, brighter, 24, 112, grain)
    assert 0.2 < bits.mean() < 0.9
    assert (bits != other_bits).mean() < 0.02, "a bit has no shade, but for cells at the edge"
    assert other_shades.mean() > shades.mean() + 0.02


def test_a_walk_stays_in_the_picture() -> None:
    way = silhouettes.walk(PLAN, 112)
    assert isinstance(way, missed.Walk)
    assert (way.corners >= 0).all()
    assert (way.corners <= np.array(PLAN.size) - 112).all()
    assert len(way.corners) == PLAN.frames
