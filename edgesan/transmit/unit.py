"""Sanitize and transmit as two units of a service manager: they find each other, and outlive each other.

`edgesan run --role sanitize` listens at a Unix socket, and `--role transmit` connects to it: a path leads there from any
network namespace, and its folder's permissions say who may. The sanitize process makes the socket before it gives up
making any; accept(2) is not socket(2), so it can let a new transmit process in later, and no restart of one needs one
of the other. (BindsTo= in the units would end the camera with each change of a certificate; a .socket unit would be a
third part, needed only under systemd.) What is handed over are three descriptors, as unix(7) has it: the read-only ring
and the far ends of two pipes, the same that `edgesan.transmit.process` uses; then the connection is closed, so that
nothing else ever passes. The end of a pipe says that the other side is gone.

Each process has its own configuration and gives up its own: the sanitize process never sees the token, nor the key of
the certificate. While one is away, the other goes on: frames are sanitized for nobody, or the server says that there are none.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgesan import isolation
from edgesan.config import SERVERS, Config
from edgesan.errors import ConfigError, SinkError
from edgesan.isolation import Claim
from edgesan.transmit.process import ISOLATED, PID, READY, Child, Link

if TYPE_CHECKING:  # numpy must not be loaded yet: see `edgesan.isolation`
    from edgesan.ring import RingWriter
    from edgesan.transmit import Sink
    from edgesan.watchdog import Watchdog

RETRY_S: Final = 0.3  # between attempts to reach the sanitize process
ALIVE_S: Final = 1.0  # between signs of life for the service manager
GIVEN: Final = 3  # descriptors: the ring, what wakes, what answers


class Doorway:
    """The sanitize process's end: lets one transmit process in at a time, and the next one when it is gone."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`; to be made before the process gives up sockets.

        Raises:
            ConfigError: no socket can be made there, or another sanitize process has it.
        """
        self._path = path
        self._link: Link | None = None
        self._told = False
        self._ring = -1
        if _answers(path):
            raise ConfigError(f"another sanitize process listens at {path}: end it, or name another place, --socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        mask = os.umask(0o117)  # its user and group may connect
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot listen at {path}: {error.strerror or error}; name a place in a folder of your own, --socket"
            ) from error
        finally:
            os.umask(mask)

    @property
    def claims(self) -> list[Claim]:
        """What the transmit process of the moment says that it has given up."""
        return self._link.claims if self._link else []

    def open(self, ring: "RingWriter") -> "Doorway":
        """Frames will be in this ring. Whether somebody takes them is not waited for."""
        self._ring = ring.fd
        return self

    def notify(self) -> None:
        """A frame is in the ring."""
        if self._link is not None:
            with suppress(BrokenPipeError):  # `check` will see it
                self._link.wake()

    def requests(self) -> list[float]:
        """The alphas that viewers asked for since the last call, each finite and within 0..1."""
        return self._link.requests() if self._link else []

    def check(self) -> None:
        """See who came and who went; call it about twice a second."""
        if self._link is not None and self._link.over():
            self._leave()
        if self._link is None:
            self._admit()
        elif self._link.claims and not self._told:
            self._told = True
            print(
                f"edgesan: a transmit process is here; {isolation.summary(self._link.claims)}",
                file=sys.stderr,
                flush=True,
            )

    def _admit(self) -> None:
        try:
            channel, _ = self._socket.accept()
        except BlockingIOError:
            return
        self._link = Link()
        with channel, suppress(BrokenPipeError, ConnectionResetError):  # it is gone again, which `check` will see
            socket.send_fds(channel, [b"\0"], [self._ring, *self._link.theirs])
        self._link.give()

    def _leave(self) -> None:
        assert self._link is not None
        self._link.close()
        self._link, self._told = None, False
        print("edgesan: the transmit process is gone; the next one may come", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Close the door. Idempotent."""
        if self._socket.fileno() < 0:
            return
        if self._link is not None:
            self._link.close()
            self._link = None
        self._socket.close()
        self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:  # nobody there, or what nobody can listen at
            return False
        return True


