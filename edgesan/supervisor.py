"""`edgesan run`: the parent process, which starts the others and does what they are not allowed to do.

    parent     the process that the user started: handles signals, notifies systemd, creates files, records versions
               and what the owner sets. It never opens a camera, and serves nothing.
    sanitize   has the camera, and no network: `edgesan.pipeline`
    transmit   has the network, and no camera: `edgesan.transmit.process`
    fetch      only for a network camera: reaches its port, and decodes nothing: `edgesan.fetch`
    out-N      an outlet, for each entry of `out` that is neither a server of ours nor a file: `edgesan.outlets`

All are forked before any library that starts threads is loaded. What fails is started again: a lost camera ends the
sanitize process, and with it the fetch process; the next one opens the camera in a new sandbox. So does privacy, with
which the next one opens none. A transmit process that was killed costs its viewers a second. An outlet that dies or
hangs is started again, too, later each time, and costs nobody else anything. A failure that a new start cannot cure
ends the run with its exit code.

With `--role sanitize` or `--role transmit` the parent has one child, and the two units meet at a Unix socket
(`edgesan.transmit.unit`). What fetches is a unit of its own then.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Final

from edgesan import isolation, scene, standing, v4l2, zones
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
from edgesan.errors import CameraError, ConfigError, EdgesanError, IsolationError, ModelStalled, SinkError
from edgesan.fetch import Fetcher
from edgesan.fetch.packets import Reader
from edgesan.model import rollback
from edgesan.outlets import process as outlet_process
from edgesan.outlets.link import BackOff
from edgesan.targets import Target
from edgesan.transmit import process, sinks
from edgesan.transmit.link import Pipes, send_outlet, send_pipes
from edgesan.transmit.sinks import OutputFile
from edgesan.transmit.unit import UnitClient, UnitListener
from edgesan.watchdog import Watchdog

logger = logging.getLogger(__name__)

POLL_MS: Final = 200  # at most, from one round of checks to the next
START_S: Final = 30.0  # for a child to become ready
RESTART_S: Final = 1.0  # from the death of the transmit process to the next start
BACK_OFF_S: Final = (0.5, 1.0, 2.0, 3.0)  # between attempts to open a lost camera; the last one repeats
STOP_SANITIZE_S: Final = 1.0  # a driver that hangs must not delay Ctrl-C
STOP_S: Final = 0.7  # for the streams to end
STOP_FILES_S: Final = 5.0  # for files to be finished, also on a busy machine
ALIVE_S: Final = 0.5  # between two notifications to systemd
RECORD_S: Final = 0.5  # between two records of zones
HUNG_S: Final = 15.0  # for a child to say nothing, before it is killed
MOST_PASSED_S: Final = 1.0  # that count of one round of checks
ENDED_S: Final = 0.1  # from the clean end of an outlet to its next start
SILENT: Final = "the other side was asked, and did not answer; the process that waited for it was ended"
STOP_OUTLETS_S: Final = 2.0  # for outlets to finish what they write
MOST_NAME: Final = 500  # characters of a model name that is recorded
LOG_BURST: Final = 16384  # bytes of text that the sanitize process may print at once: a traceback
LOG_RATE: Final = 256  # bytes a second, for longer
# What SIGHUP changes, by the process that starts again for it.
FIXED: Final = frozenset({"role", "socket", "frames", "duration", "state_dir"})
OF_BOTH: Final = frozenset(
    {"model", "threads", "trusted_keys", "allow_unsigned", "zone", "background", "scene"}
    | {"require_isolation", "allow_rollback", "camera", "fps", "log_level", "log_format"}
)
OF_TRANSMIT: Final = OF_BOTH | {"out", "token", "tls_cert", "tls_key", "embed_from", "name", "announce"}
OF_SANITIZE: Final = frozenset(f.name for f in fields(Config)) - FIXED - (OF_TRANSMIT - OF_BOTH)


class Log:
    """Passes on what the sanitize process prints: plain text only, and too little for a picture.

    Its standard error is a pipe to the parent, because a terminal or a file would have room for anything.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_fd, False)
        self._budget, self._at_s = float(LOG_BURST), time.monotonic()
        self._full = False

    def redirect_output(self) -> None:
        """In the child: send standard output and standard error to the pipe."""
        for stream in (1, 2):
            os.dup2(self._write_fd, stream)

    def close_child_end(self) -> None:
        """In the parent: close the end that the child has."""
        os.close(self._write_fd)

    def pass_on(self) -> None:
        """Print what has arrived."""
        now_s = time.monotonic()
        self._budget = min(LOG_BURST, self._budget + LOG_RATE * (now_s - self._at_s))
        self._at_s = now_s
        with suppress(BlockingIOError):
            while content := os.read(self.read_fd, 4096):
                text = "".join(c if c.isprintable() or c == "\n" else "?" for c in content.decode(errors="replace"))
                shown = text[: int(self._budget)]
                self._budget -= len(shown)
                self._write(shown)
                if len(shown) < len(text) and not self._full:
                    self._write("\n")
                    logger.warning("the sanitize process prints too much; the rest is dropped")
                    self._full = True

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError):  # a full disk, or nobody who reads: that ends no camera
            os.write(2, text.encode())

    def close(self) -> None:
        """Print what is left, and close the pipe."""
        self.pass_on()
        os.close(self.read_fd)


