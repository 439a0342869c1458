"""Shared by all tests: the bundled clip and model, and where real data lies, if it is here."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest

from edgesan import faces
from edgesan.config import DEMO_MODEL
from edgesan.frames import Pixels, SanitizedFrame, Stamps
from edgesan.model.load import Model, load_model
from tests.support import CLIP

# Examples are the same in each run, and a busy machine fails none of them.
hypothesis.settings.register_profile("edgesan", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("edgesan")


@pytest.fixture(scope="session")
def sanitizer_model() -> Model:
    """The bundled model, verified."""
    return load_model(DEMO_MODEL)


@pytest.fixture(scope="session")
def detector() -> faces.Detector:
    """YuNet at the default size."""
    return faces.Detector(320)


@pytest.fixture(scope="session")
def clip() -> list[Pixels]:
    """All frames of the bundled clip: two people who tilt their heads."""
    capture = cv2.VideoCapture(str(CLIP))
    frames = []
    while True:
        done, pixels = capture.read()
        if not done:
            return frames
        frames.append(pixels)


@pytest.fixture
def sanitized_frame() -> Callable[..., SanitizedFrame]:
    """Makes frames as the renderer would: grey of one level, or random."""

    def make(
        number: int = 1, size: tuple[int, int] = (64, 48), captured_ns: int = 0, level: int = 99
    ) -> SanitizedFrame:
        pixels = np.full((size[1], size[0], 3), level, np.uint8)
        return SanitizedFrame._create(pixels, Stamps(number, captured_ns))

    return make


def folder(variable: str, needed: str) -> Path:
    """A folder that an environment variable names; skips where it is not."""
    path = Path(os.environ.get(variable, "/nowhere"))
    if not (path / needed).exists():
        pytest.skip(f"{needed} is not in {variable}={path}")
    return path


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Sets of real faces."""
    return folder("EDGESAN_DATA", "lfw.tar")


@pytest.fixture(scope="session")
def networks_folder() -> Path:
    """The providers' ONNX networks."""
    return folder("EDGESAN_NETWORKS", "id_mobilefacenet_b.onnx")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test depends on a secret of the person who runs it, or on what ran here before."""
    monkeypatch.delenv("EDGESAN_TOKEN", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: this needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
