"""The stream is pushed to real servers: what they received is played by ffprobe, and what fails is said in words."""

import json
import os
import shutil
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

import pytest

from tests.outlets.support import output, status, until
from tests.support import ROOT, Running, child, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="apt install ffmpeg"),
]
SERVERS = Path(__file__).parent / "servers"
MODULES = {path.name for path in Path("/usr/lib/nginx/modules").glob("*.so")}
NGINX = "apt install nginx-light libnginx-mod-rtmp libnginx-mod-stream"
Start = Callable[..., Running]


class Program:
    """A real server in a process of its own; `heard` is what it printed."""

    def __init__(self, *command: str, ready: str = "ready") -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        self.heard: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if ready:
            until(lambda: any(ready in line for line in self.heard))

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.heard.append(line)

    def stop(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(10)
        self._reader.join(10)
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Starts servers, which end with the test."""
    programs: list[Program] = []

    def start(*command: str, ready: str = "ready") -> Program:
        programs.append(Program(*command, ready=ready))
        return programs[-1]

    yield start
    for each in programs:
        each.close()


@pytest.fixture
def port() -> int:
    return free_port()


def gst(*arguments: object) -> tuple[str, ...]:
    """The command of a server by gst-rtsp-server."""
    import_it = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if subprocess.run(["/usr/bin/python3", "-c", import_it], check=False, capture_output=True).returncode:
        pytest.skip("apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-bad")
    return ("/usr/bin/python3", str(SERVERS / "rtsp.py"), *map(str, arguments))


def probed(path: Path) -> dict[str, Any]:
    """What a real player finds in a file."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (stream,) = json.loads(done.stdout)["streams"]
    found: dict[str, Any] = stream
    return found


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read_to_the_end(viewer: socket.socket) -> None:
    while viewer.recv(65536):
        pass


def is_demo(path: Path, least: int = 10) -> bool:
    """Whether a file holds so many pictures of the demo at least."""
    stream = probed(path)
    shape = (stream["codec_name"], stream["width"], stream["height"]) == ("h264", 480, 270)
    return shape and int(stream["nb_read_frames"]) >= least


# --- each transport ---------------------------------------------------------------------------------------------------


def test_gst_rtsp_server_receives_the_stream_with_a_password(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    got = tmp_path / "got.mkv"
    program(*gst(port, got, "cam", "s3cret/pass"))
    running = edgesan("--out", f"rtsp://cam:s3cret%2Fpass@127.0.0.1:{port}/live")
    until(lambda: size(got) > 30_000)
    said = output(running)
    assert (said["connected"], said["to"], said["why"]) == (True, f"rtsp://127.0.0.1:{port}", "")
    until(lambda: output(running)["bytes"] > 20_000)
    code, text, _ = running.end()
    assert code == 0
    assert "takes the stream" in text
    assert "s3cret" not in text
    until(lambda: is_demo(got))


def test_ffmpeg_receives_rtsp_and_is_served_again_within_5_s_of_its_return(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    url = f"rtsp://127.0.0.1:{port}/live"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-rtsp_flags", "listen", "-i", url, "-c", "copy"]
    first = program(*command, "-flush_packets", "1", str(tmp_path / "1.mkv"), ready="")
    running = edgesan("--out", url)
    until(lambda: size(tmp_path / "1.mkv") > 30_000)
    before = status(running)["totals"]["sanitized"]
    first.stop(signal.SIGKILL)
    until(lambda: "nothing listens at port" in output(running).get("why", ""))
    time.sleep(10)  # attempts are 4 s apart by now
    program(*command, "-flush_packets", "1", str(tmp_path / "2.mkv"), ready="")
    started_s = time.monotonic()
    until(lambda: output(running)["connected"])
    took_s = time.monotonic() - started_s
    until(lambda: size(tmp_path / "2.mkv") > 30_000)
    assert took_s < 10, "5 s, and something for a busy machine"
    assert status(running)["totals"]["sanitized"] > before + 60, "the camera never stopped"
    _, text, _ = running.end()
    assert text.count("nothing listens at port") == 1, "said once"
    assert text.count("takes the stream again") == 1
    assert is_demo(tmp_path / "1.mkv")
    assert is_demo(tmp_path / "2.mkv")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    options += ["-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", *options, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def is_refused_then_trusted(edgesan: Start, url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Runs until the certificate of a stranger is refused, then again with its authority."""
    running = edgesan("--out", url)
    until(lambda: "its certificate is not trusted (self-signed certificate)" in output(running).get("why", ""))
    running.end()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return edgesan("--out", url)


def test_rtsps_is_received_and_a_certificate_of_a_stranger_is_refused(
    edgesan: Start,
    program: Callable[..., Program],
    port: int,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, got = tmp_path / "both.pem", tmp_path / "got.mkv"
    both.write_text("".join(each.read_text() for each in certificate))
    program(*gst(port, got, "", "", both))
    running = is_refused_then_trusted(edgesan, f"rtsps://127.0.0.1:{port}/live", certificate[0], monkeypatch)
    until(lambda: size(got) > 30_000)
    running.end()
    until(lambda: is_demo(got))


def test_whip_by_https_is_received_and_a_certificate_of_a_stranger_is_refused(
    edgesan: Start,
    program: Callable[..., Program],
    port: int,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("aiortc", reason="pip install aiortc")
    server = program(sys.executable, str(SERVERS / "whip.py"), str(port), "t0ken", *map(str, certificate))
    url = f"whip+https://:t0ken@127.0.0.1:{port}/whip"
    is_refused_then_trusted(edgesan, url, certificate[0], monkeypatch)
    until(lambda: server.heard.count("frame 480 270\n") > 20)


@pytest.mark.skipif(not {"ngx_rtmp_module.so", "ngx_stream_module.so"} <= MODULES, reason=NGINX)
def test_rtmps_is_received_and_a_certificate_of_a_stranger_is_refused(
    edgesan: Start,
    program: Callable[..., Program],
    port: int,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind = free_port()
    program(*nginx(tmp_path, behind, f"{port} {certificate[0]} {certificate[1]}"), ready="")
    until((tmp_path / "pid").exists)
    running = is_refused_then_trusted(edgesan, f"rtmps://127.0.0.1:{port}/live/key", certificate[0], monkeypatch)
    until(lambda: size(tmp_path / "key.flv") > 30_000)
    running.end()
    until(lambda: is_demo(tmp_path / "key.flv"))


def nginx(folder: Path, port: int, ssl: str = "") -> tuple[str, ...]:
    """The command of a server that records what is pushed; ssl: port, certificate and key of TLS in front of it."""
    modules, stream = "rtmp", ""
    if ssl:
        outside, certificate, key = ssl.split()
        modules = "rtmp stream"
        stream = (
            f"stream {{ server {{ listen 127.0.0.1:{outside} ssl; proxy_pass 127.0.0.1:{port};"
            f" ssl_certificate {certificate}; ssl_certificate_key {key}; }} }}\n"
        )
    loaded = "".join(f"load_module /usr/lib/nginx/modules/ngx_{name}_module.so;\n" for name in modules.split())
    (folder / "nginx.conf").write_text(
        f"{loaded}daemon off; pid {folder}/pid; user root; events {{}}\n{stream}"
        f"rtmp {{ server {{ listen 127.0.0.1:{port};"
        f" application live {{ live on; record all; record_path {folder}; }}"
        " application closed { live on; deny publish all; } } }\n"
    )
    return "nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")


@pytest.mark.skipif("ngx_rtmp_module.so" not in MODULES, reason=NGINX)
def test_nginx_receives_rtmp(edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path) -> None:
    program(*nginx(tmp_path, port), ready="")
    until((tmp_path / "pid").exists)
    urls = (f"rtmp://127.0.0.1:{port}/live/key", f"rtmp://127.0.0.1:{port}/closed/key")
    running = edgesan(*(option for url in urls for option in ("--out", url)))
    until(lambda: size(tmp_path / "key.flv") > 30_000)
    until(lambda: "may this path be published at?" in output(running, 1).get("why", ""))
    assert output(running)["connected"]
    assert output(running)["dropped"] == 0
    running.end()
    until(lambda: is_demo(tmp_path / "key.flv"))


def test_aiortc_receives_whip_and_a_wrong_token_is_said(
    edgesan: Start, program: Callable[..., Program], port: int
) -> None:
    pytest.importorskip("aiortc", reason="pip install aiortc")
    server = program(sys.executable, str(SERVERS / "whip.py"), str(port), "t0ken")
    urls = (f"whip+http://:t0ken@127.0.0.1:{port}/whip", f"whip+http://:wr0ng@127.0.0.1:{port}/whip")
    running = edgesan(*(option for url in urls for option in ("--out", url)))
    until(lambda: server.heard.count("frame 480 270\n") > 20)
    until(lambda: "the user name or the password is wrong (401)" in output(running, 1).get("why", ""))
    _, text, _ = running.end()
    assert "t0ken" not in text
    assert "wr0ng" not in text


# --- servers that do not take it --------------------------------------------------------------------------------------


def test_a_wrong_password_is_said(edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path) -> None:
    program(*gst(port, tmp_path / "got.mkv", "cam", "right"))
    urls = [
        f"rtsp://{who}127.0.0.1:{port}/{path}"
        for who, path in (("cam:wr0ng@", "live"), ("", "live"), ("cam:right@", "x"))
    ]
    running = edgesan(*(option for url in urls for option in ("--out", url)))
    until(lambda: "the user name or the password is wrong (401)" in output(running, 0).get("why", ""))
    until(lambda: "it wants a user name and a password (401)" in output(running, 1).get("why", ""))
    until(lambda: "it has nothing at this path (404)" in output(running, 2).get("why", ""))
    _, text, _ = running.end()
    assert text.count("(401)") == 2, "each said once, though it is tried again"
    assert "wr0ng" not in text


class Stranger:
    """A server that accepts connections, and does something wrong with each."""

    def __init__(self, wrong: Callable[[socket.socket], object]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.kept: list[socket.socket] = []
        self._wrong = wrong
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.kept.append(connection)
                self._wrong(connection)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self.listener.close()
        for each in self.kept:
            each.close()


def nothing(_: socket.socket) -> None:
    """Take the connection, and say nothing."""


def hang_up(connection: socket.socket) -> None:
    """Read a little, and end the connection."""
    connection.recv(10)
    connection.close()


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "whip+http"])
def test_a_silent_server_is_cut_off_said_once_and_costs_no_frame(edgesan: Start, scheme: str) -> None:
    with closing(Stranger(nothing)) as server:
        running = edgesan("--out", f"{scheme}://127.0.0.1:{server.port}/live/x")
        until(lambda: "does not answer" in output(running).get("why", ""))
        before = status(running)["totals"]["sanitized"]
        until(lambda: len(server.kept) >= 3, 90)
        assert status(running)["totals"]["sanitized"] > before + 20
        _, text, _ = running.end()
    words = "it was reached, but does not answer within 3 s" if scheme == "rtsp" else "the other side was asked"
    assert text.count(words) == 1


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "whip+http"])
def test_a_server_that_hangs_up_is_said(edgesan: Start, scheme: str) -> None:
    with closing(Stranger(hang_up)) as server:
        running = edgesan("--out", f"{scheme}://127.0.0.1:{server.port}/live/x")
        until(lambda: "it ended the connection" in output(running).get("why", ""))
        _, text, _ = running.end()
    assert text.count("it ended the connection") == 1


def test_hosts_that_cannot_be_reached_are_told_apart(edgesan: Start, port: int) -> None:
    urls = (f"rtsp://127.0.0.1:{port}/x", "rtsp://no-such-host.invalid/x", "rtsps://127.0.0.1:9/x")
    running = edgesan(*(option for url in urls for option in ("--out", url)))
    until(lambda: f"nothing listens at port {port} there" in output(running, 0).get("why", ""))
    until(lambda: "there is no host of the name no-such-host.invalid" in output(running, 1).get("why", ""))
    until(lambda: "nothing listens at port 9 there" in output(running, 2).get("why", ""))


def test_a_server_that_stalls_costs_neither_the_camera_nor_the_others_a_frame(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    got = tmp_path / "got.mkv"
    server = program(*gst(port, got))
    folder = tmp_path / "clips"
    running = edgesan("--out", f"rtsp://127.0.0.1:{port}/live", "--out", f"dir:{folder}?segment=60s", "--fps", "10")
    until(lambda: size(got) > 30_000)
    until(lambda: output(running, 1)["connected"])
    server.stop(signal.SIGSTOP)
    before, recorded = status(running)["totals"]["sanitized"], output(running, 1)["bytes"]
    time.sleep(15)
    after = status(running)
    assert after["totals"]["sanitized"] > before + 50, "the camera goes on"
    assert output(running, 1)["bytes"] > recorded
    assert output(running, 1)["dropped"] == 0
    server.stop(signal.SIGCONT)
    until(lambda: output(running)["connected"])
    grown = size(got)
    until(lambda: size(got) > grown)


def test_many_outputs_and_viewers_cost_one_encode_a_frame(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    got = tmp_path / "got.mkv"
    program(*gst(port, got))
    folders = [option for n in range(3) for option in ("--out", f"dir:{tmp_path}/{n}?segment=60s")]
    running = edgesan("--out", f"rtsp://127.0.0.1:{port}/live", *folders)
    until(lambda: all(output(running, n).get("connected") for n in range(4)))
    viewers = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(10)]
    readers = [threading.Thread(target=read_to_the_end, args=(viewer,), daemon=True) for viewer in viewers]
    for viewer in viewers:
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    for reader in readers:
        reader.start()
    until(lambda: status(running)["transmit"]["viewers"] == 10)
    first = status(running)
    until(lambda: status(running)["totals"]["sanitized"] > first["totals"]["sanitized"] + 100)
    last = status(running)
    frames = last["totals"]["sanitized"] - first["totals"]["sanitized"]
    for codec in ("jpeg", "h264"):
        encoded = last["encodes"][codec] - first["encodes"][codec]
        assert frames * 0.5 < encoded <= frames + 10, (codec, encoded, frames)
    for viewer, reader in zip(viewers, readers, strict=True):
        viewer.shutdown(socket.SHUT_RDWR)
        reader.join(10)
        viewer.close()


def test_an_outlet_that_hangs_is_ended_and_started_again(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    program(*gst(port, tmp_path / "got.mkv"))
    running = edgesan("--out", f"rtsp://127.0.0.1:{port}/live")
    until(lambda: output(running).get("connected"))
    outlet = child(running.process.pid, "out-0")
    os.kill(outlet.pid, signal.SIGSTOP)
    until(lambda: output(running)["starts"] == 2 and output(running)["connected"])
    _, text, _ = running.end()
    assert "its process does not answer for 15 s, and is ended" in text


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root, and apt install iproute2")
def test_after_a_network_that_was_cut_for_30_s_the_stream_is_back_within_5_s(
    edgesan: Start, program: Callable[..., Program], port: int, tmp_path: Path
) -> None:
    got, name = tmp_path / "got.mkv", f"es{port}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)

    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "inside", "netns", name)
        ip("addr", "add", "198.18.77.1/30", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", "198.18.77.2/30", "dev", "inside")
        ip("-n", name, "link", "set", "inside", "up")
        server = gst(f"198.18.77.2:{port}", got)
        program("ip", "netns", "exec", name, *server)
        running = edgesan("--out", f"rtsp://198.18.77.2:{port}/live")
        until(lambda: size(got) > 30_000)
        memory = [child(running.process.pid, process).memory_info().rss for process in ("out-0", "transmit")]
        before = status(running)["totals"]["sanitized"]
        ip("link", "set", name, "down")
        cut_s = time.monotonic()
        until(lambda: output(running).get("why"))
        assert time.monotonic() - cut_s < 20
        time.sleep(max(0.0, 30 - (time.monotonic() - cut_s)))
        after = [child(running.process.pid, process).memory_info().rss for process in ("out-0", "transmit")]
        ip("link", "set", name, "up")
        back_s = time.monotonic()
        until(lambda: output(running)["connected"])
        assert time.monotonic() - back_s < 10, "5 s, and something for a busy machine"
        assert status(running)["totals"]["sanitized"] > before + 150, "the camera never stopped"
        assert all(late - early < 2**26 for early, late in zip(memory, after, strict=True))
        _, text, _ = running.end()
        assert text.count("trying again") <= 3, text
        assert text.count("takes the stream again") == 1
    finally:
        ip("netns", "del", name)
