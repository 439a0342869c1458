"""The settings of a board for its first boot: one TOML file, and how it gets into the image's FAT partition.

    hostname = "porch"                 # then the page is at http://porch.local:8080/
    user = "pi"                        # the user who may log in, only with an ssh_key
    ssh_key = ["ssh-ed25519 AAAA..."]  # without a key, no login is possible
    timezone = "Europe/Vienna"

    [wifi]                             # without it, the board uses the cable
    ssid = "name"
    password = "secret"
    country = "AT"

    [edgesan]                          # options of `edgesan run`; `model` is a file of this machine, beside its .sig
    camera = "picamera"                # the URL of a network camera may have a password: it goes where only root reads
    out = "http://0.0.0.0:8080"
    token = "..."                      # of at least 16 characters: openssl rand -hex 16

Since trixie, Raspberry Pi OS reads cloud-init's files there: user-data, meta-data and network-config (cloud-init's
NoCloud source; version 2 of netplan). They are written as JSON, which is YAML, too: no character in a name can become
syntax. Writing needs no root, as mtools works on a FAT file system inside a file.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgesan import config
from edgesan.config import Config
from edgesan.errors import ConfigError, SinkError

FAT_TYPES: Final = (0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E)  # of partitions in a master boot record
SECTOR: Final = 512
INSTALLER: Final = "edgesan/install.py"
MODELS: Final = Path("/var/lib/edgesan/models")
CONFIG: Final = Path("/etc/edgesan/edgesan.toml")
FIXED: Final = {  # the units need these: see firmware_config/README.md
    "model": str(MODELS / "current" / "model.onnx"),
    "state_dir": "/var/lib/edgesan/sanitize",
    "scene": "/var/lib/edgesan/scene/scene.png",
}
GROUPS: Final = "adm,dialout,audio,video,plugdev,users,input,render,netdev,gpio,spi,i2c,sudo"


@dataclass(frozen=True)
class Settings:
    """All settings. `run` holds the checked options under [edgesan], and `given` their names."""

    hostname: str = "edgesan"
    user: str = "pi"
    ssh_key: tuple[str, ...] = ()
    timezone: str = "Etc/UTC"
    ssid: str = ""
    password: str = ""
    country: str = ""
    run: Config = dataclasses.field(default_factory=Config)
    given: tuple[str, ...] = ()


def load_settings(path: Path | None) -> Settings:
    """Read the file of settings; without a file, return the defaults.

    Raises:
        ConfigError: it cannot be read, a key is unknown, or a value is wrong.
    """
    if path is None:
        return Settings()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    wifi, run = table.pop("wifi", {}), table.pop("edgesan", {})
    known = {"": ("hostname", "user", "ssh_key", "timezone"), "wifi.": ("ssid", "password", "country")}
    for prefix, part in (("", table), ("wifi.", wifi)):
        for key, value in part.items() if isinstance(part, dict) else ():
            if key not in known[prefix]:
                near = difflib.get_close_matches(key, (*known[prefix], "wifi", "edgesan"), 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known[prefix])}"
                raise ConfigError(f"{path} has the unknown key {prefix + key!r}; {hint}")
            texts = value if key == "ssh_key" and isinstance(value, list) else [value]
            if not all(isinstance(text, str) and text.isprintable() for text in texts):
                raise ConfigError(f"{path}: {prefix + key} = {value!r} is not a plain text")
    if not isinstance(wifi, dict) or not isinstance(run, dict):
        raise ConfigError(f"{path}: wifi and edgesan are tables: begin them with [wifi] and [edgesan]")
    keys = table.pop("ssh_key", [])
    options = config.typed(path, run)
    if "model" in options:
        options["model"] = path.parent / options["model"]
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    settings = Settings(**table, **wifi, ssh_key=keys, run=Config(**options), given=tuple(options))
    _check(path, settings)
    return settings


ON_THE_BOARD_ONLY: Final = ("state_dir", "tls_cert", "tls_key", "role", "socket", "allow_rollback")
NAME: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
TIMEZONE: Final = r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}"
PUBLIC_KEY: Final = r"(ssh|ecdsa|sk)-[\w@.-]+ [A-Za-z0-9+/=]+( .*)?"


def _check(path: Path, s: Settings) -> None:
    """Raise ConfigError for the first value that is wrong."""
    for key, value, wanted in _wrong(s):
        raise ConfigError(f"{path}: {key} is {value!r}: {wanted}")


def _wrong(s: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield each wrong value: its key, the value, and what is expected."""
    if not re.fullmatch(NAME, s.hostname, re.IGNORECASE):
        yield "hostname", s.hostname, "letters, digits and hyphens, 63 at most (RFC 1123)"
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", s.user) or s.user in ("root", "edgesan"):
        yield "user", s.user, "an ordinary user's name, in small letters"
    if not re.fullmatch(TIMEZONE, s.timezone):
        yield "timezone", s.timezone, "write it as Europe/Vienna"
    for key in s.ssh_key:
        if not re.fullmatch(PUBLIC_KEY, key):
            yield "ssh_key", key, "a public key as ssh-keygen writes it, ssh-ed25519 AAAA...; never the private one"
    if s.ssid or s.password or s.country:
        yield from _wrong_wifi(s)
    if fixed := [key for key in ON_THE_BOARD_ONLY if key in s.given]:
        yield "edgesan", ", ".join(fixed), "not here: change it on the board, in /etc/edgesan/edgesan.toml"
    if s.run.camera_is_url and re.search(r"[\s\"'\\]", s.run.camera):
        yield "edgesan.camera", s.run.camera_name, "write blanks, quotes and backslashes of a URL as %XX"


