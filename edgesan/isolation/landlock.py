"""Which files a process may still use: landlock(7)."""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from pwd import getpwuid
from typing import Final

from edgesan.isolation import kernel
from edgesan.isolation.kernel import libc

# linux/landlock.h; the numbers of its calls are the same everywhere
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, RULE_PATH_BENEATH, RULE_NET_PORT = 1, 1, 2
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
EXECUTE: Final = 1 << 0
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = (1 << i for i in (1, 2, 3, 4, 5, 7, 8))
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
OF_FILES: Final = 1 << 0 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # a rule on a file may name no others
READ: Final = READ_FILE | READ_DIR
WRITE: Final = READ | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
DEVICE: Final = READ_FILE | WRITE_FILE | IOCTL_DEV


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, text.split()))


# What libraries read of the system. Not /etc and /proc as a whole, which hold keys and other processes' arguments.
SYSTEM: Final = _paths("""
    /usr /lib /lib64 /etc/ld.so.cache /etc/localtime /etc/timezone /etc/locale.alias /etc/os-release /etc/passwd
    /etc/group /etc/nsswitch.conf /etc/mime.types /etc/libcamera /etc/ssl/openssl.cnf /etc/pki/tls/openssl.cnf
    /etc/crypto-policies
    /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /proc/swaps /proc/filesystems /proc/version
    /proc/sys/vm/overcommit_memory /proc/sys/kernel/osrelease /proc/sys/fs/pipe-max-size /proc/device-tree
    /sys/devices /sys/class /sys/bus /sys/dev /sys/fs/cgroup /sys/firmware/devicetree /run/udev
    /dev/urandom /dev/random
""")

RESOLVER: Final = _paths("""
    /etc/resolv.conf /etc/hosts /etc/host.conf /etc/gai.conf /etc/services /run/systemd/resolve
    /etc/ssl/certs /etc/pki/tls/certs /etc/pki/ca-trust /etc/ca-certificates
""")


def readable(reads: Iterable[Path]) -> dict[Path, int]:
    """Return the rights for what may be read: these paths, the system's libraries, Python's, and this package.

    Of `sys.path`, only folders that packages were installed into: the working directory, or a checkout, is there by
    accident. Nothing of Python's that holds a user's home.
    """
    python = [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]
    installed = [name for name in sys.path if name and any(Path(name).glob("*.dist-info"))]
    kept_out = homes()
    found = [Path(name).resolve() for name in (*python, *installed)]
    kept = [path for path in found if not any(home.is_relative_to(path) for home in kept_out)]
    found = [*SYSTEM, *kept, Path(__file__).resolve().parent.parent, *reads]
    return dict.fromkeys(found, READ) | {Path(os.devnull): READ | WRITE_FILE | TRUNCATE}


def homes() -> list[Path]:
    """Return the user's home folders, by the environment and by the system."""
    found = [os.environ.get("HOME", "")]
    with suppress(KeyError):  # a user without a name
        found.append(getpwuid(os.getuid()).pw_dir)
    return [Path(name).resolve() for name in found if name]


def version() -> int:
    """Return the version of Landlock that the kernel has; 0: none."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)))


def restrict(
    rules: Mapping[Path, int], *, network: bool = False, ports: Iterable[int] | None = None, listens: Iterable[int] = ()
) -> bool:
    """Deny all access to files but these rights beneath these paths, and what else this kernel's version can deny.

    From version 4 on it also denies to bind and connect TCP (unless `network`), and from 6 on, signals and abstract
    sockets of others.

    Args:
        rules: the rights, by path.
        network: keep TCP.
        ports: with `network`, deny to bind, and to connect to others than these; None: deny nothing of it.
        listens: with `ports`, those that may be bound.

    Returns:
        Whether it worked: False where the kernel has no Landlock.
    """
    has = version()
    handled = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, TRUNCATE), (5, IOCTL_DEV)):
        handled |= right if has >= since else 0
    tcp = BIND_TCP | CONNECT_TCP if has >= 4 and not (network and ports is None) else 0
    scopes = 0b11 if has >= 6 else 0
    size = 24 if has >= 6 else 16 if has >= 4 else 8
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    for path, rights in rules.items():
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # nothing to give access to
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights & handled & (-1 if stat.S_ISDIR(os.fstat(place).st_mode) else OF_FILES)
            rule = struct.pack("=Qi", allowed, place)
            libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
            os.close(place)
    for right, numbers in ((CONNECT_TCP, ports or ()), (BIND_TCP, listens)) if tcp else ():
        for port in numbers:
            libc.syscall(ADD_RULE, ruleset, RULE_NET_PORT, struct.pack("=QQ", right, port), 0)
    libc.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = bool(libc.syscall(RESTRICT_SELF, ruleset, 0) == 0)
    os.close(ruleset)
    return done
