"""Attempts are quick at first, say once what fails, and count; a deadline ends what does not come back."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgesan.outlets.channel import MOST_UP, Inbox, State, parse_up
from edgesan.outlets.link import LONG_WAIT_S, QUICK_S, QUICK_WAIT_S, Attempts, BackOff, Closed, Link, Lost
from tests.support import ROOT


def test_waits_grow_to_4_s_then_after_minutes_to_30_and_begin_anew_after_a_reset() -> None:
    now = [0.0]
    back_off = BackOff(lambda: now[0], lambda: 1.0)
    waits = []
    while now[0] < QUICK_S + 200:
        waits.append(back_off.next_s())
        now[0] += waits[-1]
    assert waits[:5] == [0.5, 1, 2, 4, 4]
    assert max(w for w, t in zip(waits, accumulated(waits), strict=True) if t < QUICK_S) == QUICK_WAIT_S
    assert waits[-1] == LONG_WAIT_S
    back_off.reset()
    assert back_off.next_s() == 0.5


def accumulated(waits: list[float]) -> list[float]:
    return [sum(waits[:n]) for n in range(len(waits))]


def test_waits_differ_so_that_many_do_not_come_at_once() -> None:
    waits = {BackOff().next_s() for _ in range(50)}
    assert len(waits) > 20
    assert all(0.375 <= wait <= 0.5 for wait in waits)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a channel."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def states(end: socket.socket) -> list[State]:
    end.setblocking(False)
    found = [parse_up(*each) for each in Inbox(MOST_UP).feed(end.recv(2**20))]
    return [each for each in found if isinstance(each, State)]


def test_a_failure_is_said_once_and_the_return_too(
    ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = ["it is away", "it is away", "", "it is away", "end"]

    async def play() -> None:
        link = Link(ends[0].fileno())
        attempts = Attempts(link, "rtsp://host", BackOff(jitter=lambda: 0))

        async def attempt() -> None:
            outcome = outcomes.pop(0)
            if outcome == "end":
                raise Closed
            attempts.connecting()
            if outcome:
                raise Lost(outcome)
            attempts.connected()
            attempts.sent(100)

        with pytest.raises(Closed):
            await attempts.run(attempt)

    with caplog.at_level(logging.INFO):
        asyncio.run(play())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "rtsp://host: it is away; trying again",
        "rtsp://host takes the stream again",
        "rtsp://host: it is away; trying again",
    ]
    told = states(ends[1])
    assert next(each.why for each in told if not each.connected and each.why) == "it was asked, and does not answer"
    assert told[-1] == State(False, "it is away", 100, 3)


def test_a_link_whose_other_end_is_gone_says_so(ends: tuple[socket.socket, socket.socket]) -> None:
    async def play() -> None:
        link = Link(os.dup(ends[0].fileno()))
        ends[1].close()
        with pytest.raises(Closed):
            await link.rest(5)

    asyncio.run(play())


def test_a_deadline_ends_a_process_that_does_not_come_back() -> None:
    program = (
        "import re\nfrom edgesan.outlets.link import deadline\nwith deadline(5):\n    pass\n"
        "print('passed', flush=True)\nwith deadline(0.5):\n    re.match('(a*)*b', 'a' * 40)\n"  # keeps Python's lock
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.stdout == "passed\n"
    assert done.returncode == -14
