"""Every option of a run: one frozen dataclass that defines the command line, the environment and the TOML file.

The TOML file has the same names; an unknown key is an error. The environment (EDGESAN_ALPHA=0.6) overrides the file,
and the command line overrides both.
"""

import dataclasses
import difflib
import ipaddress
import logging
import numbers
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgesan import log, targets, zones
from edgesan.errors import ConfigError
from edgesan.message import MOST_SIDE
from edgesan.targets import Target
from edgesan.zones import MOST_ZONES, Zone

logger = logging.getLogger(__name__)

SYSTEM_CONFIG = Path("/etc/edgesan/edgesan.toml")
BOARD_SECRETS = ("token.env", "camera.env")  # which systemd gives to the units that need them
VARIABLE = "EDGESAN_"  # and the name of an option in capitals
NUMBERS = {bool: bool, int: numbers.Integral, float: numbers.Real}  # of NumPy, too
EXPECTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a text",
    tuple[str, ...]: "a list of texts",
}
SEPARATOR = ";"  # of the values of an option that can be repeated, in a variable
SECRETS = ("camera", "out", "token")  # options whose value no message may show
TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
BACKGROUNDS = ("scene", "plain", "keep")
GONE_BACKGROUNDS = ("pixelate", "blur", "black")
DEMO_MODEL = Path(__file__).parent / "models" / "default.onnx"
FILE_SUFFIXES = (".mkv", ".mp4", ".mov")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SERVERS = ("http://", "https://")
ANY = ("0.0.0.0", "::")  # hosts of a server that all networks of this machine reach  # noqa: S104
TURNS = (0, 90, 180, 270)
ROLES = ("both", "sanitize", "transmit", "fetch")
ORIGIN = re.compile(r"https?://(?:[0-9a-z._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
LEAST_TOKEN = 16  # characters, if other machines can connect
MOST_NAME = 64  # characters


def option(default: Any, help: str, metavar: str | None = None) -> Any:  # noqa: A002 - argparse's own word
    """Define a dataclass field that is also a command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    """The options of `edgesan run` and `edgesan sanitize`. The help texts name the units."""

    model: Path = option(DEMO_MODEL, "model to run: an edgesan .onnx file (default: the bundled one)", "FILE")
    camera: str = option(
        "0",
        "the camera: a number (0), a device (/dev/video0), picamera or picamera:1, a file, a URL (rtsp, rtsps, http,"
        " https), or demo",
        "SOURCE",
    )
    out: tuple[str, ...] = option(
        ("http://127.0.0.1:8080",),
        "where to send the stream: http[s]://HOST:PORT, webrtc: (for its page), serve+rtsp://HOST:PORT/PATH (for"
        " players), a file (.mkv, .mp4, .mov), a server that takes it (rtsp[s]://, rtmp[s]://, whip+https://), a"
        " folder of clips (dir:/FOLDER?keep=10GiB), Home Assistant's broker (mqtt[s]://), a service that recognises"
        " people (feed+https://), or a virtual camera (v4l2:/dev/video10); repeatable",
        "SINK",
    )
    name: str = option("", "name of the camera, for its page and its status", "NAME")
    role: str = option(
        "both",
        "both processes, or one of them as a unit of its own: sanitize (no network) or transmit (no camera); and for a"
        " network camera fetch, which a service manager starts for each connection",
        "ROLE",
    )
    socket: Path = option(
        Path("/run/edgesan/frames.sock"),
        "where the two units meet; the one that fetches is asked at fetch.sock beside it; users who may open its folder"
        " may see the stream",
        "FILE",
    )
    alpha: float | None = option(None, "privacy dial from 0 (useful) to 1 (private) (default: the model's own)", "A")
    background: str = option(
        "scene",
        "what surrounds the sanitized faces: scene (the still of the empty room that was accepted, with silhouettes; a"
        " flat colour until there is one), plain (always a flat colour), or keep (the RAW picture; only for"
        " `edgesan sanitize`)",
        "HOW",
    )
    scene: Path | None = option(
        None, "file of the still that `edgesan scene` makes (default: scene.png in the state folder)", "FILE"
    )
    zone: tuple[str, ...] = option(
        (),
        "a part of the picture that is always black: a rectangle x,y,width,height or a polygon x,y,x,y,x,y[,...], as"
        " fractions of the picture; repeatable",
        "X,Y,W,H",
    )
    size: str | None = option(
        None, "picture size to ask the camera for, such as 640x480, after `rotate` (default: the camera's)", "WxH"
    )
    rotate: int = option(
        0,
        "turn the picture clockwise by 0, 90, 180 or 270 degrees, for a camera that is mounted sideways; the detector"
        " misses most faces that are turned by 45 degrees or more",
        "DEGREES",
    )
    fps: float | None = option(None, "most frames per second (default: the camera's)", "N")
    frames: int | None = option(None, "end after so many frames", "N")
    duration: float | None = option(None, "end after so many seconds", "SECONDS")
    detect_size: int = option(320, "longest side in pixels of the copy in which faces are searched", "PIXELS")
    detect_every: int = option(1, "search for faces in every Nth frame; tracks keep them in between", "N")
    hold: float = option(0.7, "seconds for which a track keeps a face that is not found any more", "SECONDS")
    refresh: float = option(
        0.4, "seconds from one code of a face to the next, while its pose stays the same", "SECONDS"
    )
    threads: int = option(1, "threads of the model's network", "N")
    trusted_keys: tuple[str, ...] = option(
        (), "public key whose models may run, beside the bundled key: a line ssh-ed25519 AAAA...; repeatable", "KEY"
    )
    allow_unsigned: bool = option(
        False, "also run a model that has no signature or an untrusted one; a wrong signature is still refused"
    )
    state_dir: Path | None = option(
        None,
        "folder of what outlives a run: model versions, zones that were drawn, privacy (default: $STATE_DIRECTORY,"
        " $XDG_STATE_HOME/edgesan or ~/.local/state/edgesan)",
        "FOLDER",
    )
    require_isolation: bool = option(False, "refuse to run if the kernel does not enforce every restriction")
    allow_rollback: bool = option(False, "run a model even if a later version ran before, and record nothing")
    token: str = option(
        "",
        "secret that viewers must present, needed if other machines can connect (EDGESAN_TOKEN hides it better)",
        "SECRET",
    )
    announce: bool = option(
        False, "announce the camera in the local network, so that other programs find it by its name (mDNS)"
    )
    embed_from: tuple[str, ...] = option(
        (), "origin of pages that may show the picture, such as https://home.example:8123; repeatable", "ORIGIN"
    )
    tls_cert: Path | None = option(None, "certificate for https://, with its chain (PEM)", "FILE")
    tls_key: Path | None = option(
        None, "key of the certificate (PEM; default: it is in the certificate's file)", "FILE"
    )

    log_level: str = option(
        "info", f"least level that is logged: {', '.join(log.LEVELS)} (-v: debug, --quiet: warning)", "LEVEL"
    )
    log_format: str = option("text", "format of the log: text, or json (an object a line)", "FORMAT")

    def __post_init__(self) -> None:
        for name in option_types():
            object.__setattr__(self, name, of_type(name, getattr(self, name)))  # the way into a frozen dataclass
        check(self)

    @property
    def camera_is_url(self) -> bool:
        """Whether `camera` is reached through the network."""
        return "://" in self.camera

    @property
    def fetch_socket(self) -> Path:
        """Where a sanitize unit asks for a process that fetches."""
        return self.socket.with_name("fetch.sock")

    @property
    def camera_name(self) -> str:
        """`camera` for people; of a URL only protocol and host, because the rest may hold a password."""
        if not self.camera_is_url:
            return self.camera
        parts = urlsplit(self.camera)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def camera_files(self) -> list[Path]:
        """The file that `camera` names, if it is one."""
        path = Path(self.camera)
        return [path.resolve()] if not self.camera_is_url and path.is_file() else []

    @property
    def camera_nodes(self) -> list[Path]:
        """The device that `camera` names, if it is one."""
        path = Path(f"/dev/video{int(self.camera)}" if self.camera.isdecimal() else self.camera)
        return [path.resolve()] if not self.camera_is_url and path.is_char_device() else []

    @property
    def model_folders(self) -> list[Path]:
        """The folder of the model file; if it is a link, which may be changed, also the folder around it."""
        folder = self.model.absolute().parent
        return [folder.resolve(), folder.parent] if folder.is_symlink() else [folder.resolve()]

    @property
    def servers(self) -> list[str]:
        """The addresses among `out`: http://HOST:PORT or https://HOST:PORT."""
        return [sink for sink in self.out if sink.startswith(SERVERS)]

    @property
    def files(self) -> list[Path]:
        """The files among `out`."""
        return [Path(sink) for sink in self.out if not sink.startswith(SERVERS) and not targets.is_target(sink)]

    @property
    def targets(self) -> list[Target]:
        """The servers and folders among `out` that a process of its own sends to."""
        found = (sink for sink in self.out if not sink.startswith(SERVERS) and targets.is_target(sink))
        return [*map(targets.parse, found), *([targets.parse("announce:")] if self.announce else [])]

    @property
    def out_names(self) -> list[str]:
        """`out` for people, without passwords."""
        return [*self.servers, *map(str, self.files), *(target.name for target in self.targets)]

    @property
    def width_height(self) -> tuple[int, int] | None:
        """`size` as numbers."""
        if self.size is None:
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    @property
    def zones(self) -> tuple[Zone, ...]:
        """`zone` as numbers."""
        return tuple(map(zones.of_text, self.zone))


RANGES = {
    "fps": (0.1, 1000),
    "frames": (1, 2**53),
    "duration": (0.1, 1e9),
    "detect_every": (1, 1_000_000),
    "hold": (0, 1_000_000),
    "refresh": (0, 1_000_000),
    "threads": (1, 64),
}

CHOICES: dict[str, tuple[object, ...]] = {
    "rotate": TURNS,
    "role": ROLES,
    "log_level": log.LEVELS,
    "log_format": log.FORMATS,
}


def check(c: Config) -> None:
    """Refuse values out of range.

    Raises:
        ConfigError: says which option is wrong, what its value was, and what it may be.
    """
    if c.alpha is not None and not 0 <= c.alpha <= 1:
        raise ConfigError(f"alpha is {c.alpha:g}: it must lie between 0 (useful) and 1 (private)")
    for name, (least, most) in RANGES.items():
        value = getattr(c, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} is {value}: it must be at least {least}, and at most {most:,}")
    if not 64 <= c.detect_size <= 4096:
        raise ConfigError(f"detect_size is {c.detect_size}: it must lie within 64..4096 pixels")
    if c.size is not None and not _is_size(c.size):
        raise ConfigError(f"size is {c.size!r}: write it as WIDTHxHEIGHT, such as 640x480, each within 16..{MOST_SIDE}")
    for name, known in CHOICES.items():
        if getattr(c, name) not in known:
            raise ConfigError(f"{name} is {getattr(c, name)!r}: choose one of {', '.join(map(str, known))}")
    check_safety(c)
    check_zones_and_name(c)
    if c.role not in ("sanitize", "fetch"):  # which sends nothing to a network, and needs no secret
        check_sinks(c)


def check_zones_and_name(c: Config) -> None:
    """Refuse zones that close nothing, too many of them, and a name that no page can show.

    Raises:
        ConfigError: says which option is wrong.
    """
    if len(c.zones) > MOST_ZONES:
        raise ConfigError(f"zone is given {len(c.zone)} times: at most {MOST_ZONES}")
    if len(c.name) > MOST_NAME or not c.name.isprintable():
        raise ConfigError(f"name is {c.name!r}: write at most {MOST_NAME} characters in one line")


def check_safety(c: Config) -> None:
    """Refuse a background that does not exist.

    Raises:
        ConfigError: says which option is wrong.
    """
    if c.background in GONE_BACKGROUNDS:
        raise ConfigError(
            f"background is {c.background!r}: it is gone, because its colours came from the live picture and showed who"
            ' was there; write "plain"'
        )
    if c.background not in BACKGROUNDS:
        raise ConfigError(f"background is {c.background!r}: choose one of {', '.join(BACKGROUNDS)}")


def _is_size(text: str) -> bool:
    width, cross, height = text.partition("x")
    numbers = cross and len(text) <= 9 and width.isdecimal() and height.isdecimal()
    return bool(numbers) and 16 <= int(width) <= MOST_SIDE and 16 <= int(height) <= MOST_SIDE


def check_sinks(c: Config) -> None:
    """Refuse sinks that nothing can be sent to, and servers that strangers could watch.

    Raises:
        ConfigError: says which sink or which option of it is wrong.
    """
    if not c.out:
        raise ConfigError("out is empty: name at least one sink, such as http://127.0.0.1:8080 or clip.mkv")
    for sink in c.out:
        if sink not in c.servers and not targets.is_target(sink) and Path(sink).suffix not in FILE_SUFFIXES:
            raise ConfigError(
                f"out is {shown(sink)!r}: expected http://HOST:PORT, https://HOST:PORT, a file ending in"
                f" {' or '.join(FILE_SUFFIXES)}, or an address such as"
                f" {' or '.join(kind.example for kind in targets.KINDS.values())}"
            )
    check_targets(c)
    if len(c.servers) > 1:
        raise ConfigError("out names more than one http:// address: one server is enough for all viewers")
    check_token(c)
    for origin in c.embed_from:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"embed_from is {origin!r}: write the origin of a site as its browser does, in lower case and without a"
                " path, such as https://home.example:8123"
            )
    encrypted = [sink for sink in c.servers if sink.startswith("https://")]
    encrypted += [target.name for target in c.targets if target.scheme == "serve+rtsps"]
    if encrypted and c.tls_cert is None:
        raise ConfigError(f"out is {encrypted[0]}: it needs a certificate; name its PEM files in tls_cert and tls_key")
    if not encrypted and (c.tls_cert or c.tls_key):
        raise ConfigError(
            "tls_cert and tls_key are for https and serve+rtsps: write out as https://HOST:PORT, or leave them out"
        )
    if any(target.scheme == "webrtc" for target in c.targets) and not c.servers:
        raise ConfigError("out is webrtc: but no page is served that could show it: add http://127.0.0.1:8080")


