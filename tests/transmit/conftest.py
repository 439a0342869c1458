"""A server in a thread for the tests of this folder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.transmit.server import LiveServer, Make


@pytest.fixture
def serve(sanitized_frame: Make) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers, which end with the test."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> LiveServer:
            return stack.enter_context(closing(LiveServer(sanitized_frame, *arguments, **options)))

        yield start
