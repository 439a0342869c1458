"""A repository of The Update Framework on a real HTTPS server: what is refused, and what is followed."""

import argparse
import runpy
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from tuf.api.metadata import Metadata, MetaFile, Timestamp

from edgesan.board import repository
from edgesan.config import Config
from edgesan.errors import ConfigError, ModelError, RollbackError, SignatureError
from edgesan.model import signing
from tests.board.test_update import Board
from tests.support import ROOT, Maker, run

SCRIPT = runpy.run_path(str(ROOT / "examples" / "publish_repository.py"))
PUBLISH, Repository, signer = SCRIPT["publish"], SCRIPT["Repository"], SCRIPT["signer"]


class Forger(Repository):  # type: ignore[misc, valid-type]
    """A publisher who writes what no client should take."""

    def check(self, metadata: object) -> None:
        pass


class Server:
    """An HTTPS server of a folder. `strange` answers what the folder would not."""

    def __init__(self, folder: Path, certificate: trustme.LeafCert) -> None:
        self.asked = list[str]()
        self.strange: dict[str, Callable[[Any], None]] = {}
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

            def do_GET(self) -> None:
                server.asked.append(self.path)
                answer = next((answer for part, answer in server.strange.items() if part in self.path), None)
                if answer is None:
                    super().do_GET()
                    return
                self.send_response(200)
                self.end_headers()
                answer(self.wfile)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Fleet:
    """A publisher, a server and a board that trusts the publisher's key."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        (folder / "keys").mkdir()
        self.key = signing.new_key(folder / "keys" / "release")
        for name in ("online", "next", "stranger"):
            signing.new_key(folder / "keys" / name)
        self.models = folder / "board" / "models"
        self.models.mkdir(parents=True)
        self.config = Config(trusted_keys=(self.key.line,), state_dir=folder / "board" / "state")
        self.file = folder / "porch.toml"

    def publish(self, *, key: str = "", new_key: str = "", text: str = "", days: float = 7, **options: Any) -> None:
        """As `python publish_repository.py` would, with the online key."""
        if text:
            self.file.write_text(text)
        chosen: dict[str, Any] = {"folder": self.folder / "served", "online": "online", "days_release": 180}
        chosen |= {"key": key, "new_key": new_key, "days": days, "add": [self.file] if text else []} | options
        for name in ("key", "online", "new_key"):
            chosen[name] = self.folder / "keys" / chosen[name] if chosen[name] else None
        PUBLISH(argparse.Namespace(**chosen))

    def signer(self, name: str) -> Any:
        return signer(self.folder / "keys" / name)

    def fetch(self, root: Path | None = None, url: str = "") -> str:
        """What `edgesan install` would make the board's configuration."""
        url = url or self.server.url
        return repository.fetch_config(url, root, "porch.toml", self.config, self.models).decode()

    def nothing_is_left(self) -> None:
        assert list(self.models.iterdir()) == []
        assert list((self.models.parent / "repository").glob(".*")) == []


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def fleet(tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served", authority.issue_cert("localhost"))
    yield Fleet(tmp_path, server)
    server.close()


def test_a_target_comes_whole_and_again_when_there_is_another(fleet: Fleet) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    assert fleet.fetch() == "alpha = 0.5\n"
    fleet.publish()
    assert fleet.fetch() == "alpha = 0.5\n"
    fleet.publish(key="release", text="alpha = 0.6\n")
    assert fleet.fetch() == "alpha = 0.6\n"
    fleet.nothing_is_left()
    assert sum("1.root.json" in path for path in fleet.server.asked) == 1, "the first root is asked for once"


def test_metadata_that_expired_is_refused(fleet: Fleet) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    fleet.fetch()
    fleet.publish(days=-1)
    with pytest.raises(RollbackError, match=r"is out of date.*its publisher must refresh it, unless the clock"):
        fleet.fetch()
    fleet.publish()
    assert fleet.fetch() == "alpha = 0.5\n"


@pytest.mark.slow
def test_a_server_that_is_frozen_is_noticed_once_its_metadata_expires(fleet: Fleet) -> None:
    """Whoever holds the server keeps serving what was newest once."""
    fleet.publish(key="release", text="alpha = 0.5\n", days=5 / 86400)
    shutil.copytree(fleet.folder / "served", fleet.folder / "frozen")
    fleet.fetch()
    fleet.publish(key="release", text="alpha = 0.9\n")
    shutil.rmtree(fleet.folder / "served")
    shutil.copytree(fleet.folder / "frozen", fleet.folder / "served")
    time.sleep(6)
    with pytest.raises(RollbackError, match="is out of date"):
        fleet.fetch()


@pytest.mark.parametrize("forged", [False, True])
def test_metadata_that_was_rolled_back_is_refused(fleet: Fleet, forged: bool) -> None:
    """By whoever has the server, or the online key, too."""
    stamp = fleet.folder / "served" / "metadata" / "timestamp.json"
    fleet.publish(key="release", text="alpha = 0.5\n")
    old = stamp.read_bytes()
    fleet.publish(key="release", text="alpha = 0.6\n")
    assert fleet.fetch() == "alpha = 0.6\n"
    if forged:
        newest = Timestamp(version=3, snapshot_meta=MetaFile(1))
        Forger(fleet.folder / "served").write(Metadata(newest), [fleet.signer("online")], 7)
    else:
        stamp.write_bytes(old)
    with pytest.raises(RollbackError, match="is older than what was seen here"):
        fleet.fetch()


def test_metadata_of_a_stranger_is_refused(fleet: Fleet) -> None:
    metadata = fleet.folder / "served" / "metadata"
    fleet.publish(key="release", text="alpha = 0.5\n")
    fleet.fetch()
    mine = [path.read_bytes() for path in sorted(metadata.iterdir())]
    shutil.rmtree(metadata)
    fleet.publish(key="stranger", text="alpha = 0.0\n", online="stranger")
    assert [path.read_bytes() for path in sorted(metadata.iterdir())] != mine
    with pytest.raises(SignatureError, match="is not signed by those whom its root names"):
        fleet.fetch()
    shutil.rmtree(fleet.models.parent / "repository")
    with pytest.raises(SignatureError, match="no trusted key signed the repository's first root"):
        fleet.fetch()
    # A person may trust it all the same.
    assert fleet.fetch(root=metadata / "1.root.json") == "alpha = 0.0\n"


def test_a_root_that_only_names_a_trusted_key_is_refused(fleet: Fleet) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    file = fleet.folder / "served" / "metadata" / "1.root.json"
    file.write_bytes(file.read_bytes().replace(b'"expires":"2', b'"expires":"3'))
    with pytest.raises(SignatureError, match="first root is damaged"):
        fleet.fetch()
    for content in (b"", b"{}", b"[" * 5000, b'{"signatures": [], "signed": {"_type": "timestamp"}}'):
        file.write_bytes(content)
        with pytest.raises(SignatureError, match="first root is"):
            fleet.fetch()


def test_a_root_that_changes_its_keys_is_followed_and_the_old_key_is_worth_nothing(fleet: Fleet) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    fleet.fetch()
    fleet.publish(key="release", new_key="next")
    fleet.publish(key="next", text="alpha = 0.6\n")
    assert fleet.fetch() == "alpha = 0.6\n"
    shutil.copytree(fleet.folder / "served", fleet.folder / "good")
    with pytest.raises(SystemExit, match="the repository's root names other keys"):
        fleet.publish(key="release", new_key="stranger")
    assert fleet.fetch() == "alpha = 0.6\n"
    forger, release, stranger = Forger(fleet.folder / "served"), fleet.signer("release"), fleet.signer("stranger")
    forger.publish_root([stranger], stranger, [release])
    with pytest.raises(SignatureError, match="is not signed by those whom its root names"):
        fleet.fetch()
    shutil.rmtree(fleet.folder / "served")
    shutil.copytree(fleet.folder / "good", fleet.folder / "served")
    forger.publish_targets([fleet.file], release, 7)  # by a key that has gone
    fleet.publish()
    with pytest.raises(SignatureError, match="is not signed by those whom its root names"):
        fleet.fetch()
    shutil.rmtree(fleet.models.parent / "repository")
    shutil.rmtree(fleet.folder / "served")
    shutil.copytree(fleet.folder / "good", fleet.folder / "served")
    assert fleet.fetch() == "alpha = 0.6\n", "a new board walks from the first root to the newest"


@pytest.mark.parametrize("content", [b"alpha = 0.4\n", b"alpha = 0.5\n# and more\n", b""])
def test_a_target_of_another_length_or_hash_is_refused(fleet: Fleet, content: bytes) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    (file,) = (fleet.folder / "served" / "targets").iterdir()
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"not what its metadata says|sends more than its metadata allows"):
        fleet.fetch()
    fleet.nothing_is_left()


