"""`edgesan install MODEL`: give a running board another sanitizer, and the old one again if the frames stop.

    1. Copy the model beside the others, into a folder of its own, and verify the copy: its signature, its known answer,
       and that it is not older than what ran.
    2. Switch the link `current` to that folder in one step (rename(2)), and restart the sanitize unit.
    3. Watch it for a minute: the status must name these very bytes, and sanitized frames must keep coming.
    4. If they do not, switch back, restart, and say so. The record of versions is set back, too: it would refuse the
       old model as older.

The model on trial is written down before step 2, in the file `trial` beside `current`. So the next boot takes it back
after a power cut before the end of step 3 (`settle`, run by edgesan-settle.service before the sanitize unit starts).
"""

import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgesan import disk
from edgesan.config import SERVERS, Config, http_address, load, of_board
from edgesan.errors import ConfigError, ModelError, SinkError
from edgesan.model import rollback, signing
from edgesan.model.load import Model, load_model, read

LOOK_S: Final = 0.5  # between two looks at the status
TRIAL: Final = "trial"
RESTART: Final = "systemctl restart edgesan-sanitize.service"
RESTART_BOTH: Final = f"{RESTART} edgesan-transmit.service"
CONFIG_MODE: Final = 0o644
ReadStatus = Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Watch:
    """How long a new model is watched, and how long no frame may come, in seconds."""

    seconds: float
    first_s: float = 90.0  # until the first frame: a small board takes its time to start
    stall_s: float = 10.0  # between two frames


@dataclass(frozen=True)
class Trial:
    """The model on trial: its folder, the folder before, its name, and the version that was recorded before."""

    new: str
    old: str | None
    name: str
    remembered: int | None


def install(source: Path, config: Config, models: Path, restart: list[str], watching: Watch) -> str:
    """Install a model, watch it, and take it back if the frames stop.

    Args:
        source: the model file, with its signature beside it.
        config: the board's: where viewers look, which keys are trusted, and where versions are recorded.
        models: the folder that holds `current`.
        restart: the command that restarts the sanitize unit.
        watching: how long to watch it.

    Returns:
        What was done, in a line.

    Raises:
        ModelError: it may not run here, or ran and was taken back.
        ConfigError: no server is configured to watch it by, or the configured alpha does not suit the model.
        SinkError: the folder cannot be written.
    """
    read_status = status_reader(config)
    state = rollback.state_folder(config.state_dir, os.environ)
    settle(config, models)  # an earlier one whose watch was cut short
    try:
        new, loaded = _copy(source, config, models)
        facts = loaded.metadata
        disk.as_owner(state, lambda: rollback.check(state, facts.name, facts.version))
        link = models / "current"
        old = os.readlink(link) if link.is_symlink() else None
        if old == new.name:
            return f"{facts.name} v{facts.version} is what runs already"
        before = disk.as_owner(state, lambda: rollback.remembered(state, facts.name))
        trial = Trial(new.name, old, facts.name, before)
        disk.write_whole(models / TRIAL, json.dumps(dataclasses.asdict(trial)).encode())
        switch(models, new.name)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or models}: {error.strerror}; run it with sudo") from error
    name = f"{facts.name} v{facts.version} ({loaded.sha256[:8]})"
    failure = _restart(restart) or watch(read_status, loaded.sha256, watching)
    if not failure:
        (models / TRIAL).unlink()
        for folder in models.iterdir():  # the one before stays, so that a person can go back to it
            if folder.is_dir() and not folder.is_symlink() and folder.name not in (new.name, old):
                shutil.rmtree(folder)
        return f"{name} runs, and was watched for {watching.seconds:g} s; the model before: {old or 'none'}"
    if old is None:
        (models / TRIAL).unlink()
        raise ModelError(f"{name} is in place, but {failure}; there is no other model to go back to")
    _take_back(models, state, trial, old)
    again = _restart(restart) or watch(read_status, None, dataclasses.replace(watching, seconds=LOOK_S))
    after = f"but {again}: see journalctl -u edgesan-sanitize" if again else "which runs again"
    raise ModelError(f"{name} was taken back: {failure}; `current` is {old} as before, {after}")


def configure(content: bytes, path: Path, restart: list[str], watching: Watch) -> str:
    """Give a running board another configuration, watch it, and put the old one back if the frames stop.

    Args:
        content: the new configuration, TOML.
        path: the file of the old one.
        restart: the command that restarts both units.
        watching: how long to watch them.

    Returns:
        What was done, in a line.

    Raises:
        ConfigError: it is wrong, or the frames stopped and the old one is back.
        SinkError: the file cannot be written.
    """
    try:
        disk.own(path.parent)
        old = path.read_bytes()
        if old == content:
            return f"{path} is as it is in the repository"
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder, path.name)
            new.write_bytes(content)
            read_status = status_reader(load(new, of_board(path)))
        disk.write_whole(path, content, CONFIG_MODE)
        failure = _restart(restart) or watch(read_status, None, watching)
        if not failure:
            return f"{path} has changed, and was watched for {watching.seconds:g} s"
        disk.write_whole(path, old, CONFIG_MODE)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or path}: {error.strerror}; run it with sudo") from error
    again = _restart(restart)
    after = f"but {again}" if again else "and the units were started again with it"
    raise ConfigError(f"the new configuration was taken back: {failure}; {path} is as before, {after}")


