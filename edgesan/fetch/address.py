"""The address of a network camera: its URL in parts, and where its host is."""

import re
import socket
from typing import Final
from urllib.parse import SplitResult, urlsplit

from edgesan.errors import ConfigError

# The schemes of camera URLs: the port of each, and the protocols that FFmpeg may use for it.
URL_SCHEMES: Final = {
    "rtsp": (554, "rtsp,rtp,tcp"),
    "rtsps": (322, "rtsp,rtp,tls,tcp"),
    "http": (80, "http,tcp"),
    "https": (443, "https,tls,tcp"),
}
ENCRYPTED: Final = ("rtsps", "https")
UNCHECKED: Final = (
    "the camera's certificate is not checked: whoever is on the way to it can read its password and its pictures; give"
    " cameras a network of their own"
)
MOST_ADDRESSES: Final = 4  # of one name


def parts_of(url: str) -> SplitResult:
    """Return the parts of a camera's URL.

    Raises:
        ConfigError: it is malformed, or of another protocol.
    """
    try:
        parts = urlsplit(url)
        well_formed = bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    # An @ after the host means a password with an unescaped slash in it: what looks like the host is none.
    if not well_formed or "@" in parts.path or re.search(r"[\0-\x20\x7f]", url):
        # Not the parser's own words: they may hold a password.
        raise ConfigError(
            "camera is a malformed URL: write rtsp://USER:PASSWORD@HOST:PORT/PATH, and special characters as %XX"
        )
    if parts.scheme not in URL_SCHEMES:
        raise ConfigError(f"camera is a {parts.scheme}:// URL: {', '.join(URL_SCHEMES)} can be opened")
    return parts


def port_of(parts: SplitResult) -> int:
    """Return the port of a camera."""
    return parts.port or URL_SCHEMES[parts.scheme][0]


def resolve(parts: SplitResult) -> list[str]:
    """Return the numeric addresses of a camera's host; none if it has none. Later nothing may be asked any more."""
    try:
        found = socket.getaddrinfo(parts.hostname, port_of(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a name that DNS cannot have
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MOST_ADDRESSES]
