"""Every way back to what was given up, as probes that are tried once: PROBES.

Each probe has arguments that do no harm where a weak kernel lets it pass. Its result is one byte: an errno, 0 if it was
allowed, or one of the values below. `edgesan.isolation.claims` says what follows from the results.
"""

import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edgesan.isolation import kernel, landlock, limits, seccomp
from edgesan.isolation.kernel import errno_of, libc

# Results that are no errno. No errno is above 133.
EXEMPT: Final = 254  # the process was given this place
FIXED: Final = 253  # nothing can appear there
NOTHING: Final = 252  # there was nothing to try it on

TOO_MUCH: Final = 2**36  # bytes
MAP_NORESERVE: Final = 0x4000  # asm-generic/mman.h
CLONE_SIGHAND: Final = 0x00000800  # linux/sched.h
AT_FDCWD: Final = -100
STAND_IN: Final = "/dev/zero"
CAMERAS: Final = ("video[0-9]*", "media[0-9]*", "v4l-subdev[0-9]*", "bus/usb/*/*")
CAMERA_MEMORY: Final = ("dma_heap/*", "udmabuf")  # where libcamera gets its buffers


class ProbeContext:
    """What the probes need and cannot get any more once it is given up, and results that are known before the end."""

    def __init__(self) -> None:
        self.network = (0, 0, 0)  # what `limits.leave_network` said
        self.port = 0  # that it may connect to
        self.swap = self.session = 0
        self.packets = 0
        self.parent = os.getppid() or 2**22  # no process, where the parent lies outside of this container
        self.home = Path("/")
        self.outside = ""
        self.cameras: list[str] = []
        self.virtual: set[str] = set()  # of these, those that show what is written to them
        self.mine: list[Path] = []
        self.written: list[Path] = []
        self._sockets: list[socket.socket] = []

    @classmethod
    def now(cls, mine: list[Path], written: list[Path]) -> "ProbeContext":
        """Take it from this process.

        Args:
            mine: what the process may read or write.
            written: of these, what it may write.
        """
        context = cls()
        context.home = next(iter(landlock.homes()), Path("/"))
        context.mine, context.written = ([path.resolve() for path in paths] for paths in (mine, written))
        context.outside = next(context._outside(), "")
        context.cameras = sorted(str(node) for name in CAMERAS for node in Path("/dev").glob(name))
        context.packets = int(any(map(_sends_packets, map(int, os.listdir("/proc/self/fd")))))
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with suppress(OSError):  # a service manager gives it none
                context._sockets += socket.socketpair(socket.AF_UNIX, kind)
        return context

    def __enter__(self) -> "ProbeContext":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._sockets:
            end.close()

    def socket(self, kind: int) -> int:
        """Return a socket that was made before, or no descriptor: a call with -1 that is not refused says EBADF."""
        return next((end.fileno() for end in self._sockets if end.type == kind), -1)

    def _outside(self) -> Iterator[str]:
        """Yield files that it can read now, and must not read later."""
        names = [str(self.home / name) for name in (".bashrc", ".profile", ".bash_history")]
        for name in (*names, "/etc/hostname", "/etc/fstab", "/etc/issue", f"/proc/{self.parent}/cmdline"):
            if not _beneath(Path(name), self.mine) and not errno_of(_open, name):
                yield name


Attempt = Callable[[ProbeContext], int]
REFUSED: Final = frozenset({errno.EPERM})


@dataclass(frozen=True)
class Probe:
    """One way back, and the results which show that it is closed.

    `words` are the words for results that are no errno. A probe without a name reads a fact, and `words` has all
    results.
    """

    claim: str
    name: str
    attempt: Attempt
    closed: frozenset[int] = REFUSED
    words: Mapping[int, str] = field(default_factory=dict)

    def possible(self, result: int) -> bool:
        """Return whether the attempt can have this result."""
        return result in self.words or (self.name != "" and (result == 0 or result in errno.errorcode))


# --- attempts ---------------------------------------------------------------------------------------------------------


def _call(name: str, *arguments: int | bytes | None) -> int:
    """Return the errno that a system call fails with, or 0. A number on its own has 64 bits here."""
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    number = seccomp.number(name)
    if number < 0:
        return errno.ENOSYS
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *given) == -1 else 0


def _beneath(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _open(name: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))


def _make_socket(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW if family in {socket.AF_PACKET, socket.AF_NETLINK} else 0x2).close()


def _make_pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _sends_packets(fd: int) -> bool:
    """Return whether it is a socket that takes an address with each packet."""
    with suppress(OSError), closing(socket.socket(fileno=os.dup(fd))) as found:
        return found.type not in {socket.SOCK_STREAM, socket.SOCK_SEQPACKET}
    return False


