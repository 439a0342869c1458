"""The status of a run in words and numbers: for the page, the metrics and the lines that are printed at the start."""

import logging
from dataclasses import dataclass
from typing import Any

from edgesan import __version__, isolation
from edgesan.config import Config
from edgesan.fetch.address import ENCRYPTED, UNCHECKED, parts_of
from edgesan.isolation import IsolationClaim
from edgesan.message import COUNTERS, MOST_BYTES, SPANS, Status
from edgesan.model.load import Verified

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transmission:
    """The share of the transmit process in the status."""

    claims: list[IsolationClaim]  # its restrictions
    metrics: dict[str, Any]  # `Metrics.summary`
    wall: dict[str, float]  # bytes and messages from the sanitize process
    fresh: bool  # whether the newest frame is a live one
    links: list[dict[str, str]]  # what the server offers: kind and url
    zones: int  # how many are closed
    scene: dict[str, Any]  # whether a still is in force, its number, and whether most of the picture differs from it
    privacy: bool | None  # whether the owner has the camera closed, as was heard last; None: nothing was heard yet


def report(config: Config, model: Verified, status: Status | None, transmission: Transmission) -> dict[str, Any]:
    """Return all of `/api/status` except the server's own part, ready for JSON.

    Args:
        config: the options of the run.
        model: the model whose decoder the transmit process runs.
        status: the newest status of the sanitize process; None while there is none.
        transmission: the share of the transmit process.
    """
    claims, own = transmission.claims, transmission.metrics
    both = [*(isolation.unpack_all(status.results) if status else ()), *claims]
    common = {
        "version": __version__,
        "name": config.name,
        "background": config.background,
        "scene": transmission.scene,
        "wall": transmission.wall,
        "links": transmission.links,
        "zones": transmission.zones,
        "warnings": [*isolation.warnings(both), *warnings(config, model), *camera_warnings(config)],
        "isolation": isolation.report(both),
        "privacy": transmission.privacy,
        "faces": None,
    }
    if status is None:
        return common | {"camera_up": False, "totals": {}, "ms": {}}
    counters = dict(zip(COUNTERS, status.counters, strict=True))
    faces_now = counters.pop("faces_now")
    spans = {
        name: dict(zip(("p50", "p95", "p99"), (round(ms, 2) for ms in percentiles), strict=True))
        for name, percentiles in zip(SPANS, status.spans_ms, strict=True)
    }
    facts = model.metadata
    described = {
        "name": facts.name,
        "version": facts.version,
        "sha256": model.sha256,
        "private": facts.private,
        "utility": facts.utility,
        "alpha_range": facts.alpha_range,
        "measured": facts.strongest_attack,
        "audited": facts.audited,
        "signature": str(model.signer or "unsigned"),
    }
    return common | {
        "camera": config.camera_name,
        "size": [status.width, status.height],
        "camera_up": transmission.fresh and not status.privacy,
        **({"model": described} if status.model == model.id else {}),
        "alpha": round(status.alpha, 4),
        "faces": faces_now if transmission.fresh and not status.privacy else None,
        "uptime_s": round(status.uptime_s, 1),
        "fps": round(status.fps, 1),
        "totals": counters | own["totals"],
        "ms": spans | own["ms"],
    }


def warnings(config: Config, model: Verified) -> list[str]:
    """Return what a viewer, and the person who started the run, must know."""
    texts = []
    if config.background == "keep":
        texts.append("the background is RAW: everything but the faces that were found is shown as the camera sees it")
    if model.signer is None:
        texts.append("the model is UNSIGNED (allow_unsigned): nobody vouches for what it hides")
    elif not model.signer.trusted:
        texts.append(f"the model is {model.signer} (allow_unsigned): nobody you trust vouches for what it hides")
    if config.allow_rollback:
        texts.append("older versions of the model may run (allow_rollback): they may be known to leak")
    return texts


def camera_warnings(config: Config) -> list[str]:
    """Return what must be known about the way from the camera to this machine."""
    return [UNCHECKED] if config.camera_is_url and parts_of(config.camera).scheme in ENCRYPTED else []


def announce(config: Config, model: Verified, camera: str, alpha: float, claims: list[IsolationClaim]) -> None:
    """Log the start lines of the sanitize process; `camera` is its name and the size of its pictures."""
    facts = model.metadata
    out = f"transmit units at {config.socket}" if config.role == "sanitize" else ", ".join(config.out_names)
    most = MOST_BYTES * (config.fps or 30) / 1000
    logger.info(
        "%s",
        f"version {__version__}: {camera} -> {out}\n"
        f"  model {facts.name} v{facts.version} ({model.sha256[:8]}): private {facts.private}, useful {facts.utility};"
        f" alpha {alpha:.3g}, background {config.background}\n"
        f"  measured: {facts.strongest_attack}\n"
        f"  {model.signer or 'unsigned'}\n"
        f"  across the wall: numbers only, at most {MOST_BYTES:,} bytes a frame"
        f" ({most:.0f} kB/s at {config.fps or 30:g} frames/s)\n"
        f"  isolation: {isolation.summary(claims)}",
    )
    for text in [*(str(claim) for claim in claims if not claim.holds), *warnings(config, model)]:
        logger.warning("%s", text)
