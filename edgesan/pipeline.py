"""The loop of the sanitize process: capture -> sanitize -> message. What it loses costs a frame, or the process."""

import json
import os
import signal
import time
from contextlib import ExitStack
from types import FrameType

from edgesan import faces, isolation, message, sanitize, status
from edgesan.capture import open_source
from edgesan.config import Config
from edgesan.control import ALIVE, NOT_RECORDED, READY, RECORD_VERSION, RECORDED, START, ControlChannel
from edgesan.errors import ConfigError, EndOfStream, Reject, RollbackError
from edgesan.isolation import IsolationClaim
from edgesan.message import COUNTERS, SPANS, Status
from edgesan.metrics import Metrics
from edgesan.model import rollback
from edgesan.model.load import Encoder, Verified, load_encoder
from edgesan.transmit.link import Pipes, Sender

FRAME_TIMEOUT_S = 2.0  # without a frame for so long, the camera is lost
STATUS_NS = 500_000_000


class Stop:
    """Set by SIGINT and SIGTERM; the loop looks at it between frames."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def run(
    config: Config,
    pipes: Pipes,
    control: ControlChannel,
    claims: list[IsolationClaim],
    *,
    frames: int | None,
    losses: int,
) -> None:
    """Until the frames or the file end, or a signal comes.

    Args:
        pipes: to the transmit process.
        control: to the parent.
        claims: what this process has given up; see `isolation.sanitize`.
        frames: end after so many.
        losses: how often the camera was lost before.

    Raises:
        CameraError: the camera cannot be opened, or is lost; the parent starts another process then.
        EdgesanError: as the exit codes in `edgesan.errors` tell.
    """
    stop = Stop()
    with ExitStack() as stack:
        encoder = load_encoder(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        sanitizer = build(config, encoder)
        hold_version(config, encoder, control)
        source = open_source(config.camera, config.width_height, config.fps, config.rotate)
        stack.callback(source.close)
        isolation.limit_memory()
        width, height = source.size
        status.announce(config, encoder, source.name, source.size, sanitizer.alpha, claims)
        control.wait_for(START)  # until somebody takes the frames; where the parent is gone, a signal ends this process

        sender, metrics, results = Sender(pipes), Metrics(), isolation.pack(claims)
        metrics.count("camera_lost", losses)
        started_ns = time.monotonic_ns()
        status_due_ns, faces_now = started_ns, 0
        control.send(READY)
        while not stop.asked and frames != metrics.totals["sanitized"]:
            for asked in sender.wishes():
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
                sender.send_status(
                    Status(counters, (now_ns - started_ns) / 1e9, metrics.fps(now_ns), sanitizer.alpha, spans, encoder.id,
                           width, height, results)
                )  # fmt: skip
                status_due_ns = now_ns + STATUS_NS


def build(config: Config, encoder: Encoder, most_encoded: int = sanitize.MOST_ENCODED) -> sanitize.FrameSanitizer:
    """The sanitizer that a configuration asks for.

    Args:
        most_encoded: faces a frame; the others wait for the next one.

    Raises:
        ConfigError: alpha lies outside the model's range.
    """
    low, high = encoder.metadata.alpha_range
    alpha = encoder.metadata.alpha_default if config.alpha is None else config.alpha
    if not low <= alpha <= high:
        raise ConfigError(f"alpha is {alpha:g}: the model {encoder.metadata.name} was made for {low:g}..{high:g}")
    settings = sanitize.Settings(config.zones, config.detect_every, round(config.refresh * 1e9), most_encoded)
    return sanitize.FrameSanitizer(
        encoder, faces.Detector(config.detect_size), settings, alpha, round(config.hold * 1e9)
    )


def hold_version(config: Config, model: Verified, control: ControlChannel | None) -> None:
    """Let no model run that is older than one that ran, and have this one remembered.

    Only a trusted signature may raise the record: else any file could lock the signed models out.

    Args:
        control: to the parent, which writes the record: a process that sees the camera writes nothing. None: write it here.

    Raises:
        RollbackError: it is older, or the record cannot be read or kept.
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
    kind, why = control.wait_for(RECORDED, NOT_RECORDED)
    if kind != RECORDED:
        raise RollbackError(why.decode(errors="replace") or "the parent process is gone: start edgesan again")


def record(metrics: Metrics, sanitizer: sanitize.FrameSanitizer, faces_now: int) -> None:
    """Take the newest frame into the counters."""
    metrics.count("sanitized")
    metrics.count("faces", faces_now)
    metrics.count("encoded", sanitizer.encoded)
    metrics.tick(time.monotonic_ns())
    for name, duration_ns in zip(message.SPANS, sanitizer.spans_ns, strict=True):
        metrics.span(name, duration_ns)
