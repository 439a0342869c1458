"""The HTTP server among enemies: real sockets, real TLS, whoever reaches the port."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from edgesan.board import doctor
from edgesan.config import Config
from edgesan.errors import ConfigError, SinkError
from edgesan.frames import SanitizedFrame
from edgesan.transmit import admission
from edgesan.transmit import http as server_module
from edgesan.transmit.tls import tls_context
from tests.support import free_port
from tests.transmit.server import Make, ServerThread, is_closed, until

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerThread]]:
    with ExitStack() as stack:

        def start(*arguments: Any) -> ServerThread:
            served = ServerThread(*arguments)
            stack.callback(served.close)
            return served

        yield start


def answers(live: ServerThread) -> bool:
    """Whether there is room for one more."""
    with suppress(ConnectionError):
        return live.get("/healthz")[0] == 200
    return False


# --- another site's page in the user's browser ---


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
def test_another_sites_page_cannot_turn_the_dial(serve: Callable[..., ServerThread], headers: dict[str, str]) -> None:
    live = serve()
    for method in ("PUT", "POST"):
        assert live.get("/api/alpha", method, '{"alpha": 0.1}', **JSON, **headers)[0] == 403
    assert live.get("/api/alpha", "OPTIONS", Access_Control_Request_Method="PUT", **headers)[0] == 403
    assert live.asked == []


@pytest.mark.parametrize("destination", ["image", "iframe", "empty", "script", "embed"])
def test_another_sites_page_cannot_show_or_read_the_stream(
    serve: Callable[..., ServerThread], destination: str
) -> None:
    live = serve()
    mode = {"iframe": "navigate", "empty": "cors"}.get(destination, "no-cors")
    for site in ("cross-site", "same-site"):
        for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status"):
            headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": destination}
            assert live.get(path, **headers)[0] == 403


def test_the_page_itself_a_link_to_it_and_no_browser_at_all_may(
    serve: Callable[..., ServerThread], sanitized_frame: Make
) -> None:
    live = serve()
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Origin": f"http://127.0.0.1:{live.port}"}
    old = {"Origin": f"http://127.0.0.1:{live.port}"}
    for headers in (own, old, {}):
        assert live.get("/api/alpha", "PUT", '{"alpha": 0.1}', **JSON, **headers)[0] == 202
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert live.get("/", **link)[0] == 200
    assert live.get("/", Sec_Fetch_Site="none")[0] == 200


def test_every_answer_forbids_other_sites_and_caches(serve: Callable[..., ServerThread], sanitized_frame: Make) -> None:
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


# --- the token ---


def test_a_token_in_the_address_shows_and_changes_nothing(
    serve: Callable[..., ServerThread], sanitized_frame: Make
) -> None:
    live = serve("s3cret")
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    assert live.get("/?token=s3cret")[0] == 200
    assert live.get("/api/alpha?token=s3cret", "PUT", '{"alpha": 0.1}', **JSON)[0] == 401
    assert live.get("/?token=s3cret", Authorization="Bearer wrong")[0] == 401
    assert live.asked == []
    assert live.get("/api/alpha", "PUT", '{"alpha": 0.1}', **JSON, Authorization="Bearer s3cret")[0] == 202
    assert live.asked == [0.1]


def test_no_answer_says_the_token(serve: Callable[..., ServerThread]) -> None:
    live = serve("s3cret")
    for path in ("/?token=s3cret", "/page.js?token=s3cret", "/api/status?token=s3cret", "/metrics?token=s3cret",
                 "/nothing?token=s3cret"):  # fmt: skip
        _, body, headers = live.get(path)
        assert b"s3cret" not in body
        assert "s3cret" not in str(headers)


@pytest.mark.parametrize("token", ["two words", "ümlaut", "line\n", "tab\t"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token holds"):
        Config(token=token)


# --- the slow, the greedy and the deaf ---


def test_who_says_nothing_or_drips_is_cut_off(
    serve: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_second_request_that_drips_is_cut_off_too(
    serve: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_S", 0.5)
    live = serve()
    with live.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"alive" in connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        assert is_closed(connection)


def test_a_body_that_does_not_come_is_not_waited_for(
    serve: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    serve: Callable[..., ServerThread], head: bytes, capfd: pytest.CaptureFixture[str]
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


def test_a_large_body_is_refused_and_a_packed_one_is_not_unpacked(serve: Callable[..., ServerThread]) -> None:
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


def test_one_address_cannot_take_all_connections(
    serve: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_many_ipv6_addresses_of_one_owner_are_one() -> None:
    limiter = admission.ConnectionLimiter()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(admission.MOST_OF_ONE + 2)]
        admitted = [limiter.admit(each, f"2001:db8::{n + 1:x}") for n, each in enumerate(sockets[:-1])]
        assert admitted == [True] * admission.MOST_OF_ONE + [False]
        assert limiter.admit(sockets[-1], "fe80::1%eth0")


def test_a_viewer_that_takes_nothing_is_cut_off_and_let_go(
    serve: Callable[..., ServerThread], sanitized_frame: Make, monkeypatch: pytest.MonkeyPatch
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


def test_a_viewer_that_leaves_is_let_go_before_the_next_frame(serve: Callable[..., ServerThread]) -> None:
    live = serve()
    with live.connect() as viewer:
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: live.viewers() == 1)
    until(lambda: live.viewers() == 0)


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/page.js/../../config.py", "/%2e%2e/config.py", "/..%2fconfig.py", "//etc/passwd",
     "/web/page.js", "/page.js%00.png", "/.", "/page.js/", "/\\..\\config.py", "http://127.0.0.1/../config.py"],
)  # fmt: skip
def test_no_path_leads_to_a_file(serve: Callable[..., ServerThread], path: str) -> None:
    status, body, _ = serve().get(path)
    assert status in (400, 404)
    assert b"import" not in body


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Certificate, key, and both in one file."""
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, both = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "both.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return certificate, key, both


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def secure_get(port: int, context: ssl.SSLContext, path: str, **headers: str) -> tuple[int, bytes, str]:
    with closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)) as connection:
        connection.request("GET", path, headers=headers)
        version = connection.sock.version()  # type: ignore[union-attr]
        answer = connection.getresponse()
        return answer.status, answer.read(), version


