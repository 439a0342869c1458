"""The loop of the sanitize process: capture, sanitize, send a message. An error costs one frame, or the process."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack
from types import FrameType
from typing import Final, NamedTuple

from edgesan import faces, isolation, message, sanitize, scene, status
from edgesan.capture import Source, open_source
from edgesan.config import Config
from edgesan.control import (
    ALIVE,
    NOT_RECORDED,
    OPENING,
    READY,
    RECORD_PRIVACY,
    RECORD_VERSION,
    RECORD_ZONES,
    RECORDED,
    RESTING,
    START,
    TURNED,
    ControlChannel,
)
from edgesan.errors import ConfigError, EndOfStream, Reject, RollbackError
from edgesan.fetch.packets import Reader
from edgesan.isolation import IsolationClaim
from edgesan.message import COUNTERS, SPANS, Status
from edgesan.metrics import Metrics
from edgesan.model import rollback
from edgesan.model.load import Encoder, Verified, load_encoder
from edgesan.request import Alpha, Privacy, Request, Zones
from edgesan.silhouette import Silhouettes
from edgesan.standing import NOTHING_SET, PRIVACY, Standing
from edgesan.transmit.link import Pipes, Sender
from edgesan.zones import Zone, pack

logger = logging.getLogger(__name__)

FRAME_TIMEOUT_S = 2.0  # without a frame for so long, the camera counts as lost
STATUS_NS = 500_000_000  # between two status messages


class Past(NamedTuple):
    """What was before a sanitize process, and began before it."""

    losses: int = 0  # how often the camera was lost
    standing: Standing = NOTHING_SET  # what the owner has set
    packets: Reader | None = None  # what the process sends that fetches from a network camera


NOTHING_YET: Final = Past()


class Stop:
    """A flag that SIGINT and SIGTERM set; the loop checks it between frames."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.asked = True


