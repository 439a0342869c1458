"""The command line, as a user meets it: real processes, the real clip, the real model."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import __version__
from edgesan.cli import parser, verb_parsers
from edgesan.config import DEMO_MODEL, Config, found, load
from edgesan.errors import ConfigError
from edgesan.zones import Zone
from tests.capture.webcam import Webcam
from tests.support import CLIP, COMMAND, ROOT, Running, child, free_port, run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly(number: signal.Signals) -> None:
    running = Running("--camera", "demo")
    running.until("ready", True)
    code, said, seconds = running.end(number)
    assert code == 0
    assert "Traceback" not in said
    assert "private gender, useful identity; alpha" in said
    assert "by the best attacker measured" in said
    assert seconds < 5  # generous: the aim is one second


def test_a_signal_ends_a_run_whose_camera_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        camera = f"http://127.0.0.1:{silent.getsockname()[1]}/video"
        running = Running("--camera", camera)
        connection, _ = silent.accept()
        code, said, seconds = running.end()
        connection.close()
        assert (code, "Traceback" in said) == (0, False)
        assert seconds < 4  # opening takes 5 s to give up


def test_the_process_that_sees_raw_pixels_leaves_no_core_dump_and_takes_no_debugger() -> None:
    running = Running("--camera", "demo")
    running.until("ready", True)
    pid = child(running.process.pid, "sanitize").pid
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert next(line.split()[4:6] for line in limits if line.startswith("Max core file size")) == ["0", "0"]
    # what is not dumpable belongs to root in /proc, whoever runs it; and its own word for it (prctl(2))
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
    running.end(signal.SIGTERM)
    own = (
        "import ctypes; from edgesan import isolation; isolation.forbid_dumps();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    said = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "0"


def test_ctrl_c_reaches_both_processes_and_leaves_none_behind() -> None:
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "run", "--camera", "demo", "--out", f"http://127.0.0.1:{port}"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, "Traceback" in said) == (0, False)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_run_ends_by_itself_after_its_frames(tmp_path: Path) -> None:
    done = run("run", "--camera", "demo", "--frames", "10", "--out", str(tmp_path / "walk.mkv"))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert cv2.VideoCapture(str(tmp_path / "walk.mkv")).read()[0]


@pytest.mark.slow
def test_a_run_ends_by_itself_after_its_duration_and_a_file_after_its_end(tmp_path: Path) -> None:
    assert run("run", "--camera", "demo", "--duration", "0.5", "--out", str(tmp_path / "a.mp4")).returncode == 0
    assert run("run", "--camera", str(CLIP), "--size", "160x90", "--out", str(tmp_path / "b.mkv")).returncode == 0
    assert cv2.VideoCapture(str(tmp_path / "b.mkv")).read()[1].shape == (90, 160, 3)


def test_the_dial_turns_a_running_sanitizer() -> None:
    running = Running("--camera", "demo", "--alpha", "0.5")
    running.until("alpha", 0.5)
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/api/alpha",
        b'{"alpha": 1.0}',
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=5):
        pass
    running.until("alpha", 1.0)
    assert running.end()[0] == 0


def test_a_camera_that_is_lost_shows_a_slate_and_comes_back() -> None:
    camera = Webcam()
    running = Running("--camera", f"http://127.0.0.1:{camera.port}/video")
    running.until("camera_up", True)
    camera.close()
    running.until("camera_up", False)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"http://127.0.0.1:{running.port}/snapshot.jpg", timeout=5)
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/stream.mjpg", timeout=5) as stream:
        seen = b""
        while seen.count(b"\xff\xd9") < 2:
            seen += stream.read1(65536)
    slate = cv2.imdecode(np.frombuffer(seen[seen.index(b"\xff\xd8") :], np.uint8), cv2.IMREAD_COLOR)
    assert slate.shape == (48, 64, 3)
    assert np.median(slate) in range(30, 50)  # the slate's own grey
    camera = Webcam(camera.port)
    running.until("camera_up", True)
    camera.close()
    assert running.end()[0] == 0


def test_a_run_warns_that_the_certificate_of_its_camera_is_not_checked(tmp_path: Path) -> None:
    encryption = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    pytest.importorskip("trustme").CA().issue_cert("a.stranger").configure_cert(encryption)
    camera = Webcam(encryption=encryption)
    url = f"https://127.0.0.1:{camera.port}/video"
    running = Running("--camera", url)
    running.until("camera_up", True)
    warnings = running.status()["warnings"]
    code, said, _ = running.end()
    camera.close()
    assert code == 0
    assert "WARNING: the camera's certificate is not checked" in said
    assert isinstance(warnings, list)
    assert any("certificate is not checked" in text for text in warnings)
    (tmp_path / "edgesan.toml").write_text(f'camera = "{url}"\n')
    of_file = run("sanitize", "--config", str(tmp_path / "edgesan.toml"), str(CLIP), str(tmp_path / "out.mkv"))
    assert (of_file.returncode, "certificate" in of_file.stderr) == (0, False), "a file has no camera"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "--camera", "63"), 3, "there is no /dev/video63"),
        (("run", "--camera", "demo", "--model", "pyproject.toml"), 4, "is not signed"),
        (("run", "--camera", "demo", "--allow-unsigned", "--model", "pyproject.toml"), 4, "not an ONNX file"),
        (("run", "--camera", "demo", "--allow-unsigned", "--model", "edgesan/models/yunet.onnx"), 4, "not a sanitizer"),
        (("run", "--camera", "demo", "--alpha", "1.5"), 2, "alpha is 1.5"),
        (("run", "--camera", "demo", "--alpha", "nan"), 2, "alpha is nan"),
        (("run", "--camera", "demo", "--background", "raw"), 2, "choose one of scene, plain"),
        (("run", "--camera", "demo", "--out", "http://0.0.0.0:8080"), 2, "must present a secret"),
        (("run", "--camera", "demo", "--out", "walk.txt"), 2, "expected http://HOST:PORT, https://HOST:PORT, a file"),
        (("run", "--camera", "demo", "--size", "big"), 2, "write it as WIDTHxHEIGHT"),
        (("run", "--camera", "demo", "--config", "nowhere.toml"), 2, "cannot read the configuration"),
        (("run", "--camera", "demo", "--out", "/nowhere/walk.mkv"), 5, "cannot write /nowhere/walk.mkv"),
        (("sanitize", "pyproject.toml", "out.png"), 3, "not a picture that can be read"),
        (("sanitize", "pyproject.toml", "out.mp4"), 3, ""),
        (("sanitize", "pyproject.toml", "pyproject.toml"), 2, "is the input itself"),
        (("sanitize", "edgesan/capture/demo.mp4", "README.md"), 2, "exists: name another output"),
        (("inspect", "nowhere.onnx"), 4, "cannot read the model"),
    ],
)
def test_bad_input_is_a_clear_error_with_its_exit_code(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    done = run(*arguments)
    assert done.returncode == code
    said = done.stderr
    assert said.startswith("edgesan: ")
    assert words in said
    assert not Path("out.png").exists()
    assert not Path("out.mp4").exists()


@pytest.mark.parametrize("verb", ["run", "scene take", "doctor"])
def test_a_wrong_url_of_a_camera_is_one_message_of_every_verb_that_has_a_camera(verb: str) -> None:
    done = run(*verb.split(), "--camera", "ftp://cam/1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgesan: camera is a ftp:// URL: rtsp, rtsps, http, https can be opened\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("snaitize", "a.mp4", "b.mp4"), "there is no `edgesan snaitize`; did you mean sanitize?"),
        (("run", "--camra", "0"), "`edgesan run` has no --camra; did you mean --camera? See `edgesan run --help`"),
        (("doctor", "--jsn=1"), "`edgesan doctor` has no --jsn; did you mean --json?"),
        (("devices", "--colour"), "`edgesan devices` has no --colour; known are --help, --json"),
        (("run", "0"), "'0' is one argument too many"),
        (("help", "sing"), "there is no `edgesan sing`; did you mean sign?"),
    ],
)
def test_a_mistyped_verb_or_option_gets_a_suggestion(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"edgesan: {words}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run --alpha abc", "argument --alpha: invalid float value: 'abc'; see `edgesan run --help`"),
        ("scene foo", "argument step: invalid choice: 'foo'"),
        ("keys nonsense", "argument [new]: invalid choice: 'nonsense'"),
        ("sanitize photo.jpg", "the following arguments are required: OUT; see `edgesan sanitize --help`"),
        ("keys new", "the following arguments are required: NAME; see `edgesan keys new --help`"),
    ],
)
def test_a_missing_or_wrong_value_is_one_line(arguments: str, words: str) -> None:
    done = run(*arguments.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"edgesan: {words}")
    assert done.stderr.endswith(" --help`\n")


def test_ctrl_c_ends_a_verb_by_the_signal_and_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "sanitize", str(CLIP), str(tmp_path / "out.mp4")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".out.part*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, "Traceback" in said) == (-signal.SIGINT, False), said
    assert said.rstrip().endswith("edgesan: interrupted")
    assert list(tmp_path.glob("*out*")) == []


def test_help_explains_all_verbs_or_one() -> None:
    whole = run("--help").stdout
    assert run().stdout == run("help").stdout == whole
    assert run("help", "sign").stdout == run("sign", "--help").stdout
    assert run("--version").stdout == f"edgesan {__version__}\n"


@pytest.mark.parametrize("arguments", ["inspect", "--help", "help run", "completion bash"])
def test_a_reader_who_has_seen_enough_is_no_error(arguments: str) -> None:
    readable, writable = os.pipe()
    os.close(readable)  # as `head` after its last line
    done = subprocess.run(
        [*COMMAND, *arguments.split()], stdout=writable, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writable)
    assert (done.returncode, done.stderr) == (0, "")


COMPLETE = """
eval "$1"; COMP_WORDS=(edgesan $2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_edgesan
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "words"), [("de", {"devices"}), ("run --al", {"--alpha", "--allow-unsigned", "--allow-rollback"})]
)
def test_bash_completes_verbs_and_options(typed: str, words: set[str]) -> None:
    bash = shutil.which("bash")
    assert bash
    script = run("completion", "bash").stdout
    done = subprocess.run([bash, "-c", COMPLETE, "bash", script, typed], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == words


def test_a_picture_is_sanitized_and_counted(tmp_path: Path, clip: list[np.ndarray]) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), clip[0])
    done = run("sanitize", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--stats", "--json")
    report = json.loads(done.stdout)
    assert (report["frames"], report["faces"], report["found"], report["covered"]) == (1, 2, 2, 2)
    out = cv2.imread(str(tmp_path / "out.png"))
    assert out.shape == clip[0].shape
    assert (out == clip[0]).all(2).mean() < 0.05


def test_a_clip_is_sanitized_frame_by_frame(tmp_path: Path, clip: list[np.ndarray]) -> None:
    done = run("sanitize", str(CLIP), str(tmp_path / "out.mp4"), "--stats")
    counts = [int(n) for n in re.findall(r"\d+(?= frames,)|(?<=resolution: )\d+|(?<=sanitized: )\d+", done.stdout)]
    frames, found, covered = counts
    assert frames == len(clip)
    assert covered >= 0.95 * found
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == len(clip)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    assert run("sanitize", str(CLIP), str(target)).returncode == 2
    assert target.read_bytes() == b"precious"
    assert run("sanitize", str(CLIP), str(target), "--force").returncode == 0


def test_inspect_devices_and_doctor_answer_people_and_programs() -> None:
    told = run("inspect")
    assert "known answer: right on this machine" in told.stdout
    assert len(told.stdout.splitlines()) <= 40, "a page"
    facts = json.loads(run("inspect", "--json").stdout)
    assert len(facts["claims"]) < len(run("inspect", "--claims").stdout.splitlines())
    assert facts["tensors"]["sanitized"] == "uint8 [N, 112, 112, 3], RGB"
    assert facts["file"] == str(DEMO_MODEL)
    assert "demo" in run("devices").stdout
    assert json.loads(run("devices", "--json").stdout)[-1]["spec"] == "demo"
    assert "model" in run("doctor").stdout
    assert {f["level"] for f in json.loads(run("doctor", "--json").stdout)} <= {"ok", "warn", "fail"}


def test_every_option_is_on_the_command_line_and_in_the_file_and_none_switches_the_sanitizer_off() -> None:
    run_parser = verb_parsers(parser())["run"]
    options = {action.dest for action in run_parser._actions} - {"help", "config"}
    assert options == {
        "model",
        "camera",
        "out",
        "alpha",
        "background",
        "scene",
        "zone",
        "size",
        "fps",
        "frames",
        "duration",
        "detect_size",
        "detect_every",
        "hold",
        "refresh",
        "threads",
        "token",
        "trusted_keys",
        "allow_unsigned",
        "state_dir",
        "allow_rollback",
        "require_isolation",
        "embed_from",
        "name",
        "announce",
        "log_level",
        "log_format",
        "role",
        "socket",
        "rotate",
        "tls_cert",
        "tls_key",
    }
    assert options == set(Config.__dataclass_fields__)


def test_a_configuration_file_has_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text('camera = "demo"\nalpha = 1\nout = ["a.mkv"]\nzone = ["0,0,0.5,1"]\nmodel = "m.onnx"\n')
    config = load(path, {"alpha": 0.25})
    assert (config.camera, config.alpha, config.out) == ("demo", 0.25, ("a.mkv",))
    assert config.zones == (Zone(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))),)
    assert config.model == Path("m.onnx")


