"""Who may come in: ports, room for connections, names, other sites' pages, and guesses at the token.

Nothing here loads numpy, OpenCV or aiohttp: the transmit process binds its ports before it gives up all ways to make
a socket, and that must come before anything that starts threads.
"""

import errno
import hashlib
import hmac
import ipaddress
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from edgesan.config import http_address
from edgesan.errors import SinkError

MOST_CONNECTIONS: Final = 128  # in all
MOST_OF_ONE: Final = 32  # from one address
BACKLOG: Final = 100  # connections that wait to be let in
DEAF_S: Final = 20.0  # that a viewer may take nothing of what is ready for it
FREE_GUESSES: Final = 8  # wrong tokens of an address that cost no pause
FIRST_PAUSE_S: Final = 0.5  # after the next one; it doubles with each further one
MOST_PAUSE_S: Final = 8.0
FORGET_S: Final = 60.0  # without a wrong one, after which an address starts anew
MOST_GUESSERS: Final = 1024  # addresses that are remembered
HOST: Final = re.compile(r"(?:([0-9A-Za-z._-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")


# --- ports ------------------------------------------------------------------------------------------------------------


class ConnectionLimiter:
    """Lets connections in while there is room, before anything is read of them."""

    def __init__(self) -> None:
        self.refused = 0
        self._inside: list[tuple[socket.socket, str]] = []

    def admit(self, connection: socket.socket, host: str) -> bool:
        """Whether there is room for one more of this address; if so, it counts until it is closed."""
        owner = owner_of(host)
        self._inside = [(other, name) for other, name in self._inside if other.fileno() >= 0]
        if len(self._inside) >= MOST_CONNECTIONS or Counter(name for _, name in self._inside)[owner] >= MOST_OF_ONE:
            self.refused += 1
            return False
        # The kernel cuts off whoever takes nothing: what waits for it would otherwise be held for ever (tcp(7)).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF_S * 1000))
        self._inside.append((connection, owner))
        return True


class ListeningSocket(socket.socket):
    """A socket that listens, with a limiter in front of it: asyncio takes no notice of what is refused."""

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
        """It does already: asyncio asks again, at a time when the kernel would refuse it."""

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if not self.limiter.admit(connection, address[0]):
            connection.close()
            raise ConnectionAbortedError("no room")
        return connection, address


def listen(sink: str) -> list[ListeningSocket]:
    """Bind the port of an `http://HOST:PORT` sink (or https) on each address that its host has.

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
        raise SinkError(f"cannot listen on {sink}: {host} is no name of a machine") from error
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
    """All addresses that one owner has at hand count as one: whoever has one IPv6 address has 2^64 of them."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))


# --- names and sites --------------------------------------------------------------------------------------------------


def host_name(field_value: str) -> str | None:
    """The host that a Host field names, in lower case and without brackets or port; None if it is no `host[:port]`.

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


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether another site's page asks, in the user's own browser (W3C Fetch Metadata; RFC 6454 for older browsers).

    Following a link to the page is fine. Without these headers it is no browser, or one that reads only.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is None:
        origin = headers.get("Origin")
        return origin is not None and origin.partition("://")[2] != headers.get("Host")
    if site in ("same-origin", "none"):
        return False
    reading = method in ("GET", "HEAD") and headers.get("Sec-Fetch-Mode") == "navigate"
    return not (reading and headers.get("Sec-Fetch-Dest") == "document")


# --- the token --------------------------------------------------------------------------------------------------------


@dataclass
class _Guesser:
    """What is remembered of an address that presented wrong tokens."""

    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0  # no other token of it is looked at before
    wrong: deque[bytes] = field(default_factory=lambda: deque(maxlen=FREE_GUESSES))  # digests of the newest ones


class Tokens:
    """Tells the right token from wrong ones, and slows those who guess, each address by itself.

    The first wrong ones are told so at once. After each further one the address must pause, twice as long each time,
    before another token of it is looked at; the right one too, or its answer would end the pause. Whoever shares an
    address with somebody who guesses waits with them, but no longer than that goes on.

    A token that was wrong a moment ago is no new guess: a page left open with an old token slows nobody. Whoever owns
    more addresses than are remembered guesses faster; against them there is the token's length.

    Args:
        token: the right one.
        clock: seconds, never going back.
    """

    def __init__(self, token: str, clock: Callable[[], float]) -> None:
        self._token, self._clock = token.encode(), clock
        self._guessers: dict[str, _Guesser] = {}  # the one that guessed last comes last

    def pause_s(self, host: str, given: str) -> float:
        """Seconds until this address may present this token; 0 if it may now."""
        guesser = self._guessers.get(owner_of(host))
        if guesser is None or not given or _digest(given) in guesser.wrong:
            return 0.0
        return max(0.0, guesser.until_s - self._clock())

    def is_right(self, host: str, given: str) -> bool:
        """Compare. Nothing presented is wrong, but no guess."""
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
    """aiohttp decodes headers with surrogates for what is not UTF-8."""
    return given.encode(errors="backslashreplace")


def _digest(given: str) -> bytes:
    return hashlib.sha256(_encoded(given)).digest()
