"""The request: all that crosses back, from the process that serves the network to the one that sees the camera.

Numbers only, in a fixed layout:

    alpha      version, kind | the dial, a float64
    privacy    version, kind | 1: close the camera, 0: open it | a number
    zones      version, kind | the zones that are drawn, as numbers (`edgesan.zones.pack`)

The process that serves the network is the one that an attacker reaches first, so `parse` is the one place where these
bytes become values: it returns a request that needs no second check, or it raises `Reject`.
"""

import struct
from dataclasses import dataclass
from typing import Final

from edgesan import zones
from edgesan.errors import ConfigError, Reject
from edgesan.zones import Zone

VERSION: Final = 1
ALPHA: Final = 1
PRIVACY: Final = 2
ZONES: Final = 3
MOST_BYTES: Final = 2 + zones.MOST_BYTES  # below PIPE_BUF, pipe(7): one write carries all of it

_ALPHA: Final = struct.Struct("<BBd")
_PRIVACY: Final = struct.Struct("<BBBB")
_HEAD: Final = struct.Struct("<BB")


@dataclass(frozen=True, slots=True)
class Alpha:
    """Turn the dial to this, within 0..1."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Privacy:
    """Close the camera, until the opposite is asked for."""

    on: bool
    number: int = 0  # 1..255, by which the status answers (`edgesan.message.Status.switch`); 0: nobody waits


@dataclass(frozen=True, slots=True)
class Zones:
    """Let these be the zones that are drawn, in place of earlier ones."""

    zones: tuple[Zone, ...]


Request = Alpha | Privacy | Zones


def pack(request: Request) -> bytes:
    """Return the bytes of a request; coordinates of zones are rounded to 1/65535."""
    match request:
        case Alpha(alpha):
            return _ALPHA.pack(VERSION, ALPHA, alpha)
        case Privacy(on, number):
            return _PRIVACY.pack(VERSION, PRIVACY, on, number)
        case Zones(drawn):
            return _HEAD.pack(VERSION, ZONES) + zones.pack(drawn)


def parse(content: bytes) -> Request:
    """Parse a request.

    Raises:
        Reject: the bytes are not exactly one well-formed request of this version.
    """
    if len(content) > MOST_BYTES:
        raise Reject("request", f"{len(content)} bytes; a request has at most {MOST_BYTES}")
    if len(content) < _HEAD.size or content[0] != VERSION:
        raise Reject("request", f"it begins with {content[:1].hex() or 'nothing'}; expected version {VERSION}")
    if content[1] == ALPHA and len(content) == _ALPHA.size:
        _, _, alpha = _ALPHA.unpack(content)
        if 0 <= alpha <= 1:  # excludes NaN
            return Alpha(alpha)
        raise Reject("request", f"alpha is {alpha}; expected 0..1")
    if content[1] == PRIVACY and len(content) == _PRIVACY.size and content[2] <= 1:
        return Privacy(content[2] == 1, content[3])
    if content[1] == ZONES:
        try:
            return Zones(zones.parse(content[_HEAD.size :]))
        except ConfigError as error:
            raise Reject("request", str(error)) from error
    raise Reject("request", f"{len(content)} bytes of kind {content[1]} are no request")
