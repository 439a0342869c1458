"""The transmit process, and the sanitize process's hold on it.

The child has the network and no camera. It is started first, before the sanitize process gives its network up, and
waits for its orders: what to serve, and the read-only ring. They come through a socket, never on the command line, which
everybody on the machine can read. The child keeps a child of its own that does the work, and starts it again when it
was killed: the sanitize process could not, as what it starts has no network either.

What the child may say is one record: a byte for its kind, a length, a payload; and whatever does not fit is dropped,
because it comes from the side that has the network.

Signals: Ctrl-C reaches all processes and is the parent's to answer; SIGTERM, or the end of the pipe that wakes it,
lets the child finish its files and streams. It cannot outlive its parent.
"""

import asyncio
import json
import math
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from edgesan import isolation
from edgesan.config import SERVERS, Config
from edgesan.errors import SinkError
from edgesan.isolation import Claim

if TYPE_CHECKING:  # numpy must not be loaded yet: see `edgesan.isolation`
    from edgesan.ring import RingReader, RingWriter
    from edgesan.transmit import Sink

RECORD: Final = struct.Struct("<cI")
READY, ALPHA, FAILED, ISOLATED = b"R", b"A", b"F", b"I"
PID: Final = struct.Struct("<I")
MOST_PAYLOAD: Final = 4000  # a record is written whole: PIPE_BUF, pipe(7)
MOST_HEARD: Final = 65536  # bytes taken in at once: what a pipe holds, so that no flood can keep the parent reading
START_TIMEOUT_S: Final = 20.0
RESTART_S: Final = 1.0  # from a death to the next start


