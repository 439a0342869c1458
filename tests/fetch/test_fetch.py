"""A network camera behind the wall: real RTSP and HTTP cameras, and a process that fetches and was taken over."""

import itertools
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from edgesan.capture import Source, open_source
from edgesan.errors import CameraError, CameraLost
from edgesan.fetch import camera
from edgesan.fetch.packets import CODECS, Claims, Fault, Header, Packet, Reader, Reason, pack, sender
from tests.capture.support import HttpCamera, flat, index_of, open_camera, play, take
from tests.support import Running, child, free_port, report
from tests.support import run as run_command

SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_CAMERA = Path(__file__).with_name("rtsp_camera.py")
BACK_S = 30  # a busy machine


@contextmanager
def rtsp_camera(port: int, *credentials: str) -> Iterator[subprocess.Popen[str]]:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0');"
    probe += " from gi.repository import Gst; Gst.init(None); assert Gst.ElementFactory.find('x264enc')"
    if subprocess.run([SYSTEM_PYTHON, "-c", probe], check=False, capture_output=True).returncode:
        pytest.skip("apt install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-ugly")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [SYSTEM_PYTHON, str(RTSP_CAMERA), str(port), *credentials]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@contextmanager
def running(*options: str) -> Iterator[Running]:
    run = Running(*options)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.process.communicate(timeout=10)


def pictures_flow(run: Running) -> None:
    run.until("camera_up", True, BACK_S)


def lost(run: Running) -> int:
    totals = run.status()["totals"]
    assert isinstance(totals, dict)
    return int(totals.get("camera_lost", 0))


def switch(run: Running, on: str) -> None:
    url = f"http://127.0.0.1:{run.port}/api/privacy"
    wish = urllib.request.Request(url, f'{{"on": {on}}}'.encode(), {"Content-Type": "application/json"}, method="PUT")
    urllib.request.urlopen(wish, timeout=5).close()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BACK_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.slow
def test_an_rtsp_camera_is_shown_by_a_process_that_has_no_network() -> None:
    port = free_port()
    url = f"rtsp://root:s3cret@127.0.0.1:{port}/video"
    with rtsp_camera(port, "root:s3cret") as server, running("--camera", url, "--require-isolation") as run:
        pictures_flow(run)
        status = run.status()
        assert status["size"] == [320, 240]
        assert status["warnings"] == []
        isolation = status["isolation"]
        assert isinstance(isolation, dict)
        assert isolation["whole"]
        assert "sanitize: no network, no socket" in isolation["summary"]
        assert "fetch: no camera, no other port" in isolation["summary"]

        fetches, sanitizes = child(run.process.pid, "fetch"), child(run.process.pid, "sanitize")
        assert [connection.raddr.port for connection in fetches.net_connections()] == [port]
        if os.getuid() == 0:  # of a process that is not dumpable, only root may read it
            assert sanitizes.net_connections() == []
            names = [os.readlink(f"/proc/{each.pid}/ns/net") for each in (fetches, sanitizes)]
            assert names[0] == os.readlink("/proc/self/ns/net") != names[1]

        fetches.kill()
        until(lambda: lost(run) == 1)
        pictures_flow(run)
        report("the process that fetches is killed", "the camera is lost, and opened again", 0)

        server.kill()
        server.wait()
        run.until("camera_up", False, BACK_S)
        assert run.process.poll() is None
        with rtsp_camera(port, "root:s3cret"):
            pictures_flow(run)
            until(lambda: lost(run) == 2)
            code, said, _ = run.end()
    assert code == 0
    assert "s3cret" not in said
    assert "opening the camera again" in said
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in (fetches, sanitizes))


@pytest.mark.slow
def test_a_wrong_password_is_said_by_number_and_ends_the_run() -> None:
    port = free_port()
    url = f"rtsp://root:wr0ng@127.0.0.1:{port}/video"
    with rtsp_camera(port, "root:s3cret"), running("--camera", url) as run:
        _, said = run.process.communicate(timeout=60)
    assert run.process.returncode == CameraError.exit_code
    assert "the user name or the password is wrong (401)" in said
    assert "wr0ng" not in said


@pytest.mark.slow
def test_a_silent_camera_is_lost_and_comes_back(http_camera: HttpCamera) -> None:
    with running("--camera", http_camera.url, "--require-isolation") as run:
        pictures_flow(run)
        first = child(run.process.pid, "fetch").pid
        http_camera.silent.set()
        run.until("camera_up", False, BACK_S)
        until(lambda: child(run.process.pid, "fetch").pid != first)
        http_camera.silent.clear()
        pictures_flow(run)
        until(lambda: lost(run) == 1)
        assert child(run.process.pid, "fetch").pid != first
        assert [c.name() for c in psutil.Process(run.process.pid).children()].count("edgesan-fetch") == 1
        assert run.end()[0] == 0


@pytest.mark.slow
def test_no_process_fetches_while_the_owner_has_the_camera_closed_nor_after_a_crash(http_camera: HttpCamera) -> None:
    with running("--camera", http_camera.url) as run:
        pictures_flow(run)
        first = child(run.process.pid, "fetch")
        switch(run, "true")
        run.until("privacy", True)
        first.wait(BACK_S)
        time.sleep(1)
        assert "edgesan-fetch" not in [each.name() for each in psutil.Process(run.process.pid).children()]
        switch(run, "false")
        pictures_flow(run)
        second = child(run.process.pid, "fetch")
        run.process.kill()
        second.wait(BACK_S)


