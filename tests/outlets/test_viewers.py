"""Whole runs of `edgesan run` with viewers: one encode for all of them, and streams that come back."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from edgesan.outlets.rtsp_server import missing
from tests.support import Running, free_port
from tests.transmit.server import Viewer

pytestmark = pytest.mark.slow
TOKEN = "0123456789abcdef"


class Camera(Running):
    """A run on the demo clip with outlets, all of which are there."""

    def __init__(self, *out: str) -> None:
        sinks = [word for sink in out for word in ("--out", sink)]
        super().__init__("--camera", "demo", "--token", TOKEN, *sinks)

    def ready(self) -> "Camera":
        self.until("ready", True)
        self.wait(lambda status: all(output["connected"] for output in status["outputs"]))
        return self

    def status(self) -> dict[str, object]:
        import urllib.request

        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/status", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            status: dict[str, object] = json.load(answer)
            return status

    def wait(self, wanted: Callable[[dict[str, object]], bool], seconds: float = 30) -> dict[str, object]:
        deadline = time.monotonic() + seconds
        while not wanted(status := self.status()):
            assert time.monotonic() < deadline, status.get("outputs")
            time.sleep(0.05)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            assert self.end()[0] == 0


@contextmanager
def camera(*out: str) -> Iterator[Camera]:
    with closing(Camera(*out)) as found:
        yield found.ready()


def outlet(camera: Camera, kind: str) -> psutil.Process:
    """The process of the outlet of this kind."""
    number = [output["kind"] for output in camera.status()["outputs"]].index(kind)
    (found,) = [
        each for each in psutil.Process(camera.process.pid).children() if each.name() == f"edgesan-out-{number}"
    ]
    return found


class Watching(threading.Thread):
    """A viewer of MJPEG, who counts what it sees."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.seen, self.ended = 0, threading.Event()
        self._viewer = Viewer(port, token=TOKEN)
        self.start()

    def run(self) -> None:
        while not self.ended.is_set():
            self._viewer.read()
            self.seen += 1

    def close(self) -> None:
        self.ended.set()
        self.join(10)
        self._viewer.close()


def player(port: int, *output: str) -> subprocess.Popen[str]:
    url = f"rtsp://cam:{TOKEN}@127.0.0.1:{port}/cam"
    command = ("ffmpeg", "-v", "error", "-rtsp_transport", "tcp", "-i", url, *output)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def needs_gstreamer() -> None:
    if lacking := missing(tls=False):
        pytest.skip(f"GStreamer's RTSP server is not there: apt install {lacking}")
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")


@pytest.mark.browser
def test_ten_viewers_three_browsers_a_player_and_a_recording_cost_one_encode_a_frame_of_each_kind(
    tmp_path: Path,
) -> None:
    needs_gstreamer()
    pytest.importorskip("aiortc")
    from tests.transmit.test_browser import start_chrome, wait

    port = free_port()
    out = ["webrtc:", f"serve+rtsp://127.0.0.1:{port}/cam"]
    records = find_spec("edgesan.outlets.record") is not None
    out += [f"dir:{tmp_path}?segment=2s&keep=100MB"] if records else []
    with camera(*out) as run, ExitStack() as stack:
        time.sleep(5)
        alone = float(run.status()["fps"])
        drivers = [start_chrome() for _ in range(3)]
        for driver in drivers:
            stack.callback(driver.quit)
            driver.get(f"http://127.0.0.1:{run.port}/?token={TOKEN}")
        watching = [stack.enter_context(closing(Watching(run.port))) for _ in range(10)]
        playing = player(port, "-f", "framecrc", "-")
        stack.callback(playing.wait)
        stack.callback(playing.kill)
        stack.callback(playing.stdout.close)
        stack.callback(playing.stderr.close)
        by_webrtc = "return document.getElementById('way').textContent.includes('by WebRTC.')"
        seen = "return document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames"
        for driver in drivers:
            wait(driver, by_webrtc, 60)
        run.wait(lambda status: sum(each["viewers"] for each in status["outputs"]) == 4)

        def now() -> tuple[dict[str, int], int, int, list[int]]:
            status = run.status()
            totals = status["totals"]["sanitized"], sum(each.seen for each in watching)
            return status["encodes"], *totals, [int(driver.execute_script(seen)) for driver in drivers]

        encodes, frames, parts, pictures = now()
        time.sleep(10)
        later, more_frames, more_parts, more_pictures = now()
        fps = float(run.status()["fps"])
        count = more_frames - frames
        cost = {codec: later[codec] - encodes[codec] for codec in later}
        decoded = [after - before for before, after in zip(pictures, more_pictures, strict=True)]
        print(f"{count} frames: encoded {cost}; MJPEG sent {more_parts - parts}, WebRTC decoded {decoded}")
        print(f"fps {alone:g} alone, {fps:g} with all viewers")
        assert all(each <= count + 3 for each in cost.values()), "the two counters are not read in the same moment"
        assert more_parts - parts > 3 * count, "ten viewers"
        assert sum(decoded) > count, "three browsers"
        assert fps > alone / 2, "of this machine, which also runs three browsers"
        assert any(path.stat().st_size for path in tmp_path.rglob("*.m*")) or not records


def test_a_player_is_served_again_when_the_rtsp_server_was_killed() -> None:
    needs_gstreamer()
    port = free_port()
    with camera(f"serve+rtsp://127.0.0.1:{port}/cam") as run:

        def plays() -> bool:
            playing = player(port, "-frames:v", "3", "-f", "null", "-")
            playing.communicate(timeout=30)
            return playing.returncode == 0

        assert plays()
        for victim in (lambda own: own.children()[0], lambda own: own):
            victim(outlet(run, "rtsp_server")).kill()
            killed = time.monotonic()
            while not plays():
                assert time.monotonic() - killed < 20
            print(f"back after {time.monotonic() - killed:.1f} s")
        assert run.status()["ready"], "the camera never noticed"


@pytest.mark.browser
def test_the_page_is_by_webrtc_again_when_its_process_was_killed() -> None:
    pytest.importorskip("aiortc")
    from tests.transmit.test_browser import start_chrome, wait

    way = "return document.getElementById('way').textContent.includes('{}')"
    with camera("webrtc:") as run, ExitStack() as stack:
        driver = start_chrome()
        stack.callback(driver.quit)
        driver.get(f"http://127.0.0.1:{run.port}/?token={TOKEN}")
        wait(driver, way.format("by WebRTC."))
        outlet(run, "webrtc").kill()
        killed = time.monotonic()
        wait(driver, way.format("by MJPEG"))
        print(f"by MJPEG after {time.monotonic() - killed:.1f} s")
        wait(driver, way.format("by WebRTC."), 40)
        print(f"by WebRTC after {time.monotonic() - killed:.1f} s")


def test_viewers_need_the_token_also_by_webrtc_and_rtsp() -> None:
    needs_gstreamer()
    port = free_port()
    with camera("webrtc:", f"serve+rtsp://127.0.0.1:{port}/cam") as run:
        bare = subprocess.run(
            ["ffprobe", "-v", "error", f"rtsp://127.0.0.1:{port}/cam"], capture_output=True, text=True, check=False
        )
        assert "401 Unauthorized" in bare.stderr
        claims = run.status()["isolation"]["claims"]
        assert [claim for claim in claims if not claim["holds"] and claim["process"] in ("outlet", "recorder")] == []
