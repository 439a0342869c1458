"""What systemd is told: that edgesan runs, and that frames still flow. See sd_notify(3).

With `WatchdogSec=` in its unit, systemd ends and restarts a run that says nothing for so long: a hang anywhere between
camera and message. The parent alone has the socket; the process that sees the camera has none.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress

from edgesan.errors import ConfigError


class Watchdog:
    """The service manager's ear; nobody's, where none listens."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Connect to the socket that NOTIFY_SOCKET names: a path, or an abstract name that begins with @.

        Raises:
            ConfigError: it is set, and nobody listens there.
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
        if self._socket is not None:
            self._socket.close()

    def _say(self, word: bytes) -> None:
        # Unheard: its queue is full, or it starts anew. If that lasts, it ends this run, which is what it is for.
        if self._socket is not None:
            with suppress(BlockingIOError, ConnectionRefusedError):
                self._socket.send(word)

    def ready(self) -> None:
        """The model is loaded, the camera and all sinks are open."""
        self._say(b"READY=1")

    def alive(self) -> None:
        """A frame left, or was rejected."""
        self._say(b"WATCHDOG=1")

    def stopping(self) -> None:
        """The run comes to its end."""
        self._say(b"STOPPING=1")