def run(
    config: Config,
    pipes: Pipes,
    control: ControlChannel,
    claims: list[IsolationClaim],
    past: Past = NOTHING_YET,
) -> None:
    """Run until the frames or the file end, a signal comes, or privacy is switched on or off.

    Args:
        config: the options of the run; `frames` is what is left of them.
        pipes: the pipes to the transmit process.
        control: the channel to the parent.
        claims: the restrictions of this process; see `isolation.sanitize`.
        past: what was before this process, and what fetches for it; where privacy is on, no camera is opened.

    Raises:
        CameraError: the camera cannot be opened, or is lost; the parent then starts another process.
        EdgesanError: the model or an option is wrong; see `edgesan.errors`.
    """
    stop = Stop()
    with ExitStack() as stack:
        encoder = load_encoder(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
        sanitizer = build(config, encoder, still=accepted(config, past.standing))
        hold_version(config, encoder, control)
        sender, results = Sender(pipes), isolation.pack(claims)
        owner = Owner(config, sanitizer, control, past.standing)
        if owner.privacy:
            rest(owner, sender, control, results, stop)
            return
        stack.callback(lambda: sender.send_status(owner.resting(results)) if owner.switched else None)  # once closed
        if owner.switches(sender.requests()):  # asked for while the camera was lost
            return
        source, claims, results = opened(config, past.packets, control, claims)
        stack.callback(source.close)
        isolation.limit_memory()
        width, height = source.size
        status.announce(config, encoder, f"{source.name} {width}x{height}", sanitizer.alpha, claims)
        # A transmit process takes the frames from then on. If the parent is gone, a signal ends this process.
        control.wait_for(START)

        metrics = Metrics()
        metrics.count("camera_lost", past.losses)
        started_ns = time.monotonic_ns()
        status_due_ns, faces_now = started_ns, 0
        control.send(READY)
        while not stop.asked and config.frames != metrics.totals["sanitized"]:
            if owner.switches(sender.requests()):
                break
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
                facts = (encoder.id, width, height, results, *owner.switched_to)
                sender.send_status(Status(counters, uptime_s, fps, sanitizer.alpha, spans, *facts))
                status_due_ns = now_ns + STATUS_NS


def opened(
    config: Config, packets: Reader | None, control: ControlChannel, claims: list[IsolationClaim]
) -> tuple[Source, list[IsolationClaim], bytes]:
    """Open the camera; return it, and the claims, also of the process that fetches from it, with their results.

    Raises:
        CameraError: the camera cannot be opened.
        IsolationError: `require_isolation` is set, and a restriction does not hold.
    """
    control.send(OPENING)
    if packets:
        claims = [*claims, *packets.claims(required=config.require_isolation)]
    source = open_source(config.camera, config.width_height, config.fps, config.rotate, packets)
    return source, claims, isolation.pack(claims)


def accepted(config: Config, standing: Standing) -> scene.Still | None:
    """Return the still in force; None, and a line in the log, where the run waits for one.

    Raises:
        ConfigError: the still is damaged.
    """
    if standing.still:
        return scene.decode(standing.still)
    if config.background == "scene":
        logger.info("no still is accepted yet, so faces are shown on a flat colour: see `edgesan scene`")
    return None


class Owner:
    """Does what the owner asks for, through the process that serves the network."""

    def __init__(
        self, config: Config, sanitizer: sanitize.FrameSanitizer, control: ControlChannel, standing: Standing
    ) -> None:
        self._config, self._sanitizer, self._control = config, sanitizer, control
        self._before = self.privacy = standing.privacy
        self._switch, self._recorded = 0, standing.recorded
        self._draw(standing.zones)
        if standing.alpha is not None:
            self._turn(standing.alpha)

    @property
    def switched(self) -> bool:
        """Whether privacy was switched, so that this process must end: the next one opens the camera, or does not."""
        return self.privacy != self._before

    @property
    def switched_to(self) -> tuple[bool, int, bool]:
        """What a status says: privacy, the last request for it, and whether that outlives a restart."""
        return self.privacy, self._switch, self._recorded

    def switches(self, requests: Iterable[Request]) -> bool:
        """Do what is asked for, until privacy is switched: return whether it was."""
        for asked in requests:
            match asked:
                case Alpha(alpha):
                    self._turn(alpha)
                    self._control.send(TURNED, repr(self._sanitizer.alpha).encode())
                case Zones(zones):
                    self._draw(zones)
                    if self._config.role == "sanitize":  # else the other process has them recorded
                        self._record(RECORD_ZONES, pack(zones))
                case Privacy(on, number):
                    self._switch = number
                    if on == self.privacy and self._recorded:
                        continue
                    self._recorded = self._record(RECORD_PRIVACY, b"1" if on else b"0")
                    # The camera is closed in any case, and opened only if that outlives a power cut.
                    if on != self.privacy and (self._recorded or on):
                        self.privacy = on
                        break  # the parent ends this process; the next one does the rest
        return self.switched

    def _turn(self, alpha: float) -> None:
        low, high = self._sanitizer.encoder.metadata.alpha_range
        self._sanitizer.alpha = min(max(alpha, low), high)

    def _draw(self, zones: tuple[Zone, ...]) -> None:
        """Let these be the zones beside those of the configuration, from the next frame on."""
        self._sanitizer.draw((*self._config.zones, *zones))

    def _record(self, kind: bytes, payload: bytes) -> bool:
        """Have the parent record it, which says if it cannot."""
        return self._control.ask(kind, payload, RECORDED, NOT_RECORDED).kind == RECORDED

    def resting(self, results: bytes, uptime_s: float = 0.0) -> Status:
        """Return the status of a process that has no camera open."""
        nothing = ((0.0, 0.0, 0.0),) * len(SPANS)
        model, alpha = self._sanitizer.encoder.id, self._sanitizer.alpha
        return Status((0,) * len(COUNTERS), uptime_s, 0.0, alpha, nothing, model, 0, 0, results, *self.switched_to)


def rest(owner: Owner, sender: Sender, control: ControlChannel, results: bytes, stop: Stop) -> None:
    """Keep the camera closed until privacy is switched off, or a signal comes."""
    logger.warning("%s", PRIVACY)
    control.wait_for(START)
    control.send(READY)
    started_s = time.monotonic()
    while not (stop.asked or owner.switched):
        sender.send_status(owner.resting(results, time.monotonic() - started_s))
        control.send(RESTING)
        owner.switches(sender.requests(STATUS_NS / 1e9))
    sender.send_status(owner.resting(results))


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
    payload = json.dumps([name, version], ensure_ascii=False).encode()
    kind, reason = control.ask(RECORD_VERSION, payload, RECORDED, NOT_RECORDED)
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
