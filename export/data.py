"""Faces for training and for the audit: aligned 112x112 RGB chips with their labels, all in memory.

Two layouts are read:

* a *set*: `<name>.tar` of aligned chips and `<name>.csv` beside it, with the columns `file, identity, gender, age,
  identity_split, closed_set_split` (an empty cell means unknown);
* a *folder* in the manner of LFW: one sub-folder of pictures per person, and a CSV whose first column is the person
  and whose other columns are attributes. Faces are found and aligned here, with OpenCV's own YuNet runner.
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

from export.errors import DataError

CHIP = 112
# ArcFace's five landmarks on a 112x112 chip, left to right in the picture: eyes, nose, corners of the mouth
# (Deng et al., "ArcFace", 2019; insightface's reference code).
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
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
        """The faces for which `mask` [N] holds."""
        return replace(self, chips=self.chips[mask], columns={k: v[mask] for k, v in self.columns.items()})

    def labels(self, column: str, bins: Sequence[float] = ()) -> tuple[NDArray[np.int64], list[str]]:
        """Class numbers [N] of a column (-1 where unknown) and the class names, sorted.

        A column of numbers becomes groups by `bins`, their ascending edges: [30, 45] makes "<30", "30 to <45" and ">=45".

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
        """SHA-256 over pixels and labels: what a model's provenance names."""
        sha = hashlib.sha256(np.ascontiguousarray(self.chips))
        for name in sorted(self.columns):
            sha.update(("\0".join([name, *self.columns[name].tolist()])).encode())
        return sha.hexdigest()


def join(parts: Iterable[Faces]) -> Faces:
    """Several sets as one; a column that one of them lacks is unknown there."""
    sets = list(parts)
    names = sorted({name for part in sets for name in part.columns})
    return Faces(
        np.concatenate([part.chips for part in sets]),
        {n: np.concatenate([p.columns.get(n, np.full(len(p), "")) for p in sets]) for n in names},
    )


def load_set(root: Path, name: str) -> Faces:
    """Read `<root>/<name>.tar` and its CSV.

    Raises:
        DataError: a file, a column or a picture is missing, or a picture is not a 112x112 RGB chip.
    """
    table, pictures = root / f"{name}.csv", root / f"{name}.tar"
    for path in (table, pictures):
        if not path.is_file():
            raise DataError(f"{path} is not there: a set is a .tar of chips and a .csv of the same name")
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise DataError(f"{table} has no rows or lacks one of the columns {', '.join(COLUMNS)}")
    columns = {c: np.array([row[c] for row in rows]) for c in COLUMNS} | {"set": np.full(len(rows), name)}
    chips = np.empty((len(rows), CHIP, CHIP, 3), np.uint8)
    index = {row["file"]: i for i, row in enumerate(rows)}
    missing = set(index)
    with tarfile.open(pictures) as tar:
        for member in tqdm(tar, total=len(rows), desc=f"reading {name}", leave=False):
            handle_ = tar.extractfile(member)
            if handle_ is None or member.name not in index:
                continue
            chip = cv2.imdecode(np.frombuffer(handle_.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            if chip is None or chip.shape != (CHIP, CHIP, 3):
                raise DataError(f"{member.name} in {pictures} is not a picture of {CHIP}x{CHIP} pixels")
            chips[index[member.name]] = chip
            missing.discard(member.name)
    if missing:
        raise DataError(f"{pictures} lacks {len(missing)} of the pictures that {table} lists, such as {min(missing)}")
    return Faces(chips, columns)


def load_folder(root: Path, table: Path, detector: Path, held_out: float = 0.2) -> Faces:
    """Read `<root>/<person>/*.jpg` (LFW's layout) with the attributes of `table`; align each picture's largest face.

    People, not pictures, are split: a share `held_out` of them, chosen by a digest of their names, is "test", half
    as many "val", the rest "train". Pictures without a face are left out (and counted on the progress bar).

    Raises:
        DataError: no pictures, no such CSV, or a person whom the CSV does not know.
    """
    if not root.is_dir() or not table.is_file():
        raise DataError(f"expected a folder of people at {root} and a CSV of their attributes at {table}")
    with table.open(newline="") as handle:
        reader = csv.DictReader(handle)
        key, *attributes = reader.fieldnames or [""]
        people = {row[key]: row for row in reader}
    finder = cv2.FaceDetectorYN.create(str(detector), "", (CHIP, CHIP), 0.6)
    chips: list[NDArray[np.uint8]] = []
    rows: list[dict[str, str]] = []
    paths = sorted(p for p in root.glob("*/*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".bmp"})
    for path in tqdm(paths, desc="aligning", leave=False):
        person = path.parent.name
        if person not in people:
            raise DataError(f"{table} has no row for {person!r}, whose pictures are in {path.parent}")
        picture = cv2.imread(str(path))
        if picture is None:
            raise DataError(f"{path} cannot be read as a picture")
        finder.setInputSize((picture.shape[1], picture.shape[0]))
        _, found = finder.detect(picture)
        if found is None:
            continue
        largest = found[np.argmax(found[:, 2] * found[:, 3])]
        chips.append(align(picture[..., ::-1], largest[4:14].reshape(5, 2)))
        share = int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) / 2**32
        split = "test" if share < held_out else "val" if share < 1.5 * held_out else "train"
        row = {a: people[person][a] for a in attributes}
        rows.append(row | {"file": str(path.relative_to(root)), "identity": person, "identity_split": split})
    if not chips:
        raise DataError(f"no face in any of the {len(paths)} pictures of {root}")
    names = {name for row in rows for name in row} | set(COLUMNS)
    return Faces(np.stack(chips), {n: np.array([row.get(n, "") for row in rows]) for n in sorted(names)})


def align(picture: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut a chip: the least-squares similarity that takes five landmarks [5, 2] to the template (Umeyama 1991)."""
    source = landmarks[:, 0] + 1j * landmarks[:, 1]  # a similarity of the plane is z -> a z + b
    target = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    centred = source - source.mean()
    a = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
    b = target.mean() - a * source.mean()
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return cv2.warpAffine(
        np.ascontiguousarray(picture), matrix, (CHIP, CHIP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)


def view(chip: NDArray[np.uint8], row: int, number: int) -> NDArray[np.uint8]:
    """A view of a chip [112, 112, 3]: 0 as it is, 1 mirrored, and from 2 on jittered: turned, shifted, scaled by a few
    per cent, in other light, and perhaps mirrored or through JPEG. The same for the same row and number."""
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
    """Rows a sanitizer may see: people of `identity_split = train`, without the closed set's val and test pictures."""
    return (faces["identity_split"] == "train") & np.isin(faces["closed_set_split"], ["", "train"])


def validation_rows(faces: Faces) -> NDArray[np.bool_]:
    """Rows for choosing and calibrating: people of `identity_split = val`, again without closed-set test pictures."""
    return (faces["identity_split"] == "val") & np.isin(faces["closed_set_split"], ["", "train", "val"])
