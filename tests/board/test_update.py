"""Another model on a board that runs: real units, a real restart, and the old model again if the frames stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgesan.board import update
from edgesan.config import DEMO_MODEL, Config, load
from edgesan.errors import ConfigError, ModelError
from edgesan.model import rollback
from tests.support import COMMAND, Maker, free_port

pytestmark = pytest.mark.slow  # whole units are started

# Stands for systemctl: ends the sanitize process, waits until it has ended and starts the next one, as its unit would.
RESTART = """
import os, signal, subprocess, sys, time
pid, log, *command = sys.argv[1:]
try:
    old = int(open(pid).read())
    os.kill(old, signal.SIGTERM)
    while open(f"/proc/{old}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)
except (FileNotFoundError, ProcessLookupError):
    pass
with open(log, "a") as file:
    new = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
open(pid, "w").write(str(new.pid))
"""


class Board:
    """Two units, one configuration, one folder of models."""

    def __init__(self, folder: Path, maker: Maker) -> None:
        self.folder, self.maker, self.port = folder, maker, free_port()
        self.models = folder / "models"
        first = self.models / "first"
        first.mkdir(parents=True)
        for source in (maker.model("a.onnx", version=2), maker.folder / "a.onnx.sig"):
            (first / source.name.replace("a.onnx", "model.onnx")).write_bytes(source.read_bytes())
        (self.models / "current").symlink_to("first")
        self.config = folder / "edgesan.toml"
        self.config.write_text(
            f'camera = "demo"\nmodel = "{self.models}/current/model.onnx"\nout = "http://127.0.0.1:{self.port}"\n'
            f'state_dir = "{folder}/state"\nsocket = "{folder}/s"\ntrusted_keys = ["{maker.key.line}"]\n'
        )
        (folder / "token.env").write_text("# of this board\nEDGESAN_TOKEN=abc\n")
        (folder / "restart.py").write_text(RESTART)
        run = [*COMMAND, "run", "--config", str(self.config), "--role"]
        self.restart = [sys.executable, f"{folder}/restart.py", f"{folder}/pid", f"{folder}/log", *run, "sanitize"]
        self._transmit = [*run, "transmit"]
        self.transmit: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        subprocess.run(self.restart, check=True)
        environment = os.environ | {"EDGESAN_TOKEN": "abc"}
        self.transmit = subprocess.Popen(self._transmit, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # A unit that starts late would find `current` changed already, and run what a test is about to refuse.
        while not (self.folder / "state" / "versions.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def install(self, model: Path | str, *more: str) -> subprocess.CompletedProcess[str]:
        restart = " ".join(self.restart)
        command = [*COMMAND, "install", str(model), "--config", str(self.config), "--models", str(self.models)]
        return subprocess.run(
            [*command, "--restart", restart, "--watch", "1", *more], capture_output=True, text=True, check=False
        )

    def version(self) -> int:
        return int(json.loads((self.folder / "state" / "versions.json").read_text())["default"])

    def current(self) -> str:
        return os.readlink(self.models / "current")

    def close(self) -> None:
        if self.transmit is not None:
            self.transmit.kill()
            self.transmit.wait()
        with suppress(ProcessLookupError, FileNotFoundError):  # a test has ended it, or it failed: `log` says why
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A board whose units do not run yet."""
    (tmp_path / "maker").mkdir()
    (tmp_path / "board").mkdir()
    return Board(tmp_path / "board", Maker(tmp_path / "maker", "mine"))


@pytest.fixture
def running(board: Board) -> Iterator[Board]:
    try:
        board.start()
        yield board
    finally:
        board.close()


def test_a_new_model_is_installed_watched_and_kept(running: Board) -> None:
    new = running.maker.model("b.onnx", version=3)
    done = running.install(new)
    assert done.returncode == 0, done.stderr
    assert "default v3" in done.stdout
    assert "was watched for 1 s; the model before: first" in done.stdout
    assert running.current().startswith("default-v3-")
    assert (running.models / running.current() / "model.onnx").read_bytes() == new.read_bytes()
    assert running.version() == 3
    assert sorted(path.name for path in running.models.iterdir()) == ["current", running.current(), "first"]
    again = running.install(new)
    assert again.returncode == 0
    assert "default v3 is what runs already" in again.stdout
    older = running.install(running.maker.model("c.onnx", version=1))
    assert older.returncode == 4
    assert "version 3 has run here" in older.stderr
    assert running.current().startswith("default-v3-")


@pytest.mark.slow
def test_a_model_that_stops_the_frames_is_taken_back_by_itself(running: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first frames come, then the unit ends."""
    assert running.version() == 2
    # The restart that installs it ends soon after; the one that takes it back does not.
    script = running.folder / "restart.py"
    script.write_text(
        "import os, sys\n"
        f"if os.readlink('{running.models}/current') != 'first':\n    sys.argv += ['--duration', '1.5']\n" + RESTART
    )
    config, watching = load(running.config, {"token": "abc"}), update.Watch(600, stall_s=1)
    with pytest.raises(ModelError, match="`current` is first as before, which runs again") as failure:
        update.install(running.maker.model("b.onnx", version=7), config, running.models, running.restart, watching)
    assert "default v7" in str(failure.value)
    assert "was taken back: the sanitize unit does not run for 1 s" in str(failure.value)
    assert running.current() == "first"
    assert running.version() == 2, (
        "what the version that failed has raised is taken back, else the old one could not run"
    )
    assert sorted(path.name for path in running.models.iterdir()) == ["current", "first"]


def test_a_model_whose_watch_the_power_cut_is_taken_back_at_the_next_boot(running: Board) -> None:
    deadline = time.monotonic() + 60
    before, version = running.current(), running.version()
    model = running.maker.model("trial.onnx", version=9)
    command = [*COMMAND, "install", str(model), "--config", str(running.config), "--models", str(running.models)]
    watching = subprocess.Popen(
        [*command, "--restart", " ".join(running.restart), "--watch", "600"], stderr=subprocess.DEVNULL
    )
    while (running.current() == before or running.version() == version) and time.monotonic() < deadline:
        time.sleep(0.1)
    watching.kill()
    watching.wait()
    assert (running.current(), running.version()) != (before, version), "it runs, and nobody watches any more"

    settle = [*COMMAND, "install", "--settle", "--config", str(running.config), "--models", str(running.models)]
    said = subprocess.run(settle, capture_output=True, text=True, check=True).stdout
    assert "was taken back: it was not watched to the end" in said
    assert (running.current(), running.version()) == (before, version)
    assert sorted(p.name for p in running.models.iterdir()) == ["current", before]
    said = subprocess.run(settle, capture_output=True, text=True, check=True).stdout
    assert said == "no model is on trial\n"


@pytest.mark.parametrize(("where", "step"), [(update, "switch"), (shutil, "rmtree"), (rollback, "forget")])
def test_a_power_cut_while_a_model_is_taken_back_leaves_the_rest_to_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: ModuleType, step: str
) -> None:
    config, models, whole = Config(state_dir=tmp_path / "state"), tmp_path / "models", getattr(where, step)
    for folder in ("first", "second"):
        (models / folder).mkdir(parents=True)
    (models / "trial").write_text(json.dumps({"new": "second", "old": "first", "name": "default", "remembered": 1}))
    update.switch(models, "second")
    rollback.remember(tmp_path / "state", "default", 2)

    def cut_after(*arguments: Any, **options: Any) -> None:
        whole(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, step, cut_after)
        with pytest.raises(KeyboardInterrupt):
            update.settle(config, models)
    update.settle(config, models)
    assert sorted(path.name for path in models.iterdir()) == ["current", "first"]
    assert os.readlink(models / "current") == "first"
    assert rollback.remembered(tmp_path / "state", "default") == 1, "else the old one could not run"


def test_a_record_that_cannot_be_written_finds_room_where_the_model_was_that_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    (tmp_path / "trial").write_text(json.dumps({"new": "second", "old": "first", "name": "default", "remembered": 1}))
    update.switch(tmp_path, "second")
    found: list[bool] = []
    monkeypatch.setattr(rollback, "forget", lambda *_: found.append((tmp_path / "second").exists()))
    update.settle(Config(state_dir=tmp_path), tmp_path)
    assert found == [False]


def test_a_note_of_a_trial_that_is_damaged_or_old_takes_nothing_back(board: Board) -> None:
    settle = [*COMMAND, "install", "--settle", "--config", str(board.config), "--models", str(board.models)]
    note = board.models / "trial"
    note.write_text("{")
    done = subprocess.run(settle, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is damaged" in done.stderr
    note.write_text(json.dumps({"new": "another", "old": "older", "name": "default", "remembered": 1}))
    done = subprocess.run(settle, capture_output=True, text=True, check=True)
    assert "not on trial any more" in done.stdout
    assert (board.current(), note.exists()) == ("first", False)
    both = subprocess.run([*settle, str(DEMO_MODEL)], capture_output=True, text=True, check=False)
    assert "name the model to install" in both.stderr


def test_a_unit_that_does_not_start_is_taken_back_at_once(running: Board) -> None:
    script = running.folder / "restart.py"
    script.write_text(
        "import os, sys\n"
        f"if os.readlink('{running.models}/current') != 'first':\n    sys.exit('no such luck')\n" + RESTART
    )
    done = running.install(running.maker.model("b.onnx", version=7))
    assert done.returncode == 4
    assert "failed: no such luck" in done.stderr
    assert "which runs again" in done.stderr, (running.folder / "log").read_text()


def test_what_may_not_run_changes_nothing(board: Board, tmp_path: Path) -> None:
    unsigned = board.maker.model("u.onnx", sign=False, version=9)
    done = board.install(unsigned)
    assert done.returncode == 4
    assert "model.onnx.sig" in done.stderr
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(DEMO_MODEL.read_bytes()[:-100])
    board.maker.sign(cut)
    assert board.install(cut).returncode == 4
    narrow = board.maker.model("n.onnx", version=9, alpha_range=[0.2, 0.3], alpha_default=0.25)
    board.config.write_text(board.config.read_text() + "alpha = 0.9\n")
    assert "alpha is 0.9 here, and this model was made for 0.2..0.3" in board.install(narrow).stderr
    assert board.current() == "first"
    assert sorted(path.name for path in board.models.iterdir()) == ["current", "first"]


# --- the watch, with a clock of its own -------------------------------------------------------------------------------


def status(frames: int, sha256: str = "new", *, up: bool = True) -> dict[str, Any]:
    return {"model": {"sha256": sha256}, "totals": {"sanitized": frames}, "camera_up": up}


def watched(monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any] | None], seconds: float = 3) -> str:
    """Watch a board with these statuses, one every half second; the last one stays."""
    now = [0.0]
    monkeypatch.setattr("edgesan.board.update.time.monotonic", lambda: now[0])
    monkeypatch.setattr("edgesan.board.update.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    statuses = iter(said)
    last: list[dict[str, Any] | None] = [None]

    def look() -> dict[str, Any] | None:
        last[0] = next(statuses, last[0])
        return last[0]

    return update.watch(look, "new", update.Watch(seconds))


def test_frames_that_keep_coming_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [None, {}, status(900, "old"), *(status(n) for n in range(0, 300, 10))]
    assert watched(monkeypatch, said) == ""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([None], "nothing answers where the stream is served for 90 s"),
        ([{}], "the sanitize unit does not run for 90 s"),
        ([status(1000, "old")], "another model runs for 90 s"),
        ([status(0)], "no frame came for 90 s"),
        ([status(5), status(6), status(6)], "no frame came for 10 s"),
        ([status(5), status(6), status(6, up=False)], "the camera is lost for 10 s"),
        ([status(5), status(6), None], "nothing answers where the stream is served for 10 s"),
        ([status(5), status(60), status(2), status(100)], "it ended, and was started again"),
        ([status(5), status(60), status(70, "old")], "another model runs for 10 s"),
    ],
)
def test_frames_that_stop_are_reported(monkeypatch: pytest.MonkeyPatch, said: list[Any], why: str) -> None:
    assert watched(monkeypatch, said, 30) == why


def test_a_board_that_serves_nothing_cannot_be_watched() -> None:
    with pytest.raises(ConfigError, match="could not be watched: `out` names no http"):
        update.status_reader(Config(out=("clip.mkv",)))


def test_the_record_is_as_it_was_before(tmp_path: Path) -> None:
    rollback.forget(tmp_path, "a", None)
    assert list(tmp_path.iterdir()) == []
    rollback.remember(tmp_path, "a", 2)
    rollback.remember(tmp_path, "b", 5)
    before = rollback.remembered(tmp_path, "a")
    rollback.remember(tmp_path, "a", 3)
    rollback.forget(tmp_path, "a", before)
    assert (rollback.remembered(tmp_path, "a"), rollback.remembered(tmp_path, "b")) == (2, 5)
    rollback.forget(tmp_path, "a", None)
    assert rollback.remembered(tmp_path, "a") is None
