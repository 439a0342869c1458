"""Take a part of the data to a machine that has little room: `python -m export.pack training OUT --data DIR`.

`training` keeps the rows that a sanitizer may see, and 512 of those that a training is validated on. `audit` keeps the
closed set, and of the others what the audit looks at: strangers, and people to learn on. They are kept picture for
picture as they are, so that its cells stay valid where all of the data is. OUT is a folder of sets like the one it was
made from.
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
from export.audit import strangers
from export.audit.report import StrangersPlan
from export.audit.splits import CLOSED_SETS, closed_set_rows
from export.errors import ExportError
from export.recipe import Recipe


def labels(root: Path, names: tuple[str, ...]) -> data.Faces:
    """Read the labels of these sets, without their pictures."""
    tables = [data.read_labels(root, name) for name in names]
    return data.join(data.Faces(np.zeros(len(table["file"]), np.uint8), table) for table in tables)


def chosen(purpose: str, root: Path) -> set[tuple[str, str]]:
    """Return (set, file) of the pictures that are needed for a purpose."""
    if purpose == "training":
        faces = labels(root, Recipe.sets)
        rows = data.training_rows(faces)
        rows[data.validation_sample(data.validation_rows(faces) & (faces["gender"] != ""))] = True
        return pairs(faces, rows)
    faces = labels(root, CLOSED_SETS)
    wanted = pairs(faces, closed_set_rows(faces))
    for name in strangers.SETS:
        faces = labels(root, (name,))
        wanted |= pairs(faces, strangers.picked(faces.columns, StrangersPlan()))
    return wanted


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
        table, pictures = data.set_file(root, f"{name}.csv"), data.set_file(root, f"{name}.tar")
        with table.open(newline="") as handle, (out / table.name).open("w", newline="") as kept:
            reader = csv.DictReader(handle)
            writer = csv.DictWriter(kept, list(reader.fieldnames or []))
            writer.writeheader()
            writer.writerows(row for row in reader if (name, row["file"]) in wanted)
        # compressed, for the headers of small files are a fifth of the whole
        with tarfile.open(pictures) as tar, tarfile.open(out / pictures.name, "w:gz", compresslevel=6) as part:
            for member in tqdm(tar, desc=f"packing {name}", leave=False):
                file = tar.extractfile(member)
                if file is None or (name, member.name) not in wanted:
                    continue
                packet = file.read()
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
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{a.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
