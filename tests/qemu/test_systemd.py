"""The Debian package under a real systemd, in a container that shares nothing with this machine but its kernel.

The container's root is this machine's own, with a layer on top that is thrown away. So everything runs natively, in a
minute; the processor and the kernel are this machine's, and no camera is here but one over the network.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import trustme

from edgesan.outlets import rtsp_server
from firmware_config import deb
from tests.qemu.conftest import Row
from tests.support import Maker

pytestmark = pytest.mark.board

PYTHON = "/usr/bin/python3"
CAMERA = """
import base64, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Camera(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = "Basic " + base64.b64encode(b"me:s3cret").decode()
        if self.path == "/private" and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        picture = open("/camera.jpg", "rb").read()
        while True:
            head = b"--frame\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(picture)
            self.wfile.write(head + picture + b"\\r\\n")
            time.sleep(1 / 15)

ThreadingHTTPServer(("0.0.0.0", 8554), Camera).serve_forever()
"""
HTTPS = """
import functools, ssl
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

server = ThreadingHTTPServer(("127.0.0.1", 8443), functools.partial(SimpleHTTPRequestHandler, directory="/repository"))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
# /dev/null hides what a container has no use for.
OFF = ("systemd-logind.service", "console-getty.service", "getty.target", "ssh.service", "systemd-networkd.service")
SOON = "[Timer]\nOnCalendar=\nOnCalendar=*:*:00/5\nRandomizedDelaySec=0\nAccuracySec=1s\nPersistent=no\n"


class Container:
    """A booted system. `folder` is its root."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        options = ["--private-network", "--register=no", "--keep-unit", "--capability=all", "--console=pipe"]
        calls = "bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self"
        command = ["systemd-nspawn", f"--directory={folder}", *options, f"--system-call-filter={calls}", "--boot"]
        variables = {"UNIFIED_CGROUP_HIERARCHY": "1", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=os.environ | variables
            )
        self._leader = ""

    def booted(self) -> bool:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._leader = children[0] if children else ""
        states = ("running", "degraded")
        return bool(children) and self.run("systemctl", "is-system-running", check=False).strip() in states

    def run(self, *command: str, check: bool = True) -> str:
        entered = ["nsenter", f"--target={self._leader}", "--all", "--wd=/", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def background(self, name: str, text: str) -> None:
        """Run a program of Python as a unit."""
        (self.folder / f"{name}.py").write_text(text)
        self.run("systemd-run", "--quiet", f"--unit={name}", PYTHON, f"/{name}.py")

    def log(self, unit: str = "edgesan*") -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def status(self) -> dict[str, object]:
        ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/api/status').read().decode())"
        told = self.run(PYTHON, "-c", ask, check=False)
        return dict(json.loads(told)) if told else {}

    def set(self, **options: object) -> None:
        """Write options into the board's configuration."""
        path = self.folder / "etc/edgesan/edgesan.toml"
        for name, value in options.items():
            rest = re.sub(rf"^{name} = .*\n", "", path.read_text(), flags=re.MULTILINE)
            path.write_text(f"{rest}{name} = {json.dumps(value)}\n")

    def end(self) -> None:
        if self._leader:
            self.run("systemctl", "--force", "--force", "poweroff", check=False)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def until(condition: Callable[[], object], what: Callable[[], object], seconds: float = 90) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def container(needs: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Debian with the package, just installed, and a network camera at each address of the loopback network."""
    needs("systemd-nspawn", "dpkg-deb", "nsenter")
    version = subprocess.run([PYTHON, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    place = tmp_path_factory.mktemp("systemd")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(place)], check=True)
    upper, work, root = (place / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    layers = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(root)], check=True)
    try:
        for wants in (root / "etc/systemd/system").glob("*.wants/*"):
            wants.unlink()
        for unit in OFF:
            mask = root / "etc/systemd/system" / unit
            mask.unlink(missing_ok=True)
            mask.symlink_to("/dev/null")
        (root / "etc/fstab").write_text("")
        (root / "etc/machine-id").write_text("")
        deb.build(root / "edgesan.deb", ".".join(version.split(".")[:2]), os.uname().machine)
        cv2.imwrite(str(root / "camera.jpg"), np.full((240, 320, 3), (90, 120, 150), np.uint8))
        private = Path("/run/systemd/nspawn")  # where systemd-nspawn would rather not find a disk
        private.mkdir(parents=True, exist_ok=True)
        if not private.is_mount():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(private)], check=True)
        booted = Container(root, place / "boot.log")
        try:
            until(booted.booted, (place / "boot.log").read_text)
            booted.background("camera", CAMERA)
            booted.run("dpkg", "--install", "/edgesan.deb")
            yield booted
        finally:
            booted.end()
    finally:
        subprocess.run(["umount", str(root)], check=False)
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def shown(container: Container) -> None:
    """Wait until the camera is up."""
    until(lambda: container.status().get("camera_up"), container.log)


def test_the_units_show_a_network_camera_and_every_restriction_holds(container: Container, row: Row) -> None:
    container.set(camera="http://127.0.0.2:8554/video")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "edgesan-sanitize", "edgesan-transmit")
    shown(container)
    status = container.status()
    isolation = status["isolation"]
    assert isinstance(isolation, dict)
    assert isolation["whole"], isolation["summary"]
    assert "sanitize: no network" in isolation["summary"]
    assert "fetch: no camera, no other port" in isolation["summary"]
    assert status["warnings"] == []
    version = container.run("systemctl", "--version").split("\n")[0]
    row("a network camera under a real systemd", f"{version}; {isolation['summary']}")

    ask = "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/run/edgesan/fetch.sock')"
    for user, answer in (("edgesan-transmit", "PermissionError"), ("edgesan-sanitize", "")):
        asked = f'setpriv --reuid={user} --regid=edgesan --clear-groups {PYTHON} -c "{ask}" 2>&1'
        said = container.run("sh", "-c", asked, check=False)
        assert answer in said if answer else not said, said
    assert "edgesan-fetch@" in container.run("systemctl", "list-units", "--plain", "edgesan-fetch@*")


def test_the_fetch_unit_reaches_no_other_address_than_the_cameras(container: Container, row: Row) -> None:
    """The camera moves, and systemd has not read the configuration again."""
    container.set(camera="http://127.0.0.3:8554/video")
    container.run("systemctl", "restart", "edgesan-sanitize", check=False)
    until(lambda: "nobody answers within 5 s" in container.log("edgesan-sanitize"), container.log)
    row("the fetch unit, with another address than the one that systemd allows it", "nobody answers within 5 s")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "edgesan-sanitize", check=False)
    shown(container)


def test_a_restart_of_the_sanitize_unit_keeps_the_socket_and_ends_what_fetched(container: Container) -> None:
    fetching = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "edgesan-fetch@*"]
    (before,) = container.run(*fetching).splitlines()
    container.run("systemctl", "stop", "edgesan-sanitize")
    until(lambda: not container.run(*fetching), lambda: container.run(*fetching), 5)
    container.run("systemctl", "start", "edgesan-sanitize")
    shown(container)
    assert container.run(*fetching).splitlines() != [before]
    assert container.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "edgesan*") == ""


def test_a_password_in_camera_env_reaches_the_camera_and_no_log(container: Container) -> None:
    secret = container.folder / "etc/edgesan/camera.env"
    secret.write_text("EDGESAN_CAMERA=http://me:s3cret@127.0.0.3:8554/private\n")
    secret.chmod(0o600)
    container.run("systemctl", "restart", "edgesan-sanitize")
    shown(container)
    assert "s3cret" not in container.log()
    secret.write_text("EDGESAN_CAMERA=http://me:wrong@127.0.0.3:8554/private\n")
    container.run("systemctl", "restart", "edgesan-sanitize", check=False)
    until(lambda: "the user name or the password is wrong (401)" in container.log(), container.log)
    secret.unlink()
    container.run("systemctl", "restart", "edgesan-sanitize")
    shown(container)


PLAYER = """
import sys
sys.path.insert(0, "/opt/edgesan/lib")
import av
with av.open("rtsp://127.0.0.1:8555/cam", options={"rtsp_transport": "tcp", "timeout": "5000000"}) as stream:
    print(*(f"{frame.width}x{frame.height}" for _, frame in zip(range(3), stream.decode(video=0))))
"""


def test_the_transmit_unit_serves_rtsp(container: Container) -> None:
    if lacking := rtsp_server.missing(tls=False):
        pytest.skip(f"apt install {lacking}")
    container.set(out=["http://127.0.0.1:8080", "serve+rtsp://127.0.0.1:8555/cam"])
    container.run("systemctl", "restart", "edgesan-transmit")
    (container.folder / "player.py").write_text(PLAYER)
    until(lambda: container.run(PYTHON, "/player.py", check=False) == "320x240 320x240 320x240\n", container.log)


def test_the_timer_takes_a_newer_model_from_a_repository(container: Container, tmp_path: Path, row: Row) -> None:
    (tmp_path / "maker").mkdir()
    maker = Maker(tmp_path / "maker", "release")
    newer = maker.model("newer.onnx", version=1000)
    folder, authority = container.folder / "repository", trustme.CA()
    command = [sys.executable, "examples/publish_repository.py", str(folder), "--add", str(newer)]
    subprocess.run([*command, "--key", str(maker.key_file), "--online", str(maker.key_file)], check=True)
    authority.cert_pem.write_to_path(str(container.folder / "etc/edgesan/ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(container.folder / "server.pem"))
    container.background("https", HTTPS)
    container.set(trusted_keys=[maker.key.line])
    container.run("systemctl", "restart", "edgesan-sanitize", "edgesan-transmit")
    shown(container)
    assert container.run("systemctl", "is-enabled", "edgesan-update.timer").strip() == "enabled"

    soon = container.folder / "etc/systemd/system/edgesan-update.timer.d/soon.conf"
    soon.parent.mkdir()
    soon.write_text(SOON)
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "edgesan-update.timer")
    until(lambda: "skipped" in container.log("edgesan-update"), container.log)  # no repository is named
    named = "REPOSITORY=https://localhost:8443\nOPTIONS=--watch 5\nSSL_CERT_FILE=/etc/edgesan/ca.pem\n"
    (container.folder / "etc/edgesan/repository.env").write_text(named)
    until(lambda: "and was watched for 5 s" in container.log("edgesan-update"), container.log)
    current = os.readlink(container.folder / "var/lib/edgesan/models/current")
    assert current.startswith("default-v1000-")
    shown(container)
    until(lambda: "is what runs already" in container.log("edgesan-update"), container.log)
    soon.unlink()
    said = next(line for line in container.log("edgesan-update").splitlines() if "was watched" in line)
    row("the update timer under a real systemd", said)
