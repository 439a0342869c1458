"""The process that fetches from a network camera, so that the one that sees raw pixels needs no network.

It may connect to the camera's port, and use no file. It takes the stream apart without decoding it, and hands the
compressed pictures on through a pipe that leads one way only (`edgesan.fetch.packets`). Each opening of the camera has
a process of its own: whatever a camera does to it ends with the connection.
"""

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from edgesan import isolation
from edgesan.errors import EdgesanError
from edgesan.fetch.address import parts_of, port_of, resolve
from edgesan.fetch.packets import Claims, sender

logger = logging.getLogger(__name__)

F_SETPIPE_SZ: Final = 1031  # linux/fcntl.h
PIPE_BYTES: Final = 2**18  # a quarter of a second of 8 Mbit/s: what waits longer is better dropped


@dataclass(frozen=True)
class Fetcher:
    """A process that fetches."""

    pid: int
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
        packets, writable = os.pipe2(os.O_CLOEXEC)
        told, tell = os.pipe2(os.O_CLOEXEC)
        with suppress(PermissionError):  # this user has too many large pipes
            fcntl.fcntl(writable, F_SETPIPE_SZ, PIPE_BYTES)
        parent = os.getpid()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _live(url, parent, (told, writable), redirect, required=required)
        os.close(writable)
        os.close(told)
        return cls(pid, packets, tell)

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
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _live(url: str, parent: int, pipes: tuple[int, int], redirect: Callable[[], None], *, required: bool) -> NoReturn:
    """Live the whole life of the process."""
    code = 1
    try:
        isolation.end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # its parent ends it
            signal.signal(number, signal.SIG_IGN)
        Path("/proc/self/comm").write_text("edgesan-fetch")  # for ps and top: proc(5)
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
    os.read(told, 1)
    camera.fetch(parts, addresses, send)
    return 0