class Link:
    """The sanitize process's ends of two pipes: one wakes a transmit process for each frame, one hears what it says."""

    def __init__(self) -> None:
        self._pending = b""
        self._ready = self._over = False
        self._alphas: list[float] = []
        self._error = ""
        self.claims: list[Claim] = []  # what the other side has given up; complete once it is ready
        self.worker = 0  # process id of the one that has the network, as it says
        wake_read, self._wake = os.pipe()
        self._heard, say = os.pipe()
        self.theirs = wake_read, say
        os.set_blocking(self._wake, False)
        os.set_blocking(self._heard, False)

    def give(self) -> None:
        """Close the other side's ends here: it has them."""
        for fd in self.theirs:
            os.close(fd)

    def close(self) -> None:
        """Close these ends: the other side sees the end of the pipe that wakes it."""
        os.close(self._wake)
        os.close(self._heard)

    def over(self) -> bool:
        """Whether nobody is left at the other side."""
        self._listen()
        return self._over

    def wake(self) -> None:
        """A frame is in the ring. A full pipe needs no second word: the reader takes the newest anyway.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        with suppress(BlockingIOError):
            os.write(self._wake, b"\0")

    def requests(self) -> list[float]:
        """The alphas that viewers asked for since the last call, each finite and within 0..1."""
        self._listen()
        asked, self._alphas = self._alphas, []
        return asked

    def _listen(self) -> None:
        """Take in what the other side has said."""
        with suppress(BlockingIOError):
            said = os.read(self._heard, MOST_HEARD)
            self._pending += said
            self._over = not said  # nobody is left who could say more
        at, heard = 0, self._pending
        while len(heard) - at >= RECORD.size:
            kind, length = RECORD.unpack_from(heard, at)
            if length > MOST_PAYLOAD:
                at = len(heard)  # no record of ours
                break
            if len(heard) - at - RECORD.size < length:
                break
            payload = heard[at + RECORD.size : at + RECORD.size + length]
            at += RECORD.size + length
            if kind == READY and length == PID.size:
                self._ready = True
                (self.worker,) = PID.unpack(payload)
            elif kind == ISOLATED and not self.claims:  # the first word, before it meets the network
                self.claims = _claims(payload)
            elif kind == FAILED:
                self._error = _printable(payload.decode(errors="replace"))
            elif kind == ALPHA and length == 8:
                (alpha,) = struct.unpack("<d", payload)
                if math.isfinite(alpha) and 0 <= alpha <= 1:
                    self._alphas.append(alpha)
        self._pending = heard[at:]


def _claims(payload: bytes) -> list[Claim]:
    """What the other side says that it has given up; nothing, where it is not said as it should be."""
    try:
        said = [Claim(**claim) for claim in json.loads(payload)]
    except (ValueError, TypeError, RecursionError):
        return []
    texts = [getattr(claim, name) for claim in said for name in ("process", "name", "detail", "cure")]
    if not all(type(text) is str and text == _printable(text) for text in texts):
        return []
    return said if all(type(claim.holds) is bool and claim.process == "transmit" for claim in said) else []


def _printable(text: str) -> str:
    """It will be printed: nothing in it may steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Transmitter(Link):
    """The sanitize process's end, where one command starts both: it holds the transmit process as its child."""

    def __init__(self, config: Config) -> None:
        """Start the child. It waits for `open`."""
        super().__init__()
        self._config = config
        self._died_s: float | None = None
        self._orders, orders = socket.socketpair()
        fds = (orders.fileno(), *self.theirs)
        # -P: whatever lies in the working directory is not imported
        command = [sys.executable, "-P", "-m", "edgesan.transmit.process", *map(str, fds)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds)
        self.give()
        orders.close()

    def open(self, ring: "RingWriter") -> "Transmitter":
        """Give the child the ring and its orders, and wait until all sinks are open.

        Raises:
            SinkError: the child could not open one of its sinks.
        """
        c = self._config
        tls = [name and str(name) for name in (c.tls_cert, c.tls_key)]
        orders = json.dumps({"out": c.out, "token": c.token, "tls": tls}).encode()
        with suppress(BrokenPipeError), self._orders:  # broken: it is dead, which is seen below
            socket.send_fds(self._orders, [b"\0"], [ring.fd])
            self._orders.sendall(orders)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (self._ready or self._error or self._child.poll() is not None or time.monotonic() > deadline_s):
            select.select([self._heard], [], [], 0.1)
            self._listen()
        self._listen()
        if not self._ready:
            code = self._child.poll()
            silent = f"said nothing for {START_TIMEOUT_S:g} s" if code is None else f"ended with exit code {code}"
            self._end(timeout_s=0.7)
            raise SinkError(self._error or f"the transmit process did not start: it {silent}")
        return self

    def notify(self) -> None:
        """A frame is in the ring.

        Raises:
            SinkError: as `check`.
        """
        try:
            self.wake()
        except BrokenPipeError:
            self.check()

    def check(self) -> None:
        """See whether the child still lives; call it about twice a second.

        Raises:
            SinkError: it ended because a sink failed (a full disk, say), or was killed together with its child.
        """
        self._listen()
        if self._child.poll() is None:
            return
        if self._error:
            raise SinkError(self._error)
        now_s = time.monotonic()
        if self._died_s is None:
            self._died_s = now_s  # wait: a signal to all processes of the service is about to end this one too
        elif now_s - self._died_s >= RESTART_S:
            raise SinkError(f"the transmit process ended with exit code {self._child.returncode}; start edgesan again")

    def stop(self, timeout_s: float = 0.7) -> None:
        """Let the child finish its files and streams; kill it if it takes longer. Idempotent.

        Raises:
            SinkError: a file could not be finished.
        """
        if self._wake < 0:
            return
        self._end(timeout_s)
        files = [out for out in self._config.out if not out.startswith(SERVERS)]
        if self._error or (files and self._child.returncode):
            raise SinkError(
                self._error or f"{', '.join(files)} may not be whole: the transmit process had to be killed"
            )

    def _end(self, timeout_s: float) -> None:
        self._orders.close()  # where it still waits for them
        os.close(self._wake)  # the child sees the end of the pipe
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listen()
        os.close(self._heard)
        self._wake = self._heard = -1


