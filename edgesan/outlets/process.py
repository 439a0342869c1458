"""The life of an outlet: it gives up what it does not need, then runs its module until the transmit process ends.

A module of an outlet is one coroutine, and nothing else is called of it:

    async def run(link: Link, target: Target, prepared: Any) -> None

It asks `link` for what it wants, and sends it to `target`. It ends with `Closed`, which `link` raises. It may block the
loop for some seconds, inside of a `deadline`, which ends the process. SIGTERM cancels it: it then finishes what it
writes. What it cannot do once rights are given up, such as starting a program, it does before, in a function
`prepare(config, target)`, whose result it is given (`Kind.prepares`); otherwise `prepared` is None.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from edgesan import isolation
from edgesan.config import Config
from edgesan.control import ALIVE, READY, ControlChannel
from edgesan.errors import ConfigError
from edgesan.outlets.channel import Claims
from edgesan.outlets.link import AUTHORITIES, Closed, Link
from edgesan.targets import Target

logger = logging.getLogger(__name__)

ALIVE_S: Final = 1.0  # between two ALIVE messages to the parent


def run(config: Config, target: Target, connection: socket.socket, control: ControlChannel) -> int:
    """Live the whole life of an outlet, and return its exit code.

    Args:
        config: the options of the run.
        target: where it sends.
        connection: its end of the channel to the transmit process.
        control: its end of the channel to the parent.

    Raises:
        ConfigError: a package that it needs is not installed, or what `prepare` says.
        IsolationError: `require_isolation` is set, and a restriction does not hold.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends them in order
    loop = asyncio.new_event_loop()  # which needs a socket
    kind = target.kind
    name = f"edgesan.outlets.{kind.module}"
    if kind.needs and find_spec(kind.needs) is None:
        raise ConfigError(f"{target.name} needs {kind.needs}, which is not installed: {kind.extra}")
    prepared = import_module(name).prepare(config, target) if kind.prepares else None
    claims = isolation.outlet(
        [AUTHORITIES] if kind.calls else [],
        [] if target.folder is None else [target.folder],
        [] if target.device is None else [target.device],
        network=kind.calls,
        ports=None if kind.any_port else [target.port],
    )
    if config.require_isolation:
        isolation.require(claims)
    for claim in claims:
        if not claim.holds:
            logger.warning("%s: %s", target.name, claim)
    module = import_module(name)
    isolation.limit_memory()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        link = Link(connection.detach())
        runner.run(_live(link, lambda: module.run(link, target, prepared), Claims(isolation.pack(claims)), control))
    return 0


async def _live(
    link: Link, life: Callable[[], Coroutine[Any, Any, None]], claims: Claims, control: ControlChannel
) -> None:
    """Run a module until it ends, or SIGTERM comes."""
    link.send(claims)
    control.send(READY)
    loop = asyncio.get_running_loop()
    main = loop.create_task(life())
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    alive = loop.create_task(_report_alive(control))
    try:
        with suppress(asyncio.CancelledError, Closed):
            await main
    finally:
        alive.cancel()


async def _report_alive(control: ControlChannel) -> None:
    """Tell the parent that the loop runs."""
    while True:
        control.send(ALIVE)
        await asyncio.sleep(ALIVE_S)