def check_targets(c: Config) -> None:
    """Refuse too many servers and folders to send to, the same one twice, and to show pictures in the camera itself.

    Raises:
        ConfigError: says how many there are, or which one is wrong.
    """
    found = c.targets
    if len(found) > targets.MOST_TARGETS:
        raise ConfigError(f"out names {len(found)} servers and folders to send to: at most {targets.MOST_TARGETS}")
    if len({target.url for target in found}) < len(found):
        raise ConfigError("out names the same server or folder twice: leave one of them out")
    if shown := [target.name for target in found if target.device in c.camera_nodes]:
        raise ConfigError(f"out is {shown[0]}, which is the camera, too: name a virtual camera that is another device")


def check_token(c: Config) -> None:
    """Refuse a token that cannot be sent, and a missing or short one if other machines can connect.

    Raises:
        ConfigError: says what is wrong with it, without showing it.
    """
    if not (c.token.isascii() and c.token.isprintable() and " " not in c.token):
        raise ConfigError("token holds a space or a sign that no header can carry: use letters and digits only")
    served = {sink: http_address(sink)[0] for sink in c.servers}
    served |= {target.name: target.host for target in c.targets if target.kind.serves}
    for sink, host in served.items():
        if is_loopback(host):
            continue
        if not c.token:
            raise ConfigError(
                f"out is {sink}: if other machines can connect, viewers must present a secret;"
                " set EDGESAN_TOKEN or `token`, or use http://127.0.0.1:8080"
            )
        if len(c.token) < LEAST_TOKEN:
            raise ConfigError(
                f"token has {len(c.token)} characters: everyone who can reach {sink} can guess, so it needs at least"
                f" {LEAST_TOKEN}; make one with: openssl rand -hex 16"
            )


