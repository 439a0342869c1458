"""What each process gives up, tried on real processes: by root, and by an ordinary user."""

import errno
import json
import os
import pty
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgesan import isolation, syscalls
from edgesan.config import Config
from edgesan.errors import ConfigError, IsolationError
from edgesan.isolation import WAYS, Claim
from tests.support import ROOT, Running, child, free_port, report

BOTH = ("no privileges", "no dumps", "no files", "no terminal", "no other process", "no new namespace", "no kernel doors",
        "no endless memory")  # fmt: skip
SANITIZE = ("no network", "no socket", *BOTH, "no swap")
TRANSMIT = ("no camera", "no socket", *BOTH)
NOBODY = 65534


def claims(status: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(claim["process"], claim["name"]): claim for claim in status["isolation"]["claims"]}


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: what it gives up is gone for good."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
    )  # fmt: skip


def works() -> bool:
    """Whether this machine's kernel gives all of it; where it does not, edgesan must say so."""
    commands = ([sys.executable, "-P", "-m", "edgesan.isolation", process] for process in ("sanitize", "transmit"))
    said = [subprocess.run(command, capture_output=True, check=True).stdout for command in commands]
    return all(claim["holds"] for each in said for claim in json.loads(each))


@pytest.fixture(scope="module")
def whole() -> None:
    if not works():
        pytest.skip("this kernel does not give all of the isolation")


@pytest.mark.usefixtures("whole")
def test_a_run_says_at_its_start_and_in_its_status_what_holds() -> None:
    running = Running("--camera", "demo", "--require-isolation")
    running.until("ready", True)
    status: Any = {}
    while "sanitize:" not in status.get("isolation", {}).get("summary", ""):  # said a moment after the page is there
        status = running.status()
    pid = child(running.process.pid, "sanitize").pid
    networks = [os.readlink(f"/proc/{process}/ns/net") for process in (pid, "self")]
    interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    code, said, _ = running.end()
    assert code == 0
    assert set(claims(status)) == {("sanitize", n) for n in SANITIZE} | {("transmit", n) for n in TRANSMIT}
    for (process, name), claim in claims(status).items():
        report(f"{process} process: {name}", claim["detail"], int(not claim["holds"]))
    assert all(claim["holds"] for claim in claims(status).values())
    assert status["isolation"]["whole"]
    assert "isolation: sanitize: no network, no socket" in said
    assert networks[0] != networks[1]
    assert [line.partition(":")[0].strip() for line in interfaces] == ["lo"]


@pytest.mark.usefixtures("whole")
def test_without_the_filter_the_network_namespace_alone_holds_it() -> None:
    done = program("""
        import errno, socket
        from edgesan import isolation
        isolation.leave_network()
        with socket.socket() as stream:
            try:
                stream.connect(("192.0.2.1", 9))
            except OSError as error:
                print(errno.errorcode[error.errno])
    """)
    assert done.stdout.split() == ["ENETUNREACH"]


# --- every way that was found, tried from inside ----------------------------------------------------------------------


