"""Where two units of a service manager meet: the sanitize unit's parent listens, the transmit unit's parent connects.

A Unix socket's path leads there from any network namespace, and its folder's permissions say who may. What is handed over
are two descriptors, the pipe with messages and the one back; nothing is ever read from the connection. It stays open only
to tell that the other side lives. Each unit has its own configuration: the sanitize unit never sees the token, nor the key
of the certificate. While one is away, the other goes on: frames are sanitized for nobody, or the server says that there are
none.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Final

from edgesan import disk
from edgesan.errors import ConfigError, SinkError
from edgesan.transmit.link import receive_pipes, send_pipes

RETRY_S: Final = 0.3  # between attempts to reach the sanitize unit


class UnitListener:
    """The sanitize unit's end: lets one transmit unit in at a time, and the next one when it is gone."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`.

        Raises:
            ConfigError: no socket can be made there, or another sanitize unit has it.
        """
        self._path = path
        self._visitor: socket.socket | None = None
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
        """What to wait for."""
        return [(self._visitor or self._socket).fileno()]

    def look(self, frames_in: int, requests_out: int) -> None:
        """See who came and who went; who came is given the pipes."""
        if self._visitor is not None and _is_gone(self._visitor):
            self._visitor.close()
            self._visitor = None
            print("edgesan: the transmit unit is gone; the next one may come", file=sys.stderr, flush=True)
        if self._visitor is not None:
            return
        try:
            self._visitor, _ = self._socket.accept()
        except BlockingIOError:
            return
        self._visitor.setblocking(False)
        send_pipes(self._visitor, frames_in, requests_out)
        print("edgesan: a transmit unit is here", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the descriptors here; the place stays for the process that holds them too."""
        self._socket.close()
        if self._visitor is not None:
            self._visitor.close()

    def stop(self) -> None:
        """Close the place. Idempotent."""
        if self._socket.fileno() >= 0:
            self.close()
            disk.remove_socket(self._path)


class UnitClient:
    """The transmit unit's end: the pipes of the sanitize unit of the moment, whichever that is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._due_s = 0.0

    def descriptors(self) -> list[int]:
        """What to wait for."""
        return [] if self._socket is None else [self._socket.fileno()]

    def look(self) -> list[int]:
        """The descriptors that a sanitize unit has just given, to be closed by the caller; none if there is no news.

        Raises:
            SinkError: this user may not connect.
        """
        if self._socket is None:
            return self._connect()
        if _is_gone(self._socket):
            print("edgesan: the sanitize unit is gone; waiting for the next one", file=sys.stderr, flush=True)
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
        print("edgesan: a sanitize unit is here", file=sys.stderr, flush=True)
        return given

    def leave(self) -> None:
        """Close the connection: another one is made when asked for."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    close = stop = leave


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other side has closed. What it might say is not looked at."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:  # nobody there, or what nobody can listen at
            return False
        return True
