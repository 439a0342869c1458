"""Cells: finished figures, each of them computed once, however many processes ask, and kept as a file.

A run's cells are files in its own folder. The project's are lines of one file, `docs/audit/cells.jsonl`:
`python -m export.audit.cells FOLDER FILE` adds a run's cells to such a file.

A cell is named by what it says, and by a digest of everything that the figure depends on. When a model, a data set
or an attacker has changed, only what depends on it is measured again.
"""

import argparse
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from edgesan import disk
from export.audit.report import Json, to_json
from export.errors import ExportError

FORMAT = 5  # of the cells: raised whenever a figure is computed in another way
DIGITS = 16  # of the digest in a cell's name

Known: TypeAlias = Mapping[str, Json]
"""Figures that were measured before, by the cell's name and digest."""


@dataclass(frozen=True)
class Cell:
    """A file that `make` writes when it is asked for: whole or not at all, and once, however many processes ask.

    `known` is the figure of a cell that was measured before: such a cell needs no file.
    """

    path: Path
    make: Callable[[Path], object]
    known: Json = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to compute."""
        return self.known is not None or self.path.exists()

    def finish(self, wait: bool = True) -> None:
        """Compute it unless it is finished; without `wait`, leave it to another process that computes it now."""
        if self.is_finished:
            return
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return
            if not self.path.exists():
                part = self.path.with_name(f".part-{self.path.name}")
                self.make(part)
                part.replace(self.path)

    def value(self) -> Json:
        """Return the figure."""
        if self.known is not None:
            return self.known
        self.finish()
        found: Json = json.loads(self.path.read_text())
        return found


Tree: TypeAlias = "Cell | Mapping[str, Tree] | Sequence[Tree]"


class Store:
    """Two folders of cells: one for figures, and one for what must never be published.

    Args:
        folder: for pictures, embeddings and weights: never to be published.
        figures: for figures; None puts them into `folder`, too.
        known: figures that were measured before.
        context: what every cell of this store depends on.
    """

    def __init__(self, folder: Path, figures: Path | None, known: Known, *context: object) -> None:
        self.folder, self.figures, self.known, self.context = folder, figures or folder, known, context
        for place in (self.folder, self.figures):
            place.mkdir(parents=True, exist_ok=True)

    def within(self, *context: object) -> "Store":
        """Return the same folders for cells that depend on more."""
        return Store(self.folder, self.figures, self.known, *self.context, *context)

    def _name(self, name: str, depends: tuple[object, ...]) -> str:
        digest = hashlib.sha256(repr((FORMAT, self.context, name, depends)).encode()).hexdigest()[:DIGITS]
        return "".join(c if c.isalnum() else "-" for c in name) + f"-{digest}"

    def figure(self, name: str, compute: Callable[[], object], *depends: object) -> Cell:
        """Return the cell of a figure: `compute` returns one of the types in `report`."""
        full = self._name(name, depends)

        def make(part: Path) -> None:
            part.write_text(json.dumps(to_json(compute())) + "\n")

        return Cell(self.figures / f"{full}.json", make, self.known.get(full))

    def file(self, name: str, suffix: str, make: Callable[[Path], object], *depends: object) -> Cell:
        """Return the cell of something else than a figure, which `make` writes."""
        return Cell(self.folder / f"{self._name(name, depends)}.{suffix}", make)

    def tensors(self, name: str, compute: Callable[[], object], *depends: object) -> Any:
        """Return embeddings, logits or weights: read where they are, else computed and kept."""
        cell = self.file(name, "pt", lambda part: torch.save(compute(), part), *depends)
        cell.finish()
        return torch.load(cell.path, weights_only=True, map_location="cpu")


def leaves(tree: Tree) -> list[Cell]:
    """Return the cells of a tree, in their order."""
    if isinstance(tree, Cell):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, Mapping) else tree) for leaf in leaves(branch)]


def settled(tree: Tree) -> Json:
    """Return the same tree with each cell's figure in its place; what is not finished is computed."""
    if isinstance(tree, Cell):
        return tree.value()
    if isinstance(tree, Mapping):
        return {key: settled(branch) for key, branch in tree.items()}
    return [settled(branch) for branch in tree]


def finished(tree: Tree) -> "Tree | None":
    """Return the same tree without unfinished cells, and without branches that held no others."""
    if isinstance(tree, Cell):
        return tree if tree.is_finished else None
    if isinstance(tree, Mapping):
        return {key: kept for key, branch in tree.items() if (kept := finished(branch))}
    return [kept for branch in tree if (kept := finished(branch))]


def share(groups: Sequence[Tree], folder: Path) -> None:
    """Compute all cells, beside other processes that do the same: each takes a group, then helps with what is left."""
    for i, group in enumerate(groups):
        with (folder / f"group-{i}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for cell in leaves(group):
                cell.finish(wait=False)
    for group in groups:
        for cell in leaves(group):
            cell.finish(wait=False)


def read_known(path: Path) -> Known:
    """Read the figures of a file of cells.

    Raises:
        ExportError: there is no such file, or it holds something else.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {f"{line['name']}-{line['digest']}": line["figure"] for line in lines}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} is no file of cells, such as docs/audit/cells.jsonl: {error}") from error


def merge(folder: Path, path: Path) -> int:
    """Add the cells of a folder to a file of cells, and return how many were new.

    Raises:
        ExportError: the file holds something else.
    """
    known = dict(read_known(path)) if path.exists() else {}
    found = {file.stem: json.loads(file.read_text()) for file in folder.glob("[!.]*.json")}
    new = len(found.keys() - known.keys())
    merged = sorted((known | found).items())
    lines = ({"name": key[: -DIGITS - 1], "digest": key[-DIGITS:], "figure": figure} for key, figure in merged)
    disk.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return new


def main(arguments: list[str] | None = None) -> int:
    """Add a run's cells to a file of cells."""
    parser = argparse.ArgumentParser(prog="python -m export.audit.cells", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a run's cells: --cells of export.audit")
    parser.add_argument("file", type=Path, help="the file that they are added to, such as docs/audit/cells.jsonl")
    a = parser.parse_args(arguments)
    try:
        print(f"{merge(a.folder, a.file)} new cells in {a.file}")
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
