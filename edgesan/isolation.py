"""What each process gives up, so that "a picture of the camera cannot leave" is the kernel's word.

The sanitize process, which sees raw pixels, gives up the network: a network namespace of its own that holds nothing
(network_namespaces(7)). The transmit process, which has the network, gives up the cameras. Both give up all files but
those that they need (landlock(7)), all system calls but those that they make (seccomp(2): no new socket, no other
process, no program), the terminal, privileges (no_new_privs, capabilities(7)) and dumps; the first one swap, too.

All of it lasts. It binds the calling thread and those that it starts later, so it must come first: before numpy, which
starts threads.

At the end the process tries to get it back, by the *ways* of the table below, each with arguments that do no harm where
a weak kernel lets it pass. What the tries met is a byte each; a Claim's words follow from these bytes alone, so the
sanitize process can tell its claims where nothing but numbers passes (`pack`).
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pwd import getpwuid
from typing import Any, Final

from edgesan import syscalls
from edgesan.errors import IsolationError

# linux/sched.h, linux/mount.h, linux/prctl.h, asm-generic/mman.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
CLONE_SIGHAND: Final = 0x00000800
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 3, 4, 38
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MAP_NORESERVE: Final = 0x4000
TIOCNOTTY: Final = 0x5422  # asm-generic/ioctls.h
AT_FDCWD: Final = -100
# linux/capability.h. Root without the first two cannot read other users' clips; the third lets it serve port 80.
CAPABILITY_VERSION: Final = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE = 1 << 1, 1 << 2, 1 << 10
# linux/landlock.h; the numbers of its calls are the same everywhere
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = (1 << i for i in (1, 2, 3, 4, 5, 7, 8))
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
OF_FILES: Final = 1 << 0 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # a rule on a file may name no others
READ: Final = READ_FILE | READ_DIR
WRITE: Final = READ | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
DEVICE: Final = READ_FILE | WRITE_FILE | IOCTL_DEV

MOST_MEMORY: Final = 2**30  # bytes that a process may map once its model is loaded, beside what it has
MOST_MEMORY_LOADING: Final = 2**34  # libraries with a pool of threads for each of many cores
TOO_MUCH: Final = 2**36

STRANGER: Final = ("192.0.2.1", 9)  # TEST-NET-1 (RFC 5737). Connecting UDP looks up a route, and sends nothing
STAND_IN: Final = "/dev/zero"
CAMERAS: Final = ("video[0-9]*", "media[0-9]*", "v4l-subdev[0-9]*", "bus/usb/*/*")
CAMERA_MEMORY: Final = ("dma_heap/*", "udmabuf")  # where libcamera gets its buffers
# What libraries read of the system. Not /etc and /proc as a whole: there lie keys, and what other processes were told.
SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/locale.alias",
    "/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/mime.types", "/etc/libcamera",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/filesystems", "/proc/version",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/osrelease", "/proc/sys/fs/pipe-max-size", "/proc/device-tree",
    "/sys/devices", "/sys/class", "/sys/bus", "/sys/dev", "/sys/fs/cgroup", "/sys/firmware/devicetree", "/run/udev",
    "/dev/urandom", "/dev/random",
)  # fmt: skip
RESOLVER: Final = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/run/systemd/resolve",
    "/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust", "/etc/ca-certificates",
)  # fmt: skip

# Results that are no errno. No errno is above 133.
KEPT, EXEMPT, FIXED, NOTHING = 255, 254, 253, 252

_libc: Final = ctypes.CDLL(None, use_errno=True)
deny: Final = syscalls.deny  # a kernel that gives less


@dataclass(frozen=True)
class Claim:
    """One thing that a process cannot do. `holds` is what the tries said, and `detail` their words."""

    process: str  # "sanitize" or "transmit"
    name: str
    holds: bool
    detail: str
    cure: str = ""  # where it does not hold
    results: tuple[int, ...] = field(default=(), repr=False)  # a byte of each way; see `pack`

    def __str__(self) -> str:
        word = "" if self.holds else "NOT "
        return f"{self.process} process: {word}{self.name}: {self.detail}" + (
            f". Cure: {self.cure}" if self.cure else ""
        )


def sanitize(
    reads: Iterable[Path] = (),
    writes: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    *,
    network: bool = False,
) -> list[Claim]:
    """Give up all that a process which sees raw pixels does not need.

    Args:
        reads: files and folders that it reads, beside those of Python and the system.
        writes: folders that it makes files in; none in a run.
        devices: cameras. A node that appears later is another one, which it cannot open: see `camera_nodes`.
        network: keep the network; only a camera that is a URL needs it.

    Raises:
        IsolationError: it is too late, as threads may run that would keep what is given up.
    """
    _must_be_alone()
    reads, writes, devices = list(reads), list(writes), list(devices)
    before = Before.now([*reads, *writes], writes, network=network)
    before.swap = _lock_memory()
    before.session = _leave_terminal()
    if not network:
        before.network = _leave_network()
    forbid_dumps()  # after the namespace, whose maps only a dumpable process may write: proc(5)
    drop_privileges(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH)
    limit_memory(MOST_MEMORY_LOADING)
    rules = places([*reads, *map(Path, RESOLVER if network else ())]) | {Path("/dev"): READ_DIR}
    landlock(rules | dict.fromkeys(devices, DEVICE) | dict.fromkeys(writes, WRITE), network=network)
    calls = syscalls.BOTH | (syscalls.WRITING if writes else set()) | (syscalls.CALLING if network else set())
    make_checks = syscalls.calling_checks if network else syscalls.checks
    syscalls.allow(calls, make_checks(os.getpid()) | ({} if writes else _no_emptying()))
    with before:
        return _tried("sanitize", before)


def transmit(reads: Iterable[Path] = ()) -> list[Claim]:
    """Give up all that a process which serves does not need, above all the cameras, and every new socket.

    It keeps what is open: sockets that listen, files that it writes, an event loop.

    Args:
        reads: files and folders that it reads, beside those of Python and the system.

    Raises:
        IsolationError: as `sanitize`.
    """
    _must_be_alone()
    reads = list(reads)
    before = Before.now(reads, [])
    before.session = _leave_terminal()
    limit_memory(MOST_MEMORY_LOADING)
    if not landlock(places(reads)):
        hide_devices()
    forbid_dumps()
    drop_privileges(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH | CAP_NET_BIND_SERVICE)
    syscalls.allow(syscalls.BOTH | syscalls.SERVING, syscalls.serving_checks(os.getpid()) | _no_emptying())
    with before:
        return _tried("transmit", before)


def camera_nodes(dev: Path = Path("/dev")) -> list[Path]:
    """The device nodes that a camera may need, as they are now.

    A camera that is plugged in again has a new node, which a process that knew the old one cannot open (landlock(7) goes
    by the file, not by its name): it takes a new process.
    """
    names = ("video[0-9]*", "media[0-9]*", "v4l-subdev[0-9]*", *CAMERA_MEMORY)
    return sorted(node for name in names for node in dev.glob(name))


def _must_be_alone() -> None:
    if len(os.listdir("/proc/self/task")) > 1 or "numpy" in sys.modules:
        raise IsolationError(
            "this process runs threads already, or numpy, which starts some: they would keep what is given up;"
            " use the command `edgesan`, in a process of its own"
        )


# --- what a process gives up ------------------------------------------------------------------------------------------


def leave_network() -> Claim:
    """Move into a network namespace with nothing in it."""
    return _claim("sanitize", "no network", _leave_network())


def _leave_network() -> tuple[int, int, int]:
    before = os.readlink("/proc/self/ns/net")
    refused = _unshare(CLONE_NEWNET)
    apart = os.readlink("/proc/self/ns/net") != before or _is_alone()
    interfaces = {line.partition(":")[0].strip() for line in _proc("self/net/dev").splitlines()[2:]}
    names = {name: number for number, name in errno.errorcode.items()}
    return 0 if apart else names.get(refused, errno.EPERM), int(not interfaces <= {"lo"}), _errno(_reach)


def _is_alone() -> bool:
    """Whether nobody else has a socket in this network namespace: a service manager made it for this process alone.

    It may then make no further one itself (RestrictNamespaces=). In the machine's own, systemd at least would have some.
    """
    mine = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    sockets = [line.split()[6] for line in _proc("self/net/unix").splitlines()[1:]]
    return all(f"socket:[{inode}]" in mine for inode in sockets)


def lock_memory() -> Claim:
    """Keep the memory out of swap: mlock(2). Only where it may all be locked: else the next mapping would fail."""
    return _claim("sanitize", "no swap", (_lock_memory(),))


def _lock_memory() -> int:
    with suppress(ValueError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        # As they are touched: all at once would load every library in full.
        _libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    if _status("VmLck") not in {"", "0 kB"}:
        return 1
    return 0 if disk_swaps() else 2


def disk_swaps(root: Path = Path("/")) -> list[str]:
    """The disks and files that memory is swapped to. zram is compressed memory, and no disk, unless it writes back."""
    found = []
    for line in (root / "proc/swaps").read_text(encoding="utf-8").splitlines()[1:]:
        name = line.split()[0]
        backing = root / "sys/block" / Path(name).name / "backing_dev"
        memory = Path(name).name.startswith("zram") and (not backing.exists() or backing.read_text().strip() == "none")
        found += [] if memory else [name]
    return found


def _leave_terminal() -> int:
    """A session of its own; where that cannot be (the leader of a group), no terminal. And no keyboard."""
    with suppress(PermissionError):
        os.setsid()
    if os.getsid(0) != os.getpid():
        with suppress(OSError):  # none there
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            _libc.ioctl(terminal, TIOCNOTTY)
            os.close(terminal)
    if os.isatty(0):
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
    if os.getsid(0) == os.getpid():
        return 1
    return 2 if _proc("self/stat").rpartition(")")[2].split()[4] == "0" else 0


def limit_memory(more: int = MOST_MEMORY) -> None:
    """Let this process map so many bytes beside what it has now, and never more: RLIMIT_AS, getrlimit(2).

    Once the model is loaded: whatever asks for more afterwards is an error, and not the end of the machine.
    """
    mapped = int(_proc("self/statm").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + more if hard == resource.RLIM_INFINITY else min(hard, mapped + more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def forbid_dumps() -> None:
    """No core dump, and no debugger of the same user: a dump of this process would hold raw pixels (prctl(2)).

    RLIMIT_CORE alone does not stop a kernel that pipes its dumps to a program; "not dumpable" does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(number: int) -> None:
    """Get this signal when the parent ends: PR_SET_PDEATHSIG(2const)."""
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def drop_privileges(keep: int) -> None:
    """Give up all capabilities but `keep`, and the way to get any by running a program."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    kept = _capabilities("CapPrm") & keep
    header, sets = struct.pack("=Ii", CAPABILITY_VERSION, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    _libc.capset(header, sets)


def hide_devices() -> None:
    """Put an empty, read-only folder over /dev, for this process alone; where the kernel lets this user."""
    if not _unshare(CLONE_NEWNS):
        _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        _libc.mount(b"none", b"/dev", b"tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


# --- files: landlock(7) -----------------------------------------------------------------------------------------------


def places(reads: Iterable[Path]) -> dict[Path, int]:
    """What may be read: these, the system's libraries, Python's, and this package.

    Of `sys.path` only folders that packages were installed into: the working directory, or a checkout, is there by
    accident. Nothing of Python's that has somebody's home in it.
    """
    python = [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]
    installed = [name for name in sys.path if name and any(Path(name).glob("*.dist-info"))]
    homes = _homes()
    found = [Path(name).resolve() for name in (*python, *installed)]
    kept = [path for path in found if not any(home.is_relative_to(path) for home in homes)]
    found = [*map(Path, SYSTEM), *kept, Path(__file__).resolve().parent, *reads]
    return dict.fromkeys(found, READ) | {Path(os.devnull): READ | WRITE_FILE | TRUNCATE}


def _homes() -> list[Path]:
    """The user's, as the environment and as the system say."""
    found = [os.environ.get("HOME", "")]
    with suppress(KeyError):  # a user without a name
        found.append(getpwuid(os.getuid()).pw_dir)
    return [Path(name).resolve() for name in found if name]


