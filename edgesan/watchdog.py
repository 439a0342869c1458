"""Notify systemd that edgesan runs, and that frames still flow: sd_notify(3).

With `WatchdogSec=` in the unit, systemd restarts a run that sends nothing for so long. That covers a hang anywhere
between the camera and the message. Only the parent has the socket; the process that sees the camera has none.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress

from edgesan.errors import ConfigError


class Watchdog:
    """Sends notifications to the service manager, if there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Connect to the socket that NOTIFY_SOCKET names: a path, or an abstract name that begins with @.

        Raises:
            ConfigError: it is set, but nothing listens there.
        """
        self._socket: socket.socket | None = None
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # a busy service manager must not hold the camera up
        try:
            self._socket.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"NOTIFY_SOCKET is {address}: {error.strerror}; systemd sets it, so unset it elsewhere"
            ) from error

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _notify(self, state: bytes) -> None:
        # It is lost if systemd's queue is full or systemd restarts. If that lasts, systemd ends this run: its purpose.
        if self._socket is not None:
            with suppress(BlockingIOError, ConnectionRefusedError):
                self._socket.send(state)

    def ready(self) -> None:
        """Notify that the model is loaded, and the camera and all sinks are open."""
        self._notify(b"READY=1")

    def alive(self) -> None:
        """Notify that a frame left or was rejected."""
        self._notify(b"WATCHDOG=1")

    def stopping(self) -> None:
        """Notify that the run is ending."""
        self._notify(b"STOPPING=1")
