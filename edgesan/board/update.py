"""`edgesan install MODEL`: another sanitizer for a board that runs, and the old one again if the frames stop.

    1. copy it beside the others, in a folder of its own; verify the copy: signature, known answer, not older than what ran
    2. switch `current` to that folder in one step (rename(2)), and restart the sanitize unit
    3. watch it: the status must name these very bytes, and sanitized frames must keep coming, for a minute
    4. if they do not, switch back, restart, and say so. What the new version has raised in the record of versions is
       taken back with it, else the old one would be refused as older

What is on trial is written down before 2, in `trial` beside `current`: after a power cut before the end of 3, the next boot
takes it back (`settle`, by edgesan-settle.service), before the sanitize unit starts.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgesan import disk
from edgesan.config import SERVERS, Config, http_address
from edgesan.errors import ConfigError, ModelError, SinkError
from edgesan.model import rollback, signing
from edgesan.model.load import Model, load_model, read

FIRST_S: Final = 90.0  # until the first frame: a small board takes its time to start
STALL_S: Final = 10.0  # without a new frame for so long, they have stopped
LOOK_S: Final = 0.5
TRIAL: Final = "trial"
RESTART: Final = "systemctl restart edgesan-sanitize.service"
Look = Callable[[], dict[str, Any] | None]


def install(source: Path, config: Config, models: Path, restart: list[str], seconds: float) -> str:
    """All of it; the report in a line.

    Args:
        source: the model file, its signature beside it.
        config: of the board: where viewers look, which keys are trusted, what is remembered.
        models: the folder with `current` in it.
        restart: the command that restarts the sanitize unit.
        seconds: to watch it for.

    Raises:
        ModelError: it may not run here, or ran and was taken back. ConfigError: there is nothing to watch it by, or alpha
            does not suit it. SinkError: the folder cannot be written.
    """
    look = viewer(config)
    state = rollback.state_folder(config.state_dir, os.environ)
    settle(config, models)  # an earlier one whose watch was cut short
    try:
        new, facts = place(source, config, models)
        rollback.check(state, facts.metadata.name, facts.metadata.version)
        link = models / "current"
        old = os.readlink(link) if link.is_symlink() else None
        if old == new.name:
            return f"{facts.metadata.name} v{facts.metadata.version} is what runs already"
        remembered = rollback.remembered(state, facts.metadata.name)
        trial = {"new": new.name, "old": old, "name": facts.metadata.name, "remembered": remembered}
        disk.write_whole(models / TRIAL, json.dumps(trial).encode())
        switch(models, new.name)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or models}: {error.strerror}; run it with sudo") from error
    name = f"{facts.metadata.name} v{facts.metadata.version} ({facts.sha256[:8]})"
    failure = _restart(restart) or watch(look, facts.sha256, seconds)
    if not failure:
        (models / TRIAL).unlink()
        for folder in models.iterdir():  # the one before stays, to go back to by hand
            if folder.is_dir() and not folder.is_symlink() and folder.name not in (new.name, old):
                shutil.rmtree(folder)
        return f"{name} runs, and was watched for {seconds:g} s; the one before: {old or 'none'}"
    if old is None:
        (models / TRIAL).unlink()
        raise ModelError(f"{name} is in place, but {failure}; there is no other model to go back to")
    back(models, state, trial)
    again = _restart(restart) or watch(look, None, LOOK_S)
    after = f"but {again}: see journalctl -u edgesan-sanitize" if again else "which runs again"
    raise ModelError(f"{name} was taken back: {failure}; `current` is {old} as before, {after}")


def back(models: Path, state: Path, trial: dict[str, Any]) -> None:
    """Take back what is on trial: the old model is current again, and nothing is left of the new one. Raises OSError."""
    switch(models, trial["old"])
    rollback.forget(state, trial["name"], trial["remembered"])
    shutil.rmtree(models / trial["new"], ignore_errors=True)
    (models / TRIAL).unlink()


def settle(config: Config, models: Path) -> str:
    """Take back a model whose watch was cut short; what was done, in a line. For the boot, before the sanitize unit starts.

    Raises:
        ConfigError: the folder is not root's alone, and this is root. SinkError: it cannot be read or written.
    """
    try:
        disk.own(models)
        if not (models / TRIAL).exists():
            return "no model is on trial"
        trial = json.loads((models / TRIAL).read_bytes())
        if trial["old"] is None or os.readlink(models / "current") != trial["new"]:
            (models / TRIAL).unlink()
            return f"{trial['new']} is not on trial any more"
        back(models, rollback.state_folder(config.state_dir, os.environ), trial)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or models}: {error.strerror}; run it with sudo") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SinkError(f"{models / TRIAL} is damaged: look which model `current` is, and remove that file") from error
    return f"{trial['new']} was taken back: it was not watched to the end; `current` is {trial['old']} as before"


def place(source: Path, config: Config, models: Path) -> tuple[Path, Model]:
    """A copy in a folder of its own, verified there: nobody can change it between the look and the run.

    Raises:
        ModelError: it may not run here. ConfigError: its dial does not reach the configuration's alpha. OSError.
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
        loaded = load_model(
            part / "model.onnx", config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned
        )
        low, high = loaded.metadata.alpha_range
        if config.alpha is not None and not low <= config.alpha <= high:
            raise ConfigError(
                f"alpha is {config.alpha:g} here, and this model was made for {low:g}..{high:g}: change it first"
            )
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", loaded.metadata.name)[:40].lstrip(".")
        folder = models / f"{plain}-v{loaded.metadata.version}-{hashlib.sha256(content).hexdigest()[:12]}"
        if not folder.exists():
            part.rename(folder)
        return folder, loaded
    finally:
        shutil.rmtree(part, ignore_errors=True)


