"""`edgesan run` with its real processes: what is killed is started again, and what cannot start again ends the run."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import cv2
import psutil
import pytest

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.supervisor import HUNG_S, LOG_BURST, LOG_RATE, RESTART_S, Log
from edgesan.transmit import sinks
from tests.support import ROOT, child, free_port


class Run:
    """A run of the demo clip, as a user starts it."""

    def __init__(self, folder: Path, *options: str, stdin: int | socket.socket | None = None) -> None:
        self.port = free_port()
        if "--out" not in options:
            options += ("--out", f"http://127.0.0.1:{self.port}")
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "edgesan", "run", "--camera", "demo", *options],
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"XDG_STATE_HOME": str(folder / "state")},
            )

    def said(self) -> str:
        return self.log.read_text()

    def status(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=5) as answer:
                said: dict[str, Any] = json.load(answer)
                return said
        except OSError:
            return {}

    def until(self, test: Callable[[], object], seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := test()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.03)
        return found

    def ready(self) -> "Run":
        self.until(lambda: self.status().get("ready"))
        return self

    def child(self, name: str) -> psutil.Process:
        """One of its two."""
        return self.until(lambda: [c for c in self.process.children() if c.name() == f"edgesan-{name}"[:15]])[0]  # type: ignore[no-any-return]

    def end(self, number: int = signal.SIGTERM) -> int:
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(number)
        return int(self.process.wait(15))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*options: str, **more: Any) -> Run:
        runs.append(Run(tmp_path, *options, **more))
        return runs[-1]

    yield start
    for each in runs:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(10)


def put(running: Run, path: str, content: object) -> tuple[int, bytes]:
    address = f"http://127.0.0.1:{running.port}/api/{path}"
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(address, json.dumps(content).encode(), headers, method="PUT")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return answer.status, answer.read()


def pictures(path: Path) -> int:
    """How many frames a clip holds; each is of the demo's size."""
    with av.open(str(path)) as clip:
        return sum(1 for frame in clip.decode(video=0) if (frame.width, frame.height) == (480, 270))


def test_only_numbers_cross_and_they_are_counted(run: Callable[..., Run]) -> None:
    running = run().ready()
    first = running.status()["wall"]
    running.until(lambda: running.status()["totals"].get("sanitized", 0) > 60)
    status = running.status()
    assert status["wall"]["bytes"] > first["bytes"]
    assert status["wall"]["refused"] == 0
    frames = status["totals"]["sanitized"]
    assert status["wall"]["bytes"] / frames < 500, "two faces of 64 bytes, and a status now and then"
    assert 0 < status["wall"]["bytes_per_s"] < 20_000
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/metrics", timeout=5) as answer:
        assert b"edgesan_wall_bytes_total" in answer.read()
    assert "across the wall: numbers only, at most 2,048 bytes a frame" in running.said()
    assert status["totals"]["encoded"] < 0.75 * status["totals"]["faces"], "not each face in each frame"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_all_cleanly(run: Callable[..., Run], number: int) -> None:
    running = run().ready()
    children = running.process.children()
    assert len(children) == 2
    assert running.end(number) == 0
    assert psutil.wait_procs(children, 5)[1] == []
    assert "Traceback" not in running.said()


def test_a_signal_to_all_processes_ends_all_cleanly(run: Callable[..., Run]) -> None:
    running = run().ready()
    for each in running.process.children():
        each.terminate()
    assert running.end() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_transmit_process_is_started_again_and_the_camera_never_stopped(
    run: Callable[..., Run], number: int
) -> None:
    running = run().ready()
    camera, worker = running.child("sanitize"), running.child("transmit")
    worker.send_signal(number)
    started = time.monotonic()
    running.until(lambda: [c for c in running.process.children() if c.pid not in (camera.pid, worker.pid)])
    assert time.monotonic() - started >= RESTART_S / 2, "a signal to the whole service must not start a new process"
    running.ready()
    assert camera.is_running()
    assert "starting it again" in running.said()
    assert running.end() == 0


