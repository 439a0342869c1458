"""Models and configurations for many boards from an ordinary HTTPS folder, by The Update Framework (python-tuf).

    FOLDER/metadata/   N.root.json, timestamp.json, N.snapshot.json, N.targets.json
    FOLDER/targets/    HASH.model.onnx, HASH.model.onnx.sig, HASH.NAME.toml

The framework's client refuses metadata that expired, is older than what it saw, or is signed by others than its root
names, and follows a root that changes its keys. Whoever has the server, or the way to it, can therefore neither bring a
model of his own, nor an old one, nor keep new ones away unnoticed. The model's own signature and the record of versions
(`edgesan.model.rollback`) are checked behind that, as for a model that came by hand.

The first root is trusted because one of edgesan's keys signed it (the bundled one, or `trusted_keys`), or because it
was given (`--root`). What the client has seen lies in a folder beside the models, which only root may change.
"""

import hashlib
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import urllib3
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from edgesan import disk
from edgesan.board import update
from edgesan.config import Config
from edgesan.errors import ConfigError, ModelError, RollbackError, SignatureError, SinkError
from edgesan.model import signing
from edgesan.model.load import MOST_BYTES

MODEL: Final = "model.onnx"
SIGNATURE: Final = "model.onnx.sig"
STATE: Final = "repository"  # folder beside that of the models
SILENCE_S: Final = 20  # from one byte to the next
WHOLE_S: Final = 900.0  # for everything: a server that sends a byte now and then is given up, too
AGAIN_S: Final = 5.0  # what is given up may be tried again by a library: then it is given up again
CHUNK_BYTES: Final = 65536
MOST_CONFIG: Final = 65536
LIMITS: Final = UpdaterConfig(targets_max_length=500_000, snapshot_max_length=100_000)


def install(  # noqa: PLR0913, PLR0917 - what `update.install` takes, and where it comes from
    url: str, root: Path | None, config: Config, models: Path, restart: list[str], watching: update.Watch
) -> str:
    """Install the model of a repository, unless it is what runs already.

    Args:
        url: the repository's folder, https://HOST/FOLDER.
        root: a root of trust; None: the one that was seen last, or else the first, by edgesan's keys.
        config: as `update.install` takes it, and the following, too.
        models: the folder that holds `current`.
        restart: the command that restarts the sanitize unit.
        watching: how long to watch the model.

    Returns:
        What was done, in a line.

    Raises:
        ModelError: as `update.install`; or the repository cannot be read, or has no model.
        SignatureError: its metadata is signed by a stranger.
        RollbackError: its metadata expired, or is older than what was seen here.
        ConfigError: the address is none of HTTPS.
        SinkError: a folder cannot be written.
    """
    with _client(url, root, config, models) as (updater, folder):
        with _said(url), _within(WHOLE_S):
            found = {name: _target(updater, name, most) for name, most in _MODEL_FILES.items()}
            if _is_current(found[MODEL], models):
                return f"the model of {url} is what runs already"
            for name, target in found.items():
                updater.download_target(target, str(folder / name))
        return update.install(folder / MODEL, config, models, restart, watching)


def fetch_config(url: str, root: Path | None, name: str, config: Config, models: Path) -> bytes:
    """Return a configuration of a repository.

    Args:
        url: the repository's folder.
        root: as for `install`.
        name: of the target, such as porch.toml.
        config: names the trusted keys.
        models: the folder that holds `current`.

    Raises:
        EdgesanError: as `install`.
    """
    with _client(url, root, config, models) as (updater, folder), _said(url), _within(WHOLE_S):
        updater.download_target(_target(updater, name, MOST_CONFIG), str(folder / "config.toml"))
        return (folder / "config.toml").read_bytes()


_MODEL_FILES: Final = {MODEL: MOST_BYTES, SIGNATURE: signing.MOST_FILE_BYTES}


