"""The pipes between the two processes: one with messages, one back with the dial.

Both are in packet mode (O_DIRECT, pipe(7)): each write is read as it was written, or not at all. A full pipe drops the
oldest message: the sender holds a reading end, too, and takes that one out again.
"""

import fcntl
import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from edgesan import message
from edgesan.errors import Reject
from edgesan.message import Latents, Status

F_SETPIPE_SZ: Final = 1031  # linux/fcntl.h
PLACES: Final = 2  # messages that wait in the pipe: a frame, and a status
ALPHA_REQUEST: Final = struct.Struct("<d")
PIPES_SENT: Final = 2  # the pipe with messages, and the one back
MOST_READ: Final = 64  # packets in one turn
MOST_RATE: Final = 60 * message.MOST_BYTES  # bytes a second that are heard: 60 of the largest frames


@dataclass(frozen=True)
class Pipes:
    """The descriptors of both pipes. They are made before any process is forked, and last as long as they are held."""

    frames_out: int  # to be written to by the sanitize process
    frames_in: int
    requests_out: int  # to be written to by the transmit process
    requests_in: int

    @classmethod
    def make(cls) -> "Pipes":
        """New ones, that no program which is started inherits."""
        frames_in, frames_out = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        requests_in, requests_out = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        for end in (frames_out, requests_out):
            fcntl.fcntl(end, F_SETPIPE_SZ, PLACES * os.sysconf("SC_PAGE_SIZE"))
        return cls(frames_out, frames_in, requests_out, requests_in)

    def close(self) -> None:
        for end in (self.frames_out, self.frames_in, self.requests_out, self.requests_in):
            os.close(end)


class Sender:
    """The sanitize process's end."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self.dropped = 0
        """Messages that nobody had read when the next one needed their place."""

    def send(self, latents: Latents) -> None:
        """Send a frame. Takes Latents, and nothing else can be sent.

        Raises:
            Reject: it is no message.
        """
        self._write(message.pack(latents))

    def send_status(self, status: Status) -> None:
        """Send a status. Raises Reject."""
        self._write(message.pack_status(status))

    def _write(self, content: bytes) -> None:
        while True:
            try:
                os.write(self._pipes.frames_out, content)
            except BlockingIOError:
                with suppress(BlockingIOError):  # the reader has just taken it
                    os.read(self._pipes.frames_in, message.MOST_BYTES)
                    self.dropped += 1
            else:
                return

    def requested_alphas(self) -> list[float]:
        """The alphas that viewers asked for since the last call, each finite and within 0..1."""
        heard = []
        with suppress(BlockingIOError):
            for _ in range(MOST_READ):
                word = os.read(self._pipes.requests_in, ALPHA_REQUEST.size + 1)
                (alpha,) = ALPHA_REQUEST.unpack(word) if len(word) == ALPHA_REQUEST.size else (math.nan,)
                if 0 <= alpha <= 1:  # so no NaN
                    heard.append(alpha)
        return heard


class Receiver:
    """The transmit process's end: parses what comes, and counts it."""

    def __init__(self, frames_in: int, requests_out: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._frames_in, self._requests_out, self._clock = frames_in, requests_out, clock
        self.bytes = self.messages = self.refused = 0
        """What crossed, in all; and the messages that were no such thing, or came too fast."""
        self._budget, self._at_s = float(MOST_RATE), clock()
        self.over = False
        """Whether nobody is left at the other side."""

    def read(self, status: Callable[[Status], None]) -> Latents | None:
        """The newest frame that waits, None if there is none; statuses are passed on. Never waits.

        What comes faster than MOST_RATE is not looked at: so much can a sanitize process tell that was taken over.
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
                self.over = True
                break
            self.bytes, self.messages = self.bytes + len(content), self.messages + 1
            if len(content) > self._budget:
                self.refused += 1
                continue
            self._budget -= len(content)
            try:
                said = message.parse(content)
            except Reject:
                self.refused += 1  # it ends the frame, and nothing more
                newest = None
                continue
            if isinstance(said, Status):
                status(said)
            else:
                newest = said
        return newest

    def request_alpha(self, alpha: float) -> bool:
        """Pass a viewer's wish on. False if nobody listens: the pipe is full, or nobody is there."""
        if self.over or not select.select([], [self._requests_out], [], 0)[1]:
            return False
        try:
            os.write(self._requests_out, ALPHA_REQUEST.pack(alpha))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True


def send_pipes(connection: socket.socket, frames_in: int, requests_out: int) -> None:
    """Pass the transmit process's ends of the pipes on. Nothing happens if the other side is gone."""
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(connection, [b"\0"], [frames_in, requests_out])


def receive_pipes(connection: socket.socket) -> list[int] | None:
    """Return the two descriptors that `send_pipes` sent, for the caller to close.

    The list is empty if something else was sent, and the result None if the other side has closed.
    """
    content, received, _, _ = socket.recv_fds(connection, 1, PIPES_SENT)
    if not content:
        return None
    if len(received) != PIPES_SENT:
        for descriptor in received:
            os.close(descriptor)
        return []
    return received
