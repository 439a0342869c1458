"""TLS: certificates and keys from files, and what is refused."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from edgesan.board import doctor
from edgesan.config import Config
from edgesan.errors import ConfigError, SinkError
from edgesan.transmit import http as server_module
from edgesan.transmit.tls import tls_context
from tests.support import free_port
from tests.transmit.server import Make, Serve, is_closed


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
    serve: Serve, authority: trustme.CA, files: tuple[Path, Path, Path], sanitized_frame: Make
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
    serve: Serve, authority: trustme.CA, files: tuple[Path, Path, Path]
) -> None:
    live = serve("", files[2])
    assert secure_get(live.port, trusting(authority), "/healthz")[0] == 200


def test_nothing_older_than_tls_1_2_is_spoken(
    serve: Serve, authority: trustme.CA, files: tuple[Path, Path, Path]
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
    serve: Serve, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
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
        [
            sys.executable,
            "-m",
            "edgesan",
            "run",
            "--camera",
            "demo",
            "--out",
            f"https://127.0.0.1:{free_port()}",
            "--tls-cert",
            str(certificate),
            "--tls-key",
            str(tmp_path / "gone.pem"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == SinkError.exit_code
    assert done.stderr.count("\n") == 1
    assert "cannot read" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": ("https://127.0.0.1:8443",)}, "it needs a certificate"),
        ({"tls_cert": Path("c.pem")}, "are for https"),
        ({"out": ("a.mkv",), "tls_key": Path("k.pem")}, "are for https"),
        ({"out": ("https://0.0.0.0:8443",), "tls_cert": Path("c.pem")}, "must present a secret"),
        ({"out": ("https://127.0.0.1:8443", "http://127.0.0.1:8080"), "tls_cert": Path("c.pem")}, "more than one"),
    ],
)
def test_tls_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**options)
