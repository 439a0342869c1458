"""Which models may run: those that a trusted key signed, exactly as it signed them."""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgesan import status
from edgesan.board import doctor
from edgesan.cli import main
from edgesan.config import DEMO_MODEL, load
from edgesan.errors import ConfigError, ModelError, SignatureError, SinkError
from edgesan.model import signing
from edgesan.model.load import load_model
from tests.support import ROOT, Maker, Running, run

# --- the bundled model ------------------------------------------------------------------------------------------------


def test_the_bundled_model_is_signed_with_the_bundled_key() -> None:
    """After the model was replaced: `make sign`."""
    content = DEMO_MODEL.read_bytes()
    signer = signing.verify(DEMO_MODEL, content, signing.bundled(), allow_unsigned=False)
    assert signer is not None
    assert signer.trusted
    assert load_model(DEMO_MODEL).signer == signer


def test_no_private_key_lies_in_the_project() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.split(b"\0")
    files = [ROOT / os.fsdecode(name) for name in tracked if name] or [
        p for p in ROOT.glob("edgesan/**/*") if p.is_file()
    ]
    header = b"PRIVATE" + b" KEY-----"
    assert files
    assert [path for path in files if path.is_file() and header in path.read_bytes()] == []


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_model_of_a_trusted_maker_runs(maker: Maker) -> None:
    loaded = load_model(maker.model(), trusted_keys=(maker.key.line,))
    assert loaded.signer == signing.Signer(maker.key, trusted=True)
    assert str(loaded.signer) == f"signed by {maker.key.fingerprint} (maker)"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def resigned(path: Path, text: Callable[[list[str]], str]) -> None:
    signature = signing.signature_path(path)
    signature.write_text(text(signature.read_text().splitlines()))


def short_signature(lines: list[str]) -> str:
    return f"{lines[0]}\n{base64.b64encode(base64.b64decode(lines[1])[:63]).decode()}\n"


def flipped_signature(lines: list[str]) -> str:
    signature = bytearray(base64.b64decode(lines[1]))
    signature[13] ^= 1  # a bit of the signature, not of its text: that may leave base64, and is another error
    return f"{lines[0]}\n{base64.b64encode(signature).decode()}\n"


def other_signature(lines: list[str]) -> str:
    return f"{lines[0]}\n{base64.b64encode(bytes(64)).decode()}\n"


BAD_SIGNATURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: signing.signature_path(p).unlink(), "is not signed: there is no"),
    "a folder": (
        lambda p: (signing.signature_path(p).unlink(), signing.signature_path(p).mkdir()),
        "cannot read the signature",
    ),
    "empty": (lambda p: resigned(p, lambda _: ""), "it has 0 line ends, not 2"),
    "binary": (lambda p: signing.signature_path(p).write_bytes(b"\xff" * 64), "'ascii' codec can't decode"),
    "huge": (lambda p: signing.signature_path(p).write_bytes(b"\n" * 10**6), "it has 4097 line ends, not 2"),
    "of one line": (lambda p: resigned(p, lambda lines: f"{lines[1]}\n"), "it has 1 line ends, not 2"),
    "without a key": (lambda p: resigned(p, lambda lines: f"me\n{lines[1]}\n"), "it is not an ssh-ed25519 key"),
    "of another kind of key": (
        lambda p: resigned(p, lambda lines: lines[0].replace("ed25519", "rsa", 1) + f"\n{lines[1]}\n"),
        "it is not an ssh-ed25519 key",
    ),
    "with a key that is no base64": (
        lambda p: resigned(p, lambda lines: f"ssh-ed25519 A\n{lines[1]}\n"),
        "is not a signature",
    ),
    "that is no base64": (lambda p: resigned(p, lambda lines: f"{lines[0]}\n*{lines[1]}\n"), "is not a signature"),
    "too short": (lambda p: resigned(p, short_signature), "it holds 63 bytes, not 64"),
    "with a name behind the key": (
        lambda p: resigned(p, lambda lines: f"{lines[0]} edgesan\n{lines[1]}\n"),
        "it holds more than the key",
    ),
    "with Windows line ends": (
        lambda p: signing.signature_path(p).write_bytes(signing.signature_path(p).read_bytes().replace(b"\n", b"\r\n")),
        "is not a signature",
    ),
    "of zeros": (lambda p: resigned(p, other_signature), "is over other bytes"),
    "with one bit flipped": (lambda p: resigned(p, flipped_signature), "is over other bytes"),
    "over a model with its first bit flipped": (lambda p: flip(p, 0), "is over other bytes"),
    "over a model with its last bit flipped": (lambda p: flip(p, -1), "is over other bytes"),
    "over a longer model": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "is over other bytes"),
    "over the bundled model": (
        lambda p: shutil.copy(signing.signature_path(DEMO_MODEL), signing.signature_path(p)),
        "is over other bytes",
    ),
}


