"""The two units: really separate processes that find each other and outlive each other; and the unit files."""

import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgesan import owner, standing
from edgesan.board import doctor
from edgesan.errors import CameraError, ConfigError
from tests.capture.support import HttpCamera
from tests.isolation.support import program
from tests.support import COMMAND, ROOT, free_port

pytestmark = pytest.mark.slow  # whole units are started

FILES = ROOT / "firmware_config" / "root"
UNITS = sorted((FILES / "usr/lib/systemd/system").glob("*.service"))
MOST_EXPOSED = 1.5
REACHES_OUT = {"edgesan-update": 2.5}  # as root, and for minutes a day
OTHERS = sorted(path for kind in ("timer", "socket") for path in (FILES / "usr/lib/systemd/system").glob(f"*.{kind}"))
GENERATOR = FILES / "usr/lib/systemd/system-generators/edgesan-fetch"


class Units:
    """The processes, started by hand as systemd would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.token = ""
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, role: str, *more: str, **environment: str) -> None:
        own = {
            "sanitize": ["--camera", "demo", "--state-dir", str(self.folder / "state")],
            "transmit": ["--out", f"http://{'0.0.0.0' if self.token else '127.0.0.1'}:{self.port}"],
            "fetch": [],
        }[role]
        command = [sys.executable, "-m", "edgesan", "run", "--role", role, "--socket", str(self.folder / "s"), *own]
        if role == "fetch":
            command = [*socket_activate(self.folder / "fetch.sock"), *command]
        with (self.folder / f"{role}.log").open("a") as log:
            self.running[role] = subprocess.Popen(
                [*command, *more], stderr=log, text=True, env=os.environ | environment, start_new_session=True
            )

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.running.pop(role)
        process.send_signal(number)
        return process.wait(20)

    def log(self, role: str) -> str:
        return (self.folder / f"{role}.log").read_text()

    def get(self, path: str) -> Any:
        head = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=head)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def until(self, test: Callable[[dict[str, Any]], object], seconds: float = 30) -> dict[str, Any]:
        deadline, last = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            for role, process in self.running.items():
                assert process.poll() is None, self.log(role)
            try:
                last = self.get("/api/status")
                if test(last):
                    return last  # type: ignore[no-any-return]
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{last}\n{self.log('sanitize')}\n{self.log('transmit')}")


@pytest.fixture
def units(tmp_path: Path) -> Iterator[Units]:
    both = Units(tmp_path)
    yield both
    for role in list(both.running):
        both.kill(role)


def put(units: Units, path: str, body: str) -> None:
    url, kind = f"http://127.0.0.1:{units.port}{path}", {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, body.encode(), kind, method="PUT"), timeout=5).close()


def flows(status: dict[str, Any]) -> bool:
    return bool(status["ready"] and status.get("isolation", {}).get("summary", "").count(";"))


def test_a_transmit_unit_tells_of_privacy_what_it_heard_last_and_nothing_before(units: Units) -> None:
    units.start("transmit")
    assert units.until(lambda status: "privacy" in status)["privacy"] is None
    units.start("sanitize")
    units.until(flows)
    put(units, "/api/privacy", '{"on": true}')
    units.until(lambda status: status["privacy"])
    units.kill("sanitize")
    assert units.until(lambda status: "camera" not in status)["privacy"] is True


@pytest.mark.parametrize("first", ["sanitize", "transmit"])
def test_the_units_find_each_other_whichever_comes_first(units: Units, first: str) -> None:
    units.start(first)
    time.sleep(1)
    units.start({"sanitize": "transmit", "transmit": "sanitize"}[first])
    status = units.until(flows)
    assert "sanitize: " in status["isolation"]["summary"]
    assert "transmit: " in status["isolation"]["summary"]
    assert units.kill("transmit", signal.SIGTERM) == 0
    assert units.kill("sanitize", signal.SIGTERM) == 0
    assert not (units.folder / "s").exists()
    assert "Traceback" not in units.log("sanitize") + units.log("transmit")


def test_a_viewer_turns_the_dial_of_the_other_unit(units: Units) -> None:
    units.start("sanitize")
    units.start("transmit")
    units.until(flows)
    assert doctor.port(f"http://127.0.0.1:{units.port}").detail == "edgesan serves there already"
    request = urllib.request.Request(
        f"http://127.0.0.1:{units.port}/api/alpha",
        b'{"alpha": 0.75}',
        {"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=5).close()
    units.until(lambda status: status.get("alpha") == 0.75)


@pytest.mark.slow
def test_a_viewer_switches_the_camera_off_and_draws_zones_in_the_other_unit(units: Units) -> None:
    """Each unit has its own record, also where systemd gives both the same configuration."""

    folder = units.folder / "transmit"
    options = ("--state-dir", "/proc/nowhere")
    units.start("sanitize")
    units.start("transmit", *options, STATE_DIRECTORY=str(folder))
    units.until(flows)
    put(units, "/api/zones", '{"zones": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}')
    units.until(lambda status: status["faces"] == 0)
    put(units, "/api/privacy", '{"on": true}')
    units.until(lambda status: status["privacy"])
    for role in ("sanitize", "transmit"):
        units.kill(role)
    assert standing.read(units.folder / "state").privacy
    assert standing.read(units.folder / "state").zones == standing.read(folder).zones != ()
    units.start("sanitize")
    units.start("transmit", *options, STATE_DIRECTORY=str(folder))
    units.until(lambda status: status["privacy"] and status["zones"] == 1)
    put(units, "/api/privacy", '{"on": false}')
    assert units.until(flows)["faces"] == 0


def test_a_killed_transmit_unit_is_let_in_again_and_the_camera_never_stopped(units: Units) -> None:
    units.start("sanitize")
    units.start("transmit")
    uptime, opened = units.until(flows)["uptime_s"], 0
    for _ in range(2):
        units.kill("transmit")
        units.start("transmit")
        after = units.until(flows)
        assert after["uptime_s"] > uptime
        uptime = after["uptime_s"]
        now = psutil.Process(units.running["sanitize"].pid).num_fds()
        opened = opened or now
        assert now == opened, "each visitor's descriptors are closed when it is gone"
    assert units.log("sanitize").count("the transmit unit is gone") == 2


def test_a_killed_sanitize_unit_is_met_again_and_the_server_never_stopped(units: Units) -> None:
    units.start("sanitize")
    units.start("transmit")
    units.until(flows)
    for _ in range(2):
        units.kill("sanitize")
        assert units.until(lambda status: not status.get("camera"))["ready"] in (True, False), "it answers meanwhile"
        units.start("sanitize")
        units.until(flows)
    assert units.log("transmit").count("the sanitize unit is gone") == 2
    assert units.log("transmit").count("Traceback") == 0


def test_the_sanitize_unit_needs_no_token(units: Units) -> None:
    units.token = "abc" * 7
    units.start("sanitize", "--out", f"http://0.0.0.0:{units.port}")
    units.start("transmit", EDGESAN_TOKEN="abc" * 7)
    units.until(flows)
    assert b"abc" not in Path(f"/proc/{units.running['sanitize'].pid}/environ").read_bytes()


def test_a_clip_of_before_the_restart_is_kept(units: Units) -> None:
    clip = units.folder / "clip.mkv"
    clip.write_bytes(b"of before")
    units.start("sanitize")
    units.start("transmit", "--out", str(clip))
    units.until(flows)
    assert units.kill("transmit", signal.SIGTERM) == 0, units.log("transmit")
    assert clip.read_bytes() == b"of before"
    assert (units.folder / "clip-2.mkv").stat().st_size > 0


def test_systemd_hears_of_both(units: Units) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(units.folder / "notify"))
        systemd.settimeout(20)
        units.start("transmit", NOTIFY_SOCKET=str(units.folder / "notify"))
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        units.kill("transmit", signal.SIGTERM)
        words = []
        while b"STOPPING=1" not in words:
            words.append(systemd.recv(100))


# --- a network camera: a third unit, for each opening of it -----------------------------------------------------------


def socket_activate(place: Path) -> list[str]:
    """systemd's own stand-in for a socket unit with Accept=yes. It passes no variables but those that are named."""
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd-socket-activate is not here: apt install systemd")
    return [
        program,
        "--seqpacket",
        "--accept",
        "--inetd",
        f"--listen={place}",
        "--setenv=PYTHONPATH",
        "--setenv=EDGESAN_CAMERA",
    ]


