"""The one error, or none: hostile bytes at every parser. EDGESAN_FUZZ=100 tries a hundred times as many."""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesan import config
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.errors import CameraError, ConfigError, EndOfStream
from edgesan.frames import SanitizedFrame, Stamps
from edgesan.transmit.file import ClipWriter
from tests import fuzz_message, fuzz_request
from tests.model import fuzz as fuzz_model
from tests.transmit.server import ServerThread, is_closed

MORE = int(os.environ.get("EDGESAN_FUZZ", "1"))


def examples(count: int) -> settings:
    """So many, always the same ones."""
    return settings(
        max_examples=count * MORE,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def mutate(rng: random.Random, content: bytes) -> bytes:
    return fuzz_model.change_bytes(rng, content)


# --- the model ---


@examples(300)
@given(st.randoms(use_true_random=False), st.integers(0, 15))
def test_a_changed_model_is_verified_or_refused(rng: random.Random, which: int) -> None:
    fuzz_model.verdict(fuzz_model.change(rng, fuzz_model.SEEDS[which == 0]))


@examples(100)
@given(st.binary(max_size=300))
def test_any_bytes_are_no_model(content: bytes) -> None:
    assert fuzz_model.verdict(content) == "refused"


def test_the_fuzzers_own_models_are_sanitizers() -> None:
    assert [fuzz_model.verdict(content) for content in fuzz_model.SEEDS] == ["verified", "verified"]


def test_nothing_kills_the_process_that_loads_it() -> None:
    assert fuzz_model.run_loading(3, 150 * MORE) == 0


# --- the configuration ---

NAMES = st.sampled_from([f.name for f in fields(config.Config)]) | st.text(max_size=8)
SCALARS = st.one_of(
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.sampled_from(
        ["http://127.0.0.1:8080", "https://[::1", "http://a..b:1", "0,0,1,1", "1e999,0,1,1", "16x16", "a.mkv"]
    ),
)


def toml(value: Any) -> str:
    """As TOML; strings in which everything is escaped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value)


def load(text: str | bytes, folder: Path) -> None:
    path = folder / "edgesan.toml"
    path.write_bytes(text.encode(errors="surrogatepass") if isinstance(text, str) else text)
    with suppress(ConfigError):
        config.load(path, {})


@examples(300)
@given(st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=3), max_size=4))
def test_any_values_are_a_configuration_or_refused(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    load("\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items()), folder)


@examples(100)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_text_is_a_configuration_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    load(text, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    "text",
    [
        "fps = " + "1" * 5000,
        "out = " + "[" * 5000,
        f'size = "{"1" * 5000}x16"',
        "\ufefffps = 1",
        f"fps = 1{'0' * 400}",
        "hold = inf",
        "fps = inf",
        'model = "a\\u0000b"',
        "threads = 1000000",
    ],
)
def test_a_number_or_a_nesting_without_end_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        config.load(path, {})


# --- HTTP ---


@pytest.fixture(scope="module")
def served() -> Iterator[ServerThread]:
    with closing(ServerThread()) as live:
        yield live


@pytest.fixture(scope="module")
def guarded() -> Iterator[ServerThread]:
    with closing(ServerThread("s3cret")) as live:
        yield live


REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    b"GET /snapshot.jpg?token=%ff HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\r\n"
    b"Connection: close\r\n\r\n",
    b"PUT /api/alpha HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 14\r\n\r\n{"alpha": 0.5}',
    b"POST /api/alpha HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\ne\r\n{"alpha": 0.5}\r\n0\r\n\r\n',
    b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Key: x\r\n\r\n",
)


def answer(live: ServerThread, request: bytes) -> bytes:
    with live.connect() as connection, suppress(ConnectionError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.5)
        got = b""
        with suppress(TimeoutError):
            while part := connection.recv(65536):
                got += part
        return got
    return b""


@examples(120)
@given(st.randoms(use_true_random=False), st.sampled_from(REQUESTS))
def test_any_request_is_answered_or_cut_off(served: ServerThread, rng: random.Random, request_: bytes) -> None:
    got = answer(served, mutate(rng, request_))
    assert got == b"" or got.startswith(b"HTTP/")
    assert b" 500 " not in got.partition(b"\r\n")[0]
    assert all(0 <= alpha <= 0.8 for alpha in served.asked)


@examples(40)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered_or_cut_off(served: ServerThread, content: bytes) -> None:
    got = answer(served, content)
    assert got == b"" or got.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))


@examples(60)
@given(st.binary(max_size=300))
def test_any_body_is_a_wish_or_refused(served: ServerThread, body: bytes) -> None:
    assert served.get("/api/alpha", "PUT", body, Content_Type="application/json")[0] in (202, 400, 413)


@examples(60)
@given(st.randoms(use_true_random=False), st.sampled_from(REQUESTS))
def test_no_request_passes_without_the_token(guarded: ServerThread, rng: random.Random, request_: bytes) -> None:
    got = answer(guarded, mutate(rng, request_))
    assert b"<!doctype" not in got
    assert guarded.asked == []


def test_after_all_that_the_servers_still_answer_and_say_nothing_of_it(
    served: ServerThread, guarded: ServerThread, capfd: pytest.CaptureFixture[str]
) -> None:
    assert served.get("/healthz")[0] == 200
    # From another address: many a mutated request was a guess.
    assert guarded.get("/healthz?token=s3cret", source="127.0.0.2")[0] == 200
    with served.connect() as connection:
        connection.sendall(b"\0\r\n\r\n")
        assert is_closed(connection)
    assert capfd.readouterr().err == ""


# --- the message: tests/test_message.py, and without end `make fuzz` ---


def test_any_changed_message_is_read_or_refused() -> None:
    counts = fuzz_message.run(2, 5000 * MORE)
    assert min(counts.values()) > 100


def test_any_changed_request_is_read_or_refused() -> None:
    counts = fuzz_message.run(2, 5000 * MORE, fuzz_request.case, fuzz_request.verdict)
    assert min(counts.values()) > 100


# --- pictures and clips ---


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found: dict[str, bytes] = {}
    for suffix in (".png", ".jpg", ".webp"):
        found[suffix] = cv2.imencode(suffix, pixels)[1].tobytes()
    for suffix in (".mp4", ".mkv"):
        path = folder / f"clip{suffix}"
        with path.open("wb") as file, closing(ClipWriter(file, path)) as writer:
            for number in range(4):
                stamps = Stamps(number, number)
                writer.write(SanitizedFrame._create(pixels.copy(), stamps), number / 25)
        found[suffix] = path.read_bytes()
    return found


@examples(120)
@given(st.randoms(use_true_random=False), st.sampled_from([".png", ".jpg", ".webp"]))
def test_any_picture_is_read_or_refused(
    media: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, rng: random.Random, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"hostile{suffix}"
    path.write_bytes(mutate(rng, media[suffix]))
    with suppress(CameraError):
        assert read_picture(path).ndim == 3


@examples(40)
@given(st.randoms(use_true_random=False), st.sampled_from([".mp4", ".mkv"]))
def test_any_clip_is_read_or_refused(
    media: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, rng: random.Random, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"hostile{suffix}"
    content = media[suffix]
    # What holds the clip together is at both ends; the middle is pictures.
    head = rng.random() < 0.5
    path.write_bytes(
        mutate(rng, content[:600]) + content[600:] if head else content[:-900] + mutate(rng, content[-900:])
    )
    with suppress(CameraError), closing(FileSource(path, None, None, loop=False, paced=False)) as clip:
        for _ in range(50):
            try:
                with clip.frame(1.0) as raw:
                    assert raw.pixels.ndim == 3
            except EndOfStream:
                break