def _wrong_wifi(s: Settings) -> Iterator[tuple[str, str, str]]:
    if not 1 <= len(s.ssid.encode()) <= 32:
        yield "wifi.ssid", s.ssid, "the network's name, 32 bytes at most"
    if s.password and not (8 <= len(s.password) <= 63 and s.password.isascii()):
        yield "wifi.password", "...", "8 to 63 characters of ASCII; leave it out for an open network"
    if not re.fullmatch("[A-Z]{2}", s.country):
        yield "wifi.country", s.country, "two capital letters, as AT: the law says which channels"


def seed(s: Settings) -> dict[str, bytes]:
    """Return the files for the FAT partition, by their names there. The same settings give the same bytes."""
    files: dict[str, bytes] = {}
    options = {key: getattr(s.run, key) for key in s.given if key not in ("token", "model")}
    if s.run.camera_is_url:  # the rest of it may hold a password
        options["camera"] = s.run.camera_name
    lines = ["# Made from the settings of the image. `edgesan run --help` describes each option, under the same name."]
    lines += [f"{key} = {_toml(value)}" for key, value in ({"require_isolation": True} | options | FIXED).items()]
    files["edgesan/settings/edgesan.toml"] = ("\n".join(lines) + "\n").encode()
    files["edgesan/settings/token.env"] = f"EDGESAN_TOKEN={s.run.token}\n".encode() if s.run.token else b""
    camera = f"EDGESAN_CAMERA={s.run.camera}\n" if s.run.camera_is_url else ""
    files["edgesan/settings/camera.env"] = camera.encode()
    signature = Path(f"{s.run.model}.sig")
    try:
        files["edgesan/model/model.onnx"] = s.run.model.read_bytes()
        if signature.exists():
            files["edgesan/model/model.onnx.sig"] = signature.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the model {error.filename}: {error.strerror}") from error
    user: dict[str, Any] = {
        "hostname": s.hostname,
        "manage_etc_hosts": True,
        "timezone": s.timezone,
        "ssh_pwauth": False,
        "runcmd": [["python3", f"/boot/firmware/{INSTALLER}"]],
    }
    if s.ssh_key:
        account = {
            "name": s.user,
            "groups": GROUPS,
            "shell": "/bin/bash",
            "lock_passwd": True,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": list(s.ssh_key),
        }
        user |= {"users": [account], "enable_ssh": True}
    network: dict[str, Any] = {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}
    if s.ssid:
        point = {"password": s.password} if s.password else {}
        radio = {"dhcp4": True, "optional": True, "regulatory-domain": s.country, "access-points": {s.ssid: point}}
        network["wifis"] = {"wlan0": radio}
    files["user-data"] = b"#cloud-config\n" + _json(user)
    files["network-config"] = _json({"network": network})
    # Another identity makes cloud-init run again.
    identity = hashlib.sha256(b"\0".join(files[name] for name in sorted(files))).hexdigest()[:16]
    files["meta-data"] = _json({"instance-id": f"edgesan-{identity}"})
    return files


def kernel_line(line: str, s: Settings, files: dict[str, bytes]) -> str:
    """Return cmdline.txt with where cloud-init looks and which channels the radio may use, in place of earlier ones."""
    words = [word for word in line.split() if not word.startswith(("ds=nocloud", "cfg80211.ieee80211_regdom="))]
    words.append(f"ds=nocloud;i={json.loads(files['meta-data'])['instance-id']}")
    return " ".join([*words, f"cfg80211.ieee80211_regdom={s.country}"] if s.country else words) + "\n"