@pytest.mark.parametrize(("damage", "words"), BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_a_bad_signature_is_refused_in_words_of_its_own(
    maker: Maker, damage: Callable[[Path], Any], words: str
) -> None:
    path = maker.model(name="own")
    damage(path)
    with pytest.raises(SignatureError) as caught:
        load_model(path, trusted_keys=(maker.key.line,))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [d for d, w in BAD_SIGNATURES.values() if "there is no" not in w])
def test_a_wrong_signature_is_refused_also_where_none_is_asked_for(maker: Maker, damage: Callable[[Path], Any]) -> None:
    path = maker.model(name="own")
    damage(path)
    for keys in ((), (maker.key.line,)):
        with pytest.raises(SignatureError):
            load_model(path, trusted_keys=keys, allow_unsigned=True)


def test_a_strangers_model_is_refused_with_the_key_to_trust(maker: Maker, stranger: Maker) -> None:
    path = stranger.model()
    with pytest.raises(SignatureError) as caught:
        load_model(path, trusted_keys=(maker.key.line,))
    said = str(caught.value)
    assert f"signed by the untrusted key {stranger.key.fingerprint}" in said
    assert f"{maker.key.fingerprint} (maker)" in said
    assert stranger.key.line.removesuffix(" stranger") in said


def test_a_stranger_who_names_a_trusted_key_is_refused(maker: Maker, stranger: Maker) -> None:
    path = stranger.model()
    resigned(path, lambda lines: f"{maker.key.line.removesuffix(' maker')}\n{lines[1]}\n")
    with pytest.raises(SignatureError, match=f"is not what {maker.key.fingerprint.replace('+', '.')} signed"):
        load_model(path, trusted_keys=(maker.key.line,))


def test_allow_unsigned_runs_the_unsigned_and_the_strangers_and_names_them(maker: Maker, stranger: Maker) -> None:
    assert load_model(maker.model(sign=False), allow_unsigned=True).signer is None
    assert load_model(stranger.model(), allow_unsigned=True).signer == signing.Signer(stranger.key, trusted=False)


def test_a_signature_makes_no_sanitizer_of_a_file(maker: Maker) -> None:
    path = maker.folder / "poem.onnx"
    path.write_text("roses are red\n" * 100)
    maker.sign(path)
    with pytest.raises(ModelError, match="not an ONNX file"):
        load_model(path, trusted_keys=(maker.key.line,))