@pytest.mark.slow
def test_a_killed_transmit_process_leaves_its_file_and_goes_on_in_another(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mkv"
    running = run("--out", str(clip))
    running.until(lambda: clip.exists() and clip.stat().st_size > 5000)
    running.child("transmit").kill()
    again = tmp_path / "clip-2.mkv"
    running.until(lambda: again.exists() and again.stat().st_size > 5000)
    assert running.end() == 0
    assert clip.stat().st_size > 5000
    assert pictures(again) > 0


def test_a_transmit_process_that_cannot_start_again_ends_the_run(run: Callable[..., Run]) -> None:
    running = run().ready()
    running.child("transmit").kill()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:  # until the killed one has let go of it, which is long before the next one starts
            try:
                taken.bind(("127.0.0.1", running.port))
                break
            except OSError:
                time.sleep(0.01)
        taken.listen()
        assert running.process.wait(15) == 5
    assert "cannot listen on" in running.said()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_sanitize_process_ends_the_run(run: Callable[..., Run], number: int) -> None:
    running = run().ready()
    worker = running.child("transmit")
    running.child("sanitize").send_signal(number)
    assert running.process.wait(15) == 128 + number
    assert not worker.is_running()
    assert f"the sanitize process was killed by signal {int(number)}" in running.said()


def test_the_children_end_with_their_parent(run: Callable[..., Run]) -> None:
    running = run().ready()
    children = running.process.children()
    running.process.kill()
    assert psutil.wait_procs(children, 8)[1] == []


@pytest.mark.slow
def test_a_parent_that_is_killed_at_once_leaves_nobody(run: Callable[..., Run]) -> None:
    for seconds in (0.05, 0.15, 0.3, 0.5):
        running = run()
        time.sleep(seconds)
        children = running.process.children()
        running.process.kill()
        running.process.wait(5)
        assert psutil.wait_procs(children, 8)[1] == []


@pytest.mark.slow
def test_a_stopped_sanitize_process_leaves_nothing_old_as_live(run: Callable[..., Run]) -> None:
    running = run().ready()
    running.child("sanitize").suspend()
    stopped = time.monotonic()
    while time.monotonic() - stopped < 4:
        status = 200
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/snapshot.jpg", timeout=5).close()
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == 503 or time.monotonic() - stopped < 1.6
        time.sleep(0.1)
    wish = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/api/alpha",
        b'{"alpha": 0.5}',
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(wish, timeout=5)
    running.child("sanitize").resume()
    running.ready()


def test_frames_and_duration_end_the_run(run: Callable[..., Run], tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    assert run("--out", str(clip), "--frames", "10").process.wait(30) == 0
    assert 8 <= pictures(clip) <= 10
    started = time.monotonic()
    assert run("--duration", "1").process.wait(30) == 0
    assert time.monotonic() - started < 15


def test_files_can_be_played_and_hold_the_frames(run: Callable[..., Run], tmp_path: Path) -> None:
    paths = [tmp_path / "clip.mkv", tmp_path / "clip.mp4"]
    assert run("--out", str(paths[0]), "--out", str(paths[1]), "--frames", "15").process.wait(30) == 0
    for path in paths:
        capture, count = cv2.VideoCapture(str(path)), 0
        while capture.read()[0]:
            count += 1
        assert 12 <= count <= 15


def test_a_run_that_is_started_again_writes_beside_the_files_that_exist_and_says_how_much(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("clip.mkv", "clip-2.mkv", "clip-3.mkv")]
    paths[0].write_bytes(b"precious")
    for path in paths[1:]:
        running = run("--out", str(paths[0]), "--frames", "5")
        assert running.process.wait(30) == 0
        assert f"transmit -> {path}\n" in running.said()
        frames = pictures(path)
        assert f"{path}: {frames} frames, {path.stat().st_size:,} bytes\n" in running.said()
        assert frames > 0
    assert paths[0].read_bytes() == b"precious"


def test_a_file_that_cannot_be_made_leaves_no_empty_one_behind(run: Callable[..., Run], tmp_path: Path) -> None:
    running = run("--out", str(tmp_path / "other.mkv"), "--out", str(tmp_path / "nowhere" / "clip.mkv"))
    assert running.process.wait(15) == 5
    assert "there is no such folder" in running.said()
    assert list(tmp_path.glob("**/*.mkv")) == []


def test_a_full_disk_ends_the_run_with_a_clear_error_and_the_other_file_whole(
    run: Callable[..., Run], small_disk: Path, tmp_path: Path
) -> None:
    running = run("--out", str(small_disk / "full.mkv"), "--out", str(tmp_path / "good.mp4"))
    assert running.process.wait(60) == 5
    assert f"{small_disk / 'full.mkv'}: the disk is full; make room" in running.said()
    assert pictures(tmp_path / "good.mp4") > 0


def test_a_disk_that_is_full_only_when_the_file_is_finished_is_an_error_too(
    run: Callable[..., Run], small_disk: Path
) -> None:
    running = run("--out", str(small_disk / "clip.mp4"), "--frames", "8", "--fps", "4")
    running.until((small_disk / "clip.mp4").exists)
    with suppress(OSError), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(512))
            filler.flush()
    assert running.process.wait(30) == 5
    assert "the disk is full" in running.said()


def test_a_camera_never_sends_raw_surroundings(run: Callable[..., Run]) -> None:
    running = run("--background", "keep")
    assert running.process.wait(15) == 2
    assert 'write "plain"' in running.said()


@pytest.mark.parametrize("background", ["pixelate", "blur", "black"])
def test_a_background_that_is_gone_names_the_one_that_replaces_it(background: str) -> None:
    with pytest.raises(ConfigError, match=r'it is gone, .* write "plain"'):
        Config(background=background)


def test_a_record_that_cannot_be_written_ends_the_run_with_its_reason(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    running = run("--state-dir", str(tmp_path / "file"))
    assert running.process.wait(15) == 4
    assert "versions.json" in running.said()
    assert "--allow-rollback" in running.said() or "readable" in running.said()


def test_sighup_reads_the_configuration_again_and_a_wrong_one_changes_nothing(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text("alpha = 0.25\n")
    running = run("--config", str(path)).ready()
    camera, server = running.child("sanitize"), running.child("transmit")

    path.write_text('alpha = 0.75\nsocket = "elsewhere.sock"\n')
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: running.status().get("alpha") == 0.75)
    assert running.child("sanitize").pid != camera.pid
    assert server.is_running(), "viewers keep their streams"
    assert "WARNING: socket changed: this takes effect at the next start" in running.said()

    path.write_text("alhpa = 0.5\n")
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "the configuration stays as it was" in running.said())
    assert running.ready().status()["alpha"] == 0.75
    path.write_text('background = "keep"\n')
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "a camera never sends raw surroundings" in running.said())
    assert running.ready().status()["alpha"] == 0.75

    path.write_text('token = "correct-horse-battery"\n')
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: not running.status())  # 401
    running.until(lambda: not server.is_running())
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/readyz", headers={"Authorization": "Bearer correct-horse-battery"}
    )
    running.until(lambda: answers(request))
    assert running.end() == 0


