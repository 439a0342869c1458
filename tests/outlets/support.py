"""Shared by the tests of this folder: how an output is, and waiting."""

import time
from collections.abc import Callable
from typing import Any

from tests.support import Running


def until(test: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something; generous, as the machine may be busy."""
    until_s = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def status(running: Running) -> dict[str, Any]:
    """The status, or nothing while there is none."""
    try:
        return running.status()
    except OSError:
        return {}


def output(running: Running, number: int = 0) -> dict[str, Any]:
    """How an output is, or nothing while that is not known."""
    found: list[dict[str, Any]] = status(running).get("outputs", [])
    return found[number] if found else {}
