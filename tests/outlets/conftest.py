"""Runs of edgesan for the tests of this folder."""

from collections.abc import Callable, Iterator

import pytest

from tests.support import Running


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