def test_over_tls_everything_is_as_without(
    serve: Callable[..., ServerThread], authority: trustme.CA, files: tuple[Path, Path, Path], sanitized_frame: Make
) -> None:
    live = serve("s3cret", files[0], files[1])
    live.send(sanitized_frame(captured_ns=time.monotonic_ns()))
    port, context = live.port, trusting(authority)
    assert secure_get(port, context, "/snapshot.jpg?token=s3cret")[0] == 200
    with closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)) as viewer:
        viewer.request("GET", "/stream.mjpg?token=s3cret")
        assert viewer.getresponse().read(100).startswith(b"--edgesan-frame\r\nContent-Type: image/jpeg")
    assert secure_get(port, context, "/healthz")[0] == 401
    status, body, version = secure_get(port, context, "/api/status", Authorization="Bearer s3cret")
    assert (status, version) == (200, "TLSv1.3")
    assert json.loads(body)["alpha"] == 0.5
    with pytest.raises(ssl.SSLCertVerificationError):
        secure_get(port, ssl.create_default_context(), "/healthz")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert is_closed(plain)


def test_one_file_may_hold_certificate_and_key(
    serve: Callable[..., ServerThread], authority: trustme.CA, files: tuple[Path, Path, Path]
) -> None:
    live = serve("", files[2])
    assert secure_get(live.port, trusting(authority), "/healthz")[0] == 200


def test_nothing_older_than_tls_1_2_is_spoken(
    serve: Callable[..., ServerThread], authority: trustme.CA, files: tuple[Path, Path, Path]
) -> None:
    live = serve("", files[0], files[1])
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert secure_get(live.port, context, "/healthz")[2] == "TLSv1.2"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(old)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secure_get(live.port, old, "/healthz")


def test_a_handshake_that_does_not_come_is_not_waited_for(
    serve: Callable[..., ServerThread], files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_S", 0.3)
    live = serve("", files[0], files[1])
    with live.connect() as connection:
        connection.sendall(b"\x16\x03\x01")
        assert is_closed(connection)


def test_files_that_are_no_certificate_and_key_are_refused_in_words(
    authority: trustme.CA, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    certificate, key, _ = files
    other, text, locked, gone = (tmp_path / name for name in ("other.pem", "text.pem", "locked.pem", "gone.pem"))
    other.write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
    text.write_text("this is no certificate")
    command = ["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", str(key), "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for pair, words in (
        ((certificate, other), "the key does not belong to the certificate"),
        ((text, key), "damaged, or not a PEM file"),
        ((certificate, text), "damaged, or not a PEM file"),
        ((certificate, None), "damaged, or not a PEM file"),
        ((certificate, locked), "locked with a passphrase"),
        ((gone, key), f"cannot read {gone}: No such file"),
        ((certificate, tmp_path), f"cannot read {tmp_path}: Is a directory"),
    ):
        with pytest.raises(SinkError, match=words):
            tls_context(*pair)
    found = {finding.name: finding.level for finding in doctor.sinks(https(certificate, other))}
    assert found["https"] == "fail"
    found = {finding.name: finding.level for finding in doctor.sinks(https(certificate, key))}
    assert found["https"] == "ok"


def https(certificate: Path, key: Path) -> Config:
    return Config(out=(f"https://127.0.0.1:{free_port()}",), tls_cert=certificate, tls_key=key)


def test_the_run_ends_with_those_words(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    certificate, _, _ = files
    done = subprocess.run(
        [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--out", f"https://127.0.0.1:{free_port()}",
         "--tls-cert", str(certificate), "--tls-key", str(tmp_path / "gone.pem")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == SinkError.exit_code
    assert done.stderr.count("\n") == 1
    assert "cannot read" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": ("https://127.0.0.1:8443",)}, "https needs a certificate"),
        ({"tls_cert": Path("c.pem")}, "are for https"),
        ({"out": ("a.mkv",), "tls_key": Path("k.pem")}, "are for https"),
        ({"out": ("https://0.0.0.0:8443",), "tls_cert": Path("c.pem")}, "must present a secret"),
        ({"out": ("https://127.0.0.1:8443", "http://127.0.0.1:8080"), "tls_cert": Path("c.pem")}, "more than one"),
    ],
)
def test_tls_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**options)