class Child:
    """The worker's side of the pipes. `ready` tells the one that keeps it."""

    def __init__(self, ring: "RingReader", wake: int, say: int, ready: mmap.mmap | None = None) -> None:
        self.ring, self._wake, self._say, self._ready = ring, wake, say, ready
        self._woken, self._over = asyncio.Event(), False
        self._seen = ring.newest  # later ones are news

    def say(self, kind: bytes, payload: bytes) -> None:
        say(self._say, kind, payload)

    def ask_alpha(self, alpha: float) -> bool:
        """Pass a viewer's wish on. False if the sanitizer does not listen: the pipe is full, or nobody is there."""
        if not select.select([], [self._say], [], 0)[1]:
            return False
        try:
            self.say(ALPHA, struct.pack("<d", alpha))
        except BrokenPipeError:
            return False
        return True

    async def serve(self, sinks: "list[Sink]") -> None:
        """Open all sinks, and pass each newest frame on to them until the parent closes its pipe.

        Raises:
            SinkError: one of the sinks failed.
        """
        async with AsyncExitStack() as stack:  # closes every sink, also where another one fails
            for sink in sinks:
                await sink.start()
                stack.push_async_callback(sink.close)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.end)
            self._seen = self.ring.newest  # of before it was killed
            if self._ready is not None:
                self._ready[0] = 1
            self.say(READY, PID.pack(os.getpid()))
            await self.pass_on(sinks)

    def end(self) -> None:
        """Let `pass_on` return."""
        self._over = True
        self._woken.set()

    def _hear(self) -> None:
        if os.read(self._wake, 65536):
            self._woken.set()
        else:
            asyncio.get_running_loop().remove_reader(self._wake)
            self.end()

    async def pass_on(self, sinks: "list[Sink]") -> None:
        """Pass each newest frame on to all sinks, until the other end of the pipe is closed.

        Raises:
            SinkError: one of the sinks failed.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wake, self._hear)
        try:
            while not self._over:
                await self._woken.wait()
                self._woken.clear()
                newest = self.ring.newest
                frame = self.ring.read() if newest != self._seen else None
                if frame is not None:
                    self._seen = newest
                    for sink in sinks:
                        await sink.send(frame)
        finally:
            loop.remove_reader(self._wake)


def keep(orders: int, wake: int, answer: int) -> int:
    """The child's whole life: take the orders, give up what is not needed for them, and keep a worker at work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent coordinates
    isolation.end_with_parent(signal.SIGTERM)
    with socket.socket(fileno=orders) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        if not fds:
            return 0  # the parent ended before it had any
        with channel.makefile("rb") as file:
            told = json.load(file)
    writes = [Path(out).absolute().parent for out in told["out"] if not out.startswith(SERVERS)]
    reads = [Path(name).resolve().parent for name in told["tls"] if name]
    claims = isolation.transmit(reads, writes, fds[0])
    say(answer, ISOLATED, json.dumps([asdict(claim) for claim in claims]).encode())

    ready = mmap.mmap(-1, 1)  # shared with the worker
    worker, over = 0, False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal over
        over = True
        if worker:
            os.kill(worker, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    parent = select.poll()
    parent.register(wake, 0)  # nothing but the end of the pipe
    again = False
    while True:
        ready[0] = 0
        worker = os.fork()
        if not worker:
            return work(told, again, fds[0], wake, answer, ready)
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        worker = 0
        final = code == SinkError.exit_code or not ready[0]  # what could not start will not start the next time
        # Waiting, too, as a signal to all processes of the service may be about to reach this one.
        if final or over or parent.poll(RESTART_S * 1000) or over:
            return code if code >= 0 else 128 - code
        print(f"edgesan: the transmit process ended ({code}); starting it again", file=sys.stderr, flush=True)
        again = True


def work(told: dict[str, Any], again: bool, ring: int, wake: int, answer: int, ready: mmap.mmap) -> int:
    """The worker's whole life. `again`: another one was killed before."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    isolation.end_with_parent(signal.SIGKILL)
    from edgesan.ring import RingReader
    from edgesan.transmit.file import FileSink, next_free
    from edgesan.transmit.http import HttpSink

    child = Child(RingReader(ring), wake, answer, ready)
    tls = [name and Path(name) for name in told["tls"]]

    async def go() -> None:
        sinks: list[Sink] = [
            HttpSink(out, told["token"], child.ring.status, child.ask_alpha, *tls)
            if out.startswith(SERVERS)
            # What a killed worker has written stays as it is.
            else FileSink(next_free(Path(out)) if again else Path(out))
            for out in told["out"]
        ]
        await child.serve(sinks)

    try:
        asyncio.run(go())
    except SinkError as error:
        with suppress(BrokenPipeError):  # the parent is gone: nobody to tell
            child.say(FAILED, str(error).encode()[:MOST_PAYLOAD])
        return error.exit_code
    return 0


def say(to: int, kind: bytes, payload: bytes) -> None:
    """Write one record."""
    os.write(to, RECORD.pack(kind, len(payload)) + payload)


if __name__ == "__main__":
    sys.exit(keep(*map(int, sys.argv[1:4])))