class Frames:
    """The transmit process's end: the frames of the sanitize process of the moment, whichever that is."""

    def __init__(self, claims: list[Claim]) -> None:
        self._claims = claims
        self._child: Child | None = None

    def status(self) -> dict[str, Any]:
        """The sanitize process's counters; empty while there is none."""
        return self._child.ring.status() if self._child else {}

    def ask_alpha(self, alpha: float) -> bool:
        """Pass a viewer's wish on. False if nobody listens."""
        return self._child is not None and self._child.ask_alpha(alpha)

    async def pass_on(self, given: list[int], sinks: "list[Sink]") -> None:
        """Pass each newest frame on to all sinks, until the sanitize process is gone.

        Args:
            given: the descriptors that `meet` gave; they are closed.

        Raises:
            SinkError: one of the sinks failed, or what was given is no ring.
        """
        from edgesan.ring import RingReader

        ring, wake, say = given
        try:
            self._child = Child(RingReader(ring), wake, say)
            claims = [*self._claims, isolation.read_only(ring)]
            with suppress(BrokenPipeError):  # it is gone already
                self._child.say(ISOLATED, json.dumps([asdict(claim) for claim in claims]).encode())
                self._child.say(READY, PID.pack(os.getpid()))
            await self._child.pass_on(sinks)
        finally:
            self._child = None
            for fd in given:
                os.close(fd)


async def meet(path: Path) -> list[int]:
    """Wait for a sanitize process; the descriptors of its ring, of what wakes and of what answers.

    Raises:
        SinkError: this user may not connect.
    """
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.connect(str(path))
                await _readable(channel)
                _, given, _, _ = socket.recv_fds(channel, 1, GIVEN)
                if len(given) == GIVEN:
                    return given
                for fd in given:
                    os.close(fd)
            except PermissionError as error:
                raise SinkError(
                    f"may not connect to the sanitize process at {path}: join the group that the socket belongs to"
                ) from error
            except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BlockingIOError):
                pass  # it is not there, or another transmit process waits
        await asyncio.sleep(RETRY_S)


async def _readable(channel: socket.socket) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(channel, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(channel)


def transmit(config: Config, watchdog: "Watchdog") -> None:
    """`edgesan run --role transmit`: until a signal comes.

    Raises:
        SinkError: a sink could not be opened, or failed. IsolationError: as `require_isolation` asks.
    """
    reads = [name.resolve().parent for name in (config.tls_cert, config.tls_key) if name]
    writes = [Path(out).absolute().parent for out in config.out if not out.startswith(SERVERS)]
    claims = isolation.transmit(reads, writes)
    if config.require_isolation:
        isolation.require(claims)
    print(f"edgesan: frames from {config.socket} -> {', '.join(config.out)}\n  isolation: {isolation.summary(claims)}",
          *(f"  WARNING: {claim}" for claim in claims if not claim.holds), sep="\n", file=sys.stderr, flush=True)  # fmt: skip
    from edgesan.transmit.file import FileSink, next_free
    from edgesan.transmit.http import HttpSink

    frames = Frames(claims)

    async def live() -> None:
        while True:
            watchdog.alive()  # the loop turns
            await asyncio.sleep(ALIVE_S)

    async def serve() -> None:
        sinks: list[Sink] = [
            HttpSink(out, config.token, frames.status, frames.ask_alpha, config.tls_cert, config.tls_key)
            if out.startswith(SERVERS)
            else FileSink(next_free(Path(out)) if Path(out).exists() else Path(out))  # of before it was restarted
            for out in config.out
        ]
        async with AsyncExitStack() as stack:
            for sink in sinks:
                await sink.start()
                stack.push_async_callback(sink.close)
            watchdog.ready()
            stack.callback(watchdog.stopping)
            stack.callback(asyncio.create_task(live()).cancel)
            while True:
                given = await meet(config.socket)
                print("edgesan: a sanitize process is here", file=sys.stderr, flush=True)
                await frames.pass_on(given, sinks)
                print("edgesan: the sanitize process is gone; waiting for the next one", file=sys.stderr, flush=True)

    async def until_asked() -> None:
        serving = asyncio.create_task(serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with suppress(asyncio.CancelledError):
            await serving

    asyncio.run(until_asked())
