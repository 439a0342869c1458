"""Where an outlet sends the stream: the table of schemes, and the addresses of `--out` as they were parsed.

An outlet is a process of its own (`edgesan.outlets`), one for each entry of `out` that is neither a server of ours nor
a file. This table is the one place that says which module sends where, and what the kernel must allow it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from edgesan.errors import ConfigError

MOST_TARGETS: Final = 8
MOST_PEERS: Final = 64  # that one camera may be told to serve by WebRTC
SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):")
SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(s|min|h)")
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(MB|GB|TB|MiB|GiB|TiB)")
SECONDS: Final = {"s": 1, "min": 60, "h": 3600}
BYTES: Final = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SENT: Final = ("chips", "codes", "message")
TRUTH: Final = {"true": True, "false": False}


def seconds(text: str) -> float:
    """Return a span such as `60s`, `5min` or `1h` in seconds. Raises ValueError."""
    match = SPAN.fullmatch(text)
    if match is None or not 1 <= float(match[1]) * SECONDS[match[2]] <= 86400:
        raise ValueError("write a span from 1s to 24h, such as 60s, 5min or 1h")
    return float(match[1]) * SECONDS[match[2]]


def size(text: str) -> int:
    """Return a size such as `500MB` or `10GiB` in bytes. Raises ValueError."""
    match = SIZE.fullmatch(text)
    if match is None or float(match[1]) * BYTES[match[2]] < 10**6:
        raise ValueError("write a size from 1MB on, such as 500MB or 10GiB")
    return math.floor(float(match[1]) * BYTES[match[2]])


def truth(text: str) -> bool:
    """Return `true` or `false` as a value. Raises ValueError."""
    if text not in TRUTH:
        raise ValueError("write true or false")
    return TRUTH[text]


def number(text: str) -> int:
    """Return a number of viewers. Raises ValueError."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PEERS:
        raise ValueError(f"write a number from 1 to {MOST_PEERS}")
    return int(text)


@dataclass(frozen=True)
class Relay:
    """A TURN server for WebRTC, as HOST:PORT, and how to log in there."""

    host: str
    user: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """Its address, as browsers and aiortc read it."""
        return f"turn:{self.host}?transport=udp"


def relay(text: str) -> Relay:
    """Return `USER:PASSWORD@HOST:PORT` as a relay. Raises ConfigError, which does not show the text."""
    login, _, host = text.rpartition("@")
    user, _, password = login.partition(":")
    if not (user and password and re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]{1,5}", host)):
        raise ConfigError("out is a webrtc: address with a malformed turn: write turn=USER:PASSWORD@HOST:PORT")
    return Relay(host, user, password)


Parse = Callable[[str], Any]


@dataclass(frozen=True)
class Kind:
    """What is common to all addresses of a scheme.

    module: of `edgesan.outlets`; its `run` lives the outlet's life.
    example: how an address is written, for messages.
    port: of an address that names none; 0: the address names no host.
    calls: whether the outlet needs the network.
    writes: whether it writes in a folder, which its path names.
    shows: whether it writes to a video device, which its path names.
    any_port: whether it may reach any TCP port, or listen at one, beside its own.
    prepares: whether the module has a function `prepare`, which is called before the process gives up its rights. Such
        a module imports nothing at its top that starts threads (numpy).
    needs: a package that only an extra installs, which has the name of the module.
    serves: whether the address is one of this machine, to which viewers come, with the token.
    asks: whether it may turn the dial and close or open the camera; the requests of all others are refused.
    options: which options the query of an address holds, and how to read each; None: the query belongs to the server.
    """

    module: str
    example: str
    port: int = 0
    calls: bool = True
    writes: bool = False
    shows: bool = False
    any_port: bool = False
    prepares: bool = False
    needs: str = ""
    serves: bool = False
    asks: bool = False
    options: Mapping[str, Parse] | None = None

    @property
    def extra(self) -> str:
        """How the package that it needs is installed, in words."""
        return (
            f"at the root of edgesan's clone, give pipx install --force '.[{self.module}]', or pip install"
            f" '.[{self.module}]' in the environment of edgesan (docs/quickstart.md, Extras)"
        )


def sent(text: str) -> str:
    """Return `chips`, `codes` or `message`. Raises ValueError."""
    if text not in SENT:
        raise ValueError(f"write {', '.join(SENT)}")
    return text


def file(text: str) -> Path:
    """Return a file that is named from the root on. Raises ValueError."""
    if not Path(text).is_absolute():
        raise ValueError("name a file from the root on, such as /etc/edgesan/ca.pem")
    return Path(text)


