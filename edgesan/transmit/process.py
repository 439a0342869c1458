"""The transmit process, and the sanitize process's hold on it.

The child has the network and no camera; it is given the read-only ring and two pipes, and its orders on standard
input, never on the command line, which everybody on the machine can read. What it may say is one record: a byte for
its kind, a length, a payload; and whatever does not fit is dropped, because it comes from the side that has the network.
"""

import asyncio
import ctypes
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from edgesan.config import Config
from edgesan.errors import SinkError
from edgesan.ring import RingReader, RingWriter
from edgesan.transmit import Sink

RECORD: Final = struct.Struct("<cI")
READY, ALPHA, FAILED = b"R", b"A", b"F"
MOST_PAYLOAD: Final = 2000
START_TIMEOUT_S: Final = 20.0
RESTART_S: Final = 1.0
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
        self._start()

    def _start(self) -> None:
        wake_read, self._wake = os.pipe()
        self._heard, say = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._heard, False)
        self._pending, self._ready = b"", False
        self._started_s = time.monotonic()
        # -P: whatever lies in the working directory is not imported
        command = [sys.executable, "-P", "-m", "edgesan.transmit.process", str(self._ring.fd), str(wake_read), str(say)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(self._ring.fd, wake_read, say))
        os.close(wake_read)
        os.close(say)
        assert self._child.stdin is not None
        with self._child.stdin as orders:
            orders.write(json.dumps({"out": self._config.out, "token": self._config.token}).encode())
        while not self._ready:
            self._listen()
            if self._error or self._child.poll() is not None or time.monotonic() - self._started_s > START_TIMEOUT_S:
                self._listen()
                if self._ready:
                    break
                self.stop()
                raise SinkError(
                    self._error or f"the transmit process did not start (exit code {self._child.returncode})"
                )
            time.sleep(0.005)

    def notify(self) -> None:
        """A frame is in the ring. A full pipe needs no second word: the reader takes the newest anyway."""
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
        """Start the child again if it was killed.

        Raises:
            SinkError: it ended because a sink failed (a full disk, say).
        """
        self._listen()
        if self._child.poll() is None:
            return
        if self._error:
            raise SinkError(self._error)
        if time.monotonic() - self._started_s > RESTART_S:
            print(
                f"edgesan: the transmit process ended ({self._child.returncode}); starting it again",
                file=sys.stderr,
                flush=True,
            )
            os.close(self._wake)
            os.close(self._heard)
            self._start()

    def stop(self, timeout_s: float = 0.7) -> None:
        """Let the child finish its files and streams; kill it if it takes longer. Idempotent."""
        self._ring.end()
        if self._wake >= 0:
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
        try:
            while chunk := os.read(self._heard, 4096):
                self._pending += chunk
        except BlockingIOError:
            pass
        while len(self._pending) >= RECORD.size:
            kind, length = RECORD.unpack_from(self._pending)
            if length > MOST_PAYLOAD:
                self._pending = b""  # no record of ours
                return
            if len(self._pending) < RECORD.size + length:
                return
            payload = self._pending[RECORD.size : RECORD.size + length]
            self._pending = self._pending[RECORD.size + length :]
            if kind == READY:
                self._ready = True
            elif kind == FAILED:
                self._error = payload.decode(errors="replace")
            elif kind == ALPHA and length == 8:
                (alpha,) = struct.unpack("<d", payload)
                if math.isfinite(alpha) and 0 <= alpha <= 1:
                    self._alphas.append(alpha)


class Child:
    """The transmit process's side of the pipes."""

    def __init__(self, ring: RingReader, wake: int, say: int) -> None:
        self.ring, self._wake, self._say = ring, wake, say
        self._status: tuple[float, dict[str, Any]] = (0.0, {})

    def say(self, kind: bytes, payload: bytes = b"") -> None:
        os.write(self._say, RECORD.pack(kind, len(payload)) + payload)

    def ask_alpha(self, alpha: float) -> None:
        self.say(ALPHA, struct.pack("<d", alpha))

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

        opened: list[Sink] = []
        try:
            for sink in sinks:
                await sink.start()
                opened.append(sink)
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
        finally:
            for sink in opened:
                await sink.close()


def main(ring_fd: int, wake: int, say: int) -> int:
    """The child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent coordinates
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    from edgesan.transmit.file import FileSink
    from edgesan.transmit.http import HttpSink

    orders = json.load(sys.stdin)
    child = Child(RingReader(ring_fd), wake, say)

    async def go() -> None:
        sinks: list[Sink] = [
            HttpSink(out, orders["token"], child.ring.status, child.ask_alpha)
            if out.startswith("http://")
            else FileSink(Path(out))
            for out in orders["out"]
        ]
        await child.serve(sinks)

    try:
        asyncio.run(go())
    except SinkError as error:
        child.say(FAILED, str(error).encode()[:MOST_PAYLOAD])
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
