"""The HTTP server and the clips: real sockets, real HTTP clients, real files."""

import asyncio
import http.client
import ipaddress
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgesan.config import Config, is_loopback
from edgesan.errors import ConfigError, SinkError
from edgesan.transmit import admission
from edgesan.transmit.admission import Server, Tokens, host_name, listen
from edgesan.transmit.file import ClipWriter
from edgesan.transmit.http import FRESH_NS, HttpSink
from tests.support import ROOT, free_port
from tests.transmit.server import LiveServer, Make, Viewer, decode, read_parts

TOKEN = "correct-horse-battery"


@pytest.fixture
def serve(sanitized_frame: Make) -> Iterator[Callable[..., LiveServer]]:
    with ExitStack() as stack:

        def make(**options: Any) -> LiveServer:
            return stack.enter_context(closing(LiveServer(sanitized_frame, **options)))

        yield make


# --- the stream -------------------------------------------------------------------------------------------------------


def test_a_viewer_sees_the_stream_move(serve: Callable[..., LiveServer]) -> None:
    parts = read_parts(serve().flow().port, 5)
    pictures = [decode(part) for part in parts]
    assert all(picture.shape == (48, 64, 3) for picture in pictures)
    assert len({int(picture.mean()) for picture in pictures}) == 5


def test_two_viewers_cost_one_encoding_per_frame_and_none_costs_none(serve: Callable[..., LiveServer]) -> None:
    live = serve().flow()
    live.until("/readyz", lambda status, _: status == 200)
    assert live.totals().get("encoded", 0) == 0
    viewers = [threading.Thread(target=read_parts, args=(live.port, 20)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    totals = live.totals()
    assert totals["sent"] >= 38, "the last of each may not be counted yet"
    assert totals["encoded"] <= 0.75 * totals["sent"]


def watch_deaf(port: int) -> socket.socket:
    """A viewer that asks for the stream and never reads it."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return deaf


def test_a_viewer_that_never_reads_holds_nobody_up_and_has_one_picture_under_way(
    serve: Callable[..., LiveServer],
) -> None:
    live = serve(size=(640, 480), noise=True).flow()
    live.until("/readyz", lambda status, _: status == 200)
    with watch_deaf(live.port):
        live.until("/api/status", lambda *_: live.viewers() == 1)
        number = live.number
        while live.number < number + 30:
            time.sleep(0.02)
        assert live.totals().get("sent", 0) <= 1
        assert len(read_parts(live.port, 10)) == 10


def test_the_page_server_ends_at_once_under_its_viewers(serve: Callable[..., LiveServer]) -> None:
    live = serve(size=(640, 480), noise=True).flow()
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
        live.until("/api/status", lambda *_: live.viewers() == 2)
        live.pause()
        started = time.monotonic()
        live.wait(live.sink.close())
        assert time.monotonic() - started < 2
    viewer.join()
    assert ended.is_set()


# --- nothing old ------------------------------------------------------------------------------------------------------


def test_snapshot_health_and_readiness(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    assert live.get("/healthz")[0] == 200
    assert live.get("/readyz")[:2] == live.get("/snapshot.jpg")[:2] == (503, b"no frame yet\n")
    live.picture()
    assert live.get("/readyz")[0] == 200
    status, picture, headers = live.get("/snapshot.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
    assert decode(picture).shape == (48, 64, 3)


def test_a_picture_older_than_a_second_is_served_nowhere_as_live(serve: Callable[..., LiveServer]) -> None:
    assert FRESH_NS == 1_000_000_000
    live = serve()
    live.picture()
    time.sleep(1.05)
    for path in ("/readyz", "/snapshot.jpg"):
        status, text, _ = live.get(path)
        assert (status, text.startswith(b"the newest frame is 1.")) == (503, True)
    assert live.sink.report()["ready"] is False
    live.picture(age_ns=30 * FRESH_NS)
    assert live.get("/snapshot.jpg")[:2] == (503, b"the newest frame is 30.0 s old\n")
    live.picture(slate=True)
    for path in ("/readyz", "/snapshot.jpg"):
        assert live.get(path)[:2] == (503, b"the camera gives no picture\n")
    live.picture()
    for path in ("/readyz", "/snapshot.jpg"):
        assert live.get(path)[0] == 200


def test_a_viewer_that_comes_while_the_picture_is_old_waits_for_the_next(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.picture(age_ns=30 * FRESH_NS, level=10)
    with closing(Viewer(live.port, timeout=0.5)) as viewer, pytest.raises(TimeoutError):
        viewer.read()
    assert "encoded" not in live.totals()
    with closing(Viewer(live.port)) as viewer:
        live.until("/api/status", lambda *_: live.viewers() == 1)
        live.picture(level=200)
        assert decode(viewer.read()).mean() == pytest.approx(200, abs=2)
        live.picture(age_ns=2 * FRESH_NS, level=10)  # one that comes late is not shown either
        live.picture(level=30, slate=True)
        assert decode(viewer.read()).mean() == pytest.approx(30, abs=2)


def test_slates_pass_through_the_stream_and_count_as_no_frames(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    with closing(Viewer(live.port)) as viewer:
        for level in (20, 40):
            live.picture(level=level, slate=True)
            assert decode(viewer.read()).mean() == pytest.approx(level, abs=2)
    assert live.sink.report()["transmit"]["fps"] == 0
    assert "glass_to_wire" not in live.sink.report()["transmit"]["ms"]


# --- the page and the numbers -----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere(serve: Callable[..., LiveServer]) -> None:
    live = serve()
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


def test_metrics_are_prometheus_text(serve: Callable[..., LiveServer]) -> None:
    live = serve().flow()
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
    assert "edgesan_wall_bytes_total 186000.0" in text
    assert "edgesan_wall_messages_total 600.0" in text
    assert "edgesan_wall_refused_total 1.0" in text
    assert "edgesan_refused_connections_total 0.0" in text


def test_the_stream_has_no_head(serve: Callable[..., LiveServer]) -> None:
    assert serve().flow().get("/stream.mjpg", "HEAD")[:2] == (405, b"")


def test_while_nothing_is_told_the_status_and_the_metrics_still_answer(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.status = {}
    assert json.loads(live.get("/api/status")[1])["ready"] is False
    assert "edgesan_wall_bytes_total 0.0" in live.get("/metrics")[1].decode()
    assert json.loads(live.get("/api/alpha")[1]) == {"alpha": None}


# --- the dial ---------------------------------------------------------------------------------------------------------


def turn(live: LiveServer) -> tuple[int, bytes]:
    return live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")[:2]


def test_the_dial_reaches_the_sanitizer(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    live.picture()
    status, body = turn(live)
    assert (status, json.loads(body)) == (202, {"asked": 0.25})
    assert live.asked == [0.25]


def test_the_dial_does_not_turn_while_no_picture_comes(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    assert turn(live) == (503, b"no frame yet: the dial turns while pictures come; ask again\n")
    live.picture(age_ns=30 * FRESH_NS)
    assert turn(live)[0] == 503
    live.picture(slate=True)
    del live.status["model"]  # as while no sanitize process runs
    assert turn(live)[0] == 503
    assert live.asked == []


def test_a_wish_that_nobody_hears_is_refused(serve: Callable[..., LiveServer]) -> None:
    live = serve().flow()
    live.hears = False
    assert turn(live) == (503, b"the sanitizer does not answer; ask again\n")
    live.hears = True
    assert turn(live)[0] == 202


def test_a_wrong_wish_is_refused_and_goes_nowhere(serve: Callable[..., LiveServer]) -> None:
    live = serve().flow()
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
    assert live.asked == []


# --- who may come in --------------------------------------------------------------------------------------------------

NO_HOSTS = ("", "[::1]evil.example", "[::1]:80evil", "localhost:80:80", "user@127.0.0.1", "127.0.0.1@evil.example",
            "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:080000", "127.0.0.1:-1", "127.0.0.1:\u0661",
            "127.0.0.1%00", "%6cocalhost", "[::1%25lo]", "[::1%lo]", "[127.0.0.1]", "[::1", "::1", "[]", "[:::1]",
            "127.0.0.1/", "127.0.0.1,evil.example", "127.0.0.1 ", "127.0.0.1\n", "http://127.0.0.1", "[v1.a]", "a" * 254)  # fmt: skip
PIECES = ("127.0.0.1", "localhost", "[::1]", "::1", ":80", ":", "evil.example", "@", "%", ".", "[", "]", "\u212a", " ")


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_no_host_and_port_names_nobody(text: str) -> None:
    assert host_name(text) is None


@given(
    st.ip_addresses().map(str) | st.from_regex(r"[a-z0-9][a-z0-9.-]{0,60}", fullmatch=True),
    st.none() | st.integers(1, 65535),
)
def test_each_host_is_found_with_and_without_its_port(host: str, port: int | None) -> None:
    written = f"[{host}]" if ":" in host else host
    assert host_name(written.upper() if port is None else f"{written}:{port}") == host


@given(
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
    | st.text("127.0:[]@%/ \t\nlocahst\u0661\u212a", max_size=24)
)
@example("[::1]evil.example")
def test_a_host_is_all_that_the_field_holds_but_its_port(text: str) -> None:
    host = host_name(text)
    if host is None:
        return
    written = f"[{host}]" if ":" in host else host
    name, port = text[: len(written)], text[len(written) :]
    assert name.lower() == written
    assert name.isascii()
    assert port == "" or (port[0] == ":" and port.isascii() and port[1:].isdecimal() and 0 < int(port[1:]) < 65536)
    if is_loopback(host):
        assert host in ("localhost", "::1") or ipaddress.IPv4Address(host).is_loopback


def raw(live: LiveServer, *lines: bytes) -> bytes:
    """The first line of the answer to a request of these lines."""
    with live.connect() as connection:
        connection.sendall(b"\r\n".join((*lines, b"Connection: close", b"", b"")))
        return connection.recv(65536).partition(b"\r\n")[0]


def test_a_page_under_another_name_is_refused(serve: Callable[..., LiveServer]) -> None:
    live = serve()
    for host in (f"localhost:{live.port}", "LocalHost", "[::1]:8080", "127.0.0.1"):
        assert live.get("/", Host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7", "0.0.0.0", "localhost.",
                 "127.1", "2130706433", "0x7f.0.0.1"):  # fmt: skip
        assert live.get("/api/status", Host=host)[0] == 403
    for host in NO_HOSTS:
        if host == host.strip() and host.isascii():  # the space around a field is not part of it
            assert b" 400 " in raw(live, b"GET /api/status HTTP/1.1", b"Host: " + host.encode()), host
    assert b" 400 " in raw(live, b"GET /snapshot.jpg HTTP/1.0")
    assert b" 400 " in raw(live, b"GET / HTTP/1.1", b"Host: 127.0.0.1", b"Host: 127.0.0.1")


def test_with_a_token_too_the_host_must_be_one(serve: Callable[..., LiveServer]) -> None:
    live = serve(token=TOKEN)
    assert live.get(f"/?token={TOKEN}", Host="porch.example:8443")[0] == 200
    for host in ("[::1]evil.example", "porch.example:80:80", ""):
        assert live.get(f"/?token={TOKEN}", Host=host)[0] == 400


def test_with_a_token_nothing_is_shown_without_it(serve: Callable[..., LiveServer]) -> None:
    live = serve(token=TOKEN)
    for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status", "/metrics", "/healthz"):
        assert live.get(path)[0] == 401
    for wrong in ("wrong", f"{TOKEN}%20", TOKEN.upper(), "%FF%FE", ""):
        assert live.get(f"/?token={wrong}")[0] == 401
    for header in (TOKEN, "Bearer wrong", "Bearer", f"Basic {TOKEN}", "Bearer \xff\xfe"):
        assert live.get("/api/status", Authorization=header)[0] == 401
    assert live.get(f"/?token={TOKEN}")[0] == 200
    assert live.get("/api/status", Authorization=f"Bearer {TOKEN}")[0] == 200
    for asset in ("/page.js", "/page.css", "/icon.svg"):
        assert live.get(asset)[0] == 200


@pytest.mark.parametrize("out", ["http://0.0.0.0:8080", "http://[::]:8080", "http://porch.example", "http://192.0.2.7"])
def test_a_short_token_is_refused_beyond_loopback(out: str) -> None:
    for short in ("~", "~" * 15):
        with pytest.raises(ConfigError, match="at least 16; make one with: openssl rand -hex 16") as caught:
            Config(out=(out,), token=short)
        assert "~" not in str(caught.value)
    Config(out=(out,), token="~" * 16)
    Config(out=("http://127.0.0.1:8080",), token="~")


def test_guesses_from_one_address_become_few_and_nobody_else_waits(serve: Callable[..., LiveServer]) -> None:
    live = serve(token=TOKEN)
    end = time.monotonic() + 3
    answers: list[tuple[int, bytes, dict[str, str]]] = []

    def guess(number: int) -> None:
        tries = 0
        while time.monotonic() < end:
            tries += 1
            answers.append(live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {number}-{tries}"))

    guessers = [threading.Thread(target=guess, args=(number,)) for number in range(4)]
    for each in guessers:
        each.start()
    mine = []
    while time.monotonic() < end:
        started = time.monotonic()
        assert live.get("/healthz", Authorization=f"Bearer {TOKEN}")[0] == 200
        mine.append(time.monotonic() - started)
        time.sleep(0.02)
    for each in guessers:
        each.join()
    counts = Counter(status for status, _, _ in answers)
    print(
        f"{len(answers) / 3:.0f} tries a second, {counts[401]} of them looked at in 3 s; others waited {max(mine):.3f} s"
    )
    assert set(counts) == {401, 429}
    assert 8 <= counts[401] <= 12, "nine at once, then one after 0.5, 1 and 2 s more"
    assert counts[429] > 50
    assert all(1 <= int(headers["Retry-After"]) <= 8 for status, _, headers in answers if status == 429)
    assert max(mine) < 1
    status, text, headers = live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {TOKEN}")
    assert (status, b"too many wrong tokens" in text) == (429, True)
    time.sleep(int(headers["Retry-After"]))
    assert live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {TOKEN}")[0] == 200


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def guesses(tokens: Tokens, clock: Clock, seconds: float, name: str) -> int:
    """How many guesses of one address are looked at in that time, at a thousand a second."""
    looked_at = 0
    for number in range(int(seconds * 1000)):
        if tokens.pause_s("192.0.2.1", f"{name}{number}") == 0:
            assert not tokens.is_right("192.0.2.1", f"{name}{number}")
            looked_at += 1
        clock.now_s += 0.001
    return looked_at


def test_the_pause_grows_to_some_seconds_and_is_forgotten() -> None:
    clock = Clock()
    tokens = Tokens(TOKEN, clock)
    assert guesses(tokens, clock, 0.1, "a") == admission.FREE_GUESSES + 1
    assert 14 <= guesses(tokens, clock, 100, "b") <= 16
    assert 0 < tokens.pause_s("192.0.2.1", TOKEN) <= admission.MOST_PAUSE_S
    assert tokens.pause_s("192.0.2.2", TOKEN) == 0
    clock.now_s += admission.MOST_PAUSE_S
    assert tokens.pause_s("192.0.2.1", TOKEN) == 0
    assert tokens.is_right("192.0.2.1", TOKEN)
    clock.now_s += admission.FORGET_S
    assert guesses(tokens, clock, 0.1, "c") == admission.FREE_GUESSES + 1


def test_a_page_left_open_with_an_old_token_slows_nobody() -> None:
    clock = Clock()
    tokens = Tokens(TOKEN, clock)
    for _ in range(1000):
        for old in ("of last year", ""):
            assert tokens.pause_s("192.0.2.1", old) == 0
            assert not tokens.is_right("192.0.2.1", old)
        clock.now_s += 0.5
    assert tokens.pause_s("192.0.2.1", TOKEN) == 0


def test_guesses_from_many_ipv6_addresses_of_one_owner_are_of_one() -> None:
    tokens = Tokens(TOKEN, Clock())
    for number in range(admission.FREE_GUESSES + 1):
        assert not tokens.is_right(f"2001:db8::{number:x}", f"{number}")
    assert tokens.pause_s("2001:db8::ffff:1", TOKEN) > 0
    assert tokens.pause_s("2001:db8:0:1::1", TOKEN) == 0
    assert tokens.pause_s("fe80::1%eth0", TOKEN) == 0


def test_what_is_remembered_of_those_who_guess_is_bounded() -> None:
    tokens = Tokens(TOKEN, Clock())
    for number in range(2 * admission.MOST_GUESSERS):
        for guess in range(12):
            tokens.is_right(f"10.0.{number // 256}.{number % 256}", f"{guess}" * 1000)
    assert len(tokens._guessers) == admission.MOST_GUESSERS
    assert all(len(each.wrong) == admission.FREE_GUESSES for each in tokens._guessers.values())
    assert tokens.pause_s("10.0.0.0", TOKEN) == 0
    assert tokens.pause_s("10.0.7.255", TOKEN) > 0


# --- ports ------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SinkError, match=r"cannot listen on .* choose another one, such as --out"):
            listen(f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid", "[2001:db8::1]", "a" * 70, "x..y"])
def test_an_address_that_is_not_of_this_machine_is_a_clear_error(host: str) -> None:
    with pytest.raises(SinkError, match=r"cannot listen on .*(name an address of this machine|is not a host name)"):
        listen(f"http://{host}:{free_port()}")


def test_who_comes_before_the_server_starts_is_answered_then() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    sockets = listen(address)
    with socket.create_connection(sockets[0].getsockname(), timeout=5) as early:
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

        async def serve() -> bytes:
            sink = HttpSink(Server(address, sockets), "", dict, lambda _: True)
            await sink.start()
            answer = await asyncio.to_thread(early.recv, 65536)
            await sink.close()
            return answer

        assert asyncio.run(serve()).startswith(b"HTTP/1.1 200 OK")
    assert sockets[0].fileno() == -1


def test_a_server_that_never_starts_gives_its_port_back() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    asyncio.run(HttpSink(Server(address, listen(address)), "", dict, lambda _: True).close())
    for each in listen(address):
        each.close()


ISOLATED = """
import asyncio, ctypes, errno, platform, socket, struct, sys, threading
from edgesan.transmit.admission import Server, listen
from edgesan.transmit.tls import tls_context

address = sys.argv[1]
sockets, loop = listen(address), asyncio.new_event_loop()
assert not {"numpy", "cv2", "aiohttp"} & set(sys.modules)
assert threading.active_count() == 1
# socket, socketpair, connect, bind and listen (asm/unistd.h) fail with EPERM from now on: seccomp(2), linux/bpf_common.h
numbers = {"x86_64": (41, 53, 42, 49, 50), "aarch64": (198, 199, 203, 200, 201)}[platform.machine()]
steps = [(0x20, 0, 0, 0), *((0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers)),
         (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50000 | errno.EPERM)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, struct.pack("@HP", len(steps), ctypes.addressof(code)), 0, 0) == 0
for call in (socket.socket, socket.socketpair, lambda: sockets[0].connect(("127.0.0.1", 1)),
             lambda: sockets[0].bind(("127.0.0.1", 0)), lambda: socket.socket.listen(sockets[0])):
    try:
        call()
        print("allowed")
    except OSError as error:
        print(errno.errorcode[error.errno])

from edgesan.transmit.http import HttpSink

async def serve():
    sink = HttpSink(Server(address, sockets), "", dict, lambda _: True)
    await sink.start()
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await sink.close()
    await loop.shutdown_default_executor()

loop.run_until_complete(serve())
loop.close()
"""


def test_once_it_has_its_sockets_the_server_needs_no_call_that_makes_or_binds_one() -> None:
    port = free_port()
    child = subprocess.Popen(
        [sys.executable, "-c", ISOLATED, f"http://127.0.0.1:{port}"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    said = [child.stdout.readline().strip() for _ in range(6)]
    for _ in range(3 if said[-1] == "serving" else 0):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"alive\n"
    _, errors = child.communicate("", timeout=10)
    assert (said, errors, child.returncode) == (["EPERM"] * 5 + ["serving"], "", 0)


# --- clips ------------------------------------------------------------------------------------------------------------


def times(path: Path) -> list[float]:
    """When each picture of a clip is shown, in seconds."""
    with av.open(str(path)) as container:
        return [picture.time for picture in container.decode(video=0) if picture.time is not None]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "2026-11-23T10:30:00.mkv"])
def test_a_clip_keeps_the_times_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitized_frame: Make, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with Path(name).open("xb") as file:
        writer = ClipWriter(file, Path(name))
        write_clip(writer, sanitized_frame)
    assert times(tmp_path / name) == pytest.approx([0, 0.033, 0.1, 0.101, 0.102, 2.5])


def write_clip(writer: ClipWriter, sanitized_frame: Make) -> None:
    for number, seconds in enumerate((0, 0.033, 0.1, 0.1, 0.05, 2.5)):  # it stood still, went back, and paused
        writer.write(sanitized_frame(number), seconds)
    writer.close()
    writer.close()


def test_a_clip_without_a_frame_stays_empty(tmp_path: Path) -> None:
    with (tmp_path / "clip.mp4").open("xb") as file:
        ClipWriter(file, tmp_path / "clip.mp4").close()
    assert (tmp_path / "clip.mp4").stat().st_size == 0


def test_a_clip_refuses_another_size_and_a_single_column(tmp_path: Path, sanitized_frame: Make) -> None:
    path = tmp_path / "clip.mkv"
    with path.open("xb") as file, closing(ClipWriter(file, path)) as writer:
        with pytest.raises(SinkError, match="at least 2x2"):
            writer.write(sanitized_frame(size=(1, 40)), 0)
        writer.write(sanitized_frame(), 0)
        with pytest.raises(SinkError, match="start a new file"):
            writer.write(sanitized_frame(size=(32, 24)), 1)


def test_a_missing_codec_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesan.transmit.file.CODEC", "libx999")
    path = tmp_path / "clip.mkv"
    with path.open("xb") as file, pytest.raises(SinkError, match=r"has no libx999 here .*: .*libx264"):
        ClipWriter(file, path)
    assert path.stat().st_size == 0
