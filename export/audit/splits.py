"""The people of the audit: the closed set, whose people the attackers know, and the open set, whom nobody has seen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import data

CLOSED_SETS = ("lfw", "glint", "pins")
OPEN_SETS = (*CLOSED_SETS, "celeba", "aaf")
SHARES = {"train": 0.67, "val": 0.13, "test": 0.2}  # of a limited closed set


@dataclass(frozen=True)
class ClosedSet:
    """The closed set's chips and labels; `train`, `val`, `test` are masks [N]."""

    faces: data.Faces
    person: NDArray[np.int64]
    truth: NDArray[np.bool_]
    train: NDArray[np.bool_]
    val: NDArray[np.bool_]
    test: NDArray[np.bool_]

    @property
    def people(self) -> int:
        return int(self.person.max()) + 1

    def fewer(self, n: int) -> NDArray[np.bool_]:
        """A mask [N] that leaves n pictures to learn on, and all others."""
        order = np.random.default_rng(0).permutation(np.flatnonzero(self.train))
        mask = ~self.train
        mask[order[:n]] = True
        return mask


def closed_set(folder: Path, limit: int | None) -> ClosedSet:
    """Read the closed set.

    Raises:
        DataError: a set is missing or broken.
    """
    everyone = data.join(data.load_set(folder, name) for name in CLOSED_SETS)
    faces = everyone.where(everyone["closed_set_split"] != "")
    if limit is not None:
        few = np.zeros(len(faces), np.bool_)
        for name, share in SHARES.items():
            rows = np.random.default_rng(0).permutation(np.flatnonzero(faces["closed_set_split"] == name))
            few[rows[: int(share * limit)]] = True
        faces = faces.where(few)
    person, _ = faces.labels("identity")
    masks = (faces["closed_set_split"] == name for name in SHARES)
    return ClosedSet(faces, person, faces["gender"] == "M", *masks)


def open_set(folder: Path, limit: int) -> tuple[data.Faces, NDArray[np.int64], NDArray[np.bool_]]:
    """People whom neither the sanitizer nor an attacker has seen, with their numbers (alone if unknown) and truth."""
    everyone = data.join(data.load_set(folder, name) for name in OPEN_SETS)
    faces = everyone.where((everyone["identity_split"] == "test") & (everyone["gender"] != ""))
    if len(faces) > limit:
        faces = faces.where(np.random.default_rng(0).permutation(len(faces)) < limit)
    person, _ = faces.labels("identity")
    strangers = person < 0
    person[strangers] = person.max() + 1 + np.arange(int(strangers.sum()))
    return faces, person, faces["gender"] == "M"
