"""The mechanisms: what can be done to a face before it is sent, by our model and by others.

A mechanism maps chips uint8 [N, 112, 112, 3] RGB, their truth bool [N] and a seed to chips of the same shape. Only PGD
and the Semi-Adversarial Network use the truth; the latter needs it by design.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import noise, ort
from edgesan.model.load import Model
from export.audit.attackers import DEVICE, Chips, pictures
from export.checkpoint import load_checkpoint, unpack
from export.errors import ExportError
from export.networks import half
from export.providers import Provider

BATCH = 32
AUTHORS, FLOAT32 = "U-Net, the authors' shape", "edgesan, float32"  # names of rows


@dataclass(frozen=True)
class Mechanism:
    """One mechanism."""

    name: str  # as in the tables
    identity: str  # what it is exactly: cells depend on it
    apply: Callable[[Chips, NDArray[np.bool_], int], Chips]
    stochastic: bool = False  # whether one chip has many outcomes


def draw_noise(dimensions: int, n: int, seed: int) -> NDArray[np.float32]:
    """Return the runtime's own noise [n, dimensions], seeded, so that an audit can be repeated."""
    entropy = np.random.default_rng(seed).bytes
    return np.stack([noise.draw(dimensions, entropy) for _ in range(n)])


def sanitizer(model: Model, alpha: float, name: str = "edgesan", graph: str = "") -> Mechanism:
    """Return the shipped int8 file, run by the runtime's own reader, session and noise.

    Args:
        model: the file.
        alpha: the dial.
        name: of the row.
        graph: the digest of the model's graph alone (default: of the whole file).
    """

    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        z = draw_noise(model.noise_dimensions, len(chips), seed)
        return np.concatenate([model.run(chips[rows], z[rows], alpha) for rows in batches(len(chips), name)])

    return Mechanism(name, f"{graph or model.sha256}@{alpha:g}", apply, model.noise_dimensions > 0)


def trained(source: Path, alpha: float, name: str = FLOAT32) -> Mechanism:
    """Return a network in float32, from the folder that `export.train` wrote (ours or the U-Net), or from a model file.

    A model file's weights were rounded to int8: only that is then left of int8.
    """
    net = unpack(source) if source.is_file() else load_checkpoint(source).sanitizer
    weights = hashlib.sha256(b"".join(t.numpy().tobytes() for t in net.state_dict().values())).hexdigest()
    net.to(DEVICE)

    @torch.no_grad()
    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        z = torch.from_numpy(draw_noise(net.noise_dim, len(chips), seed)).to(DEVICE) if net.noise_dim else None
        parts = []
        for rows in batches(len(chips), name):
            x = pictures(chips[rows])
            y = net(x, None if z is None else z[rows], x.new_full((len(x), 1), alpha))
            parts.append((y * 255).round().to(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1))
        return np.ascontiguousarray(np.concatenate(parts))

    return Mechanism(name, f"{weights}@{alpha:g}", apply, net.noise_dim > 0)


def raw() -> Mechanism:
    """Return the face as it is."""
    return Mechanism("raw", "raw", lambda chips, truth, seed: chips)


def blur(sigma: float) -> Mechanism:
    """Return a Gaussian blur, sigma in pixels of the chip."""
    return each(f"blur, sigma {sigma:g}", lambda chip: cv2.GaussianBlur(chip, (0, 0), sigma))


def pixelate(cells: int) -> Mechanism:
    """Return a pixelation into cells x cells blocks of one colour."""

    def one(chip: Chips) -> Chips:
        small = cv2.resize(chip, (cells, cells), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (112, 112), interpolation=cv2.INTER_NEAREST), np.uint8)

    return each(f"pixelate, {cells}x{cells}", one)


