"""What a training learns from: views of faces, labels, and the targets that its teachers set once for each view."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan.faces import TEMPLATE
from export import checkpoint, data
from export.errors import DataError
from export.networks import LANDMARKS, LIGHTING, Sanitizer, half, unshuffle
from export.providers import EMBEDDED, Providers
from export.recipe import Recipe
from export.training import distributed

MOST_CLASSES = 16  # of an attribute
BATCH = 64  # pictures that are described at a time


class FaceViews:
    """Chips [N, 112, 112, 3], each in several views: as it is, mirrored, and jittered (`data.view`).

    On a GPU all views are drawn at once and stay there: cut one by one, they would take longer than the learning.
    """

    def __init__(self, chips: NDArray[np.uint8], views: int, device: torch.device) -> None:
        self.chips, self.count, self.device = chips, views, device
        self.drawn = self.draw() if device.type == "cuda" else None

    def draw(self) -> Tensor:
        """Return all views uint8 [views, N, 112, 112, 3]."""
        with ThreadPoolExecutor() as pool:
            drawn = [
                np.stack([*pool.map(data.view, self.chips, range(len(self.chips)), [v] * len(self.chips))])
                for v in range(self.count)
            ]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    def pictures(self, views: Tensor, rows: Tensor) -> Tensor:
        """Return views [n] of rows [n] as float32 [n, 3, 112, 112] in 0..1."""
        if self.drawn is not None:
            x = self.drawn[views.to(self.device), rows.to(self.device)]
        else:
            chips = [data.view(self.chips[row], row, v) for v, row in zip(views.tolist(), rows.tolist(), strict=True)]
            x = torch.from_numpy(np.stack(chips))
        return (x.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class TrainingData:
    """Faces, labels and targets, on the device of the training."""

    faces: FaceViews
    private: Tensor  # int64 [N], -1 where unknown
    classes: list[str]  # of the private attribute
    prior: Tensor  # P(p) [K], from the training rows
    targets: Tensor  # [views, N, D + 15], by the teachers: embedding (unit length), landmarks, lighting
    useful: Tensor  # int64 [N]: the utility variable, -1 where it is unknown or none of its classes
    service: nn.Linear  # an embedding [n, D] -> logits [n, U] of the utility variable
    train: Tensor  # int64, rows for training
    validation: Tensor  # int64, rows of other people
    device: torch.device

    @property
    def features(self) -> int:
        """D, the dimensions of the embedding."""
        return self.service.in_features

    def draw_rows(self, n: int) -> Tensor:
        """Draw n training rows, int64 [n], on the CPU."""
        return self.train[torch.randint(len(self.train), (n,))]


def gather(faces: data.Faces, r: Recipe, nets: Providers, cache: Path, device: torch.device) -> TrainingData:
    """Prepare faces for a training: labels, prior, the teachers' targets, and the classes of the utility variable.

    Args:
        faces: chips and labels.
        r: the recipe: which columns, how many views.
        nets: the teachers: of embeddings (`utility`) and of landmarks (`detector`).
        cache: the folder in which the targets are kept.
        device: where the training runs.

    Raises:
        DataError: too few pictures, a class that none of them shows, or a column that is no attribute.
    """
    private, classes = attribute(faces, r.private, r.private_bins)
    rows = data.training_rows(faces)
    if r.utility_column:
        useful, names = attribute(faces, r.utility_column, r.utility_bins)
    else:
        useful, names = people(faces, rows, r.people_min)
    train = np.flatnonzero(rows & ((private >= 0) | (useful >= 0)))
    validation = data.validation_sample(data.validation_rows(faces) & (private >= 0))
    counts = np.bincount(private[train][private[train] >= 0], minlength=len(classes))
    if counts.sum() < r.distill_batch or not len(validation):
        raise DataError(
            f"{counts.sum()} training and {len(validation)} validation pictures with a known {r.private}: "
            f"at least {r.distill_batch} (distill_batch) and 1 are needed"
        )
    for column, labels, seen in ((r.private, classes, private), (r.utility_column, names, useful)):
        lacking = [labels[i] for i in range(len(labels)) if not (seen[train] == i).any()]
        if lacking:
            raise DataError(f"no training picture has the {column} {lacking[0]!r}; choose other sets or bins")
    views = FaceViews(faces.chips, r.views, device)
    targets = teacher_targets(views, nets, cache, faces.digest())
    d = targets.shape[2] - LANDMARKS - LIGHTING
    targets = torch.cat([nets.utility.unite(targets[..., :d], torch.from_numpy(train)), targets[..., d:]], 2)
    raw = targets[0, torch.from_numpy(train), :d]
    known = torch.from_numpy(useful[train])
    service = probe(raw, known, len(names)) if r.utility_column else prototypes(raw, known, len(names), r.cosine_scale)
    return TrainingData(
        faces=views,
        private=torch.from_numpy(private).to(device),
        classes=classes,
        prior=torch.from_numpy(counts / counts.sum()).float().to(device),
        targets=targets.to(device),
        useful=torch.from_numpy(useful).to(device),
        service=service.to(device),
        train=torch.from_numpy(train),
        validation=torch.from_numpy(validation),
        device=device,
    )


def attribute(faces: data.Faces, column: str, bins: tuple[float, ...]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the class numbers [N] of a CSV column (-1 where unknown) and the names of its classes.

    Raises:
        DataError: the column has fewer than two values, or too many for an attribute.
    """
    values, names = faces.labels(column, bins)
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"column {column!r} has {len(names)} different values, 2 to {MOST_CLASSES} make an attribute: "
            "group a column of numbers with private_bins or utility_bins"
        )
    return values, names


