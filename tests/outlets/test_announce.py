"""The name of the camera in the local network: a real run, and a real listener."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("zeroconf")

from zeroconf import IPVersion, ServiceBrowser, ServiceListener, Zeroconf

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.isolation.limits import own_address
from edgesan.outlets import announce
from edgesan.targets import parse
from tests.support import COMMAND, free_port

PATIENCE_S = 60
TOKEN = "a-token-of-this-test"


class Listener(ServiceListener):
    def __init__(self) -> None:
        self.there = set[str]()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.there.add(name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.there.add(name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.there.discard(name)


@contextmanager
def listening(kind: str) -> Iterator[tuple[Zeroconf, Listener]]:
    zeroconf, listener = Zeroconf(ip_version=IPVersion.V4Only), Listener()
    try:
        ServiceBrowser(zeroconf, kind, listener)
        yield zeroconf, listener
    finally:
        zeroconf.close()


def until(listener: Listener, name: str, there: bool) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while (name in listener.there) != there:
        assert time.monotonic() < deadline_s, listener.there
        time.sleep(0.1)


@pytest.mark.slow
def test_a_camera_is_found_by_its_name_and_gone_when_it_ends() -> None:
    if not own_address():
        pytest.skip("this machine is in no network")
    name, port = f"Porch {time.time_ns()}", free_port()
    options = ["--camera", "demo", "--name", name, "--token", TOKEN, "--announce", "--out", f"http://0.0.0.0:{port}"]
    run = subprocess.Popen([*COMMAND, "run", *options], stderr=subprocess.PIPE, text=True)
    full = f"{name}._http._tcp.local."
    try:
        with listening("_http._tcp.local.") as (zeroconf, listener):
            until(listener, full, there=True)
            info = zeroconf.get_service_info("_http._tcp.local.", full, 5000)
            assert info
            assert (info.port, info.properties) == (port, {b"path": b"/"})
            assert own_address() in info.parsed_addresses()
            run.terminate()
            _, said = run.communicate(timeout=20)
            assert run.returncode == 0, said
            until(listener, full, there=False)
    finally:
        run.kill()
    assert TOKEN not in said
    assert "does not hold" not in said


def config(**options: object) -> Config:
    return Config(announce=True, token=TOKEN, **options)  # type: ignore[arg-type]


def test_what_only_this_machine_reaches_is_not_announced() -> None:
    with pytest.raises(ConfigError, match="only this machine reaches the camera"):
        announce.prepare(config(), parse("announce:"))
    found = announce.prepare(config(name="Hall", out=("http://0.0.0.0:8081",)), parse("announce:"))
    assert found.services == (announce.Service("_http._tcp.local.", 8081, "/"),)
    assert not any(address.startswith("127.") for address in found.addresses)


def test_a_served_stream_is_announced_with_its_path() -> None:
    found = announce.prepare(config(out=("serve+rtsp://0.0.0.0:8555/cam",)), parse("announce:"))
    assert found.services == (announce.Service("_rtsp._tcp.local.", 8555, "/cam"),)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Living room", "Living room"),
        ("a.b", "a b"),
        ("", f"edgesan on {socket.gethostname().partition('.')[0]}"),
        ("ü" * 60, "ü" * 31),
    ],
)
def test_a_name_is_one_that_dns_takes(name: str, shown: str) -> None:
    assert announce.shown_name(name) == shown
    announcement = announce.Announcement(shown, (announce.Service("_http._tcp.local.", 80, "/"),), ("192.0.2.1",))
    assert announce.infos(announcement)[0].name == f"{shown}._http._tcp.local."


def test_nothing_is_announced_until_somebody_asks_for_it() -> None:
    assert Config().targets == []
    assert [target.scheme for target in config().targets] == ["announce"]
