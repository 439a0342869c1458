"""Sources: real clips and pictures, a real HTTP camera, a V4L2 device where there is one, and picamera2's double."""

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan.capture import DEMO_CLIP, Source, devices, open_source, opencv, picamera, source
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.capture.source import THREAD, Beat, LiveSource, fit, to_bgr
from edgesan.cli import configuration, parser
from edgesan.config import load
from edgesan.errors import CameraError, CameraLost, ConfigError, EndOfStream
from edgesan.faces import Detector
from edgesan.frames import Pixels
from tests.support import COMMAND, report

PATIENCE_S = 5.0


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Every grabbing thread ends with its source."""
    yield
    deadline_s = time.monotonic() + PATIENCE_S
    while any(thread.name == THREAD for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s, "a grabbing thread outlived its source"
        time.sleep(0.01)


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


def take(source: Source, timeout_s: float = PATIENCE_S) -> tuple[Pixels, int]:
    """Pixels (a copy) and number of the next frame."""
    with source.frame(timeout_s) as raw:
        return raw.pixels.copy(), raw.number


def play(source: Source, timeout_s: float = PATIENCE_S) -> Iterator[int]:
    """The indices of all frames, until the source raises."""
    while True:
        yield index_of(take(source, timeout_s)[0])


# --- what `--camera` may name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", ConfigError, "give an index"),
        ("picamera:x", ConfigError, "picamera or picamera:1"),
        ("ftp://host/clip.mp4", ConfigError, "rtsp, rtsps, http, https can be opened"),
        ("rtsp://", ConfigError, "malformed URL"),
        ("rtsp://host:99999/", ConfigError, "malformed URL"),
        ("987654", CameraError, "there is no /dev/video987654; cameras here: .*demo"),
        ("/dev/video987654", CameraError, "there is no /dev/video987654; cameras here: .*demo"),
        ("no-such-clip", CameraError, "there is no no-such-clip; cameras here"),
        ("/tmp", CameraError, "/tmp is neither a camera nor a file"),
        ("http://127.0.0.1:1/", CameraError, "nobody answers"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_to_do(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        open_source(spec, None, None)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "url",
    [
        "http://root:s3cret@127.0.0.1:1/video?user=root&pwd=s3cret",
        "http://127.0.0.1:1/user=root_password=s3cret_channel=1",
        "rtsp://root:s3cret@127.0.0.1:99999/",
        "rtsp://root:12/s3cret@127.0.0.1/",
        "ftp://root:s3cret@127.0.0.1/",
    ],
)
def test_a_password_is_in_no_message(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((CameraError, ConfigError)) as caught:
        open_source(url, None, None)
    messages = [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    told = "".join(messages) + "".join(capfd.readouterr())
    assert "s3cret" not in told
    assert "root" not in told


def test_a_device_that_is_no_camera_is_refused() -> None:
    with pytest.raises(CameraError, match=r"another program holds it .*fuser -v /dev/null"):
        open_source("/dev/null", None, None)


# --- clips ------------------------------------------------------------------------------------------------------------


def test_the_demo_is_the_bundled_clip_lent_for_one_block() -> None:
    with closing(open_source("demo", None, None)) as source:
        assert (source.name, source.size) == ("demo", (480, 270))
        with source.frame(PATIENCE_S) as raw:
            assert raw.pixels.dtype == np.uint8
            assert raw.pixels.shape == (270, 480, 3)
            assert raw.captured_ns <= raw.received_ns <= time.monotonic_ns()
        with pytest.raises(RuntimeError, match="given back"):
            _ = raw.pixels


def test_a_clip_that_is_not_paced_gives_every_frame_in_order_and_then_ends(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 20, fps=10)
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        assert source.frame_count == 20
        seen = []
        for _ in range(20):
            with source.frame(PATIENCE_S) as raw:
                seen.append((index_of(raw.pixels), raw.number, round(source.position_s, 3)))
        assert seen == [(i, i + 1, i / 10) for i in range(20)]
        for _ in range(2):
            with pytest.raises(EndOfStream, match=r"clip\.mp4 is over"):
                source.frame(PATIENCE_S)


@pytest.mark.parametrize(("suffix", "code"), [("avi", "MJPG"), ("mkv", "mp4v"), ("mp4", "mp4v"), ("webm", "VP80")])
def test_positions_are_those_of_the_container(tmp_path: Path, suffix: str, code: str) -> None:
    clip = write_clip(tmp_path / f"clip.{suffix}", 12, code=code)
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        positions = [source.position_s for _ in range(12) if take(source)]
    assert positions == pytest.approx([i / 30 for i in range(12)], abs=0.002)


def test_a_stream_without_time_stamps_goes_by_its_frame_rate(tmp_path: Path) -> None:
    clip = tmp_path / "bare.mjpeg"
    clip.write_bytes(b"".join(cv2.imencode(".jpg", flat(i))[1].tobytes() for i in range(8)))
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        assert source.frame_count is None
        positions = [source.position_s for _ in range(8) if take(source)]
    assert all(later > earlier for earlier, later in itertools.pairwise(positions))


def test_a_paced_clip_takes_as_long_as_it_lasts(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 10, fps=20)
    started_s = time.monotonic()
    with closing(open_source(str(clip), None, None)) as source, pytest.raises(EndOfStream):
        list(play(source))
    assert time.monotonic() - started_s >= 9 / 20


def test_a_slow_consumer_of_a_paced_clip_gets_the_newest_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 49, fps=50)
    with closing(open_source(str(clip), None, None)) as source:
        _, first = take(source)
        time.sleep(0.4)
        with source.frame(PATIENCE_S) as raw:
            assert raw.number - first >= 15
            assert index_of(raw.pixels) == raw.number - 1
            assert raw.received_ns - raw.captured_ns < 2e9


def test_a_long_stop_is_not_caught_up_with(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 50, fps=50)
    with closing(open_source(str(clip), None, None)) as source:
        _, first = take(source)
        time.sleep(opencv.MOST_LATE_S + 0.2)
        assert take(source)[1] == first + 1


def test_a_loop_goes_on_after_the_end_with_growing_positions(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 5, fps=100)
    with closing(FileSource(clip, None, None, loop=True, paced=False)) as source:
        seen = [(index_of(take(source)[0]), source.position_s) for _ in range(12)]
    assert [index for index, _ in seen] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [position for _, position in seen] == pytest.approx([i / 100 for i in range(12)], abs=0.002)


def test_a_loop_whose_file_disappears_is_an_error(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 3)
    with closing(FileSource(clip, None, None, loop=True, paced=False)) as source:
        clip.unlink()
        with pytest.raises(CameraError, match=r"clip\.mp4 is not a clip that can be read"):
            list(itertools.islice(play(source), 4))


def test_fps_drops_frames_of_a_clip(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 12, fps=30)
    with closing(FileSource(clip, None, 10, loop=False, paced=False)) as source:
        assert list(itertools.islice(play(source), 4)) == [0, 3, 6, 9]
        assert source.frame_count is None


@pytest.mark.parametrize(
    ("asked", "got"),
    [((240, 240), (240, 135)), ((160, 45), (80, 45)), ((4000, 4000), (480, 270)), ((1, 1), (1, 1))],
)
def test_a_picture_is_scaled_down_to_within_the_size_and_never_up(asked: tuple[int, int], got: tuple[int, int]) -> None:
    with closing(FileSource(DEMO_CLIP, asked, None, loop=False, paced=False)) as source:
        assert source.size == got
        assert take(source)[0].shape == (got[1], got[0], 3)


def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "50%02d.mp4", 3)
    with closing(open_source(str(clip), None, None)) as source:
        assert next(play(source)) == 0
    picture = tmp_path / "at%d.png"
    cv2.imwrite(str(picture), flat(7))
    assert index_of(read_picture(picture)) == 7


def test_a_clip_that_is_cut_short_plays_to_the_cut(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 50)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    seen: list[int] = []
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source, pytest.raises(EndOfStream):
        seen.extend(play(source))
    assert seen == list(range(len(seen)))
    assert 5 < len(seen) < 50


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of each way to be no clip."""
    kinds = ("text", "empty", "random", "cut", "playlist", "folder", "pipe", "missing")
    made = {kind: folder / f"{kind}.mp4" for kind in kinds}
    made["text"].write_text("hello world\n" * 100)
    made["empty"].touch()
    made["random"].write_bytes(np.random.default_rng(1).bytes(5000))
    made["cut"].write_bytes(DEMO_CLIP.read_bytes()[:60_000])  # its index was at the end
    made["playlist"].write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/a\n#EXT-X-ENDLIST\n")
    made["folder"].mkdir()
    os.mkfifo(made["pipe"])
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "not a clip that can be read"),
        ("empty", r"empty \(0 bytes\)"),
        ("random", "not a clip that can be read"),
        ("cut", "not a clip that can be read"),
        ("playlist", "not a clip that can be read"),
        ("folder", "is a folder"),
        ("pipe", "is a special file"),
        ("missing", "No such file"),
    ],
)
def test_what_is_no_clip_is_refused_in_our_words_only(
    tmp_path: Path, kind: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bad_files(tmp_path)[kind]
    with pytest.raises(CameraError, match=words):
        FileSource(path, None, None, loop=False, paced=False)
    with pytest.raises(CameraError):
        open_source(str(path), None, None)
    with pytest.raises(CameraError):
        read_picture(path)
    assert "".join(capfd.readouterr()) == ""


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((48, 64), 100, np.uint8),
        np.full((48, 64, 3), 100, np.uint8),
        np.full((48, 64, 4), 100, np.uint8),
        np.full((48, 64), 100 * 257, np.uint16),
        np.full((48, 64, 3), 100 * 257, np.uint16),
        np.full((48, 64, 4), 100 * 257, np.uint16),
        np.full((1, 1, 3), 100, np.uint8),
        np.full((5, 3, 3), 100, np.uint8),
        np.full((2160, 3840, 3), 100, np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_every_kind_of_picture_becomes_bgr_of_8_bits(tmp_path: Path, pixels: NDArray[Any]) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    for bgr in (read_picture(path), to_bgr(pixels)):
        assert bgr.dtype == np.uint8
        assert bgr.shape == (*pixels.shape[:2], 3)
        assert (bgr == 100).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_pixels_of_another_kind_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(CameraError, match="expected 8 or 16 bits"):
        to_bgr(pixels)


def test_nothing_is_copied_without_need() -> None:
    pixels = flat(3)
    assert to_bgr(pixels) is pixels
    assert fit(pixels, (64, 48)) is pixels


def test_a_picture_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    encoded = cv2.imencode(".jpg", np.random.default_rng(2).integers(0, 255, (50, 50, 3), np.uint8))[1].tobytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(CameraError, match="not a picture that can be read"):
        read_picture(path)


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16000, 16000, 8, 0, 0, 0, 0))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    with pytest.raises(CameraError, match="damaged"):
        read_picture(path)


