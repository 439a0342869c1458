"""The outlet's end of the channel, and its attempts to stay connected.

    link = Link(descriptor)
    link.want(VIDEO | STATUS)             # from now on; nothing before, nothing after `link.want(0)`
    message = await link.receive()        # Video, Jpeg, Codes, Chip, Report or Signal
    link.send(Key())                      # Want, Key, State, a request of edgesan.request, Signal

What is not received in time is lost in the transmit process, and video goes on with the next key frame.
"""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from edgesan.outlets.channel import (
    BLOCK,
    MOST_DOWN,
    VIDEO,
    Down,
    Inbox,
    Key,
    Outbox,
    State,
    Up,
    Video,
    Want,
    pack_up,
    parse_down,
)

logger = logging.getLogger(__name__)

AUTHORITIES: Final = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
"""The file of the authorities whose certificates are trusted. OpenSSL knows the variable, and the place, too."""
FIRST_WAIT_S: Final = 0.5
QUICK_WAIT_S: Final = 4.0  # most seconds between two attempts at first: a server that is back has its stream within 5 s
QUICK_S: Final = 300.0  # for so long
LONG_WAIT_S: Final = 30.0  # most seconds between two attempts after that
HEALTHY_S: Final = 10.0  # a connection that held for so long makes the next attempts quick again
STATE_S: Final = 1.0  # between two states that tell nothing but the bytes


class Closed(Exception):
    """The transmit process has ended, or its end of the channel: so does the outlet."""


class Lost(Exception):
    """An attempt ended. Its text says why in words, and what to do; it holds no password."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the kernel end this process (SIGALRM) if what is done inside does not come back: setitimer(2).

    Only this cuts off a library that waits for a server without a time limit, and keeps Python's lock meanwhile. The
    parent then starts the outlet again.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Link:
    """The outlet's end. Everything is to be called in the event loop.

    Args:
        descriptor: of the stream socket.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._inbox, self._outbox = Inbox(MOST_DOWN), Outbox(descriptor)
        self._arrived: deque[Down] = deque()

    async def receive(self) -> Down:
        """Return the next message.

        Raises:
            Closed: the other end is gone.
            Reject: what arrives is no message.
        """
        while not self._arrived:
            await self._readable()
            try:
                content = os.read(self._descriptor, BLOCK)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                raise Closed from error
            if not content:
                raise Closed
            self._arrived.extend(parse_down(*each) for each in self._inbox.feed(content))
        return self._arrived.popleft()

    async def video(self) -> Video:
        """Return the next packet of the video, and leave out messages of other kinds. Raises as `receive`."""
        while True:
            if isinstance(message := await self.receive(), Video):
                return message

    async def key_frame(self) -> Video:
        """Ask for a key frame, and return the next one that comes. Raises as `receive`."""
        self.send(Key())
        while not (packet := await self.video()).key:
            pass
        return packet

    async def rest(self, seconds: float) -> None:
        """Want nothing for so long, and leave out what arrives. Raises as `receive`."""
        self.want(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self.receive()

    def want(self, kinds: int, jpeg_every_s: float = 0) -> None:
        """Say what is wanted from now on; a video begins with a key frame.

        Args:
            kinds: VIDEO, JPEG, CODES, CHIP and STATUS, joined by |; 0: nothing.
            jpeg_every_s: the least time between two JPEGs.
        """
        self.send(Want(kinds, round(jpeg_every_s * 1000)))
        if not kinds & VIDEO:
            self._arrived = deque(each for each in self._arrived if not isinstance(each, Video))

    def send(self, value: Up) -> None:
        """Send a message without waiting. It is lost if the transmit process has read nothing for long."""
        with suppress(ConnectionError):  # `receive` says so
            self._outbox.put(pack_up(value))
            if not self._outbox.flush():
                asyncio.get_running_loop().add_writer(self._descriptor, self._flush)

    def _flush(self) -> None:
        try:
            done = self._outbox.flush()
        except ConnectionError:
            done = True
        if done:
            asyncio.get_running_loop().remove_writer(self._descriptor)

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)


class BackOff:
    """How long to wait before the next attempt: longer each time, and at random, so that many do not come at once.

    Args:
        clock: returns seconds that never go back.
        jitter: returns a number within 0..1.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000,
    ) -> None:
        self._clock, self._jitter = clock, jitter
        self._wait_s, self._since_s = FIRST_WAIT_S, clock()

    def reset(self) -> None:
        """Be quick again: all was well for a while."""
        self._wait_s, self._since_s = FIRST_WAIT_S, self._clock()

    def next_s(self) -> float:
        """Return the seconds to wait now."""
        wait_s = self._wait_s * (0.75 + 0.25 * self._jitter())
        most_s = QUICK_WAIT_S if self._clock() - self._since_s < QUICK_S else LONG_WAIT_S
        self._wait_s = min(most_s, self._wait_s * 2)
        return wait_s


class Attempts:
    """Connects again and again, says in words what fails, once, and when all is well again.

    Args:
        link: tells the transmit process how it goes.
        name: of the server, without a password.
    """

    def __init__(self, link: Link, name: str, back_off: BackOff | None = None) -> None:
        self._link, self._name = link, name
        self._back_off = back_off or BackOff()
        self._why, self._bytes, self._retries = "", 0, 0
        self._connected_s: float | None = None
        self._lost_before = False
        self._said_s = 0.0

    async def run(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Make attempts until the transmit process ends. One that returns is followed by the next one at once.

        Args:
            attempt: connects, calls `connected`, then `sent` as it sends; raises Lost when it ends.

        Raises:
            Closed: the transmit process has ended.
        """
        while True:
            try:
                await attempt()
            except Lost as lost:
                self._lost(str(lost))
                await self._link.rest(self._back_off.next_s())
            self._retries += 1

    def connecting(self) -> None:
        """Say that an attempt begins: this stays the reason if the process is ended by its `deadline`."""
        if not self._why:
            self._why = "it was asked, and does not answer"
        self._tell()

    def connected(self) -> None:
        """Say that the server takes what is sent."""
        if self._connected_s is None:
            logger.info("%s takes the stream%s", self._name, " again" if self._lost_before else "")
        self._why, self._connected_s = "", time.monotonic()
        self._tell()

    def sent(self, count: int) -> None:
        """Count bytes that the server took."""
        self._bytes += count
        if time.monotonic() - self._said_s >= STATE_S:
            self._tell()

    def _lost(self, why: str) -> None:
        if self._connected_s is not None and time.monotonic() - self._connected_s >= HEALTHY_S:
            self._back_off.reset()
        if why != self._why:
            logger.warning("%s: %s; trying again", self._name, why)
        self._why, self._connected_s, self._lost_before = why, None, True
        self._tell()

    def _tell(self) -> None:
        self._said_s = time.monotonic()
        self._link.send(State(self._connected_s is not None, self._why, self._bytes, self._retries))
