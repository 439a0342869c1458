"""Network cameras: a real HTTP camera, redirects, and the options of FFmpeg."""

import re
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import av
import pytest

from edgesan.errors import CameraError, CameraLost
from edgesan.fetch import camera as fetched
from tests.capture.support import HttpCamera, index_of, open_camera, play, take, write_clip
from tests.support import report


def test_a_network_camera_gives_its_newest_frame_however_slow_the_consumer_is(http_camera: HttpCamera) -> None:
    with closing(open_camera(http_camera.url, (160, 160))) as source:
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
    with closing(open_camera(http_camera.url, fps=5)) as source:
        take(source)
        started_s = time.monotonic()
        for _ in range(4):
            take(source)
        assert time.monotonic() - started_s > 0.5


def test_a_network_camera_that_goes_away_is_lost_and_can_be_opened_again(http_camera: HttpCamera) -> None:
    with closing(open_camera(http_camera.url)) as source:
        take(source)
        http_camera.unplug()
        with pytest.raises(CameraLost, match="unplugged, switched off or out of reach"):
            list(play(source))
    with pytest.raises(CameraError, match=rf"cannot open http://127\.0\.0\.1:{http_camera.port}: nothing listens"):
        open_camera(http_camera.url)
    http_camera.plug_in()
    with closing(open_camera(http_camera.url)) as source:
        take(source)


def test_a_network_camera_that_falls_silent_is_lost_within_the_timeout(
    http_camera: HttpCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "NETWORK_TIMEOUT_S", 1.0)
    with closing(open_camera(http_camera.url)) as source:
        take(source)
        http_camera.silent.set()
        started_s = time.monotonic()
        with pytest.raises(CameraLost, match=r"gave no picture for 0\.4 s"):
            list(play(source, timeout_s=0.4))
        assert time.monotonic() - started_s < 3


def test_a_recording_behind_a_url_is_no_camera(http_camera: HttpCamera) -> None:
    with pytest.raises(CameraError, match="is a recording, not a camera: download it"):
        open_camera(f"http://127.0.0.1:{http_camera.port}/clip.mp4")