def test_a_picture_is_shown_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), flat(9, (200, 100)))
    with closing(open_source(str(path), (100, 100), 50)) as source:
        assert source.size == (100, 50)
        seen = [take(source) for _ in range(5)]
    assert [number for _, number in seen] == [1, 2, 3, 4, 5]
    assert {index_of(pixels) for pixels, _ in seen} == {9}


# --- live cameras -----------------------------------------------------------------------------------------------------


def admitted(fps: float | None, camera_fps: float) -> float:
    """Frames a second that pass, in ten seconds of a camera with 3 % of jitter."""
    moments = np.arange(round(10 * camera_fps)) / camera_fps
    jitter = np.random.default_rng(3).normal(0, 0.03 / camera_fps, len(moments))
    beat = Beat(fps)
    return sum(beat.admits(float(at)) for at in np.sort(moments + jitter)) / 10


@pytest.mark.parametrize(("fps", "camera"), [(30, 30), (30, 30.3), (15, 30), (10, 12), (7, 30), (24, 60), (60, 30)])
def test_the_beat_keeps_the_mean_rate_in_spite_of_jitter(fps: float, camera: float) -> None:
    assert admitted(fps, camera) == pytest.approx(min(fps, camera), abs=0.3)


def test_without_a_rate_all_frames_pass() -> None:
    assert admitted(None, 30) == 30