def http_address(sink: str) -> tuple[str, int]:
    """Return host and port of an `http://HOST:PORT` sink (or https).

    Raises:
        ConfigError: the sink has another form.
    """
    try:
        parts = urlsplit(sink)
        host, port = parts.hostname, 8080 if parts.port is None else parts.port
    except ValueError as error:
        # Not the parser's own words: they may hold a password.
        raise ConfigError(
            f"out is {shown(sink)!r}, which is malformed: write it as http://HOST:PORT, with a port up to 65535"
        ) from error
    if "@" in parts.netloc:
        raise ConfigError(
            f"out is {shown(sink)!r} with a login before it: leave that out; viewers present the token, which"
            " EDGESAN_TOKEN sets"
        )
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"out is {shown(sink)!r}: write it as http://HOST:PORT, with nothing after the port")
    return host, port


def shown(sink: str) -> str:
    """Return an entry of `out` for people: of an address without login and query, as they may hold a password."""
    scheme, mark, place = sink.partition("://")
    return f"{scheme}{mark}{place.rpartition('@')[2].partition('?')[0]}" if mark else sink


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def found(environment: Mapping[str, str]) -> Path | None:
    """Return the configuration file of the user ($XDG_CONFIG_HOME or ~/.config), or else the system's; None if none."""
    home = environment.get("HOME", "")
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    places = [Path(folder) / "edgesan" / "edgesan.toml"] if folder else []
    # Not Path.is_file, which raises in a folder that this user may not look into.
    return next((place for place in (*places, SYSTEM_CONFIG) if os.path.isfile(place)), None)