@contextmanager
def _client(url: str, root: Path | None, config: Config, models: Path) -> Iterator[tuple[Updater, Path]]:
    """Yield the framework's client, which knows what is newest, and a folder for what it fetches.

    Raises:
        ConfigError: the address is none of HTTPS, or another user may change the folder of what was seen.
        EdgesanError: as `install`.
    """
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise ConfigError(f"{url} is no repository: write https://HOST/FOLDER")
    state, base = models.parent / STATE, url.rstrip("/")
    with ExitStack() as stack:
        with _said(url), _within(WHOLE_S):
            disk.own(state)
            state.mkdir(mode=0o755, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=state, prefix=".fetched-"))
            fetcher = Urllib3Fetcher(socket_timeout=SILENCE_S, chunk_size=CHUNK_BYTES, app_user_agent="edgesan")
            bootstrap = None
            if root:
                bootstrap = root.read_bytes()
            elif not (state / "root.json").exists():
                bootstrap = fetcher.download_bytes(f"{base}/metadata/1.root.json", LIMITS.root_max_length)
                check_root(bootstrap, [*signing.bundled(), *signing.configured(config.trusted_keys)])
            places = (str(state), f"{base}/metadata/", folder, f"{base}/targets/")
            updater = Updater(*places, fetcher=fetcher, config=LIMITS, bootstrap=bootstrap)
            updater.refresh()
        yield updater, Path(folder)


def check_root(content: bytes, keys: list[signing.Key]) -> None:
    """Refuse a first root that none of these keys signed, in the role of a root's key.

    Raises:
        SignatureError: none did, or it is no root.
    """
    trusted = {key.raw.hex() for key in keys}
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(content)
        if not isinstance(metadata.signed, Root):
            raise SignatureError("the repository's first root is metadata of another kind")
        for number in metadata.signed.roles[Root.type].keyids:
            key, signature = metadata.signed.keys[number], metadata.signatures.get(number)
            if signature and key.keytype == "ed25519" and key.keyval.get("public") in trusted:
                key.verify_signature(signature, metadata.signed_bytes)
                return
    except (DeserializationError, UnverifiedSignatureError, VerificationError, KeyError) as error:
        raise SignatureError(f"the repository's first root is damaged ({type(error).__name__})") from error
    raise SignatureError(
        "no trusted key signed the repository's first root: add its publisher's key to trusted_keys, or name a root"
        " that you trust, --root root.json"
    )


def _target(updater: Updater, name: str, most: int) -> TargetFile:
    """Return what the metadata says of a file.

    Raises:
        ModelError: there is none of this name, or it is too large.
    """
    target = updater.get_targetinfo(name)
    if target is None:
        raise ModelError(f"the repository names no {name}: its publisher must add it")
    if target.length > most:
        raise ModelError(f"the repository's {name} has {target.length:,} bytes: at most {most:,} are taken")
    return target


def _is_current(model: TargetFile, models: Path) -> bool:
    """Return whether these are the bytes that `current` names."""
    try:
        content = (models / "current" / MODEL).read_bytes()
    except OSError:
        return False
    return model.hashes.get("sha256") == hashlib.sha256(content).hexdigest()


@contextmanager
def _said(url: str) -> Iterator[None]:
    """Say what the client refuses in edgesan's own errors. The most specific kinds come first."""
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        raise RollbackError(
            f"{url} is out of date ({error}): its publisher must refresh it, unless the clock of this machine is wrong"
            f" ({now})"
        ) from error
    except exceptions.BadVersionNumberError as error:
        raise RollbackError(f"{url} is older than what was seen here ({error}): nothing is installed") from error
    except exceptions.UnsignedMetadataError as error:
        raise SignatureError(f"{url} is not signed by those whom its root names ({error})") from error
    except exceptions.LengthOrHashMismatchError as error:
        raise ModelError(f"{url} has a file that is not what its metadata says ({error})") from error
    except exceptions.DownloadLengthMismatchError as error:
        raise ModelError(f"{url} sends more than its metadata allows ({error})") from error
    except exceptions.DownloadHTTPError as error:
        raise ModelError(f"{url} answers {error.status_code}; is this the folder of a repository?") from error
    except (exceptions.DownloadError, urllib3.exceptions.HTTPError, TimeoutError) as error:
        cause = error.__cause__ or error
        raise ModelError(f"cannot reach {url}: {type(error).__name__} ({cause}); try again later") from error
    except exceptions.RepositoryError as error:
        raise SignatureError(f"{url} has metadata that is damaged, or not of its kind ({error})") from error
    except OSError as error:
        raise SinkError(f"cannot use {error.filename or STATE}: {error.strerror}; run it with sudo") from error


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside, in the main thread, once it takes longer: setitimer(2)."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