class Script:
    """A Device that plays a list: pictures, or None for a damaged one. Then it is lost; or hangs until `freed`."""

    def __init__(self, *steps: Pixels | None, hang: bool = False) -> None:
        self._steps = iter(steps)
        self._now: Pixels | None = None
        self.over, self.freed, self.closed = threading.Event(), threading.Event(), threading.Event()
        if not hang:
            self.freed.set()

    def grab(self) -> int:
        try:
            self._now = next(self._steps)
        except StopIteration:
            self.over.set()
            self.freed.wait(PATIENCE_S)
            raise CameraLost("the script is over") from None
        time.sleep(0.02)
        return time.monotonic_ns()

    def pixels(self) -> Pixels | None:
        return self._now

    def close(self) -> None:
        self.closed.set()


def test_a_damaged_picture_costs_one_frame() -> None:
    seen: list[int] = []
    source = LiveSource("script", Script(flat(1), None, flat(2), None, None, flat(3)), None, None)
    with closing(source), pytest.raises(CameraLost, match="script is over"):
        seen.extend(play(source))
    assert seen == sorted(set(seen))
    assert seen[-1] == 3


def test_a_picture_that_changes_its_size_is_a_lost_camera() -> None:
    source = LiveSource("script", Script(flat(1), flat(2, (32, 32))), None, None)
    with closing(source), pytest.raises(CameraLost, match="changed its picture from 64x48 to 32x32"):
        list(play(source))


def test_a_camera_without_a_first_picture_is_an_error_and_is_closed() -> None:
    device = Script(None)
    with pytest.raises(CameraError, match="opened but gave no picture"):
        LiveSource("script", device, None, None)
    assert device.closed.is_set()


def test_a_hanging_camera_is_lost_within_the_timeout_and_does_not_hold_close_up() -> None:
    device = Script(flat(1), hang=True)
    source = LiveSource("script", device, None, None)
    take(source)
    started_s = time.monotonic()
    with pytest.raises(CameraLost, match=r"script gave no picture for 0\.2 s"):
        take(source, timeout_s=0.2)
    source.close()
    assert time.monotonic() - started_s < 3
    assert not device.closed.is_set()  # its thread still has it
    device.freed.set()
    assert device.closed.wait(PATIENCE_S)


def test_no_frame_is_lent_twice_nor_after_close() -> None:
    device = Script(flat(1), flat(2), flat(3), hang=True)
    source = LiveSource("script", device, None, None)
    assert device.over.wait(PATIENCE_S)
    assert take(source)[1] == 3  # the first two were lost: only the newest is kept
    with pytest.raises(CameraLost, match="gave no picture"):
        take(source, timeout_s=0.05)
    device.freed.set()
    source.close()
    source.close()
    with pytest.raises(CameraLost):
        take(source)


