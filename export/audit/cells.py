"""Finished figures as files: each is a cell, computed once however many processes ask, and never again.

A cell's name says what it is; a digest in it covers everything that the figure depends on.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from export.audit.attackers import Chips
from export.audit.device import JPEG_QUALITY
from export.audit.mechanisms import Mechanism

FORMAT = 5  # of the cells: raised whenever a figure is computed in another way


class Work:
    """The folders of finished cells: figures in `cells`; pictures, embeddings and weights, which nobody may have, in `folder`.

    A cell is named by what it says and by a digest of all that it depends on.
    """

    def __init__(self, folder: Path, cells: Path, *context: object) -> None:
        self.folder, self.cells, self.context = folder, cells, context
        for place in (folder, cells):
            place.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, *depends: object, suffix: str) -> Path:
        digest = hashlib.sha256(repr((FORMAT, self.context, name, depends)).encode()).hexdigest()[:16]
        safe = "".join(c if c.isalnum() else "-" for c in name)
        return (self.cells if suffix == "json" else self.folder) / f"{safe}-{digest}.{suffix}"

    def later(self, name: str, compute: Callable[[], dict[str, Any]], *depends: object) -> "Cell":
        """A figure that is computed when it is asked for."""
        path = self.path(name, *depends, suffix="json")
        return Cell(path, lambda part: part.write_text(json.dumps(compute()) + "\n"))

    def cell(self, name: str, compute: Callable[[], dict[str, Any]], *depends: object) -> dict[str, Any]:
        """A figure: read if it is there, else computed and kept."""
        return self.later(name, compute, *depends).value()

    def sending(self, m: Mechanism, chips: Chips, truth: NDArray[np.bool_], draw: int, part: str) -> "Cell":
        """The packets of `packets`, to be made."""

        def send(half: Path) -> None:
            sent = [
                cv2.imencode(".jpg", np.ascontiguousarray(c[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                for c in m.apply(chips, truth, draw)
            ]
            np.savez(half, bytes=np.concatenate(sent), sizes=np.array([len(s) for s in sent]))

        return Cell(self.path(f"{part} draw {draw}", m.identity, suffix="npz"), send)

    def packets(self, m: Mechanism, chips: Chips, truth: NDArray[np.bool_], draw: int, part: str) -> Chips:
        """What a viewer gets of each chip, after the device's JPEG; kept as the packets that were sent."""
        cell = self.sending(m, chips, truth, draw, part)
        cell.finish()
        with np.load(cell.path) as stored:
            ends = np.cumsum(stored["sizes"])[:-1]
            parts = np.split(stored["bytes"], ends)
        return np.stack([cv2.imdecode(p, cv2.IMREAD_COLOR)[..., ::-1] for p in parts])

    def tensor(self, name: str, compute: Callable[[], Any], *depends: object) -> Any:
        """Embeddings, logits or weights, kept."""
        cell = Cell(self.path(name, *depends, suffix="pt"), lambda part: torch.save(compute(), part))
        cell.finish()
        return torch.load(cell.path, weights_only=True, map_location="cpu")


@dataclass(frozen=True)
class Cell:
    """A file that `make` writes when somebody asks: whole or not at all, and once, however many processes ask."""

    path: Path
    make: Callable[[Path], object]

    def finish(self, wait: bool = True) -> None:
        """See to it that it is there; without `wait`, leave it to another process that is at it."""
        if self.path.exists():
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

    def value(self) -> dict[str, Any]:
        """What a figure's cell holds."""
        self.finish()
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


Tree = Cell | dict[str, "Tree"] | list["Tree"]


def cells(tree: Tree) -> list[Cell]:
    """The leaves, in their order."""
    if isinstance(tree, Cell):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in cells(branch)]


def settled(tree: Tree) -> Any:
    """The same tree, with each cell's figure in its place."""
    if isinstance(tree, Cell):
        return tree.value()
    if isinstance(tree, dict):
        return {key: settled(branch) for key, branch in tree.items()}
    return [settled(branch) for branch in tree]


def measured(tree: Tree) -> Any:
    """The same tree without the cells that are not there, nor the branches that held no other."""
    if isinstance(tree, Cell):
        return tree if tree.path.exists() else None
    if isinstance(tree, dict):
        return {key: kept for key, branch in tree.items() if (kept := measured(branch))}
    return [kept for branch in tree if (kept := measured(branch))]


def share(groups: Sequence[Tree], folder: Path) -> None:
    """Compute all cells, beside other processes that do the same: each takes a group, then helps with what is left."""
    for i, group in enumerate(groups):
        with (folder / f"group-{i}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for cell in cells(group):
                cell.finish(wait=False)
    for group in groups:
        for cell in cells(group):
            cell.finish(wait=False)