NOBODY: Final = struct.pack("=H108s", socket.AF_UNIX, b"/nobody-listens-here")
_NAME: Final = ctypes.create_string_buffer(NOBODY, len(NOBODY))
MESSAGE: Final = struct.pack("@PI4xPNPNi4x", ctypes.addressof(_NAME), len(NOBODY), 0, 0, 0, 0, 0)  # struct msghdr


def _write_in(folder: str) -> Attempt:
    """Make a file without a name there, which leaves nothing behind: O_TMPFILE, open(2)."""

    def attempt(context: ProbeContext) -> int:
        path = context.home if folder == "~" else Path(folder)
        if _beneath(path, context.written):
            return EXEMPT
        return errno_of(_open, str(path), os.O_TMPFILE | os.O_WRONLY)

    return attempt


def _with_outside(what: Callable[[str], object]) -> Attempt:
    """Try it with a file outside, if there is one."""
    return lambda context: errno_of(what, context.outside) if context.outside else NOTHING


def _list_home(context: ProbeContext) -> int:
    mine = _beneath(context.home, [*context.mine, Path("/usr")])
    return EXEMPT if mine else errno_of(os.listdir, str(context.home))


def _open_cameras(context: ProbeContext) -> int:
    nodes = {*context.cameras, "/dev/video0"} - context.virtual
    results = [errno_of(_open, node) for node in sorted(nodes)]
    opened = (result for result in results if result not in NO_DEVICE)
    return next(opened, max(results, key=lambda e: e != errno.ENOENT, default=errno.ENOENT))


def _open_stand_in(_: ProbeContext) -> int:
    """Open a device that everybody may open: there may be no camera now, and one later.

    None comes later where /dev is no devtmpfs, which the kernel fills (PrivateDevices= of systemd).
    """
    return FIXED if kernel.file_system("/dev") == "tmpfs" else errno_of(_open, STAND_IN)


def _map_much(_: ProbeContext) -> int:
    def much() -> None:
        mmap.mmap(-1, TOO_MUCH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, 0).close()

    return errno_of(much)


def _has_privileges(_: ProbeContext) -> int:
    kept = limits.CAP_DAC_OVERRIDE | limits.CAP_DAC_READ_SEARCH | limits.CAP_NET_BIND_SERVICE
    return int(kernel.capability_set("CapPrm") & ~kept != 0)


# --- the tables -------------------------------------------------------------------------------------------------------

PARENT: Final = 2**40  # stands for the parent's number
NO_CALL: Final = frozenset({errno.EPERM, errno.ENOSYS})
NO_DEVICE: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT})
NO_FILE: Final = NO_DEVICE | {errno.EROFS, errno.ENOTDIR, errno.EOPNOTSUPP, EXEMPT, NOTHING}
NO_OUTSIDE: Final = {NOTHING: "it could read no file outside before, either"}


def _raw(claim: str, **calls: tuple[int | bytes | None, ...]) -> list[Probe]:
    """Return probes of calls with arguments that no kernel can act on: only the filter answers them with EPERM."""
    return [Probe(claim, name, _raw_attempt(name, given), NO_CALL) for name, given in calls.items()]


def _raw_attempt(name: str, given: tuple[int | bytes | None, ...]) -> Attempt:
    return lambda context: _call(name, *(context.parent if each == PARENT else each for each in given))


def _fact(claim: str, read: Attempt, closed: set[int], words: Mapping[int, str]) -> Probe:
    """Return a probe that reads a fact."""
    return Probe(claim, "", read, frozenset(closed), words)


def _family(name: str) -> Probe:
    family = getattr(socket, name)
    return Probe("no socket", name, lambda _: errno_of(_make_socket, family), NO_CALL)


def _make_multipath() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()


def _to_path(name: str, call: Attempt) -> Probe:
    return Probe("no socket", name, call)


def _connect_elsewhere(context: ProbeContext) -> int:
    """Connect to a port of this machine that is not the camera's: tcpmux, or discard."""

    def connect() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.connect(("127.0.0.1", 9 if context.port == 1 else 1))

    return errno_of(connect)


def _packets(context: ProbeContext) -> int:
    return context.socket(socket.SOCK_DGRAM)


