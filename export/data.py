"""Faces for training and for the audit: aligned 112x112 RGB chips with their labels, all in memory.

Two layouts are read:

* *sets*: a folder with `<name>.tar` of aligned chips and `<name>.csv` beside it for each set, with the columns
  `file, identity, gender, age, identity_split, closed_set_split` (an empty cell means unknown);
* *a folder of people*, in the manner of LFW: one sub-folder of pictures per person, and one CSV file whose first
  column is the person (the sub-folder's name) and whose other columns are attributes. Faces are found and aligned as
  the camera does it.
"""

import csv
import hashlib
import itertools
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan.faces import CHIP, Detector, alignment, cut, spread
from export.errors import DataError

SEARCHED = 640  # pixels: the longest side of the copy in which a folder's faces are searched
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MOST_VALIDATION = 512  # pictures on which a training measures itself
COLUMNS = ("file", "identity", "gender", "age", "identity_split", "closed_set_split")


@dataclass(frozen=True)
class Faces:
    """N aligned faces. `columns` holds the labels as text, one array of N per CSV column; "" means unknown."""

    chips: NDArray[np.uint8]  # [N, 112, 112, 3] RGB
    columns: dict[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, column: str) -> NDArray[np.str_]:
        if column not in self.columns:
            raise DataError(f"no column {column!r} in this data; it has {', '.join(sorted(self.columns))}")
        return self.columns[column]

    def where(self, mask: NDArray[np.bool_]) -> "Faces":
        """Return the faces for which `mask` [N] holds."""
        return replace(self, chips=self.chips[mask], columns={k: v[mask] for k, v in self.columns.items()})

    def labels(self, column: str, bins: Sequence[float] = ()) -> tuple[NDArray[np.int64], list[str]]:
        """Return the class numbers [N] of a column (-1 where unknown) and the class names, sorted.

        Args:
            column: a CSV column.
            bins: ascending edges that group a column of numbers: [30, 45] makes "<30", "30 to <45" and ">=45".

        Raises:
            DataError: no such column, or a value that is no number where there are bins.
        """
        values = self[column]
        if bins:
            edges = [f"{edge:g}" for edge in bins]
            known = values != ""
            try:
                groups = np.digitize(values[known].astype(float), bins)
            except ValueError as error:
                raise DataError(f"column {column!r} cannot be grouped by {', '.join(edges)}: {error}") from error
            grouped = np.full(len(values), -1, np.int64)
            grouped[known] = groups
            between = [f"{low} to <{high}" for low, high in itertools.pairwise(edges)]
            return grouped, [f"<{edges[0]}", *between, f">={edges[-1]}"]
        names = sorted(set(values.tolist()) - {""})
        number = {name: i for i, name in enumerate(names)} | {"": -1}
        return np.array([number[v] for v in values.tolist()], np.int64), names

    def digest(self) -> str:
        """Return the SHA-256 of pixels and labels, which a model's provenance names."""
        sha = hashlib.sha256(np.ascontiguousarray(self.chips).data)
        for name in sorted(self.columns):
            sha.update(("\0".join([name, *self.columns[name].tolist()])).encode())
        return sha.hexdigest()


def join(parts: Iterable[Faces]) -> Faces:
    """Join several sets to one; a column that a set lacks is unknown there."""
    sets = list(parts)
    names = sorted({name for part in sets for name in part.columns})
    return Faces(
        np.concatenate([part.chips for part in sets]),
        {n: np.concatenate([p.columns.get(n, np.full(len(p), "")) for p in sets]) for n in names},
    )


def load(root: Path, sets: Sequence[str]) -> Faces:
    """Read the faces that a training learns from and validates on: of these sets, or of a folder of people.

    Args:
        root: a folder with a .tar file of each set, or, where it holds no .tar file, a folder of people.
        sets: names of sets; a folder of people has none.

    Raises:
        DataError: as `load_set` and `load_folder`.
    """
    if any(root.glob("*.tar")) or not any(path.is_dir() for path in root.glob("*")):
        faces = join(load_set(root, name) for name in sets)
    else:
        faces = load_folder(root)
    return faces.where(training_rows(faces) | validation_rows(faces))