@dataclass
class Room:
    """A user's home, a daemon, a terminal and another process of the user's: what a process that was taken over wants."""

    path: Path
    user: int | None  # None: whoever runs the tests
    received: list[bytes] = field(default_factory=list)
    daemon: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __post_init__(self) -> None:
        self.home = self.path / "home"
        (self.home / ".ssh").mkdir(parents=True)
        for name in (".bashrc", ".ssh/id_ed25519", "letter"):
            (self.home / name).write_text("mine")
        self.daemon.bind(str(self.path / "daemon"))
        self.listener.bind(str(self.path / "listener"))
        self.listener.listen()
        self.keyboard, self.terminal = pty.openpty()
        self.victim = subprocess.Popen(["sleep", "60"], **self.identity())
        for path in (self.path, *self.path.rglob("*")):
            os.chmod(path, 0o777 if path.is_socket() else 0o755)
            if self.user is not None:
                os.chown(path, self.user, self.user)

    def identity(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}

    def run(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A program as this user, in whose working directory there is nothing of edgesan."""
        python, path = sys.executable, [str(ROOT), *filter(os.path.isdir, sys.path)]
        if self.user is not None and not reachable(Path(sys.base_prefix)):
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            python = shutil.which(version, path="/usr/local/bin:/usr/bin") or pytest.skip(
                f"no {version} for other users"
            )
            path = [each for each in path if "packages" in each or each == str(ROOT)]
        environment = os.environ | {"HOME": str(self.home), "PYTHONPATH": ":".join(path), "ORT_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [python, "-P", "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True, check=False,
            cwd=self.path, timeout=120, env=environment, pass_fds=[self.terminal], **self.identity(),
        )  # fmt: skip

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for end in (self.daemon, self.listener):
            end.close()
        for fd in (self.keyboard, self.terminal):
            os.close(fd)


def reachable(path: Path) -> bool:
    """Whether every user may go there."""
    return all(each.stat().st_mode & 0o001 for each in (path.resolve(), *path.resolve().parents))


@pytest.fixture(params=["root", "an ordinary user"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    is_root = os.getuid() == 0
    if request.param == "root" and not is_root:
        pytest.skip("only root can be root")
    if not reachable(ROOT):
        pytest.skip("the sources lie where no other user may go")
    user = NOBODY if is_root and request.param != "root" else None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, closing(Room(Path(folder), user)) as room:
        yield room


ATTACK = r"""
    import ctypes, errno, fcntl, json, mmap, os, resource, socket, struct, sys
    from pathlib import Path
    from edgesan import isolation, syscalls
    process, room, victim, terminal = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    home, daemon, listener = f"{room}/home", f"{room}/daemon", f"{room}/listener"
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
        result = libc.syscall(ctypes.c_long(syscalls.number(name)), *arguments)
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
FILE_WAYS = ("write to ~/.bashrc", "a new file in ~", "read ~/.ssh/id_ed25519", "list ~", "list the working directory",
             "read another process's environment", "open /dev/zero")  # fmt: skip
MEETS = dict.fromkeys(FILE_WAYS, "EACCES") | {"map 64 GiB": "ENOMEM"}
NOT_HERE = {"open /dev/video0": "ENOENT"}  # unless there is one
# Nothing keeps an ordinary process from these, or only this machine's settings do.
SETTINGS = {"open /dev/video0", "bpf", "perf_event_open", "setns", "io_uring", "userfaultfd", "keys", "unshare(NEWUSER)",
            "TIOCSTI into the user's shell", "read another process's environment", "socketpair, then 60,012 bytes to a daemon",
            "socket(AF_INET6)"}  # fmt: skip


def attack(room: Room, process: str) -> dict[str, Any]:
    done = room.run(ATTACK, process, str(room.path), str(room.victim.pid), str(room.terminal))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("process", ["sanitize", "transmit"])
def test_no_way_out_that_was_found_is_open(room: Room, process: str) -> None:
    said = attack(room, process)
    meets = MEETS | ({"sendto a path": "EPERM", "sendmsg to a path": "EISCONN"} if process == "transmit" else {})
    user = "root" if room.user is None and os.getuid() == 0 else "an ordinary user"
    for name, met in said["ways"].items():
        report(f"{process} process, as {user}: {name}", met, int(met == "allowed"))
        wanted = {meets.get(name, "EPERM"), NOT_HERE.get(name, meets.get(name, "EPERM"))}
        assert met in wanted or (name in NOT_HERE and met == "EACCES"), name
    assert [claim["name"] for claim in said["claims"] if not claim["holds"]] == []
    room.daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        room.daemon.recv(1)
    os.set_blocking(room.keyboard, False)
    with pytest.raises(BlockingIOError):
        os.read(room.keyboard, 1)
    os.set_blocking(room.terminal, False)
    with pytest.raises(BlockingIOError):
        os.read(room.terminal, 1)
    assert sorted(path.name for path in room.home.iterdir()) == [".bashrc", ".ssh", "letter"]
    assert (room.home / "letter").read_text() == "mine"
    assert room.victim.poll() is None


def test_the_ways_are_open_to_a_process_that_gave_nothing_up(room: Room) -> None:
    said = attack(room, "nothing")["ways"]
    assert {name for name, met in said.items() if met != "allowed"} <= SETTINGS
    assert room.victim.wait() == -9
    assert len(room.daemon.recv(65536)) == 60012


FREE = """
    import json
    from edgesan import isolation
    before = isolation.Before.now([], [])
    before.network = isolation.KEPT, 1, 0
    said = {}
    for process, ways in isolation.WAYS.items():
        with_names = [way for way in ways if way.name and "{}" not in way.name]
        said[process] = [way.name for way in with_names if way.attempt(before) in way.closed]
    print(json.dumps(said))
"""
# What a kernel may refuse to any process, by its settings, its modules or its user.
ANYWAY = {"open /dev/video*", "open /dev/tty", "bpf", "perf_event_open", "io_uring_setup", "userfaultfd", "kexec_load",
          "init_module", "fanotify_init", "open_by_handle_at", "mq_open", "AF_PACKET", "AF_ALG", "AF_VSOCK", "chroot",
          "add_key", "request_key", "keyctl", "mount", "read its command line", "write to it", "rename it",
          "write in /dev/shm", "sendmsg to a path", "prlimit64"}  # fmt: skip


def test_the_tries_of_the_claims_can_fail(room: Room) -> None:
    said = json.loads(room.run(FREE).stdout)
    assert set(said["sanitize"]) <= ANYWAY, said
    assert set(said["transmit"]) <= ANYWAY, said


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


# --- what must go on working ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole")
def test_the_sanitize_process_can_do_its_work(room: Room) -> None:
    clip = room.home / "clip.mp4"
    shutil.copy(ROOT / "edgesan" / "capture" / "demo.mp4", clip)
    clip.chmod(0o644)
    done = room.run(
        """
        import os, sys
        from pathlib import Path
        from edgesan import isolation
        frames, words = os.pipe()
        isolation.sanitize([Path(sys.argv[1])])
        import av, cv2, numpy as np, onnx, onnxruntime, tqdm
        from edgesan import faces
        from edgesan.config import DEMO_MODEL
        from edgesan.model.load import load_model
        sanitizer, detector = load_model(DEMO_MODEL, threads=2), faces.Detector(320)
        isolation.limit_memory()
        capture = cv2.VideoCapture(sys.argv[1])
        picture = capture.read()[1]
        found = len(detector(picture))
        chips = np.zeros((2, 112, 112, 3), np.uint8)
        out = sanitizer.run(chips, np.zeros((2, sanitizer.noise_dimensions), np.float32), 0.5)
        with av.open(sys.argv[1]) as file:
            count = sum(1 for _ in file.decode(video=0))
        os.write(words, b"x" * 2048)
        print(found, out.shape[0], count, len(os.read(frames, 4096)), len(os.urandom(8)))
        """,
        str(clip),
    )
    assert done.stdout.split() == ["2", "2", "56", "2048", "8"], done.stderr


@pytest.mark.usefixtures("whole")
def test_a_file_can_be_written_where_it_is_asked_for_and_nowhere_else(room: Room) -> None:
    (room.home / "out").mkdir()
    if room.user is not None:
        os.chown(room.home / "out", room.user, room.user)
    done = room.run(
        """
        import os, sys
        from pathlib import Path
        from edgesan import disk, isolation
        home = Path(sys.argv[1])
        claims = isolation.sanitize(writes=[home / "out"])
        disk.write_whole(home / "out" / "clip.mkv", b"frames")
        try:
            disk.write_whole(home / "clip.mkv", b"frames")
        except PermissionError as error:
            print(error.errno, all(claim.holds for claim in claims))
        """,
        str(room.home),
    )
    assert done.stdout.split() == [str(errno.EACCES), "True"], done.stderr
    assert (room.home / "out" / "clip.mkv").read_bytes() == b"frames"


@pytest.mark.usefixtures("whole")
def test_the_transmit_process_can_do_its_work(room: Room) -> None:
    """TLS at a port that was bound before, with threads beside it; JPEG; H.264 to a file that was opened before."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(room.path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(room.path / "key.pem")
    for name in ("ca.pem", "key.pem"):
        (room.path / name).chmod(0o644)
    done = room.run(
        """
        import asyncio, os, socket, ssl, sys, threading
        from pathlib import Path
        room = Path(sys.argv[1])
        listener = socket.create_server(("127.0.0.1", 0))
        orders, other = socket.socketpair()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(room / "key.pem")
        client = os.fork()
        if not client:
            trust = ssl.create_default_context(cafile=room / "ca.pem")
            with socket.create_connection(listener.getsockname()) as plain:
                with trust.wrap_socket(plain, server_hostname="localhost") as secret:
                    secret.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                    said = b""
                    while more := secret.recv(4096):
                        said += more
            os._exit(0 if said.endswith(b"2 bytes") else 1)
        out = os.fdopen(os.open(room / "home" / "out.mkv", os.O_RDWR | os.O_CREAT), "w+b")
        loop = asyncio.new_event_loop()
        done = os.pipe()
        if not os.fork():
            from edgesan import isolation
            held = all(claim.holds for claim in isolation.transmit())
            import av, cv2, numpy as np, onnx, onnxruntime, cryptography
            from aiohttp import web
            from edgesan.config import DEMO_MODEL
            from edgesan.model.load import load_model
            sanitizer = load_model(DEMO_MODEL)
            isolation.limit_memory()
            with av.open(out, "w", format="matroska") as file:
                stream = file.add_stream("libx264", rate=25, width=320, height=240, pix_fmt="yuv420p")
                for level in (None, *range(25)):
                    frame = level and av.VideoFrame.from_ndarray(np.full((240, 320, 3), level, np.uint8), format="bgr24")
                    if frame:
                        file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
            asked = asyncio.Event()

            def work():
                chips = np.zeros((2, 112, 112, 3), np.uint8)
                rewritten = sanitizer.run(chips, np.zeros((2, sanitizer.noise_dimensions), np.float32), 0.5)
                return len(rewritten) * (cv2.imencode(".jpg", chips[0])[1].size > 0)

            async def answer(request):
                count = await asyncio.get_running_loop().run_in_executor(None, work)
                asked.set()
                return web.Response(text=f"{count} bytes")

            async def serve():
                app = web.Application()
                app.router.add_get("/", answer)
                runner = web.AppRunner(app)
                await runner.setup()
                await web.SockSite(runner, listener, ssl_context=tls).start()
                await asyncio.wait_for(asked.wait(), 60)
                await runner.cleanup()

            loop.run_until_complete(serve())
            os.write(done[1], b"1" if held else b"0")
            os._exit(0)
        listener.close()
        os.close(done[1])
        print(os.read(done[0], 1) == b"1", os.waitstatus_to_exitcode(os.waitpid(client, 0)[1]))
        """,
        str(room.path),
    )
    assert done.stdout.split() == ["True", "0"], done.stderr
    assert (room.home / "out.mkv").stat().st_size > 1000


@pytest.mark.usefixtures("whole")
def test_after_the_model_is_loaded_memory_is_bounded_for_life() -> None:
    done = program("""
        import resource
        from edgesan import isolation
        isolation.sanitize()
        isolation.limit_memory(64 * 2**20)
        try:
            bytes(100 * 2**20)
        except MemoryError:
            print("MemoryError")
        try:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        except (ValueError, OSError) as error:
            print(type(error).__name__)
        print(len(bytes(2**20)))
    """)
    assert done.stdout.split() == ["MemoryError", "ValueError", "1048576"], done.stderr


def test_no_folder_with_a_home_in_it_and_no_working_directory_may_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "users" / "me"
    installed = home / "libraries"
    (installed / "some-1.dist-info").mkdir(parents=True)
    (tmp_path / "users" / "other-1.dist-info").mkdir()
    (home / "work").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    monkeypatch.setattr(sys, "path", ["", str(home / "work"), str(home), str(installed), str(tmp_path / "users"), "/"])
    monkeypatch.setattr(sys, "prefix", str(home))
    found = set(isolation.places([]))
    assert installed in found
    assert not found & {home, home / "work", tmp_path / "users", Path("/"), Path("/etc"), Path("/proc"), Path("/run")}
    assert ROOT not in found
    assert ROOT / "edgesan" in found
    assert isolation.places([home / "model"])[home / "model"] == isolation.READ


@pytest.mark.usefixtures("whole")
def test_a_camera_can_be_opened_and_no_other_device() -> None:
    done = program("""
        import errno, os
        from pathlib import Path
        from edgesan import isolation
        isolation.sanitize(devices=[Path("/dev/zero"), Path("/dev/video99")])
        print(len(os.read(os.open("/dev/zero", os.O_RDWR), 8)))
        for name in ("/dev/full", "/dev/ptmx", "/dev/tty"):
            try:
                os.open(name, os.O_RDWR)
            except OSError as error:
                print(errno.errorcode[error.errno])
        open(os.devnull, "w").close()
        print(len(os.listdir("/dev")) > 0)
    """)
    assert done.stdout.split() == ["8", "EACCES", "EACCES", "EACCES", "True"], done.stderr


@pytest.mark.usefixtures("whole")
def test_the_leader_of_a_job_which_can_have_no_session_leaves_its_terminal() -> None:
    done = program("""
        import os, pty
        from edgesan import isolation
        read, write = os.pipe()
        shell, screen = pty.fork()
        if not shell:
            if not os.fork():
                os.setpgid(0, 0)
                claim = next(c for c in isolation.sanitize() if c.name == "no terminal")
                os.write(write, f"{claim.holds} {claim.detail}".encode())
                os._exit(0)
            os.wait()
            os._exit(0)
        os.close(write)
        print(os.read(read, 4096).decode())
    """)
    assert done.stdout.startswith("True it has no terminal; no keyboard"), done.stderr


# --- less than all ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole")
def test_where_there_is_no_landlock_the_devices_go_and_the_rest_is_said() -> None:
    done = program("""
        from edgesan import isolation
        isolation.deny(isolation.LANDLOCK_CREATE)
        print(isolation.summary(isolation.transmit()))
    """)
    if "NOT no camera" in done.stdout:
        pytest.skip("this kernel gives this user no private mount")
    assert "NOT no files" in done.stdout, done.stderr
    assert done.stdout.count("NOT") == 2, "nor can it keep other processes' lines from being read"
    assert "NOT no other process" in done.stdout


@pytest.mark.usefixtures("whole")
def test_an_early_landlock_lets_no_file_be_emptied_either(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    done = program(
        """
        import errno, os, sys
        from pathlib import Path
        from edgesan import isolation
        isolation.landlock_version = lambda: 2  # of Linux 5.19
        claims = isolation.sanitize([Path(sys.argv[1])])
        try:
            os.open(sys.argv[1] + "/model", os.O_RDONLY | os.O_TRUNC)
        except OSError as error:
            print(errno.errorcode[error.errno], all(claim.holds for claim in claims))
        """,
        str(tmp_path),
    )
    assert done.stdout.split() == ["EPERM", "True"], done.stderr
    assert (tmp_path / "model").read_text() == "weights"


def test_a_camera_that_is_a_url_keeps_the_network_and_nothing_else() -> None:
    done = program("""
        import json, socket
        from edgesan import isolation
        claims = isolation.sanitize(network=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as away:
            away.connect(("127.0.0.1", 9))
        assert isolation.unpack(isolation.pack(claims)) == claims
        print(json.dumps([isolation.plain(claim) for claim in claims]))
    """)
    said = {claim["name"]: claim for claim in json.loads(done.stdout)}
    assert {name for name, claim in said.items() if not claim["holds"]} - {"no swap"} >= {"no network", "no socket"}
    assert "the camera is a URL" in said["no network"]["detail"]
    assert "AF_UNIX" in said["no socket"]["detail"]
    assert said["no socket"]["cure"].startswith("use a camera of this machine")


# --- as numbers only --------------------------------------------------------------------------------------------------


def some_results(pick: random.Random) -> bytes:
    return bytes(pick.choice([r for r in range(256) if way.possible(r)]) for way in WAYS["sanitize"])


def test_claims_cross_as_a_byte_of_each_way_and_say_the_same_words() -> None:
    pick = random.Random(1)
    for _ in range(300):
        results = some_results(pick)
        claims = isolation.unpack(results)
        assert isolation.pack(claims) == results
        assert len(results) == isolation.RESULTS
        assert tuple(claim.name for claim in claims) == SANITIZE
        assert all(claim.cure for claim in claims if not claim.holds)


def test_what_is_no_result_of_a_way_is_refused() -> None:
    good = some_results(random.Random(2))
    for wrong in (b"", good[:-1], good + b"\0"):
        with pytest.raises(ValueError, match="claims of the sanitize process are"):
            isolation.unpack(wrong)
    for place, way in enumerate(WAYS["sanitize"]):
        for result in range(256):
            changed = good[:place] + bytes([result]) + good[place + 1 :]
            if way.possible(result):
                assert isolation.pack(isolation.unpack(changed)) == changed
            else:
                with pytest.raises(ValueError, match="is no result of"):
                    isolation.unpack(changed)


def test_one_open_way_is_a_claim_that_does_not_hold() -> None:
    closed = [next(r for r in range(256) if r in way.closed and way.possible(r)) for way in WAYS["sanitize"]]
    assert all(claim.holds for claim in isolation.unpack(bytes(closed)))
    for place, way in enumerate(WAYS["sanitize"]):
        opened = next(r for r in range(256) if r not in way.closed and way.possible(r))
        claims = isolation.unpack(bytes([*closed[:place], opened, *closed[place + 1 :]]))
        assert [claim.name for claim in claims if not claim.holds] == [way.claim]


def judged(steps: list[syscalls.Step], number: int, arguments: tuple[int, ...]) -> int:
    """What a filter says to a call: bpf(4) as far as it is used. The number is loaded."""
    data, loaded, at = struct.pack("=IIQ6Q", number, 0, 0, *arguments, *[0] * (6 - len(arguments))), number, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == syscalls.RETURN:
            return operand
        if code == syscalls.LOAD:
            (loaded,) = struct.unpack_from("=I", data, operand)
        elif code == syscalls.JUMP:
            at += operand
        else:
            tests = {syscalls.JUMP_EQUAL: loaded == operand, syscalls.JUMP_ANY_BIT: loaded & operand != 0}
            at += if_true if tests[code] else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_pass_what_is_listed_on_each_machine(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[list[syscalls.Step]] = []
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(syscalls, "install", programs.append)
    names = syscalls.BOTH | syscalls.SERVING
    checks = syscalls.serving_checks(77) | syscalls.EMPTYING
    syscalls.allow(names, checks)
    steps, refused = programs[0], syscalls.SECCOMP_ERRNO | errno.EPERM

    def said(name: str, *arguments: int) -> bool:
        result = judged(steps, syscalls.number(name), arguments)
        assert result in {refused, syscalls.SECCOMP_ALLOW}
        return result == syscalls.SECCOMP_ALLOW

    listed = {syscalls.number(name): name for name in names if syscalls.number(name) >= 0}
    for number in range(1000):
        if listed.get(number) not in checks and number != syscalls.number("clone3"):
            assert (judged(steps, number, ()) == syscalls.SECCOMP_ALLOW) is (number in listed)
    assert judged(steps, syscalls.number("clone3"), ()) == syscalls.SECCOMP_ERRNO | errno.ENOSYS
    thread = 0x3D0F00  # of glibc's pthread_create
    assert said("clone", thread)
    assert not said("clone", thread & ~0x10000)
    assert not any(said("clone", thread | 1 << bit) for bit in (17, *range(25, 31)))
    assert said("kill", 77, 9)
    assert not any(said(name, pid, 9) for name in ("kill", "tgkill") for pid in (0, 1, 76, 2**32 - 1, 2**32 - 77))
    assert said("ioctl", 3, 0x80685600)
    assert not any(said("ioctl", 3, high | request) for high in (0, 1 << 32) for request in (0x5412, 0x541C, 0x5423))
    assert said("fcntl", 3, 1031)
    assert not any(said("fcntl", 3, command) for command in (8, 10, 15))
    assert said("prctl", 15)
    assert not any(said("prctl", option) for option in (4, 22, 35, 36, 38))
    assert said("sendto", 3, 0, 9, 0, 0, 0)
    assert not any(said("sendto", 3, 0, 9, 0, address, 16) for address in (1, 1 << 32, 1 << 47))
    assert said("sendmsg", 3, 0, 0x4000)
    assert not said("sendmsg", 3, 0, 0x20000000)
    assert said("setsockopt", 3, 6, 1)
    assert not any(said("setsockopt", 3, 1, option) for option in (26, 50, 51, 52))
    assert not said("setsockopt", 3, 263, 1)
    assert said("prlimit64", 0)
    assert not said("prlimit64", 78)
    assert said("openat", -100 & 0xFFFFFFFF, 0, 0)
    assert not said("openat", -100 & 0xFFFFFFFF, 0, os.O_TRUNC)


def test_every_call_has_its_number() -> None:
    for names in (syscalls.BOTH, syscalls.WRITING, syscalls.CALLING, syscalls.SERVING):
        assert names <= syscalls.NUMBERS.keys()
    for machine in (0, 1):
        numbers = [pair[machine] for pair in syscalls.NUMBERS.values() if pair[machine] is not None]
        assert len(numbers) == len(set(numbers))
    forbidden = {"socketpair", "ptrace", "unshare", "setns", "bpf", "userfaultfd", "execve", "io_uring_setup", "clone3"}
    assert not forbidden & (syscalls.BOTH | syscalls.WRITING | syscalls.CALLING | syscalls.SERVING)
    assert not syscalls.SERVING & {"socket", "connect", "bind", "sendmmsg"}


CRIPPLED = """
    import sys
    from edgesan import isolation
    isolation.deny({number})
    from edgesan.cli import main
    sys.exit(main(sys.argv[1:]))
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}


def test_what_does_not_hold_is_said_and_can_be_refused(tmp_path: Path) -> None:
    """A kernel that gives nobody a namespace, for which a filter on unshare(2) stands in."""
    text = CRIPPLED.format(number=UNSHARE[os.uname().machine])
    out = str(tmp_path / "clip.mkv")
    refused = program(text, "run", "--camera", "demo", "--frames", "3", "--out", out, "--require-isolation")
    assert refused.returncode == 6
    assert "require_isolation asks for more than holds on this machine" in refused.stderr
    assert "NOT no network: the kernel gives it no network namespace" in refused.stderr
    assert "Cure: sudo sysctl" in refused.stderr
    page = f"http://127.0.0.1:{free_port()}"
    told = program(text, "run", "--camera", "demo", "--frames", "3", "--out", page)
    assert told.returncode == 0, told.stderr
    assert "isolation: sanitize: NOT no network, no socket" in told.stderr


def test_a_url_camera_needs_the_network_and_is_refused_where_isolation_is_required() -> None:
    with pytest.raises(ConfigError, match="the process that sees raw pixels would need the network"):
        Config(camera="rtsp://192.0.2.1/stream", require_isolation=True)
    assert Config(camera="rtsp://192.0.2.1/stream").camera_is_url
    assert not Config(camera="/dev/video0").camera_is_url


def test_it_comes_before_threads_or_not_at_all() -> None:
    done = program("""
        import numpy
        from edgesan import isolation
        isolation.sanitize()
    """)
    assert "IsolationError: this process runs threads already, or numpy" in done.stderr


def test_what_is_missing_is_named_with_its_cure() -> None:
    held, missing = (
        Claim("sanitize", "no swap", True, "there is none"),
        Claim("transmit", "no camera", False, "ok", "x"),
    )
    isolation.require([held])
    with pytest.raises(IsolationError, match=r"transmit process: NOT no camera: ok\. Cure: x"):
        isolation.require([held, missing])
    assert isolation.summary([held, missing]) == "sanitize: no swap; transmit: NOT no camera"


# --- nothing calls home -----------------------------------------------------------------------------------------------

# Everything that goes anywhere goes by this machine's `lo`, where a tap hears it: a default route into it.
LISTENING = r"""
    import fcntl, json, os, socket, struct, subprocess, sys, threading, time, urllib.request
    from edgesan import isolation
    assert not isolation._unshare(isolation.CLONE_NEWNET), "no namespace"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        lo = b"lo".ljust(16, b"\0")
        fcntl.ioctl(s, 0x8914, lo + struct.pack("=H22x", 0x49))  # SIOCSIFFLAGS: up, loopback, running
        any_, name = struct.pack("=HHI8x", socket.AF_INET, 0, 0), __import__("ctypes").create_string_buffer(b"lo")
        route = struct.pack("@L16s16s16sHhLLhhhhP3L", 0, any_, any_, any_, 1, 0, 0, 0, 0, 0, 0, 0,
                            __import__("ctypes").addressof(name), 0, 0, 0)
        fcntl.ioctl(s, 0x890B, route)  # SIOCADDRT: everything goes by lo
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.bind(("lo", 0))
    heard, over = [], threading.Event()
    def listen():
        tap.settimeout(0.2)
        while not over.is_set():
            try:
                packet = tap.recv(65536)[14:]
            except TimeoutError:
                continue
            if packet[:1] and packet[0] >> 4 == 4:
                port = struct.unpack("!H", packet[22:24])[0] if packet[9] in (6, 17) else 0
                heard.append((socket.inet_ntoa(packet[16:20]), port))
    thread = threading.Thread(target=listen)
    thread.start()
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    done = subprocess.run([sys.executable, *sys.argv[1:]], env=environment, capture_output=True, text=True)
    time.sleep(0.5)
    over.set()
    thread.join()
    strangers = sorted({f"{a}:{p}" for a, p in heard if not a.startswith("127.") or p == 53})
    print(json.dumps({"code": done.returncode, "said": done.stderr, "heard": len(heard), "strangers": strangers}))
"""


def in_a_bugged_room(*command: str) -> dict[str, Any]:
    done = program(LISTENING, *command)
    if "no namespace" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("this kernel gives this user no network namespace to listen in")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_bug_hears_who_calls_home() -> None:
    call = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.7', 443))"
    assert in_a_bugged_room("-c", call)["strangers"] == ["192.0.2.7:443"]
    ask = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 53))"
    assert in_a_bugged_room("-c", ask)["strangers"] == ["127.0.0.1:53"]


def test_nothing_calls_home(tmp_path: Path) -> None:
    """Not onnxruntime, whose telemetry would, nor anything else; without CI, which switches some of them off."""
    port = "18080"
    served = in_a_bugged_room(
        "-m", "edgesan", "run", "--camera", "demo", "--frames", "40",
        "--out", f"http://127.0.0.1:{port}", "--out", str(tmp_path / "clip.mkv"),
    )  # fmt: skip
    assert served["code"] == 0, served["said"]
    report("egress, CI unset", f"{served['heard']} packets, all of this machine's own", len(served["strangers"]))
    assert served["strangers"] == []
    for command in (["doctor"], ["inspect", str(ROOT / "edgesan" / "models" / "default.onnx")]):
        assert in_a_bugged_room("-m", "edgesan", *command)["strangers"] == []