NETWORK: Final = (
    Probe(
        "no network",
        "the kernel gives it no network namespace ({})",
        lambda context: context.network[0],
        frozenset({0}),
        {0: "a network namespace of its own"},
    ),
    Probe(
        "no network",
        "",
        lambda context: context.network[1],
        frozenset({0}),
        {0: "no interface but lo", 1: "it sees other interfaces"},
    ),
    Probe(
        "no network",
        "a stranger is {}",
        lambda context: context.network[2],
        frozenset({errno.ENETUNREACH, errno.EAFNOSUPPORT}),
        {0: "a stranger can be reached"},
    ),
)
SOCKETS: Final = (
    *(_family(f"AF_{name}") for name in ("INET", "INET6", "UNIX", "NETLINK", "PACKET", "ALG", "VSOCK")),
    Probe("no socket", "socketpair", lambda _: errno_of(_make_pair)),
    _to_path("sendto a path", lambda context: _call("sendto", _packets(context), b"", 0, 0, NOBODY, len(NOBODY))),
    _to_path("bind", lambda context: _call("bind", _packets(context), NOBODY[:2], 2)),
)
CONNECT: Final = _to_path("connect to a path", lambda context: _call("connect", _packets(context), NOBODY, len(NOBODY)))
LISTEN: Final = Probe("no socket", "listen", lambda _: _call("listen", -1, 1))
LOCAL: Final = tuple(
    replace(_family(name), claim="no local socket")
    for name in ("AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_VSOCK")
)
MULTIPATH: Final = Probe("no other protocol", "MPTCP", lambda _: errno_of(_make_multipath))
CALLS: Final = (  # what Landlock's ports do not hold
    MULTIPATH,
    Probe("no other protocol", "TCP fast open", lambda _: _call("sendto", -1, b"", 0, seccomp.MSG_FASTOPEN, None, 0)),
)
PACKET: Final = (
    _to_path("sendmsg to a path", lambda context: _call("sendmsg", _packets(context), MESSAGE, 0)),
    LISTEN,
)
STREAM: Final = (  # a process that serves may send, but to its clients only
    Probe(
        "no socket",
        "sendmsg to a path",
        lambda context: _call("sendmsg", context.socket(socket.SOCK_STREAM), MESSAGE, 0),
        frozenset({errno.EPERM, errno.EISCONN, errno.EBADF}),
    ),
    _fact(
        "no socket",
        lambda context: context.packets,
        {0},
        {0: "no socket is open that sends to any address", 1: "a socket is open that sends to any address"},
    ),
)
ONE_PORT: Final = tuple(  # a process that calls may make TCP sockets, for one port
    replace(probe, claim="no other port")
    for probe in (
        Probe("", "connect to port 1", _connect_elsewhere, frozenset({errno.EACCES, errno.EPERM})),
        *SOCKETS,
        MULTIPATH,
        LISTEN,
        *STREAM,
    )
)
CAMERA: Final = (
    Probe("no camera", "open /dev/video*", _open_cameras, NO_DEVICE),
    Probe(
        "no camera",
        f"open {STAND_IN}",
        _open_stand_in,
        NO_DEVICE | {FIXED},
        {FIXED: "/dev is its own, and no device appears in it"},
    ),
)
SWAP: Final = _fact(
    "no swap",
    lambda context: context.swap,
    {1, 2},
    {
        0: "its memory may not be locked, and raw pixels could reach a disk",
        1: "its memory is locked",
        2: "there is none on a disk",
    },
)
PRIVILEGES: Final = (
    _fact(
        "no privileges",
        lambda _: int(kernel.status_line("NoNewPrivs") == "1"),
        {1},
        {1: "no_new_privs 1", 0: "a program may give it privileges (no_new_privs 0)"},
    ),
    _fact(
        "no privileges",
        _has_privileges,
        {0},
        {0: "no capabilities but those for files and ports", 1: "it has capabilities"},
    ),
)
DUMPS: Final = (
    _fact(
        "no dumps",
        lambda _: min(2, libc.prctl(kernel.PR_GET_DUMPABLE, 0, 0, 0, 0)),
        {0},
        {0: "not dumpable", 1: "dumpable", 2: "dumpable by root"},
    ),
    _fact(
        "no dumps",
        lambda _: int(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0),
        {0},
        {0: "core limit 0", 1: "a crash may write it to a disk"},
    ),
    *_raw("no dumps", prctl=(kernel.PR_SET_DUMPABLE, 7, 0, 0, 0)),
)
WRITTEN: Final = {"~": "the home folder"} | {name: name for name in ("/tmp", "/var/tmp", "/dev/shm")}  # noqa: S108
FILES: Final = (
    *(
        Probe("no files", f"write in {name}", _write_in(folder), NO_FILE, {EXEMPT: f"it may write in {name}"})
        for folder, name in WRITTEN.items()
    ),
    Probe("no files", "list the home folder", _list_home, NO_FILE, {EXEMPT: "the home folder is its own"}),
    Probe("no files", "read a file outside", _with_outside(_open), NO_FILE, NO_OUTSIDE),
    Probe("no files", "write to it", _with_outside(lambda name: _open(name, os.O_WRONLY)), NO_FILE, NO_OUTSIDE),
    Probe("no files", "rename it", _with_outside(lambda name: os.rename(name, name)), NO_FILE, NO_OUTSIDE),
    *_raw(
        "no files",
        truncate=(b"", 0),
        fchmodat=(AT_FDCWD, b"", 0),
        fchownat=(AT_FDCWD, b"", -1, -1, 0),
        linkat=(AT_FDCWD, b"", AT_FDCWD, b"", 0),
        symlinkat=(b"", AT_FDCWD, b""),
        utimensat=(AT_FDCWD, b"", None, 0),
        setxattr=(b"", b"user.x", b"", 0, 0),
    ),
)
NULL_DEVICE: Final = os.makedev(1, 3)  # null(4)
TERMINAL: Final = (
    _fact(
        "no terminal",
        lambda context: context.session,
        {1, 2},
        {0: "it has the terminal of the user who started it", 1: "a session of its own", 2: "it has no terminal"},
    ),
    _fact(
        "no terminal",
        lambda _: int(os.fstat(0).st_rdev != NULL_DEVICE),
        {0},
        {0: "no standard input", 1: "standard input leads out of it"},
    ),
    Probe("no terminal", "open /dev/tty", lambda _: errno_of(_open, "/dev/tty"), NO_DEVICE | {errno.ENXIO}),
    Probe("no terminal", "TIOCSTI", lambda _: _call("ioctl", -1, seccomp.TIOCSTI, None)),
    Probe("no terminal", "TIOCLINUX", lambda _: _call("ioctl", -1, seccomp.TIOCLINUX, None)),
    Probe("no terminal", "TIOCSETD", lambda _: _call("ioctl", -1, seccomp.TIOCSETD, None)),
)
OTHER_PROCESSES: Final = (
    Probe("no other process", "fork", lambda _: _call("clone", CLONE_SIGHAND, 0, 0, 0, 0)),
    Probe("no other process", "clone3", lambda _: _call("clone3", None, 0), NO_CALL),
    Probe("no other process", "F_SETOWN", lambda context: _call("fcntl", -1, seccomp.F_SETOWN, context.parent)),
    *_raw(
        "no other process",
        execve=(b"", None, None),
        kill=(PARENT, 99),
        tgkill=(PARENT, PARENT, 99),
        ptrace=(3, PARENT, 0, 0),
        process_vm_readv=(PARENT, None, 0, None, 0, 0),
        pidfd_open=(PARENT, -1),
        prlimit64=(PARENT, 99, None, None),
    ),
    Probe(
        "no other process",
        "read its command line",
        lambda context: errno_of(_open, f"/proc/{context.parent}/cmdline"),
        NO_DEVICE,
    ),
)
NAMESPACES: Final = _raw(
    "no new namespace",
    unshare=(kernel.CLONE_NEWUSER | 1,),
    setns=(-1, 0),
    mount=(b"", b"", b"", 0, None),
    chroot=(b"",),
)
KERNEL_INTERFACES: Final = _raw(
    "no other kernel interface",
    bpf=(-1, None, 0),
    userfaultfd=(-1,),
    perf_event_open=(None, 0, -1, -1, 0),
    io_uring_setup=(0, None),
    add_key=(None, None, None, 0, 0),
    request_key=(None, None, None, 0),
    keyctl=(-1, 0, 0, 0, 0),
    shmget=(0, 0, 0),
    msgget=(1, 0),
    semget=(0, -1, 0),
    mq_open=(None, 0, 0, None),
    fanotify_init=(-1, 0),
    open_by_handle_at=(-1, None, 0),
    kexec_load=(0, 0, None, -1),
    init_module=(None, 0, None),
    personality=(0xFFFFFFFF,),
    splice=(-1, None, -1, None, 1, 0),
)
MEMORY: Final = Probe("no endless memory", f"map {TOO_MUCH >> 30} GiB", _map_much, frozenset({errno.ENOMEM}))
COMMON: Final = (
    *PRIVILEGES,
    *DUMPS,
    *FILES,
    *TERMINAL,
    *OTHER_PROCESSES,
    *NAMESPACES,
    *KERNEL_INTERFACES,
    MEMORY,
)
PROBES: Final[Mapping[str, tuple[Probe, ...]]] = {
    "sanitize": (*NETWORK, *SOCKETS, CONNECT, *PACKET, *COMMON, SWAP),
    "transmit": (*CAMERA, *SOCKETS, CONNECT, *STREAM, *COMMON),
    "fetch": (*CAMERA, *ONE_PORT, *COMMON, SWAP),
    "outlet": (*CAMERA, *LOCAL, *CALLS, *COMMON),  # which reaches out
    "recorder": (*CAMERA, *SOCKETS, CONNECT, *PACKET, *COMMON),  # which writes, and reaches nobody
}