def load_set(root: Path, name: str, rows: NDArray[np.bool_] | None = None) -> Faces:
    """Read `<root>/<name>.tar` and its CSV, or the rows of it [N] that are asked for.

    Raises:
        DataError: a file, a column or a picture is missing, or a picture is not a 112x112 RGB chip.
    """
    columns, pictures = read_labels(root, name), set_file(root, f"{name}.tar")
    if rows is not None:
        columns = {column: values[rows] for column, values in columns.items()}
    files = columns["file"].tolist()
    chips = np.empty((len(files), CHIP, CHIP, 3), np.uint8)
    index = {file: i for i, file in enumerate(files)}
    missing = set(index)
    with tarfile.open(pictures) as tar:
        for member in tqdm(tar, total=len(files), desc=f"reading {name}", leave=False):
            content = tar.extractfile(member)
            if content is None or member.name not in index:
                continue
            chip = cv2.imdecode(np.frombuffer(content.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            if chip is None or chip.shape != (CHIP, CHIP, 3):
                raise DataError(f"{member.name} in {pictures} is not a picture of {CHIP}x{CHIP} pixels")
            chips[index[member.name]] = chip
            missing.discard(member.name)
    if missing:
        raise DataError(f"{pictures} lacks {len(missing)} of the pictures that its CSV lists, such as {min(missing)}")
    return Faces(chips, columns)


def read_labels(root: Path, name: str) -> dict[str, NDArray[np.str_]]:
    """Read the labels of a set as `Faces.columns`, with its name in the column `set`.

    Raises:
        DataError: the CSV or a column of it is missing.
    """
    table = set_file(root, f"{name}.csv")
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise DataError(f"{table} has no rows or lacks one of the columns {', '.join(COLUMNS)}")
    return {c: np.array([row[c] for row in rows]) for c in COLUMNS} | {"set": np.full(len(rows), name)}


def set_file(root: Path, name: str) -> Path:
    """Return the path of a set's file.

    Raises:
        DataError: it is not there.
    """
    if not (root / name).is_file():
        raise DataError(f"{root / name} is not there: a set is a .tar of chips and a .csv of the same name")
    return root / name


def load_folder(root: Path, held_out: float = 0.2) -> Faces:
    """Read `<root>/<person>/*.jpg` (LFW's layout) and the one CSV file in `root`; align each picture's largest face.

    Pictures without a face are left out.

    Args:
        root: the folder of people.
        held_out: the share of people, chosen by a digest of their names, who are "test"; half as many are "val", and
            the rest "train". So no person is in two splits.

    Raises:
        DataError: no pictures, not one CSV, or a person who is not in the CSV.
    """
    attributes, people = _read_people(root)
    detector = Detector(SEARCHED)
    chips: list[NDArray[np.uint8]] = []
    rows: list[dict[str, str]] = []
    paths = sorted(path for path in root.glob("*/*") if path.suffix.lower() in PICTURES)
    for path in tqdm(paths, desc="aligning", leave=False):
        person = path.parent.name
        if person not in people:
            raise DataError(f"the CSV of {root} has no row for {person!r}, whose pictures are in {path.parent}")
        picture = cv2.imread(str(path))
        if picture is None:
            raise DataError(f"{path} cannot be read as a picture")
        found = [face for face in detector(np.asarray(picture, np.uint8)) if spread(face.landmarks)]
        if not found:
            continue
        largest = max(found, key=lambda face: float(face.box[2] * face.box[3]))
        chips.append(cut(np.asarray(picture, np.uint8), alignment(largest.landmarks)))
        row = {a: people[person][a] or "" for a in attributes}
        row |= {"file": str(path.relative_to(root)), "identity": person, "identity_split": _split(person, held_out)}
        rows.append(row)
    if not chips:
        raise DataError(f"no face in any of the {len(paths)} pictures of {root}")
    names = {name for row in rows for name in row} | set(COLUMNS)
    return Faces(np.stack(chips), {n: np.array([row.get(n, "") for row in rows]) for n in sorted(names)})


def _read_people(root: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the attributes that a folder's CSV has, and its rows by person."""
    tables = sorted(root.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(table.name for table in tables) or "none"
        raise DataError(
            f"expected one CSV of people's attributes beside their sub-folders in {root}; found {found} "
            "(a folder of sets has a .tar beside each .csv)"
        )
    with tables[0].open(newline="") as handle:
        reader = csv.DictReader(handle)
        person, *attributes = reader.fieldnames or [""]
        return attributes, {row[person]: row for row in reader}


def _split(person: str, held_out: float) -> str:
    """Return the split of a person, the same at each reading."""
    share = int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if share < held_out else "val" if share < 1.5 * held_out else "train"


def view(chip: NDArray[np.uint8], row: int, number: int) -> NDArray[np.uint8]:
    """Return a view of a chip [112, 112, 3]: 0 as it is, 1 mirrored, from 2 on jittered.

    A jittered view is turned, shifted and scaled by a few per cent, in other light, and perhaps mirrored or through
    JPEG. It is the same for the same row and number.
    """
    if number == 0:
        return chip
    if number == 1:
        return np.ascontiguousarray(chip[:, ::-1])
    random = np.random.default_rng((row, number))
    zoom, turn = np.exp(random.normal(0, 0.04)), np.radians(random.normal(0, 3))
    a, b, centre = zoom * np.cos(turn), zoom * np.sin(turn), CHIP / 2
    dx, dy = random.normal(0, 2, 2)
    matrix = np.array([[a, -b, centre * (1 - a + b) + dx], [b, a, centre * (1 - a - b) + dy]])
    moved = cv2.warpAffine(chip, matrix, (CHIP, CHIP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mean = moved.mean()
    lit = (moved - mean) * np.exp(random.normal(0, 0.15)) + mean + random.normal(0, 12)
    result = np.clip(lit, 0, 255).astype(np.uint8)
    if random.random() < 0.5:
        _, packet = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(50, 95))])
        result = np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(result[:, ::-1]) if random.random() < 0.5 else result


def training_rows(faces: Faces) -> NDArray[np.bool_]:
    """Return the rows to train on: people of `identity_split = train`, without closed-set val and test pictures."""
    return _rows(faces, "train", ["", "train"])


def validation_rows(faces: Faces) -> NDArray[np.bool_]:
    """Return the rows to validate on: people of `identity_split = val`, without closed-set test pictures."""
    return _rows(faces, "val", ["", "train", "val"])


def validation_sample(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Draw at most MOST_VALIDATION of these rows [N]; the same at each call."""
    drawn: NDArray[np.int64] = np.random.default_rng(0).permutation(np.flatnonzero(rows))[:MOST_VALIDATION]
    return drawn


def _rows(faces: Faces, split: str, closed: Sequence[str]) -> NDArray[np.bool_]:
    """Return the rows of people of a split, in these splits of the closed set."""
    rows: NDArray[np.bool_] = (faces["identity_split"] == split) & np.isin(faces["closed_set_split"], closed)
    return rows