def test_the_timeout_does_not_count_the_pace_that_was_asked_for() -> None:
    source = LiveSource("script", Script(*(flat(i) for i in range(40)), hang=False), None, 2.5)
    with closing(source):
        assert [take(source, timeout_s=0.2)[0].shape for _ in range(2)] == [(48, 64, 3)] * 2


class Quiet(ThreadingHTTPServer):
    """Says nothing of viewers who hang up."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class HttpCamera:
    """An MJPEG camera over HTTP, as cheap network cameras are. It can be unplugged, and can fall silent."""

    def __init__(self) -> None:
        self.sent = 0
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
                        part = cv2.imencode(".jpg", flat(camera.sent, (320, 240)))[1].tobytes()
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


@pytest.fixture
def http_camera() -> Iterator[HttpCamera]:
    camera = HttpCamera()
    yield camera
    camera.unplug()


def test_a_network_camera_gives_its_newest_frame_however_slow_the_consumer_is(http_camera: HttpCamera) -> None:
    with closing(open_source(http_camera.url, (160, 160), None)) as source:
        assert (source.name, source.size) == (f"http://127.0.0.1:{http_camera.port}", (160, 120))
        numbers = []
        for _ in range(3):
            time.sleep(0.7)
            pixels, number = take(source)
            numbers.append(number)
            behind = (http_camera.sent - 1 - index_of(pixels)) % 50
            assert behind < 12, "about 20 pictures were sent meanwhile: this one comes from a backlog"
        assert numbers[1] - numbers[0] > 3


def test_fps_drops_frames_of_a_network_camera(http_camera: HttpCamera) -> None:
    with closing(open_source(http_camera.url, None, 5)) as source:
        take(source)
        started_s = time.monotonic()
        for _ in range(4):
            take(source)
        assert time.monotonic() - started_s > 0.5


def test_a_network_camera_that_goes_away_is_lost_and_can_be_opened_again(http_camera: HttpCamera) -> None:
    with closing(open_source(http_camera.url, None, None)) as source:
        take(source)
        http_camera.unplug()
        with pytest.raises(CameraLost, match="unplugged, switched off or out of reach"):
            list(play(source))
    with pytest.raises(CameraError, match=rf"cannot open http://127\.0\.0\.1:{http_camera.port}: nobody answers"):
        open_source(http_camera.url, None, None)
    http_camera.plug_in()
    with closing(open_source(http_camera.url, None, None)) as source:
        take(source)


def test_a_network_camera_that_falls_silent_is_lost_within_the_timeout(
    http_camera: HttpCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencv, "NETWORK_TIMEOUT_MS", 1000)
    with closing(open_source(http_camera.url, None, None)) as source:
        take(source)
        http_camera.silent.set()
        started_s = time.monotonic()
        with pytest.raises(CameraLost, match=r"gave no picture for 0\.4 s"):
            list(play(source, timeout_s=0.4))
        assert time.monotonic() - started_s < 3


def test_a_recording_behind_a_url_is_no_camera(http_camera: HttpCamera) -> None:
    with pytest.raises(CameraError, match="is a recording, not a camera: download it"):
        open_source(f"http://127.0.0.1:{http_camera.port}/clip.mp4", None, None)


def test_a_closed_port_is_refused_quickly() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        started_s = time.monotonic()
        with pytest.raises(CameraError, match="nobody answers"):
            open_source(f"rtsp://127.0.0.1:{reserved.getsockname()[1]}/stream", None, None)
        assert time.monotonic() - started_s < 5


class Elsewhere:
    """An address that a camera may send us to; what is asked of it is kept. It is of this machine, and so could be a router's."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port, self.asked = self._socket.getsockname()[1], list[bytes]()

    def close(self) -> list[bytes]:
        """Whoever has connected meanwhile, with what he said."""
        with suppress(TimeoutError):
            while True:
                with self._socket.accept()[0] as asking:
                    asking.settimeout(0.05)
                    with suppress(TimeoutError):
                        self.asked.append(asking.recv(4096))
        self._socket.close()
        return self.asked