@dataclass
class Child:
    """A forked process. `code` is its exit code, -9 if signal 9 ended it, and None while it lives."""

    name: str
    pid: int
    control: ControlChannel
    started_s: float
    silent_s: float = 0.0  # for how long it has said nothing, while the parent ran
    ready: bool = False
    hung: bool = False  # whether it was killed because it said nothing
    recorded: bool = False  # whether it has had its version recorded
    privacy: bool = False  # at its start: whether it was to open no camera
    code: int | None = None

    def is_alive(self) -> bool:
        """Check whether the process still runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def end_if_hung(self, name: str, passed_s: float) -> None:
        """Kill it if it has said nothing for long, also in the time that has just passed."""
        self.silent_s += passed_s
        if self.is_alive() and self.silent_s > HUNG_S:
            logger.warning("%s does not answer for %g s, and is ended", name, HUNG_S)
            self.hung = True
            self.end(0)

    def end(self, seconds: float) -> int:
        """Ask it to end, kill it after so many seconds, and return its exit code."""
        if self.is_alive():
            os.kill(self.pid, signal.SIGTERM)
            self.control.send(START)  # if it still waits for it
        over_s = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < over_s:
            time.sleep(0.01)
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert self.code is not None
        return self.code


@dataclass
class Outlet:
    """One entry of `out` that a process of its own sends to. `number` is its place among `Config.targets`."""

    number: int
    target: Target
    back_off: BackOff = field(default_factory=BackOff)
    child: Child | None = None
    due_s: float = 0.0
    begun: bool = False  # whether it could start once
    said: str = ""  # what was logged last of its end, which is said once


class Ended(Exception):
    """Raised inside `Supervisor.run`: the run is over, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Supervisor:
    """The parent process. `run` is its whole life."""

    def __init__(self, config: Config, watchdog: Watchdog, reload: Callable[[], Config] | None = None) -> None:
        """Prepare a run.

        Args:
            config: its options.
            watchdog: the service manager's.
            reload: reads the options again, after SIGHUP.

        Raises:
            ConfigError: what the owner has set cannot be read, or the units cannot meet.
        """
        self._config, self._watchdog, self._pid = config, watchdog, os.getpid()
        self._alone = isolation.is_alone()  # before it listens
        self._reload, self._hung_up = reload, False
        self._standing = standing.read(self._folder)._replace(still=scene.of_run(config))
        self._pipes: Pipes | None = None if config.role == "transmit" else Pipes.make()
        self._listener = UnitListener(config.socket) if config.role == "sanitize" else None
        self._client = UnitClient(config.socket) if config.role == "transmit" else None
        self._sanitize: Child | None = None
        self._transmit: Child | None = None
        self._outlets = self._new_outlets()
        self._log: Log | None = None
        self._fetcher: Fetcher | None = None
        self._channel: socket.socket | None = None  # carries pipes to the transmit process
        self._files: list[Path] = []  # the files that were created
        self._stop = False
        # Closing its terminal ends a run; a service has none, and reads its configuration again.
        self._has_terminal = os.isatty(0)
        self._frames, self._losses, self._tries, self._reloaded = 0, 0, 0, False
        self._zones_due_s = 0.0
        self._sanitize_due_s = self._transmit_due_s = self._alive_s = 0.0
        self._checked_s = time.monotonic()  # when the newest round of checks began
        self._passed_s = 0.0  # since the round before it
        self._began_s: float | None = None  # when everything was ready for the first time

    def run(self) -> int:
        """Run until the frames, the duration or the file end, or a signal comes, and return the exit code.

        Raises:
            EdgesanError: something could not be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle_signal)
        try:
            while True:
                if self._hung_up:
                    self._reload_config()
                self._start()
                self._wait()
                for child in self._children():
                    self._receive(child)
                self._exchange_pipes()
                self._check()
                for outlet in self._outlets:
                    self._tend(outlet)
        except Ended as ended:
            return self._end(ended.code)
        except EdgesanError:
            self._end(0)
            raise

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not self._has_terminal:
            self._hung_up = True
        else:
            self._stop = True

    def _children(self) -> list[Child]:
        return [child for child in (self._sanitize, self._transmit) if child]

    def _new_outlets(self) -> list[Outlet]:
        targets = () if self._config.role == "sanitize" else self._config.targets
        return [Outlet(number, target) for number, target in enumerate(targets)]

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start each child that should run and does not."""
        now_s = time.monotonic()
        if self._config.role != "sanitize" and self._transmit is None and now_s >= self._transmit_due_s:
            files = sinks.open_files(self._config)
            self._files += [path for path, _ in files]
            self._channel, theirs = socket.socketpair()
            self._transmit = self._fork("transmit", lambda control: self._run_transmit(files, theirs, control))
            theirs.close()
            for _, file in files:
                file.close()
            if self._pipes:
                send_pipes(self._channel, self._pipes.frames_in, self._pipes.requests_out)
        for outlet in self._outlets:
            if self._transmit and self._transmit.ready and outlet.child is None and now_s >= outlet.due_s:
                self._start_outlet(outlet)
        if self._losses and not (self._sanitize and self._sanitize.ready):
            self._notify_alive()
        if self._pipes and self._sanitize is None and now_s >= self._sanitize_due_s:
            self._start_sanitize()

    def _start_sanitize(self) -> None:
        """Start the sanitize process and, for a network camera, before it the one that fetches."""
        self._log = Log()
        if self._config.camera_is_url and not self._standing.privacy:
            c, redirect = self._config, self._log.redirect_output
            if c.role == "sanitize":  # its unit has no network
                self._fetcher = Fetcher.ask(c.fetch_socket)
            else:
                self._fetcher = Fetcher.start(c.camera, required=c.require_isolation, redirect=redirect)
        self._sanitize = self._fork("sanitize", self._run_sanitize)
        self._log.close_child_end()
        if self._fetcher:
            self._fetcher.close_child_end()  # a transmit process that is forked later must not have it
        if self._transmit is None or self._transmit.ready:
            self._sanitize.control.send(START)

    def _fork(self, name: str, main: Callable[[ControlChannel], int]) -> Child:
        """Fork a child that runs `main` and ends with the exit code that it returns."""
        ours, theirs = ControlChannel.pair()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            logger.debug("started the %s process, number %d", name, pid)
            theirs.close()
            return Child(name, pid, ours, time.monotonic(), privacy=self._standing.privacy)
        code = 1
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's
            Path("/proc/self/comm").write_text(f"edgesan-{name}"[:15])  # for ps and top: proc(5)
            ours.close()
            for child in (*self._children(), *(outlet.child for outlet in self._outlets if outlet.child)):
                child.control.close()
            if self._log:
                os.close(self._log.read_fd)
            self._watchdog.close()
            for unit in (self._listener, self._client):
                if unit:
                    unit.close()
            code = main(theirs)
        except EdgesanError as error:
            logger.error("%s", error)
            code = error.exit_code
        finally:  # the clean-up of the parent and of its caller is not this process's
            if code == 1 and sys.exc_info()[0] is not None:
                logger.critical("unexpected error of the %s process", name, exc_info=True)
            os._exit(code)

    def _run_sanitize(self, control: ControlChannel) -> int:
        """Run as the sanitize process."""
        self._end_with_parent(signal.SIGKILL)
        pipes, log = self._pipes, self._log
        assert pipes
        assert log
        log.redirect_output()
        # Any other descriptor, also one that edgesan itself inherited, could hold a picture.
        packets = [self._fetcher.packets] if self._fetcher else []
        keep = {0, 1, 2, pipes.frames_out, pipes.frames_in, pipes.requests_in, control.read_fd, control.write_fd}
        isolation.close_all_but({*keep, *packets})
        c = self._config
        from edgesan.model.signing import signature_path

        reads = [c.model, signature_path(c.model), self._folder, *c.camera_files]
        devices = c.camera_nodes
        if c.camera.startswith("picamera"):  # all but virtual cameras: there, others would read what is written
            devices = [node for node in isolation.camera_nodes() if not v4l2.is_virtual(node)]
        claims = isolation.sanitize(reads, devices=devices, alone=self._alone)
        if c.require_isolation:
            isolation.require(claims)
        from edgesan import pipeline

        left = c if c.frames is None else replace(c, frames=c.frames - self._frames)
        fetched = Reader(*packets) if packets else None
        pipeline.run(left, pipes, control, claims, pipeline.Past(self._losses, self._standing, fetched))
        return 0

    def _run_transmit(self, files: list[OutputFile], channel: socket.socket, control: ControlChannel) -> int:
        """Run as the transmit process."""
        # SIGTERM lets it finish its files; SIGKILL frees the port at once.
        self._end_with_parent(signal.SIGTERM if files else signal.SIGKILL)
        if self._channel:
            self._channel.close()
        if self._pipes:
            self._pipes.close()  # it receives them by the channel
        return process.run(self._config, files, channel, control, self._standing)

    def _start_outlet(self, outlet: Outlet) -> None:
        """Start the process of an outlet, and give it and the transmit process an end each of a new channel."""
        theirs, ours = socket.socketpair()
        outlet.child = self._fork(
            f"out-{outlet.number}", lambda control: self._run_outlet(outlet.target, theirs, control)
        )
        theirs.close()
        assert self._channel
        send_outlet(self._channel, outlet.number, ours.fileno())
        ours.close()

    def _run_outlet(self, target: Target, connection: socket.socket, control: ControlChannel) -> int:
        """Run as an outlet."""
        self._end_with_parent(signal.SIGKILL)
        keep = {0, 1, 2, connection.fileno(), control.read_fd, control.write_fd}
        isolation.close_all_but(keep)
        return outlet_process.run(self._config, target, connection, control)

    def _end_with_parent(self, number: int) -> None:
        """Have this signal sent when the parent ends, or at once if it has ended."""
        isolation.end_with_parent(number)
        if os.getppid() != self._pid:
            os.kill(os.getpid(), number)

    # --- events -------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait until something happens, or it is time for the next checks."""
        poll = select.poll()
        for child in self._children():
            poll.register(child.control.read_fd, select.POLLIN)
        for outlet in self._outlets:
            if outlet.child:
                poll.register(outlet.child.control.read_fd, select.POLLIN)
        if self._log:
            poll.register(self._log.read_fd, select.POLLIN)
        for unit in (self._listener, self._client):
            for fd in unit.descriptors() if unit else ():
                poll.register(fd, select.POLLIN)
        poll.poll(POLL_MS)
        # Who froze this process, as a container's pause does, froze its children, too: they get their time to speak.
        now_s = time.monotonic()
        self._passed_s, self._checked_s = min(now_s - self._checked_s, MOST_PASSED_S), now_s
        if self._log:
            self._log.pass_on()

    def _receive(self, child: Child) -> None:
        """Handle the messages of a child."""
        while (message := child.control.receive()) is not None and message.kind:
            child.silent_s = 0.0
            kind, payload = message
            if kind in (RECORD_VERSION, RECORD_PRIVACY, RECORD_ZONES, TURNED):
                self._keep(child, kind, payload)
            elif kind == READY and not child.ready:
                child.ready = True
                if child is self._transmit and self._sanitize:
                    self._sanitize.control.send(START)
                if all(each.ready for each in self._children()) and self._began_s is None:
                    self._began_s = time.monotonic()
                    self._watchdog.ready()
            elif kind == OPENING and self._fetcher:
                self._fetcher.connect()
            elif kind in (ALIVE, RESTING):
                if child is self._sanitize:
                    self._frames, self._tries = self._frames + (kind == ALIVE), 0
                if child is self._sanitize or self._pipes is None:
                    self._notify_alive()

    def _tend(self, outlet: Outlet) -> None:
        """Hear an outlet, kill it if it hangs, and have it started again if it has ended.

        Raises:
            Ended: it cannot start with this configuration.
        """
        child, now_s = outlet.child, time.monotonic()
        if child is None:
            return
        while (heard := child.control.receive()) is not None and heard.kind:
            child.silent_s, outlet.begun = 0.0, True
        child.end_if_hung(f"{outlet.target.name}: its process", self._passed_s)
        if child.is_alive():
            return
        child.control.close()
        outlet.child = None
        if child.code in (ConfigError.exit_code, IsolationError.exit_code) and not outlet.begun:
            raise Ended(self._code(child))
        if child.code == 0:  # the transmit process has ended, or its configuration has changed
            outlet.due_s = now_s + ENDED_S
            return
        if now_s - child.started_s > START_S:
            outlet.back_off.reset()
            outlet.said = ""
        outlet.due_s = now_s + outlet.back_off.next_s()
        why = SILENT if child.code == -signal.SIGALRM else f"its process ended ({child.code})"
        if why != outlet.said:
            logger.warning("%s: %s; starting it again", outlet.target.name, why)
            outlet.said = why

    def _end_outlets(self, seconds: float) -> None:
        """End all outlets at once, and kill those that do not end in time."""
        children = [outlet.child for outlet in self._outlets if outlet.child]
        for child in children:
            if child.is_alive():
                os.kill(child.pid, signal.SIGTERM)
        until_s = time.monotonic() + seconds
        for outlet, child in zip((each for each in self._outlets if each.child), children, strict=True):
            child.end(max(0.0, until_s - time.monotonic()))
            child.control.close()
            outlet.child = None

    def _notify_alive(self) -> None:
        """Notify systemd now and then: frames flow, or a lost camera is being opened again."""
        if time.monotonic() - self._alive_s >= ALIVE_S:
            self._alive_s = time.monotonic()
            self._watchdog.alive()

    def _keep(self, child: Child, kind: bytes, payload: bytes) -> None:
        """Keep something for a child, which may write nothing, and for the one after it."""
        if kind == RECORD_VERSION and child is self._sanitize and not child.recorded:
            child.recorded = True  # once, before it opens the camera: no picture can get into the record
            self._record_version(child, payload)
        elif kind == RECORD_PRIVACY and child is self._sanitize:
            self._switch(child, on=payload != b"0")
        elif kind == RECORD_ZONES and (child is self._transmit or self._config.role == "sanitize"):
            self._record_zones(child, payload)  # of the process that sees the camera only if there is no other
        elif kind == TURNED and child is self._sanitize:
            with suppress(ValueError):
                alpha = float(payload)
                self._standing = self._standing._replace(alpha=alpha if 0 <= alpha <= 1 else None)

    def _record_version(self, child: Child, payload: bytes) -> None:
        """Record that a version runs, for the sanitize process, which may write nothing."""
        try:
            name, version = json.loads(payload)
            named = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MOST_NAME
            if not (named and type(version) is int and 0 < version < 2**53):
                raise ConfigError(
                    f"cannot record the version {payload!r}: expected a model name and a whole number from 1"
                )
            rollback.remember(self._folder, name, version)
        except EdgesanError as error:
            child.control.send(NOT_RECORDED, str(error).encode())
        except ValueError:
            child.control.send(NOT_RECORDED, b"the model version did not arrive as JSON: start edgesan again")
        else:
            child.control.send(RECORDED)

    def _switch(self, child: Child, *, on: bool) -> None:
        """Record that privacy is on or off. On holds also where it cannot be recorded, and off does not."""
        try:
            if on != self._standing.privacy or not self._standing.recorded:
                standing.record_privacy(self._folder, on=on)
        except ConfigError as error:
            outcome = "the camera is closed, but it is opened at the next start" if on else "the camera stays closed"
            logger.error("%s: %s", outcome, error)
            child.control.send(NOT_RECORDED)
            self._standing = self._standing._replace(privacy=True, recorded=self._standing.recorded and not on)
        else:
            child.control.send(RECORDED)
            self._standing = self._standing._replace(privacy=on, recorded=True)

    def _record_zones(self, child: Child, payload: bytes) -> None:
        """Record the zones that are drawn. Not more often than a disk bears: a process may have been taken over."""
        now_s = time.monotonic()
        try:
            drawn = zones.parse(payload)
            self._standing = self._standing._replace(zones=drawn)
            if now_s < self._zones_due_s:
                raise ConfigError("they changed a moment ago: ask again")
            self._zones_due_s = now_s + RECORD_S
            standing.record_zones(self._folder, drawn)
        except ConfigError as error:
            logger.error("the zones that were drawn hold until the end of this run: %s", error)
            child.control.send(NOT_RECORDED, str(error).encode())
        else:
            child.control.send(RECORDED)

    @property
    def _folder(self) -> Path:
        """The folder of what outlives a run."""
        return rollback.state_folder(self._config.state_dir, os.environ, transmits=self._config.role == "transmit")

    def _exchange_pipes(self) -> None:
        """With units: accept the transmit unit, or connect to the sanitize unit."""
        if self._listener and self._pipes:
            self._listener.poll(self._pipes.frames_in, self._pipes.requests_out)
        if self._client and self._transmit and self._transmit.ready:
            given = self._client.poll()
            if given:
                assert self._channel
                send_pipes(self._channel, *given)
                for fd in given:
                    os.close(fd)

    def _reload_config(self) -> None:
        """Read the configuration again, and start the processes again that it changes. A wrong one changes nothing."""
        self._hung_up = False
        if self._reload is None:
            return
        try:
            new = self._reload()
            still = scene.of_run(replace(new, state_dir=self._config.state_dir))
        except EdgesanError as error:
            logger.error("the configuration stays as it was: %s", error)
            return
        old, self._reloaded = self._config, True
        changed = {f.name for f in fields(Config) if getattr(old, f.name) != getattr(new, f.name)}
        fixed = sorted(changed & FIXED)
        if fixed:
            logger.warning("%s changed: this takes effect at the next start", ", ".join(fixed))
        self._config = replace(new, **{name: getattr(old, name) for name in FIXED})
        if "alpha" in changed:
            self._standing = self._standing._replace(alpha=None)
        if still != self._standing.still:
            self._standing = self._standing._replace(still=still)
            changed.add("scene")
        renewed = changed & OF_TRANSMIT or (new.tls_cert and self._transmit)  # a certificate has a new content at times
        logger.info("the configuration was read again; changed: %s", ", ".join(sorted(changed - FIXED)) or "nothing")
        if self._sanitize and changed & OF_SANITIZE:
            self._renew(self._sanitize)
        if self._transmit and renewed:
            self._transmit.end(STOP_FILES_S if self._files else STOP_S)
            self._transmit.control.close()
            assert self._channel
            self._channel.close()
            self._remove_empty_files()
            self._transmit, self._transmit_due_s = None, 0.0
            self._end_outlets(STOP_OUTLETS_S)
            self._outlets = self._new_outlets()
            if self._client:
                self._client.leave()

    def _renew(self, sanitize: Child) -> None:
        """End the sanitize process, and let the next one begin at once."""
        self._reloaded = True
        sanitize.end(STOP_SANITIZE_S)
        self._receive(sanitize)  # the owner may have closed the camera meanwhile
        sanitize.control.close()
        self._sanitize, self._sanitize_due_s = None, 0.0
        self._clear_up()

    # --- ending -------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Check which children have ended.

        Raises:
            Ended: the run is over.
        """
        c, now_s = self._config, time.monotonic()
        if self._stop or (c.duration and self._began_s is not None and now_s - self._began_s >= c.duration):
            raise Ended(0)
        for child in self._children():
            if child.is_alive() and not child.ready and now_s - child.started_s > START_S:
                logger.error("the %s process was not ready after %g s", child.name, START_S)
                child.end(0)
                raise Ended(1)
            if child.ready:
                child.end_if_hung(f"the {child.name} process", self._passed_s)
        if self._transmit and not self._transmit.is_alive():
            self._transmit_ended(self._transmit)
        if self._sanitize and self._sanitize.privacy != self._standing.privacy:
            logger.info("privacy is switched %s", "on" if self._standing.privacy else "off")
            self._renew(self._sanitize)
        if self._sanitize and not self._sanitize.is_alive():
            self._receive(self._sanitize)
            self._sanitize_ended(self._sanitize)

    def _sanitize_ended(self, child: Child) -> None:
        child.control.close()
        self._sanitize = None
        self._clear_up()
        lost = child.code == CameraError.exit_code and (child.ready or self._losses or self._reloaded)
        # What has run before, and was held up by a busy machine, may run again.
        lost = lost or (child.ready and (child.hung or child.code == ModelStalled.exit_code))
        if not lost or (self._config.frames is not None and self._frames >= self._config.frames):
            raise Ended(self._code(child))
        if child.ready:
            self._losses += 1
        wait_s = BACK_OFF_S[min(self._tries, len(BACK_OFF_S) - 1)]
        self._tries += 1
        self._sanitize_due_s = time.monotonic() + wait_s
        logger.info("opening the camera again")

    def _transmit_ended(self, child: Child) -> None:
        child.control.close()
        self._transmit = None
        if self._channel:
            self._channel.close()
        self._remove_empty_files()
        if not child.ready or child.code in (0, SinkError.exit_code):
            raise Ended(self._code(child))
        if self._client:
            self._client.leave()
        # Wait, because a signal to all processes of the service may be about to reach this one.
        self._transmit_due_s = time.monotonic() + RESTART_S
        logger.warning("the transmit process ended (%s); starting it again", child.code)

    def _clear_up(self) -> None:
        """Clear up behind a sanitize process: what it printed, and what fetched for it."""
        if self._fetcher:
            self._fetcher.close()
            self._fetcher = None
        if self._log:
            self._log.close()
            self._log = None

    def _code(self, child: Child) -> int:
        """Return the exit code of a run that ends with this child."""
        assert child.code is not None
        if child.code < 0:
            logger.error("the %s process was killed by signal %d", child.name, -child.code)
            return 128 - child.code
        return child.code

    def _end(self, code: int) -> int:
        """End the camera first, then the sinks; return the exit code, which is an error if a file is not whole."""
        self._watchdog.stopping()
        if self._sanitize:
            self._sanitize.end(STOP_SANITIZE_S)
            self._clear_up()
        if self._transmit:
            files = [str(path) for path in self._files]
            ended = self._transmit.end(STOP_FILES_S if files else STOP_S)
            self._remove_empty_files()
            if files and ended < 0 and self._transmit.ready:
                logger.error("%s may not be whole: the transmit process had to be killed", ", ".join(files))
                ended = SinkError.exit_code
            code = code or max(0, ended)
        self._end_outlets(STOP_OUTLETS_S)
        for unit in (self._listener, self._client):
            if unit:
                unit.stop()
        return code

    def _remove_empty_files(self) -> None:
        sinks.remove_empty(self._files)
        self._files = []
