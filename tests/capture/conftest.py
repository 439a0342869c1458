"""Shared by the tests of sources: no thread is left, a network camera, and picamera2's double."""

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesan.capture.source import THREAD
from tests.capture.support import PATIENCE_S, HttpCamera


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Every grabbing thread ends with its source."""
    yield
    deadline_s = time.monotonic() + PATIENCE_S
    while any(thread.name == THREAD for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s, "a grabbing thread outlived its source"
        time.sleep(0.01)


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of picamera2's double, which is imported in place of the real one; its attributes are the handles."""
    spec = importlib.util.spec_from_file_location("picamera2", Path(__file__).parent / "fakes" / "picamera2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "picamera2", module)
    return module.Picamera2


@pytest.fixture
def http_camera() -> Iterator[HttpCamera]:
    camera = HttpCamera()
    yield camera
    camera.unplug()
