"""Who made a model: Ed25519 signatures over the exact bytes of `NAME.onnx`, kept beside it in `NAME.onnx.sig`.

A signature file is two lines of text, and nothing else:

    ssh-ed25519 AAAA...      the public key of the signer
    base64                   64 bytes, Ed25519 (RFC 8032) over the bytes of the model file

The first line only names the key. Trusted are the key that comes with edgesan (`models/edgesan.pub`) and `trusted_keys`
in the configuration. Keys are files in OpenSSH's format: `ssh-keygen -lf` prints the same fingerprints, and `ssh-keygen
-t ed25519` makes keys that are as good as those of `edgesan keys new`.
"""

import base64
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from edgesan import disk
from edgesan.errors import ConfigError, SignatureError, SinkError

BUNDLED_KEY: Final = Path(__file__).parent.parent / "models" / "edgesan.pub"
KIND: Final = "ssh-ed25519"
# The wire form of a public key (RFC 8709, section 4): two strings, each after its length.
WIRE_HEAD: Final = b"\0\0\0\x0b" + KIND.encode() + b"\0\0\0\x20"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MOST_FILE_BYTES: Final = 4096  # of a key or signature file: both are far smaller


@dataclass(frozen=True)
class Key:
    """A public key. Its name is a comment behind it, and not part of the key."""

    raw: bytes
    name: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """The fingerprint, as `ssh-keygen -l` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(WIRE_HEAD + self.raw).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """The key as one line of text, as in OpenSSH's .pub files."""
        return f"{KIND} {base64.b64encode(WIRE_HEAD + self.raw).decode()} {self.name}".rstrip()

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.name})" if self.name else self.fingerprint


@dataclass(frozen=True)
class Signer:
    """The key of a valid signature, and whether it is trusted here."""

    key: Key
    trusted: bool

    def __str__(self) -> str:
        return f"signed by {self.key}" if self.trusted else f"signed by the UNTRUSTED key {self.key}"


def parse_key(line: str) -> Key:
    """Parse a public key from its line of text, `ssh-ed25519 AAAA... name`.

    Raises:
        ValueError: the line has another form.
    """
    kind, _, rest = line.strip().partition(" ")
    encoded, _, name = rest.partition(" ")
    wire = base64.b64decode(encoded, validate=True)
    if kind != KIND or not wire.startswith(WIRE_HEAD) or len(wire) != len(WIRE_HEAD) + KEY_BYTES:
        raise ValueError(f"it is not an {KIND} key")
    if not name.isprintable():
        raise ValueError("its name holds control characters")
    return Key(wire[len(WIRE_HEAD) :], name.strip())


def bundled() -> list[Key]:
    """Read the keys that come with edgesan, one on each line.

    Raises:
        SignatureError: their file is missing or damaged.
    """
    try:
        return [parse_key(line) for line in BUNDLED_KEY.read_text(encoding="ascii").splitlines()]
    except OSError as error:
        raise SignatureError(
            f"cannot read edgesan's own key {BUNDLED_KEY}: {error.strerror}; install edgesan again"
        ) from error
    except ValueError as error:
        raise SignatureError(f"edgesan's own key {BUNDLED_KEY} is damaged ({error}); install edgesan again") from error


def configured(lines: Iterable[str]) -> list[Key]:
    """Parse the keys of the configuration's `trusted_keys`.

    Raises:
        ConfigError: one of them is not a public key.
    """
    keys = []
    for line in lines:
        try:
            keys.append(parse_key(line))
        except ValueError as error:
            raise ConfigError(
                f"trusted_keys holds {line[:24]!r}, which is not a public key ({error}): write the line of a .pub file,"
                f" {KIND} AAAA... name; `edgesan keys new` makes one"
            ) from error
    return keys


def signature_path(model: Path) -> Path:
    """Return the path of a model's signature: beside the model."""
    return model.with_name(f"{model.name}.sig")


def read(signature: Path) -> bytes:
    """Read a signature file; of a file that is too large to be one, only the beginning. Raises OSError."""
    with signature.open("rb") as file:
        return file.read(MOST_FILE_BYTES + 1)


