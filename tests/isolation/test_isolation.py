"""What each process gives up, on real processes: its claims, what must still work, and kernels that have less."""

import errno
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesan.config import Config
from edgesan.isolation import landlock
from tests.isolation.support import SANITIZE, TRANSMIT, Target, program
from tests.support import ROOT, Running, child, free_port, report


def claims(status: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(claim["process"], claim["name"]): claim for claim in status["isolation"]["claims"]}


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
        from edgesan.isolation import limits
        limits.leave_network()
        with socket.socket() as stream:
            try:
                stream.connect(("192.0.2.1", 9))
            except OSError as error:
                print(errno.errorcode[error.errno])
    """)
    assert done.stdout.split() == ["ENETUNREACH"]


# --- what must go on working ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole")
def test_the_sanitize_process_can_do_its_work(target: Target) -> None:
    clip = target.home / "clip.mp4"
    shutil.copy(ROOT / "edgesan" / "capture" / "demo.mp4", clip)
    clip.chmod(0o644)
    done = target.run(
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
def test_a_file_can_be_written_where_it_is_asked_for_and_nowhere_else(target: Target) -> None:
    (target.home / "out").mkdir()
    if target.user is not None:
        os.chown(target.home / "out", target.user, target.user)
    done = target.run(
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
        str(target.home),
    )
    assert done.stdout.split() == [str(errno.EACCES), "True"], done.stderr
    assert (target.home / "out" / "clip.mkv").read_bytes() == b"frames"


@pytest.mark.usefixtures("whole")
def test_the_transmit_process_can_do_its_work(target: Target) -> None:
    """TLS at a port that was bound before, with threads beside it; JPEG; H.264 to a file that was opened before."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(target.path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(target.path / "key.pem")
    for name in ("ca.pem", "key.pem"):
        (target.path / name).chmod(0o644)
    done = target.run(
        """
        import asyncio, os, socket, ssl, sys, threading
        from pathlib import Path
        target = Path(sys.argv[1])
        listener = socket.create_server(("127.0.0.1", 0))
        orders, other = socket.socketpair()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(target / "key.pem")
        client = os.fork()
        if not client:
            trust = ssl.create_default_context(cafile=target / "ca.pem")
            with socket.create_connection(listener.getsockname()) as plain:
                with trust.wrap_socket(plain, server_hostname="localhost") as secret:
                    secret.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                    said = b""
                    while more := secret.recv(4096):
                        said += more
            os._exit(0 if said.endswith(b"2 bytes") else 1)
        out = os.fdopen(os.open(target / "home" / "out.mkv", os.O_RDWR | os.O_CREAT), "w+b")
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
                for level in range(25):
                    pixels = np.full((240, 320, 3), level, np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
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
        str(target.path),
    )
    assert done.stdout.split() == ["True", "0"], done.stderr
    assert (target.home / "out.mkv").stat().st_size > 1000


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
    found = set(landlock.readable([]))
    assert installed in found
    assert not found & {home, home / "work", tmp_path / "users", Path("/"), Path("/etc"), Path("/proc"), Path("/run")}
    assert ROOT not in found
    assert ROOT / "edgesan" in found
    assert landlock.readable([home / "model"])[home / "model"] == landlock.READ


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
    assert done.stdout.startswith("True it has no terminal; no standard input"), done.stderr


# --- less than all ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("whole")
def test_where_there_is_no_landlock_the_devices_go_and_the_rest_is_reported() -> None:
    done = program("""
        from edgesan import isolation
        from edgesan.isolation import landlock, seccomp
        seccomp.deny(landlock.CREATE_RULESET)
        print(isolation.summary(isolation.transmit()))
    """)
    if "no camera" in done.stdout.partition("(")[2]:
        pytest.skip("this kernel gives this user no private mount")
    # Nor can it keep other processes' lines from being read.
    assert "(no files, no other process do not hold)" in done.stdout, done.stderr


@pytest.mark.usefixtures("whole")
def test_an_early_landlock_lets_no_file_be_emptied_either(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    done = program(
        """
        import errno, os, sys
        from pathlib import Path
        from edgesan import isolation
        from edgesan.isolation import landlock
        landlock.version = lambda: 2  # of Linux 5.19
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


@pytest.mark.usefixtures("whole")
def test_a_process_that_fetches_reaches_one_port_by_tcp_and_nothing_else() -> None:
    """By code of its own, beside the probes."""
    with socket.create_server(("127.0.0.1", 0)) as camera, socket.create_server(("127.0.0.1", 0)) as other:
        done = program(
            """
            import errno, json, os, socket, sys
            from edgesan import isolation
            camera, other = map(int, sys.argv[1:])
            claims = isolation.fetch(camera)
            assert isolation.unpack(isolation.pack(claims), "fetch") == claims
            tried = {}

            def attempt(name, action):
                try:
                    action()
                    tried[name] = "allowed"
                except OSError as error:
                    tried[name] = errno.errorcode[error.errno]

            def stream(family=socket.AF_INET):
                return socket.socket(family, socket.SOCK_STREAM)

            attempt("camera", lambda: stream().connect(("127.0.0.1", camera)))
            attempt("other port", lambda: stream().connect(("127.0.0.1", other)))
            attempt("other port, fast open", lambda: stream().sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", other)))
            attempt("packets", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            attempt("packets of IPv6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            attempt("a daemon", lambda: stream(socket.AF_UNIX))
            attempt("serve", lambda: stream().bind(("127.0.0.1", 0)))
            attempt("listen", lambda: stream().listen())
            attempt("read", lambda: open("/etc/hostname"))
            attempt("resolve", lambda: open("/etc/resolv.conf"))
            attempt("write", lambda: open("/tmp/x", "w"))
            attempt("run", lambda: os.execv("/bin/true", ["true"]))
            print(json.dumps([all(claim.holds for claim in claims), tried]))
            """,
            str(camera.getsockname()[1]),
            str(other.getsockname()[1]),
        )
    whole, tried = json.loads(done.stdout)
    assert whole
    assert tried.pop("camera") == "allowed"
    assert tried.pop("other port") == "EACCES"
    assert set(tried.values()) <= {"EPERM", "EACCES"}, tried


def test_a_kernel_whose_landlock_knows_no_ports_is_said_to_hold_less() -> None:
    done = program("""
        import json
        from edgesan import isolation
        from edgesan.isolation import landlock
        landlock.version = lambda: 3  # of Linux 6.2
        print(json.dumps([isolation.plain(claim) for claim in isolation.fetch(554) if not claim.holds]))
    """)
    missing = {claim["name"]: claim for claim in json.loads(done.stdout)}
    assert "connect to port 1" in missing["no other port"]["detail"]
    assert missing["no other port"]["cure"].startswith("use a kernel with Landlock 4")


CRIPPLED = """
    import sys
    from edgesan.isolation import seccomp
    seccomp.deny({number})
    from edgesan.cli import main
    sys.exit(main(sys.argv[1:]))
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}


def test_what_does_not_hold_is_reported_and_can_be_refused(tmp_path: Path) -> None:
    """A kernel that gives nobody a namespace, for which a filter on unshare(2) stands in."""
    text = CRIPPLED.format(number=UNSHARE[os.uname().machine])
    out = str(tmp_path / "clip.mkv")
    refused = program(text, "run", "--camera", "demo", "--frames", "3", "--out", out, "--require-isolation")
    assert refused.returncode == 6
    assert "require_isolation asks for more than holds on this machine" in refused.stderr
    assert "no network does not hold: the kernel gives it no network namespace" in refused.stderr
    assert "Cure: sudo sysctl" in refused.stderr
    page = f"http://127.0.0.1:{free_port()}"
    done = program(text, "run", "--camera", "demo", "--frames", "3", "--out", page)
    assert done.returncode == 0, done.stderr
    assert "isolation: sanitize: no socket" in done.stderr
    assert "(no network does not hold)" in done.stderr


def test_isolation_can_be_required_of_a_network_camera() -> None:
    assert Config(camera="rtsp://192.0.2.1/stream", require_isolation=True).camera_is_url
    assert not Config(camera="/dev/video0").camera_is_url


def test_it_comes_before_threads_or_not_at_all() -> None:
    done = program("""
        import numpy
        from edgesan import isolation
        isolation.sanitize()
    """)
    assert "IsolationError: this process runs threads already, or numpy" in done.stderr
