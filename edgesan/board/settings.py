"""What a board is told before its first boot: one TOML file, and where it goes in the image's FAT partition.

    hostname = "porch"                 # then the page is at http://porch.local:8080/
    user = "pi"                        # who may log in, by ssh_key alone
    ssh_key = ["ssh-ed25519 AAAA..."]  # none: nobody
    timezone = "Europe/Vienna"

    [wifi]                             # none: the cable
    ssid = "name"
    password = "secret"
    country = "AT"

    [edgesan]                          # options of `edgesan run`; model is a file here, beside its .sig
    camera = "picamera"
    out = "http://0.0.0.0:8080"
    token = "..."                      # of at least 16 characters: openssl rand -hex 16

Raspberry Pi OS reads cloud-init's files there since trixie: user-data, meta-data, network-config (cloud-init: the NoCloud
source; netplan's version 2). They are written as JSON, which YAML contains: no sign in a name can become syntax.
Writing needs no root: mtools finds its way into a FAT file system inside a file.
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
FIXED: Final = {  # what the units count on: see firmware_config/README.md
    "model": str(MODELS / "current" / "model.onnx"),
    "state_dir": "/var/lib/edgesan/sanitize",
}
GROUPS: Final = "adm,dialout,audio,video,plugdev,users,input,render,netdev,gpio,spi,i2c,sudo"


@dataclass(frozen=True)
class Settings:
    """The whole of it. `run` holds the options under [edgesan], checked, and `given` their names."""

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
    """Read the file of settings; the defaults where there is none.

    Raises:
        ConfigError: it cannot be read, a key is unknown, or a value cannot be.
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
    settings = Settings(
        **table, **wifi, ssh_key=tuple([keys] if isinstance(keys, str) else keys), run=Config(**options),
        given=tuple(options),
    )  # fmt: skip
    _check(path, settings)
    return settings


def _check(path: Path, s: Settings) -> None:
    def refuse(key: str, value: object, wanted: str) -> None:
        raise ConfigError(f"{path}: {key} is {value!r}: {wanted}")

    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", s.hostname, re.IGNORECASE):
        refuse("hostname", s.hostname, "letters, digits and hyphens, 63 at most (RFC 1123)")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", s.user) or s.user in ("root", "edgesan"):
        refuse("user", s.user, "an ordinary user's name, in small letters")
    if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}", s.timezone):
        refuse("timezone", s.timezone, "write it as Europe/Vienna")
    for key in s.ssh_key:
        if not re.fullmatch(r"(ssh|ecdsa|sk)-[\w@.-]+ [A-Za-z0-9+/=]+( .*)?", key):
            refuse("ssh_key", key, "a public key as ssh-keygen writes it, ssh-ed25519 AAAA...; never the private one")
    if s.ssid or s.password or s.country:
        if not 1 <= len(s.ssid.encode()) <= 32:
            refuse("wifi.ssid", s.ssid, "the network's name, 32 bytes at most")
        if not (8 <= len(s.password) <= 63 and s.password.isascii()) and s.password:
            refuse("wifi.password", "...", "8 to 63 characters of ASCII; leave it out for an open network")
        if not re.fullmatch("[A-Z]{2}", s.country):
            refuse("wifi.country", s.country, "two capital letters, as AT: the law says which channels")
    fixed = [key for key in ("state_dir", "tls_cert", "tls_key", "role", "socket", "allow_rollback") if key in s.given]
    if fixed:
        refuse("edgesan", ", ".join(fixed), "not here: change it on the board, in /etc/edgesan/edgesan.toml")
    if s.run.camera_is_url:
        refuse(
            "edgesan.camera", s.run.camera, "the unit that sees raw pixels has no network: use a camera of the board"
        )


