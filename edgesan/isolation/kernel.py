"""What isolation asks the kernel directly: system calls by libc, and this process's state in /proc."""

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 3, 4, 38

libc: Final = ctypes.CDLL(None, use_errno=True)


def unshare(flag: int) -> str:
    """Move into a new namespace: as root at once, else inside a new user namespace.

    Returns:
        The name of the errno if the kernel refuses, else nothing.
    """
    if libc.unshare(flag) == 0:
        return ""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | flag) != 0:
        return errno.errorcode[ctypes.get_errno()]
    # Names only: groups that have no name in here still open their files. AppArmor may forbid it.
    with suppress(PermissionError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return ""


def errno_of(what: Callable[..., object], *arguments: object) -> int:
    """Return the errno that a call fails with, or 0."""
    try:
        what(*arguments)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def proc(name: str) -> str:
    """Return the content of a file under /proc."""
    return Path("/proc", name).read_text(encoding="utf-8")


def file_system(place: str) -> str:
    """Return the kind of the last mount at a place; empty if nothing is mounted there: /proc/pid/mountinfo, proc(5)."""
    mounts = [line.split(" - ") for line in proc("self/mountinfo").splitlines()]
    return next((right.split()[0] for left, right in reversed(mounts) if left.split()[4] == place), "")


def status_line(key: str) -> str:
    """Return a line of /proc/self/status by its key; empty if the kernel has none: proc(5)."""
    pairs = (line.split(":", 1) for line in proc("self/status").splitlines())
    return next((value.strip() for name, value in pairs if name == key), "")


def capability_set(which: str) -> int:
    """Return one of the sets of capabilities(7) as bits, such as CapPrm."""
    return int(status_line(which) or "0", 16)