def switch(models: Path, name: str) -> None:
    """Point `current` elsewhere, in one step; it is on the disk when this returns. Raises OSError."""
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
    """Empty, or why it did not start."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    return f"`{' '.join(command)}` failed: {done.stderr.strip()}" if done.returncode else ""


def watch(look: Look, sha256: str | None, seconds: float, stall_s: float = STALL_S, first_s: float = FIRST_S) -> str:
    """Whether sanitized frames keep coming for so long: empty, or why not.

    Args:
        look: the status as the viewers see it; None while nobody answers.
        sha256: of the model that must run; None: any.
    """
    begun: float | None = None
    last, newest_s = -1, time.monotonic()
    while True:
        now_s, status, reason = time.monotonic(), look(), "nothing answers where the stream is served"
        if status is not None:
            runs = status.get("model", {}).get("sha256")
            frames = status.get("totals", {}).get("sanitized", 0)
            if runs is None:
                reason = "the sanitize unit does not run"
            elif sha256 not in (None, runs):
                reason = "another model runs"
            else:
                reason = "no frame came" if status.get("camera_up") else "the camera is lost"
                if begun is not None and frames < last:
                    return "it ended, and was started again"
                if frames > last >= 0 or (last < 0 and frames):
                    begun, newest_s = begun or now_s, now_s
                last = frames
        if begun is not None and now_s - begun >= seconds:
            return ""
        patience = first_s if begun is None else stall_s
        if now_s - newest_s > patience:
            return f"{reason} for {patience:g} s"
        time.sleep(LOOK_S)


def viewer(config: Config) -> Look:
    """A look at the status, as a viewer of this machine has it.

    Raises:
        ConfigError: nothing is served that could be looked at.
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

    def look() -> dict[str, Any] | None:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=5, context=encryption)
            if encryption
            else http.client.HTTPConnection(host, port, timeout=5)
        )
        try:
            connection.request(
                "GET", "/api/status", headers={"Authorization": f"Bearer {config.token}"} if config.token else {}
            )
            answer = connection.getresponse()
            status = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return status if answer.status == 200 and isinstance(status, dict) else None

    return look
