"""Every way out that was found, tried from inside a process that gave it up: by root, and by an ordinary user."""

import json
import os
from typing import Any

import pytest

from tests.isolation.support import Target, program
from tests.support import report

ATTACK = r"""
    import ctypes, errno, fcntl, json, mmap, os, resource, socket, struct, sys
    from pathlib import Path
    from edgesan import isolation
    from edgesan.isolation import seccomp
    process, target, victim, terminal = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    home, daemon, listener = f"{target}/home", f"{target}/daemon", f"{target}/listener"
    libc = ctypes.CDLL(None, use_errno=True)
    serves = process == "transmit"
    # What it may have from before: a pair of sockets, as of an event loop, and a pipe
    kind = socket.SOCK_STREAM if serves else socket.SOCK_DGRAM
    pair = socket.socketpair(socket.AF_UNIX, kind)
    ends = os.pipe()
    space = os.open("/proc/self/ns/uts", os.O_RDONLY)
    claims = {"sanitize": isolation.sanitize, "transmit": isolation.transmit, "nothing": list}[process]()
    if serves:
        isolation.limit_memory()

    def call(name, *arguments):
        result = libc.syscall(ctypes.c_long(seccomp.number(name)), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), name)
        return result

    def made(family, kind):
        socket.socket(family, kind).close()

    def two():
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        left.sendto(bytes(60012), daemon)

    def fork():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

    def read(name):
        Path(name).read_bytes()

    def attach():
        call("ptrace", 16, victim, None, None)
        os.waitpid(victim, 0x40000000)  # __WALL
        call("ptrace", 17, victim, None, None)

    def key():
        call("add_key", b"user", b"edgesan-test", b"x", ctypes.c_size_t(1), -2)

    def shared():
        number = call("shmget", 0, ctypes.c_size_t(4096), 0o1600)
        libc.shmctl(number, 0, None)  # IPC_RMID

    def uring():
        os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))

    def peek():
        here, there = struct.pack("@PN", 0, 0), struct.pack("@PN", 0, 0)
        call("process_vm_readv", victim, here, ctypes.c_long(0), there, ctypes.c_long(0), ctypes.c_long(0))

    ways = {
        **{f"socket({name})": (lambda family=getattr(socket, name), kind=kind: made(family, kind)) for name, kind in (
            ("AF_INET", 1), ("AF_INET6", 2), ("AF_UNIX", 1), ("AF_UNIX", 2), ("AF_NETLINK", 3))},
        "socketpair, then 60,012 bytes to a daemon": two,
        "sendto a path": lambda: pair[0].sendto(bytes(60012), daemon),
        "sendmsg to a path": lambda: pair[0].sendmsg([b"raw"], [], 0, daemon),
        "connect to a path": lambda: pair[1].connect(daemon),
        "bind": lambda: pair[1].bind(""),
        "TIOCSTI into the user's shell": lambda: fcntl.ioctl(terminal, 0x5412, b"x"),
        "write to ~/.bashrc": lambda: os.close(os.open(f"{home}/.bashrc", os.O_WRONLY | os.O_APPEND)),
        "a new file in ~": lambda: os.close(os.open(f"{home}/new", os.O_WRONLY | os.O_CREAT, 0o600)),
        "read ~/.ssh/id_ed25519": lambda: read(f"{home}/.ssh/id_ed25519"),
        "list ~": lambda: os.listdir(home),
        "list the working directory": lambda: os.listdir("."),
        "read another process's environment": lambda: read(f"/proc/{victim}/environ"),
        "chmod": lambda: os.chmod(f"{home}/letter", 0o700),
        "utime": lambda: os.utime(f"{home}/letter"),
        "link": lambda: os.link(f"{home}/letter", f"{home}/hard"),
        "symlink": lambda: os.symlink("letter", f"{home}/soft"),
        "mkdir": lambda: os.mkdir(f"{home}/folder"),
        "truncate": lambda: os.truncate(f"{home}/letter", 0),
        "rename": lambda: os.rename(f"{home}/letter", f"{home}/letter2"),
        "unlink": lambda: os.unlink(f"{home}/letter2"),
        "F_SETOWN": lambda: fcntl.fcntl(ends[0], fcntl.F_SETOWN, victim),
        "prlimit of another": lambda: resource.prlimit(victim, resource.RLIMIT_CPU),
        "process_vm_readv": peek,
        "pidfd_open": lambda: os.close(os.pidfd_open(victim)),
        "ptrace": attach,
        "signal 0 to another": lambda: os.kill(victim, 0),
        "fork": fork,
        "start a program": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "userfaultfd": lambda: os.close(call("userfaultfd", 1)),
        "bpf": lambda: call("bpf", 0, bytes(72), 72),
        "SysV shared memory": shared,
        "keys": key,
        "io_uring": uring,
        "perf_event_open": lambda: call("perf_event_open", bytes(128), 0, -1, -1, 0),
        "setns": lambda: call("setns", space, 0),
        "open /dev/zero": lambda: os.close(os.open("/dev/zero", os.O_RDONLY)),
        "open /dev/video0": lambda: os.close(os.open("/dev/video0", os.O_RDWR)),
        "map 64 GiB": lambda: mmap.mmap(-1, 2**36, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, 0).close(),
        "unshare(NEWUSER)": lambda: call("unshare", 0x10000000),
        "a signal that kills another": lambda: os.kill(victim, 9),
    }
    said = {}
    for name, way in ways.items():
        try:
            way()
            said[name] = "allowed"
        except OSError as error:
            said[name] = errno.errorcode[error.errno]
    print(json.dumps({"ways": said, "claims": [isolation.plain(claim) for claim in claims]}))
"""
# What each way meets, where it is not EPERM.
MEETS = {
    "write to ~/.bashrc": "EACCES",
    "a new file in ~": "EACCES",
    "read ~/.ssh/id_ed25519": "EACCES",
    "list ~": "EACCES",
    "list the working directory": "EACCES",
    "read another process's environment": "EACCES",
    "open /dev/zero": "EACCES",
    "map 64 GiB": "ENOMEM",
}
NOT_HERE = {"open /dev/video0": "ENOENT"}  # unless there is one
# Nothing keeps an ordinary process from these, or only this machine's settings do.
SETTINGS = {
    "open /dev/video0",
    "bpf",
    "perf_event_open",
    "setns",
    "io_uring",
    "userfaultfd",
    "keys",
    "unshare(NEWUSER)",
    "TIOCSTI into the user's shell",
    "read another process's environment",
    "socketpair, then 60,012 bytes to a daemon",
    "socket(AF_INET6)",
}


