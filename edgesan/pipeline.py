"""The loop: capture -> sanitize -> ring, and what happens when the camera goes away."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Any

from edgesan import __version__, faces, isolation, rollback, sanitize
from edgesan.capture import Source, open_source
from edgesan.config import Config
from edgesan.errors import CameraError, CameraLost, ConfigError, EdgesanError, EndOfStream, Reject
from edgesan.frames import STAGES, SanitizedFrame
from edgesan.metrics import Metrics
from edgesan.model import Model, load
from edgesan.ring import RingWriter
from edgesan.transmit.process import Transmitter
from edgesan.transmit.unit import Doorway
from edgesan.watchdog import Watchdog

FRAME_TIMEOUT_S = 2.0  # without a frame for so long, the camera is lost
BACK_OFF_S = (0.5, 1.0, 2.0, 3.0)  # between attempts to open it again; the last one repeats: back within 5 s
SLATE_S = 0.5  # between slates
STATUS_NS = 500_000_000


class Stop:
    """Set by SIGINT and SIGTERM; the loop looks at it between frames."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask the loop to end, instead of breaking a frame in the middle."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build(config: Config) -> sanitize.FrameSanitizer:
    """The sanitizer that a configuration asks for.

    Raises:
        ModelError: the model file may not be run, or is older than one that was.
        ConfigError: alpha lies outside the model's range.
    """
    model = load(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
    low, high = model.metadata.alpha_range
    alpha = model.metadata.alpha_default if config.alpha is None else config.alpha
    if not low <= alpha <= high:
        raise ConfigError(f"alpha is {alpha:g}: the model {model.metadata.name} was made for {low:g}..{high:g}")
    settings = sanitize.Settings(config.background, config.zones, config.detect_every)
    detector = faces.Detector(config.detect_size)
    hold_version(config, model)
    return sanitize.FrameSanitizer(model, detector, settings, alpha, round(config.hold * 1e9))


def hold_version(config: Config, model: Model) -> None:
    """Let no model run that is older than one that ran, and remember this one.

    Only a trusted signature may raise the record: else any file could lock the signed models out.

    Raises:
        RollbackError: it is older, or the record cannot be read or kept.
    """
    if config.allow_rollback:
        return
    folder = rollback.state_folder(config.state_dir, os.environ)
    hold = rollback.remember if model.signer and model.signer.trusted else rollback.check
    hold(folder, model.metadata.name, model.metadata.version)


def run(config: Config, transmitter: Transmitter | Doorway, watchdog: Watchdog, claims: list[isolation.Claim]) -> None:
    """`edgesan run`: until the frames, the duration or the file end, or a signal comes.

    Args:
        transmitter: started, not opened yet; or the door that a transmit unit comes by.
        watchdog: hears of each frame.
        claims: what this process has given up; see `isolation.sanitize`.

    Raises:
        EdgesanError: as the exit codes in `edgesan.errors` tell; a camera that is lost later is waited for instead.
    """
    with ExitStack() as stack:
        stack.callback(transmitter.stop)
        stop = stack.enter_context(stop_signals())
        sanitizer = build(config)
        source = Camera(config)
        stack.callback(source.close)
        if not source.wait(stop):
            return
        width, height = source.size
        ring = stack.enter_context(closing(RingWriter(width * height * 3)))
        transmitter.open(ring)
        if config.require_isolation:
            isolation.require([*claims, *transmitter.claims])
        metrics = Metrics()
        started = time.monotonic()
        status_due_ns, faces_now = 0, 0

        def facts() -> dict[str, Any]:
            seconds = time.monotonic() - started
            return status(config, sanitizer, source, metrics, faces_now, seconds, [*claims, *transmitter.claims])

        announce(config, sanitizer.model, source, sanitizer.alpha, [*claims, *transmitter.claims])
        ring.put_status(facts())  # before the first frame: who sees it may ask
        watchdog.ready()
        stack.callback(watchdog.stopping)

        while not stop.asked and not (config.duration and time.monotonic() - started >= config.duration):
            for asked in transmitter.requests():
                low, high = sanitizer.model.metadata.alpha_range
                sanitizer.alpha = min(max(asked, low), high)
            try:
                frame = source.sanitized(sanitizer, metrics)
                ring.put(frame)
            except EndOfStream:
                break
            except Reject as reject:
                metrics.count(f"rejected_{reject.reason}")
            else:
                transmitter.notify()
                if not frame.stamps.slate:
                    faces_now = frame.stamps.faces
                    record(metrics, frame, time.monotonic_ns())
            watchdog.alive()
            now_ns = time.monotonic_ns()
            if now_ns >= status_due_ns:
                transmitter.check()
                ring.put_status(facts())
                status_due_ns = now_ns + STATUS_NS
            if config.frames and metrics.totals["sanitized"] >= config.frames:
                break
        ring.put_status(facts())


class Opening(threading.Thread):
    """Opens a camera beside the loop: one that does not answer (5 s, over a network) holds up neither slates nor Ctrl-C."""

    def __init__(self, config: Config) -> None:
        super().__init__(daemon=True)  # whoever ends meanwhile does not wait for it
        self._config = config
        self._source: Source | None = None
        self._error: EdgesanError | None = None
        self.start()

    def run(self) -> None:
        c = self._config
        try:
            self._source = open_source(c.camera, c.width_height, c.fps)
        except EdgesanError as error:
            self._error = error

    def source(self) -> Source:
        """What was opened; call it once the thread has ended.

        Raises:
            CameraError: it could not be opened.
            ConfigError: the configuration names no camera.
        """
        if self._error is not None:
            raise self._error
        if self._source is None:
            raise RuntimeError("opening the camera failed; the traceback above tells how")
        return self._source


class Camera:
    """A source that comes back: while it is lost, slates are shown and opening is tried again, ever less often."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._opening: Opening | None = Opening(config)
        self._source: Source | None = None
        self.name, self.size = "", (0, 0)
        self._attempt, self._next_attempt_s, self._slates = 0, 0.0, 0

    def wait(self, stop: Stop) -> bool:
        """Wait until it is open for the first time; False if somebody asked to stop meanwhile.

        Raises:
            CameraError, ConfigError: it could not be opened.
        """
        while self._opening is not None and not stop.asked:
            self._opening.join(0.1)
            self._take()
        if self._source is None:
            return False
        self.name, self.size = self._source.name, self._source.size
        return True

    @property
    def up(self) -> bool:
        return self._source is not None

    def sanitized(self, sanitizer: sanitize.FrameSanitizer, metrics: Metrics) -> SanitizedFrame:
        """The next frame, sanitized; or a slate.

        Raises:
            EndOfStream: the file is over.
            Reject: the gate did not let the frame pass.
        """
        if self._source is None:
            return self._slate_or_reopen()
        try:
            with self._source.frame(FRAME_TIMEOUT_S) as raw:
                metrics.count("captured")
                return sanitizer(raw)
        except CameraLost as lost:
            print(f"edgesan: {lost}; trying to open it again", file=sys.stderr, flush=True)
            metrics.count("camera_lost")
            self._source.close()
            self._source, self._attempt, self._next_attempt_s = None, 0, 0.0
            sanitizer.tracker.tracks.clear()
            return self._slate_or_reopen()

    def _slate_or_reopen(self) -> SanitizedFrame:
        if self._opening is None and time.monotonic() >= self._next_attempt_s:
            self._opening = Opening(self._config)
        if self._opening is None:
            time.sleep(min(SLATE_S, max(0.0, self._next_attempt_s - time.monotonic())))
        else:
            self._opening.join(SLATE_S)
            try:
                self._take()
            except CameraError:
                self._next_attempt_s = time.monotonic() + BACK_OFF_S[min(self._attempt, len(BACK_OFF_S) - 1)]
                self._attempt += 1
        if self._source is not None:
            if self._source.size != self.size:
                raise CameraError(
                    f"{self.name} came back with {self._source.size}, not {self.size}: start edgesan again"
                )
            print(f"edgesan: {self.name} is back", file=sys.stderr, flush=True)
        self._slates += 1
        return sanitize.slate("camera lost", self.size, self._slates, time.monotonic_ns())

    def _take(self) -> None:
        """Take what was opened, if the thread has ended."""
        if self._opening is not None and not self._opening.is_alive():
            ended, self._opening = self._opening, None
            self._source = ended.source()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def record(metrics: Metrics, frame: SanitizedFrame, now_ns: int) -> None:
    """Take a frame's own stamps into the counters."""
    metrics.count("sanitized")
    metrics.count("faces", frame.stamps.faces)
    metrics.tick(now_ns)
    for stage, duration_ns in zip(STAGES, frame.stamps.stage_ns, strict=True):
        metrics.span(stage, duration_ns)
    metrics.span("ring", now_ns - frame.stamps.sanitized_ns)


def status(
    config: Config,
    sanitizer: sanitize.FrameSanitizer,
    source: Camera,
    metrics: Metrics,
    faces_now: int,
    uptime_s: float,
    claims: list[isolation.Claim],
) -> dict[str, Any]:
    """What the page and the metrics say of the sanitize process; JSON."""
    model = sanitizer.model
    facts = model.metadata
    return {
        "version": __version__,
        "camera": source.name,
        "camera_up": source.up,
        "model": {
            "name": facts.name, "version": facts.version, "sha256": model.sha256, "private": facts.private,
            "utility": facts.utility, "alpha_range": facts.alpha_range, "measured": facts.strongest_attack,
            "signature": str(model.signer or "unsigned"),
        },
        "alpha": sanitizer.alpha,
        "background": config.background,
        "faces": faces_now,
        "uptime_s": round(uptime_s, 1),
        "isolation": isolation.report(claims),
        "warnings": warnings(config, model),
        **metrics.summary(time.monotonic_ns()),
    }  # fmt: skip


def warnings(config: Config, model: Model) -> list[str]:
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


def announce(config: Config, model: Model, source: Camera, alpha: float, claims: list[isolation.Claim]) -> None:
    """The start-up lines."""
    facts = model.metadata
    out = f"transmit units at {config.socket}" if config.role == "sanitize" else ", ".join(config.out)
    print(
        f"edgesan {__version__}: {source.name} {source.size[0]}x{source.size[1]} -> {out}\n"
        f"  model {facts.name} v{facts.version} ({model.sha256[:8]}): private {facts.private}, useful {facts.utility};"
        f" alpha {alpha:g}, background {config.background}\n"
        f"  measured: {facts.strongest_attack}\n"
        f"  {model.signer or 'unsigned'}\n"
        f"  isolation: {isolation.summary(claims)}",
        *(f"  WARNING: {claim}" for claim in claims if not claim.holds),
        *(f"  WARNING: {text}" for text in warnings(config, model)),
        sep="\n",
        file=sys.stderr,
        flush=True,
    )
