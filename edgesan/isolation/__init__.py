"""What each process gives up, so that the kernel holds "a picture of the camera cannot leave".

The sanitize process, which sees raw pixels, gives up the network: it moves into a network namespace that holds nothing
(network_namespaces(7)). The transmit process, which has the network, gives up the cameras. The fetch process, which is
there for a network camera only, gives up both, but for that camera's port. All give up all files but those that they
need (landlock(7)), all system calls but those that they make (seccomp(2): no other socket, no other process, no
program), the terminal, privileges (no_new_privs, capabilities(7)) and dumps; those with pictures of the camera, swap,
too.

This lasts as long as the process. It binds the calling thread and those that it starts later, so it must come first:
before numpy, which starts threads.

At the end the process tries to get everything back, by the probes of `edgesan.isolation.probes`; what they met becomes
its claims.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgesan.errors import IsolationError
from edgesan.isolation import landlock, limits, seccomp
from edgesan.isolation.claims import (
    RESULTS,
    IsolationClaim,
    conclude,
    pack,
    plain,
    report,
    require,
    summary,
    unpack,
    unpack_all,
    warnings,
)
from edgesan.isolation.limits import close_all_but, disk_swaps, end_with_parent, forbid_dumps, is_alone, limit_memory
from edgesan.isolation.probes import CAMERA_MEMORY, PROBES, ProbeContext

__all__ = [
    "RESULTS",
    "IsolationClaim",
    "camera_nodes",
    "close_all_but",
    "confine_program",
    "disk_swaps",
    "end_with_parent",
    "fetch",
    "forbid_dumps",
    "is_alone",
    "limit_memory",
    "outlet",
    "outlet_process",
    "pack",
    "plain",
    "report",
    "require",
    "sanitize",
    "summary",
    "transmit",
    "unpack",
    "unpack_all",
    "warnings",
]

FILES_AND_SEARCH: Final = limits.CAP_DAC_OVERRIDE | limits.CAP_DAC_READ_SEARCH


def sanitize(
    reads: Iterable[Path] = (),
    writes: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    *,
    alone: bool = False,
) -> list[IsolationClaim]:
    """Give up all that a process which sees raw pixels does not need.

    Args:
        reads: files and folders that it reads, beside those of Python and the system.
        writes: folders that it makes files in; none in a run.
        devices: cameras. A node that appears later is another one, which it cannot open: see `camera_nodes`.
        alone: what `is_alone` said before this run made sockets of its own.

    Returns:
        What holds, and what does not.

    Raises:
        IsolationError: it is too late, as threads may run that would keep what is given up.
    """
    _must_be_alone()
    reads, writes, devices = list(reads), list(writes), list(devices)
    context = ProbeContext.now([*reads, *writes], writes)
    context.swap = limits.lock_memory()
    limits.leave_input()
    context.session = limits.leave_terminal()
    context.network = limits.leave_network(alone=alone)
    limits.forbid_dumps()  # after the namespace, whose maps only a dumpable process may write: proc(5)
    limits.drop_privileges(FILES_AND_SEARCH)
    limits.limit_memory(limits.MOST_MEMORY_LOADING)
    rules = landlock.readable(reads) | {Path("/dev"): landlock.READ_DIR}
    rules |= dict.fromkeys(devices, landlock.DEVICE) | dict.fromkeys(writes, landlock.WRITE)
    landlock.restrict(rules)
    calls = seccomp.BOTH | (seccomp.WRITING if writes else set())
    seccomp.allow(calls, seccomp.checks(os.getpid()) | ({} if writes else _no_emptying()))
    return _probed("sanitize", context)


def transmit(reads: Iterable[Path] = ()) -> list[IsolationClaim]:
    """Give up all that a process which serves does not need, above all the cameras, and every new socket.

    It keeps what is open: sockets that listen, files that it writes, an event loop.

    Args:
        reads: files and folders that it reads, beside those of Python and the system.

    Returns:
        What holds, and what does not.

    Raises:
        IsolationError: as `sanitize`.
    """
    _must_be_alone()
    reads = list(reads)
    context = ProbeContext.now(reads, [])
    limits.leave_input()
    context.session = limits.leave_terminal()
    limits.limit_memory(limits.MOST_MEMORY_LOADING)
    if not landlock.restrict(landlock.readable(reads)):
        limits.hide_devices()
    limits.forbid_dumps()
    limits.drop_privileges(FILES_AND_SEARCH | limits.CAP_NET_BIND_SERVICE)
    seccomp.allow(seccomp.BOTH | seccomp.SERVING, seccomp.serving_checks(os.getpid()) | _no_emptying())
    return _probed("transmit", context)


def fetch(port: int) -> list[IsolationClaim]:
    """Give up all that a process which fetches from a network camera does not need: it may connect by TCP to this port.

    Returns:
        What holds, and what does not.

    Raises:
        IsolationError: as `sanitize`.
    """
    _must_be_alone()
    context = ProbeContext.now([], [])
    context.port = port
    context.swap = limits.lock_memory()
    limits.leave_input()
    context.session = limits.leave_terminal()
    limits.limit_memory(limits.MOST_MEMORY_LOADING)
    if not landlock.restrict(landlock.readable([]), network=True, ports=[port]):
        limits.hide_devices()
    limits.forbid_dumps()
    limits.drop_privileges(0)
    seccomp.allow(seccomp.BOTH | seccomp.FETCHING, seccomp.fetching_checks(os.getpid()) | _no_emptying())
    return _probed("fetch", context)


def outlet_process(*, network: bool) -> str:
    """Return what the claims of an outlet call its process."""
    return "outlet" if network else "recorder"


def outlet(
    reads: Iterable[Path] = (),
    writes: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    *,
    network: bool,
    ports: Iterable[int] | None = None,
) -> list[IsolationClaim]:
    """Give up all that a process which sends or records sanitized frames does not need, above all the cameras.

    Args:
        reads: files and folders that it reads, beside those of Python and the system.
        writes: folders that it makes files in.
        devices: virtual cameras that it writes to; no camera that sees something.
        network: keep the network.
        ports: TCP ports that it may connect to, where the kernel can say so (Landlock version 4); None: any.

    Returns:
        What holds, and what does not.

    Raises:
        IsolationError: as `sanitize`.
    """
    _must_be_alone()
    reads, writes, devices = list(reads), list(writes), list(devices)
    context = ProbeContext.now([*reads, *writes], writes)
    context.virtual = set(map(str, devices))
    limits.leave_input()
    context.session = limits.leave_terminal()
    limits.limit_memory(limits.MOST_MEMORY_LOADING)
    rules = landlock.readable([*reads, *(landlock.RESOLVER if network else ())]) | dict.fromkeys(writes, landlock.WRITE)
    rules |= dict.fromkeys(devices, landlock.DEVICE)
    if not landlock.restrict(rules, network=network, ports=ports):
        limits.hide_devices()
    limits.forbid_dumps()
    limits.drop_privileges(FILES_AND_SEARCH)
    calls = (
        seccomp.BOTH
        | (seccomp.WRITING if writes else set())
        | (seccomp.CALLING | {"listen", "accept", "accept4"} if network else set())
    )
    make_checks = seccomp.calling_checks if network else seccomp.checks
    seccomp.allow(calls, make_checks(os.getpid()) | ({} if writes else _no_emptying()))
    return _probed(outlet_process(network=network), context)


def confine_program(program: Path, listens: Iterable[int]) -> None:
    """Give up all that a program of the system does not need which serves what it is fed, before it is started.

    It may read the system's libraries, listen at its ports, answer and send packets (UDP), and connect to no other. It
    has no privileges and gets none, and starts no other program.

    Args:
        program: the only one that may be started.
        listens: TCP ports.
    """
    limits.leave_terminal()
    limits.limit_memory()
    limits.forbid_dumps()
    low = any(port < 1024 for port in listens)
    limits.drop_privileges(limits.CAP_NET_BIND_SERVICE if low else 0)
    loaders = [path for name in ("/lib", "/lib64") for path in Path(name).glob("ld-linux*.so.*")]
    runs = dict.fromkeys((path.resolve() for path in (program, *loaders)), landlock.READ_FILE | landlock.EXECUTE)
    landlock.restrict(landlock.readable([]) | runs, network=True, ports=[], listens=listens)
    calls = seccomp.BOTH | seccomp.CALLING | {"listen", "accept", "accept4", "socketpair", "execve"}
    seccomp.allow(calls, seccomp.calling_checks(os.getpid()) | seccomp.PAIRS)


def camera_nodes(dev: Path = Path("/dev")) -> list[Path]:
    """Return the device nodes that a camera may need, as they are now.

    A camera that is plugged in again has a new node. A process that was given the old one cannot open it, as
    landlock(7) goes by the file and not by its name: it takes a new process.
    """
    names = ("video[0-9]*", "media[0-9]*", "v4l-subdev[0-9]*", *CAMERA_MEMORY)
    return sorted(node for name in names for node in dev.glob(name))


def _must_be_alone() -> None:
    if len(os.listdir("/proc/self/task")) > 1 or "numpy" in sys.modules:
        raise IsolationError(
            "this process runs threads already, or numpy, which starts some: they would keep what is given up;"
            " use the command `edgesan`, in a process of its own"
        )


def _no_emptying() -> dict[str, list[seccomp.Step]]:
    """Return checks for a kernel before Linux 6.2, whose Landlock (below version 3) lets a readable file be emptied."""
    return seccomp.EMPTYING if landlock.version() < 3 else {}


def _probed(process: str, context: ProbeContext) -> list[IsolationClaim]:
    """Try every way back."""
    with context:
        return conclude(process, bytes(probe.attempt(context) for probe in PROBES[process]))