def load(path: Path | None, overrides: dict[str, Any]) -> Config:
    """Load the configuration: defaults, then the TOML file, then the environment, then `overrides`, the command line's.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type or range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot read the configuration {path}: {error.strerror}; name a TOML file that you may read"
            ) from error
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number of 5000 digits
            raise ConfigError(f"{path} is not TOML: {error}") from error
        values = typed(path, table)
    return Config(**(values | of_environment(os.environ) | overrides))


def of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that variables give: EDGESAN_ALPHA is `alpha`. An empty variable gives nothing.

    Raises:
        ConfigError: a value is not of the option's type.
    """
    values = {}
    for variable, text in environment.items():
        name = variable.removeprefix(VARIABLE).lower()
        if not text or not variable.startswith(VARIABLE):
            continue
        if name in option_types():
            values[name] = _read(variable, name, text)
        elif near := difflib.get_close_matches(name, option_types(), 1, cutoff=0.75):
            logger.warning("%s is no option; did you mean %s%s?", variable, VARIABLE, near[0].upper())
    return values


def _read(variable: str, name: str, text: str) -> Any:
    """Return the text of a variable as the type of its option."""
    kind = kind_of(name)
    if typing.get_origin(kind) is tuple:
        return tuple(item.strip() for item in text.split(SEPARATOR) if item.strip())
    try:
        return TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{variable} is {text!r}: expected {EXPECTED[kind]}; {option_help(name)}") from error


