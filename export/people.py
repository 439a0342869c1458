"""What strangers look like, for one's own eyes: `python -m export.people MODEL --data DIR [--beside MODEL]`.

A picture of twelve strangers, six women and six men: the raw face, and what leaves at each alpha; with `--beside`
another model's below. It is written outside the project, and nowhere inside: the sets may not be redistributed, nor may
pictures that were made of them. The project itself shows the two people of its clip (`export.figures`).
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.model.load import Model, prepare
from export import data
from export.audit import mechanisms
from export.audit.attackers import Chips
from export.audit.command import errors_as_lines
from export.audit.device import jpeg
from export.audit.report import StrangersPlan
from export.audit.strangers import SETS, picked
from export.errors import ExportError

PROJECT = Path(__file__).resolve().parents[1]
ALPHAS = (0.0, 0.4, 0.7, 1.0)
PEOPLE = 12
EDGE = 4  # pixels between two models


def shown(folder: Path, count: int = PEOPLE) -> Chips:
    """Return a picture of each of some strangers [count, 112, 112, 3]: women first, the sets in turn.

    Raises:
        DataError: a set is missing or broken.
    """
    plan = StrangersPlan(photos=1, unknown=count, learn=0)
    sets = [data.load_set(folder, name, picked(data.read_labels(folder, name), plan)) for name in SETS]
    chosen: list[NDArray[np.uint8]] = []
    for gender in ("F", "M"):
        order = [faces.chips[faces["gender"] == gender] for faces in sets]
        turns = [chips[turn] for turn in range(count) for chips in order if turn < len(chips)]
        chosen += turns[: count // 2]
    return np.stack(chosen)


def grid(models: Sequence[Model], chips: Chips, alphas: Sequence[float], seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture, RGB: a column for each face; the raw faces on top, then of each model a row for each alpha."""
    nobody = np.zeros(len(chips), np.bool_)
    rows = [np.hstack([*chips])]
    for model in models:
        rows.append(np.full((EDGE, rows[0].shape[1], 3), 255, np.uint8))
        rows += [np.hstack([*jpeg(mechanisms.sanitizer(model, a).apply(chips, nobody, seed))]) for a in alphas]
    return np.vstack(rows)


def outside(path: Path) -> Path:
    """Return the path.

    Raises:
        ExportError: it lies within the project.
    """
    if path.resolve().is_relative_to(PROJECT):
        raise ExportError(
            f"{path} lies within the project, where no picture of these people may go: choose another --out"
        )
    return path


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Draw strangers at several alphas, for one's own eyes."""
    p = argparse.ArgumentParser(prog="python -m export.people", description=__doc__)
    default = Path(tempfile.gettempdir()) / "edgesan-people.png"
    p.add_argument("model", type=Path, help="an edgesan .onnx file")
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument("--beside", type=Path, nargs="+", default=[], metavar="MODEL", help="other model files")
    p.add_argument("--alphas", type=float, nargs="+", default=[*ALPHAS], help="of the dial (default: %(default)s)")
    p.add_argument("--out", type=Path, default=default, help="outside the project (default: %(default)s)")
    a = p.parse_args(arguments)
    out = outside(a.out)
    models = [prepare(path, path.read_bytes(), threads=1) for path in (a.model, *a.beside)]
    picture = grid(models, shown(a.data), a.alphas)
    if not cv2.imwrite(str(out), np.ascontiguousarray(picture[..., ::-1])):
        raise ExportError(f"{out} could not be written: choose a .png in a folder that is there")
    print(f"{out}: not for publication; the faces come from sets that may not be redistributed")


if __name__ == "__main__":
    sys.exit(main())
