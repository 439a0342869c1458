"""The HTTP server and hostile clients: other sites' pages, slow and greedy clients, malformed requests."""

import http.client
import socket
import time
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.frames import SanitizedFrame
from edgesan.transmit import admission
from edgesan.transmit import http as server_module
from tests.transmit.server import LiveServer, Make, Serve, is_closed, until

JSON = {"Content-Type": "application/json"}


def answers(live: LiveServer) -> bool:
    """Whether there is room for one more."""
    with suppress(ConnectionError):
        return live.get("/healthz")[0] == 200
    return False


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},  # another port of this machine
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},  # a form
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
def test_another_sites_page_cannot_turn_the_dial(serve: Serve, headers: dict[str, str]) -> None:
    live = serve()
    for method in ("PUT", "POST"):
        assert live.get("/api/alpha", method, '{"alpha": 0.1}', **JSON, **headers)[0] == 403
    assert live.get("/api/alpha", "OPTIONS", Access_Control_Request_Method="PUT", **headers)[0] == 403
    assert live.asked == []


@pytest.mark.parametrize("destination", ["image", "iframe", "empty", "script", "embed"])
def test_another_sites_page_cannot_show_or_read_the_stream(serve: Serve, destination: str) -> None:
    live = serve()
    mode = {"iframe": "navigate", "empty": "cors"}.get(destination, "no-cors")
    for site in ("cross-site", "same-site"):
        for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status"):
            headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": destination}
            assert live.get(path, **headers)[0] == 403


def test_the_page_itself_a_link_to_it_and_no_browser_at_all_may(serve: Serve, sanitized_frame: Make) -> None:
    live = serve()
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Origin": f"http://127.0.0.1:{live.port}"}
    old = {"Origin": f"http://127.0.0.1:{live.port}"}
    for headers in (own, old, {}):
        assert live.get("/api/alpha", "PUT", '{"alpha": 0.1}', **JSON, **headers)[0] == 202
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert live.get("/", **link)[0] == 200
    assert live.get("/", Sec_Fetch_Site="none")[0] == 200


def test_every_answer_forbids_other_sites_and_caches(serve: Serve, sanitized_frame: Make) -> None:
    live = serve()
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    answers = [live.get(path) for path in ("/", "/page.js", "/snapshot.jpg", "/api/status", "/metrics", "/nothing")]
    answers += [live.get("/", Host="evil.example"), live.get("/", "DELETE"), live.get("/" + "x" * 5000)]
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=5)) as viewer:
        viewer.request("GET", "/stream.mjpg")
        answer = viewer.getresponse()
        answers.append((answer.status, b"", dict(answer.getheaders())))
    assert {status for status, _, _ in answers} == {200, 400, 403, 404, 405}
    for _, _, headers in answers:
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Server"] == "edgesan"
        assert not [name for name in headers if name.startswith("Access-Control")]


def test_a_token_in_the_address_shows_and_changes_nothing(serve: Serve, sanitized_frame: Make) -> None:
    live = serve("s3cret")
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    assert live.get("/?token=s3cret")[0] == 200
    assert live.get("/api/alpha?token=s3cret", "PUT", '{"alpha": 0.1}', **JSON)[0] == 401
    assert live.get("/?token=s3cret", Authorization="Bearer wrong")[0] == 401
    assert live.asked == []
    assert live.get("/api/alpha", "PUT", '{"alpha": 0.1}', **JSON, Authorization="Bearer s3cret")[0] == 202
    assert live.asked == [0.1]


def test_no_answer_says_the_token(serve: Serve) -> None:
    live = serve("s3cret")
    for path in (
        "/?token=s3cret",
        "/page.js?token=s3cret",
        "/api/status?token=s3cret",
        "/metrics?token=s3cret",
        "/nothing?token=s3cret",
    ):
        _, body, headers = live.get(path)
        assert b"s3cret" not in body
        assert "s3cret" not in str(headers)


