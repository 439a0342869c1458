"""The still: a picture of the empty room that the owner took and accepted (`edgesan scene`). The canvas is made of it.

It is a PNG file, read before isolation and decoded after it. Both processes compute its number from the same bytes, so
that a frame names the still that it means. It is never renewed from live pixels by itself: a person who sleeps would
become furniture. The proposal that `edgesan scene take` makes lies beside it, and is not shown until it is accepted.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgesan import disk
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.message import MOST_SIDE
from edgesan.model import rollback

if TYPE_CHECKING:  # numpy must not be loaded before isolation
    from edgesan.frames import Pixels

DEMO: Final = Path(__file__).parent / "capture" / "demo.png"  # the room of the bundled clip
MOST_BYTES: Final = 64_000_000  # of the file
MOST_PIXELS: Final = 40_000_000
LEAST_SIDE: Final = 16
HEAD: Final = struct.Struct(">8s4x4sII")  # of a PNG file: signature, length and name of IHDR, width, height
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Still:
    """The empty room. pixels: uint8 [height, width, 3] in BGR, read-only. id: what a frame calls it, never 0."""

    pixels: "Pixels"
    id: int


def place(config: Config, environment: Mapping[str, str]) -> Path:
    """Return the file of the still in force: the bundled one of the demo, else `scene`, else in the state folder.

    Raises:
        RollbackError: there is no state folder, as this user has no home.
    """
    if config.camera == "demo":
        return DEMO
    return config.scene or rollback.state_folder(config.state_dir, environment) / "scene.png"


def proposed(path: Path) -> Path:
    """Return where the proposal for the still at `path` lies."""
    return path.with_name(f"{path.stem}-proposed.png")


def of_run(config: Config) -> bytes | None:
    """Return the file's bytes of the still that a run shows; None: it shows a flat colour.

    Raises:
        ConfigError: there is a still, but it cannot be read, or is no PNG file.
        RollbackError: as `place`.
    """
    if config.background != "scene":
        return None
    return read(place(config, os.environ))


def read(path: Path) -> bytes | None:
    """Return the bytes of a still, not decoded yet; None if there is no such file.

    Raises:
        ConfigError: it cannot be read, is no PNG file, or is too large.
    """
    try:
        content = disk.read_whole(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read the still {path}: {error.strerror}; make it readable, or remove it: edgesan scene clear"
        ) from error
    check(content, str(path))
    return content


def check(content: bytes, name: str) -> None:
    """Refuse bytes that do not begin as a PNG file of a fair size.

    Raises:
        ConfigError: says what is wrong with the file of that name.
    """
    if len(content) < HEAD.size or not content.startswith(SIGNATURE):
        raise ConfigError(f"the still {name} is no PNG file: take another one (edgesan scene take)")
    _, kind, width, height = HEAD.unpack_from(content)
    sides = min(width, height) >= LEAST_SIDE and max(width, height) <= MOST_SIDE
    if kind != b"IHDR" or not sides or width * height > MOST_PIXELS:
        raise ConfigError(
            f"the still {name} has {width}x{height} pixels: each side must have {LEAST_SIDE}..{MOST_SIDE}, and all"
            f" together at most {MOST_PIXELS:,}; take another one (edgesan scene take)"
        )


def number(content: bytes) -> int:
    """Return what frames call the still with these bytes: four bytes of their SHA-256, never 0, which means none."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") or 1


def decode(content: bytes, name: str = "of this run") -> Still:
    """Decode a still.

    Raises:
        ConfigError: the file is damaged.
    """
    import cv2
    import numpy as np

    check(content, name)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ConfigError(f"the still {name} is damaged: take another one (edgesan scene take)") from error
    if pixels is None:
        raise ConfigError(f"the still {name} is damaged: take another one (edgesan scene take)")
    pixels.flags.writeable = False
    return Still(np.asarray(pixels, np.uint8), number(content))


def load(path: Path) -> Still:
    """Read and decode the still at `path`.

    Raises:
        ConfigError: there is none, it cannot be read, or it is damaged.
    """
    content = read(path)
    if content is None:
        raise ConfigError(f"there is no still at {path}: take one first (edgesan scene take)")
    return decode(content, str(path))