@cache
def option_types() -> dict[str, Any]:
    """Return the type of each option."""
    return typing.get_type_hints(Config)


def kind_of(name: str) -> Any:
    """Return the type of an option: `Path` for `Path | None`."""
    hint = option_types()[name]
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def of_board(config: Path) -> dict[str, Any]:
    """Return the options of a board that lie in files beside its configuration, which only root can read.

    Raises:
        ConfigError: a file cannot be read, or a value is not of the option's type.
    """
    lines: list[str] = []
    for file in map(config.with_name, BOARD_SECRETS):
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}; run it with sudo") from error
    pairs = (line.partition("=") for line in lines)
    return of_environment({name: value.strip() for name, _, value in pairs})


def typed(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a TOML table as the types of the options. Polygons of `zones` are added to those of `zone`.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    for key in table:
        if key not in (*option_types(), "zones"):
            near = difflib.get_close_matches(key, option_types(), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(option_types())}"
            raise ConfigError(f"{path} has the unknown key {key!r}; {hint}")
    try:
        values = {key: of_type(key, value) for key, value in table.items() if key != "zones"}
        if "zones" in table:
            polygons = tuple(zones.to_text(Zone(points)) for points in zones.points_of(table["zones"]))
            values["zone"] = (*values.get("zone", ()), *polygons)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return values


def of_type(name: str, value: Any) -> Any:
    """Return a value as the type of its option: a file also from its name, a list also from a single text.

    Raises:
        ConfigError: the value has another type.
    """
    kind = kind_of(name)
    if value is None and option_types()[name] != kind:
        return None
    try:
        return _converted(kind, value)
    except TypeError as error:
        shown = name if name in SECRETS else f"{name} = {value!r:.80}"
        raise ConfigError(f"{shown} has the wrong type: expected {EXPECTED[kind]}; {option_help(name)}") from error
    except ValueError as error:
        raise ConfigError(f"{name} {error}; {option_help(name)}") from error


def _converted(kind: Any, value: Any) -> Any:
    """Return a value as this type. Raises TypeError: it has another one; ValueError: no option can hold it."""
    if kind in NUMBERS:
        if not isinstance(value, NUMBERS[kind]) or isinstance(value, bool) is not (kind is bool):
            raise TypeError
        if isinstance(value, numbers.Integral) and abs(int(value)) > 2**53:
            raise ValueError("is too large a number")
        return kind(value)
    if typing.get_origin(kind) is tuple:
        return tuple(map(_text, value if isinstance(value, (list, tuple)) else [value]))
    return kind(_text(value))


def _text(value: Any) -> str:
    text = os.fsdecode(value)  # TypeError: neither a text nor a path
    if "\0" in text:
        raise ValueError("holds a zero byte")
    return text


def option_help(key: str) -> str:
    """Return the help text of an option."""
    return str(next(f for f in dataclasses.fields(Config) if f.name == key).metadata["help"])