class Redirecting:
    """A camera, of HTTP or RTSP, that answers all questions after the first few in this way."""

    def __init__(self, *answers: bytes, encryption: ssl.SSLContext | None = None) -> None:
        self._answers, self._encryption, self.asked = list(answers), encryption, list[bytes]()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):  # the socket is closed
            while True:
                viewer = self._socket.accept()[0]
                with (
                    suppress(OSError),
                    self._encryption.wrap_socket(viewer, server_side=True) if self._encryption else viewer as viewer,
                ):
                    while question := viewer.recv(4096):
                        self.asked.append(question.partition(b"\r\n")[0])
                        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                        number = re.search(rb"CSeq: *\d+\r\n", question)
                        viewer.sendall(answer.replace(b"CSEQ", number[0] if number else b""))
                        if number is None:
                            break

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
def test_a_network_camera_that_redirects_is_not_followed(scheme: str, status: str) -> None:
    elsewhere = Elsewhere()
    encryption = None
    if scheme == "https":
        encryption = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        pytest.importorskip("trustme").CA().issue_cert("127.0.0.1").configure_cert(encryption)
    protocol, to = ("RTSP/1.0", "rtsp") if scheme == "rtsp" else ("HTTP/1.1", "http")
    answer = f"{protocol} {status}\r\nCSEQLocation: {to}://root:s3cret@127.0.0.1:{elsewhere.port}/s3cret\r\nContent-Length: 0\r\n\r\n"
    with closing(Redirecting(answer.encode(), encryption=encryption)) as camera:
        with pytest.raises(CameraError) as caught:
            open_source(f"{scheme}://root:s3cret@127.0.0.1:{camera.port}/s3cret", None, None)
        assert camera.asked, "nobody asked it"
    told = str(caught.value)
    assert told.startswith(
        f"{scheme}://127.0.0.1:{camera.port} sends us to {to}://127.0.0.1:{elsewhere.port}, and is not followed"
    )
    assert told.endswith("If you trust that one, give it")
    assert "s3cret" not in told
    assert elsewhere.close() == []
    report(f"a camera of {scheme} redirects ({status})", "refused, the other address is not asked", 0)


def test_a_camera_that_redirects_only_the_second_question_is_not_followed_either() -> None:
    """The first is ours, the second FFmpeg's."""
    if int(re.search(r"avformat: *YES \((\d+)", cv2.getBuildInformation())[1]) < 62:  # type: ignore[index]
        pytest.skip("this OpenCV has an FFmpeg that knows no max_redirects")
    elsewhere = Elsewhere()
    fine = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
    moved = f"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:{elsewhere.port}/\r\n\r\n".encode()
    with closing(Redirecting(fine, moved)) as camera:
        with pytest.raises(CameraError, match="cannot open"):
            open_source(f"http://127.0.0.1:{camera.port}/", None, None)
        assert len(camera.asked) == 2
    assert elsewhere.close() == []
    report("a camera of http redirects the second question only", "not opened, the other address is not asked", 0)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (b"Location: /login?s3cret\r\n", "another path of its own"),
        (b"", "another path of its own"),
        (b"Location: http://[::1/\r\n", "an address that is none"),
        (b"location:http://h\x1b[2J/\r\n", "an address that is none"),
        (b"Location: \xff\xfe\r\n", "another path of its own"),
    ],
)
def test_whatever_a_redirect_names_is_told_without_harm(location: bytes, words: str) -> None:
    with (
        closing(Redirecting(b"HTTP/1.1 302 Found\r\n" + location + b"\r\n")) as camera,
        pytest.raises(CameraError, match=f"sends us to {words}, and is not followed") as caught,
    ):
        open_source(f"http://127.0.0.1:{camera.port}/", None, None)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer", [b"", b"\r\n", b"\0" * 9, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + bytes(99999), b"x" * 99999]
)
def test_what_is_no_camera_is_an_error(answer: bytes) -> None:
    with closing(Redirecting(answer)) as camera, pytest.raises(CameraError, match="cannot open http://127"):
        open_source(f"http://127.0.0.1:{camera.port}/", None, None)


@pytest.mark.parametrize("place", ["http", "file"])
def test_a_playlist_behind_a_url_opens_nothing_else(tmp_path: Path, place: str) -> None:
    elsewhere = Elsewhere()
    secret = write_clip(tmp_path / "secret.mkv", 20)
    inner = f"http://127.0.0.1:{elsewhere.port}/a.ts" if place == "http" else f"file://{secret}"
    lists = {
        "application/vnd.apple.mpegurl": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{inner}\n",
        "text/plain": f"ffconcat version 1.0\nfile {inner}\n",
    }
    for kind, text in lists.items():
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        with closing(Redirecting(answer.encode())) as camera, pytest.raises(CameraError, match="cannot open"):
            open_source(f"http://127.0.0.1:{camera.port}/live.m3u8", None, None)
    assert elsewhere.close() == []
    report(f"a camera of http sends a playlist of {place} addresses", "not opened, nothing else is asked", 0)


def test_what_ffmpeg_was_told_is_told_of_one_camera_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(opencv.VARIABLE, "rtsp_transport;udp")
    with opencv.ffmpeg_options("max_redirects;0"):
        assert os.environ[opencv.VARIABLE] == "rtsp_transport;udp|max_redirects;0"
    assert os.environ[opencv.VARIABLE] == "rtsp_transport;udp"
    monkeypatch.delenv(opencv.VARIABLE)
    with opencv.ffmpeg_options("max_redirects;0"):
        assert os.environ[opencv.VARIABLE] == "rtsp_transport;tcp|max_redirects;0"
    assert opencv.VARIABLE not in os.environ


# --- turned -----------------------------------------------------------------------------------------------------------