# The process of `rtsp_server` keeps no network: the program that it starts has it.
_RTSP_SERVER: Final = Kind(
    "rtsp_server", "serve+rtsp://HOST:PORT/PATH", 8554, calls=False, prepares=True, serves=True, options={}
)
_MQTT: Final = Kind(
    "mqtt", "mqtt://USER:PASSWORD@HOST/PREFIX", 1883, prepares=True, needs="aiomqtt", asks=True, options={}
)
_FEED: Final = Kind("feed", "feed+https://:SECRET@HOST/PATH", 443, prepares=True, options={"send": sent, "ca": file})
_RECORD: Final = {"segment": seconds, "keep": size, "motion": truth}
KINDS: Final[Mapping[str, Kind]] = {
    "rtsp": Kind("push", "rtsp://USER:PASSWORD@HOST/PATH", 554),
    "rtsps": Kind("push", "rtsps://USER:PASSWORD@HOST/PATH", 322),
    "rtmp": Kind("push", "rtmp://HOST/APP/KEY", 1935),
    "rtmps": Kind("push", "rtmps://HOST/APP/KEY", 443),
    "whip+https": Kind("push", "whip+https://:TOKEN@HOST/PATH", 443),
    "whip+http": Kind("push", "whip+http://:TOKEN@HOST/PATH", 80),
    "mqtt": _MQTT,
    "mqtts": replace(_MQTT, example="mqtts://USER:PASSWORD@HOST/PREFIX?ca=FILE", port=8883, options={"ca": file}),
    "serve+rtsp": _RTSP_SERVER,
    "serve+rtsps": replace(_RTSP_SERVER, example="serve+rtsps://HOST:PORT/PATH", port=8322),
    "announce": Kind("announce", "announce:", prepares=True, needs="zeroconf", options={}),
    "webrtc": Kind(
        "webrtc", "webrtc:?peers=8", prepares=True, needs="aiortc", options={"peers": number, "turn": relay}
    ),
    "feed+https": _FEED,
    "feed+http": replace(_FEED, example="feed+http://:SECRET@localhost/PATH", port=80, options={"send": sent}),
    "dir": Kind(
        "record", "dir:/FOLDER?segment=60s&keep=10GiB", calls=False, writes=True, prepares=True, options=_RECORD
    ),
    "v4l2": Kind(
        *("virtualcam", "v4l2:/dev/video10"),
        calls=False,
        shows=True,
        prepares=True,
        needs="pyvirtualcam",
        options={},
    ),
}


@dataclass(frozen=True)
class Target:
    """A parsed address. Only `url`, `user`, `password` and `path` may hold a secret; `name` is for people."""

    scheme: str
    name: str  # without user, password, path and query
    url: str = field(repr=False)  # as it was written
    host: str = ""
    port: int = 0
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    path: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What is common to all addresses of this scheme."""
        return KINDS[self.scheme]

    @property
    def folder(self) -> Path | None:
        """The folder that the outlet writes in, if it writes."""
        return Path(self.path) if self.kind.writes else None

    @property
    def device(self) -> Path | None:
        """The video device that the outlet writes to, if it shows pictures there."""
        return Path(self.path) if self.kind.shows else None


def is_target(sink: str) -> bool:
    """Return whether an entry of `out` is an address, and not a file. It may be a wrong one."""
    match = SCHEME.match(sink)
    return match is not None and ("://" in sink or match[1] in KINDS)


def parse(sink: str) -> Target:
    """Parse an address of `out`.

    Raises:
        ConfigError: its scheme is unknown, or it is malformed; the message shows no password.
    """
    match = SCHEME.match(sink)
    scheme = match[1] if match else ""
    if scheme not in KINDS:
        hint = " (the PyAV wheels have no SRT)" if scheme == "srt" else ""
        raise ConfigError(f"out is a {scheme}: address{hint}: expected one of {', '.join(KINDS)}, http or https")
    kind = KINDS[scheme]
    try:
        parts = urlsplit(sink)
        host, port = parts.hostname or "", kind.port if parts.port is None else parts.port
    except ValueError:
        parts, host, port = SplitResult("", "", "", "", ""), "", 0
    written = bool(host) and port > 0 if kind.port else not parts.netloc
    # An @ after the host means a password with an unescaped slash in it: what looks like the host is none.
    if not written or "@" in parts.path or re.search(r"[\0-\x20\x7f]", sink):
        # Not the address itself: it may hold a password.
        raise ConfigError(f"out is a malformed {scheme}: address: write {kind.example}, and special characters as %XX")
    options = {} if kind.options is None else _options(scheme, parts.query, kind.options)
    if kind.writes and not Path(unquote(parts.path)).is_absolute():
        raise ConfigError(f"out is {sink!r}: name the folder from the root on, such as {kind.example}")
    if kind.shows and not re.fullmatch(r"/dev/video[0-9]{1,3}", parts.path):
        raise ConfigError(f"out is {sink!r}: name the device of a virtual camera, such as {kind.example}")
    if kind.serves:
        _check_served(kind, parts)
    if scheme in ("webrtc", "announce") and parts.path:
        raise ConfigError(f"out is {scheme}:{parts.path}: it names no place; write {kind.example}")
    name = f"{scheme}://{parts.netloc.rpartition('@')[2]}" if kind.port else f"{scheme}:{unquote(parts.path)}"
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Target(scheme, name, sink, host, port, user, password, unquote(parts.path), options)


def _check_served(kind: Kind, parts: SplitResult) -> None:
    """Refuse a served address with a login of its own, or without a path. Raises ConfigError."""
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"out is a {parts.scheme}: address with a login: viewers present the token; leave it out")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", parts.path):
        raise ConfigError(f"out is a {parts.scheme}: address without a path, such as /cam: write {kind.example}")


def _options(scheme: str, query: str, known: Mapping[str, Parse]) -> dict[str, Any]:
    """Return the options in the query of an address. Raises ConfigError."""
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in found:
            wrong = "twice" if name in found else "unknown"
            raise ConfigError(f"out is a {scheme}: address whose option {name!r} is {wrong}: it has {', '.join(known)}")
        try:
            found[name] = known[name](text)
        except ValueError as error:
            raise ConfigError(f"out is a {scheme}: address with {name}={text}: {error}") from error
    return found
