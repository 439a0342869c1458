"""What each process gives up, tried on the real processes of a real run."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgesan import isolation
from edgesan.config import Config
from edgesan.errors import ConfigError, IsolationError
from edgesan.isolation import Claim
from tests.conftest import ROOT, report
from tests.test_cli import Running
from tests.test_transmit import free_port

SANITIZE = ("no network", "no socket", "no privileges", "no dumps", "no swap")
TRANSMIT = ("no camera", "no privileges", "no dumps", "read-only ring")


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
    done = subprocess.run([sys.executable, "-m", "edgesan.isolation", "sanitize"], capture_output=True, check=True)
    return all(claim["holds"] for claim in json.loads(done.stdout))


@pytest.fixture(scope="module")
def whole() -> None:
    if not works():
        pytest.skip("this kernel does not give all of the isolation")


@pytest.mark.usefixtures("whole")
def test_a_run_says_at_its_start_and_in_its_status_what_holds() -> None:
    running = Running("--camera", "demo", "--require-isolation")
    running.until("ready", True)
    status: Any = {}
    while "isolation" not in status:  # said by the sanitize process, a moment after the page is there
        status = running.status()
    pid = running.process.pid
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
def test_the_process_that_sees_raw_pixels_cannot_make_a_socket() -> None:
    done = program("""
        import errno, socket, subprocess, sys
        from edgesan import isolation
        isolation.sanitize()
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
            try:
                socket.socket(family)
            except OSError as error:
                print(errno.errorcode[error.errno])
        # nor can what it starts, with or without a shell
        subprocess.run([sys.executable, "-c", "import socket; socket.socket()"])
    """)
    assert done.stdout.split() == ["EPERM"] * 4
    assert "PermissionError: [Errno 1]" in done.stderr


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


def test_the_process_that_serves_cannot_open_a_camera_nor_read_a_strangers_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").write_text("private")
    done = program(
        """
        import errno, os, sys
        from pathlib import Path
        from edgesan import isolation
        folder = Path(sys.argv[1])
        claims = isolation.transmit([], [folder / "mine"])
        for name in ("/dev/video0", "/dev/zero", "/dev/mem"):
            try:
                os.close(os.open(name, os.O_RDONLY))
                print("opened", name)
            except OSError as error:
                print(errno.errorcode[error.errno])
        (folder / "mine" / "clip.mkv").write_text("frames")
        print(all(claim.holds for claim in claims))
        """,
        str(tmp_path),
    )
    *said, holds = done.stdout.split()
    if holds == "False":
        pytest.skip("this kernel has neither Landlock nor a private mount for this user")
    assert set(said) <= {"EACCES", "ENOENT", "EPERM"}
    assert (tmp_path / "mine" / "clip.mkv").read_text() == "frames"


def test_the_serving_process_cannot_map_the_ring_for_writing() -> None:
    from edgesan.ring import RingWriter

    ring = RingWriter(100)
    assert isolation.read_only(ring.fd).holds
    plain = os.memfd_create("plain")
    os.truncate(plain, 100)
    assert not isolation.read_only(plain).holds, "the probe must be able to fail"
    os.close(plain)
    ring.close()


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
    assert "NOT no network: the kernel gives it no network namespace (EPERM)" in refused.stderr
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