TURNED = {0: None, 90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def hung(pixels: Pixels, rotate: int) -> Pixels:
    """As a camera sees it that hangs so that its picture must be turned by this."""
    code = TURNED[(360 - rotate) % 360]
    return pixels if code is None else np.asarray(cv2.rotate(pixels, code), np.uint8)


def write_turned(path: Path, frames: list[Pixels], rotate: int) -> Path:
    """Without loss: what comes out is what went in."""
    seen = [hung(pixels, rotate) for pixels in frames]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 30, (seen[0].shape[1], seen[0].shape[0]))
    assert writer.isOpened()
    for pixels in seen:
        writer.write(pixels)
    writer.release()
    return path


@pytest.mark.parametrize("rotate", TURNED)
def test_a_clip_of_a_camera_that_hangs_otherwise_gives_the_frames_of_one_that_hangs_upright(
    tmp_path: Path, clip: list[Pixels], rotate: int
) -> None:
    upright = write_turned(tmp_path / "upright.avi", clip[:10], 0)
    turned = write_turned(tmp_path / "turned.avi", clip[:10], rotate)
    for size in (None, (240, 240), (100, 300)):
        with (
            closing(FileSource(upright, size, None, loop=False, paced=False)) as one,
            closing(FileSource(turned, size, None, rotate, loop=False, paced=False)) as other,
        ):
            assert one.size == other.size
            for _ in range(10):
                pixels, number = take(one)
                same, same_number = take(other)
                assert (number, pixels.shape) == (same_number, same.shape)
                # Scaling by area is not quite the same from the other side: by one level.
                assert np.abs(pixels.astype(int) - same).max() <= (0 if size is None else 1)
                assert (same.shape[1], same.shape[0]) == other.size


@pytest.mark.parametrize("rotate", TURNED)
def test_everything_that_can_be_a_camera_is_turned(
    tmp_path: Path, clip: list[Pixels], pi: Any, http_camera: HttpCamera, rotate: int
) -> None:
    across = rotate in (90, 270)
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), hung(clip[0], rotate))
    assert (read_picture(picture, rotate) == clip[0]).all()
    with closing(open_source(str(picture), (240, 240), 50, rotate)) as source:
        assert source.size == (240, 135)
    with closing(open_source(str(write_turned(tmp_path / "clip.avi", clip[:3], rotate)), None, None, rotate)) as source:
        assert (take(source)[0] == clip[0]).all()
    with closing(open_source("demo", None, None, rotate)) as source:
        assert source.size == ((270, 480) if across else (480, 270))
    with closing(LiveSource("script", Script(*[hung(clip[5], rotate)] * 9), None, None, rotate)) as source:
        assert (take(source)[0] == clip[5]).all()
    with closing(open_source(http_camera.url, None, None, rotate)) as source:
        assert source.size == ((240, 320) if across else (320, 240))
    with closing(open_source("picamera", (240, 320), None, rotate)) as source:
        assert source.size == (240, 320), "what is asked for is meant after the turn"
        assert pi.opened[-1].camera_config["main"]["size"] == ((320, 240) if across else (240, 320))


@pytest.mark.parametrize("wrong", [45, -90, 360, 1])
def test_the_command_line_and_the_file_take_four_turns(tmp_path: Path, wrong: int) -> None:
    toml = tmp_path / "edgesan.toml"
    for right in TURNED:
        toml.write_text(f"rotate = {right}\n")
        assert load(toml, {}).rotate == right
        arguments = parser().parse_args(["run", "--rotate", str(right)])
        assert configuration(arguments).rotate == right
    toml.write_text(f"rotate = {wrong}\n")
    with pytest.raises(ConfigError, match=f"rotate is {wrong}: choose one of 0, 90, 180, 270, degrees clockwise"):
        load(toml, {})
    for text in ("true", '"90"', "90.0"):
        toml.write_text(f"rotate = {text}\n")
        with pytest.raises(ConfigError, match="wrong type; degrees clockwise"):
            load(toml, {})


def test_a_picture_and_a_clip_are_turned_when_they_are_sanitized(tmp_path: Path, clip: list[Pixels]) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), hung(clip[0], 90))
    write_turned(tmp_path / "in.avi", clip[:5], 90)
    for given, target, frames in (("in.png", "out.png", 1), ("in.avi", "out.mkv", 5)):
        asked = [*COMMAND, "sanitize", str(tmp_path / given), str(tmp_path / target), "--force", "--json"]
        faces = []
        for more in ((), ("--rotate", "90")):
            done = subprocess.run([*asked, *more], capture_output=True, text=True, check=True)
            faces.append(json.loads(done.stdout)["faces"])
        assert faces[0] < faces[1] == 2 * frames
    assert read_picture(tmp_path / "out.png").shape == clip[0].shape
    with closing(FileSource(tmp_path / "out.mkv", None, None, loop=False, paced=False)) as out:
        assert out.size == (480, 270)