def answers(request: urllib.request.Request) -> bool:
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


def test_a_run_whose_terminal_is_closed_ends(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--out", str(tmp_path / "clip.mkv")]
    process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(theirs)
    assert process.stderr
    process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    assert process.wait(15) == 0
    assert "read again" not in process.stderr.read()
    process.stderr.close()
    os.close(ours)


def test_what_the_sanitize_process_prints_has_no_room_for_a_picture(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    os.write(log._write_fd, b"a line\n" + b"\x1b[2J\xff\x00")
    log.pass_on()
    assert capfd.readouterr().err == "a line\n?[2J\ufffd?"
    os.set_blocking(log._write_fd, False)
    for _ in range(20):
        with suppress(BlockingIOError):
            os.write(log._write_fd, b"x" * 65536)
        log.pass_on()
    said = capfd.readouterr().err
    assert said.count("x") <= LOG_BURST + 5 * LOG_RATE, "and a little for the time that this takes"
    assert sum("prints too much" in message for message in caplog.messages) == 1
    log.close_child_end()
    log.close()


def test_the_process_that_sees_the_camera_inherits_nothing_that_could_hold_a_picture(tmp_path: Path) -> None:
    """Not even a file that whoever started edgesan had open."""
    theirs = os.open(tmp_path / "theirs", os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(theirs, True)
    command = [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--out", str(tmp_path / "clip.mkv")]
    with subprocess.Popen(command, pass_fds=[theirs], stderr=subprocess.DEVNULL, cwd=ROOT) as run:
        try:
            while not ((tmp_path / "clip.mkv").exists() and (tmp_path / "clip.mkv").stat().st_size):
                time.sleep(0.05)
            pid = child(run.pid, "sanitize").pid
            held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        except PermissionError:
            pytest.skip("it is not dumpable: only root may look")
        finally:
            run.terminate()
    os.close(theirs)
    assert not any(place.startswith(str(tmp_path)) for place in held), held
    assert not any(place.startswith("socket:") for place in held), held


def test_standard_input_leads_nowhere_whatever_the_run_was_started_with(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    """A socket, or a file that may be written to, would have room for a picture."""
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("w+") as file:
        for stdin in (theirs, file):
            running = run("--require-isolation", stdin=stdin).ready()
            ends = {Path(f"/proc/{each.pid}/fd/0").readlink() for each in running.process.children()}
            assert ends == {Path("/dev/null")}
            running.end()


@pytest.mark.parametrize("closed", ["<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_nothing(closed: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    command = [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--frames", "10", "--out", str(clip)]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
    assert subprocess.run(shell, cwd=ROOT, env=environment, check=False, timeout=60).returncode == 0
    assert pictures(clip) == 10


def test_privacy_that_is_asked_for_while_the_parent_is_held_up_holds(run: Callable[..., Run], tmp_path: Path) -> None:
    """Its pipe is full of what the sanitize process says with each frame."""
    running = run().ready()
    running.process.suspend()
    time.sleep(2)
    answers: list[tuple[int, bytes]] = []
    asks = threading.Thread(target=lambda: answers.append(put(running, "privacy", {"on": True})))
    asks.start()
    time.sleep(1)
    running.process.resume()
    asks.join()
    assert answers[0][0] == 202
    running.until(lambda: running.status()["privacy"])
    assert (tmp_path / "state" / "edgesan" / "privacy").read_text().strip() == "on"


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_and_started_again(run: Callable[..., Run]) -> None:
    running = run().ready()
    hung = [running.child(name) for name in ("sanitize", "transmit")]
    for each in hung:
        each.suspend()
    gone, alive = psutil.wait_procs(hung, 30)
    assert (len(gone), alive) == (2, [])
    running.ready()
    for name in ("sanitize", "transmit"):
        assert f"the {name} process does not answer for 15 s, and is ended" in running.said()
    running.until(lambda: running.status()["totals"].get("sanitized"))


@pytest.mark.slow
def test_a_run_that_was_frozen_as_a_whole_goes_on_with_the_same_processes(run: Callable[..., Run]) -> None:
    """A container's pause; its parent runs first again."""
    running = run().ready()
    children = running.process.children()
    for each in (running.process, *children):
        each.suspend()
    time.sleep(HUNG_S + 2)
    running.process.resume()
    time.sleep(1)
    for each in children:
        each.resume()
    running.ready()
    assert running.process.children() == children


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    command = [sys.executable, "-m", "edgesan", "run", "--camera", "demo", "--frames", "20", "--out", str(clip), "-v"]
    with Path("/dev/full").open("w") as full:
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
        subprocess.run(command, stderr=full, cwd=ROOT, env=environment, check=False, timeout=60)
    assert pictures(clip) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="root, and a folder of somebody else: needs root")
def test_root_removes_no_file_of_its_own_behind_another_users_link(tmp_path: Path) -> None:
    roots, theirs = tmp_path / "roots", tmp_path / "theirs"
    roots.mkdir(0o700)
    (roots / "clip.mkv").touch()
    theirs.symlink_to(roots)
    os.lchown(theirs, 1000, 1000)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    sinks.remove_empty([theirs / "clip.mkv"])
    assert (roots / "clip.mkv").exists()
