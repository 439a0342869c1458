"""What a process can give up by one call each: network, terminal, privileges, memory, dumps, swap and devices."""

import errno
import os
import resource
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgesan.isolation import kernel
from edgesan.isolation.kernel import libc

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
TIOCNOTTY: Final = 0x5422  # asm-generic/ioctls.h
# linux/capability.h. Root without the first two cannot read other users' clips; the third lets it serve port 80.
CAPABILITY_VERSION: Final = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE = 1 << 1, 1 << 2, 1 << 10

MOST_MEMORY: Final = 2**30  # bytes that a process may map once its model is loaded, beside what it has
MOST_MEMORY_LOADING: Final = 2**34  # libraries with a pool of threads for each of many cores
STRANGER: Final = ("192.0.2.1", 9)  # TEST-NET-1 (RFC 5737). Connecting UDP looks up a route, and sends nothing


def leave_network(*, alone: bool = False) -> tuple[int, int, int]:
    """Move into a network namespace with nothing in it.

    Args:
        alone: what `is_alone` said before this run made sockets of its own.

    Returns:
        The results of the probes of "no network": the errno if the kernel refused, whether other interfaces than lo are
        there, and the errno of reaching a stranger.
    """
    before = os.readlink("/proc/self/ns/net")
    refused = kernel.unshare(kernel.CLONE_NEWNET)
    apart = os.readlink("/proc/self/ns/net") != before or alone or is_alone()
    interfaces = {line.partition(":")[0].strip() for line in kernel.proc("self/net/dev").splitlines()[2:]}
    names = {name: number for number, name in errno.errorcode.items()}
    return 0 if apart else names.get(refused, errno.EPERM), int(not interfaces <= {"lo"}), kernel.errno_of(_reach)


def _reach() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(STRANGER)


def own_address() -> str:
    """Return this machine's address where it has a way to others; nothing if it has none. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(STRANGER)
            return str(probe.getsockname()[0])
        except OSError:  # no way out: a network without a router
            return ""


def is_alone() -> bool:
    """Return whether no other process has a socket in this network namespace.

    Then a service manager made it for this process alone, which may make no other namespace itself
    (RestrictNamespaces=). In the machine's own namespace, systemd at least would have some. To be asked early: a
    connection's far end counts as a socket of the namespace that it came from, too.
    """
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    mine = {os.readlink(link) for link in links if os.path.lexists(link)}
    sockets = [line.split()[6] for line in kernel.proc("self/net/unix").splitlines()[1:]]
    return all(f"socket:[{inode}]" in mine for inode in sockets)


def lock_memory() -> int:
    """Keep the memory out of swap: mlock(2). Only where all of it may be locked: else the next mapping would fail.

    Returns:
        The result of the probe of "no swap": 1 locked, 2 no swap on a disk, 0 neither.
    """
    with suppress(ValueError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        # As they are touched: all at once would load every library in full.
        libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    if kernel.status_line("VmLck") not in {"", "0 kB"}:
        return 1
    return 0 if disk_swaps() else 2


def disk_swaps(root: Path = Path("/")) -> list[str]:
    """Return the disks and files that memory is swapped to.

    zram is compressed memory, and no disk, unless it writes back to one.
    """
    found = []
    for line in (root / "proc/swaps").read_text(encoding="utf-8").splitlines()[1:]:
        name = line.split()[0]
        backing = root / "sys/block" / Path(name).name / "backing_dev"
        memory = Path(name).name.startswith("zram") and (not backing.exists() or backing.read_text().strip() == "none")
        found += [] if memory else [name]
    return found


def leave_terminal() -> int:
    """Start a new session, or give the terminal up where that cannot be (the leader of a group).

    Returns:
        The result of the probe of "no terminal": 1 a session of its own, 2 no terminal, 0 neither.
    """
    with suppress(PermissionError):
        os.setsid()
    if os.getsid(0) != os.getpid():
        with suppress(OSError):  # none there
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            libc.ioctl(terminal, TIOCNOTTY)
            os.close(terminal)
    if os.getsid(0) == os.getpid():
        return 1
    return 2 if kernel.proc("self/stat").rpartition(")")[2].split()[4] == "0" else 0


def leave_input() -> None:
    """Put the null device in the place of standard input: a socket, or a file, could be written to."""
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if nothing:  # 0 where it was closed
        os.dup2(nothing, 0)
        os.close(nothing)


def limit_memory(more: int = MOST_MEMORY) -> None:
    """Let this process map so many bytes beside what it has now, and never more: RLIMIT_AS, getrlimit(2).

    To be called once the model is loaded: from then on, asking for more is an error, and not the end of the machine.
    """
    mapped = int(kernel.proc("self/statm").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + more if hard == resource.RLIM_INFINITY else min(hard, mapped + more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def close_all_but(keep: set[int]) -> None:
    """Close all other descriptors, also those that edgesan itself inherited: any could hold a picture."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
        with suppress(OSError):  # the descriptor of the listing is closed already
            os.close(fd)


def forbid_dumps() -> None:
    """Allow no core dump, and no debugger of the same user: a dump of this process would hold raw pixels (prctl(2)).

    RLIMIT_CORE alone does not stop a kernel that pipes its dumps to a program; "not dumpable" does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(number: int) -> None:
    """Get this signal when the parent ends: PR_SET_PDEATHSIG(2const)."""
    libc.prctl(kernel.PR_SET_PDEATHSIG, number, 0, 0, 0)


def drop_privileges(keep: int) -> None:
    """Give up all capabilities but `keep`, and the way to get any by running a program."""
    libc.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    kept = kernel.capability_set("CapPrm") & keep
    header, sets = struct.pack("=Ii", CAPABILITY_VERSION, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    libc.capset(header, sets)


def hide_devices() -> None:
    """Put an empty, read-only folder over /dev, for this process alone; where the kernel lets this user."""
    if not kernel.unshare(kernel.CLONE_NEWNS):
        libc.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE, None)
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        libc.mount(b"none", b"/dev", b"tmpfs", flags, None)
