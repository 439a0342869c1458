"""The log on standard error, of real runs."""

import json
import logging
import re
from pathlib import Path

import pytest

from edgesan import log
from tests.support import run


def clip(folder: Path, *options: str) -> list[str]:
    """What a run of a few frames logs."""
    done = run("run", "--camera", "demo", "--frames", "3", "--out", str(folder / "walk.mkv"), *options)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


def test_each_line_of_the_json_log_is_an_object_of_one_of_the_three_processes(tmp_path: Path) -> None:
    records = [json.loads(line) for line in clip(tmp_path, "--log-format", "json", "-v")]
    assert all(list(record) == ["time", "level", "logger", "pid", "message"] for record in records)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"]) for record in records)
    assert len({record["pid"] for record in records}) == 3
    assert {record["level"] for record in records} == {"debug", "info"}
    assert records[-1]["message"].startswith(str(tmp_path / "walk.mkv"))


@pytest.mark.slow
def test_quiet_says_only_what_is_wrong(tmp_path: Path) -> None:
    assert clip(tmp_path, "--quiet") == []
    assert clip(tmp_path, "-q", "--allow-rollback") == [
        "edgesan: WARNING: older versions of the model may run (allow_rollback): they may be known to leak"
    ]
    assert clip(tmp_path, "--log-level", "error", "--allow-rollback") == []
    assert "started the sanitize process" in "".join(clip(tmp_path, "--verbose"))


@pytest.mark.parametrize("arguments", [("run", "--camera", "63"), ("sign", "nowhere.onnx", "--key", "nowhere")])
def test_an_error_is_an_object_too(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--log-format", "json", "--log-level", "error")
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "error"
    assert done.returncode > 1


def test_an_unexpected_error_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger("edgesan.test").exception("it broke")
    record = json.loads(capsys.readouterr().err)
    assert "ZeroDivisionError" in record["message"]
    log.configure("warning", "text")
    logging.getLogger("edgesan.test").warning("take care")
    logging.getLogger("aiohttp").info("not ours")
    assert capsys.readouterr().err == "edgesan: WARNING: take care\n"
    logging.getLogger().handlers.clear()