def attack(target: Target, process: str) -> dict[str, Any]:
    done = target.run(ATTACK, process, str(target.path), str(target.victim.pid), str(target.terminal))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("process", ["sanitize", "transmit"])
def test_no_way_out_that_was_found_is_open(target: Target, process: str) -> None:
    said = attack(target, process)
    meets = MEETS | ({"sendto a path": "EPERM", "sendmsg to a path": "EISCONN"} if process == "transmit" else {})
    user = "root" if target.user is None and os.getuid() == 0 else "an ordinary user"
    for name, met in said["ways"].items():
        report(f"{process} process, as {user}: {name}", met, int(met == "allowed"))
        wanted = {meets.get(name, "EPERM"), NOT_HERE.get(name, meets.get(name, "EPERM"))}
        assert met in wanted or (name in NOT_HERE and met == "EACCES"), name
    assert [claim["name"] for claim in said["claims"] if not claim["holds"]] == []
    target.daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        target.daemon.recv(1)
    os.set_blocking(target.keyboard, False)
    with pytest.raises(BlockingIOError):
        os.read(target.keyboard, 1)
    os.set_blocking(target.terminal, False)
    with pytest.raises(BlockingIOError):
        os.read(target.terminal, 1)
    assert sorted(path.name for path in target.home.iterdir()) == [".bashrc", ".ssh", "letter"]
    assert (target.home / "letter").read_text() == "mine"
    assert target.victim.poll() is None


def test_the_ways_are_open_to_a_process_that_gave_nothing_up(target: Target) -> None:
    said = attack(target, "nothing")["ways"]
    assert {name for name, met in said.items() if met != "allowed"} <= SETTINGS
    assert target.victim.wait() == -9
    assert len(target.daemon.recv(65536)) == 60012


FREE = """
    import json
    from edgesan.isolation.probes import PROBES, ProbeContext
    context = ProbeContext.now([], [])
    context.network = 1, 1, 0
    closed = {}
    for process, probes in PROBES.items():
        named = [probe for probe in probes if probe.name and "{}" not in probe.name]
        closed[process] = [probe.name for probe in named if probe.attempt(context) in probe.closed]
    print(json.dumps(closed))
"""
# What a kernel may refuse to any process, by its settings, its modules or its user.
ANYWAY = set(
    """
    open /dev/video*, open /dev/tty, bpf, perf_event_open, io_uring_setup, userfaultfd, kexec_load, init_module,
    fanotify_init, open_by_handle_at, mq_open, AF_PACKET, AF_ALG, AF_VSOCK, chroot, add_key, request_key, keyctl, mount,
    read its command line, write to it, rename it, write in /dev/shm, sendmsg to a path, prlimit64, MPTCP
""".strip()
    .replace("\n    ", " ")
    .split(", ")
)


def test_the_probes_can_find_a_way_open(target: Target) -> None:
    closed = json.loads(target.run(FREE).stdout)
    assert set(closed["sanitize"]) <= ANYWAY, closed
    assert set(closed["transmit"]) <= ANYWAY, closed
    assert set(closed["fetch"]) <= ANYWAY, closed


@pytest.mark.usefixtures("whole")
def test_a_filter_of_another_kind_of_calls_is_no_way_round() -> None:
    """x32: the second set of numbers of x86_64; its getpid."""
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is of x86_64")
    done = program("""
        import ctypes, errno
        from edgesan import isolation
        isolation.sanitize()
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall(ctypes.c_long(0x40000000 + 39)), errno.errorcode[ctypes.get_errno()])
    """)
    assert done.stdout.split() == ["-1", "EPERM"]