def dp_pix(epsilon: float, block: int = 16, neighbours: int = 16) -> Mechanism:
    """Return DP-Pix (Fan 2018): block means plus Laplace noise of scale 255 m / (b^2 epsilon)."""

    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        generator = np.random.default_rng(seed)
        n, side = len(chips), 112 // block
        means = chips.reshape(n, side, block, side, block, 3).mean((2, 4))
        noisy = means + generator.laplace(0, 255 * neighbours / (block**2 * epsilon), means.shape)
        blocks = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
        return np.asarray(blocks.repeat(block, 1).repeat(block, 2), np.uint8)

    name = f"DP-Pix, epsilon {epsilon:g}"
    return Mechanism(name, name, apply, True)


def pgd(networks: Path, bound: int = 8, steps: int = 10, name: str = "gender_faceapi") -> Mechanism:
    """Return a perturbation (Madry et al. 2018) within +-bound levels, against one frozen classifier alone."""

    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        net = Provider(name, networks).eval().requires_grad_(False).to(DEVICE)
        labels = torch.from_numpy(truth).long().to(DEVICE)
        labels = labels if net.classes[1] == "M" else 1 - labels
        parts = []
        for rows in batches(len(chips), "PGD"):
            x = pictures(chips[rows])
            limit, y = bound / 255, x.clone()
            for _ in range(steps):
                y.requires_grad_()
                with half(DEVICE):
                    loss = F.cross_entropy(net(y).float(), labels[rows])
                (gradient,) = torch.autograd.grad(loss, y)
                y = y.detach() + 2.5 * limit / steps * gradient.sign()
                y = (x + (y - x).clamp(-limit, limit)).clamp(0, 1)
            parts.append((y * 255).round().to(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1))
        return np.ascontiguousarray(np.concatenate(parts))

    return Mechanism(f"PGD on {name}", f"PGD {name} {bound} {steps}", apply)


def semi_adversarial(networks: Path) -> Mechanism:
    """Return the Semi-Adversarial Network (Mirjalili et al. 2018): gray, 224x224. It gets the true gender.

    Raises:
        ExportError: its network or its prototypes are not in the folder.
    """
    weights, faces = networks / "san_celeba.onnx", networks / "san_prototypes.npz"
    if not weights.exists() or not faces.exists():
        raise ExportError(f"the Semi-Adversarial Network needs {weights.name} and {faces.name} in {networks}")

    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        session = ort.session(weights.read_bytes(), 2)
        stored = np.load(faces)
        mean = {man: stored["male" if man else "female"].transpose(2, 0, 1)[None] / 255 for man in (True, False)}
        out = np.empty_like(chips)
        for i in tqdm(range(len(chips)), desc="SAN", leave=False):
            gray = cv2.resize(cv2.cvtColor(np.ascontiguousarray(chips[i]), cv2.COLOR_RGB2GRAY), (224, 224))
            man = bool(truth[i])
            feed = {"gray": gray[None, None] / 255, "same_prototype": mean[man], "opposite_prototype": mean[not man]}
            y = session.run(["perturbed"], {k: v.astype(np.float32) for k, v in feed.items()})[0][0, 0]
            small = cv2.resize(np.clip(y * 255, 0, 255), (112, 112), interpolation=cv2.INTER_AREA)
            out[i] = np.round(small).astype(np.uint8)[..., None]
        return out

    return Mechanism("SAN (is told the gender)", "SAN", apply)


def each(name: str, one: Callable[[Chips], NDArray[np.generic]]) -> Mechanism:
    """Return a mechanism that treats each chip alone, without noise."""

    def apply(chips: Chips, truth: NDArray[np.bool_], seed: int) -> Chips:
        return np.stack([one(np.ascontiguousarray(chip)) for chip in chips]).astype(np.uint8)

    return Mechanism(name, name, apply)


def batches(n: int, name: str) -> Iterator[slice]:
    """Yield slices of BATCH rows, with a progress bar."""
    for i in tqdm(range(0, n, BATCH), desc=name, leave=False):
        yield slice(i, min(n, i + BATCH))


def baselines(networks: Path) -> list[Mechanism]:
    """Return what the field does."""
    return [
        *(blur(s) for s in (2, 4, 8)),
        *(pixelate(n) for n in (16, 12, 8)),
        *(dp_pix(e) for e in (1, 0.5, 0.1)),
        pgd(networks),
        semi_adversarial(networks),
    ]
