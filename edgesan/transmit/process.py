"""The transmit process, and the sanitize process's hold on it.

The child has the network and no camera; it is given the read-only ring and two pipes, and its orders on standard
input, never on the command line, which everybody on the machine can read. What it may say is one record: a byte for
its kind, a length, a payload; and whatever does not fit is dropped, because it comes from the side that has the network.

Signals: Ctrl-C reaches both processes and is the parent's to answer; SIGTERM, or the end of the pipe that wakes it,
lets the child finish its files and streams. It cannot outlive its parent.
"""

import asyncio
import ctypes
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from edgesan.config import SERVERS, Config
from edgesan.errors import SinkError
from edgesan.ring import RingReader, RingWriter
from edgesan.transmit import Sink

RECORD: Final = struct.Struct("<cI")
READY, ALPHA, FAILED = b"R", b"A", b"F"
MOST_PAYLOAD: Final = 2000
MOST_HEARD: Final = 65536  # bytes taken in at once: what a pipe holds, so that no flood can keep the parent reading
START_TIMEOUT_S: Final = 20.0
RESTART_S: Final = 1.0  # from the child's death to the next one
PR_SET_PDEATHSIG: Final = 1


class Transmitter:
    """The sanitize process's end: starts the child, wakes it for each frame, hears what viewers ask for.

    Raises:
        SinkError: the child could not open one of its sinks.
    """

    def __init__(self, config: Config, ring: RingWriter) -> None:
        self._config, self._ring = config, ring
        self._pending = b""
        self._alphas: list[float] = []
        self._error = ""
        self._start(again=False)

    def _start(self, *, again: bool) -> None:
        wake_read, self._wake = os.pipe()
        self._heard, say = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._heard, False)
        self._pending, self._ready = b"", False
        self._died_s: float | None = None
        # -P: whatever lies in the working directory is not imported
        command = [sys.executable, "-P", "-m", "edgesan.transmit.process", str(self._ring.fd), str(wake_read), str(say)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(self._ring.fd, wake_read, say))
        os.close(wake_read)
        os.close(say)
        assert self._child.stdin is not None
        c = self._config
        tls = [name and str(name) for name in (c.tls_cert, c.tls_key)]
        orders = {"out": c.out, "token": c.token, "tls": tls, "again": again}
        with suppress(BrokenPipeError), self._child.stdin as stdin:  # broken: it is dead, which is seen below
            stdin.write(json.dumps(orders).encode())
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

    def notify(self) -> None:
        """A frame is in the ring. A full pipe needs no second word: the reader takes the newest anyway.

        Raises:
            SinkError: as `check`.
        """
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.check()

    def requests(self) -> list[float]:
        """The alphas that viewers asked for since the last call, each finite and within 0..1."""
        self._listen()
        asked, self._alphas = self._alphas, []
        return asked

    def check(self) -> None:
        """Start the child again if it was killed; call it about twice a second.

        Raises:
            SinkError: it ended because a sink failed (a full disk, say), or it could not be started again.
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
            print(
                f"edgesan: the transmit process ended ({self._child.returncode}); starting it again",
                file=sys.stderr,
                flush=True,
            )
            os.close(self._wake)
            os.close(self._heard)
            self._start(again=True)

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
        os.close(self._wake)  # the child sees the end of the pipe
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listen()
        os.close(self._heard)
        self._wake = self._heard = -1

    def _listen(self) -> None:
        """Take in what the child has said."""
        with suppress(BlockingIOError):
            self._pending += os.read(self._heard, MOST_HEARD)
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
            if kind == READY:
                self._ready = True
            elif kind == FAILED:
                # It will be printed: nothing in it may steer a terminal.
                self._error = "".join(c if c.isprintable() else "?" for c in payload.decode(errors="replace"))
            elif kind == ALPHA and length == 8:
                (alpha,) = struct.unpack("<d", payload)
                if math.isfinite(alpha) and 0 <= alpha <= 1:
                    self._alphas.append(alpha)
        self._pending = heard[at:]


class Child:
    """The transmit process's side of the pipes."""

    def __init__(self, ring: RingReader, wake: int, say: int) -> None:
        self.ring, self._wake, self._say = ring, wake, say

    def say(self, kind: bytes, payload: bytes = b"") -> None:
        os.write(self._say, RECORD.pack(kind, len(payload)) + payload)

    def ask_alpha(self, alpha: float) -> bool:
        """Pass a viewer's wish on. False if the sanitizer does not listen: then the pipe is full."""
        if not select.select([], [self._say], [], 0)[1]:
            return False
        self.say(ALPHA, struct.pack("<d", alpha))
        return True

    async def serve(self, sinks: list[Sink]) -> None:
        """Pass each newest frame on to all sinks, until the parent closes its pipe.

        Raises:
            SinkError: one of the sinks failed.
        """
        loop = asyncio.get_running_loop()
        woken, over = asyncio.Event(), asyncio.Event()

        def end() -> None:
            over.set()
            woken.set()

        def wake() -> None:
            if not os.read(self._wake, 65536):
                loop.remove_reader(self._wake)
                over.set()
            woken.set()

        async with AsyncExitStack() as stack:  # closes every sink, also where another one fails
            for sink in sinks:
                await sink.start()
                stack.push_async_callback(sink.close)
            loop.add_reader(self._wake, wake)
            loop.add_signal_handler(signal.SIGTERM, end)
            self.say(READY)
            seen = 0
            while not over.is_set():
                await woken.wait()
                woken.clear()
                newest = self.ring.newest
                frame = self.ring.read() if newest != seen else None
                if frame is not None:
                    seen = newest
                    for sink in sinks:
                        await sink.send(frame)


def main(ring_fd: int, wake: int, say: int) -> int:
    """The child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent coordinates
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    from edgesan.transmit.file import FileSink, next_free
    from edgesan.transmit.http import HttpSink

    orders = json.load(sys.stdin)
    child = Child(RingReader(ring_fd), wake, say)
    tls = [name and Path(name) for name in orders["tls"]]

    async def go() -> None:
        sinks: list[Sink] = [
            HttpSink(out, orders["token"], child.ring.status, child.ask_alpha, *tls)
            if out.startswith(SERVERS)
            # What a killed child has written stays as it is.
            else FileSink(next_free(Path(out)) if orders["again"] else Path(out))
            for out in orders["out"]
        ]
        await child.serve(sinks)

    try:
        asyncio.run(go())
    except SinkError as error:
        with suppress(BrokenPipeError):  # the parent is gone: nobody to tell
            child.say(FAILED, str(error).encode()[:MOST_PAYLOAD])
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
