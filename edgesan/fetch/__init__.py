"""The process that fetches from a network camera, so that the one that sees raw pixels needs no network.

It may connect to the camera's port, and use no file. It takes the stream apart without decoding it, and hands the
compressed pictures on through a pipe that leads one way only (`edgesan.fetch.packets`). Each opening of the camera has
a process of its own: whatever a camera does to it ends with the connection.

It is a child of the parent process (`Fetcher.start`). The parent of a sanitize unit has no network to share: there the
service manager starts the process, as a unit of its own, for each connection to a Unix socket (`Fetcher.ask`, `serve`).
Either way the pipes are made by the side that decodes.
"""

import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from edgesan import isolation
from edgesan.errors import CameraError, ConfigError, EdgesanError
from edgesan.fetch.address import ENCRYPTED, UNCHECKED, parts_of, port_of, resolve
from edgesan.fetch.packets import Claims, sender

logger = logging.getLogger(__name__)

F_SETPIPE_SZ: Final = 1031  # linux/fcntl.h
PIPE_BYTES: Final = 2**18  # a quarter of a second of 8 Mbit/s: what waits longer is better dropped
PIPES: Final = 2  # ends of pipes that are handed over
ASKED_S: Final = 1.0  # for a service manager to take a connection
COMM: Final = "edgesan-fetch"  # for ps and top: proc(5)


@dataclass(frozen=True)
class Fetcher:
    """A process that fetches: a child, or one that a unit of its own started, which ends with our connection to it."""

    held: int | socket.socket  # the child's number, or the connection
    packets: int  # descriptor of the pipe, for the child that decodes
    starter: int  # descriptor, by which the parent says when to connect

    @classmethod
    def start(cls, url: str, *, required: bool, redirect: Callable[[], None] = lambda: None) -> "Fetcher":
        """Start one. It gives up what it does not need, and waits for `connect`.

        Args:
            url: the camera.
            required: fetch nothing unless every restriction holds.
            redirect: sends what it prints elsewhere.
        """
        (packets, writable), (told, tell) = _pipes()
        parent = os.getpid()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _live(url, parent, (told, writable), redirect, required=required)
        os.close(writable)
        os.close(told)
        return cls(pid, packets, tell)

    @classmethod
    def ask(cls, place: Path) -> "Fetcher":
        """Have the fetch unit start one, with the configuration of its own. It waits for `connect`.

        Args:
            place: the socket that the unit's service manager listens at.

        Raises:
            CameraError: nothing listens there, or this user may not connect.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ASKED_S)
        (packets, writable), (told, tell) = _pipes()
        try:
            connection.connect(str(place))
            socket.send_fds(connection, [b"\0"], [told, writable])
        except OSError as error:
            for each in (packets, tell, connection.detach()):
                os.close(each)
            raise CameraError(
                f"no process can be asked to fetch from the camera, at {place}: {error.strerror or error};"
                " start the fetch unit: sudo systemctl start edgesan-fetch.socket"
            ) from error
        finally:
            os.close(writable)
            os.close(told)
        return cls(connection, packets, tell)

    def connect(self) -> None:
        """Let it connect now, as somebody decodes."""
        with suppress(BrokenPipeError):
            os.write(self.starter, b"\n")

    def close_child_end(self) -> None:
        """In the parent: close the end that the child has."""
        os.close(self.packets)

    def close(self) -> None:
        """End it."""
        os.close(self.starter)
        if isinstance(self.held, socket.socket):
            self.held.close()
            return
        with suppress(ProcessLookupError):
            os.kill(self.held, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.held, 0)


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the pipe with packets, and the one that says when to connect: of each the end to read, and to write."""
    packets, writable = os.pipe2(os.O_CLOEXEC)
    with suppress(PermissionError):  # this user has too many large pipes
        fcntl.fcntl(writable, F_SETPIPE_SZ, PIPE_BYTES)
    return (packets, writable), os.pipe2(os.O_CLOEXEC)


def serve(url: str, *, required: bool) -> int:
    """Live the whole life of the process, where the service manager has started it with a connection as its input.

    Args:
        url: the camera.
        required: fetch nothing unless every restriction holds.

    Returns:
        The exit code.

    Raises:
        ConfigError: the input is no such connection, or `url` is no network camera.
    """
    try:
        connection = socket.socket(fileno=0)
        seat = connection.family, connection.type
    except OSError:
        seat = None
    if seat != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ConfigError("role is fetch: a service manager starts it, for a connection: edgesan-fetch.socket")
    _, given, _, _ = socket.recv_fds(connection, 1, PIPES)
    if len(given) != PIPES:
        return 0  # who asked has gone
    # SIGIO, which ends a process, comes when who asked has closed the connection; nothing is ever written there.
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)
    Path("/proc/self/comm").write_text(COMM)
    held = os.dup(0)  # isolation takes standard input, and the connection must stay open: its end ends this process
    isolation.close_all_but({0, 1, 2, held, *given})
    with suppress(BrokenPipeError):  # nobody decodes any more
        return _fetch(url, *given, required=required)
    return 0


def _live(url: str, parent: int, pipes: tuple[int, int], redirect: Callable[[], None], *, required: bool) -> NoReturn:
    """Live the whole life of the process."""
    code = 1
    try:
        isolation.end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # its parent ends it
            signal.signal(number, signal.SIG_IGN)
        Path("/proc/self/comm").write_text(COMM)
        redirect()
        isolation.close_all_but({0, 1, 2, *pipes})
        code = _fetch(url, *pipes, required=required)
    except BrokenPipeError:
        code = 0  # nobody decodes any more
    except EdgesanError as error:
        logger.error("%s", error)
        code = error.exit_code
    finally:
        if code == 1 and sys.exc_info()[0] is not None:
            logger.critical("unexpected error of the fetch process", exc_info=True)
        os._exit(code)


def _fetch(url: str, told: int, writable: int, *, required: bool) -> int:
    parts = parts_of(url)
    addresses = resolve(parts)
    claims = isolation.fetch(port_of(parts))
    send = sender(writable)
    send(Claims(isolation.pack(claims)))
    if required and not all(claim.holds for claim in claims):
        return 0  # the process that decodes says so
    from edgesan.fetch import camera  # loads PyAV

    isolation.limit_memory()
    if not os.read(told, 1):
        return 0  # nobody decodes any more
    if parts.scheme in ENCRYPTED:
        logger.warning("%s", UNCHECKED)
    camera.fetch(parts, addresses, send)
    return 0
