"""The people of the closed set, whom the attackers know (`strangers.chosen` has those whom nobody knows).

They are those of the pictures of lfw, glint and pins that have a `closed_set_split`. Attackers train on other pictures
of the same people.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import data

CLOSED_SETS = ("lfw", "glint", "pins")
SHARES = {"train": 0.67, "val": 0.13, "test": 0.2}  # of a limited closed set

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ClosedSet:
    """N chips with their people, numbered from 0, and their truth (a man?); `train`, `val` and `test` are masks [N]."""

    faces: data.Faces
    person: NDArray[np.int64]
    truth: Mask
    train: Mask
    val: Mask
    test: Mask

    @property
    def people(self) -> int:
        """How many people it has."""
        return int(self.person.max()) + 1

    def fewer(self, n: int) -> Mask:
        """Return a mask [N] of n pictures to learn on, and of all others."""
        order = np.random.default_rng(0).permutation(np.flatnonzero(self.train))
        mask = ~self.train
        mask[order[:n]] = True
        return mask

    def where(self, mask: Mask) -> "ClosedSet":
        """Return the part for which `mask` [N] holds; people keep their numbers."""
        masks = (part[mask] for part in (self.truth, self.train, self.val, self.test))
        return ClosedSet(self.faces.where(mask), self.person[mask], *masks)


def closed_set_rows(faces: data.Faces) -> Mask:
    """Return which pictures of `CLOSED_SETS` belong to the closed set."""
    return np.asarray(faces["closed_set_split"] != "")


def closed_set(folder: Path, limit: int | None) -> ClosedSet:
    """Read the closed set, or a part of about `limit` pictures.

    Raises:
        DataError: a set is missing or broken.
    """
    everyone = data.join(data.load_set(folder, name) for name in CLOSED_SETS)
    faces = everyone.where(closed_set_rows(everyone))
    if limit is not None:
        few = np.zeros(len(faces), np.bool_)
        for name, share in SHARES.items():
            rows = np.random.default_rng(0).permutation(np.flatnonzero(faces["closed_set_split"] == name))
            few[rows[: int(share * limit)]] = True
        faces = faces.where(few)
    person, _ = faces.labels("identity")
    masks = (faces["closed_set_split"] == name for name in SHARES)
    return ClosedSet(faces, person, faces["gender"] == "M", *masks)
