"""An HTTP server in a thread of the test's own process, pictures for it, and viewers of its stream."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgesan.frames import Pixels, SanitizedFrame
from edgesan.request import Alpha, Privacy, Request
from edgesan.transmit.admission import Server, listen
from edgesan.transmit.http import HttpSink
from edgesan.transmit.tls import tls_context
from edgesan.zones import Zone, of_text
from tests.support import free_port

Make = Callable[..., SanitizedFrame]
Serve = Callable[..., "LiveServer"]
STATUS = {
    "camera_up": True,
    "alpha": 0.5,
    "fps": 30.0,
    "faces": 2,
    "model": {"name": "m", "version": 1, "sha256": "ab", "alpha_range": [0.0, 0.8]},
    "totals": {"sanitized": 7, "rejected_age": 1, "faces": 13},
    "ms": {"infer": {"p50": 2.0, "p95": 3.0, "p99": 4.0}},
    "wall": {"bytes": 186_000, "bytes_per_s": 9300.0, "messages": 600, "refused": 1},
}


class Wishes:
    """Stands for the transmit process: says a status, and takes what viewers ask for."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = dict(STATUS)
        self.asked, self.hears, self.records = list[float | Request](), True, True
        self.drawn: tuple[Zone, ...] = ()
        self.unrecorded = ""  # why zones cannot be recorded
        self.questions: list[dict[str, Any]] = []
        self.webrtc: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] | None = None

    @property
    def zones(self) -> tuple[tuple[Zone, ...], tuple[Zone, ...]]:
        return (of_text("0,0,0.1,0.1"),), self.drawn

    def report(self) -> dict[str, Any]:
        return dict(self.status)

    def request(self, wanted: Request) -> bool:
        if self.hears:
            self.asked.append(wanted.alpha if isinstance(wanted, Alpha) else wanted)
        return self.hears

    async def switch(self, *, on: bool) -> bool | None:
        if not self.request(Privacy(on)):
            raise ConnectionError
        return self.records

    async def draw(self, zones: tuple[Zone, ...]) -> str:
        self.drawn = zones
        return self.unrecorded

    async def ask_webrtc(self, question: dict[str, Any]) -> dict[str, Any] | None:
        self.questions.append(question)
        return await self.webrtc(question) if self.webrtc else None


class ServerThread(Wishes):
    """An HttpSink in a thread of this process, so that a test can shorten its limits."""

    def __init__(
        self,
        token: str = "",
        certificate: Path | None = None,
        key: Path | None = None,
        embed_from: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.port = free_port()
        address = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        tls = tls_context(certificate, key) if certificate else None
        server = Server(address, listen(address), tls)
        self.sink = HttpSink(server, token, self, embed_from)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.wait(self.sink.start())

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def send(self, frame: SanitizedFrame) -> None:
        self.wait(self.sink.send(frame))

    def close(self) -> None:
        self.wait(self.sink.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def get(
        self, path: str, method: str = "GET", body: str | bytes | None = None, source: str = "127.0.0.1", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5, source_address=(source, 0))
        with closing(connection):
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """From that address of this machine."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5, source_address=(host, 0))

    def counted(self) -> dict[str, Any]:
        """As the server's own thread sees it: the counters change there."""

        async def look() -> dict[str, Any]:
            said: dict[str, Any] = self.sink.report()["transmit"]
            return said

        answer: dict[str, Any] = self.wait(look())
        return answer

    def viewers(self) -> int:
        return int(self.counted()["viewers"])

    def totals(self) -> dict[str, int]:
        totals: dict[str, int] = self.counted()["totals"]
        return totals


class LiveServer(ServerThread):
    """A server, and pictures for it: 50 a second where they flow."""

    def __init__(
        self, make: Make, *server: Any, size: tuple[int, int] = (64, 48), noise: bool = False, **options: Any
    ) -> None:
        super().__init__(*server, **options)
        self._make, self._size = make, size
        self._noise = np.random.default_rng(0) if noise else None  # pictures that no codec makes small
        self._end = threading.Event()
        self._flowing: threading.Thread | None = None
        self.number = 0

    def picture(self, age_ns: int = 0, level: int | None = None, slate: bool = False) -> None:
        self.number += 1
        level = self.number % 250 if level is None else level
        frame = self._make(self.number, self._size, time.monotonic_ns() - age_ns, level)
        pixels = frame.pixels
        if self._noise is not None:
            pixels = self._noise.integers(0, 256, pixels.shape, np.uint8)
        self.send(SanitizedFrame._create(pixels, replace(frame.stamps, slate=slate)))

    def flow(self) -> "LiveServer":
        def go() -> None:
            while not self._end.wait(0.02):
                self.picture()

        self.picture()
        self._flowing = threading.Thread(target=go)
        self._flowing.start()
        return self

    def until(self, path: str, wanted: Callable[[int, bytes], bool]) -> bytes:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            status, body, _ = self.get(path)
            if wanted(status, body):
                return body
            time.sleep(0.02)
        raise AssertionError(f"{path} never became what was wanted; last {status} {body[:200]!r}")

    def pause(self) -> None:
        self._end.set()
        if self._flowing is not None:
            self._flowing.join()

    def close(self) -> None:
        self.pause()
        super().close()


class Viewer:
    """Reads pictures from the MJPEG stream."""

    def __init__(self, port: int, timeout: float = 5, token: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._connection.request("GET", "/stream.mjpg", headers={"Authorization": f"Bearer {token}"} if token else {})
        self._answer = self._connection.getresponse()
        assert self._answer.getheader("Content-Type", "").startswith("multipart/x-mixed-replace")

    def read(self) -> bytes:
        while True:
            text = self._answer.readline()
            assert text, "the stream ended"
            if text.lower().startswith(b"content-length:"):
                self._answer.readline()
                return self._answer.read(int(text.split(b":")[1]))

    def close(self) -> None:
        self._connection.close()


def read_parts(port: int, count: int) -> list[bytes]:
    """So many pictures of the MJPEG stream."""
    with closing(Viewer(port)) as viewer:
        return [viewer.read() for _ in range(count)]


def decode(jpeg: bytes) -> Pixels:
    """The picture in a JPEG."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.astype(np.uint8)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed, once all that it said is read."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def until(wanted: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)