def fetchers(units: Units) -> list[psutil.Process]:
    """The processes that fetch. One that does not begin to any more has no name of its own yet, or none any more."""
    children = psutil.Process(units.running["fetch"].pid).children()
    return [each for each in children if each.status() != psutil.STATUS_ZOMBIE and each.name() == "edgesan-fetch"]


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def up(status: dict[str, Any]) -> bool:
    return flows(status) and bool(status["camera_up"])


def test_a_unit_without_a_network_shows_a_network_camera_that_another_one_fetches(
    units: Units, http_camera: HttpCamera
) -> None:
    units.start("fetch", "--require-isolation", EDGESAN_CAMERA=http_camera.url)
    units.start("sanitize", "--camera", http_camera.url, "--require-isolation")
    units.start("transmit")
    status = units.until(up)
    assert "sanitize: no network, no socket" in status["isolation"]["summary"]
    assert "fetch: no camera, no other port" in status["isolation"]["summary"]
    assert status["isolation"]["whole"]
    (first,) = fetchers(units)
    assert [connection.raddr.port for connection in first.net_connections("tcp")] == [http_camera.port]
    assert [each.name() for each in psutil.Process(units.running["sanitize"].pid).children()] == ["edgesan-sanitiz"]

    first.kill()
    until(lambda: [each.pid for each in fetchers(units)] not in ([], [first.pid]))
    units.until(up)

    (second,) = fetchers(units)
    units.kill("sanitize")
    until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE, 2)
    log = units.log("fetch") + units.log("sanitize") + units.log("transmit")
    assert "Traceback" not in log
    assert "s3cret" not in log