def landlock_version() -> int:
    """What the kernel has of it; 0: none."""
    return max(0, int(_libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), LANDLOCK_VERSION)))


def landlock(rules: Mapping[Path, int], *, network: bool = False) -> bool:
    """Deny all access to files but these rights beneath these paths, and what else this kernel's version can deny.

    That is, from version 4 on, to bind and connect TCP (unless `network`), and from 6 on, signals and abstract sockets of
    others. False where the kernel has no Landlock.
    """
    version = landlock_version()
    handled = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, TRUNCATE), (5, IOCTL_DEV)):
        handled |= right if version >= since else 0
    ports = 0b11 if version >= 4 and not network else 0
    scopes = 0b11 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", handled, ports, scopes)
    ruleset = _libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    for path, rights in rules.items():
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # nothing to give access to
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights & handled & (-1 if stat.S_ISDIR(os.fstat(place).st_mode) else OF_FILES)
            rule = struct.pack("=Qi", allowed, place)
            _libc.syscall(LANDLOCK_ADD, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
            os.close(place)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = bool(_libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _no_emptying() -> dict[str, list[syscalls.Step]]:
    """Checks for a kernel whose Landlock lets a file that may be read be emptied: before version 3, Linux 6.2."""
    return syscalls.EMPTYING if landlock_version() < 3 else {}


# --- the ways back, each tried ----------------------------------------------------------------------------------------


class Before:
    """What the tries need, taken before it cannot be had any more; and the results that are known before the end."""

    def __init__(self) -> None:
        self.url = False
        self.network: tuple[int, int, int] = (KEPT, KEPT, KEPT)
        self.swap = self.session = 0
        self.packets = 0
        self.parent = os.getppid() or 2**22  # no process, where the parent lies outside of this container
        self.home = Path("/")
        self.outside = ""
        self.cameras: list[str] = []
        self.mine: list[Path] = []
        self.written: list[Path] = []
        self._sockets: list[socket.socket] = []

    @classmethod
    def now(cls, mine: list[Path], written: list[Path], *, network: bool = False) -> "Before":
        """Of this process. `mine`: what it may read or write, `written`: of these, what it may write."""
        before = cls()
        before.url = network
        before.home = next(iter(_homes()), Path("/"))
        before.mine, before.written = ([path.resolve() for path in paths] for paths in (mine, written))
        before.outside = next(before._outside(), "")
        before.cameras = sorted(str(node) for name in CAMERAS for node in Path("/dev").glob(name))
        before.packets = int(any(map(_sends_packets, map(int, os.listdir("/proc/self/fd")))))
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with suppress(OSError):  # a service manager gives it none
                before._sockets += socket.socketpair(socket.AF_UNIX, kind)
        return before

    def __enter__(self) -> "Before":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._sockets:
            end.close()

    def socket(self, kind: int) -> int:
        """A socket that was made before, or no descriptor at all, with which a call that is not refused says EBADF."""
        return next((end.fileno() for end in self._sockets if end.type == kind), -1)

    def _outside(self) -> Iterator[str]:
        """A file that it can read now, and must not read later."""
        names = (*(self.home / n for n in (".bashrc", ".profile", ".bash_history")), "/etc/hostname", "/etc/fstab", "/etc/issue",
                 f"/proc/{self.parent}/cmdline")  # fmt: skip
        for name in map(str, names):
            if not _beneath(Path(name), self.mine) and not _errno(_open, name):
                yield name


@dataclass(frozen=True)
class Way:
    """One way back, and the results that mean that it is closed.

    `words` are those of results that are no errno. Without a name it is a fact to be read, and `words` has all results.
    """

    claim: str
    name: str
    attempt: Callable[[Before], int]
    closed: frozenset[int] = frozenset({errno.EPERM})
    words: Mapping[int, str] = field(default_factory=dict)

    def possible(self, result: int) -> bool:
        return result in self.words or (self.name != "" and (result == 0 or result in errno.errorcode))


def _closed(*results: int) -> frozenset[int]:
    return frozenset(results)


def _errno(what: Callable[..., object], *arguments: object) -> int:
    """The errno that it fails with, or 0."""
    try:
        what(*arguments)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _call(name: str, *arguments: int | bytes | None) -> int:
    """The errno that a system call fails with, or 0. A number on its own has 64 bits here."""
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    number = syscalls.number(name)
    if number < 0:
        return errno.ENOSYS
    return ctypes.get_errno() if _libc.syscall(ctypes.c_long(number), *given) == -1 else 0


def _beneath(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _open(name: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))


def _make_socket(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW if family in {socket.AF_PACKET, socket.AF_NETLINK} else 0x2).close()


def _make_pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _reach() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(STRANGER)


def _sends_packets(fd: int) -> bool:
    """Whether it is a socket that can be told, each time, whom to send to."""
    with suppress(OSError), closing(socket.socket(fileno=os.dup(fd))) as found:
        return found.type not in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}
    return False


NOBODY: Final = struct.pack("=H108s", socket.AF_UNIX, b"/nobody-listens-here")
_NAME: Final = ctypes.create_string_buffer(NOBODY, len(NOBODY))
MESSAGE: Final = struct.pack("@PI4xPNPNi4x", ctypes.addressof(_NAME), len(NOBODY), 0, 0, 0, 0, 0)  # struct msghdr


def _write_in(folder: str) -> Callable[[Before], int]:
    """Make a file without a name there, which leaves nothing behind: O_TMPFILE, open(2)."""

    def attempt(before: Before) -> int:
        path = before.home if folder == "~" else Path(folder)
        if _beneath(path, before.written):
            return EXEMPT
        return _errno(_open, str(path), os.O_TMPFILE | os.O_WRONLY)

    return attempt


def _with_outside(what: Callable[[str], object]) -> Callable[[Before], int]:
    """Try it with a file outside, if there is one."""
    return lambda before: _errno(what, before.outside) if before.outside else NOTHING


def _list_home(before: Before) -> int:
    return EXEMPT if _beneath(before.home, [*before.mine, Path("/usr")]) else _errno(os.listdir, str(before.home))


def _open_cameras(before: Before) -> int:
    said = [_errno(_open, node) for node in dict.fromkeys((*before.cameras, "/dev/video0"))]
    return next((result for result in said if result not in NO_DEVICE), max(said, key=lambda e: e != errno.ENOENT))


def _open_stand_in(before: Before) -> int:
    """A device that everybody may open: there may be no camera now, and one later.

    Later none comes where /dev is no devtmpfs, which the kernel fills (PrivateDevices= of systemd).
    """
    return FIXED if _file_system("/dev") == "tmpfs" else _errno(_open, STAND_IN)


def _map_much(_: Before) -> int:
    def much() -> None:
        mmap.mmap(-1, TOO_MUCH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, 0).close()

    return _errno(much)


def _privileges(_: Before) -> int:
    kept = CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH | CAP_NET_BIND_SERVICE
    return int(_capabilities("CapPrm") & ~kept != 0)


def _raw(claim: str, calls: Mapping[str, tuple[int | bytes | None, ...]]) -> list[Way]:
    """Calls with arguments that no kernel can act on: what says EPERM is the filter, and not their own check."""
    return [
        Way(claim, name.replace("*", ""), _attempt(name.rstrip("*"), given), NO_CALL) for name, given in calls.items()
    ]


def _attempt(name: str, given: tuple[int | bytes | None, ...]) -> Callable[[Before], int]:
    return lambda before: _call(name, *(before.parent if each == PARENT else each for each in given))


PARENT: Final = 2**40  # stands for its number
NO_CALL: Final = _closed(errno.EPERM, errno.ENOSYS)
NO_FILE: Final = _closed(
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP, EXEMPT, NOTHING
)
NO_DEVICE: Final = _closed(errno.EACCES, errno.EPERM, errno.ENOENT)
IS_KEPT: Final = {KEPT: "the camera is a URL, so the process that sees raw pixels has the network"}
NO_OUTSIDE: Final = {NOTHING: "it could read no file outside before, either"}


def _family(name: str, *, kept: bool) -> Way:
    family = getattr(socket, name)

    def attempt(before: Before) -> int:
        return KEPT if before.url and kept else _errno(_make_socket, family)

    return Way("no socket", name, attempt, NO_CALL, IS_KEPT if kept else {})


def _to_path(name: str, call: Callable[[Before], int], *also: int) -> Way:
    return Way("no socket", name, lambda b: KEPT if b.url else call(b), _closed(errno.EPERM, *also), IS_KEPT)


NETWORK: Final = (
    Way("no network", "the kernel gives it no network namespace ({})", lambda b: b.network[0], _closed(0),
        IS_KEPT | {0: "a network namespace of its own"}),
    Way("no network", "", lambda b: b.network[1], _closed(0),
        IS_KEPT | {0: "no interface but lo", 1: "it sees other interfaces"}),
    Way("no network", "a stranger is {}", lambda b: b.network[2], _closed(errno.ENETUNREACH, errno.EAFNOSUPPORT),
        IS_KEPT | {0: "a stranger can be reached"}),
)  # fmt: skip
SOCKETS: Final = (
    _family("AF_INET", kept=True), _family("AF_INET6", kept=True),
    *(_family(name, kept=False) for name in ("AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_VSOCK")),
    Way("no socket", "socketpair", lambda _: _errno(_make_pair)),
    _to_path("sendto a path", lambda b: _call("sendto", b.socket(socket.SOCK_DGRAM), b"", 0, 0, NOBODY, len(NOBODY))),
    _to_path("connect to a path", lambda b: _call("connect", b.socket(socket.SOCK_DGRAM), NOBODY, len(NOBODY))),
    _to_path("bind", lambda b: _call("bind", b.socket(socket.SOCK_DGRAM), NOBODY[:2], 2)),
)  # fmt: skip
PACKET: Final = (
    _to_path("sendmsg to a path", lambda b: _call("sendmsg", b.socket(socket.SOCK_DGRAM), MESSAGE, 0)),
    Way("no socket", "listen", lambda _: _call("listen", -1, 1)),
)
STREAM: Final = (  # a process that serves may send, but to nobody else
    Way("no socket", "sendmsg to a path", lambda b: _call("sendmsg", b.socket(socket.SOCK_STREAM), MESSAGE, 0),
        _closed(errno.EPERM, errno.EISCONN, errno.EBADF)),
    Way("no socket", "", lambda b: b.packets, _closed(0),
        {0: "no socket is open that sends to any address", 1: "a socket is open that sends to any address"}),
)  # fmt: skip
CAMERA: Final = (
    Way("no camera", "open /dev/video*", _open_cameras, NO_DEVICE),
    Way("no camera", f"open {STAND_IN}", _open_stand_in, NO_DEVICE | {FIXED},
        {FIXED: "/dev is its own, and no device appears in it"}),
)  # fmt: skip
SWAP: Final = Way("no swap", "", lambda b: b.swap, _closed(1, 2), {
    0: "its memory may not be locked, and raw pixels could reach a disk", 1: "its memory is locked",
    2: "there is none on a disk"})  # fmt: skip
COMMON: Final = (
    Way("no privileges", "", lambda _: int(_status("NoNewPrivs") == "1"), _closed(1),
        {1: "no_new_privs 1", 0: "a program may give it privileges (no_new_privs 0)"}),
    Way("no privileges", "", _privileges, _closed(0),
        {0: "no capabilities but those for files and ports", 1: "it has capabilities"}),
    Way("no dumps", "", lambda _: min(2, _libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)), _closed(0),
        {0: "not dumpable", 1: "dumpable", 2: "dumpable by root"}),
    Way("no dumps", "", lambda _: int(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0), _closed(0),
        {0: "core limit 0", 1: "a crash may write it to a disk"}),
    *_raw("no dumps", {"prctl*": (PR_SET_DUMPABLE, 7, 0, 0, 0)}),
    Way("no files", "write in the home folder", _write_in("~"), NO_FILE, {EXEMPT: "it may write in the home folder"}),
    *(Way("no files", f"write in {name}", _write_in(name), NO_FILE, {EXEMPT: f"it may write in {name}"})
      for name in ("/tmp", "/var/tmp", "/dev/shm")),  # noqa: S108
    Way("no files", "list the home folder", _list_home, NO_FILE, {EXEMPT: "the home folder is its own"}),
    Way("no files", "read a file outside", _with_outside(_open), NO_FILE, NO_OUTSIDE),
    Way("no files", "write to it", _with_outside(lambda name: _open(name, os.O_WRONLY)), NO_FILE, NO_OUTSIDE),
    Way("no files", "rename it", _with_outside(lambda name: os.rename(name, name)), NO_FILE, NO_OUTSIDE),
    *_raw("no files", {"truncate": (b"", 0), "fchmodat": (AT_FDCWD, b"", 0), "fchownat": (AT_FDCWD, b"", -1, -1, 0),
                       "linkat": (AT_FDCWD, b"", AT_FDCWD, b"", 0), "symlinkat": (b"", AT_FDCWD, b""),
                       "utimensat": (AT_FDCWD, b"", None, 0), "setxattr": (b"", b"user.x", b"", 0, 0)}),
    Way("no terminal", "", lambda b: b.session, _closed(1, 2),
        {0: "it has the terminal of whoever started it", 1: "a session of its own", 2: "it has no terminal"}),
    Way("no terminal", "", lambda _: int(os.isatty(0)), _closed(0), {0: "no keyboard", 1: "it reads the keyboard"}),
    Way("no terminal", "open /dev/tty", lambda _: _errno(_open, "/dev/tty"), NO_DEVICE | {errno.ENXIO}),
    Way("no terminal", "TIOCSTI", lambda _: _call("ioctl", -1, syscalls.TIOCSTI, None)),
    Way("no terminal", "TIOCLINUX", lambda _: _call("ioctl", -1, syscalls.TIOCLINUX, None)),
    Way("no terminal", "TIOCSETD", lambda _: _call("ioctl", -1, syscalls.TIOCSETD, None)),
    Way("no other process", "fork", lambda _: _call("clone", CLONE_SIGHAND, 0, 0, 0, 0)),
    Way("no other process", "clone3", lambda _: _call("clone3", None, 0), _closed(errno.EPERM, errno.ENOSYS)),
    Way("no other process", "F_SETOWN", lambda b: _call("fcntl", -1, syscalls.F_SETOWN, b.parent)),
    *_raw("no other process", {
        "execve": (b"", None, None), "kill": (PARENT, 99), "tgkill": (PARENT, PARENT, 99), "ptrace": (3, PARENT, 0, 0),
        "process_vm_readv": (PARENT, None, 0, None, 0, 0), "pidfd_open": (PARENT, -1), "prlimit64": (PARENT, 99, None, None),
    }),
    Way("no other process", "read its command line", lambda b: _errno(_open, f"/proc/{b.parent}/cmdline"), NO_DEVICE),
    *_raw("no new namespace", {"unshare": (CLONE_NEWUSER | 1,), "setns": (-1, 0), "mount": (b"", b"", b"", 0, None),
                               "chroot": (b"",)}),
    *_raw("no kernel doors", {
        "bpf": (-1, None, 0), "userfaultfd": (-1,), "perf_event_open": (None, 0, -1, -1, 0), "io_uring_setup": (0, None),
        "add_key": (None, None, None, 0, 0), "request_key": (None, None, None, 0), "keyctl": (-1, 0, 0, 0, 0),
        "shmget": (0, 0, 0), "msgget": (1, 0), "semget": (0, -1, 0), "mq_open": (None, 0, 0, None),
        "fanotify_init": (-1, 0), "open_by_handle_at": (-1, None, 0), "kexec_load": (0, 0, None, -1),
        "init_module": (None, 0, None), "personality": (0xFFFFFFFF,), "splice": (-1, None, -1, None, 1, 0),
    }),
    Way("no endless memory", f"map {TOO_MUCH >> 30} GiB", _map_much, _closed(errno.ENOMEM)),
)  # fmt: skip
WAYS: Final = {
    "sanitize": (*NETWORK, *SOCKETS, *PACKET, *COMMON, SWAP),
    "transmit": (*CAMERA, *SOCKETS, *STREAM, *COMMON),
}
SECCOMP: Final = "use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64, and a 64-bit Python"
LANDLOCK: Final = "use a kernel with Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, and landlock in lsm=)"
CURES: Final = {
    "no network": "sudo sysctl -w kernel.unprivileged_userns_clone=1 (Debian),"
    " kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 23.10 and later) or user.max_user_namespaces=1000; for"
    " good: in /etc/sysctl.d",
    "no camera": f"{LANDLOCK}, or let it make user namespaces; and write no file straight into / or /dev",
    "no swap": "sudo swapoff -a; or LimitMEMLOCK=infinity in the unit, or memlock unlimited in"
    " /etc/security/limits.conf",
    "no files": f"{LANDLOCK}; {SECCOMP}",
    "no endless memory": "remove what keeps setrlimit(2) from it (SystemCallFilter= of the unit)",
}
URL_CURE: Final = "use a camera of this machine; or let another machine, or container, run edgesan beside that camera"
RESULTS: Final = len(WAYS["sanitize"])
"""Bytes of what the sanitize process tells of its claims."""