def test_a_closed_port_is_refused_quickly() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        started_s = time.monotonic()
        with pytest.raises(CameraError, match="nothing listens at port"):
            open_camera(f"rtsp://127.0.0.1:{reserved.getsockname()[1]}/stream")
        assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401 Unauthorized", r"it wants a user name and a password \(401\)"),
        ("403 Forbidden", r"lets this user not see the stream \(403\)"),
        ("404 Not Found", r"it has nothing at this path \(404\)"),
        ("500 Internal Server Error", "is this the address of its video stream"),
    ],
)
def test_what_a_camera_refuses_is_said(scheme: str, status: str, words: str) -> None:
    protocol = "RTSP/1.0" if scheme == "rtsp" else "HTTP/1.1"
    asks = f'WWW-Authenticate: {"Digest" if scheme == "rtsp" else "Basic"} realm="cam", nonce="a"\r\n'
    answer = f"{protocol} {status}\r\nCSEQ{asks if status.startswith('401') else ''}Content-Length: 0\r\n\r\n"
    with closing(Redirecting(answer.encode())) as camera, pytest.raises(CameraError, match=words):
        open_camera(f"{scheme}://127.0.0.1:{camera.port}/stream")
    if status.startswith("401"):
        with (
            closing(Redirecting(answer.encode())) as camera,
            pytest.raises(CameraError, match="the user name or the password is wrong") as caught,
        ):
            open_camera(f"{scheme}://root:s3cret@127.0.0.1:{camera.port}/stream")
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "rtsp", "https", "rtsps"])
def test_a_camera_that_hangs_is_told_from_one_that_is_off(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "NETWORK_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = "nobody answers within" if scheme.endswith("s") else "it was reached, but does not answer"
        with pytest.raises(CameraError, match=words):
            open_camera(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/stream")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_camera_that_answers_and_then_hangs_is_told_too(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "NETWORK_TIMEOUT_S", 0.5)
    fine = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
    answers = (fine if scheme == "http" else b"RTSP/1.0 401 Unauthorized\r\nCSEQ\r\n", b"")
    with (
        closing(Redirecting(*answers, hold_s=3)) as camera,
        pytest.raises(CameraError, match="it was reached, but sends no video"),
    ):
        open_camera(f"{scheme}://127.0.0.1:{camera.port}/stream")


def test_a_name_that_nobody_has_and_a_page_are_no_camera() -> None:
    with pytest.raises(CameraError, match=r"there is no host of the name camera\.invalid"):
        open_camera("rtsp://camera.invalid/stream")
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>no</html>"
    with closing(Redirecting(page)) as camera, pytest.raises(CameraError, match="what it sends is no video"):
        open_camera(f"http://127.0.0.1:{camera.port}/")
    with closing(Redirecting(b"hello\r\n\r\n")) as plain, pytest.raises(CameraError, match="it speaks no TLS"):
        open_camera(f"https://127.0.0.1:{plain.port}/")


def test_sound_alone_is_no_camera(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    content = (tmp_path / "sound.mkv").read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/x-matroska\r\nContent-Length: {len(content)}\r\n\r\n"
    with closing(Redirecting(head.encode() + content)) as camera, pytest.raises(CameraError, match="it sends no video"):
        open_camera(f"http://127.0.0.1:{camera.port}/")


class Elsewhere:
    """An address that a camera may redirect to; it keeps what is asked of it. It is local, as a router's would be."""

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

    def __init__(self, *answers: bytes, encryption: ssl.SSLContext | None = None, hold_s: float = 0) -> None:
        self._answers, self._encryption, self.asked = list(answers), encryption, list[bytes]()
        self._hold_s = hold_s  # after the last answer, before hanging up
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
                        if not answer and self._hold_s:
                            time.sleep(self._hold_s)
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
    location = f"{to}://root:s3cret@127.0.0.1:{elsewhere.port}/s3cret"
    answer = f"{protocol} {status}\r\nCSEQLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    with closing(Redirecting(answer.encode(), encryption=encryption)) as camera:
        with pytest.raises(CameraError) as caught:
            open_camera(f"{scheme}://root:s3cret@127.0.0.1:{camera.port}/s3cret")
        assert camera.asked, "nobody asked it"
    message = str(caught.value)
    assert message.startswith(
        f"{scheme}://127.0.0.1:{camera.port} redirects to {to}://127.0.0.1:{elsewhere.port}, which is not followed"
    )
    assert message.endswith("If you trust that address, give it")
    assert "s3cret" not in message
    assert elsewhere.close() == []
    report(f"a camera of {scheme} redirects ({status})", "refused, the other address is not asked", 0)


def test_a_camera_that_redirects_only_the_second_question_is_not_followed_either() -> None:
    """The first is ours, the second FFmpeg's."""
    if av.library_versions["libavformat"] < (62,):
        pytest.skip("this PyAV has an FFmpeg that knows no max_redirects")
    elsewhere = Elsewhere()
    fine = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
    moved = f"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:{elsewhere.port}/\r\n\r\n".encode()
    with closing(Redirecting(fine, moved)) as camera:
        with pytest.raises(CameraError, match="cannot open"):
            open_camera(f"http://127.0.0.1:{camera.port}/")
        assert len(camera.asked) == 2
    assert elsewhere.close() == []
    report("a camera of http redirects the second question only", "not opened, the other address is not asked", 0)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (b"Location: /login?s3cret\r\n", "another path of its own"),
        (b"", "another path of its own"),
        (b"Location: http://[::1/\r\n", "an invalid address"),
        (b"location:http://h\x1b[2J/\r\n", "an invalid address"),
        (b"Location: \xff\xfe\r\n", "another path of its own"),
    ],
)
def test_an_address_in_a_message_is_printable(location: bytes, words: str) -> None:
    with (
        closing(Redirecting(b"HTTP/1.1 302 Found\r\n" + location + b"\r\n")) as camera,
        pytest.raises(CameraError, match=f"redirects to {words}, which is not followed") as caught,
    ):
        open_camera(f"http://127.0.0.1:{camera.port}/")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "answer", [b"", b"\r\n", b"\0" * 9, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + bytes(99999), b"x" * 99999]
)
def test_what_is_no_camera_is_an_error(answer: bytes) -> None:
    with closing(Redirecting(answer)) as camera, pytest.raises(CameraError, match="cannot open http://127"):
        open_camera(f"http://127.0.0.1:{camera.port}/")


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
            open_camera(f"http://127.0.0.1:{camera.port}/live.m3u8")
    assert elsewhere.close() == []
    report(f"a camera of http sends a playlist of {place} addresses", "not opened, nothing else is asked", 0)
