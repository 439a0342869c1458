"""Who may use the server: ports, limits on connections, Host and Origin checks, and the token.

A program presents the token in a header, a player as the password of its address, a picture as `?token=`, and a browser
by a form, which leaves a cookie. The cookie holds a code that is made from the token, and not the token itself.

Nothing here loads numpy, OpenCV or aiohttp: the transmit process binds its ports before it gives up sockets, and that
must come before anything that starts threads.
"""

import base64
import binascii
import errno
import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from edgesan.config import http_address
from edgesan.errors import SinkError

MOST_CONNECTIONS: Final = 128  # in total
MOST_OF_ONE: Final = 32  # from one address
BACKLOG: Final = 100  # connections that wait to be accepted
DEAF_S: Final = 20.0  # a viewer that takes nothing for so long is cut off
FREE_GUESSES: Final = 8  # wrong tokens of one address without a pause
FIRST_PAUSE_S: Final = 0.5  # after the next wrong one; each one after it doubles the pause
MOST_PAUSE_S: Final = 8.0
FORGET_S: Final = 60.0  # without a wrong token, after which an address is forgotten
MOST_GUESSERS: Final = 1024  # addresses that are kept in memory
HOST: Final = re.compile(r"(?:([0-9A-Za-z._-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")


# --- ports ------------------------------------------------------------------------------------------------------------


class ConnectionLimiter:
    """Limits the connections, in total and from one address, before anything is read from them."""

    def __init__(self) -> None:
        self.refused = 0
        self._inside: list[tuple[socket.socket, str]] = []

    def admit(self, connection: socket.socket, host: str) -> bool:
        """Return whether this connection may stay. If so, it counts until it is closed."""
        owner = owner_of(host)
        self._inside = [(other, name) for other, name in self._inside if other.fileno() >= 0]
        if len(self._inside) >= MOST_CONNECTIONS or Counter(name for _, name in self._inside)[owner] >= MOST_OF_ONE:
            self.refused += 1
            return False
        # The kernel cuts off a viewer that takes nothing: otherwise its data would be kept for ever (tcp(7)).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF_S * 1000))
        self._inside.append((connection, owner))
        return True


class ListeningSocket(socket.socket):
    """A listening socket that refuses connections beyond its limiter; asyncio goes on when `accept` raises."""

    def __init__(self, limiter: ConnectionLimiter, family: int, address: Any) -> None:
        """Bind and listen. Raises OSError."""
        super().__init__(family, socket.SOCK_STREAM)
        self.limiter = limiter
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.bind(address)
            super().listen(BACKLOG)
        except OSError:
            self.close()
            raise

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Do nothing: the socket listens already, and asyncio would ask after the kernel forbids it."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises ConnectionAbortedError if there are too many."""
        connection, address = super().accept()
        if not self.limiter.admit(connection, address[0]):
            connection.close()
            raise ConnectionAbortedError("too many connections")
        return connection, address


class Server(NamedTuple):
    """What a server needs that it cannot open itself: its listening sockets, and TLS for an https:// address."""

    address: str  # http://HOST:PORT, as the user wrote it
    sockets: list[ListeningSocket]
    tls: ssl.SSLContext | None = None


def listen(sink: str) -> list[ListeningSocket]:
    """Bind the port of an `http://HOST:PORT` sink (or https) on each address of its host.

    Raises:
        SinkError: the port is taken, or the address is not one of this machine's.
    """
    host, port = http_address(sink)
    limiter, sockets = ConnectionLimiter(), list[ListeningSocket]()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(ListeningSocket(limiter, family, address))
    except UnicodeError as error:
        raise SinkError(f"cannot listen on {sink}: {host} is not a host name") from error
    except OSError as error:
        for each in sockets:
            each.close()
        raise SinkError(f"cannot listen on {sink}: {error.strerror or error}; {_cure(error, sink)}") from error
    return sockets


def _cure(error: OSError, sink: str) -> str:
    host, port = http_address(sink)
    scheme = urlsplit(sink).scheme
    other = f"such as --out {scheme}://{f'[{host}]' if ':' in host else host}:{8081 if port == 8080 else 8080}"
    if error.errno == errno.EADDRINUSE:
        return f"end the program that holds the port, or choose another one, {other}"
    if error.errno == errno.EACCES:
        return f"ports below 1024 belong to root: choose a higher one, {other}"
    return f"name an address of this machine, such as --out {scheme}://127.0.0.1:8080"