def _tried(process: str, before: Before) -> list[Claim]:
    return _claims(process, bytes(way.attempt(before) for way in WAYS[process]))


def _claims(process: str, results: bytes) -> list[Claim]:
    """The claims that follow from a result of each way."""
    found: dict[str, list[int]] = {}
    for way, result in zip(WAYS[process], results, strict=True):
        found.setdefault(way.claim, []).append(result)
    return [_claim(process, name, tuple(each)) for name, each in found.items()]


def _claim(process: str, name: str, results: tuple[int, ...]) -> Claim:
    """What follows from the results of its ways; those that are open are told first."""
    ways = [way for way in WAYS[process] if way.claim == name]
    tried = sorted(zip(ways, results, strict=True), key=lambda pair: pair[1] in pair[0].closed)
    facts: list[str] = []
    said: dict[str, list[str]] = {}
    for way, result in tried:
        word = errno.errorcode.get(result, "allowed")
        if result and result not in way.closed:
            word = f"not refused, but {word}"
        if result in way.words:
            facts.append(way.words[result])
        elif "{}" in way.name:
            facts.append(way.name.format(word))
        else:
            said.setdefault(word, []).append(way.name)
    words = [f"{word}: {', '.join(names)}" for word, names in said.items()]
    holds = all(result in way.closed for way, result in tried)
    cure = "" if holds else URL_CURE if KEPT in results else CURES.get(name, SECCOMP)
    return Claim(process, name, holds, "; ".join((*dict.fromkeys(facts), *words)), cure, results)


