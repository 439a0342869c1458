"""The transmit process's end of a channel, and an outlet's module that runs at the other one."""

import asyncio
import contextlib
import socket
import threading
import time
from types import ModuleType
from typing import Any

from edgesan import targets
from edgesan.config import Config
from edgesan.outlets.channel import MOST_UP, Down, Inbox, State, Up, Want, pack_down, parse_up
from edgesan.outlets.link import Closed, Link
from edgesan.request import Alpha, Privacy, Request, Zones


class FarEnd:
    """Runs a module in a thread, with its own event loop, and reads what it sends."""

    def __init__(self, module: ModuleType, url: str) -> None:
        self.heard: list[Up] = []
        self._mine, theirs = socket.socketpair()
        target = targets.parse(url)
        prepared = module.prepare(Config(), target)
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None

        async def live() -> None:
            self._task = asyncio.current_task()
            with contextlib.suppress(asyncio.CancelledError, Closed):
                await module.run(Link(theirs.detach()), target, prepared)

        self._threads = [
            threading.Thread(target=self._loop.run_until_complete, args=(live(),)),
            threading.Thread(target=self._read),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        inbox = Inbox(MOST_UP)
        with contextlib.suppress(OSError):
            while content := self._mine.recv(65536):
                self.heard.extend(parse_up(*each) for each in inbox.feed(content))

    def send(self, value: Down) -> None:
        self._mine.sendall(pack_down(value))

    @property
    def asked(self) -> list[Request]:
        return [each for each in self.heard if isinstance(each, Alpha | Privacy | Zones)]

    @property
    def states(self) -> list[State]:
        return [each for each in self.heard if isinstance(each, State)]

    @property
    def connected(self) -> bool:
        return bool(self.states) and self.states[-1].connected

    @property
    def why(self) -> str:
        return self.states[-1].why if self.states else ""

    @property
    def wanted(self) -> Want:
        return [each for each in self.heard if isinstance(each, Want)][-1]

    def until_connected(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self.connected:
            assert time.monotonic() < deadline, self.states
            time.sleep(0.02)

    def stop(self) -> None:
        """As SIGTERM does."""
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._threads[0].join()

    def close(self) -> None:
        """As a transmit process that ends does."""
        if self._mine.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._mine.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._mine.close()
        self._loop.close()


def report(**changes: Any) -> dict[str, Any]:
    """What `/api/status` says."""
    return {
        "name": "front door",
        "camera_up": True,
        "privacy": False,
        "alpha": 0.4,
        "faces": 2,
        "fps": 24.6,
        "model": {"alpha_range": [0.0, 0.8], "sha256": "ab" * 32},
        "links": [{"kind": "status", "url": "http://192.168.1.20:8080/api/status"}],
        "warnings": [],
    } | changes