def _toml(value: Any) -> str:
    """Write a TOML value: strings, numbers and lists are written as in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


# --- the FAT partition ------------------------------------------------------------------------------------------------


class Fat:
    """The first FAT partition of an image, or of a card."""

    def __init__(self, image: Path) -> None:
        """Find the partition in the master boot record.

        Raises:
            ConfigError: there is none, or mtools is missing.
            SinkError: the image cannot be read.
        """
        if shutil.which("mcopy") is None:
            raise ConfigError("mtools is missing, which writes into an image without root: sudo apt install mtools")
        self.image = image
        try:
            with image.open("rb") as file:
                record = file.read(SECTOR)
        except OSError as error:
            raise SinkError(f"cannot read {image}: {error.strerror}") from error
        entries = [record[446 + 16 * n : 462 + 16 * n] for n in range(4)]
        starts = [struct.unpack_from("<I", e, 8)[0] for e in entries if len(e) == 16 and e[4] in FAT_TYPES]
        if record[510:] != b"\x55\xaa" or not starts:
            raise ConfigError(
                f"{image} has no FAT partition in a master boot record: expected an unpacked image of Raspberry Pi OS"
            )
        self._drive = f"{image}@@{starts[0] * SECTOR}"

    def _tool(self, name: str, *arguments: str) -> bytes:
        command = [name, "-i", self._drive, *arguments]
        environment = os.environ | {"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SinkError(f"{name} in {self.image}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def free(self) -> int:
        """Return how many bytes are free."""
        said = self._tool("mdir", "::").decode(errors="replace")
        found = re.search(r"([\d ]+) bytes free", said)
        if not found:
            raise SinkError(f"mdir in {self.image} does not report the free bytes: {said.strip()}")
        return int(found[1].replace(" ", ""))

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        try:
            self._tool("mdir", "-b", f"::{name}")
        except SinkError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Read a file. Raises SinkError."""
        return self._tool("mtype", f"::{name}")

    def write(self, folder: Path) -> None:
        """Copy everything in a folder, over what is there, and read it back. Each folder in it must hold a file.

        Raises:
            SinkError: it does not fit, or is not what was written.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path: path.relative_to(folder).as_posix() for path in files}
        present = [name for name in names.values() if self.has(name)]
        # A cluster is 32 KiB at most, and each file's last one is half empty on average; folders take some, too.
        needed = sum(path.stat().st_size + 16384 for path in files)
        free = self.free() + sum(len(self.read(name)) for name in present)
        if needed > free:
            raise SinkError(
                f"{needed / 2**20:.0f} MiB do not fit into the boot partition of {self.image}, which has"
                f" {free / 2**20:.0f} MiB free: Raspberry Pi OS makes it 512 MiB since bookworm; is this an old image?"
            )
        for place in sorted({path.parent for path in files}):
            name = place.relative_to(folder).as_posix()
            if name != "." and not self.has(name):
                self._tool("mmd", f"::{name}")
            here = [str(path) for path in files if path.parent == place]
            self._tool("mcopy", "-D", "o", "-D", "O", *here, f"::{'' if name == '.' else name}/")
        for path, name in names.items():
            if self.read(name) != path.read_bytes():
                raise SinkError(f"{name} in {self.image} is not what was written: the card may be worn")


def inject(image: Path, settings: Settings, payload: Path | None = None) -> None:
    """Write the settings into an image or a card, and the payload, too, where one is given.

    Args:
        image: the image, unpacked, or the device.
        settings: the board's.
        payload: the folder that `firmware_config.build` laid out; None: the image holds edgesan already.

    Raises:
        ConfigError: it is not an image of Raspberry Pi OS trixie or later, or it holds no edgesan.
        SinkError: it does not fit, or cannot be written.
    """
    fat = Fat(image)
    for name in ("cmdline.txt", "user-data"):
        if not fat.has(name):
            raise ConfigError(
                f"the boot partition of {image} has no {name}: expected Raspberry Pi OS trixie or later, which runs"
                " cloud-init at its first boot"
            )
    if payload is None and not fat.has(INSTALLER):
        raise ConfigError(f"{image} holds no edgesan yet: make it with python -m firmware_config.build")
    files = seed(settings)
    for name in ("cmdline.txt", "A/cmdline.txt", "B/cmdline.txt"):  # of the slots, where the card has two
        if fat.has(name):
            files[name] = kernel_line(fat.read(name).decode(errors="replace"), settings, files).encode()
    with tempfile.TemporaryDirectory(prefix="edgesan-") as name:
        folder = Path(name)
        if payload is not None:
            shutil.copytree(payload, folder / "edgesan")
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        fat.write(folder)
