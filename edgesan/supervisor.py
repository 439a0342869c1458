"""`edgesan run`: the parent, which starts the two others, and does for them what they gave up.

    parent     what the user started: hears signals, tells systemd, keeps the record of versions, opens files.
               It never opens a camera, and serves nothing.
    sanitize   the camera, and no network: `edgesan.pipeline`
    transmit   the network, and no camera: `edgesan.transmit.process`

Both are forked before any of them has loaded a library that starts threads. What is lost is started anew: a camera that
went away costs the sanitize process (the new one opens it afresh, under a new sandbox), a transmit process that was killed
costs its viewers a second. What cannot be cured by a new start ends the run with its exit code.

With `--role sanitize` or `--role transmit` the parent has one child, and meets the other unit at a Unix socket
(`edgesan.transmit.unit`).
"""

import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final

from edgesan import isolation
from edgesan.config import SERVERS, Config
from edgesan.control import ALIVE, NOT_RECORDED, READY, RECORD_VERSION, RECORDED, START, ControlChannel
from edgesan.errors import CameraError, ConfigError, EdgesanError, SinkError
from edgesan.model import rollback
from edgesan.transmit import process
from edgesan.transmit.link import Pipes
from edgesan.transmit.unit import UnitClient, UnitListener
from edgesan.watchdog import Watchdog

TURN_MS: Final = 200  # at most, between two looks at everything
START_S: Final = 30.0  # for a child to be ready
RESTART_S: Final = 1.0  # from the death of the transmit process to the next start
BACK_OFF_S: Final = (0.5, 1.0, 2.0, 3.0)  # between attempts to open a lost camera; the last one repeats
STOP_SANITIZE_S: Final = 1.0  # a driver that hangs must not hold Ctrl-C up
STOP_S: Final = 0.7  # for the streams' last words
STOP_FILES_S: Final = 5.0  # a whole file is worth more than a quick end on a busy machine
ALIVE_S: Final = 0.5  # between signs of life for systemd
MOST_NAME: Final = 500  # characters of a model's name that is remembered
LOG_BURST: Final = 16384  # bytes of text that the sanitize process may print at once: a traceback
LOG_RATE: Final = 256  # bytes a second, for longer


class Log:
    """What the sanitize process prints, passed on by the parent: plain text, and only so much that no picture fits in.

    Its own standard error would be a terminal or a file, with room for anything.
    """

    def __init__(self) -> None:
        self.reads, self._writes = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reads, False)
        self._budget, self._at_s = float(LOG_BURST), time.monotonic()
        self._full = False

    def take(self) -> None:
        """In the child: print to here from now on."""
        for stream in (1, 2):
            os.dup2(self._writes, stream)

    def given(self) -> None:
        """In the parent: the child has it."""
        os.close(self._writes)

    def pass_on(self) -> None:
        """Print what has come."""
        now_s = time.monotonic()
        self._budget = min(LOG_BURST, self._budget + LOG_RATE * (now_s - self._at_s))
        self._at_s = now_s
        with suppress(BlockingIOError):
            while said := os.read(self.reads, 4096):
                text = "".join(c if c.isprintable() or c == "\n" else "?" for c in said.decode(errors="replace"))
                shown = text[: int(self._budget)]
                self._budget -= len(shown)
                if len(shown) < len(text) and not self._full:
                    shown, self._full = (
                        shown + "\nedgesan: the sanitize process prints too much; the rest is dropped\n",
                        True,
                    )
                sys.stderr.write(shown)
            sys.stderr.flush()

    def close(self) -> None:
        self.pass_on()
        os.close(self.reads)