def test_a_picture_that_is_not_turned_is_not_copied() -> None:
    pixels = flat(3)
    assert source.upright(pixels, None, 0) is pixels


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_the_faces_of_a_camera_that_hangs_otherwise_are_found_once_it_is_turned(
    tmp_path: Path, clip: list[Pixels], detector: Detector, rotate: int
) -> None:
    path = write_turned(tmp_path / "clip.avi", clip[::10], rotate)

    def found(by: int) -> int:
        with closing(FileSource(path, None, None, by, loop=False, paced=False)) as source:
            return sum(len(detector(take(source)[0])) for _ in clip[::10])

    upright = sum(len(detector(pixels)) for pixels in clip[::10])
    assert upright >= len(clip[::10])
    assert found(rotate) == upright
    missed = upright - found(0)
    report(
        f"a camera that hangs turned by {rotate} degrees",
        f"of {upright} faces {missed} are missed, with rotate none",
        0,
    )
    assert missed > upright / 2


def test_a_real_v4l2_camera_gives_frames() -> None:
    usable = [device for device in devices.list_devices() if device.kind == "v4l2" and device.usable]
    if not usable:
        pytest.skip("this machine has no V4L2 camera")
    with closing(open_source(usable[0].spec, (640, 480), None)) as source:
        numbers = [take(source)[1] for _ in range(5)]
    assert numbers == sorted(set(numbers))


