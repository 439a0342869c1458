"""The RTSP server: ffprobe, ffmpeg, GStreamer, OpenCV and VLC receive from it, with the token and without one."""

import asyncio
import hashlib
import io
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import av
import psutil
import pytest
import trustme

from edgesan.config import Config
from edgesan.errors import ConfigError, SinkError
from edgesan.isolation import confine_program, landlock
from edgesan.outlets import rtsp_server
from edgesan.outlets.rtsp_server import PYTHON, Program, missing, prepare
from tests.outlets.video import Encoder, Line
from tests.support import free_port

TOKEN = "0123456789abcdef"
LACKING = missing(tls=True)
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"GStreamer's RTSP server is not there: apt install {LACKING}")


class Serving:
    """An outlet in a thread, with its real program."""

    def __init__(self, config: Config) -> None:
        (self.target,) = config.targets
        self.program: Program = prepare(config, self.target)
        self.encoder = Encoder((320, 240))
        self.line = Line(self.encoder)
        self.failed: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(rtsp_server.run(self.line, self.target, self.program))
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        self.until(lambda: bool(self.line.states))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.target.port}{self.target.path}"

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.program.process.pid)

    def until(self, wanted: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not wanted():
            assert self.failed is None, self.failed
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.05)

    def close(self) -> None:
        if not self.failed:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self.program.connection.close()
        assert self.program.process.wait(10) == 0 or self.failed, "it ends with its input"

    def _live(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except (asyncio.CancelledError, SinkError) as error:
            self.failed = error if isinstance(error, SinkError) else None
        finally:
            self._loop.close()


@contextmanager
def serving(scheme: str = "serve+rtsp", **options: object) -> Iterator[Serving]:
    options = {"token": TOKEN} | options
    config = Config(out=(f"{scheme}://127.0.0.1:{free_port()}/cam",), **options)
    with closing(Serving(config)) as found:
        yield found


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving() as found:
        yield found


def command(*words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)


def probe(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    shown = ("-show_entries", "stream=codec_name,profile,width,height", "-of", "csv=p=0")
    return command("ffprobe", "-v", "error", *options, *shown, url)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tcp", "udp"])
def test_ffmpeg_receives_it(served: Serving, way: str) -> None:
    url = f"rtsp://cam:{TOKEN}@{served.address}"
    done = command("ffmpeg", "-v", "error", "-rtsp_transport", way, "-i", url, "-frames:v", "20", "-f", "framecrc", "-")
    frames = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(frames) == 20, done.stderr


def test_ffprobe_reads_what_it_is(served: Serving) -> None:
    done = probe(f"rtsp://cam:{TOKEN}@{served.address}", "-rtsp_transport", "tcp")
    assert done.stdout.strip() == "h264,Constrained Baseline,320,240", done.stderr


@pytest.mark.slow
def test_gstreamer_receives_it(served: Serving) -> None:
    source = ("rtspsrc", f"location=rtsp://{served.address}", "user-id=cam", f"user-pw={TOKEN}", "latency=0")
    sink = ("!", "rtph264depay", "!", "avdec_h264", "!", "fakesink", "num-buffers=20")
    done = command("gst-launch-1.0", "-q", *source, *sink)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_opencv_receives_it(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    capture = cv2.VideoCapture(f"rtsp://cam:{TOKEN}@{served.address}")
    try:
        assert [capture.read()[0] for _ in range(5)] == [True] * 5
    finally:
        capture.release()


@pytest.mark.slow
def test_vlc_receives_it_with_the_token_only(served: Serving) -> None:
    vlc = shlex.split(os.environ.get("EDGESAN_VLC", "cvlc"))
    if "live555" not in command(*vlc, "--list").stdout:
        pytest.skip("this VLC has no live555, or is run by root; docs/recipes.md says which one EDGESAN_VLC may name")
    # Without a keystore it does not wait for somebody who knows the right password.
    options = ("--intf", "dummy", "--keystore", "memory", "--sout", "#std{access=file,mux=ts,dst=-}", "--run-time", "5")

    def received(token: str) -> bytes:
        url = f"rtsp://cam:{token}@{served.address}"
        return subprocess.run([*vlc, *options, url, "vlc://quit"], capture_output=True, check=True, timeout=60).stdout

    with av.open(io.BytesIO(received(TOKEN)), format="mpegts") as got:
        sizes = [(picture.width, picture.height) for picture in got.decode(video=0)]
    assert len(sizes) >= 20
    assert set(sizes) == {(320, 240)}
    assert not received("wrong")


@pytest.mark.parametrize("login", ["", "cam:wrong@", f"other:{TOKEN}@"])
def test_who_has_no_token_sees_nothing(served: Serving, login: str) -> None:
    done = probe(f"rtsp://{login}{served.address}")
    assert done.returncode
    assert "401 Unauthorized" in done.stderr


def test_another_path_is_not_there(served: Serving) -> None:
    assert "404 Not Found" in probe(f"rtsp://cam:{TOKEN}@{served.address}/other").stderr


@pytest.mark.slow
def test_the_times_are_those_of_the_capture(served: Serving) -> None:
    """A packet reaches a player with the capture's clock: RTP time grows as the capture time did."""
    shown = ("-show_entries", "packet=pts_time", "-of", "csv=p=0", "-read_intervals", "%+2")
    done = command("ffprobe", "-v", "error", "-rtsp_transport", "tcp", *shown, f"rtsp://cam:{TOKEN}@{served.address}")
    times = [float(line.strip(",")) for line in done.stdout.split() if line[0].isdigit()]
    steps = [round(later - earlier, 4) for earlier, later in itertools.pairwise(times)][3:23]
    sent = [round((later - earlier) / 1e9, 4) for earlier, later in itertools.pairwise(served.line.sent_ns)]
    assert len(steps) == 20
    starts = range(len(sent) - len(steps))
    assert any(all(abs(a - b) < 2e-4 for a, b in zip(steps, sent[n:], strict=False)) for n in starts)


@pytest.mark.slow
def test_video_is_wanted_only_while_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp_server, "IDLE_S", 0.5)
    with serving() as served:
        assert served.line.wants == []
        assert probe(f"rtsp://cam:{TOKEN}@{served.address}").returncode == 0
        served.until(lambda: served.line.wants[-1:] == [0])


@pytest.mark.slow
def test_without_a_token_this_machine_alone_may_watch() -> None:
    with serving(token="") as served:
        assert probe(f"rtsp://{served.address}").stdout.startswith("h264")


@pytest.mark.slow
def test_rtsps_is_encrypted(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pair.cert_chain_pems[0].write_to_path(str(certificate))
    pair.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving("serve+rtsps", tls_cert=certificate, tls_key=key) as served:
        url = f"rtsps://cam:{TOKEN}@{served.address}"
        done = probe(url, "-rtsp_transport", "tcp", "-tls_verify", "1", "-ca_file", str(tmp_path / "ca.pem"))
        assert done.stdout.startswith("h264"), done.stderr
        assert probe(url.replace("rtsps", "rtsp"), "-timeout", "1000000").returncode, "not without encryption"


@pytest.mark.slow
def test_a_viewer_that_never_reads_loses_frames_and_holds_nobody() -> None:
    with serving() as served, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(never_read(served.target.port)))
        before = served.process.memory_info().rss
        url = f"rtsp://cam:{TOKEN}@{served.address}"
        for _ in range(3):
            done = command(
                *("ffmpeg", "-v", "error", "-rtsp_transport", "tcp", "-i", url, "-frames:v", "100"),
                *("-f", "framecrc", "-"),
            )
            assert done.stdout.count("\n") > 100, done.stderr
        assert served.process.memory_info().rss - before < 2**24


def never_read(port: int) -> socket.socket:
    """A viewer that asks for the stream through its own connection, and then takes nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    url, secret, said = f"rtsp://127.0.0.1:{port}/cam", "", ""

    def digest(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    def ask(method: str, where: str, *fields: str) -> str:
        login = ""
        if secret:
            realm, nonce = secret.split("\0")
            response = digest(f"{digest(f'cam:{realm}:{TOKEN}')}:{nonce}:{digest(f'{method}:{where}')}")
            login = f'Authorization: Digest username="cam", realm="{realm}", nonce="{nonce}", uri="{where}", '
            login += f'response="{response}"\r\n'
        lines = "".join(f"{field}\r\n" for field in fields)
        connection.sendall(f"{method} {where} RTSP/1.0\r\nCSeq: 1\r\n{login}{lines}\r\n".encode())
        answer = connection.recv(65536).decode(errors="replace")
        while "\r\n\r\n" not in answer:
            answer += connection.recv(65536).decode(errors="replace")
        return answer

    secret = "\0".join(re.findall('(?:realm|nonce)="(.*?)"', ask("DESCRIBE", url)))
    assert "200 OK" in ask("DESCRIBE", url, "Accept: application/sdp")
    said = ask("SETUP", f"{url}/stream=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
    (session,) = re.findall("Session: ([^;\r]*)", said)
    assert "200 OK" in ask("PLAY", url, f"Session: {session}")
    return connection


@pytest.mark.slow
def test_a_connection_that_asks_for_nothing_is_closed() -> None:
    with serving() as served, socket.create_connection(("127.0.0.1", served.target.port), timeout=30) as idle:
        assert idle.recv(1) == b""


def test_the_program_has_given_up_its_rights(served: Serving) -> None:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["NoNewPrivs"] == "1"
    assert int(found["CapEff"], 16) == 0
    assert served.process.rlimit(psutil.RLIMIT_AS)[0] < 2**34
    assert TOKEN not in " ".join(served.process.cmdline())
    assert all(TOKEN not in value for value in served.process.environ().values())


WAYS_OUT = """
import os, socket
def tried(way):
    try: way()
    except OSError: return True
    return False
kinds = (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_NETLINK, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW)
ways = [lambda kind=kind: socket.socket(*kind) for kind in kinds]
ways += [lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), lambda: socket.create_server(("127.0.0.1", 0))]
ways += [lambda: socket.create_connection(("127.0.0.1", OPEN)), lambda: os.execv("/bin/ls", ["ls"]), os.fork]
ways += [lambda path=path: os.listdir(path) for path in ("/etc", "/root", "/home", "/tmp", "/dev")]
ways += [lambda: open("/tmp/edgesan-way-out", "w"), lambda: os.kill(os.getppid(), 0)]
print([n for n, way in enumerate(ways) if not tried(way)])
"""


def test_a_program_like_it_finds_no_way_out() -> None:
    if landlock.version() < 4:
        pytest.skip("this kernel's Landlock does not know ports")
    with socket.create_server(("127.0.0.1", 0)) as other:
        ways = WAYS_OUT.replace("OPEN", str(other.getsockname()[1]))
        done = subprocess.run(
            [PYTHON, "-I", "-c", ways],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: confine_program(PYTHON, [free_port()]),
        )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_a_program_that_ends_is_said_and_ends_the_outlet() -> None:
    with serving() as served:
        served.process.kill()
        with pytest.raises(AssertionError, match="the RTSP server has ended"):
            served.until(lambda: False)


def test_a_system_without_python_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rtsp_server, "PYTHON", tmp_path / "python3")
    config = Config(out=(f"serve+rtsp://127.0.0.1:{free_port()}/cam",))
    with pytest.raises(ConfigError, match="sudo apt install python3 python3-gi"):
        prepare(config, config.targets[0])


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(out=(f"serve+rtsp://127.0.0.1:{taken.getsockname()[1]}/cam",), token=TOKEN)
        with pytest.raises(SinkError, match="did not start; it has said why"):
            prepare(config, config.targets[0])
    assert "another program may do so" in capfd.readouterr().err
