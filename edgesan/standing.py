"""What the owner has set, and what stays so after a restart: the zones that are drawn, privacy, and the scene.

Beside the still (`edgesan.scene`) these are two files in the state folder: `zones.json`, and `privacy`, which says "on"
or "off". Only a parent process writes them (`edgesan.supervisor`). What a file of privacy says that is neither counts
as on: the camera stays off.
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

from edgesan import disk, zones
from edgesan.errors import ConfigError
from edgesan.zones import Zone

MOST_BYTES: Final = 65536  # of a file
OFF: Final = 'switch it off on the page that `edgesan run` serves, or by PUT /api/privacy with {"on": false}'
PRIVACY: Final = f"privacy is on: the camera stays off, and no frame is read; {OFF}"


class Standing(NamedTuple):
    """What holds beside the configuration."""

    zones: tuple[Zone, ...] = ()
    privacy: bool = False  # the camera is off
    alpha: float | None = None  # the dial as it was turned, which does not outlive the run
    recorded: bool = True  # whether `privacy` is so after a restart
    still: bytes | None = None  # the file's bytes of the scene, the same for both processes; None: there is none


NOTHING_SET: Final = Standing()


def zones_file(folder: Path) -> Path:
    """Return the file of the zones."""
    return folder / "zones.json"


def privacy_file(folder: Path) -> Path:
    """Return the file of the switch."""
    return folder / "privacy"


def read(folder: Path) -> Standing:
    """Read what is recorded; where nothing ever was, no zones and no privacy.

    Raises:
        ConfigError: a file cannot be read, or the zones are damaged.
    """
    text, switch = _read(zones_file(folder)), _read(privacy_file(folder))
    try:
        drawn = () if text is None else zones.load(text)
    except ConfigError as error:
        raise ConfigError(
            f"{zones_file(folder)} is damaged: {error}; repair it, or remove it and draw the zones again"
        ) from error
    return Standing(drawn, switch is not None and switch.strip() != b"off")


def record_zones(folder: Path, drawn: tuple[Zone, ...]) -> None:
    """Record the zones that are drawn, whole or not at all.

    Raises:
        ConfigError: the folder cannot be written.
    """
    text = json.dumps([[list(point) for point in zone.points] for zone in drawn])
    _write(zones_file(folder), text.encode() + b"\n")


def record_privacy(folder: Path, *, on: bool) -> None:
    """Record whether privacy is on.

    Raises:
        ConfigError: the folder cannot be written.
    """
    _write(privacy_file(folder), b"on\n" if on else b"off\n")


def _read(path: Path) -> bytes | None:
    try:
        return disk.read_whole(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):  # nothing was recorded there
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; make it readable, or name another folder with --state-dir"
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        disk.as_owner(path.parent, lambda: path.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
        disk.write_whole(path, content, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot record it in {path}: {error.strerror}; name a folder that may be written to, with --state-dir"
        ) from error
