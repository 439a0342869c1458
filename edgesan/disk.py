"""Writing a file so that a power cut leaves the old one or the new one, never half of either."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(target: Path, content: bytes) -> None:
    """Replace a file entirely or not at all; it is on the disk when this returns (rename(2), fsync(2)).

    Raises:
        OSError: the place cannot be written, or the disk is full; the old file is as it was.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError:
        with suppress(OSError):  # the first error is the one to tell
            part.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