@dataclass
class Child:
    """A process that was forked. `code`: how it ended; -9 if by signal 9; None while it lives."""

    name: str
    pid: int
    control: ControlChannel
    started_s: float
    ready: bool = False
    asked: bool = False  # to remember a version
    code: int | None = None

    def look(self) -> bool:
        """Whether it lives."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def end(self, seconds: float) -> int:
        """Ask it to end, kill it if that takes too long; its code."""
        if self.look():
            os.kill(self.pid, signal.SIGTERM)
            self.control.send(START)  # where it still waits for it
        over_s = time.monotonic() + seconds
        while self.look() and time.monotonic() < over_s:
            time.sleep(0.01)
        if self.look():
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert self.code is not None
        return self.code


class Ended(Exception):
    """The run is over, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Supervisor:
    """The parent's state. `run` is its whole life."""

    def __init__(self, config: Config, watchdog: Watchdog) -> None:
        self._config, self._watchdog, self._pid = config, watchdog, os.getpid()
        self._pipes: Pipes | None = None if config.role == "transmit" else Pipes.make()
        self._listener = UnitListener(config.socket) if config.role == "sanitize" else None
        self._client = UnitClient(config.socket) if config.role == "transmit" else None
        self._sanitize: Child | None = None
        self._transmit: Child | None = None
        self._log: Log | None = None
        self._channel: socket.socket | None = None  # gives the transmit process its pipes
        self._files: list[Path] = []  # the outputs that were made
        self._stop = False
        self._frames, self._losses, self._tries = 0, 0, 0
        self._sanitize_due_s = self._transmit_due_s = self._alive_s = 0.0
        self._began_s: float | None = None  # when all was ready for the first time

    def run(self) -> int:
        """Until the frames, the duration or the file end, or a signal comes; the exit code.

        Raises:
            EdgesanError: what could not be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)
        try:
            while True:
                self._start()
                self._wait()
                for child in self._children():
                    self._hear(child)
                self._meet()
                self._look()
        except Ended as ended:
            return self._end(ended.code)
        except EdgesanError:
            self._end(0)
            raise

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _children(self) -> list[Child]:
        return [child for child in (self._sanitize, self._transmit) if child]

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start what should run and does not."""
        now_s = time.monotonic()
        if self._config.role != "sanitize" and self._transmit is None and now_s >= self._transmit_due_s:
            again = self._transmit_due_s > 0 or self._config.role == "transmit"  # there, systemd starts it again
            files = process.open_outputs(self._config, again=again)
            self._files += [path for path, _ in files]
            self._channel, theirs = socket.socketpair()
            self._transmit = self._fork("transmit", lambda control: self._run_transmit(files, theirs, control))
            theirs.close()
            for _, file in files:
                file.close()
            if self._pipes:
                self._give(self._pipes.frames_in, self._pipes.wishes_out)
        if self._losses and not (self._sanitize and self._sanitize.ready):
            self._alive()
        if self._pipes and self._sanitize is None and now_s >= self._sanitize_due_s:
            self._log = Log()
            self._sanitize = self._fork("sanitize", self._run_sanitize)
            self._log.given()
            if self._transmit is None or self._transmit.ready:
                self._sanitize.control.send(START)

    def _fork(self, name: str, live: Callable[[ControlChannel], int]) -> Child:
        """A child that lives `live`, and nothing else."""
        ours, theirs = ControlChannel.pair()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            return Child(name, pid, ours, time.monotonic())
        code = 1
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            Path("/proc/self/comm").write_text(f"edgesan-{name}"[:15])  # for ps and top: proc(5)
            ours.close()
            for child in self._children():
                child.control.close()
            if self._log:
                os.close(self._log.reads)
            self._watchdog.close()
            for place in (self._listener, self._client):
                if place:
                    place.close()
            code = live(theirs)
        except EdgesanError as error:
            print(f"edgesan: {error}", file=sys.stderr)
            code = error.exit_code
        finally:  # neither the parent's clean-up nor its caller's is this process's
            if code == 1 and sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)

    def _run_sanitize(self, control: ControlChannel) -> int:
        """The life of the sanitize process."""
        self._end_with_parent(signal.SIGKILL)
        pipes, log = self._pipes, self._log
        assert pipes
        assert log
        log.take()
        # Whatever else it inherited, also from whoever started edgesan, could hold a picture.
        keep = {0, 1, 2, pipes.frames_out, pipes.frames_in, pipes.wishes_in, control.read_fd, control.write_fd}
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
            with suppress(OSError):  # the one that listed them
                os.close(fd)
        c = self._config
        from edgesan.model.signing import signature_path

        reads = [c.model, signature_path(c.model), rollback.state_folder(c.state_dir, os.environ), *c.camera_files]
        devices = isolation.camera_nodes() if c.camera.startswith("picamera") else c.camera_nodes
        claims = isolation.sanitize(reads, devices=devices, network=c.camera_is_url)
        if c.require_isolation:
            isolation.require(claims)
        from edgesan import pipeline

        left = None if c.frames is None else max(0, c.frames - self._frames)
        pipeline.run(c, pipes, control, claims, frames=left, losses=self._losses)
        return 0

    def _run_transmit(self, files: list[tuple[Path, BinaryIO]], channel: socket.socket, control: ControlChannel) -> int:
        """The life of the transmit process."""
        self._end_with_parent(signal.SIGTERM if files else signal.SIGKILL)  # files are finished; a port is free at once
        if self._channel:
            self._channel.close()
        if self._pipes:
            self._pipes.close()  # they come by the channel
        return process.run(self._config, files, channel, control)

    def _end_with_parent(self, number: int) -> None:
        """Get this signal when the parent ends; at once, if it has ended."""
        isolation.end_with_parent(number)
        if os.getppid() != self._pid:
            os.kill(os.getpid(), number)

    def _give(self, frames_in: int, wishes_out: int) -> None:
        """Give the transmit process the pipes of a sanitize process."""
        assert self._channel
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which is seen soon
            socket.send_fds(self._channel, [b"\0"], [frames_in, wishes_out])

    # --- hearing ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until somebody says something or dies, or a turn is over."""
        poll = select.poll()
        for child in self._children():
            poll.register(child.control.read_fd, select.POLLIN)
        if self._log:
            poll.register(self._log.reads, select.POLLIN)
        for place in (self._listener, self._client):
            for fd in place.descriptors() if place else ():
                poll.register(fd, select.POLLIN)
        poll.poll(TURN_MS)
        if self._log:
            self._log.pass_on()

    def _hear(self, child: Child) -> None:
        """Take in what a child has said."""
        while (message := child.control.receive()) is not None and message.kind:
            kind, payload = message
            if kind == RECORD_VERSION and child is self._sanitize and not child.asked:
                child.asked = True  # once, as it does before it opens the camera: no picture gets into the record
                self._remember(child, payload)
            elif kind == READY and not child.ready:
                child.ready = True
                if child is self._transmit and self._sanitize:
                    self._sanitize.control.send(START)
                if all(each.ready for each in self._children()) and self._began_s is None:
                    self._began_s = time.monotonic()
                    self._watchdog.ready()
            elif kind == ALIVE:
                if child is self._sanitize:
                    self._frames, self._tries = self._frames + 1, 0
                if child is self._sanitize or self._pipes is None:
                    self._alive()

    def _alive(self) -> None:
        """Tell systemd, now and then: frames flow, or a lost camera is being opened again."""
        if time.monotonic() - self._alive_s >= ALIVE_S:
            self._alive_s = time.monotonic()
            self._watchdog.alive()

    def _remember(self, child: Child, payload: bytes) -> None:
        """Write down that a version runs, for a process that may write nothing."""
        try:
            name, version = json.loads(payload)
            folder = rollback.state_folder(self._config.state_dir, os.environ)
            named = isinstance(name, str) and name.isprintable() and 0 < len(name) <= MOST_NAME
            if not (named and type(version) is int and 0 < version < 2**53):
                raise ConfigError(f"a version cannot be remembered that is {payload!r}")
            rollback.remember(folder, name, version)
        except EdgesanError as error:
            child.control.send(NOT_RECORDED, str(error).encode())
        except ValueError:
            child.control.send(NOT_RECORDED, b"the version came garbled: start edgesan again")
        else:
            child.control.send(RECORDED)

    def _meet(self) -> None:
        """Let another unit in, or go to meet it."""
        if self._listener and self._pipes:
            self._listener.look(self._pipes.frames_in, self._pipes.wishes_out)
        if self._client and self._transmit and self._transmit.ready:
            given = self._client.look()
            if given:
                self._give(*given)
                for fd in given:
                    os.close(fd)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See who has ended, and whether it is over.

        Raises:
            Ended: it is.
        """
        c, now_s = self._config, time.monotonic()
        if self._stop or (c.duration and self._began_s is not None and now_s - self._began_s >= c.duration):
            raise Ended(0)
        for child in self._children():
            if child.look() and not child.ready and now_s - child.started_s > START_S:
                print(f"edgesan: the {child.name} process was not ready after {START_S:g} s", file=sys.stderr)
                child.end(0)
                raise Ended(1)
        if self._transmit and not self._transmit.look():
            self._transmit_ended(self._transmit)
        if self._sanitize and not self._sanitize.look():
            self._hear(self._sanitize)
            self._sanitize_ended(self._sanitize)

    def _sanitize_ended(self, child: Child) -> None:
        child.control.close()
        self._sanitize = None
        self._close_log()
        lost = child.code == CameraError.exit_code and (child.ready or self._losses)
        if not lost or (self._config.frames is not None and self._frames >= self._config.frames):
            raise Ended(self._code(child))
        if child.ready:
            self._losses += 1
        wait_s = BACK_OFF_S[min(self._tries, len(BACK_OFF_S) - 1)]
        self._tries += 1
        self._sanitize_due_s = time.monotonic() + wait_s
        print("edgesan: opening the camera again", file=sys.stderr, flush=True)

    def _transmit_ended(self, child: Child) -> None:
        child.control.close()
        self._transmit = None
        if self._channel:
            self._channel.close()
        self._forget_empty_files()
        if not child.ready or child.code in (0, SinkError.exit_code):
            raise Ended(self._code(child))
        if self._client:
            self._client.leave()
        # Waiting, too, as a signal to all processes of the service may be about to reach this one.
        self._transmit_due_s = time.monotonic() + RESTART_S
        print(f"edgesan: the transmit process ended ({child.code}); starting it again", file=sys.stderr, flush=True)

    def _close_log(self) -> None:
        if self._log:
            self._log.close()
            self._log = None

    def _code(self, child: Child) -> int:
        """The exit code of the run that a child's end is the end of."""
        assert child.code is not None
        if child.code < 0:
            print(f"edgesan: the {child.name} process was killed by signal {-child.code}", file=sys.stderr, flush=True)
            return 128 - child.code
        return child.code

    def _end(self, code: int) -> int:
        """End the camera first, then what is served; the exit code, which a file that is not whole spoils."""
        self._watchdog.stopping()
        if self._sanitize:
            self._sanitize.end(STOP_SANITIZE_S)
            self._close_log()
        if self._transmit:
            files = [out for out in self._config.out if not out.startswith(SERVERS)]
            ended = self._transmit.end(STOP_FILES_S if files else STOP_S)
            self._forget_empty_files()
            if files and ended < 0 and self._transmit.ready:
                print(
                    f"edgesan: {', '.join(files)} may not be whole: the transmit process had to be killed",
                    file=sys.stderr,
                )
                ended = SinkError.exit_code
            code = code or max(0, ended)
        for place in (self._listener, self._client):
            if place:
                place.stop()
        return code

    def _forget_empty_files(self) -> None:
        """A clip without a frame leaves no file."""
        for path in self._files:
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
        self._files = []
