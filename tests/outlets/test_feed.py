"""The provider's feed, at real servers: good ones, broken ones and silent ones."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trustme

from edgesan import message, targets
from edgesan.config import DEMO_MODEL, Config
from edgesan.errors import ConfigError
from edgesan.message import FaceCode, Latents, Place
from edgesan.outlets import feed
from edgesan.outlets.channel import CHIP, CODES, STATUS, Chip, Codes, Report
from edgesan.transmit.tls import tls_context
from tests.outlets.far_end import FarEnd, report
from tests.outlets.provider import SECRET, Provider
from tests.support import Running, free_port
from tests.transmit.server import until

MODEL = bytes(range(32))


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def provider(ends: ExitStack) -> Provider:
    provider = Provider()
    ends.callback(provider.close)
    return provider


class Camera(FarEnd):
    """The outlet, and what the transmit process tells it."""

    def __init__(self, url: str) -> None:
        super().__init__(feed, url)
        self.send(Report(report()))
        self.number = 0

    def frame(self, *faces: tuple[int, bytes], alpha: float = 0.5) -> bytes:
        """A frame crosses the wall: tracks and codes. Returns the message."""
        self.number += 1
        seen = [FaceCode(track, Place(40.0 + 10 * track, 60.0, 80.0, 0.25), code) for track, code in faces]
        grid = message.grid_alpha(alpha)
        content = message.pack(Latents(self.number, time.monotonic_ns(), 0, 640, 480, grid, 7, tuple(seen)))
        latents = message.parse(content)
        assert isinstance(latents, Latents)
        self.send(Codes(MODEL, content, latents))
        return content

    def chips(self, *tracks: int, picture: bytes = b"\xff\xd8 picture") -> None:
        """A frame, and faces that were painted anew."""
        self.frame(*((track, bytes(64)) for track in tracks))
        for track in tracks:
            self.send(Chip(MODEL, time.monotonic_ns(), track, picture))


def camera(ends: ExitStack, url: str) -> Camera:
    made = Camera(url)
    ends.callback(made.close)
    return made


# --- what is posted ---------------------------------------------------------------------------------------------------


def test_painted_faces_are_posted_with_track_place_time_model_and_name(provider: Provider, ends: ExitStack) -> None:
    there = camera(ends, provider.url)
    until(lambda: there.heard)
    assert there.wanted.kinds == CHIP | CODES | STATUS
    there.chips(1, 3)
    until(lambda: len(provider.faces) == 2)
    first, second = provider.faces
    assert abs(datetime.fromisoformat(first.pop("captured")) - datetime.now(UTC)) < timedelta(seconds=60)
    assert first == {
        "model": MODEL.hex(),
        "track": 1,
        "x": 50.0,
        "y": 60.0,
        "side": 80.0,
        "roll": pytest.approx(0.25, abs=0.01),
        "width": 640,
        "height": 480,
        "jpeg": base64.b64encode(b"\xff\xd8 picture").decode(),
    }
    assert (second["track"], second["x"]) == (3, 70.0)
    assert json.loads(provider.accepted[0])["camera"] == "front door"
    until(lambda: there.connected)


def test_the_signature_is_that_of_the_body_and_the_secret_is_nowhere_else(provider: Provider, ends: ExitStack) -> None:
    camera(ends, f"{provider.url}?send=chips").chips(1)
    until(lambda: provider.accepted)
    body, signature = provider.posted[0]
    assert signature == f"sha256={hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}"
    assert provider.paths == ["/faces"]
    assert SECRET.encode() not in body


def test_codes_are_posted_once_each_and_without_a_picture(provider: Provider, ends: ExitStack) -> None:
    there = camera(ends, f"{provider.url}?send=codes")
    there.frame((1, b"a" * 64), (2, b"b" * 64))
    there.frame((1, b"a" * 64), (2, b"c" * 64))
    there.frame((1, b"a" * 64), (2, b"c" * 64), alpha=1.0)
    there.chips(9)
    until(lambda: len(provider.faces) == 6)
    assert there.wanted.kinds == CODES | STATUS
    said = [(face["track"], base64.b64decode(face["code"])[:1], face["alpha"]) for face in provider.faces]
    half = message.grid_alpha(0.5)
    assert said == [(1, b"a", half), (2, b"b", half), (2, b"c", half), (1, b"a", 1.0), (2, b"c", 1.0), (9, b"\0", half)]
    assert not any("jpeg" in face for face in provider.faces)


def test_messages_are_posted_byte_by_byte(provider: Provider, ends: ExitStack) -> None:
    there = camera(ends, f"{provider.url}?send=message")
    sent = [there.frame((1, b"a" * 64)), there.frame()]
    until(lambda: len(provider.faces) == 2)
    assert [base64.b64decode(face["message"]) for face in provider.faces] == sent
    assert all(face["model"] == MODEL.hex() and "captured" in face for face in provider.faces)


def test_a_batch_is_bounded_and_each_has_a_name_of_its_own(
    provider: Provider, ends: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_BATCH", 5)
    there = camera(ends, f"{provider.url}?send=message")
    for _ in range(12):
        there.frame()
    until(lambda: len(provider.faces) == 12)
    batches = [json.loads(body) for body in provider.accepted]
    assert max(len(batch["faces"]) for batch in batches) <= 5
    assert len({batch["batch"] for batch in batches}) == len(batches)


# --- bad servers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_answers_500_gets_the_same_bytes_again_and_the_oldest_that_wait_are_dropped(
    provider: Provider, ends: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_WAITING", 10)
    provider.code = 500
    there = camera(ends, f"{provider.url}?send=message")
    there.frame()
    until(lambda: len(provider.posted) >= 3)
    sent = [there.frame() for _ in range(25)]
    assert len({body for body, _ in provider.posted}) == 1
    until(lambda: there.why == "it answers 500")
    provider.code = 204
    until(lambda: len(provider.faces) == 11, 20)
    kept = [base64.b64decode(face["message"]) for face in provider.faces]
    assert kept[1:] == sent[-10:]
    until(lambda: there.connected)
    there.frame()
    until(lambda: there.states[-1].dropped == 15)
    assert len(provider.posted) < 20, "it was not stormed"


@pytest.mark.slow
@pytest.mark.parametrize("code", [401, 404, 413, 307])
def test_what_a_server_refuses_for_good_is_not_sent_again(provider: Provider, ends: ExitStack, code: int) -> None:
    provider.code = code
    there = camera(ends, f"{provider.url}?send=message")
    there.frame()
    until(lambda: f"it refuses what is sent ({code}" in there.why)
    assert SECRET not in there.why
    provider.code = 204
    after = there.frame()
    until(lambda: provider.accepted, 20)
    assert [base64.b64decode(face["message"]) for face in provider.faces] == [after]
    assert provider.paths == ["/faces"] * 2, "nobody is followed to another address"


class Rude:
    """A server that does something to each connection, and nothing else."""

    def __init__(self, answer: bytes | None, *, closes: bool = True) -> None:
        self._answer, self._closes = answer, closes
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.1)
        self.url = f"feed+http://:{SECRET}@127.0.0.1:{self._listening.getsockname()[1]}/faces?send=message"
        self.count = 0
        self._open: list[socket.socket] = []
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            with suppress(TimeoutError):
                connection, _ = self._listening.accept()
                self.count += 1
                if self._answer is not None:
                    connection.recv(65536)
                    connection.sendall(self._answer)
                if self._closes:
                    connection.close()
                else:
                    self._open.append(connection)

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        for each in (*self._open, self._listening):
            each.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "closes", "words"),
    [
        (None, False, "it says nothing for 0.5 s"),
        (None, True, "it hung up without an answer"),
        (b"HTTP/1.1 20", True, "it hung up without an answer"),
        (b"HTTP/1.1 20", False, "it says nothing for 0.5 s"),
        (b"hello\r\n\r\n", True, "its answer is no HTTP"),
    ],
)
def test_a_server_that_says_nothing_or_nonsense_is_asked_again(
    answer: bytes | None, closes: bool, words: str, ends: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "ANSWER_S", 0.5)
    server = Rude(answer, closes=closes)
    ends.callback(server.close)
    there = camera(ends, server.url)
    there.frame()
    until(lambda: words in there.why, 20)
    until(lambda: server.count >= 2, 20)
    assert not there.connected


def test_nobody_at_the_port_is_said(ends: ExitStack) -> None:
    there = camera(ends, f"feed+http://:{SECRET}@127.0.0.1:{free_port()}/?send=message")
    there.frame()
    until(lambda: "it cannot be reached: " in there.why, 20)


def test_tls_is_verified_by_the_authority_that_is_named(tmp_path: Path, ends: ExitStack) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    for ca, name in ((authority, "ca"), (stranger, "stranger")):
        ca.cert_pem.write_to_path(str(tmp_path / name))
    provider = Provider(tls_context(certificate, None))
    ends.callback(provider.close)
    trusting = camera(ends, f"{provider.url}?send=message&ca={tmp_path}/ca")
    distrusting = camera(ends, f"{provider.url}?send=message&ca={tmp_path}/stranger")
    for each in (trusting, distrusting):
        each.frame()
    trusting.until_connected()
    until(lambda: "certificate cannot be verified" in distrusting.why, 20)
    assert len(provider.accepted) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("feed+https://host/path", "needs a secret of 16 characters"),
        ("feed+https://:short@host/path", "needs a secret of 16 characters"),
        (f"feed+http://:{SECRET}@host/path", "would send faces in the clear"),
        (f"feed+https://:{SECRET}@host/path?ca=/no/such/file", "cannot read the authorities"),
    ],
)
def test_a_feed_that_would_not_be_safe_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        feed.prepare(Config(), targets.parse(url))
    assert SECRET not in str(refused.value)
    assert "short@" not in str(refused.value)


# --- with a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_posts_the_faces_that_it_paints_and_goes_on_after_its_server_was_away(ends: ExitStack) -> None:
    provider = Provider()
    ends.callback(provider.close)
    run = Running("--camera", "demo", "--name", "front door", "--out", provider.url)
    ends.callback(lambda: run.process.poll() is None and run.end())
    until(lambda: len(provider.faces) > 20, 60)
    assert len({face["track"] for face in provider.faces}) >= 2
    for face in provider.faces:
        chip = cv2.imdecode(np.frombuffer(base64.b64decode(face["jpeg"]), np.uint8), cv2.IMREAD_COLOR)
        assert chip is not None
        assert chip.shape == (112, 112, 3)
        assert (face["width"], face["height"]) == (480, 270)
    assert {face["model"] for face in provider.faces} == {hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()}
    provider.code = 500

    def output() -> dict[str, Any]:
        (found,) = run.status()["outputs"]  # type: ignore[misc, attr-defined]
        said: dict[str, Any] = found
        return said

    until(lambda: output()["why"] == "it answers 500", 30)
    accepted = len(provider.accepted)
    provider.code = 204
    until(lambda: len(provider.accepted) > accepted + 2, 30)
    assert output()["connected"]
    code, said, _ = run.end()
    assert code == 0, said
    assert SECRET not in said


@pytest.mark.slow
def test_a_feed_without_a_secret_ends_the_run_in_words() -> None:
    run = Running("--camera", "demo", "--out", "feed+https://host/path")
    _, said = run.process.communicate(timeout=60)
    assert run.process.returncode == ConfigError.exit_code
    assert "needs a secret of 16 characters" in said