def seed(s: Settings) -> dict[str, bytes]:
    """The files for the FAT partition, by their names there. The same settings give the same bytes."""
    files: dict[str, bytes] = {}
    options = {key: getattr(s.run, key) for key in s.given if key not in ("token", "model")}
    lines = ["# Written by the settings of the image. `edgesan run --help` has each option, under the same name."]
    lines += [f"{key} = {_toml(value)}" for key, value in ({"require_isolation": True} | options | FIXED).items()]
    files["edgesan/settings/edgesan.toml"] = ("\n".join(lines) + "\n").encode()
    files["edgesan/settings/token.env"] = f"EDGESAN_TOKEN={s.run.token}\n".encode() if s.run.token else b""
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
        account = {"name": s.user, "groups": GROUPS, "shell": "/bin/bash", "lock_passwd": True,
                   "sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": list(s.ssh_key)}  # fmt: skip
        user |= {"users": [account], "enable_ssh": True}
    network: dict[str, Any] = {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}
    if s.ssid:
        point = {"password": s.password} if s.password else {}
        network["wifis"] = {"wlan0": {"dhcp4": True, "optional": True, "regulatory-domain": s.country,
                                      "access-points": {s.ssid: point}}}  # fmt: skip
    files["user-data"] = b"#cloud-config\n" + _json(user)
    files["network-config"] = _json({"network": network})
    # Another identity makes cloud-init run again.
    identity = hashlib.sha256(b"\0".join(files[name] for name in sorted(files))).hexdigest()[:16]
    files["meta-data"] = _json({"instance-id": f"edgesan-{identity}"})
    return files


def kernel_line(line: str, s: Settings, files: dict[str, bytes]) -> str:
    """cmdline.txt, with where cloud-init looks, and which channels the radio may use; what was there of ours goes."""
    words = [word for word in line.split() if not word.startswith(("ds=nocloud", "cfg80211.ieee80211_regdom="))]
    words.append(f"ds=nocloud;i={json.loads(files['meta-data'])['instance-id']}")
    return " ".join([*words, f"cfg80211.ieee80211_regdom={s.country}"] if s.country else words) + "\n"


def _toml(value: Any) -> str:
    """A TOML value: strings, numbers and lists are written as in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


# --- the FAT partition ------------------------------------------------------------------------------------------------


class Fat:
    """The first FAT partition of an image, or of a card."""

    def __init__(self, image: Path) -> None:
        """Find it in the master boot record.

        Raises:
            ConfigError: there is none, or mtools are missing. SinkError: it cannot be read.
        """
        if shutil.which("mcopy") is None:
            raise ConfigError("mtools are missing, which write into an image without root: sudo apt install mtools")
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
        environment = os.environ | {"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [name, "-i", self._drive, *arguments], env=environment, check=False, capture_output=True, stdin=subprocess.DEVNULL
        )  # fmt: skip
        if done.returncode:
            raise SinkError(f"{name} in {self.image}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def free(self) -> int:
        """Bytes that are left."""
        said = self._tool("mdir", "::").decode(errors="replace")
        found = re.search(r"([\d ]+) bytes free", said)
        if not found:
            raise SinkError(f"mdir in {self.image} says nothing of free bytes: {said.strip()}")
        return int(found[1].replace(" ", ""))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._tool("mdir", "-b", f"::{name}")
        except SinkError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """A file's content. Raises SinkError."""
        return self._tool("mtype", f"::{name}")

    def write(self, folder: Path) -> None:
        """Copy all that lies in a folder, over what is there, and read it back. No folder may hold folders alone.

        Raises:
            SinkError: it does not fit, or came back as something else.
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
                f" {free / 2**20:.0f} MiB free: Raspberry Pi OS has made it 512 MiB since bookworm; is this an older image?"
            )
        for place in sorted({path.parent for path in files}):
            name = place.relative_to(folder).as_posix()
            if name != "." and not self.has(name):
                self._tool("mmd", f"::{name}")
            here = [str(path) for path in files if path.parent == place]
            self._tool("mcopy", "-D", "o", "-D", "O", *here, f"::{'' if name == '.' else name}/")
        for path, name in names.items():
            if self.read(name) != path.read_bytes():
                raise SinkError(f"{name} in {self.image} came back as something else: the card may be worn")


def inject(image: Path, settings: Settings, payload: Path | None = None) -> None:
    """Write the settings, and the payload where there is one, into an image or a card.

    Raises:
        ConfigError: it is not an image that this works with. SinkError: it does not fit, or cannot be written.
    """
    fat = Fat(image)
    for name in ("cmdline.txt", "user-data"):
        if not fat.has(name):
            raise ConfigError(
                f"the boot partition of {image} has no {name}: expected Raspberry Pi OS trixie or later, whose first boot"
                " cloud-init does"
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
