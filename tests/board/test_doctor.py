"""The doctor, on machines that are laid out in folders, and on this one."""

import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesan import standing
from edgesan.board import doctor
from edgesan.board.doctor import Finding
from edgesan.config import Config
from edgesan.isolation import IsolationClaim
from edgesan.outlets import rtsp_server
from tests.support import free_port

PI = "proc/device-tree/model"
PI_4 = "Raspberry Pi 4 Model B Rev 1.4\0"
PACKAGES = "usr/lib/python3/dist-packages"

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Lays out the files of a machine, path: content; None is a folder. Its root is returned."""

    def make(files: dict[str, str | None]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            if content is None:
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return tmp_path

    return make


def one(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def test_this_machine_can_be_examined() -> None:
    found = doctor.examine(Config(camera="demo", out=("http://127.0.0.1:0",)))
    names = [finding.name for finding in found]
    assert {"python", "numpy", "onnxruntime", "model", "sanitize process", "transmit process"} <= set(names)
    assert len(names) == len(set(names))
    assert all(finding.cure for finding in found if finding.level != "ok")
    assert json.loads(doctor.to_json(found))[0] == dataclasses.asdict(found[0])


def test_a_camera_that_is_switched_off_is_named_with_its_cure(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path)
    assert doctor.privacy(config) is None
    standing.record_privacy(tmp_path, on=True)
    found = one(doctor.privacy(config))
    assert (found.level, "PUT /api/privacy" in found.cure) == ("warn", True)
    standing.zones_file(tmp_path).write_text("{}")
    assert one(doctor.privacy(config)).level == "fail"


def test_every_finding_has_its_mark_and_its_cure_is_below_it() -> None:
    text = doctor.render(
        [Finding("a", "ok", "fine"), Finding("bcd", "warn", "so so", "rest"), Finding("e", "fail", "no", "buy")]
    )
    assert text.splitlines() == [
        "✓ a    fine",
        "! bcd  so so",
        "       cure: rest",
        "✗ e    no",
        "       cure: buy",
        "failures: 1, warnings: 1",
    ]


def test_an_empty_machine_has_little_to_say(machine: Machine) -> None:
    root = machine({})
    silent = (doctor.pi_libraries, doctor.dma_heaps, doctor.contiguous_memory, doctor.power, doctor.temperature)
    assert [doctor.time_of_day(root), doctor.card(root), *doctor.radios(root)] == [None, None]
    assert doctor.ribbon(Config(camera="picamera"), root) is None
    if "picamera2" not in sys.modules:
        assert [look(root) for look in silent] == [None] * 5
    assert [look(root) for look in (doctor.dot_products, doctor.core_dumps, doctor.clock)] == [None] * 3


# --- packages and the model -------------------------------------------------------------------------------------------


def test_a_missing_package_is_to_be_installed() -> None:
    found = list(doctor.packages({"numpy": "numpy", "some-thing": "no_such_module"}))
    assert [finding.level for finding in found] == ["ok", "fail"]
    assert found[1].cure.startswith("pip install some-thing")


def test_the_doctor_works_where_opencv_does_not() -> None:
    """The command line, in an interpreter that cannot import cv2."""
    code = "import sys; sys.modules['cv2'] = None; from edgesan.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    levels = {finding["name"]: finding["level"] for finding in json.loads(done.stdout)}
    assert levels["opencv-python-headless"] == "fail"
    assert "model" not in levels


def test_a_model_that_may_be_run_is_named() -> None:
    finding = doctor.model(Config())
    assert finding.level == "ok"
    assert "gives its known answer" in finding.detail


def test_a_missing_model_is_to_be_named(tmp_path: Path) -> None:
    finding = doctor.model(Config(model=tmp_path / "none.onnx"))
    assert finding.level == "fail"
    assert "No such file" in finding.detail
    assert "--model" in finding.cure


# --- cameras ----------------------------------------------------------------------------------------------------------


def levels(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.name, finding.level) for finding in found]


@pytest.mark.parametrize("spec", ["0", "/dev/video7", "picamera", "picamera:1"])
def test_a_camera_that_is_not_here_is_a_failure(machine: Machine, spec: str) -> None:
    (finding,) = doctor.cameras(Config(camera=spec), machine({"dev": None}))
    assert finding.level == "fail"
    assert f"--camera {spec} is not here" in finding.detail
    assert "--camera demo needs none" in finding.cure
    assert ("apt install python3-picamera2" in finding.cure) is spec.startswith("picamera")


def test_a_network_camera_takes_a_connection_or_has_a_cure() -> None:
    assert doctor.network_camera(Config(camera="demo")) is None
    with socket.create_server(("127.0.0.1", 0)) as camera:
        port = camera.getsockname()[1]
        found = one(doctor.network_camera(Config(camera=f"rtsp://cam:hidden@127.0.0.1:{port}/1")))
        assert (found.level, found.detail) == ("ok", f"rtsp://127.0.0.1:{port} takes connections, at 127.0.0.1")
    gone = one(doctor.network_camera(Config(camera=f"rtsp://127.0.0.1:{port}/1")))
    assert (gone.level, gone.detail) == ("fail", f"cannot connect to 127.0.0.1, port {port}: Connection refused")
    assert "switched on" in gone.cure
    nobody = one(doctor.network_camera(Config(camera="rtsp://nosuchhost.invalid/1")))
    assert (nobody.level, nobody.detail) == ("fail", "there is no address of nosuchhost.invalid")


@pytest.mark.parametrize("spec", ["demo", "rtsp://192.0.2.1/", __file__])
def test_a_source_that_is_no_device_needs_no_camera(machine: Machine, spec: str) -> None:
    assert levels(doctor.cameras(Config(camera=spec), machine({"dev": None}))) == []


def test_a_file_that_is_not_here_is_a_failure(machine: Machine) -> None:
    assert levels(doctor.cameras(Config(camera="gone.mp4"), machine({"dev": None}))) == [("camera", "fail")]


def test_a_node_that_does_not_answer_is_a_warning(machine: Machine) -> None:
    root = machine({"dev/video0": ""})
    found = levels(doctor.cameras(Config(camera="0"), root))
    assert found == [(f"camera {root}/dev/video0", "warn"), ("camera", "fail")]


def test_a_camera_that_is_usable_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesan.capture import devices

    root = machine({"dev/video3": "", "dev/v4l/by-id": None})
    (root / "dev/v4l/by-id/usb-cam").symlink_to(root / "dev/video3")

    def query(node: Path) -> devices.CameraDevice:
        return devices.CameraDevice(str(node), "A Camera", "uvcvideo", "v4l2", usable=True)

    monkeypatch.setattr(devices, "query", query)
    link = str(root / "dev/v4l/by-id/usb-cam")
    for spec in ("3", str(root / "dev/video3"), link):
        assert levels(doctor.cameras(Config(camera=spec), root)) == [(f"camera {root}/dev/video3", "ok")]


@pytest.mark.parametrize(
    ("files", "level", "words"),
    [
        ({PI: PI_4}, "warn", "apt install python3-picamera2"),
        ({f"{PACKAGES}/libcamera": None, f"{PACKAGES}/picamera2": None}, "warn", "--system-site-packages"),
        ({PI: PI_4, f"{PACKAGES}/libcamera": None, f"{PACKAGES}/picamera2": None}, "fail", "--system-site-packages"),
        ({PI: PI_4, f"{PACKAGES}/libcamera": None}, "fail", "apt install python3-picamera2"),
        ({f"{PACKAGES}/libcamera/_libcamera.cpython-27-aarch64-linux-gnu.so": ""}, "warn", "system's own python3"),
    ],
)
def test_libcamera_that_this_environment_cannot_see_has_its_cure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, files: dict[str, str | None], level: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    finding = one(doctor.pi_libraries(machine(files)))
    assert finding.level == level
    assert words in finding.cure


@pytest.mark.parametrize(
    ("module", "level", "words"),
    [
        ("", "ok", "can be imported"),
        ("import libcamera_of_nowhere", "warn", "libcamera_of_nowhere"),
        ("raise ValueError('numpy.dtype size changed')", "warn", "numpy.dtype size changed"),
    ],
)
def test_picamera2_is_imported_to_know_that_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, level: str, words: str
) -> None:
    (tmp_path / "picamera2.py").write_text(f"{module}\n")
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = one(doctor.pi_libraries(tmp_path / "nothing"))
    sys.modules.pop("picamera2", None)
    assert finding.level == level
    assert words in finding.detail
    assert ("trixie" in finding.cure) is ("numpy" in words)
    assert ("--system-site-packages" in finding.cure) is ("libcamera" in words)


def test_heaps_that_may_be_opened_are_fine(machine: Machine) -> None:
    finding = one(doctor.dma_heaps(machine({"dev/dma_heap/linux,cma": "", "dev/dma_heap/system": ""})))
    assert (finding.level, finding.detail) == ("ok", "linux,cma, system")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_heap_that_may_not_be_opened_has_its_cure(machine: Machine) -> None:
    root = machine({"dev/dma_heap/linux,cma": ""})
    (root / "dev/dma_heap/linux,cma").chmod(0)
    finding = one(doctor.dma_heaps(root))
    assert finding.level == "warn"
    assert "video" in finding.cure


# --- the board --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "free", "level", "words"),
    [(262144, 200000, "ok", ""), (16384, 16000, "warn", "cma-256"), (262144, 900, "warn", "end other camera programs")],
)
def test_contiguous_memory_must_be_enough_and_free(
    machine: Machine, total: int, free: int, level: str, words: str
) -> None:
    memory = f"MemTotal:  3884024 kB\nHugePages_Total:   0\nCmaTotal:  {total} kB\nCmaFree:  {free} kB\n"
    finding = one(doctor.contiguous_memory(machine({PI: PI_4, "proc/meminfo": memory})))
    assert finding.level == level
    assert words in finding.cure


def test_contiguous_memory_matters_on_a_pi_only(machine: Machine) -> None:
    assert doctor.contiguous_memory(machine({"proc/meminfo": "CmaTotal:  16384 kB\nCmaFree:  900 kB\n"})) is None


@pytest.mark.parametrize(
    ("bits", "level", "detail"),
    [
        ("0\n", "ok", "never throttled since the start"),
        (
            "50005\n",
            "warn",
            "under-voltage now, throttled now, under-voltage since the start, throttled since the start",
        ),
        ("0x80000", "warn", "too hot since the start"),
        ("20002", "warn", "clock capped now, clock capped since the start"),
    ],
)
def test_the_firmwares_bits_are_put_in_words(machine: Machine, bits: str, level: str, detail: str) -> None:
    finding = one(doctor.power(machine({"sys/devices/platform/soc/soc:firmware/get_throttled": bits})))
    assert (finding.level, finding.detail) == (level, detail)


def test_the_hottest_sensor_counts(machine: Machine) -> None:
    zones = {f"sys/class/thermal/thermal_zone{i}/temp": f"{degrees}000\n" for i, degrees in enumerate((41, 83, 52))}
    finding = one(doctor.temperature(machine(zones)))
    assert (finding.level, finding.detail) == ("warn", "83 °C")


@pytest.mark.parametrize(
    ("cpuinfo", "level"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", "ok"),
        ("flags\t\t: fpu avx2 avx_vnni\n", "ok"),
        ("flags\t\t: fpu avx2\n", "warn"),
        ("Features\t: fp asimd crc32 asimddp\n", "ok"),  # Pi 5
        ("Features\t: fp asimd evtstrm crc32 cpuid\n", "warn"),  # Pi 4
    ],
)
def test_int8_dot_products_are_looked_for(machine: Machine, cpuinfo: str, level: str) -> None:
    finding = one(doctor.dot_products(machine({"proc/cpuinfo": f"processor\t: 0\n{cpuinfo}\nprocessor\t: 1\n"})))
    assert finding.level == level


@pytest.mark.parametrize(("source", "level"), [("tsc\n", "ok"), ("arch_sys_counter\n", "ok"), ("hpet\n", "warn")])
def test_a_slow_clock_is_reported(machine: Machine, source: str, level: str) -> None:
    where = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert one(doctor.clock(machine({where: source}))).level == level


# --- what may leak, and where it goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ("", "ok"),
        ("/dev/zram0    partition  2097148  0  100\n", "ok"),
        ("/var/swap     file       204796   0  -2\n", "warn"),
        ("/dev/zram0 partition 1 0 100\n/dev/mmcblk0p3 partition 1 0 -2\n", "warn"),
    ],
)
def test_swap_on_a_disk_is_reported(machine: Machine, lines: str, level: str) -> None:
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    assert one(doctor.swap(machine({"proc/swaps": head + lines}))).level == level


@pytest.fixture
def core_limit() -> Iterator[Callable[[int], None]]:
    """Sets the size limit of core dumps of this process, for one test."""
    before = resource.getrlimit(resource.RLIMIT_CORE)

    def limit(bytes_: int) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (bytes_, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize(
    ("pattern", "limit", "level", "words"),
    [
        ("core\n", 0, "ok", "off"),
        ("core\n", 4096, "warn", "writes raw pixels to core"),
        ("|/usr/lib/systemd/systemd-coredump %P %u\n", 0, "warn", "to systemd-coredump"),
    ],
)
def test_core_dumps_are_reported(
    machine: Machine, core_limit: Callable[[int], None], pattern: str, limit: int, level: str, words: str
) -> None:
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if most != resource.RLIM_INFINITY and most < limit:
        pytest.skip("core dumps cannot be allowed here")
    core_limit(limit)
    finding = one(doctor.core_dumps(machine({"proc/sys/kernel/core_pattern": pattern})))
    assert finding.level == level
    assert words in finding.detail


def test_isolation_is_what_the_kernel_really_gives() -> None:
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("util-linux is not here to compare with")
    found = {finding.name: finding for finding in doctor.isolation(Config(camera="demo"))}
    tries = (["--user", "--net"], ["--net"])
    given = any(subprocess.run([program, *t, "true"], check=False, capture_output=True).returncode == 0 for t in tries)
    assert ("no network" in found["sanitize process"].detail) is given
    assert ("sanitize: no network" in found) is not given


def test_what_is_required_and_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = IsolationClaim("sanitize", "no network", False, "the kernel gives it none (EPERM)", "sysctl")
    script = f"#!/bin/sh\necho '{json.dumps([dataclasses.asdict(claim)])}'\n"
    for required, level in ((False, "warn"), (True, "fail")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "python"
            path.write_text(script)
            path.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(path))
            found = list(doctor.isolation(Config(camera="demo", require_isolation=required)))
        assert [finding.level for finding in found] == [level, level]
        assert {finding.cure for finding in found} == {"sysctl"}


def test_on_a_board_the_unit_that_fetches_must_listen_and_may_reach_the_camera(machine: Machine) -> None:
    config = Config(camera="rtsp://me:s3cret@192.168.1.20/1")
    root = machine({"run": None})
    assert doctor.fetching(config, root) is None, "no board"
    machine({"usr/lib/systemd/system/edgesan-fetch.socket": ""})
    assert doctor.fetching(Config(camera="0"), root) is None
    assert one(doctor.fetching(config, root)).detail == "nothing listens at /run/edgesan/fetch.sock"
    machine({"run/edgesan/fetch.sock": ""})
    assert one(doctor.fetching(config, root)).detail == "it may reach the local network"
    machine({doctor.FETCH_ADDRESS: "[Service]\nIPAddressAllow=\nIPAddressAllow=192.168.1.20\n"})
    assert one(doctor.fetching(config, root)).detail == "it may reach 192.168.1.20"
    moved = one(doctor.fetching(Config(camera="rtsp://me:s3cret@192.168.1.30/1"), root))
    assert (moved.level, "daemon-reload" in moved.cure, "s3cret" in moved.detail) == ("fail", True, False)


def test_of_a_network_camera_the_process_that_fetches_is_tried_too() -> None:
    assert "fetch process" not in {finding.name for finding in doctor.isolation(Config(camera="demo"))}
    found = list(doctor.isolation(Config(camera="rtsp://192.0.2.1/")))
    assert any(finding.name == "fetch process" and "no terminal" in finding.detail for finding in found)


def test_a_port_in_use_is_a_failure() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        finding = doctor.port(f"http://127.0.0.1:{number}")
        assert finding.level == "fail"
        assert "already in use" in finding.detail
        assert f":{number}" in finding.cure
    assert doctor.port(f"http://127.0.0.1:{number}").level == "ok"


@pytest.mark.parametrize("out", ["http://192.0.2.1:8080", "http://no-such-host.invalid:8080"])
def test_an_address_of_another_machine_is_a_failure(out: str) -> None:
    assert doctor.port(out).level == "fail"


def test_room_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB free" in doctor.room(tmp_path / "walk.mkv").detail
    assert doctor.room(tmp_path / "nowhere" / "walk.mkv").level == "fail"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert doctor.room(tmp_path / "walk.mkv").level == "warn"


def test_each_sink_is_looked_at(tmp_path: Path) -> None:
    outs = ("http://127.0.0.1:0", str(tmp_path / "walk.mkv"))
    assert [finding.name for finding in doctor.sinks(Config(out=outs))] == list(outs)


def test_what_serves_viewers_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    number = free_port()
    served, by_page = Config(out=(f"serve+rtsp://127.0.0.1:{number}/cam", "http://127.0.0.1:0", "webrtc:")).targets
    monkeypatch.setattr(rtsp_server, "PYTHON", tmp_path / "python3")
    gstreamer, port = doctor.output(served)
    assert (gstreamer.level, port.level) == ("fail", "ok")
    assert gstreamer.cure.startswith("sudo apt install python3 python3-gi gir1.2-gst-rtsp-server-1.0")
    monkeypatch.setitem(sys.modules, "aiortc", None)
    (finding,) = doctor.output(by_page)
    assert (finding.level, "pip install '.[webrtc]'" in finding.cure) == ("fail", True)


def test_a_system_without_a_part_of_gstreamer_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python3"
    for said, packages in (("ready", ""), ("missing glib-networking", "glib-networking"), ("", "python3-gi gir1.2")):
        python.write_text(f"#!/bin/sh\necho {said}\n")
        python.chmod(0o755)
        monkeypatch.setattr(rtsp_server, "PYTHON", python)
        assert rtsp_server.missing(tls=True).startswith(packages)


# --- a board ----------------------------------------------------------------------------------------------------------


def says(root: Path, name: str, text: str) -> None:
    """A program of the board that says that."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f"#!/bin/sh\necho '{text}'\n")
    (root / name).chmod(0o755)


