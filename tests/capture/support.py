"""Clips and frames that tell their number, and a network camera, for the tests of sources."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from edgesan.capture import DEMO_CLIP, Source, open_source
from edgesan.errors import ConfigError, EdgesanError
from edgesan.fetch import camera
from edgesan.fetch.address import parts_of, resolve
from edgesan.fetch.packets import Reader, sender
from edgesan.frames import Pixels

PATIENCE_S = 5.0
FETCHES = "fetches"  # the name of a thread


def flat(index: int, size: tuple[int, int] = (64, 48)) -> Pixels:
    """A picture that tells its index (modulo 50), even after codecs made it up to 4 levels darker."""
    return np.full((size[1], size[0], 3), index % 50 * 5 + 4, np.uint8)


def index_of(pixels: Pixels) -> int:
    """The inverse of `flat`, modulo 50."""
    return int(pixels.mean() // 5)


def write_clip(path: Path, frames: int, fps: float = 30.0, code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(flat(i))
    writer.release()
    return path


def open_camera(url: str, size: tuple[int, int] | None = None, fps: float | None = None, rotate: int = 0) -> Source:
    """Open a network camera, with a thread in place of the process that fetches."""
    packets, writable = os.pipe2(os.O_CLOEXEC)
    reader = Reader(packets)
    threading.Thread(target=_fetch, args=(url, writable), name=FETCHES).start()
    try:
        return open_source(url, size, fps, rotate, reader)
    except EdgesanError:
        reader.close()
        raise


def _fetch(url: str, writable: int) -> None:
    with suppress(BrokenPipeError, ConfigError), open(writable, "wb"):
        parts = parts_of(url)
        camera.fetch(parts, resolve(parts), sender(writable))


def take(source: Source, timeout_s: float = PATIENCE_S) -> tuple[Pixels, int]:
    """Pixels (a copy) and number of the next frame."""
    with source.frame(timeout_s) as raw:
        return raw.pixels.copy(), raw.number


def play(source: Source, timeout_s: float = PATIENCE_S) -> Iterator[int]:
    """The indices of all frames, until the source raises."""
    while True:
        yield index_of(take(source, timeout_s)[0])


class Quiet(ThreadingHTTPServer):
    """Says nothing of viewers who hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class HttpCamera:
    """An MJPEG camera over HTTP, as cheap network cameras are. It can be unplugged, and can fall silent."""

    def __init__(self) -> None:
        self.sent = 0
        self.still: Pixels | None = None  # shown instead of pictures that tell their number
        self.on, self.silent = threading.Event(), threading.Event()
        self.port = 0
        self.plug_in()

    def plug_in(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

            def do_GET(self) -> None:
                self.send_response(200)
                if self.path.startswith("/clip"):
                    clip = DEMO_CLIP.read_bytes()
                    self.send_header("Content-Length", str(len(clip)))
                    self.end_headers()
                    self.wfile.write(clip)
                    return
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while camera.on.is_set():
                    if not camera.silent.is_set():
                        shown = flat(camera.sent, (320, 240)) if camera.still is None else camera.still
                        part = cv2.imencode(".jpg", shown)[1].tobytes()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(part)}\r\n\r\n".encode()
                        self.wfile.write(head + part + b"\r\n")
                        camera.sent += 1
                    time.sleep(1 / 30)

        self.on.set()
        self._server = Quiet(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def unplug(self) -> None:
        if self.on.is_set():
            self.on.clear()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def url(self) -> str:
        return f"http://root:s3cret@127.0.0.1:{self.port}/video?pwd=s3cret"