def pack(claims: list[Claim]) -> bytes:
    """The claims of one process, as a byte of each way: the errno that its try met, 0 where it was allowed."""
    return bytes(result for claim in claims for result in claim.results)


def unpack(results: bytes, process: str = "sanitize") -> list[Claim]:
    """The claims that `pack` made these bytes of, with the same words.

    Raises:
        ValueError: they are none.
    """
    ways = WAYS[process]
    if len(results) != len(ways):
        raise ValueError(f"claims of the {process} process are {len(ways)} bytes, not {len(results)}")
    for way, result in zip(ways, results, strict=True):
        if not way.possible(result):
            raise ValueError(f"claims of the {process} process: {result} is no result of {way.claim}, {way.name}")
    return _claims(process, results)


def no_camera(cameras: Iterable[str]) -> Claim:
    """Try these, and a device that everybody may open."""
    before = Before()
    before.cameras = list(cameras)
    return _claim("transmit", "no camera", tuple(way.attempt(before) for way in CAMERA))


# --- what is printed --------------------------------------------------------------------------------------------------


def summary(claims: Iterable[Claim]) -> str:
    """One line: what holds of each process, and what does not."""
    words: dict[str, list[str]] = {}
    for claim in claims:
        words.setdefault(claim.process, []).append(claim.name if claim.holds else f"NOT {claim.name}")
    return "; ".join(f"{process}: {', '.join(said)}" for process, said in words.items())


