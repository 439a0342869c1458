"""The control channel between the parent process and a child: short messages, each a byte for its kind and a payload.

See `edgesan.supervisor`.
"""

import os
import select
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

READY: Final = b"R"  # child: everything is open
ALIVE: Final = b"A"  # child: a frame passed, or a second
OPENING: Final = b"O"  # sanitize: it opens the camera next
RESTING: Final = b"P"  # sanitize: privacy is on, and no frame is read; some times a second
TURNED: Final = b"D"  # sanitize: the dial was turned; the payload is alpha, as text
RECORD_VERSION: Final = b"V"  # sanitize: record this model version, JSON [name, version]
RECORD_PRIVACY: Final = b"S"  # sanitize: privacy was switched on (1) or off (0)
RECORD_ZONES: Final = b"Z"  # the zones that are drawn have changed, as `edgesan.zones.pack` writes them
START: Final = b"G"  # parent: a transmit process is there to take frames
RECORDED: Final = b"M"  # parent: it is recorded
NOT_RECORDED: Final = b"E"  # parent: it cannot be recorded; the payload is the reason
MAX_MESSAGE_BYTES: Final = 4096  # PIPE_BUF, pipe(7): the kernel writes so much in one piece


class ControlMessage(NamedTuple):
    """A received message. The kind is empty once the other end is closed."""

    kind: bytes
    payload: bytes


CLOSED: Final = ControlMessage(b"", b"")


@dataclass(frozen=True)
class ControlChannel:
    """One end: a pair of pipes in packet mode (pipe(7)), so that a message is read as it was written."""

    read_fd: int
    write_fd: int
    _deferred: list[ControlMessage] = field(default_factory=list, compare=False)  # received while waiting for others

    @classmethod
    def pair(cls) -> "tuple[ControlChannel, ControlChannel]":
        """Make both ends: the parent's, which never blocks, and the child's, which blocks when it reads."""
        up_in, up_out = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        down_in, down_out = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        for end in (up_in, up_out, down_out):
            os.set_blocking(end, False)
        return cls(up_in, down_out), cls(down_in, up_out)

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a message. It is lost if the other end is closed, or has read nothing for long."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.write_fd, (kind + payload)[:MAX_MESSAGE_BYTES])

    def ask(self, kind: bytes, payload: bytes, *answers: bytes) -> ControlMessage:
        """Send a message that is not lost, and return the first answer of one of these kinds, or `CLOSED`.

        For a child. It waits as long as the other end reads nothing: a slow disk may hold the parent up.
        """
        waiting = select.poll()
        waiting.register(self.read_fd, select.POLLIN)
        while waiting.poll(0) and (message := self.receive()) and message.kind:  # so that there is room for the answer
            self._deferred.append(message)
        room = select.poll()
        room.register(self.write_fd, select.POLLOUT)
        room.poll()
        self.send(kind, payload)
        return self.wait_for(*answers)

    def receive(self) -> ControlMessage | None:
        """Return the next message, `CLOSED` once the other end is closed, or None if nothing waits."""
        try:
            content = os.read(self.read_fd, MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        return ControlMessage(content[:1], content[1:])

    def wait_for(self, *kinds: bytes) -> ControlMessage:
        """Return the first message of one of these kinds, or `CLOSED`; messages of other kinds stay for later calls."""
        for message in self._deferred:
            if message.kind in kinds:
                self._deferred.remove(message)
                return message
        while (message := self.receive() or CLOSED).kind and message.kind not in kinds:
            self._deferred.append(message)
        return message

    def close(self) -> None:
        """Close both pipes at this end."""
        os.close(self.read_fd)
        os.close(self.write_fd)
