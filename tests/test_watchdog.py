"""What systemd hears: a real datagram socket stands for it."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edgesan.errors import ConfigError
from edgesan.watchdog import Watchdog

FRAMES = 20


def test_systemd_hears_of_the_start_of_frames_and_of_the_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        command = [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--frames", str(FRAMES)]
        command += ["--out", str(tmp_path / "o.mkv")]
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        # Its queue holds few words: they are read while they come, as systemd does.
        systemd.settimeout(30)
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as run:
            words = [systemd.recv(100)]
            while words[-1] != b"STOPPING=1":
                words.append(systemd.recv(100))
            assert run.wait(30) == 0
    assert words[0] == b"READY=1"
    assert words.count(b"WATCHDOG=1") >= 3, "not of each frame, but twice a second"
    assert set(words) == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


def test_a_service_manager_whose_queue_is_full_holds_nothing_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        with closing(Watchdog({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as watchdog:
            for _ in range(10_000):
                watchdog.alive()
            deaf.close()
            watchdog.alive()  # nor one that is gone


def test_an_abstract_socket_is_found() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0edgesan-{os.getpid()}")
        with closing(Watchdog({"NOTIFY_SOCKET": f"@edgesan-{os.getpid()}"})) as watchdog:
            watchdog.ready()
        assert systemd.recv(100) == b"READY=1"


def test_a_socket_that_nobody_listens_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NOTIFY_SOCKET is .*: No such file or directory; systemd sets it"):
        Watchdog({"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_without_systemd_nothing_is_said() -> None:
    Watchdog({}).alive()