@pytest.mark.parametrize(
    ("lines", "level", "detail", "cure"),
    [
        ("arm_64bit=1\n", "fail", "does not tell the firmware to look", "add camera_auto_detect=1"),
        ("camera_auto_detect=1\n", "fail", "looked for a camera, but none answers", "push the ribbon in"),
        ("dtoverlay=imx219,cam0  # mine\n", "fail", "dtoverlay=imx219,cam0 is in config.txt", "another sensor"),
        ("start_x=1\ncamera_auto_detect=1\n", "fail", "the old camera stack", "remove start_x=1"),
        ("# camera_auto_detect=1\n", "fail", "does not tell the firmware to look", "add camera_auto_detect=1"),
    ],
)
def test_a_camera_that_does_not_answer_has_a_line_of_config_txt_as_cure(
    machine: Machine, lines: str, level: str, detail: str, cure: str
) -> None:
    root = machine({PI: PI_4, "boot/firmware/config.txt": lines, "dev": None})
    finding = one(doctor.ribbon(Config(camera="picamera"), root))
    assert (finding.level, finding.name) == (level, "ribbon")
    assert detail in finding.detail
    assert cure in finding.cure
    assert doctor.ribbon(Config(camera="0"), root) is None, "a USB camera has no ribbon"
    (root / "dev/v4l-subdev0").touch()
    assert one(doctor.ribbon(Config(camera="picamera"), root)).level == "ok"