@pytest.mark.parametrize("token", ["two words", "ümlaut", "line\n", "tab\t"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token holds"):
        Config(token=token)


def test_who_says_nothing_or_drips_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.5)
    live = serve()
    with live.connect() as silent, live.connect() as dripping:
        started = time.monotonic()
        with suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100:
                dripping.send(bytes([byte]))
                time.sleep(0.02)
        assert is_closed(silent)
        assert is_closed(dripping)
        assert time.monotonic() - started < 2.5


def test_a_second_request_that_drips_is_cut_off_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.5)
    live = serve()
    with live.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"alive" in connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        assert is_closed(connection)


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_S", 0.2)
    live = serve()
    with live.connect() as connection:
        connection.sendall(
            b"PUT /api/alpha HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 14\r\n\r\n{"alpha"'
        )
        assert b" 408 " in connection.recv(65536)
        assert is_closed(connection)
    assert live.asked == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(b"X%d: x\r\n" % n for n in range(60)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"x" * 10_000_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\nHost: 127.0.0.1\n\n\n",
        b"\0" * 100,
    ],
    ids=["a long address", "a long field", "many fields", "a field without end", "TLS", "bare line feeds", "zeros"],
)
def test_a_head_that_is_too_large_or_no_http_is_refused_in_a_few_words(
    serve: Serve, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    live = serve()
    with live.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(head)
        with suppress(ConnectionError):
            answer = connection.recv(65536)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
            assert b"xxx" not in answer
        assert is_closed(connection)
    assert live.get("/healthz")[0] == 200
    assert capfd.readouterr().err == "", "what strangers send must not fill the log"


def test_a_large_body_is_refused_and_a_packed_one_is_not_unpacked(serve: Serve) -> None:
    import gzip

    live = serve()
    assert live.get("/api/alpha", "PUT", b"x" * 100_000, **JSON)[0] == 413
    packed = gzip.compress(b'{"alpha": 0.1}')
    assert live.get("/api/alpha", "PUT", packed, **JSON, Content_Encoding="gzip")[0] == 400
    chunked = (
        b"PUT /api/alpha HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    )
    with live.connect() as connection:
        connection.sendall(chunked)
        assert b" 400 " in connection.recv(65536)
    assert live.asked == []


def test_one_address_cannot_take_all_connections(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_OF_ONE", 4)
    monkeypatch.setattr(admission, "MOST_CONNECTIONS", 6)
    live = serve()
    with ExitStack() as stack:
        greedy = [stack.enter_context(live.connect("127.0.0.2")) for _ in range(6)]
        until(lambda: live.totals().get("refused_connections") == 2)
        assert [is_closed(each) for each in greedy[4:]] == [True, True]
        assert live.get("/healthz")[0] == 200  # from another address there is room
        until(lambda: len([c for c, _ in live.sink._sockets[0].limiter._inside if c.fileno() >= 0]) == 4)
        others = [stack.enter_context(live.connect(f"127.0.0.{n}")) for n in (3, 4, 5)]
        until(lambda: live.totals().get("refused_connections") == 3)
        assert is_closed(others[2])
        greedy[0].close()
        until(lambda: answers(live))
    until(lambda: answers(live))
    refused = live.totals()["refused_connections"]
    assert f"edgesan_refused_connections_total {refused}" in live.get("/metrics")[1].decode()


def test_a_viewer_that_takes_nothing_is_cut_off_and_let_go(
    serve: Serve, sanitized_frame: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "DEAF_S", 1.0)
    live = serve()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    frame = SanitizedFrame._create(noise, sanitized_frame(captured_ns=time.monotonic_ns()).stamps)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", live.port))
        deaf.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: live.viewers() == 1)
        live.send(frame)
        until(lambda: live.viewers() == 0, seconds=15)


def test_a_viewer_that_leaves_is_let_go_before_the_next_frame(serve: Serve) -> None:
    live = serve()
    with live.connect() as viewer:
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: live.viewers() == 1)
    until(lambda: live.viewers() == 0)


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/page.js/../../config.py",
        "/%2e%2e/config.py",
        "/..%2fconfig.py",
        "//etc/passwd",
        "/web/page.js",
        "/page.js%00.png",
        "/.",
        "/page.js/",
        "/\\..\\config.py",
        "http://127.0.0.1/../config.py",
    ],
)
def test_no_path_leads_to_a_file(serve: Serve, path: str) -> None:
    status, body, _ = serve().get(path)
    assert status in (400, 404)
    assert b"import" not in body
