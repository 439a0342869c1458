"""Runs of edgesan for the tests of this folder, of which the slow ones have a verb of their own: `make servers`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Running

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests of this folder."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.servers)


@pytest.fixture
def edgesan() -> Iterator[Callable[..., Running]]:
    """Starts runs of the demo, each with a server, which end with the test."""
    runs: list[Running] = []

    def start(*options: str) -> Running:
        runs.append(Running("--camera", "demo", *options))
        return runs[-1]

    yield start
    for each in runs:
        if each.process.poll() is None:
            each.end()
