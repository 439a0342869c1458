"""Processes of their own for the tests of isolation, and what a process that was taken over would attack."""

import os
import pty
import shutil
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

BOTH = (
    "no privileges",
    "no dumps",
    "no files",
    "no terminal",
    "no other process",
    "no new namespace",
    "no other kernel interface",
    "no endless memory",
)
SANITIZE = ("no network", "no socket", *BOTH, "no swap")
TRANSMIT = ("no camera", "no socket", *BOTH)


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: what it gives up is gone for good."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )


@dataclass
class Target:
    """What a process that was taken over would attack: a user's home, a daemon, a terminal and another process."""

    path: Path
    user: int | None  # None: the user who runs the tests
    received: list[bytes] = field(default_factory=list)
    daemon: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __post_init__(self) -> None:
        self.home = self.path / "home"
        (self.home / ".ssh").mkdir(parents=True)
        for name in (".bashrc", ".ssh/id_ed25519", "letter"):
            (self.home / name).write_text("mine")
        self.daemon.bind(str(self.path / "daemon"))
        self.listener.bind(str(self.path / "listener"))
        self.listener.listen()
        self.keyboard, self.terminal = pty.openpty()
        self.victim = subprocess.Popen(["sleep", "60"], **self.identity())
        for path in (self.path, *self.path.rglob("*")):
            os.chmod(path, 0o777 if path.is_socket() else 0o755)
            if self.user is not None:
                os.chown(path, self.user, self.user)

    def identity(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}

    def run(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program as this user, in whose working directory there is nothing of edgesan."""
        python, path = sys.executable, [str(ROOT), *filter(os.path.isdir, sys.path)]
        if self.user is not None and not reachable(Path(sys.base_prefix)):
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            python = shutil.which(version, path="/usr/local/bin:/usr/bin") or pytest.skip(
                f"no {version} for other users"
            )
            path = [each for each in path if "packages" in each or each == str(ROOT)]
        environment = os.environ | {"HOME": str(self.home), "PYTHONPATH": ":".join(path), "ORT_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [python, "-P", "-c", textwrap.dedent(text), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.path,
            timeout=120,
            env=environment,
            pass_fds=[self.terminal],
            **self.identity(),
        )

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for end in (self.daemon, self.listener):
            end.close()
        for fd in (self.keyboard, self.terminal):
            os.close(fd)


def reachable(path: Path) -> bool:
    """Whether every user may go there."""
    return all(each.stat().st_mode & 0o001 for each in (path.resolve(), *path.resolve().parents))