opened: list[Callable[[str], None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and opened:
        opened[-1](str(arguments[0]))


sys.addaudithook(_hook)  # it cannot be taken away again; without somebody in `opened` it does nothing


def test_the_bytes_that_were_verified_are_the_bytes_that_run(maker: Maker, stranger: Maker) -> None:
    """An attacker swaps the model while its signature is being opened, that is, between reading and running."""
    path, evil = maker.model(name="good"), stranger.model("evil.onnx", name="evil")
    good = path.read_bytes()
    signature = signing.signature_path(path)
    seen: list[str] = []

    def swap(name: str) -> None:
        seen.append(name)
        if name == str(signature):
            evil.replace(path)

    opened.append(swap)
    try:
        loaded = load_model(path, trusted_keys=(maker.key.line,))
    finally:
        opened.pop()

    assert path.read_bytes() != good, "the attack did not happen"
    assert loaded.sha256 == hashlib.sha256(good).hexdigest()
    assert loaded.metadata.name == "good"
    assert [seen.count(str(name)) for name in (path, signature)] == [1, 1]  # each is read once
    with pytest.raises(SignatureError, match="is over other bytes"):
        load_model(path, trusted_keys=(maker.key.line,))


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_key_is_its_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    signing.new_key(path)
    secret = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        signing.new_key(path)
    (tmp_path / "theirs.pub").write_text("precious")
    with pytest.raises(ConfigError, match=r"theirs\.pub exists"):
        signing.new_key(tmp_path / "theirs")
    assert path.read_bytes() == secret
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(SinkError, match="No such file or directory"):
        signing.new_key(tmp_path / "nowhere" / "mine")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not here to compare with")
def test_keys_are_openssh_keys(tmp_path: Path) -> None:
    ours = signing.new_key(tmp_path / "ours")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a name", "-f", tmp_path / "theirs"], check=True
    )
    theirs = signing.parse_key((tmp_path / "theirs.pub").read_text())
    for key, file in ((ours, "ours"), (theirs, "theirs")):
        told = subprocess.run(
            ["ssh-keygen", "-lf", tmp_path / f"{file}.pub"], capture_output=True, text=True, check=True
        )
        assert told.stdout.split()[1] == key.fingerprint
        assert signing.public_half(signing.private_key(tmp_path / file)) == key
    assert theirs.name == "a name"


def pem(key: Any, password: bytes | None = None) -> bytes:
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, locked)
    return made


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "No such file or directory"),
        (b"", 0o600, "not a private key in OpenSSH's format"),
        (b"roses are red", 0o600, "not a private key in OpenSSH's format"),
        (signing.BUNDLED_KEY.read_bytes(), 0o644, "is a public key"),
        (pem(Ed25519PrivateKey.generate())[:200], 0o600, "not a private key in OpenSSH's format"),
        (pem(Ed25519PrivateKey.generate()), 0o644, "others may read the private key"),
        (pem(ec.generate_private_key(ec.SECP256R1())), 0o600, "is not an Ed25519 key"),
    ],
)
def test_a_bad_private_key_is_refused_in_words_of_its_own(
    tmp_path: Path, content: bytes | None, mode: int, words: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        signing.private_key(path)


def test_of_a_public_key_the_private_one_is_named(maker: Maker) -> None:
    done = run("sign", str(maker.model()), "--key", str(signing.public_path(maker.key_file)))
    assert done.returncode == 2
    assert done.stderr.endswith(f"is a public key, and it takes the private one to sign: name {maker.key_file}\n")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not here to make one")
def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "key"], check=True)
    with pytest.raises(ConfigError, match="locked with a passphrase"):
        signing.private_key(tmp_path / "key")


@pytest.mark.parametrize("line", ["", "me", "ssh-ed25519", "ssh-ed25519 ä", "ssh-ed25519 AAAA", "ssh-rsa AAAA me"])
def test_a_trusted_key_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="which is not a public key"):
        load_model(DEMO_MODEL, trusted_keys=(line,))


def test_a_damaged_bundled_key_trusts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "BUNDLED_KEY", tmp_path / "edgesan.pub")
    with pytest.raises(SignatureError, match="cannot read edgesan's own key"):
        load_model(DEMO_MODEL, allow_unsigned=True)
    (tmp_path / "edgesan.pub").write_text("ssh-ed25519 AAAA\n")
    with pytest.raises(SignatureError, match="is damaged"):
        load_model(DEMO_MODEL, allow_unsigned=True)


# --- as a user meets it -----------------------------------------------------------------------------------------------


