"""The transmit process, for real: a child process, a real ring, real HTTP clients, real files."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesan.config import Config
from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame
from edgesan.ring import RingWriter
from edgesan.transmit.file import ClipWriter
from edgesan.transmit.process import Transmitter

Make = Callable[..., SanitizedFrame]
STATUS = {"camera_up": True, "alpha": 0.5, "fps": 30.0, "faces": 2, "model": {"name": "m", "version": 1, "sha256": "ab", "alpha_range": [0.0, 0.8]}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Line:
    """A ring, a transmit process, and a thread that sends 50 frames a second."""

    def __init__(self, make: Make, *out: str, token: str = "", size: tuple[int, int] = (64, 48)) -> None:
        self.port = free_port()
        self.ring = RingWriter(size[0] * size[1] * 3)
        self.ring.put_status(STATUS)
        self.transmitter = Transmitter(Config(out=out or (f"http://127.0.0.1:{self.port}",), token=token), self.ring)
        self._make, self._size = make, size
        self._end = threading.Event()
        self.number = 0
        self._thread: threading.Thread | None = None

    def send(self) -> None:
        self.number += 1
        self.ring.put(self._make(self.number, self._size, time.monotonic_ns(), self.number % 250))
        self.transmitter.notify()

    def flow(self) -> "Line":
        def go() -> None:
            while not self._end.wait(0.02):
                self.send()

        self._thread = threading.Thread(target=go)
        self._thread.start()
        return self

    def get(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        result = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return result

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
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.pause()
        self.transmitter.stop()
        self.ring.close()


@pytest.fixture
def line(sanitized_frame: Make) -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(*out: str, **options: Any) -> Line:
        lines.append(Line(sanitized_frame, *out, **options))
        return lines[-1]

    yield make
    for each in lines:
        each.close()


def read_parts(port: int, count: int) -> list[bytes]:
    """So many pictures of the MJPEG stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/stream.mjpg")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type", "").startswith("multipart/x-mixed-replace")
    parts = []
    while len(parts) < count:
        text = answer.readline()
        if text.lower().startswith(b"content-length:"):
            answer.readline()
            parts.append(answer.read(int(text.split(b":")[1])))
    connection.close()
    return parts


def test_a_viewer_sees_the_stream_move(line: Callable[..., Line]) -> None:
    parts = read_parts(line().flow().port, 5)
    pictures = [cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR) for part in parts]
    assert all(picture.shape == (48, 64, 3) for picture in pictures)
    assert len({int(picture.mean()) for picture in pictures}) == 5


