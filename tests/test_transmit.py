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
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from edgesan.config import Config
from edgesan.errors import SinkError
from edgesan.frames import Pixels, SanitizedFrame
from edgesan.ring import RingWriter
from edgesan.transmit.file import ClipWriter
from edgesan.transmit.process import RESTART_S, Transmitter

Make = Callable[..., SanitizedFrame]
STATUS = {
    "camera_up": True,
    "alpha": 0.5,
    "fps": 30.0,
    "faces": 2,
    "model": {"name": "m", "version": 1, "sha256": "ab", "alpha_range": [0.0, 0.8]},
    "totals": {"sanitized": 7, "rejected_age": 1, "faces": 13},
    "ms": {"infer": {"p50": 2.0, "p95": 3.0, "p99": 4.0}},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Line:
    """A ring, a transmit process, and a thread that sends 50 frames a second."""

    def __init__(
        self, make: Make, *out: str, token: str = "", size: tuple[int, int] = (64, 48), noise: bool = False
    ) -> None:
        self.port = free_port()
        self.ring = RingWriter(size[0] * size[1] * 3)
        self.ring.put_status(STATUS)
        self.transmitter = Transmitter(Config(out=out or (f"http://127.0.0.1:{self.port}",), token=token)).open(
            self.ring
        )
        self._make, self._size = make, size
        self._noise = np.random.default_rng(0) if noise else None  # pictures that no codec makes small
        self._end = threading.Event()
        self.number = 0
        self._thread: threading.Thread | None = None

    def send(self) -> None:
        self.number += 1
        frame = self._make(self.number, self._size, time.monotonic_ns(), self.number % 250)
        if self._noise is not None:
            pixels = self._noise.integers(0, 256, frame.pixels.shape, np.uint8)
            frame = SanitizedFrame._create(pixels, frame.stamps)
        self.ring.put(frame)
        self.transmitter.notify()

    def flow(self) -> "Line":
        def go() -> None:
            while not self._end.wait(0.02):
                self.send()

        self._thread = threading.Thread(target=go)
        self._thread.start()
        return self

    def get(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
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

    def totals(self) -> dict[str, int]:
        counted: dict[str, int] = json.loads(self.get("/api/status")[1])["transmit"]["totals"]
        return counted

    def failed(self) -> SinkError:
        """Sends until the transmit process has failed."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.send()
                self.transmitter.check()
            except SinkError as error:
                return error
            time.sleep(0.01)
        raise AssertionError("the transmit process did not fail")

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
        with suppress(SinkError):  # a test that wants to see it stops by itself
            each.close()


def read_parts(port: int, count: int) -> list[bytes]:
    """So many pictures of the MJPEG stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/stream.mjpg")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type", "").startswith("multipart/x-mixed-replace")
    parts: list[bytes] = []
    while len(parts) < count:
        text = answer.readline()
        if text.lower().startswith(b"content-length:"):
            answer.readline()
            parts.append(answer.read(int(text.split(b":")[1])))
    connection.close()
    return parts


def decode(jpeg: bytes) -> Pixels:
    """The picture in a JPEG."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.astype(np.uint8)


def test_a_viewer_sees_the_stream_move(line: Callable[..., Line]) -> None:
    parts = read_parts(line().flow().port, 5)
    pictures = [decode(part) for part in parts]
    assert all(picture.shape == (48, 64, 3) for picture in pictures)
    assert len({int(picture.mean()) for picture in pictures}) == 5


def test_two_viewers_cost_one_encoding_per_frame_and_none_costs_none(line: Callable[..., Line]) -> None:
    live = line().flow()
    live.until("/readyz", lambda status, _: status == 200)
    assert live.totals().get("encoded", 0) == 0
    viewers = [threading.Thread(target=read_parts, args=(live.port, 20)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    totals = live.totals()
    assert totals["sent"] >= 40
    assert totals["encoded"] <= 0.75 * totals["sent"]


def watch_deaf(port: int) -> socket.socket:
    """A viewer that asks for the stream and never reads it."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return deaf


def test_a_viewer_that_never_reads_holds_nobody_up_and_has_one_picture_under_way(line: Callable[..., Line]) -> None:
    live = line(size=(640, 480), noise=True).flow()
    live.until("/readyz", lambda status, _: status == 200)
    with watch_deaf(live.port):
        live.until("/api/status", lambda _, body: json.loads(body)["transmit"]["viewers"] == 1)
        number = live.number
        while live.number < number + 30:
            time.sleep(0.02)
        assert live.totals().get("sent", 0) <= 1
        assert len(read_parts(live.port, 10)) == 10


def test_snapshot_health_and_readiness(line: Callable[..., Line]) -> None:
    live = line()
    assert live.get("/healthz")[0] == 200
    assert live.get("/readyz")[:2] == (503, b"no frame yet\n")
    assert live.get("/snapshot.jpg")[0] == 503
    live.send()
    live.until("/readyz", lambda status, _: status == 200)
    status, picture, headers = live.get("/snapshot.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
    assert decode(picture).shape == (48, 64, 3)
    live.until("/readyz", lambda status, body: status == 503 and b"s old" in body)


def test_the_page_needs_nothing_from_elsewhere(line: Callable[..., Line]) -> None:
    live = line()
    status, page, headers = live.get("/")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    for asset in ("/page.js", "/page.css", "/icon.svg"):
        assert live.get(asset)[0] == 200
    for path in ("/../pyproject.toml", "/page.js/../../config.py", "/nothing", "/models/default.onnx"):
        assert live.get(path)[0] == 404


def test_metrics_are_prometheus_text(line: Callable[..., Line]) -> None:
    live = line().flow()
    read_parts(live.port, 3)
    text = live.get("/metrics")[1].decode()
    assert "edgesan_fps 30.0" in text
    assert 'edgesan_frames_total{state="sent"}' in text
    assert 'edgesan_frames_total{state="rejected_age"} 1.0' in text
    assert 'edgesan_frames_total{state="faces"}' not in text
    assert "edgesan_sanitized_faces_total 13.0" in text
    assert 'edgesan_stage_seconds{quantile="0.5",stage="infer"} 0.002' in text
    assert 'edgesan_frame_age_seconds{quantile="0.99"}' in text
    assert 'edgesan_model_info{name="m",sha256="ab",version="1"} 1.0' in text


def test_the_stream_has_no_head(line: Callable[..., Line]) -> None:
    assert line().flow().get("/stream.mjpg", "HEAD")[:2] == (405, b"")


def test_the_dial_reaches_the_sanitizer(line: Callable[..., Line]) -> None:
    live = line()
    assert live.transmitter.requests() == []
    status, body, _ = live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")
    assert (status, json.loads(body)) == (202, {"asked": 0.25})
    deadline = time.monotonic() + 5
    asked: list[float] = []
    while not asked and time.monotonic() < deadline:
        asked = live.transmitter.requests()
    assert asked == [0.25]


def test_a_wrong_wish_is_refused_and_goes_nowhere(line: Callable[..., Line]) -> None:
    live = line()
    json_type = "application/json"
    for body, kind, status, words in (
        ('{"alpha": 0.9}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": NaN}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 1e999}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 1' + "0" * 200 + "}", json_type, 400, b"within 0..0.8"),
        ('{"alpha": "1"}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": true}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 0.1, "x": 1}', json_type, 400, b"within 0..0.8"),
        ("[]", json_type, 400, b"within 0..0.8"),
        ("{", json_type, 400, b"not JSON"),
        ("", json_type, 400, b"not JSON"),
        ("[" * 200, json_type, 400, b"not JSON"),
        ("\xff", json_type, 400, b"not JSON"),
        ('{"alpha": 0.1}', "text/plain", 415, json_type.encode()),
        ("alpha=0.1", "application/x-www-form-urlencoded", 415, json_type.encode()),
        ("x" * 5000, json_type, 413, b""),
    ):
        for method in ("POST", "PUT"):
            answered, text, _ = live.get("/api/alpha", method, body, Content_Type=kind)
            assert (answered, words in text) == (status, True), (body, text)
    assert live.get("/api/alpha", "DELETE")[0] == 405
    assert live.transmitter.requests() == []


def test_wishes_that_nobody_hears_are_refused_and_hold_nothing_up(line: Callable[..., Line]) -> None:
    live = line()
    child_end = os.open(f"/proc/self/fd/{live.transmitter._heard}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(child_end, b"A\x08\x00\x00\x00" + b"\xff" * 8)  # NaN, from a child that went mad
    os.close(child_end)
    assert live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")[0] == 503
    assert live.transmitter.requests() == []
    assert live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")[0] == 202


def test_a_page_under_another_name_is_refused(line: Callable[..., Line]) -> None:
    live = line()
    assert live.get("/", Host="evil.example")[0] == 403
    assert live.get("/", Host=f"localhost:{live.port}")[0] == 200
    assert live.get("/", Host="[::1]:8080")[0] == 200
    for host in ("127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7", "0.0.0.0", ""):
        assert live.get("/api/status", Host=host)[0] == 403
    with socket.create_connection(("127.0.0.1", live.port)) as nameless:
        nameless.sendall(b"GET /snapshot.jpg HTTP/1.0\r\n\r\n")
        assert b" 403 " in nameless.recv(100)


def test_with_a_token_nothing_is_shown_without_it(line: Callable[..., Line]) -> None:
    live = line(token="s3cret")
    for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status", "/metrics", "/healthz"):
        assert live.get(path)[0] == 401
    for wrong in ("wrong", "s3cret%20", "S3CRET", "%FF%FE", ""):
        assert live.get(f"/?token={wrong}")[0] == 401
    for header in ("s3cret", "Bearer wrong", "Bearer", "Basic s3cret", "Bearer \xff\xfe"):
        assert live.get("/api/status", Authorization=header)[0] == 401
    assert live.get("/?token=s3cret")[0] == 200
    assert live.get("/api/status", Authorization="Bearer s3cret")[0] == 200
    for asset in ("/page.js", "/page.css", "/icon.svg"):
        assert live.get(asset)[0] == 200
    for pid in (live.transmitter._child.pid, live.transmitter.worker):
        assert "s3cret" not in Path(f"/proc/{pid}/cmdline").read_text()


def test_a_port_in_use_is_a_clear_error(sanitized_frame: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ring = RingWriter(100)
        with pytest.raises(SinkError, match=r"cannot listen on .* choose another one, such as --out"):
            Transmitter(Config(out=(f"http://127.0.0.1:{taken.getsockname()[1]}",))).open(ring)
        ring.close()


def restarted(live: Line) -> int:
    """Waits for another worker than the one now; its process id."""
    first, deadline = live.transmitter.worker, time.monotonic() + 10
    while live.transmitter.worker == first and time.monotonic() < deadline:
        live.transmitter.check()
        time.sleep(0.05)
    assert live.transmitter.worker != first
    return live.transmitter.worker


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_transmit_process_is_started_again(
    line: Callable[..., Line], capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    live = line().flow()
    live.until("/readyz", lambda status, _: status == 200)
    live.pause()
    os.kill(live.transmitter.worker, number)
    live.send()  # nobody hears it, and it is no error
    started = time.monotonic()
    restarted(live)
    assert time.monotonic() - started >= RESTART_S / 2, "a signal to the whole service must not start a new process"
    assert "starting it again" in capfd.readouterr().err
    live.send()
    live.until("/readyz", lambda status, _: status == 200)


def test_a_killed_transmit_process_leaves_its_file_and_goes_on_in_another(
    line: Callable[..., Line], tmp_path: Path
) -> None:
    live = line(str(tmp_path / "clip.mkv"))
    live.send()
    os.kill(live.transmitter.worker, signal.SIGKILL)
    restarted(live)
    live.send()
    live.transmitter.stop()
    assert (tmp_path / "clip.mkv").exists()
    assert len(times(tmp_path / "clip-2.mkv")) == 1


def test_a_transmit_process_that_cannot_start_again_ends_the_run(line: Callable[..., Line]) -> None:
    live = line()
    os.kill(live.transmitter.worker, signal.SIGKILL)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:  # until the killed one has let go of it, which is long before the next one starts
            try:
                taken.bind(("127.0.0.1", live.port))
                break
            except OSError:
                time.sleep(0.01)
        taken.listen()
        assert "cannot listen on" in str(live.failed())


def test_killing_the_one_that_keeps_it_kills_the_transmit_process_and_ends_the_run(line: Callable[..., Line]) -> None:
    live = line()
    live.transmitter._child.kill()
    assert "ended with exit code -9" in str(live.failed())
    status, deadline = Path(f"/proc/{live.transmitter.worker}/status"), time.monotonic() + 5
    while status.exists() and "State:\tZ" not in status.read_text():  # dead, if not yet buried by init
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_to_all_processes_ends_the_child_cleanly(line: Callable[..., Line]) -> None:
    t = line().transmitter
    t._child.send_signal(signal.SIGINT)
    t._child.send_signal(signal.SIGTERM)
    assert t._child.wait(5) == 0
    assert not Path(f"/proc/{t.worker}").exists()


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from edgesan.config import Config; from edgesan.ring import RingWriter\n"
        "from edgesan.transmit.process import Transmitter\n"
        f"t = Transmitter(Config(out=('http://127.0.0.1:{free_port()}',))).open(RingWriter(100)); print(t.worker, flush=True); time.sleep(60)"
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
    live = line()
    t = live.transmitter
    t._pending = (
        b"A\x08\x00\x00\x00" + b"\xff" * 8 + b"A\x03\x00\x00\x00abc" + b"Z\x00\x00\x00\x00" + b"A\xff\xff\xff\xff"
    )
    assert t.requests() == []
    t._pending = b"F\x08\x00\x00\x00\x1b[2Jgone" + b"A\x08\x00\x00\x00"
    assert t.requests() == []
    assert t._error == "?[2Jgone"
    t._pending, t._error = b"", ""


def test_the_child_has_neither_the_model_nor_the_camera(line: Callable[..., Line]) -> None:
    code = "import sys, edgesan.transmit.process, edgesan.transmit.http, edgesan.transmit.file; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    wrong = (
        "onnx",
        "edgesan.model",
        "edgesan.capture",
        "edgesan.faces",
        "edgesan.sanitize",
        "edgesan.pipeline",
        "torch",
    )
    assert not [name for name in loaded if name.startswith(wrong)]
    try:
        assert "onnxruntime" not in Path(f"/proc/{line().transmitter.worker}/maps").read_text()
    except PermissionError:
        assert os.geteuid() != 0  # it is not dumpable: only root may look


def test_the_page_server_ends_at_once_under_its_viewers(line: Callable[..., Line]) -> None:
    live = line(size=(640, 480), noise=True).flow()
    ended = threading.Event()

    def watch() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.request("GET", "/stream.mjpg")
        answer = connection.getresponse()
        while answer.read(65536):
            pass
        ended.set()  # a whole answer: a stream that is cut off would have raised IncompleteRead
        connection.close()

    viewer = threading.Thread(target=watch)
    viewer.start()
    with watch_deaf(live.port):
        live.until("/api/status", lambda _, body: json.loads(body)["transmit"]["viewers"] == 2)
        live.pause()
        live.transmitter.stop()
    viewer.join()
    assert ended.is_set()
    assert live.transmitter._child.returncode == 0


def times(path: Path) -> list[float]:
    """When each picture of a clip is shown, in seconds."""
    with av.open(str(path)) as container:
        return [picture.time for picture in container.decode(video=0) if picture.time is not None]


def test_files_can_be_played_and_hold_the_frames(line: Callable[..., Line], tmp_path: Path) -> None:
    paths = [tmp_path / "clip.mkv", tmp_path / "clip.mp4"]
    live = line(*map(str, paths), size=(65, 49))
    for _ in range(12):
        live.send()
        time.sleep(0.03)
    live.transmitter.stop()
    for path in paths:
        capture = cv2.VideoCapture(str(path))
        count = 0
        while (picture := capture.read()[1]) is not None:
            assert picture.shape == (48, 64, 3)
            count += 1
        assert 6 <= count <= 12


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "2026-11-23T10:30:00.mkv"])
def test_a_clip_keeps_the_times_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitized_frame: Make, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    writer = ClipWriter(Path(name))
    for number, seconds in enumerate((0, 0.033, 0.1, 0.1, 0.05, 2.5)):  # it stood still, went back, and paused
        writer.write(sanitized_frame(number), seconds)
    writer.close()
    writer.close()
    assert times(tmp_path / name) == pytest.approx([0, 0.033, 0.1, 0.101, 0.102, 2.5])


def test_a_clip_without_a_frame_leaves_no_file(tmp_path: Path) -> None:
    ClipWriter(tmp_path / "clip.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_a_clip_refuses_another_size_and_a_single_column(tmp_path: Path, sanitized_frame: Make) -> None:
    with closing(ClipWriter(tmp_path / "clip.mkv")) as writer:
        with pytest.raises(SinkError, match="at least 2x2"):
            writer.write(sanitized_frame(size=(1, 40)), 0)
        writer.write(sanitized_frame(), 0)
        with pytest.raises(SinkError, match="start a new file"):
            writer.write(sanitized_frame(size=(32, 24)), 1)


def test_a_missing_codec_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesan.transmit.file.CODEC", "libx999")
    with pytest.raises(SinkError, match=r"has no libx999 here .*: .*libx264"):
        ClipWriter(tmp_path / "clip.mkv")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"precious")
    ring = RingWriter(100)
    with pytest.raises(SinkError, match="exists: name another file"):
        Transmitter(Config(out=(str(path),))).open(ring)
    ring.close()
    assert path.read_bytes() == b"precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: this needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_with_a_clear_error_and_the_other_file_whole(
    line: Callable[..., Line], small_disk: Path, tmp_path: Path
) -> None:
    live = line(str(small_disk / "full.mkv"), str(tmp_path / "good.mp4"), size=(320, 240), noise=True)
    assert str(live.failed()).startswith(f"{small_disk / 'full.mkv'}: the disk is full; make room")
    assert times(tmp_path / "good.mp4")


def test_a_disk_that_is_full_only_when_the_file_is_finished_is_an_error_too(
    line: Callable[..., Line], small_disk: Path
) -> None:
    live = line(str(small_disk / "clip.mp4"), size=(320, 240), noise=True)
    live.send()  # still in the encoder
    (small_disk / "filler").write_bytes(bytes(60 * 1024))
    with pytest.raises(SinkError, match="the disk is full"):
        live.transmitter.stop()
