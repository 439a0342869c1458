"""Addresses of `out`: what each means, what is refused, and that no message shows a password."""

import pytest

from edgesan import targets
from edgesan.config import Config
from edgesan.errors import ConfigError


def test_an_address_is_taken_apart_and_its_name_shows_no_secret() -> None:
    target = targets.parse("rtsp://user:p%40ss@cam.example/live?key=secret")
    assert (target.scheme, target.host, target.port) == ("rtsp", "cam.example", 554)
    assert (target.user, target.password, target.path) == ("user", "p@ss", "/live")
    assert target.name == "rtsp://cam.example"
    assert "p%40ss" not in repr(target)
    assert "secret" not in repr(target)
    assert targets.parse("rtmp://[::1]:19350/app/key").name == "rtmp://[::1]:19350"


def test_a_folder_has_options_with_units() -> None:
    target = targets.parse("dir:/var/lib/clips?segment=5min&keep=10GiB&motion=true")
    assert str(target.folder) == "/var/lib/clips"
    assert target.options == {"segment": 300.0, "keep": 10 * 2**30, "motion": True}
    assert target.name == "dir:/var/lib/clips"
    assert targets.parse("rtsp://cam.example/live").folder is None


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        ("srt://host/x", "PyAV wheels have no SRT"),
        ("gopher://host/x", "gopher: address: expected one of rtsp"),
        ("rtsp:///path", "malformed rtsp: address: write rtsp://USER"),
        ("rtsp://user:pass/word@host/", "malformed"),
        ("rtsp://user:secret@host:99999/", "malformed"),
        ("rtsp://user:secret@host:0/", "malformed"),
        ("rtmp://ho st/app", "malformed"),
        ("dir:relative", "name the folder from the root on"),
        ("dir://host/clips", "malformed dir: address"),
        ("dir:", "name the folder"),
        ("dir:/clips?keep=5", "keep=5: write a size from 1MB on"),
        ("dir:/clips?segment=60", "write a span from 1s to 24h"),
        ("dir:/clips?motion=yes", "write true or false"),
        ("dir:/clips?fast=1", "option 'fast' is unknown: it has segment, keep, motion"),
        ("dir:/clips?keep=1GB&keep=2GB", "is twice"),
    ],
)
def test_a_wrong_address_is_refused_in_words(sink: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config(out=(sink,))
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "word@" not in str(refused.value)


def test_servers_files_and_targets_are_told_apart() -> None:
    config = Config(out=("http://127.0.0.1:8080", "clip.mkv", "rtsp://u:secret@host/x", "dir:/clips"))
    assert config.servers == ["http://127.0.0.1:8080"]
    assert [str(path) for path in config.files] == ["clip.mkv"]
    assert config.out_names == ["http://127.0.0.1:8080", "clip.mkv", "rtsp://host", "dir:/clips"]


def test_the_same_target_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        Config(out=("rtsp://host/x", "rtsp://host/x"))
    with pytest.raises(ConfigError, match="at most 8"):
        Config(out=tuple(f"rtsp://host/{number}" for number in range(9)))
