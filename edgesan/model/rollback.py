"""Protection against rollback: a record of the highest version of each model that ran here; older ones are refused.

An older model has a valid signature, and may be known to leak: bringing it back is an attack that a signature does not
stop. The record is `versions.json` in the state folder, `{"model name": version}`. Users who may write there may lower
it: that is how an owner goes back on purpose. After a trial that failed, root lowers it as the folder's owner, the user
of the sanitize unit, because root must not follow links of that user.
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


def state_folder(chosen: Path | None, environment: Mapping[str, str], *, transmits: bool = False) -> Path:
    """Return the folder of the record: the chosen one, systemd's (STATE_DIRECTORY), or XDG's.

    Args:
        chosen: `state_dir`.
        environment: the variables.
        transmits: this is for the transmit unit. It shares its configuration with the sanitize unit, whose folder is
            the chosen one, so that systemd's comes first.

    Raises:
        RollbackError: none is chosen, and this user has no home.
    """
    systemd = environment.get("STATE_DIRECTORY")
    if chosen is not None and not (transmits and systemd):
        return chosen
    if systemd:
        return Path(systemd.split(":")[0])  # systemd.exec(5): several are joined by colons
    xdg = Path(environment.get("XDG_STATE_HOME", ""))
    if xdg.is_absolute():  # the XDG Base Directory Specification says to ignore relative paths
        return xdg / "edgesan"
    try:
        return Path.home() / ".local" / "state" / "edgesan"
    except RuntimeError as error:
        raise RollbackError(
            f"there is no folder for the record of model versions ({error}): name one with --state-dir"
        ) from error


def record(folder: Path) -> Path:
    """Return the file of the record."""
    return folder / "versions.json"


def check(folder: Path, name: str, version: int) -> bool:
    """Refuse a version below the highest that ran, and return whether it is above, and so must be recorded.

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
    """Check a version as `check` does, and record it if it is higher. Otherwise nothing is written.

    Raises:
        RollbackError: it is older, or the record cannot be read or written.
    """
    if not check(folder, name, version):
        return
    try:
        disk.as_owner(folder, lambda: _remember(folder, name, version))
    except OSError as error:
        raise RollbackError(
            f"cannot record in {record(folder)} that {name} version {version} runs: {error.strerror}; name a folder"
            " that may be written to (--state-dir), or give up the protection against older models (--allow-rollback)"
        ) from error


def _remember(folder: Path, name: str, version: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        if check(folder, name, version):  # again: another run may have recorded a higher one
            _write(folder, _read(record(folder)) | {name: version})


def remembered(folder: Path, name: str) -> int | None:
    """Return the highest version that ran, or None. Raises RollbackError."""
    return _read(record(folder)).get(name)


def forget(folder: Path, name: str, before: int | None) -> None:
    """Restore the record of a model after a trial that failed: `before` is the version of before.

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
    """Read the record; it is empty if nothing ever ran.

    Raises:
        RollbackError: it cannot be read, or is not what was written.
    """
    try:
        table = json.loads(disk.read_whole(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RollbackError(
            f"cannot read the record of model versions, {path}: {error.strerror}; make it readable, or name another"
            " folder with --state-dir"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path) from error
    if not isinstance(table, dict) or not all(type(version) is int and version > 0 for version in table.values()):
        raise _corrupt(path)
    return table


def _corrupt(path: Path) -> RollbackError:
    return RollbackError(
        f"{path} is damaged: expected JSON, each model's name with the highest version that ran; repair it, or remove"
        " it if you are sure that no older model has been put in place"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process write at a time (flock(2); the kernel unlocks when the process ends)."""
    with disk.opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