def test_a_process_that_fetches_ends_with_the_camera_of_the_other_unit(units: Units, http_camera: HttpCamera) -> None:
    """Also while the camera is silent, and nothing is written that could fail."""
    units.start("fetch", EDGESAN_CAMERA=http_camera.url)
    units.start("sanitize", "--camera", http_camera.url)
    units.start("transmit")
    units.until(up)
    http_camera.silent.set()
    put(units, "/api/privacy", '{"on": true}')
    units.until(lambda status: status["privacy"])
    until(lambda: not fetchers(units), 2)
    http_camera.silent.clear()
    put(units, "/api/privacy", '{"on": false}')
    units.until(up)


def test_without_the_unit_that_fetches_the_other_one_says_so(units: Units, http_camera: HttpCamera) -> None:
    units.start("sanitize", "--camera", http_camera.url)
    assert units.running.pop("sanitize").wait(30) == CameraError.exit_code
    assert "start the fetch unit: sudo systemctl start edgesan-fetch.socket" in units.log("sanitize")


def test_by_hand_no_unit_fetches() -> None:
    done = subprocess.run([*COMMAND, "run", "--role", "fetch"], capture_output=True, text=True, check=False, stdin=-3)
    assert (done.returncode, "for a connection: edgesan-fetch.socket" in done.stderr) == (ConfigError.exit_code, True)


# --- what a service manager has done already, the process says, too ---------------------------------------------------

UNSHARE = {"x86_64": 272, "aarch64": 97}


def test_a_network_namespace_that_the_service_manager_made_counts() -> None:
    """PrivateNetwork= with RestrictNamespaces=, for which unshare(1) and a filter on unshare(2) stand in."""
    text = """
        import os, socket
        from edgesan.isolation import claims, kernel, limits, seccomp
        {own}
        seccomp.deny({number})
        with socket.socket(socket.AF_UNIX):  # its own, such as the one to systemd
            print(claims.claim("sanitize", "no network", limits.leave_network()).holds)
    """
    number = UNSHARE[os.uname().machine]
    done = program(text.format(own="assert not kernel.unshare(kernel.CLONE_NEWNET)", number=number))
    if "AssertionError" in done.stderr:
        pytest.skip("this kernel gives this user no network namespace")
    assert done.stdout.split() == ["True"], done.stderr
    done = program(text.format(own="others = socket.socketpair(); os.close(others[0].detach())", number=number))
    assert done.stdout.split() == ["False"], "a namespace where others have sockets is the machine's own"


ALONE = """
import os, sys
from edgesan.isolation import kernel, seccomp
assert not kernel.unshare(kernel.CLONE_NEWNET)
seccomp.deny({number})
os.execv(sys.executable, [sys.executable, "-m", "edgesan", *sys.argv[1:]])
"""


