"""What comes from a provider is checked at the door, once: past it, nobody checks again.

File, operators, shapes and contract are checked where they are read (`networks.Provider`); here is what only shows when
the network runs: that it runs, as onnxruntime runs it, that it tells faces apart, and that its gradient is the right one.
"""

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is loaded


from edgesan import ort
from export.errors import NetworkError
from export.networks import FrozenOnnx, Provider

DIRECTIONS = 5
STEP = 1e-7  # of the finite difference, in units of the network's input


def examine(provider: Provider, chips: NDArray[np.uint8], classes: Sequence[str] | None = None) -> None:
    """Try a provider's network on a few real chips [n > 1, 112, 112, 3].

    Args:
        provider: an embedder, or a classifier whose contract names its classes.
        chips: uint8, RGB; different ones.
        classes: of the private attribute, which a classifier must tell; None for an embedder.

    Raises:
        NetworkError: it cannot be used in a training; the message says why, and what to do.
    """
    where = str(provider.path)
    if classes is None and provider.classes:
        raise NetworkError(
            f"{where} is a classifier of {', '.join(provider.classes)}; the utility network must embed faces"
        )
    if classes is not None and not provider.classes:
        raise NetworkError(
            f"{where}: classes is missing from its input contract: which output means what, such as "
            f"classes = {list(classes)}; say it in a providers.toml beside the file, under [{provider.path.stem}], "
            "or behind the file on the command line"
        )
    if classes is not None and sorted(classes) != sorted(provider.classes):
        raise NetworkError(
            f"{where} tells {', '.join(provider.classes)}; the private attribute is {', '.join(classes)}"
        )
    x = provider.prepared(torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255).contiguous()
    try:
        (out,) = provider.net(x)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        raise NetworkError(f"{where} does not run on pictures of {list(x.shape)}: {error}") from error
    width = f"{len(provider.classes)} classes" if provider.classes else "D > 1"
    fits = out.ndim >= 2 and out.shape[0] == len(x) and out[0].numel() > 1
    if not fits or (provider.classes and out[0].numel() != len(provider.classes)):
        raise NetworkError(
            f"{where}: output {provider.output} is {list(out.shape)} for {len(x)} pictures; expected [N, {width}]"
        )
    if not out.isfinite().all():
        raise NetworkError(f"{where}: output {provider.output} is not finite on real faces: check mean and scale")
    if (out - out[:1]).abs().max() <= 1e-6 * out.abs().max():
        raise NetworkError(f"{where}: output {provider.output} is the same for all faces: check mean, scale and output")
    compare(provider, x)
    differentiate(provider, x)


def compare(provider: Provider, x: Tensor) -> None:
    """As onnxruntime has it: the table of operators reads the file as everybody does."""
    try:
        session = ort.session(provider.path.read_bytes())
        (expected,) = session.run([provider.output], {provider.net.input: x.numpy()})
    except ort.ORT_ERRORS as error:
        raise NetworkError(f"{provider.path} does not run in onnxruntime: {error}") from error
    (actual,) = FrozenOnnx(provider.path, [provider.output])(x)
    off = float(np.abs(actual.numpy() - expected).max())
    if off > 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise NetworkError(
            f"{provider.path} computes something else here than in onnxruntime (off by {off:.3g}): "
            "an attribute of one of its operators is not understood; simplify the file, or tell us"
        )


def differentiate(provider: Provider, x: Tensor) -> None:
    """The gradient along random directions against central differences, in float64.

    A network of ReLUs has kinks, and a difference across one is no slope: at DIRECTIONS places around the faces, the
    median of the errors counts. A wrong gradient is wrong at all of them.
    """
    net = copy.deepcopy(provider.net).double()
    generator = torch.Generator().manual_seed(0)

    def score(at: Tensor) -> Tensor:
        (out,) = net(at)
        weights = torch.linspace(-1, 1, out[0].numel(), dtype=torch.double)
        total: Tensor = (out.flatten(1) * weights).sum()
        return total

    step = STEP * max(1.0, float(x.abs().max()))
    found: list[tuple[float, float, float]] = []  # error, slope, difference
    for _ in range(DIRECTIONS):
        aside, direction = (torch.randn(x[:1].shape, generator=generator, dtype=torch.double) for _ in range(2))
        at = (x[:1].double() + 1e-3 * aside).requires_grad_()
        value = score(at)
        if not value.requires_grad:
            raise NetworkError(
                f"{provider.path} is not differentiable: no gradient leads from its output to the picture"
            )
        (gradient,) = torch.autograd.grad(value, at)
        if not gradient.isfinite().all() or not gradient.abs().max() > 0:
            kind = "zero" if gradient.isfinite().all() else "not finite"
            raise NetworkError(f"{provider.path}: its gradient is {kind} on real faces: nothing can be learned from it")
        slope = float((gradient * direction).sum())
        with torch.no_grad():
            difference = float(score(at + step * direction) - score(at - step * direction)) / (2 * step)
        found.append((abs(slope - difference) / (max(abs(slope), abs(difference)) + 1e-6), slope, difference))
    error, slope, difference = sorted(found)[DIRECTIONS // 2]
    if error > 1e-2:
        raise NetworkError(
            f"{provider.path}: its gradient is {slope:.6g} along a direction where a finite difference has {difference:.6g}"
        )