@pytest.mark.parametrize(("said", "level"), [("throttled=0x0", "ok"), ("throttled=0x50005", "warn")])
def test_where_the_kernel_does_not_say_the_firmwares_program_knows_of_the_supply(
    machine: Machine, said: str, level: str
) -> None:
    root = machine({PI: PI_4})
    assert doctor.power(root) is None
    says(root, "usr/bin/vcgencmd", said)
    finding = one(doctor.power(root))
    assert finding.level == level
    assert ("under-voltage now" in finding.detail) == (level == "warn")


def test_a_card_that_can_only_be_read_is_a_failure(machine: Machine) -> None:
    root = machine({"proc/mounts": "rootfs / rootfs rw 0 0\n/dev/mmcblk0p2 / ext4 ro,noatime 0 0\n"})
    finding = one(doctor.card(root))
    assert finding.level == "fail"
    assert "write a new one" in finding.cure
    (root / "proc/mounts").write_text("/dev/mmcblk0p2 / ext4 rw,noatime,errors=remount-ro 0 0\n")
    assert one(doctor.card(root)).level == "ok"
    (root / "proc/mounts").write_text("overlay / overlay ro 0 0\n")
    assert doctor.card(root) is None, "that one is meant to be"


def test_a_clock_that_no_server_has_set_is_reported(machine: Machine) -> None:
    root = machine({"run/systemd/timesync": None})
    assert one(doctor.time_of_day(root)).level == "warn"
    (root / "run/systemd/timesync/synchronized").touch()
    assert one(doctor.time_of_day(root)).level == "ok"


@pytest.mark.parametrize(("said", "level"), [("Power save: on", "warn"), ("Power save: off", "ok")])
def test_a_radio_that_sleeps_is_reported(machine: Machine, said: str, level: str) -> None:
    root = machine({"sys/class/net/wlan0/phy80211": None, "sys/class/net/eth0": None})
    assert list(doctor.radios(root)) == []
    says(root, "usr/sbin/iw", said)
    (finding,) = doctor.radios(root)
    assert (finding.name, finding.level) == ("wlan0", level)


def test_wheels_for_another_python_are_a_failure(machine: Machine) -> None:
    lib = "opt/edgesan/lib/numpy/_core/_multiarray_umath"
    assert (
        doctor.python(
            machine({f"{lib}.cpython-{sys.version_info[0]}{sys.version_info[1]}-x86_64-linux-gnu.so": ""})
        ).level
        == "ok"
    )
    root = machine({"other/" + lib + ".cpython-399-aarch64-linux-gnu.so": ""}) / "other"
    finding = doctor.python(root)
    assert finding.level == "fail"
    assert "cpython-399" in finding.detail
