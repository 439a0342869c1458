"""No way back: the highest version of each model that ever ran here, kept over restarts; an older one is refused.

An older model is rightly signed, and may be known to leak: bringing it back is an attack that a signature does not
stop. The record is `versions.json` in the state folder, `{"model name": version}`. Whoever may write there may lower it:
that is how an owner goes back on purpose. Root takes a trial back there as the folder's owner, the sanitize unit's user,
whose links it must not follow.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgesan import disk
from edgesan.errors import RollbackError

MOST_BYTES: Final = 1_000_000  # of the record


def state_folder(chosen: Path | None, environment: Mapping[str, str]) -> Path:
    """Where edgesan keeps what it must remember: the one chosen, systemd's (STATE_DIRECTORY), or XDG's.

    Raises:
        RollbackError: none is chosen, and this user has no home.
    """
    if chosen is not None:
        return chosen
    if systemd := environment.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])  # systemd.exec(5): several are joined by colons
    xdg = Path(environment.get("XDG_STATE_HOME", ""))
    if xdg.is_absolute():  # the XDG Base Directory Specification has relative ones ignored
        return xdg / "edgesan"
    try:
        return Path.home() / ".local" / "state" / "edgesan"
    except RuntimeError as error:
        raise RollbackError(
            f"there is no place for what edgesan must remember ({error}): name one, --state-dir"
        ) from error


def record(folder: Path) -> Path:
    """The file of the record."""
    return folder / "versions.json"


def check(folder: Path, name: str, version: int) -> bool:
    """Refuse a version below the highest that ran; whether it is above, and must be remembered when it runs.

    Raises:
        RollbackError: it is older, or the record cannot be read.
    """
    highest = _read(record(folder)).get(name, 0)
    if version < highest:
        raise RollbackError(
            f"the model {name} has version {version}, but version {highest} has run here, and older ones are refused:"
            f" they may be known to leak. Take version {highest} or later; to go back on purpose, remove the entry"
            f" {name!r} from {record(folder)}"
        )
    return version > highest


def remember(folder: Path, name: str, version: int) -> None:
    """Check a version as `check` does, and remember it if it is the highest. Nothing is written where it is not.

    Raises:
        RollbackError: it is older, or the record cannot be read or written.
    """
    if not check(folder, name, version):
        return
    try:
        disk.as_owner(folder, lambda: _remember(folder, name, version))
    except OSError as error:
        raise RollbackError(
            f"cannot remember in {record(folder)} that {name} version {version} runs: {error.strerror}; name a folder"
            " that may be written to (--state-dir), or give up the protection against older models (--allow-rollback)"
        ) from error


def _remember(folder: Path, name: str, version: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        if check(folder, name, version):  # again: another run may have been faster
            _write(folder, _read(record(folder)) | {name: version})


def remembered(folder: Path, name: str) -> int | None:
    """The highest version that ran; None where none did. Raises RollbackError."""
    return _read(record(folder)).get(name)


def forget(folder: Path, name: str, before: int | None) -> None:
    """Take back what a version has raised that did not stand its trial: the record is as it was before.

    Raises:
        RollbackError: it cannot be read or written.
    """
    try:
        disk.as_owner(folder, lambda: _forget(folder, name, before))
    except OSError as error:
        raise RollbackError(f"cannot write {record(folder)}: {error.strerror}; run it with sudo") from error


def _forget(folder: Path, name: str, before: int | None) -> None:
    if not record(folder).exists():
        return
    with _locked(folder):
        table = {key: value for key, value in _read(record(folder)).items() if key != name}
        _write(folder, table | ({} if before is None else {name: before}))


def _write(folder: Path, table: dict[str, int]) -> None:
    disk.write_whole(record(folder), (json.dumps(table, indent=2, sort_keys=True) + "\n").encode(), 0o644)


def _read(path: Path) -> dict[str, int]:
    """The record; empty where nothing ever ran.

    Raises:
        RollbackError: it cannot be read, or is not what was written.
    """
    try:
        table = json.loads(disk.read_whole(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RollbackError(
            f"cannot read which versions have run, {path}: {error.strerror}; make it readable, or name another"
            " folder with --state-dir"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path) from error
    if not isinstance(table, dict) or not all(type(version) is int and version > 0 for version in table.values()):
        raise _corrupt(path)
    return table


def _corrupt(path: Path) -> RollbackError:
    return RollbackError(
        f"{path} is damaged: expected JSON, each model's name with the highest version that ran; repair it, or remove it"
        " if you are sure that no older model has been put in place"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time: the record only ever rises (flock(2); the kernel frees it with the process)."""
    with disk.opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
