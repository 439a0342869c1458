"""Take a part of the data to a machine that has little room: `python -m export.pack training OUT --data DIR`.

`training` keeps the rows that a sanitizer may see, and 512 of those that a training is validated on. `audit` keeps the
closed set and the part of the open set that the audit looks at, picture for picture as they are, so that its cells stay
valid where all of the data is. OUT is a folder of sets like the one it was made from.
"""

import argparse
import csv
import io
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export import data
from export.audit.report import Plan
from export.audit.splits import CLOSED_SETS, OPEN_SETS, closed_set_rows, open_set_rows
from export.errors import DataError, ExportError
from export.recipe import Recipe

VALIDATION = 512


def labels(root: Path, names: tuple[str, ...]) -> data.Faces:
    """Read the tables of these sets, without their pictures."""
    parts = []
    for name in names:
        with (root / f"{name}.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        columns = {c: np.array([row[c] for row in rows]) for c in data.COLUMNS} | {"set": np.full(len(rows), name)}
        parts.append(data.Faces(np.zeros(len(rows), np.uint8), columns))
    return data.join(parts)


def chosen(purpose: str, root: Path) -> set[tuple[str, str]]:
    """Return (set, file) of the pictures that are needed for a purpose."""
    if purpose == "training":
        faces = labels(root, Recipe.sets)
        rows = data.training_rows(faces)
        validation = np.flatnonzero(data.validation_rows(faces) & (faces["gender"] != ""))
        rows[np.random.default_rng(0).permutation(validation)[:VALIDATION]] = True
        return pairs(faces, rows)
    faces = labels(root, CLOSED_SETS)
    closed = pairs(faces, closed_set_rows(faces))
    faces = labels(root, OPEN_SETS)
    rows = open_set_rows(faces, Plan.open_limit)
    return closed | pairs(faces, rows)


def pairs(faces: data.Faces, rows: NDArray[np.bool_]) -> set[tuple[str, str]]:
    """Return (set, file) of these rows."""
    return set(zip(faces["set"][rows].tolist(), faces["file"][rows].tolist(), strict=True))


def pack(purpose: str, root: Path, out: Path, quality: int | None) -> int:
    """Write the part; return the bytes that it takes.

    Args:
        purpose: "training" or "audit".
        root: a folder of sets.
        out: the folder to write.
        quality: of WebP, to encode the pictures anew; None leaves them as they are.

    Raises:
        DataError: a set is missing.
    """
    wanted = chosen(purpose, root)
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted({name for name, _ in wanted}):
        table, pictures = root / f"{name}.csv", root / f"{name}.tar"
        if not pictures.is_file():
            raise DataError(f"{pictures} is not there: a set is a .tar of chips and a .csv of the same name")
        with table.open(newline="") as handle, (out / table.name).open("w", newline="") as kept:
            reader = csv.DictReader(handle)
            writer = csv.DictWriter(kept, list(reader.fieldnames or []))
            writer.writeheader()
            writer.writerows(row for row in reader if (name, row["file"]) in wanted)
        # compressed, for the headers of small files are a fifth of the whole
        with tarfile.open(pictures) as tar, tarfile.open(out / pictures.name, "w:gz", compresslevel=6) as part:
            for member in tqdm(tar, desc=f"packing {name}", leave=False):
                handle_ = tar.extractfile(member)
                if handle_ is None or (name, member.name) not in wanted:
                    continue
                packet = handle_.read()
                if quality is not None:
                    packet = _as_webp(packet, quality)
                slim = tarfile.TarInfo(member.name)
                slim.size = len(packet)
                part.addfile(slim, io.BytesIO(packet))
    return sum(path.stat().st_size for path in out.iterdir())


def _as_webp(packet: bytes, quality: int) -> bytes:
    """Encode a picture anew."""
    chip = cv2.imdecode(np.frombuffer(packet, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".webp", np.asarray(chip), [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m export.pack", description=__doc__)
    parser.add_argument("purpose", choices=["training", "audit"])
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    parser.add_argument("--quality", type=int, help="encode the pictures anew as WebP (default: as they are)")
    a = parser.parse_args(arguments)
    try:
        if a.purpose == "audit" and a.quality is not None:
            raise ExportError("an audit looks at the pictures as they are: leave out --quality")
        size = pack(a.purpose, a.data, a.out, a.quality)
    except (ExportError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{a.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
