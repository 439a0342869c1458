"""The Unix socket at which two units meet: one visitor at a time, and only the ends of pipes are handed over."""

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.transmit.link import Pipes
from edgesan.transmit.unit import UnitClient, UnitListener


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes.make()
    yield made
    made.close()


def visit(place: Path) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    visitor.settimeout(5)
    visitor.connect(str(place))
    return visitor


def test_one_transmit_unit_at_a_time_is_let_in(tmp_path: Path, pipes: Pipes) -> None:
    listener = UnitListener(tmp_path / "s")
    first, second = visit(tmp_path / "s"), visit(tmp_path / "s")
    for _ in range(2):
        listener.poll(pipes.frames_in, pipes.requests_out)
    given = socket.recv_fds(first, 1, 3)[1]
    assert len(given) == 2, "the pipe with messages, and the one back"
    second.settimeout(0.1)
    with pytest.raises(TimeoutError):
        second.recv(1)
    first.close()
    for _ in range(2):
        listener.poll(pipes.frames_in, pipes.requests_out)
    given += socket.recv_fds(second, 1, 3)[1]
    assert len(given) == 4
    for fd in given:
        os.close(fd)
    second.close()
    listener.stop()
    listener.stop()
    assert not (tmp_path / "s").exists()


def test_what_is_handed_over_are_the_ends_of_pipes(tmp_path: Path, pipes: Pipes) -> None:
    listener, client = UnitListener(tmp_path / "s"), UnitClient(tmp_path / "s")
    found: list[int] = []

    def connect() -> None:
        found.extend(client.poll())

    thread = threading.Thread(target=connect)
    thread.start()
    while thread.is_alive():
        listener.poll(pipes.frames_in, pipes.requests_out)
        time.sleep(0.01)
    frames_in, requests_out = found
    assert all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in found)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(frames_in, b"x")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(requests_out, 1)
    assert client.poll() == []
    listener.stop()
    assert client.poll() == []
    assert client.descriptors() == [], "it is gone"
    for fd in found:
        os.close(fd)


def test_a_second_sanitize_unit_is_refused_and_a_file_is_never_removed(tmp_path: Path) -> None:
    listener = UnitListener(tmp_path / "s")
    with pytest.raises(ConfigError, match="another sanitize process listens"):
        UnitListener(tmp_path / "s")
    listener.stop()
    with pytest.raises(ConfigError, match=r"cannot listen at .*: No such file or directory"):
        UnitListener(tmp_path / "none" / "s")
    (tmp_path / "precious").write_text("of somebody")
    with pytest.raises(ConfigError, match="is a file of another kind"):
        UnitListener(tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "of somebody"
    with pytest.raises(ConfigError, match="role is 'all': choose one of both, sanitize, transmit"):
        Config(role="all")