def test_a_key_is_made_a_model_signed_and_the_printed_line_trusted(
    maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = maker.model(sign=False)
    assert main(["keys", "new", str(tmp_path / "mine")]) == 0
    told = capsys.readouterr().out
    toml = tmp_path / "edgesan.toml"
    toml.write_text(told[told.index("trusted_keys") :])
    assert tomllib.loads(toml.read_text())["trusted_keys"] == [(tmp_path / "mine.pub").read_text().strip()]

    assert main(["inspect", str(path), "--config", str(toml)]) == 4
    capsys.readouterr()
    assert main(["sign", str(path), "--key", str(tmp_path / "mine"), "--json"]) == 0
    fingerprint = json.loads(capsys.readouterr().out)["fingerprint"]
    assert main(["inspect", str(path)]) == 4
    capsys.readouterr()
    assert main(["inspect", str(path), "--config", str(toml)]) == 0
    assert f"signed by {fingerprint} (mine), trusted" in capsys.readouterr().out
    assert main(["inspect", str(path), "--allow-unsigned", "--json"]) == 0
    signature = json.loads(capsys.readouterr().out)["signature"]
    assert signature == {"fingerprint": fingerprint, "name": "", "trusted": False}


def test_keys_lists_whom_this_device_trusts(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *maker.options]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["bundled", signing.bundled()[0].fingerprint],
        ["trusted_keys", maker.key.fingerprint],
    ]
    assert main(["keys", "--json", *maker.options]) == 0
    assert [row["key"] for row in json.loads(capsys.readouterr().out)][1] == maker.key.line
    assert main(["keys", "--json", "new", str(maker.folder / "another")]) == 0
    assert json.loads(capsys.readouterr().out)["private"] == str(maker.folder / "another")


def test_what_may_not_run_is_not_signed(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    path = maker.folder / "poem.onnx"
    path.write_text("roses are red\n" * 100)
    assert main(["sign", str(path), "--key", str(maker.key_file)]) == 4
    assert "not an ONNX file" in capsys.readouterr().err
    assert not signing.signature_path(path).exists()


def test_an_unsigned_model_is_told_at_the_start_and_in_the_status(maker: Maker) -> None:
    path = maker.model(sign=False)
    running = Running("--camera", "demo", "--model", str(path), "--allow-unsigned", "--allow-rollback")
    running.until("camera_up", True)  # a frame may be there before the status that names the model
    status: Any = running.status()
    code, said, _ = running.end()
    assert code == 0
    assert status["model"]["signature"] == "unsigned"
    assert any("the model is UNSIGNED (allow_unsigned)" in text for text in status["warnings"])
    assert any("allow_rollback" in text for text in status["warnings"])
    assert "WARNING: the model is UNSIGNED" in said


def test_an_unsigned_model_is_told_where_a_picture_is_sanitized(maker: Maker, picture: Path) -> None:
    options = ["--model", str(maker.model(sign=False)), "--allow-unsigned"]
    done = run("sanitize", str(picture), str(maker.folder / "out.png"), *options)
    assert done.returncode == 0
    assert "WARNING: the model is UNSIGNED" in done.stderr


def test_a_signed_model_gives_no_warning_and_a_strangers_does(maker: Maker, stranger: Maker) -> None:
    signed, strange = maker.model(), stranger.model("strange.onnx")
    told = [
        status.warnings(
            maker.config(path, allow_unsigned=True),
            load_model(path, trusted_keys=(maker.key.line,), allow_unsigned=True),
        )
        for path in (signed, strange)
    ]
    assert told[0] == []
    assert f"signed by the UNTRUSTED key {stranger.key.fingerprint}" in told[1][0]


def test_the_doctor_says_who_signed_and_what_to_do(maker: Maker, stranger: Maker) -> None:
    signed, strange, bare = maker.model(), stranger.model(), maker.model("bare.onnx", sign=False)
    seen = []
    for path, allowed in (
        (signed, False),
        (signed, True),
        (strange, False),
        (strange, True),
        (bare, False),
        (bare, True),
    ):
        finding = doctor.signature(maker.config(path, allow_unsigned=allowed))
        assert finding is not None
        assert finding.cure or finding.level == "ok"
        seen.append(finding.level)
    assert seen == ["ok", "warn", "fail", "warn", "fail", "warn"]
    names = [finding.name for finding in doctor.examine(maker.config(bare, camera="demo", out=("http://127.0.0.1:0",)))]
    assert ("signature" in names, "model" in names) == (True, False)


def test_the_options_have_the_same_names_in_the_file(tmp_path: Path, maker: Maker) -> None:
    path = tmp_path / "edgesan.toml"
    path.write_text(
        f'trusted_keys = ["{maker.key.line}"]\nallow_unsigned = true\nstate_dir = "s"\nallow_rollback = true\n'
    )
    loaded = load(path, {"allow_unsigned": False})
    assert (loaded.trusted_keys, loaded.allow_unsigned, loaded.state_dir, loaded.allow_rollback) == (
        (maker.key.line,),
        False,
        Path("s"),
        True,
    )