def settle(config: Config, models: Path) -> str:
    """Take back a model whose watch was cut short; to be run at boot, before the sanitize unit starts.

    Returns:
        What was done, in a line.

    Raises:
        ConfigError: this is root, and another user may change the folder.
        SinkError: the folder cannot be read or written.
    """
    try:
        disk.own(models)
        if not (models / TRIAL).exists():
            return "no model is on trial"
        trial = Trial(**json.loads((models / TRIAL).read_bytes()))
        # The old one is current already if the power failed while the new one was taken back: the rest is still to do.
        if trial.old is None or os.readlink(models / "current") not in (trial.new, trial.old):
            (models / TRIAL).unlink()
            return f"{trial.new} is not on trial any more"
        _take_back(models, rollback.state_folder(config.state_dir, os.environ), trial, trial.old)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or models}: {error.strerror}; run it with sudo") from error
    except (ValueError, TypeError) as error:
        raise SinkError(f"{models / TRIAL} is damaged: check which model `current` is, and remove that file") from error
    return f"{trial.new} was taken back: it was not watched to the end; `current` is {trial.old} as before"


def _take_back(models: Path, state: Path, trial: Trial, old: str) -> None:
    """Make the old model current again, and leave nothing of the new one. Raises OSError."""
    switch(models, old)
    shutil.rmtree(models / trial.new, ignore_errors=True)  # on a full disk, this makes room for the record
    rollback.forget(state, trial.name, trial.remembered)
    (models / TRIAL).unlink()  # last: until then, the next boot does it all again


def _copy(source: Path, config: Config, models: Path) -> tuple[Path, Model]:
    """Copy a model into a folder of its own, and verify it there: nobody can change it between the check and the run.

    Raises:
        ModelError: it may not run here.
        ConfigError: the configured alpha is out of its range.
        OSError: the folder cannot be written.
    """
    content = read(source)
    signature = signing.signature_path(source)
    part = models / ".new"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with disk.opened(part) as opened:
            os.fchmod(opened, 0o755)  # the sanitize unit's user reads it, whatever the umask says
        disk.write_whole(part / "model.onnx", content, 0o644)
        if signature.exists():
            disk.write_whole(part / "model.onnx.sig", signing.read(signature), 0o644)
        unsigned, keys = config.allow_unsigned, config.trusted_keys
        loaded = load_model(part / "model.onnx", config.threads, keys, allow_unsigned=unsigned)
        low, high = loaded.metadata.alpha_range
        if config.alpha is not None and not low <= config.alpha <= high:
            made = f"this model was made for {low:g}..{high:g}"
            raise ConfigError(f"alpha is {config.alpha:g} here, and {made}: change it first")
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", loaded.metadata.name)[:40].lstrip(".")
        folder = models / f"{plain}-v{loaded.metadata.version}-{hashlib.sha256(content).hexdigest()[:12]}"
        if not folder.exists():
            part.rename(folder)
        return folder, loaded
    finally:
        shutil.rmtree(part, ignore_errors=True)


def switch(models: Path, name: str) -> None:
    """Point the link `current` elsewhere, in one step; it is on the disk when this returns. Raises OSError."""
    part = models / ".current.new"
    part.unlink(missing_ok=True)
    part.symlink_to(name)
    part.replace(models / "current")
    folder = os.open(models, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _restart(command: list[str]) -> str:
    """Run the command; return why it failed, or nothing."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    return f"`{' '.join(command)}` failed: {done.stderr.strip()}" if done.returncode else ""


def watch(read_status: ReadStatus, sha256: str | None, watching: Watch) -> str:
    """Watch whether sanitized frames keep coming; return why not, or nothing.

    Args:
        read_status: returns the status as viewers see it; None while nothing answers.
        sha256: of the model that must run; None: any.
        watching: how long.
    """
    begun: float | None = None
    last, newest_s = -1, time.monotonic()
    while True:
        now_s, status, reason = time.monotonic(), read_status(), "nothing answers where the stream is served"
        if status is not None:
            runs = status.get("model", {}).get("sha256")
            frames = status.get("totals", {}).get("sanitized", 0)
            if runs is None:
                reason = "the sanitize unit does not run"
            elif sha256 not in (None, runs):
                reason = "another model runs"
            else:
                reason = "no frame came" if status.get("camera_up") else "the camera is lost"
                if status.get("privacy"):
                    reason = "privacy is on, and the camera off"
                if begun is not None and frames < last:
                    return "it ended, and was started again"
                if frames > last >= 0 or (last < 0 and frames):
                    begun, newest_s = begun or now_s, now_s
                last = frames
        if begun is not None and now_s - begun >= watching.seconds:
            return ""
        patience_s = watching.first_s if begun is None else watching.stall_s
        if now_s - newest_s > patience_s:
            return f"{reason} for {patience_s:g} s"
        time.sleep(LOOK_S)


def status_reader(config: Config) -> ReadStatus:
    """Return a function that reads the status as a viewer on this machine does.

    Raises:
        ConfigError: no server is configured.
    """
    served = next((out for out in config.out if out.startswith(SERVERS)), None)
    if served is None:
        raise ConfigError("the new model could not be watched: `out` names no http:// or https:// server")
    host, port = http_address(served)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    encryption = None
    if served.startswith("https://"):
        encryption = ssl.create_default_context(cafile=config.tls_cert)  # its own, whatever name is in it
        encryption.check_hostname = False
        encryption.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}

    def read_status() -> dict[str, Any] | None:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        if encryption:
            connection = http.client.HTTPSConnection(host, port, timeout=5, context=encryption)
        try:
            connection.request("GET", "/api/status", headers=headers)
            answer = connection.getresponse()
            status = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return status if answer.status == 200 and isinstance(status, dict) else None

    return read_status