def endless(file: Any) -> None:
    while True:
        file.write(b"x" * 65536)


def trickle(file: Any) -> None:
    while True:
        file.write(b"x")
        file.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("part", ["timestamp.json", ".snapshot.json", "porch.toml", "1.root.json"])
def test_an_endless_file_is_cut(fleet: Fleet, part: str) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    fleet.server.strange[part] = endless
    with pytest.raises(ModelError, match="sends more than its metadata allows"):
        fleet.fetch()


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "seconds"), [(trickle, 1.5), (lambda _: time.sleep(30), 60)])
def test_a_server_that_is_slow_or_silent_is_given_up(
    fleet: Fleet, answer: Callable[[Any], None], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(key="release", text="alpha = 0.5\n")
    fleet.server.strange["timestamp.json"] = answer
    monkeypatch.setattr(repository, "SILENCE_S", 1)
    monkeypatch.setattr(repository, "WHOLE_S", seconds)
    monkeypatch.setattr(repository, "AGAIN_S", 0.5)
    started_s = time.monotonic()
    with pytest.raises(ModelError, match="cannot reach"):
        fleet.fetch()
    assert time.monotonic() - started_s < 25


def test_what_is_no_repository_says_so(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="answers 404; is this the folder of a repository"):
        fleet.fetch()
    for url in ("http://localhost/x", "https://", "ftp://localhost/x"):
        with pytest.raises(ConfigError, match="write https://HOST/FOLDER"):
            fleet.fetch(url=url)
    with pytest.raises(ModelError, match="cannot reach"):
        fleet.fetch(url="https://localhost:1/x")
    fleet.publish(key="release", text="alpha = 0.5\n")
    with pytest.raises(ModelError, match=r"names no model\.onnx"):
        repository.install(fleet.server.url, None, fleet.config, fleet.models, ["true"], repository.update.Watch(1))


def test_another_server_of_the_same_name_is_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate is of an authority that this machine does not know."""
    fleet.publish(key="release", text="alpha = 0.5\n")
    other = fleet.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    with pytest.raises(ModelError, match=r"cannot reach.*CERTIFICATE_VERIFY_FAILED"):
        fleet.fetch()


@pytest.mark.slow
def test_a_board_takes_models_from_a_repository(fleet: Fleet) -> None:
    folder = fleet.folder / "units"
    (folder / "maker").mkdir(parents=True)
    board = Board(folder, Maker(folder / "maker", "mine"))
    board.config.write_text(
        board.config.read_text().replace("trusted_keys = [", f'trusted_keys = ["{fleet.key.line}", ')
    )
    model = board.maker.model("b.onnx", version=3)
    fleet.publish(key="release", add=[model])
    try:
        board.start()
        done = board.install(fleet.server.url)
        assert done.returncode == 0, done.stderr
        assert "default v3" in done.stdout
        assert board.current().startswith("default-v3-")
        again = board.install(fleet.server.url)
        assert (again.returncode, "is what runs already" in again.stdout) == (0, True)

        before, files = board.current(), sorted(path.name for path in board.models.iterdir())
        newer = board.maker.model("c.onnx", version=4)
        fleet.publish(key="release", add=[newer])
        for file in (fleet.folder / "served" / "targets").glob("*.onnx"):
            if file.read_bytes() == newer.read_bytes():
                file.write_bytes(newer.read_bytes()[:-1] + b"x")
        done = board.install(fleet.server.url)
        assert done.returncode == ModelError.exit_code
        assert "not what its metadata says" in done.stderr
        stranger = Maker(folder, "stranger").model("d.onnx", version=5)
        fleet.publish(key="release", add=[stranger])
        done = board.install(fleet.server.url)
        assert done.returncode == SignatureError.exit_code
        assert board.current() == before
        assert sorted(path.name for path in board.models.iterdir()) == files
    finally:
        board.close()


@pytest.mark.slow
def test_a_board_takes_its_configuration_from_a_repository_and_goes_back_if_frames_stop(fleet: Fleet) -> None:
    folder = fleet.folder / "units"
    (folder / "maker").mkdir(parents=True)
    board = Board(folder, Maker(folder / "maker", "mine"))
    mine = board.config.read_text().replace("trusted_keys = [", f'trusted_keys = ["{fleet.key.line}", ')
    board.config.write_text(mine)
    fleet.publish(key="release", add=[board.maker.model("b.onnx", version=3)])
    url, more = fleet.server.url, ("--configure", "porch.toml")
    try:
        board.start()
        fleet.publish(key="release", text=f"{mine}alpha = 0.5\n")
        done = board.install(url, *more)
        assert done.returncode == 0, done.stderr
        assert "edgesan.toml has changed, and was watched for 1 s" in done.stdout
        good = board.config.read_text()
        assert good.endswith("alpha = 0.5\n")
        assert "is as it is in the repository" in board.install(url, *more).stdout

        fleet.publish(key="release", text=f'{mine}alpha = "much"\n')
        wrong = board.install(url, *more)
        assert (wrong.returncode, board.config.read_text()) == (ConfigError.exit_code, good)
        assert "alpha = 'much' has the wrong type" in wrong.stderr

        fleet.publish(key="release", text=mine.replace('camera = "demo"', 'camera = "/dev/video987"'))
        blind = board.install(url, *more, "--watch", "1")
        assert "the new configuration was taken back" in blind.stderr, blind.stderr
        assert board.config.read_text() == good
    finally:
        board.close()


def test_what_belongs_to_a_repository_is_refused_without_one(tmp_path: Path) -> None:
    done = run("install", str(tmp_path / "san.onnx"), "--configure", "porch.toml")
    assert (done.returncode, "are for a repository" in done.stderr) == (ConfigError.exit_code, True)
