"""Nothing calls home: a tap on a default route hears no packet to another machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgesan.config import DEMO_MODEL
from tests.isolation.support import program
from tests.support import report

# Everything that goes anywhere goes by this machine's `lo`, where a tap hears it: a default route into it.
LISTENING = r"""
    import fcntl, json, os, socket, struct, subprocess, sys, threading, time, urllib.request
    from edgesan.isolation import kernel
    assert not kernel.unshare(kernel.CLONE_NEWNET), "no namespace"
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


def listened_to(*command: str) -> dict[str, Any]:
    done = program(LISTENING, *command)
    if "no namespace" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("this kernel gives this user no network namespace to listen in")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_bug_hears_who_calls_home() -> None:
    call = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.7', 443))"
    assert listened_to("-c", call)["strangers"] == ["192.0.2.7:443"]
    ask = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 53))"
    assert listened_to("-c", ask)["strangers"] == ["127.0.0.1:53"]


@pytest.mark.slow
def test_nothing_calls_home(tmp_path: Path) -> None:
    """Not onnxruntime, whose telemetry would, nor anything else; without CI, which switches some of them off."""
    port = "18080"
    outs = [f"--out=http://127.0.0.1:{port}", f"--out={tmp_path / 'clip.mkv'}"]
    served = listened_to("-m", "edgesan", "run", "--camera=demo", "--frames=10", *outs)
    assert served["code"] == 0, served["said"]
    report("egress, CI unset", f"{served['heard']} packets, all of this machine's own", len(served["strangers"]))
    assert served["strangers"] == []
    for command in (["doctor"], ["inspect", str(DEMO_MODEL)]):
        assert listened_to("-m", "edgesan", *command)["strangers"] == []