# --- picamera2 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of picamera2's double, which is imported in place of the real one; its attributes are the handles."""
    spec = importlib.util.spec_from_file_location("picamera2", Path(__file__).parent / "fakes" / "picamera2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "picamera2", module)
    return module.Picamera2


def test_a_pi_camera_gives_bgr_frames_and_all_its_buffers_back(pi: Any) -> None:
    with closing(open_source("picamera", (320, 240), 60)) as source:
        assert (source.name, source.size) == ("picamera:0", (320, 240))
        numbers = []
        for _ in range(12):  # three times its buffers
            with source.frame(PATIENCE_S) as raw:
                assert raw.pixels[0, 0, 0] == 200  # blue comes first
                assert 0 <= raw.received_ns - raw.captured_ns < 2e9
                numbers.append(raw.number)
        assert numbers == sorted(set(numbers))
        camera = pi.opened[-1]
        assert camera.camera_config["main"]["format"] == "RGB888"
        assert camera.camera_config["controls"]["FrameRate"] == 60
    assert not camera.is_open
    assert camera.held == 0


def test_a_pi_camera_keeps_its_own_size_and_rate_unless_asked(pi: Any) -> None:
    with closing(open_source("picamera:0", None, None)) as source:
        assert source.size == (1280, 720)
        assert "FrameRate" not in pi.opened[-1].camera_config["controls"]


def test_a_pi_camera_tells_the_size_that_it_gives(pi: Any) -> None:
    with closing(open_source("picamera", (321, 241), None)) as source:
        assert source.size == (320, 240)


def test_a_hanging_pi_camera_is_lost_within_the_timeout_and_closed(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 0.5)
    with closing(open_source("picamera", (64, 48), None)) as source:
        take(source)
        monkeypatch.setattr(pi, "hang", True)
        with pytest.raises(CameraLost, match=r"gave no picture for 0\.2 s"):
            list(play(source, timeout_s=0.2))
        with pytest.raises(CameraLost, match="gives no pictures any more"):
            take(source)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_without_time_stamps_counts_from_arrival(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "stamps", False)
    with closing(open_source("picamera", (64, 48), None)) as source, source.frame(PATIENCE_S) as raw:
        assert 0 <= raw.received_ns - raw.captured_ns < 2e9


def test_a_pipeline_without_an_isp_gives_the_same_colours(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "gives", "NV12")
    with closing(open_source("picamera", (64, 48), None)) as source, source.frame(PATIENCE_S) as raw:
        assert raw.pixels.shape == (48, 64, 3)
        assert (raw.pixels[..., 0] > 200).all()
        assert (raw.pixels[..., 1:] < 60).all()


def test_a_pi_camera_of_an_unknown_format_is_refused_and_closed(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "gives", "YUV420")
    with pytest.raises(CameraError, match="gives YUV420, expected RGB888 or NV12"):
        open_source("picamera", None, None)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_can_be_opened_after_an_opening_that_failed_in_whatever_way(
    pi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(pi, "configure", lambda *_: {}["a bug of the library"])
        with pytest.raises(KeyError):
            open_source("picamera", None, None)
    assert not pi.opened[-1].is_open
    with closing(open_source("picamera", (64, 48), None)) as source:
        take(source)


def test_a_pi_camera_is_not_opened_while_it_is_still_given_back(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 1.5)
    with closing(open_source("picamera", (64, 48), None)) as source:
        monkeypatch.setattr(pi, "hang", True)
        with pytest.raises(CameraLost):
            list(play(source, timeout_s=0.2))
        source.close()  # its thread still waits for a picture
        monkeypatch.setattr(pi, "hang", False)
        with closing(open_source("picamera", (64, 48), None)) as again:
            take(again)


def test_a_process_opens_one_pi_camera_at_a_time(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 0.1)
    with (
        closing(open_source("picamera", (64, 48), None)),
        pytest.raises(CameraError, match="this process has a camera open"),
    ):
        open_source("picamera:1", (64, 48), None)


def test_a_boot_time_becomes_the_same_moment_of_the_monotonic_clock() -> None:
    before_ns = time.monotonic_ns()
    now_ns = picamera.boot_to_monotonic_ns(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert before_ns - 1e6 <= now_ns <= time.monotonic_ns() + 1e6


def test_a_busy_pi_camera_is_refused(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "busy", True)
    with pytest.raises(CameraError, match=r"did not complete.*another program holds it"):
        open_source("picamera", None, None)


def test_a_pi_camera_that_finds_no_memory_is_refused_and_closed(pi: Any) -> None:
    with pytest.raises(CameraError, match=r"Cannot allocate memory.*contiguous memory is used up"):
        open_source("picamera", (7680, 4320), None)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_that_is_not_there_is_refused_with_those_that_are(pi: Any) -> None:
    assert len(pi.cameras) == 2
    with pytest.raises(CameraError, match="no picamera:5; libcamera finds: imx708, UVC Camera"):
        open_source("picamera:5", None, None)


def test_without_picamera2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(CameraError, match=r"apt install python3-picamera2.*--system-site-packages"):
        open_source("picamera", None, None)


def test_a_picamera2_made_for_another_numpy_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picamera2.py").write_text('raise ValueError("numpy.dtype size changed")\n')
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CameraError, match=r"numpy\.dtype size changed"):
        open_source("picamera", None, None)


def test_the_double_has_the_trap_that_close_must_avoid(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = pi(0)
    camera.configure(camera.create_video_configuration(main={"format": "RGB888", "size": (64, 48)}))
    camera.start()
    monkeypatch.setattr(pi, "hang", True)
    with pytest.raises(TimeoutError):
        camera.capture_request(wait=0.01)
    with pytest.raises(AssertionError, match="for ever"):
        camera.stop()


# --- devices ----------------------------------------------------------------------------------------------------------


def answer(driver: str, of_all: int, of_this: int) -> bytes:
    """What VIDIOC_QUERYCAP fills in."""
    return devices.CAPABILITY.pack(driver.encode(), b"A Camera", b"usb-1", 0x060C00, of_all, of_this)


@pytest.mark.parametrize(
    ("driver", "of_all", "of_this", "usable"),
    [
        ("uvcvideo", 0x84A00001, 0x04200001, True),
        ("uvcvideo", 0x84A00001, 0x04A00000, None),  # the same camera's metadata node
        ("vivid", 0x00000001, 0x00000000, True),  # an old driver, without capabilities of the node
        ("bcm2835-codec", 0x84204000, 0x04204000, None),  # memory to memory
        ("unicam", 0x84A00001, 0x05200001, False),
        ("rp1-cfe", 0x84A01001, 0x04A01000, False),
    ],
)
def test_a_node_is_listed_if_it_captures_video(driver: str, of_all: int, of_this: int, usable: bool | None) -> None:
    device = devices.described(Path("/dev/video7"), answer(driver, of_all, of_this))
    if usable is None:
        assert device is None
    else:
        assert device is not None
        assert (device.spec, device.name, device.driver) == ("/dev/video7", "A Camera", driver)
        assert device.usable is usable


def test_only_the_demo_is_listed_where_there_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    listed = devices.list_devices(tmp_path)
    assert [(device.spec, device.usable) for device in listed] == [("demo", True)]
    assert devices.table(listed).splitlines()[1].startswith("demo ")


def test_a_node_that_is_no_device_is_listed_with_a_note(tmp_path: Path) -> None:
    for name in ("video10", "video2", "videofoo"):
        (tmp_path / name).touch()
    listed = devices.list_devices(tmp_path)
    assert [device.spec for device in listed[:2]] == [str(tmp_path / "video2"), str(tmp_path / "video10")]
    assert not listed[0].usable
    assert "does not answer" in devices.table(listed)
    assert json.loads(json.dumps([dataclasses.asdict(device) for device in listed]))[0]["kind"] == "v4l2"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def node() -> Iterator[Callable[[int], Path]]:
    """Makes a stand-in for a device node, of a given mode, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def make(mode: int) -> Path:
            path = Path(folder) / "video0"
            path.touch()
            path.chmod(mode)
            return path

        yield make


def test_a_node_without_permission_is_listed_with_the_cure(node: Callable[[int], Path]) -> None:
    path = node(0o000)
    with as_nobody():
        device = devices.query(path)
    assert device is not None
    assert not device.usable
    assert "no permission: only root may; a udev rule must give it to the group video" in device.note


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to the group video")
def test_the_cure_for_permission_names_the_group(node: Callable[[int], Path]) -> None:
    path = node(0o660)
    os.chown(path, 0, 44)  # video, on Debian
    assert devices.permission_cure(path) == "sudo usermod -aG video root, then log in again"


def test_pi_cameras_are_listed_by_their_place_and_usb_ones_by_v4l2_only(pi: Any, tmp_path: Path) -> None:
    assert pi.cameras[1]["Model"] == "UVC Camera"
    listed = devices.list_devices(tmp_path)
    assert [(device.spec, device.name, device.kind) for device in listed[:-1]] == [("picamera:0", "imx708", "picamera")]