def report(claims: list[Claim]) -> dict[str, Any]:
    """What /api/status says."""
    whole = all(claim.holds for claim in claims)
    return {"whole": whole, "summary": summary(claims), "claims": [plain(claim) for claim in claims]}


def plain(claim: Claim) -> dict[str, Any]:
    """For JSON: a claim without its results, which its words say."""
    return {key: value for key, value in asdict(claim).items() if key != "results"}


def require(claims: list[Claim]) -> None:
    """What `require_isolation` asks: all of it.

    Raises:
        IsolationError: what is missing, and the cure of each.
    """
    missing = [f"\n  {claim}" for claim in claims if not claim.holds]
    if missing:
        raise IsolationError(f"require_isolation asks for more than holds on this machine:{''.join(missing)}")


# --- the kernel -------------------------------------------------------------------------------------------------------


def _unshare(flag: int) -> str:
    """A namespace of its own: as root at once, else inside a user namespace of its own. The errno's name if refused."""
    if _libc.unshare(flag) == 0:
        return ""
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWUSER | flag) != 0:
        return errno.errorcode[ctypes.get_errno()]
    # Names only: groups that have no name in here still open their files. AppArmor may forbid it.
    with suppress(PermissionError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return ""


def _proc(name: str) -> str:
    return Path("/proc", name).read_text(encoding="utf-8")


def _file_system(place: str) -> str:
    """Its kind, by the last mount there; empty if nothing is mounted: /proc/pid/mountinfo, proc(5)."""
    mounts = [line.split(" - ") for line in _proc("self/mountinfo").splitlines()]
    return next((right.split()[0] for left, right in reversed(mounts) if left.split()[4] == place), "")


def _status(key: str) -> str:
    """A value of /proc/self/status; proc(5)."""
    pairs = (line.split(":", 1) for line in _proc("self/status").splitlines())
    return next((value.strip() for name, value in pairs if name == key), "")


def _capabilities(which: str) -> int:
    return int(_status(which) or "0", 16)


if __name__ == "__main__":  # for `edgesan doctor`: a process that gives all of it up, and says what holds
    said = sanitize() if sys.argv[1:] == ["sanitize"] else transmit()
    print(json.dumps([plain(claim) for claim in said]))
