"""The pipes between the two processes: one with messages, and one back with the requests of viewers.

Both are in packet mode (O_DIRECT, pipe(7)): each write is read as it was written, or not at all. A full pipe drops its
oldest message: the sender also holds a reading end, and takes that message out again.
"""

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from edgesan import message, request
from edgesan.errors import Reject
from edgesan.message import Latents, Status
from edgesan.request import Request

F_SETPIPE_SZ: Final = 1031  # linux/fcntl.h
PIPE_PAGES: Final = 2  # messages that can wait in the pipe: a frame, and a status
PIPES_SENT: Final = 2  # the pipe with messages, and the one back
MOST_READ: Final = 64  # packets in one call
MOST_RATE: Final = 60 * message.MOST_BYTES  # bytes a second that are parsed: 60 of the largest frames


@dataclass(frozen=True)
class Pipes:
    """The descriptors of both pipes. They are made before any process is forked."""

    frames_out: int  # the sanitize process writes messages here
    frames_in: int
    requests_out: int  # the transmit process writes requests here
    requests_in: int

    @classmethod
    def make(cls) -> "Pipes":
        """Make both pipes; programs that are started do not inherit them."""
        frames_in, frames_out = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        requests_in, requests_out = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        for end in (frames_out, requests_out):
            fcntl.fcntl(end, F_SETPIPE_SZ, PIPE_PAGES * os.sysconf("SC_PAGE_SIZE"))
        return cls(frames_out, frames_in, requests_out, requests_in)

    def close(self) -> None:
        """Close all ends."""
        for end in (self.frames_out, self.frames_in, self.requests_out, self.requests_in):
            os.close(end)


class Sender:
    """The end of the sanitize process."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self.dropped = 0
        """How many messages were not read before the next one needed their place."""

    def send(self, latents: Latents) -> None:
        """Send a frame.

        Raises:
            Reject: the latents do not make a valid message.
        """
        self._write(message.pack(latents))

    def send_status(self, status: Status) -> None:
        """Send a status.

        Raises:
            Reject: it does not make a valid message.
        """
        self._write(message.pack_status(status))

    def _write(self, content: bytes) -> None:
        while True:
            try:
                os.write(self._pipes.frames_out, content)
            except BlockingIOError:
                with suppress(BlockingIOError):  # the receiver has just read it
                    os.read(self._pipes.frames_in, message.MOST_BYTES)
                    self.dropped += 1
            else:
                return

    def requests(self, wait_s: float = 0) -> Iterator[Request]:
        """Yield what viewers asked for, and leave out what is no request. What is not taken stays for the next call.

        Args:
            wait_s: wait so long for the first one.
        """
        if wait_s:
            select.select([self._pipes.requests_in], [], [], wait_s)
        for _ in range(MOST_READ):
            try:
                packet = os.read(self._pipes.requests_in, request.MOST_BYTES + 1)
            except BlockingIOError:
                return
            with suppress(Reject):
                yield request.parse(packet)


class Receiver:
    """The end of the transmit process: parses and counts what arrives."""

    def __init__(self, frames_in: int, requests_out: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._frames_in, self._requests_out, self._clock = frames_in, requests_out, clock
        self.bytes = self.messages = self.refused = 0
        """Totals. Refused are messages that were malformed or came too fast."""
        self._budget, self._at_s = float(MOST_RATE), clock()
        self.is_closed = False
        """Whether the other side has closed."""

    def read(self, status: Callable[[Status], None]) -> Latents | None:
        """Return the newest frame, or None if none has arrived. Never blocks.

        What comes faster than MOST_RATE is not parsed. That limits how much a sanitize process can say after an
        attacker has taken it over.

        Args:
            status: is called with each status that has arrived.
        """
        newest: Latents | None = None
        now_s = self._clock()
        self._budget = min(MOST_RATE, self._budget + MOST_RATE * (now_s - self._at_s))
        self._at_s = now_s
        for _ in range(MOST_READ):
            try:
                content = os.read(self._frames_in, message.MOST_BYTES + 1)
            except BlockingIOError:
                break
            if not content:
                self.is_closed = True
                break
            self.bytes, self.messages = self.bytes + len(content), self.messages + 1
            if len(content) > self._budget:
                self.refused += 1
                continue
            self._budget -= len(content)
            try:
                received = message.parse(content)
            except Reject:
                self.refused += 1  # this costs the frame, and nothing more
                newest = None
                continue
            if isinstance(received, Status):
                status(received)
            else:
                newest = received
        return newest

    def request(self, wanted: Request) -> bool:
        """Ask for something. Return False if nobody listens: the pipe is full, or the other side has closed."""
        if self.is_closed or not select.select([], [self._requests_out], [], 0)[1]:
            return False
        try:
            os.write(self._requests_out, request.pack(wanted))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True


def send_pipes(connection: socket.socket, frames_in: int, requests_out: int) -> None:
    """Pass the transmit process's ends of the pipes on. Nothing happens if the other side is gone."""
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(connection, [b"\0"], [frames_in, requests_out])


def send_outlet(connection: socket.socket, number: int, end: int) -> None:
    """Pass the transmit process's end of the channel to an outlet on. Nothing happens if the other side is gone."""
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(connection, [bytes([number + 1])], [end])


def receive_pipes(connection: socket.socket) -> list[int] | None:
    """Return the two descriptors that `send_pipes` sent, for the caller to close.

    The list is empty if something else was sent, and the result None if the other side has closed.
    """
    given = receive_ends(connection)
    if given is None or given[0] is None:
        return None if given is None else given[1]
    os.close(given[1][0])
    return []


def receive_ends(connection: socket.socket) -> tuple[int | None, list[int]] | None:
    """Return what `send_pipes` or `send_outlet` sent: the number of an outlet, or None, and the descriptors.

    The list is empty if something else was sent, and the result None if the other side has closed.
    """
    content, received, _, _ = socket.recv_fds(connection, 1, PIPES_SENT)
    if not content:
        return None
    number = content[0] - 1 if content[0] else None
    if len(received) == (PIPES_SENT if number is None else 1):
        return number, received
    for descriptor in received:
        os.close(descriptor)
    return None, []