def verify(model: Path, content: bytes, trusted: list[Key], *, allow_unsigned: bool) -> Signer | None:
    """Verify the signature of a model file, and return its signer; None if there is no signature.

    A signature file that does not match these bytes means damage or an attack: it is always refused.

    Args:
        model: the model file; its signature is beside it.
        content: the bytes of the model file.
        trusted: the keys whose models may run.
        allow_unsigned: also accept no signature, or a valid one by an untrusted key.

    Raises:
        SignatureError: the signature is missing, unreadable, malformed, over other bytes, or by an untrusted key.
    """
    path = signature_path(model)
    try:
        text = read(path)
    except FileNotFoundError as error:
        if allow_unsigned:
            return None
        raise SignatureError(
            f"{model} is not signed: there is no {path}; download the signature, too, sign the model yourself"
            " (`edgesan sign`), or run it unsigned with --allow-unsigned"
        ) from error
    except OSError as error:
        raise SignatureError(f"cannot read the signature {path}: {error.strerror}; make it readable") from error
    try:
        signer, signature = _parse(text)
    except ValueError as error:
        raise SignatureError(
            f"{path} is not a signature ({error}): expected a line with the key and a line with the signature;"
            " download it again, or sign the model again"
        ) from error
    try:
        Ed25519PublicKey.from_public_bytes(signer.raw).verify(signature, content)
    except InvalidSignature as error:
        raise SignatureError(
            f"{model} is not what {signer.fingerprint} signed: {path} is over other bytes, so one of the two was"
            " changed or is damaged; download both again, or sign the model again"
        ) from error
    for key in trusted:
        if key == signer:
            return Signer(key, trusted=True)
    if allow_unsigned:
        return Signer(signer, trusted=False)
    raise SignatureError(
        f"{model} is signed by the untrusted key {signer.fingerprint}; trusted are"
        f" {', '.join(map(str, trusted)) or 'none'}: if you know that this is the key of the model's maker, add its"
        f" line to trusted_keys: {signer.line!r}"
    )


def _parse(text: bytes) -> tuple[Key, bytes]:
    """Return the signer and the signature of a signature file, which has exactly one valid spelling.

    Raises:
        ValueError: the file has another form.
    """
    lines = text.decode("ascii").split("\n")
    if len(lines) != 3:
        raise ValueError(f"it has {len(lines) - 1} line ends, not 2")
    signer, signature = parse_key(lines[0]), base64.b64decode(lines[1], validate=True)
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"it holds {len(signature)} bytes, not {SIGNATURE_BYTES}")
    if text != _format(signer, signature):
        raise ValueError("it holds more than the key and the signature")
    return signer, signature


def _format(signer: Key, signature: bytes) -> bytes:
    return f"{Key(signer.raw).line}\n{base64.b64encode(signature).decode()}\n".encode()


def sign(model: Path, content: bytes, private: Ed25519PrivateKey) -> Path:
    """Sign the bytes of a model file, and return the path of the signature, which is written entirely or not at all.

    Raises:
        SinkError: the folder of the model cannot be written.
    """
    path = signature_path(model)
    try:
        disk.write_whole(path, _format(public_half(private), private.sign(content)))
    except OSError as error:
        raise SinkError(
            f"cannot write {path}: {error.strerror}; put the model in a folder that you may write to"
        ) from error
    return path


def public_half(private: Ed25519PrivateKey, name: str = "") -> Key:
    """Return the public key of a private one."""
    return Key(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), name)


def new_key(path: Path) -> Key:
    """Make a key pair: the private key at `path`, readable by its owner only (mode 0600), the public key at `path`.pub.

    Raises:
        ConfigError: one of the files exists; a key is never overwritten.
        SinkError: the folder cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    key = public_half(private, path.name)
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    line = f"{key.line}\n".encode()
    try:
        disk.create(path.parent, {path.name: (secret, 0o600), public_path(path).name: (line, 0o644)})
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} exists, and a key is never overwritten: name another") from error
    except OSError as error:
        raise SinkError(
            f"cannot write {path}: {error.strerror}; name a folder with room that you may write to"
        ) from error
    return key


def public_path(private: Path) -> Path:
    """Return where `new_key` puts the public key: beside the private one."""
    return private.with_name(f"{private.name}.pub")


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key: Ed25519 in OpenSSH's format, without a passphrase, readable by its owner only.

    Raises:
        ConfigError: the file is not such a key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(MOST_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the private key {path}: {error.strerror}; `edgesan keys new` makes one"
        ) from error
    if text.startswith(b"ssh-"):
        private = path.with_suffix("") if path.suffix == ".pub" else "the other file of the pair"
        raise ConfigError(f"{path} is a public key, and it takes the private one to sign: name {private}")
    if mode & 0o077:
        raise ConfigError(f"others may read the private key {path} (mode {mode:o}): chmod 600 it, or make a new one")
    try:
        key = load_ssh_private_key(text, None)
    except TypeError as error:
        raise ConfigError(f"{path} is locked with a passphrase: use a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a private key in OpenSSH's format: `edgesan keys new` makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key: `edgesan keys new` makes one")
    return key
