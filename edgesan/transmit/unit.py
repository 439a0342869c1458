"""The Unix socket at which two units of a service manager meet: the sanitize unit listens, the transmit unit connects.

A Unix socket can be reached from any network namespace, and the permissions of its folder say who may connect. The
sanitize unit hands over two descriptors: the pipe with messages, and the one back. Nothing is ever read from the
connection; it stays open only to show that the other side lives. Each unit has its own configuration: the sanitize unit
never sees the token or the key of the certificate. If one unit is away, the other goes on: frames are sanitized for
nobody, or the server reports that there are none.
"""

import logging
import os
import socket
import time
from pathlib import Path
from typing import Final

from edgesan import disk
from edgesan.errors import ConfigError, SinkError
from edgesan.transmit.link import receive_pipes, send_pipes

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.3  # between two attempts to reach the sanitize unit


class UnitListener:
    """The end of the sanitize unit: accepts one transmit unit at a time."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`.

        Raises:
            ConfigError: no socket can be made there, or another sanitize unit listens there.
        """
        self._path = path
        self._peer: socket.socket | None = None
        if _answers(path):
            raise ConfigError(f"another sanitize process listens at {path}: end it, or name another place, --socket")
        disk.remove_socket(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        mask = os.umask(0o117)  # its user and group may connect
        try:
            self._socket.bind(str(path))
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot listen at {path}: {error.strerror or error}; name a place in a folder of your own, --socket"
            ) from error
        finally:
            os.umask(mask)

    def descriptors(self) -> list[int]:
        """Return the descriptors to wait for."""
        return [(self._peer or self._socket).fileno()]

    def poll(self, frames_in: int, requests_out: int) -> None:
        """Accept a transmit unit and send it the pipes, or notice that it is gone."""
        if self._peer is not None and _is_gone(self._peer):
            self._peer.close()
            self._peer = None
            logger.info("the transmit unit is gone; waiting for the next one")
        if self._peer is not None:
            return
        try:
            self._peer, _ = self._socket.accept()
        except BlockingIOError:
            return
        self._peer.setblocking(False)
        send_pipes(self._peer, frames_in, requests_out)
        logger.info("a transmit unit has connected")

    def close(self) -> None:
        """Close the descriptors in this process; the path stays for the process that shares them."""
        self._socket.close()
        if self._peer is not None:
            self._peer.close()

    def stop(self) -> None:
        """Stop listening and remove the path. May be called twice."""
        if self._socket.fileno() >= 0:
            self.close()
            disk.remove_socket(self._path)


class UnitClient:
    """The end of the transmit unit: connects to the sanitize unit that runs at the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._due_s = 0.0

    def descriptors(self) -> list[int]:
        """Return the descriptors to wait for."""
        return [] if self._socket is None else [self._socket.fileno()]

    def poll(self) -> list[int]:
        """Return the descriptors that a sanitize unit has just sent, for the caller to close; none if nothing is new.

        Raises:
            SinkError: this user may not connect.
        """
        if self._socket is None:
            return self._connect()
        if _is_gone(self._socket):
            logger.info("the sanitize unit is gone; waiting for the next one")
            self.leave()
        return []

    def _connect(self) -> list[int]:
        if time.monotonic() < self._due_s:
            return []
        self._due_s = time.monotonic() + RETRY_S
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.settimeout(RETRY_S)
        try:
            connection.connect(str(self._path))
            given = receive_pipes(connection)
        except PermissionError as error:
            raise SinkError(
                f"may not connect to the sanitize unit at {self._path}: join the group that the socket belongs to"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, TimeoutError, BlockingIOError):
            connection.close()  # it is not there, or another transmit unit is
            return []
        if not given:
            connection.close()
            return []
        connection.setblocking(False)
        self._socket = connection
        logger.info("connected to the sanitize unit")
        return given

    def leave(self) -> None:
        """Close the connection; the next `poll` makes another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    close = stop = leave


def _is_gone(connection: socket.socket) -> bool:
    """Return whether the other side has closed. Whatever it sends is ignored."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _answers(path: Path) -> bool:
    """Return whether a process listens at this path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:  # nothing listens there, or it is no socket
            return False
        return True
