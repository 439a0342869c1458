"""The loop of the sanitize process: capture, sanitize, send a message. An error costs one frame, or the process."""

import json
import logging
import os
import signal
import time
from contextlib import ExitStack
from types import FrameType

from edgesan import faces, isolation, message, sanitize, scene, status
from edgesan.capture import open_source
from edgesan.config import Config
from edgesan.control import ALIVE, NOT_RECORDED, READY, RECORD_VERSION, RECORDED, START, ControlChannel
from edgesan.errors import ConfigError, EndOfStream, Reject, RollbackError
from edgesan.isolation import IsolationClaim
from edgesan.message import COUNTERS, SPANS, Status
from edgesan.metrics import Metrics
from edgesan.model import rollback
from edgesan.model.load import Encoder, Verified, load_encoder
from edgesan.silhouette import Silhouettes
from edgesan.transmit.link import Pipes, Sender

logger = logging.getLogger(__name__)

FRAME_TIMEOUT_S = 2.0  # without a frame for so long, the camera counts as lost
STATUS_NS = 500_000_000  # between two status messages


class Stop:
    """A flag that SIGINT and SIGTERM set; the loop checks it between frames."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked = True


def run(  # noqa: PLR0913, PLR0917 - the parent hands over all that this process cannot get by itself
    config: Config,
    pipes: Pipes,
    control: ControlChannel,
    claims: list[IsolationClaim],
    losses: int,
    still: bytes | None = None,
) -> None:
    """Run until the frames or the file end, or a signal comes.

    Args:
        config: the options of the run; `frames` is what is left of them.
        pipes: the pipes to the transmit process.
        control: the channel to the parent.
        claims: the restrictions of this process; see `isolation.sanitize`.
        losses: how often the camera was lost before.
        still: the file's bytes of the scene; None: there is none.

    Raises:
        CameraError: the camera cannot be opened, or is lost; the parent then starts another process.
        EdgesanError: the model or an option is wrong; see `edgesan.errors`.
    """
    stop = Stop()
    with ExitStack() as stack:
        encoder = load_encoder(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        sanitizer = build(config, encoder, still=scene.decode(still) if still else None)
        hold_version(config, encoder, control)
        source = open_source(config.camera, config.width_height, config.fps, config.rotate)
        stack.callback(source.close)
        isolation.limit_memory()
        width, height = source.size
        if config.background == "scene" and not still:
            logger.info("no still is accepted yet, so faces are shown on a flat colour: see `edgesan scene`")
        status.announce(config, encoder, f"{source.name} {width}x{height}", sanitizer.alpha, claims)
        # A transmit process takes the frames from then on. If the parent is gone, a signal ends this process.
        control.wait_for(START)

        sender, metrics, results = Sender(pipes), Metrics(), isolation.pack(claims)
        metrics.count("camera_lost", losses)
        started_ns = time.monotonic_ns()
        status_due_ns, faces_now = started_ns, 0
        control.send(READY)
        while not stop.asked and config.frames != metrics.totals["sanitized"]:
            for asked in sender.requested_alphas():
                low, high = encoder.metadata.alpha_range
                sanitizer.alpha = min(max(asked, low), high)
            try:
                with source.frame(FRAME_TIMEOUT_S) as raw:
                    metrics.count("captured")
                    latents = sanitizer(raw, late=True)
                    sender.send(latents)
                    sanitizer.catch_up(raw)
            except EndOfStream:
                break
            except Reject:
                metrics.count("rejected")
            else:
                faces_now = len(latents.faces)
                record(metrics, sanitizer, faces_now)
            control.send(ALIVE)
            now_ns = time.monotonic_ns()
            if now_ns >= status_due_ns:
                metrics.totals["dropped"] = sender.dropped
                counters = tuple({**metrics.totals, "faces_now": faces_now}.get(name, 0) for name in COUNTERS)
                spans = tuple(metrics.percentiles_ms(name) for name in SPANS)
                fps, uptime_s = metrics.fps(now_ns), (now_ns - started_ns) / 1e9
                alpha = sanitizer.alpha
                sender.send_status(Status(counters, uptime_s, fps, alpha, spans, encoder.id, width, height, results))
                status_due_ns = now_ns + STATUS_NS


def build(
    config: Config, encoder: Encoder, most_encoded: int = sanitize.MOST_ENCODED, still: scene.Still | None = None
) -> sanitize.FrameSanitizer:
    """Build the sanitizer that a configuration asks for.

    Args:
        config: the options.
        encoder: the model's first half.
        most_encoded: how many faces are encoded in one frame at most; the others wait for the next frame.
        still: the scene, with which frames are compared.

    Raises:
        ConfigError: alpha is outside the model's range.
    """
    low, high = encoder.metadata.alpha_range
    alpha = encoder.metadata.alpha_default if config.alpha is None else config.alpha
    if not low <= alpha <= high:
        raise ConfigError(f"alpha is {alpha:g}: the model {encoder.metadata.name} takes {low:g}..{high:g}")
    settings = sanitize.Settings(
        zones=config.zones,
        detect_every=config.detect_every,
        refresh_ns=round(config.refresh * 1e9),
        most_encoded=most_encoded,
        hold_ns=round(config.hold * 1e9),
        alpha=alpha,
    )
    silhouettes = Silhouettes(still, config.zones) if still else None
    return sanitize.FrameSanitizer(encoder, faces.Detector(config.detect_size), settings, silhouettes=silhouettes)


def hold_version(config: Config, model: Verified, control: ControlChannel | None) -> None:
    """Refuse a model that is older than one that ran before, and record its version.

    Only a model with a trusted signature raises the record: otherwise any file could lock the signed models out.

    Args:
        config: names the folder of the record, and says whether older versions may run.
        model: the model that is about to run.
        control: the channel to the parent, which writes the record for a process that may write nothing. None: write it
            here.

    Raises:
        RollbackError: the model is older, or the record cannot be read or written.
    """
    if config.allow_rollback:
        return
    folder = rollback.state_folder(config.state_dir, os.environ)
    name, version = model.metadata.name, model.metadata.version
    trusted = model.signer is not None and model.signer.trusted
    if not rollback.check(folder, name, version) or not trusted:
        return
    if control is None:
        rollback.remember(folder, name, version)
        return
    control.send(RECORD_VERSION, json.dumps([name, version], ensure_ascii=False).encode())
    kind, reason = control.wait_for(RECORDED, NOT_RECORDED)
    if kind != RECORDED:
        raise RollbackError(reason.decode(errors="replace") or "the parent process is gone: start edgesan again")


def record(metrics: Metrics, sanitizer: sanitize.FrameSanitizer, faces_now: int) -> None:
    """Add the newest frame to the counters."""
    metrics.count("sanitized")
    metrics.count("faces", faces_now)
    metrics.count("encoded", sanitizer.encoded)
    metrics.tick(time.monotonic_ns())
    for name, duration_ns in zip(message.SPANS, sanitizer.spans_ns, strict=True):
        metrics.span(name, duration_ns)
