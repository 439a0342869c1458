"""What the page, the metrics and the start lines say of a run."""

import sys
import time
from typing import Any

from edgesan import __version__, isolation
from edgesan.config import Config
from edgesan.isolation import IsolationClaim
from edgesan.message import COUNTERS, SPANS, Status
from edgesan.metrics import Metrics
from edgesan.model.load import Verified


def report(
    config: Config,
    model: Verified,
    status: Status | None,
    claims: list[IsolationClaim],
    metrics: Metrics,
    wall: dict[str, Any],
    *,
    fresh: bool,
) -> dict[str, Any]:
    """All of `/api/status` but the server's own part; JSON.

    Args:
        model: the one that the transmit process paints with.
        status: what the sanitize process said last; None while there is none.
        claims: what the transmit process has given up.
        metrics: of the transmit process.
        wall: what has crossed.
        fresh: a frame of now was painted.
    """
    said = {"version": __version__, "background": config.background, "wall": wall, "warnings": warnings(config, model)}
    if status is None:
        return said | {"camera_up": False, "isolation": isolation.report(claims), "totals": {}, "ms": {}}
    both = [*isolation.unpack(status.results), *claims]
    counters = dict(zip(COUNTERS, status.counters, strict=True))
    faces_now = counters.pop("faces_now")
    spans = {
        name: dict(zip(("p50", "p95", "p99"), (round(ms, 2) for ms in percentiles), strict=True))
        for name, percentiles in zip(SPANS, status.spans_ms, strict=True)
    }
    own = metrics.summary(time.monotonic_ns())
    facts = model.metadata
    same = {
        "model": {
            "name": facts.name, "version": facts.version, "sha256": model.sha256, "private": facts.private,
            "utility": facts.utility, "alpha_range": facts.alpha_range, "measured": facts.strongest_attack,
            "signature": str(model.signer or "unsigned"),
        }
    }  # fmt: skip
    return said | {
        "camera": config.camera_name,
        "size": [status.width, status.height],
        "camera_up": fresh,
        **(same if status.model == model.id else {}),
        "alpha": round(status.alpha, 4),
        "faces": faces_now,
        "uptime_s": round(status.uptime_s, 1),
        "isolation": isolation.report(both),
        "fps": round(status.fps, 1),
        "totals": counters | own["totals"],
        "ms": spans | own["ms"],
    }


def warnings(config: Config, model: Verified) -> list[str]:
    """What a viewer and the person who started it must know."""
    texts = []
    if config.background == "keep":
        texts.append("the background is RAW: whatever is not a found face is shown as the camera sees it")
    if model.signer is None:
        texts.append("the model is UNSIGNED (allow_unsigned): nobody vouches for what it hides")
    elif not model.signer.trusted:
        texts.append(f"the model is {model.signer} (allow_unsigned): nobody who is trusted vouches for what it hides")
    if config.allow_rollback:
        texts.append("an older model would run, too (allow_rollback): it may be known to leak")
    return texts


def announce(
    config: Config, model: Verified, camera: str, size: tuple[int, int], alpha: float, claims: list[IsolationClaim]
) -> None:
    """The start lines of the sanitize process."""
    facts = model.metadata
    out = f"transmit units at {config.socket}" if config.role == "sanitize" else ", ".join(config.out)
    most = 2048 * (config.fps or 30) / 1000
    print(
        f"edgesan {__version__}: {camera} {size[0]}x{size[1]} -> {out}\n"
        f"  model {facts.name} v{facts.version} ({model.sha256[:8]}): private {facts.private}, useful {facts.utility};"
        f" alpha {alpha:g}, background {config.background}\n"
        f"  measured: {facts.strongest_attack}\n"
        f"  {model.signer or 'unsigned'}\n"
        f"  across the wall: numbers only, at most 2,048 bytes a frame ({most:.0f} kB/s at {config.fps or 30:g} frames/s)\n"
        f"  isolation: {isolation.summary(claims)}",
        *(f"  WARNING: {claim}" for claim in claims if not claim.holds),
        *(f"  WARNING: {text}" for text in warnings(config, model)),
        sep="\n",
        file=sys.stderr,
        flush=True,
    )
