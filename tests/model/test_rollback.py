"""The record of model versions: no model runs that is older than one that ran."""

import json
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgesan import pipeline
from edgesan.board import doctor
from edgesan.errors import RollbackError
from edgesan.model import inspect, rollback
from edgesan.model.load import load_model
from tests.support import Maker, run


def test_a_rolled_back_model_is_refused(tmp_path: Path) -> None:
    rollback.remember(tmp_path, "default", 3)
    rollback.remember(tmp_path, "default", 3)
    with pytest.raises(RollbackError) as caught:
        rollback.remember(tmp_path, "default", 2)
    said = str(caught.value)
    assert "default has version 2, but version 3 has run here" in said
    assert f"remove the entry 'default' from {tmp_path / 'versions.json'}" in said
    rollback.remember(tmp_path, "another", 1)
    assert json.loads(rollback.record(tmp_path).read_text()) == {"another": 1, "default": 3}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xff",
        b'{"default": "3"}',
        b'{"default": true}',
        b'{"default": 0}',
        b'{"default": 1.5}',
        b'{"default": null}',
        b"[" * 10**5,
    ],
)
def test_a_damaged_record_is_an_error_and_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    rollback.record(tmp_path).write_bytes(content)
    with pytest.raises(RollbackError, match="is damaged: expected JSON"):
        rollback.remember(tmp_path, "default", 9)
    assert rollback.record(tmp_path).read_bytes() == content


def test_a_record_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    rollback.record(tmp_path).mkdir()
    with pytest.raises(RollbackError, match="cannot read the record of model versions"):
        rollback.remember(tmp_path, "default", 9)


def test_a_record_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(RollbackError, match=r"cannot record in /proc/edgesan/versions.json .*--allow-rollback"):
        rollback.remember(Path("/proc/edgesan"), "default", 9)


def test_two_that_start_at_once_lose_no_version(tmp_path: Path) -> None:
    def start(version: int) -> None:
        for name in "abc":
            with suppress(RollbackError):  # somebody was faster with a later one
                rollback.remember(tmp_path, name, version)

    threads = [threading.Thread(target=start, args=(version,)) for version in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(rollback.record(tmp_path).read_text()) == {"a": 16, "b": 16, "c": 16}


@pytest.mark.parametrize(
    ("chosen", "environment", "folder"),
    [
        (Path("/a"), {"STATE_DIRECTORY": "/b"}, Path("/a")),
        (None, {"STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/d"}, Path("/b")),
        (None, {"XDG_STATE_HOME": "/d"}, Path("/d/edgesan")),
        (None, {"XDG_STATE_HOME": "relative"}, Path.home() / ".local/state/edgesan"),
        (None, {}, Path.home() / ".local/state/edgesan"),
    ],
)
def test_the_record_lies_where_state_lies(chosen: Path | None, environment: dict[str, str], folder: Path) -> None:
    assert rollback.state_folder(chosen, environment) == folder


def test_only_a_trusted_signature_raises_the_record_and_every_model_is_held_to_it(maker: Maker) -> None:
    """Else any unsigned file of version 999 could lock the signed models out."""
    versions = maker.folder / "state" / "versions.json"

    def hold(path: Path, **changes: Any) -> None:
        c = maker.config(path, **changes)
        loaded = load_model(path, trusted_keys=c.trusted_keys, allow_unsigned=c.allow_unsigned)
        pipeline.hold_version(c, loaded, None)

    hold(maker.model("usurper.onnx", sign=False, version=999), allow_unsigned=True)
    assert not versions.exists()
    hold(maker.model(version=2))
    assert json.loads(versions.read_text()) == {"default": 2}
    old = maker.model("old.onnx", sign=False, version=1)
    with pytest.raises(RollbackError):
        hold(old, allow_unsigned=True)
    hold(old, allow_unsigned=True, allow_rollback=True)
    assert json.loads(versions.read_text()) == {"default": 2}


def test_a_model_that_is_only_looked_at_has_not_run(maker: Maker) -> None:
    asked = maker.config(maker.model(version=7))
    inspect.facts(asked)
    assert [f.level for f in (doctor.signature(asked), doctor.model(asked)) if f] == ["ok", "ok"]
    assert not (maker.folder / "state").exists()


def test_the_record_survives_restarts(maker: Maker, picture: Path, tmp_path: Path) -> None:
    def start(path: Path) -> subprocess.CompletedProcess[str]:
        options = ("--model", str(path), "--state-dir", str(tmp_path / "state"), *maker.options)
        return run("sanitize", str(picture), str(tmp_path / "out.png"), "--force", *options)

    old, new = maker.model("old.onnx", version=1), maker.model("new.onnx", version=2)
    assert [start(path).returncode for path in (old, new)] == [0, 0]
    refused = start(old)
    assert refused.returncode == 4
    assert "default has version 1, but version 2 has run here" in refused.stderr
    walk = (
        "--camera",
        "demo",
        "--frames",
        "2",
        "--out",
        str(tmp_path / "walk.mkv"),
        "--state-dir",
        str(tmp_path / "state"),
    )
    assert run("run", "--model", str(old), *maker.options, *walk).returncode == 4
    (tmp_path / "state" / "versions.json").unlink()  # the owner goes back on purpose
    assert start(old).returncode == 0


def test_a_read_only_disk_is_told_unless_it_knows_the_version(maker: Maker, picture: Path, tmp_path: Path) -> None:
    state, path = tmp_path / "frozen", maker.model(version=2)
    state.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this kernel lets nobody mount a read-only disk")

    def frozen(*arguments: str) -> subprocess.CompletedProcess[str]:
        freeze = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = [sys.executable, "-m", "edgesan", *arguments, "--model", str(path), "--state-dir", str(state)]
        return subprocess.run(
            [*unshare, "sh", "-c", freeze, str(state), *command, *maker.options],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    sanitize = ("sanitize", str(picture), str(tmp_path / "out.png"), "--force")
    refused = frozen(*sanitize)
    assert (refused.returncode, "Read-only file system" in refused.stderr) == (4, True), refused.stderr
    assert "--allow-rollback" in refused.stderr
    assert f"{state} cannot be written" in frozen("doctor").stdout
    assert frozen(*sanitize, "--allow-rollback").returncode == 0
    rollback.remember(state, "default", 2)  # as an image is provisioned
    assert frozen(*sanitize).returncode == 0


def test_the_doctor_foresees_a_refused_rollback(maker: Maker) -> None:
    asked = maker.config(maker.model(version=1))
    rollback.remember(maker.folder / "state", "default", 2)
    assert doctor.model(asked).level == "fail"
    assert "version 2 has run here" in doctor.model(asked).detail
    assert doctor.model(maker.config(asked.model, allow_rollback=True)).level == "warn"