def owner_of(host: str) -> str:
    """Return the address, or the /64 network of an IPv6 address: its owner has all 2^64 addresses of it."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))


# --- names and sites --------------------------------------------------------------------------------------------------


def host_name(field_value: str) -> str | None:
    """Return the host of a Host field, in lower case, without brackets or port; None if it is not `host[:port]`.

    Narrower than RFC 9110 and RFC 3986, on purpose: no percent signs, no zones, no empty host, no empty port.
    """
    match = HOST.fullmatch(field_value)
    if match is None:
        return None
    name, six, port = match.groups()
    if port is not None and not 1 <= int(port) <= 65535:
        return None
    if six is None:
        return str(name).lower()
    try:
        ipaddress.IPv6Address(six)
    except ValueError:
        return None
    return str(six).lower()


def is_foreign(method: str, headers: Mapping[str, str], embed_from: Collection[str] = ()) -> bool:
    """Return whether a page of another site makes this request (W3C Fetch Metadata; RFC 6454 for older browsers).

    Following a link to the page is allowed. A client without these headers is no browser, or one that only reads.

    Args:
        method: of the request.
        headers: of the request.
        embed_from: origins of pages that may show the picture, or our page in a frame. Which page may hold a frame, the
            browser knows (`frame-ancestors` in our answer); that of a picture stands in `Referer`.
    """
    site, reading = headers.get("Sec-Fetch-Site"), method in ("GET", "HEAD")
    if site is None:
        origin = headers.get("Origin")
        return origin is not None and origin.partition("://")[2] != headers.get("Host")
    if site in ("same-origin", "none"):
        return False
    destination = headers.get("Sec-Fetch-Dest")
    if reading and headers.get("Sec-Fetch-Mode") == "navigate":
        return destination != "document" and not (destination in ("iframe", "frame") and embed_from)
    return not (reading and destination == "image" and is_embedded(headers, embed_from))


def is_embedded(headers: Mapping[str, str], embed_from: Collection[str]) -> bool:
    """Return whether a page of one of these origins asks."""
    scheme, colon, rest = headers.get("Referer", "").partition("://")
    return f"{scheme}{colon}{rest.partition('/')[0]}" in embed_from


# --- the token --------------------------------------------------------------------------------------------------------


def authorized(field_value: str) -> str | None:
    """Return the token of an Authorization field; None if it has another form.

    It is `Bearer TOKEN` (RFC 6750), or `Basic` with the token as the password of any user (RFC 7617).
    """
    scheme, _, given = field_value.partition(" ")
    if scheme.lower() == "bearer":
        return given
    if scheme.lower() != "basic":
        return None
    try:
        pair = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return pair.partition(":")[2]


@dataclass
class _Guesser:
    """An address that has presented wrong tokens."""

    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0  # before this time no new token of it is checked
    wrong: deque[bytes] = field(default_factory=lambda: deque(maxlen=FREE_GUESSES))  # digests of the newest tokens


class Tokens:
    """Checks tokens, and slows down addresses that guess.

    The first wrong tokens are answered at once. After each one beyond, the address must pause, twice as long each time,
    before another token is checked. The right token must wait, too: otherwise its answer would show that it is right.
    Other users of the same address wait as well, while the guessing goes on.

    A token that was wrong a moment ago is not a new guess: a page left open with an old token slows nobody down. An
    attacker with more addresses than are kept in memory guesses faster; the length of the token protects against that.

    Args:
        token: the right one.
        clock: returns seconds that never go back.
    """

    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        self._token, self._clock = token.encode(), clock
        self._guessers: dict[str, _Guesser] = {}  # the newest guesser comes last

    def pause_s(self, host: str, given: str) -> float:
        """Return the seconds until this address may present this token; 0 if it may now."""
        guesser = self._guessers.get(owner_of(host))
        if guesser is None or not given or _digest(given) in guesser.wrong:
            return 0.0
        return max(0.0, guesser.until_s - self._clock())

    @property
    def cookie(self) -> str:
        """What the cookie of a browser holds: it shows the token to nobody, and ends with it."""
        return hmac.new(self._token, b"edgesan cookie", hashlib.sha256).hexdigest()

    def of_cookie(self, value: str) -> str:
        """Return the token for the right cookie, and anything else as it is: it is as wrong as a wrong token."""
        return self._token.decode() if hmac.compare_digest(_encoded(value), self.cookie.encode()) else value

    def is_right(self, host: str, given: str) -> bool:
        """Compare a token in constant time. A missing one is wrong, but not a guess."""
        right = hmac.compare_digest(_encoded(given), self._token)
        if given and not right:
            self._remember(owner_of(host), _digest(given))
        return right

    def _remember(self, owner: str, wrong: bytes) -> None:
        now_s = self._clock()
        guesser = self._guessers.pop(owner, None)
        if guesser is None or now_s - guesser.last_s > FORGET_S:
            guesser = _Guesser()
        self._guessers[owner] = guesser
        if len(self._guessers) > MOST_GUESSERS:
            del self._guessers[next(iter(self._guessers))]
        if wrong in guesser.wrong:
            return
        guesser.wrong.append(wrong)
        guesser.count += 1
        guesser.last_s = now_s
        beyond = guesser.count - FREE_GUESSES
        if beyond > 0:
            guesser.until_s = now_s + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(beyond - 1, 16))


def _encoded(given: str) -> bytes:
    """Encode a header value: aiohttp decodes bytes that are not UTF-8 as surrogates."""
    return given.encode(errors="backslashreplace")


def _digest(given: str) -> bytes:
    return hashlib.sha256(_encoded(given)).digest()
