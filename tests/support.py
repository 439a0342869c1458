"""Shared by many tests: the command line as a user starts it, free ports, signed models, and where the project lies."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import onnx
import psutil

from edgesan import faces
from edgesan.config import DEMO_MODEL, Config
from edgesan.frames import Pixels
from edgesan.model import signing

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "edgesan" / "capture" / "demo.mp4"
COMMAND = [sys.executable, "-m", "edgesan"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one `edgesan` command to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60)


class Running:
    """`edgesan run` in the background."""

    def __init__(self, *arguments: str, host: str = "127.0.0.1") -> None:
        self.port = free_port()
        out = ["--out", f"http://{host}:{self.port}"]
        self.process = subprocess.Popen([*COMMAND, "run", *out, *arguments], stderr=subprocess.PIPE, text=True)

    def status(self) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=5) as answer:
            status: dict[str, object] = json.load(answer)
            return status

    def until(self, key: str, value: object, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
            try:
                last = self.status().get(key)
            except OSError as error:
                last = error
            if last == value:
                return
            time.sleep(0.05)
        raise AssertionError(f"{key} is {last!r}, not {value!r}")

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, float]:
        started = time.monotonic()
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=10)
        return self.process.returncode, said, time.monotonic() - started


def child(parent: int, name: str) -> psutil.Process:
    """One of the two processes of a run: "sanitize" or "transmit"."""
    deadline = time.monotonic() + 20
    while True:
        for each in psutil.Process(parent).children():
            if each.name() == f"edgesan-{name}"[:15]:
                return each
        assert time.monotonic() < deadline, f"there is no {name} process"
        time.sleep(0.02)


def report(*row: object) -> None:
    """A row of the table that `make wall` prints: what was done, what came of it, what leaked."""
    table = os.environ.get("EDGESAN_FAULT_TABLE")
    if table:
        with Path(table).open("a") as file:
            file.write(json.dumps(row) + "\n")


def free_port() -> int:
    """A port that nobody listens at; below those that clients are given, one of which may be ours a moment later."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(10_000, 32_000)))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port


class Maker:
    """Somebody who makes models: a key pair, and a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key_file = folder / name
        self.key = signing.new_key(self.key_file)
        self.folder = folder

    def model(self, file: str = "san.onnx", *, sign: bool = True, **changes: Any) -> Path:
        """The bundled network, with other metadata, signed."""
        proto = onnx.load(str(DEMO_MODEL))
        table = json.loads(proto.metadata_props[0].value)
        proto.metadata_props[0].value = json.dumps(table | changes)
        path = self.folder / file
        path.write_bytes(proto.SerializeToString())
        if sign:
            self.sign(path)
        return path

    def sign(self, path: Path) -> None:
        signing.sign(path, path.read_bytes(), signing.private_key(self.key_file))

    def config(self, path: Path, **changes: Any) -> Config:
        """A device that trusts this maker, and keeps its record beside the maker's key."""
        return Config(model=path, trusted_keys=(self.key.line,), state_dir=self.folder / "state", **changes)

    @property
    def options(self) -> tuple[str, str]:
        """What a device gives to trust this maker."""
        return "--trusted-keys", self.key.line


class Blind(faces.Detector):
    """A real detector that is switched off: every face is missed."""

    def __call__(self, pixels: Pixels) -> list[faces.Face]:
        return []
