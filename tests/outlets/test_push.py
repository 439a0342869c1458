"""The stream is pushed to real servers: what they received is played by ffprobe."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Running, free_port

pytestmark = [pytest.mark.slow]


class RtspServer:
    """ffmpeg as a server that takes one push, and writes it to a file."""

    def __init__(self, port: int, path: Path) -> None:
        self.path, self.url = path, f"rtsp://127.0.0.1:{port}/live"
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-rtsp_flags", "listen", "-i", self.url, "-c", "copy"]
        self.process = subprocess.Popen([*command, "-flush_packets", "1", "-y", str(path)])

    def until_received(self, least_bytes: int = 20_000, seconds: float = 30) -> None:
        until_s = time.monotonic() + seconds
        while not (self.path.exists() and self.path.stat().st_size > least_bytes):
            assert time.monotonic() < until_s, "nothing arrives"
            assert self.process.poll() is None
            time.sleep(0.1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(10)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def edgesan() -> Iterator[list[Running]]:
    """Runs of edgesan, which end with the test."""
    runs: list[Running] = []
    yield runs
    for each in runs:
        if each.process.poll() is None:
            each.end()


def probed(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (stream,) = json.loads(done.stdout)["streams"]
    found: dict[str, Any] = stream
    return found


def output(running: Running) -> dict[str, Any]:
    (found,) = running.status()["outputs"]  # type: ignore[misc, attr-defined]
    said: dict[str, Any] = found
    return said


def until(test: Any, seconds: float = 30) -> None:
    until_s = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_an_rtsp_server_receives_h264_with_the_size_of_the_picture(
    edgesan: list[Running], port: int, tmp_path: Path
) -> None:
    server = RtspServer(port, tmp_path / "got.mkv")
    time.sleep(1)
    edgesan.append(Running("--camera", "demo", "--out", server.url))
    server.until_received()
    said = output(edgesan[0])
    assert said["connected"]
    assert said["to"] == f"rtsp://127.0.0.1:{port}"
    code, text, _ = edgesan[0].end()
    assert code == 0, text
    assert "is connected" in text
    server.close()
    stream = probed(server.path)
    assert (stream["codec_name"], stream["width"], stream["height"]) == ("h264", 480, 270)
    assert int(stream["nb_read_frames"]) > 10