def test_a_polygon_is_a_zone_beside_the_rectangles_on_the_command_line_and_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text(
        'zones = [[[0, 0], [0.5, 0], [0.5, 1]], [[0, 0.1], [0.3, 1], [1, 1], [1, 0]]]\nzone = "0.5,0,0.9,1"\n'
    )
    first, second, third = load(path, {}).zones
    assert first == Zone.rectangle(0.5, 0, 0.5, 1), "what lies beyond the picture is cut off"
    assert second.points == ((0, 0), (0.5, 0), (0.5, 1))
    assert third.points == ((0, 0.1), (0.3, 1), (1, 1), (1, 0))
    assert load(path, {"zone": ("0,0,0.5,0,0.5,1",)}).zones == (second,), "the command line overrides the file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alhpa = 0.5", "unknown key 'alhpa'; did you mean 'alpha'"),
        ('alpha = "high"', "alpha = 'high' has the wrong type: expected a number; privacy dial"),
        ("frames = 1.5", "wrong type: expected a whole number"),
        ("frames = true", "wrong type"),
        ("allow_unsigned = 1", "wrong type: expected true or false"),
        ('allow_unsigned = "yes"', "wrong type"),
        ("frames = 0", "at least 1"),
        ("out = []", "out is empty"),
        ("out = [1]", "out has the wrong type: expected a list of texts"),
        ("camera = 0", "camera has the wrong type: expected a text"),
        (f"frames = 0x{'f' * 5000}", "frames is too large a number"),
        ('zone = ["1,2"]', "x,y,width,height of a rectangle"),
        ('zone = ["0,0,1,1,0"]', "5 numbers"),
        ('zone = ["0,0,1,1,0.5,2"]', "within 0..1"),
        ('zone = ["0,0,0.5,0,1,0"]', "closes nothing"),
        ('zone = ["0,0,1,x"]', "write numbers"),
        ("zones = [[[0, 0], [1, 1]]]", "2 points"),
        ("zones = [[0, 0]]", "a list of polygons"),
        ("zones = 3", "a list of polygons"),
        (f"zones = {[[[0, 0], [1, 0], [1, 1]]] * 17}", "at most 16"),
        (f"zone = {['0,0,1,1'] * 17}", "at most 16"),
        ('name = "a\\nb"', "in one line"),
        (f'name = "{"x" * 65}"', "at most 64 characters"),
        ('zone = ["0,0,2,1"]', "within 0..1"),
        ('out = ["http://127.0.0.1:99999"]', "http://HOST:PORT"),
        ('out = ["http://127.0.0.1/x"]', "nothing after the port"),
        ('embed_from = "home.example"', "the origin of a site"),
        ('embed_from = "https://home.example/"', "the origin of a site"),
        ("embed_from = \"https://*; script-src 'self'\"", "the origin of a site"),
        ('out = ["http://127.0.0.1:1", "http://127.0.0.1:2"]', "more than one"),
        ("alpha = = 1", "is not TOML"),
        ("detect_size = 1", "within 64..4096"),
        ("rotate = 45", "choose one of 0, 90, 180, 270"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert words in str(caught.value)


def test_the_environment_has_every_option_and_stands_between_the_file_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text('camera = "demo"\nalpha = 1\nfps = 5\n')
    given = {
        "ALPHA": "0.25",
        "FPS": "10",
        "FRAMES": "7",
        "OUT": "http://127.0.0.1:8080; walk.mkv",
        "ALLOW_UNSIGNED": "yes",
        "REQUIRE_ISOLATION": "0",
        "STATE_DIR": "/tmp",
        "SIZE": "",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"EDGESAN_{name}", value)
    monkeypatch.setenv("EDGESAN_CAMRA", "1")
    config = load(path, {"fps": 15.0})
    assert (config.camera, config.alpha, config.fps, config.frames) == ("demo", 0.25, 15.0, 7)
    assert config.out == ("http://127.0.0.1:8080", "walk.mkv")
    assert (config.allow_unsigned, config.require_isolation) == (True, False)
    assert (config.state_dir, config.size) == (Path("/tmp"), None)
    assert caplog.messages == ["EDGESAN_CAMRA is no option; did you mean EDGESAN_CAMERA?"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("ALPHA", "high", "a number"), ("FRAMES", "1.5", "a whole number"), ("ALLOW_UNSIGNED", "maybe", "true or false")],
)
def test_a_wrong_variable_is_named(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EDGESAN_{name}", value)
    with pytest.raises(ConfigError, match=f"EDGESAN_{name} is '{value}': expected {words}"):
        load(None, {})


def test_the_configuration_of_the_user_is_found_before_that_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesan.config.SYSTEM_CONFIG", tmp_path / "system.toml")
    home = {"HOME": str(tmp_path)}
    assert found(home) is None
    (tmp_path / "system.toml").touch()
    assert found(home) == found({}) == tmp_path / "system.toml"
    for folder, environment in ((".config", home), ("xdg", home | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")})):
        file = tmp_path / folder / "edgesan" / "edgesan.toml"
        file.parent.mkdir(parents=True)
        file.write_text('camera = "demo"\nalpha = 0.75\nout = "http://0.0.0.0:8080"\n')
        assert found(environment) == file
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    done = run("run", "--frames", "3", "--out", str(tmp_path / "walk.mkv"))
    assert "demo 480x270" in done.stderr
    assert "alpha 0.75" in done.stderr
    assert run("keys").returncode == 0, "what serves nothing needs no token"
    assert "viewers must present a secret" in run("run").stderr


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESAN_TOKEN", "correct-horse-battery")
    assert load(None, {"out": ("http://0.0.0.0:8080",)}).token == "correct-horse-battery"


def test_the_token_that_stands_beside_a_boards_configuration_is_found(tmp_path: Path) -> None:
    (tmp_path / "edgesan.toml").write_text(f'out = "http://0.0.0.0:{free_port()}"\n')
    assert "viewers must present a secret" in run("doctor", "--config", str(tmp_path / "edgesan.toml")).stderr
    (tmp_path / "token.env").write_text("EDGESAN_TOKEN=correct-horse-battery\n")
    told = run("doctor", "--config", str(tmp_path / "edgesan.toml"))
    assert "the port is free" in told.stdout, told.stderr
    assert "correct-horse-battery" not in told.stdout


def test_every_face_of_a_picture_comes_out(tmp_path: Path, clip: list[np.ndarray]) -> None:
    """A picture has no next frame: nobody waits for it."""
    cv2.imwrite(str(tmp_path / "in.png"), np.tile(clip[0], (2, 2, 1)))
    done = run(
        "sanitize", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--stats", "--json", "--detect-size", "960"
    )
    report = json.loads(done.stdout)
    assert report["faces"] == 8
    out = cv2.imread(str(tmp_path / "out.png"))
    quarters = [out[y : y + 270, x : x + 480] for y in (0, 270) for x in (0, 480)]
    assert all((np.abs(quarter.astype(int) - 64).max(2) > 40).mean() > 0.02 for quarter in quarters)