def test_two_viewers_cost_one_encoding_per_frame_and_none_costs_none(line: Callable[..., Line]) -> None:
    l = line().flow()
    l.until("/readyz", lambda status, _: status == 200)
    assert json.loads(l.get("/api/status")[1])["transmit"]["totals"].get("encoded", 0) == 0
    viewers = [threading.Thread(target=read_parts, args=(l.port, 20)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    totals = json.loads(l.get("/api/status")[1])["transmit"]["totals"]
    assert totals["sent"] >= 40
    assert totals["encoded"] <= 0.75 * totals["sent"]


def test_a_viewer_that_never_reads_holds_nobody_up(line: Callable[..., Line]) -> None:
    l = line(size=(640, 480)).flow()
    deaf = socket.create_connection(("127.0.0.1", l.port))
    deaf.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert len(read_parts(l.port, 30)) == 30
    deaf.close()


def test_snapshot_health_and_readiness(line: Callable[..., Line]) -> None:
    l = line()
    assert l.get("/healthz")[0] == 200
    assert l.get("/readyz")[:2] == (503, b"no frame yet\n")
    assert l.get("/snapshot.jpg")[0] == 503
    l.send()
    l.until("/readyz", lambda status, _: status == 200)
    status, picture, headers = l.get("/snapshot.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
    l.until("/readyz", lambda status, body: status == 503 and b"s old" in body)


def test_the_page_needs_nothing_from_elsewhere(line: Callable[..., Line]) -> None:
    l = line()
    status, page, headers = l.get("/")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers
    for asset in ("/page.js", "/page.css"):
        assert l.get(asset)[0] == 200
    for path in ("/../pyproject.toml", "/page.js/../../config.py", "/nothing", "/models/default.onnx"):
        assert l.get(path)[0] == 404


def test_metrics_are_prometheus_text(line: Callable[..., Line]) -> None:
    l = line().flow()
    read_parts(l.port, 3)
    text = l.get("/metrics")[1].decode()
    assert "edgesan_fps 30.0" in text
    assert 'edgesan_frames_total{state="sent"}' in text
    assert 'edgesan_stage_seconds{quantile="0.99",stage="glass_to_wire"}' in text


def test_the_dial_reaches_the_sanitizer(line: Callable[..., Line]) -> None:
    l = line()
    assert l.transmitter.requests() == []
    status, body, _ = l.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")
    assert (status, json.loads(body)) == (202, {"asked": 0.25})
    deadline = time.monotonic() + 5
    asked: list[float] = []
    while not asked and time.monotonic() < deadline:
        asked = l.transmitter.requests()
    assert asked == [0.25]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        ('{"alpha": 0.9}', "application/json", 400, b"within 0..0.8"),
        ('{"alpha": NaN}', "application/json", 400, b"within 0..0.8"),
        ('{"alpha": "1"}', "application/json", 400, b"within 0..0.8"),
        ('{"alpha": true}', "application/json", 400, b"within 0..0.8"),
        ('{"alpha": 0.1, "x": 1}', "application/json", 400, b"within 0..0.8"),
        ("[]", "application/json", 400, b"within 0..0.8"),
        ("{", "application/json", 400, b"not JSON"),
        ('{"alpha": 0.1}', "text/plain", 415, b"application/json"),
        ("x" * 5000, "application/json", 413, b""),
    ],
)
def test_a_wrong_wish_is_refused_and_goes_nowhere(line: Callable[..., Line], body: str, kind: str, status: int, words: bytes) -> None:
    l = line()
    answered, text, _ = l.get("/api/alpha", "POST", body, Content_Type=kind)
    assert answered == status
    assert words in text
    assert l.transmitter.requests() == []


def test_a_page_under_another_name_is_refused(line: Callable[..., Line]) -> None:
    l = line()
    assert l.get("/", Host="evil.example")[0] == 403
    assert l.get("/", Host=f"localhost:{l.port}")[0] == 200
    assert l.get("/", Host="[::1]:8080")[0] == 200


def test_with_a_token_nothing_is_shown_without_it(line: Callable[..., Line]) -> None:
    l = line(token="s3cret")
    for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status", "/metrics", "/healthz"):
        assert l.get(path)[0] == 401
    assert l.get("/?token=wrong")[0] == 401
    assert l.get("/?token=s3cret")[0] == 200
    assert l.get("/api/status", Authorization="Bearer s3cret")[0] == 200
    assert "s3cret" not in Path(f"/proc/{l.transmitter._child.pid}/cmdline").read_text()


def test_a_port_in_use_is_a_clear_error(sanitized_frame: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ring = RingWriter(100)
        with pytest.raises(SinkError, match="cannot listen on .* choose another one, such as --out"):
            Transmitter(Config(out=(f"http://127.0.0.1:{taken.getsockname()[1]}",)), ring)
        ring.close()


def test_a_killed_transmit_process_is_started_again(line: Callable[..., Line], capfd: pytest.CaptureFixture[str]) -> None:
    l = line().flow()
    l.until("/readyz", lambda status, _: status == 200)
    l.pause()
    first = l.transmitter._child.pid
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while l.transmitter._child.pid == first and time.monotonic() < deadline:
        l.transmitter.check()
        time.sleep(0.05)
    assert l.transmitter._child.pid != first
    l.send()
    l.until("/readyz", lambda status, _: status == 200)


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from edgesan.config import Config; from edgesan.ring import RingWriter\n"
        "from edgesan.transmit.process import Transmitter\n"
        f"t = Transmitter(Config(out=('http://127.0.0.1:{free_port()}',)), RingWriter(100)); print(t._child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and ") Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline, "the transmit process outlived its parent"
        time.sleep(0.05)


def test_what_the_child_says_is_not_trusted(line: Callable[..., Line]) -> None:
    l = line()
    t = l.transmitter
    t._pending = b"A\x08\x00\x00\x00" + b"\xff" * 8 + b"A\x03\x00\x00\x00abc" + b"Z\x00\x00\x00\x00" + b"A\xff\xff\xff\xff"
    assert t.requests() == []


def test_the_page_server_ends_at_once_under_its_viewers(line: Callable[..., Line]) -> None:
    l = line().flow()
    read_parts(l.port, 1)
    viewer = socket.create_connection(("127.0.0.1", l.port))
    viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    viewer.recv(1000)
    l.pause()
    started = time.monotonic()
    l.transmitter.stop()
    assert time.monotonic() - started < 3
    assert l.transmitter._child.returncode == 0
    viewer.close()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_file_can_be_played_and_holds_the_frames(line: Callable[..., Line], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    l = line(str(path), size=(65, 49))
    for _ in range(12):
        l.send()
        time.sleep(0.03)
    l.transmitter.stop(5)
    capture = cv2.VideoCapture(str(path))
    count = 0
    while True:
        done, pixels = capture.read()
        if not done:
            break
        assert pixels.shape == (48, 64, 3)
        count += 1
    assert 6 <= count <= 12


def test_an_existing_file_is_not_overwritten(tmp_path: Path, sanitized_frame: Make) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"precious")
    ring = RingWriter(100)
    with pytest.raises(SinkError, match="exists: name another file"):
        Transmitter(Config(out=(str(path),)), ring)
    ring.close()
    assert path.read_bytes() == b"precious"


def test_a_full_disk_is_a_clear_error(tmp_path: Path, sanitized_frame: Make) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    random = np.random.default_rng(0)
    try:
        with pytest.raises(SinkError, match="the disk is full"):
            writer = ClipWriter(disk / "clip.mkv")
            try:
                for i in range(200):
                    frame = sanitized_frame(i, (320, 240))
                    pixels = random.integers(0, 256, frame.pixels.shape).astype(np.uint8)
                    writer.write(SanitizedFrame._create(pixels, frame.stamps), i / 30)
            finally:
                writer.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