@pytest.mark.slow
def test_a_still_of_the_room_is_taken_with_a_network_camera(http_camera: HttpCamera, tmp_path: Path) -> None:
    http_camera.still = np.full((240, 320, 3), (90, 120, 150), np.uint8)
    options = ("--camera", http_camera.url, "--state-dir", str(tmp_path), "--require-isolation")
    done = run_command("scene", "take", "--seconds", "8", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scene-proposed.png").exists()
    http_camera.unplug()
    done = run_command("scene", "take", "--seconds", "2", *options)
    assert (done.returncode, "nothing listens at port" in done.stderr) == (CameraError.exit_code, True)
    assert "s3cret" not in done.stderr


# --- in this process: a decoder, and packets --------------------------------------------------------------------------


def stream(frames: int = 20, codec: str = "libx264") -> tuple[Header, list[bytes]]:
    """Header and packets of a clip whose frame i is grey of level i."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 64, 48, "yuv420p", 25
    encoder.options = {"tune": "zerolatency", "g": "5"}
    found = []
    for i in range(frames):
        frame = av.VideoFrame.from_ndarray(flat(i), format="bgr24").reformat(format="yuv420p")
        frame.pts = i
        found += [bytes(packet) for packet in encoder.encode(frame)]
    return Header("h264", bytes(encoder.extradata or b"")), found + [bytes(packet) for packet in encoder.encode(None)]


@contextmanager
def taken_over(*records: bytes) -> Iterator[Reader]:
    """A reader of what a process says that fetches no more, but writes these bytes; then it hangs up."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    reader = Reader(readable)
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os.close(readable)
            for each in records:
                os.write(writable, each)
                time.sleep(0.02)
        os._exit(0)
    os.close(writable)
    try:
        yield reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def packet(content: bytes) -> bytes:
    return pack(Packet(time.monotonic_ns(), content))


@contextmanager
def opened(*records: bytes, scheme: str = "rtsp") -> Iterator[Source]:
    with taken_over(*records) as reader, closing(open_source(f"{scheme}://h/", None, None, packets=reader)) as source:
        yield source


def test_h264_is_decoded_without_a_network() -> None:
    header, content = stream()
    with opened(pack(header), *map(packet, content), pack(Fault(Reason.ENDED))) as source:
        assert source.size == (64, 48)
        shown = list[int]()
        with pytest.raises(CameraLost, match="gives no pictures any more"):
            shown.extend(play(source))
    assert shown == sorted(shown)


def test_damaged_and_lost_packets_cost_frames_and_nothing_else() -> None:
    header, content = stream(40)
    rng = np.random.default_rng(1)
    noise = [bytes(rng.integers(0, 256, len(each), np.uint8)) for each in content]
    sent = [noise[i] if i % 7 == 3 else each for i, each in enumerate(content) if i % 11 != 9]
    with opened(pack(header), *map(packet, sent), pack(Fault(Reason.ENDED))) as source:
        assert source.size == (64, 48)
        with pytest.raises(CameraLost, match="gives no pictures any more"):
            list(play(source))


HUGE_JPEG = bytes.fromhex("ffd8ffc0001108ffdcffdc03012200021101031101ffda000c03010002110311003f00") + bytes(64)


@pytest.mark.parametrize(
    "records",
    [
        [os.urandom(4000)],
        [pack(Claims(b"x"))],
        [pack(Header("h264")), pack(Header("h264"))],
        [pack(Header("mjpeg")), b"P\xff\xff\xff\xff" + bytes(4000)],
        [pack(Header("mjpeg")), packet(HUGE_JPEG) * 3],
        *([pack(Header(codec, os.urandom(300))), *[packet(os.urandom(2000)) for _ in range(20)]] for codec in CODECS),
        *([pack(Header(codec)), *[packet(b"\0\0\1" + os.urandom(2000)) for _ in range(20)]] for codec in CODECS),
    ],
    ids=itertools.count(),
)
def test_a_process_that_was_taken_over_can_only_have_no_pictures(records: list[bytes]) -> None:
    """Whatever comes, nothing is raised but that the camera is lost, and no picture is too large."""

    def look() -> None:
        with opened(*records, scheme="http") as source:
            assert source.size[0] * source.size[1] <= 100_000_000
            list(play(source))

    with pytest.raises(CameraError) as caught:
        look()
    assert str(caught.value).isprintable()


def test_a_picture_that_comes_late_is_not_shown_while_later_ones_wait() -> None:
    header, content = stream(30)
    late = [pack(Packet(time.monotonic_ns() - 2_000_000_000, each)) for each in content]
    with opened(pack(header) + b"".join(late[:25]) + b"".join(map(packet, content[25:]))) as source:
        assert index_of(take(source)[0]) >= 25


def test_when_there_is_no_room_packets_are_left_out_until_the_next_key_frame(tmp_path: Path) -> None:
    header, content = stream(20)
    clip = tmp_path / "clip.h264"
    clip.write_bytes(header.extradata + b"".join(content))
    tried = list[int]()

    def send(record: object) -> bool:
        assert isinstance(record, Packet)
        tried.append(len(tried))
        return len(tried) != 3

    with av.open(str(clip)) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    with av.open(str(clip)) as container:
        camera._pump(container, container.streams.video[0], send)
    assert keys[:6] == [True, False, False, False, False, True]
    assert len(tried) == len(keys) - 2, "the third had no room, and the two before the next key frame were not tried"


def test_a_codec_that_no_camera_has_is_refused(http_camera: HttpCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "CODECS", ("h264",))
    with pytest.raises(CameraError, match="a codec that is not decoded here"):
        open_camera(http_camera.url)


def test_what_cannot_be_printed_does_not_pass() -> None:
    readable, writable = os.pipe()
    sender(writable)(Fault(Reason.REDIRECTED, 0, "http://h\x1b[2J/"))
    reader = Reader(readable)
    with pytest.raises(CameraLost, match="an address that cannot be printed") as caught:
        reader.next(5)
    assert str(caught.value).isprintable()
    os.close(writable)
    reader.close()