def people(faces: data.Faces, rows: NDArray[np.bool_], least: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return the person [N] as the utility variable, and the names: people with at least `least` of these rows.

    Everybody else is -1.
    """
    who = faces["identity"]
    names, counts = np.unique(who[rows & (who != "")], return_counts=True)
    names = names[counts >= least]
    if len(names) < 2:
        raise DataError(f"fewer than two people with {least} training pictures (people_min): nothing to recognise")
    return np.where(np.isin(who, names), np.searchsorted(names, who).clip(0, len(names) - 1), -1), names.tolist()


def prototypes(raw: Tensor, useful: Tensor, classes: int, scale: float) -> nn.Linear:
    """Return a layer that recognises people: logits = scale * cosine to each person's mean raw embedding."""
    mean = F.normalize(torch.stack([raw[useful == i].mean(0) for i in range(classes)]))
    service = nn.Linear(raw.shape[1], classes, bias=False).requires_grad_(False)
    service.weight.copy_(scale * mean)
    return service


def probe(raw: Tensor, useful: Tensor, classes: int) -> nn.Linear:
    """Return a layer that reads a CSV column from an embedding: a logistic regression, then frozen."""
    torch.manual_seed(0)
    service = nn.Linear(raw.shape[1], classes)
    optimizer = torch.optim.Adam(service.parameters(), 0.1, weight_decay=1e-4)
    with torch.enable_grad():
        for _ in range(200):
            loss = F.cross_entropy(service(raw), useful, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return service.requires_grad_(False)


@torch.no_grad()
def teacher_targets(faces: FaceViews, nets: Providers, cache: Path, digest: str) -> Tensor:
    """Return what the teachers find in all views [views, N, D + 15]; several networks embed the first two alone.

    It is computed once, by all processes together, and kept in the folder `cache` under the digests of the faces and of
    the provider's networks.
    """
    kept = cache / f"targets-{nets.utility.digest[:16]}-{faces.count}-{digest[:16]}.pt"
    if kept.exists():
        saved: Tensor = torch.load(kept, weights_only=True, map_location="cpu")
        return saved
    template = torch.from_numpy(TEMPLATE).flatten()
    features = nets.utility.features
    found = torch.zeros(faces.count, len(faces.chips), features + LANDMARKS + LIGHTING, device=faces.device)
    for v in range(faces.count):
        title = f"teachers, view {v + 1} of {faces.count}"
        for rows in tqdm(distributed.mine(torch.arange(len(faces.chips)).split(BATCH)), desc=title, leave=False):
            x = faces.pictures(torch.full_like(rows, v), rows)
            score, marks = nets.detector.best(x)
            offsets = (marks - template.to(marks)) / 4  # of about unit variance
            offsets = (offsets * (score > 0.5)[:, None]).clamp(-4, 4)
            if v < EMBEDDED or len(nets.utility.nets) == 1:
                with half(faces.device):
                    embedding = nets.utility.raw(x).float()
            else:
                embedding = found[0, rows, :features]
            found[v, rows] = torch.cat([embedding, offsets, lighting(x)], 1)
    targets = distributed.total(found).cpu()
    if not distributed.join()[0]:
        checkpoint.save(kept, targets)
    return targets


@torch.no_grad()
def encode(s: Sanitizer, faces: FaceViews) -> Tensor:
    """Return the encoder's descriptions of all views [views, N, D + 15], on the CPU; the processes share the work."""
    s.encoder.eval()
    rows = torch.arange(len(faces.chips))
    outputs = s.privatizer.linear.in_channels
    found = torch.zeros(faces.count, len(rows), outputs, device=faces.device)
    for v in range(faces.count):
        title = f"encoding view {v + 1} of {faces.count}"
        for part in tqdm(distributed.mine(rows.split(BATCH)), desc=title, leave=False):
            x = faces.pictures(torch.full_like(part, v), part)
            with half(faces.device):
                found[v, part] = s.encoder(unshuffle(x))[..., 0, 0].float()
    return distributed.total(found).cpu()


def lighting(x: Tensor) -> Tensor:
    """Return the light on faces [N, 5], each of about unit variance: mean colour, left to right, above to below."""
    inner = x[:, :, 30:102, 26:86]
    brightness = inner.mean(1)
    colour = (inner.mean((2, 3)) - 0.5) / 0.18
    across = (brightness[:, :, :30].mean((1, 2)) - brightness[:, :, 30:].mean((1, 2))) / 0.12
    down = (brightness[:, :36].mean((1, 2)) - brightness[:, 36:].mean((1, 2))) / 0.1
    return torch.cat([colour, across[:, None], down[:, None]], 1)


def augment(x: Tensor) -> Tensor:
    """Return the faces [n, 3, 112, 112] as other pictures of them.

    Each is turned, shifted, scaled, perhaps mirrored, and in other light; half of them are coarser.
    """
    n, on = len(x), x.device
    turn = 0.06 * torch.randn(n, device=on)
    zoom = torch.exp(0.06 * torch.randn(n, device=on))
    shift = 0.03 * torch.randn(n, 2, device=on)
    side = torch.where(torch.rand(n, device=on) < 0.5, -1.0, 1.0)
    x = warp(x, turn, zoom, shift, side)
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(0.2 * torch.randn(n, 1, 1, 1, device=on))
    contrast = contrast * torch.exp(0.06 * torch.randn(n, 3, 1, 1, device=on))
    x = (x - mean) * contrast + mean + 0.07 * torch.randn(n, 1, 1, 1, device=on)
    width = int(torch.randint(36, 100, ()))
    coarse = F.interpolate(x[: n // 2], (width, width), mode="bilinear", antialias=True)
    x = torch.cat([F.interpolate(coarse, (112, 112), mode="bilinear"), x[n // 2 :]])
    return (x + 0.015 * torch.randn_like(x)).clamp(0, 1)


def warp(x: Tensor, turn: Tensor, zoom: Tensor, shift: Tensor, side: Tensor) -> Tensor:
    """Resample pictures [n, 3, H, W], the same way in all channels.

    Args:
        x: the pictures.
        turn: [n], radians.
        zoom: [n], of the picture's size.
        shift: [n, 2], in half sides of the picture.
        side: [n], -1 where a picture is mirrored, else 1.
    """
    rows = [
        torch.stack([side * zoom * turn.cos(), -zoom * turn.sin(), shift[:, 0]], 1),
        torch.stack([side * zoom * turn.sin(), zoom * turn.cos(), shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