def test_the_sanitize_unit_runs_in_the_namespace_that_it_was_given(units: Units) -> None:
    """Though its parent has sockets in it: the one where it listens, and the one to systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(units.folder / "notify"))
        units.start("transmit")
        number = UNSHARE[os.uname().machine]
        program = [sys.executable, "-c", ALONE.format(number=number), "run", "--role", "sanitize"]
        options = ["--socket", str(units.folder / "s"), "--camera", "demo", "--state-dir", str(units.folder / "state")]
        environment = os.environ | {"NOTIFY_SOCKET": str(units.folder / "notify")}
        with (units.folder / "sanitize.log").open("w") as log:
            units.running["sanitize"] = subprocess.Popen(
                [*program, *options, "--require-isolation"], stderr=log, text=True, env=environment
            )
        time.sleep(1)
        if "AssertionError" in units.log("sanitize"):
            units.running.pop("sanitize").wait(5)
            pytest.skip("this kernel gives this user no network namespace")
        assert "sanitize: no network" in units.until(flows)["isolation"]["summary"]


def test_a_private_dev_counts_where_the_kernel_has_no_landlock() -> None:
    done = program("""
        import os
        from edgesan.isolation import claims, kernel, limits, probes

        def no_camera(*cameras):
            context = probes.ProbeContext()
            context.cameras = list(cameras)
            results = tuple(probe.attempt(context) for probe in probes.CAMERA)
            return claims.claim("transmit", "no camera", results)

        limits.hide_devices()
        kernel.libc.mount(b"none", b"/dev", b"tmpfs", 0, None)
        os.mknod("/dev/zero", 0o600 | 0o20000, os.makedev(1, 5))
        first = no_camera()
        os.mknod("/dev/video0", 0o600 | 0o20000, os.makedev(1, 5))  # one that was let in all the same
        print(first.holds, "no device appears in it" in first.detail, no_camera("/dev/video0").holds)
    """)
    if "PermissionError" in done.stderr or "FileNotFound" in done.stderr:
        pytest.skip("devices can be made by root only")
    assert done.stdout.split() == ["True", "True", "False"], done.stderr


# --- the unit files ---------------------------------------------------------------------------------------------------


def systemd(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here: apt install systemd")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_little_exposed(unit: Path) -> None:
    said = systemd("security", "--offline=true", "--no-pager", str(unit))
    score = re.search(r"Overall exposure level for [\w.@-]+: ([\d.]+)", said)
    assert score, said
    assert float(score[1]) <= REACHES_OUT.get(unit.stem, MOST_EXPOSED)


def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    copies = []
    for unit in (*UNITS, *OTHERS):
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace("/usr/bin/edgesan", "/bin/sh"))
    assert systemd("verify", "--man=no", *map(str, copies)).strip() == ""


def setting(unit: str, name: str) -> list[str]:
    text = (FILES / "usr/lib/systemd/system" / unit).read_text()
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def test_the_units_hold_the_wall_between_them() -> None:
    assert {unit.name for unit in UNITS} >= {"edgesan-sanitize.service", "edgesan-transmit.service"}
    assert setting("edgesan-sanitize.service", "PrivateNetwork") == ["yes"]
    given = {name: setting(f"edgesan-{name}.service", "EnvironmentFile") for name in ("sanitize", "transmit", "fetch@")}
    camera, token = ["-/etc/edgesan/camera.env"], ["-/etc/edgesan/token.env"]
    assert given == {"sanitize": camera, "transmit": token, "fetch@": camera}, "the token is the transmit unit's"
    assert setting("edgesan-transmit.service", "PrivateDevices") == ["yes"]
    assert setting("edgesan-transmit.service", "SupplementaryGroups") == []
    for unit in ("edgesan-sanitize.service", "edgesan-transmit.service"):
        assert any("ORT_DISABLE_TELEMETRY=1" in line for line in setting(unit, "Environment"))
        assert int(setting(unit, "WatchdogSec")[0]) <= 30


def test_only_the_sanitize_unit_has_a_camera_fetched_and_only_from_the_local_network() -> None:
    from edgesan.config import load

    board = load(FILES / "etc/edgesan/edgesan.toml", {})
    assert setting("edgesan-fetch.socket", "ListenSequentialPacket") == [str(board.fetch_socket)]
    assert setting("edgesan-fetch.socket", "SocketUser") == setting("edgesan-sanitize.service", "User")
    assert setting("edgesan-fetch.socket", "SocketMode") == ["0600"]
    assert setting("edgesan-sanitize.service", "RuntimeDirectoryPreserve") == ["yes"], "or a restart removes the socket"
    assert setting("edgesan-fetch@.service", "IPAddressDeny") == ["any"]
    allowed = setting("edgesan-fetch@.service", "IPAddressAllow")[0].split()
    networks = [ipaddress.ip_network(each) for each in allowed if each not in ("localhost", "link-local")]
    assert all(network.is_private for network in networks)
    assert setting("edgesan-fetch@.service", "PrivateDevices") == ["yes"]
    assert setting("edgesan-fetch@.service", "Group") == [], "it may not see the stream"


@pytest.mark.parametrize(
    ("camera", "address"),
    [
        ('"rtsp://192.168.1.20/1"', "192.168.1.20"),
        ('"rtsp://192.168.1.20"  # porch', "192.168.1.20"),
        ("'http://me:s3@10.0.0.7:8080/video?x=1'", "10.0.0.7"),
        ('"rtsps://[fd00::20]:322/1"', "fd00::20"),
        ('"rtsp://camera.local/1"', ""),
        ('"rtsp://192.168.1.20.example/1"', ""),
        ('"rtsp://192.168.1.20@camera.local/1"', ""),
        ('"0"', ""),
    ],
)
def test_the_unit_that_fetches_reaches_the_cameras_address_alone(tmp_path: Path, camera: str, address: str) -> None:
    """Where it is a number: a name is looked up later, and may then be another machine."""
    (tmp_path / "edgesan.toml").write_text(f"alpha = 0.5\ncamera = {camera}\n")
    variables = {"EDGESAN_CONFIG": str(tmp_path / "edgesan.toml"), "PATH": "/usr/bin:/bin"}
    subprocess.run([str(GENERATOR), str(tmp_path), "early", "late"], check=True, env=variables)
    made = tmp_path / "edgesan-fetch@.service.d/camera.conf"
    assert (made.read_text() if made.exists() else "") == (
        f"[Service]\nIPAddressAllow=\nIPAddressAllow={address}\n" if address else ""
    )


def test_a_board_asks_no_repository_until_its_owner_names_one() -> None:
    assert setting("edgesan-update.service", "ConditionPathExists") == ["/etc/edgesan/repository.env"]
    assert not (FILES / "etc/edgesan/repository.env").exists()


def test_a_restart_is_tried_only_where_it_can_cure() -> None:
    from edgesan import errors

    hopeless = {str(kind.exit_code) for kind in (errors.ConfigError, errors.ModelError, errors.IsolationError)}
    assert set(setting("edgesan-sanitize.service", "RestartPreventExitStatus")[0].split()) == hopeless
    assert set(setting("edgesan-transmit.service", "RestartPreventExitStatus")[0].split()) == hopeless, (
        "both run a half of the model"
    )
    assert str(errors.CameraError.exit_code) not in hopeless


def test_the_boards_configuration_is_one_for_both_units(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesan.config import load

    path = FILES / "etc/edgesan/edgesan.toml"
    for role in ("sanitize", "transmit"):
        assert load(path, {"role": role}).require_isolation
    command = setting("edgesan-sanitize.service", "ExecStart")[0]
    assert "/etc/edgesan/edgesan.toml" in command
    state = setting("edgesan-sanitize.service", "StateDirectory")[0]
    assert load(path, {}).state_dir == Path("/var/lib") / state
    assert str(load(path, {}).socket.parent) == f"/run/{setting('edgesan-sanitize.service', 'RuntimeDirectory')[0]}"


def test_only_root_writes_the_still_and_both_units_may_read_it() -> None:
    from edgesan.config import load

    still = load(FILES / "etc/edgesan/edgesan.toml", {}).scene
    assert still
    rows = [line.split() for line in (FILES / "usr/lib/tmpfiles.d/edgesan.conf").read_text().splitlines()]
    assert ["d", str(still.parent), "2750", "root", "edgesan", "-"] in rows, "its files belong to the group"
    assert owner.ACCEPTED_MODE == 0o640
    for unit in ("edgesan-sanitize.service", "edgesan-transmit.service"):
        assert setting(unit, "Group") == ["edgesan"]
        hidden = [path.lstrip("-") for line in setting(unit, "InaccessiblePaths") for path in line.split()]
        assert not any(still.is_relative_to(path) for path in hidden)
        assert not setting(unit, "ReadWritePaths")


def test_sysusers_makes_the_users(tmp_path: Path) -> None:
    program = shutil.which("systemd-sysusers")
    if program is None:
        pytest.skip("systemd-sysusers is not here: apt install systemd")
    (tmp_path / "etc").mkdir()
    subprocess.run([program, f"--root={tmp_path}", str(FILES / "usr/lib/sysusers.d/edgesan.conf")], check=True)
    groups = dict(line.split(":")[::3] for line in (tmp_path / "etc/group").read_text().splitlines())
    assert set(groups["edgesan"].split(",")) == {"edgesan-sanitize", "edgesan-transmit"}
    assert groups["edgesan-fetch"] == "", "it belongs to no other group"
    assert groups["video"] == "edgesan-sanitize", "the transmit user opens no camera"
