"""The cameras of this machine, as they are listed."""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgesan import v4l2
from edgesan.capture import devices


def answer(driver: str, of_all: int, of_this: int) -> bytes:
    """What VIDIOC_QUERYCAP fills in."""
    return v4l2.CAPABILITY.pack(driver.encode(), b"A Camera", b"usb-1", 0x060C00, of_all, of_this)


@pytest.mark.parametrize(
    ("driver", "of_all", "of_this", "usable"),
    [
        ("uvcvideo", 0x84A00001, 0x04200001, True),
        ("uvcvideo", 0x84A00001, 0x04A00000, None),  # the same camera's metadata node
        ("vivid", 0x00000001, 0x00000000, True),  # an old driver, without capabilities of the node
        ("bcm2835-codec", 0x84204000, 0x04204000, None),  # memory to memory
        ("unicam", 0x84A00001, 0x05200001, False),
        ("rp1-cfe", 0x84A01001, 0x04A01000, False),
    ],
)
def test_a_node_is_listed_if_it_captures_video(driver: str, of_all: int, of_this: int, usable: bool | None) -> None:
    device = devices.described(Path("/dev/video7"), v4l2.parse(answer(driver, of_all, of_this)))
    if usable is None:
        assert device is None
    else:
        assert device is not None
        assert (device.spec, device.name, device.driver) == ("/dev/video7", "A Camera", driver)
        assert device.usable is usable


def test_only_the_demo_is_listed_where_there_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    listed = devices.list_devices(tmp_path)
    assert [(device.spec, device.usable) for device in listed] == [("demo", True)]
    assert devices.table(listed).splitlines()[1].startswith("demo ")


def test_a_node_that_is_no_device_is_listed_with_a_note(tmp_path: Path) -> None:
    for name in ("video10", "video2", "videofoo"):
        (tmp_path / name).touch()
    listed = devices.list_devices(tmp_path)
    assert [device.spec for device in listed[:2]] == [str(tmp_path / "video2"), str(tmp_path / "video10")]
    assert not listed[0].usable
    assert "does not answer" in devices.table(listed)
    assert json.loads(json.dumps([dataclasses.asdict(device) for device in listed]))[0]["kind"] == "v4l2"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def node() -> Iterator[Callable[[int], Path]]:
    """Makes a stand-in for a device node, of a given mode, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def make(mode: int) -> Path:
            path = Path(folder) / "video0"
            path.touch()
            path.chmod(mode)
            return path

        yield make


def test_a_node_without_permission_is_listed_with_the_cure(node: Callable[[int], Path]) -> None:
    path = node(0o000)
    with as_nobody():
        device = devices.query(path)
    assert device is not None
    assert not device.usable
    assert "no permission: only root may open it; a udev rule must give it to the group video" in device.note


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to the group video")
def test_the_cure_for_permission_names_the_group(node: Callable[[int], Path]) -> None:
    path = node(0o660)
    os.chown(path, 0, 44)  # video, on Debian
    assert v4l2.permission_cure(path) == "sudo usermod -aG video root, then log in again"


def test_pi_cameras_are_listed_by_their_place_and_usb_ones_by_v4l2_only(pi: Any, tmp_path: Path) -> None:
    assert pi.cameras[1]["Model"] == "UVC Camera"
    listed = devices.list_devices(tmp_path)
    assert [(device.spec, device.name, device.kind) for device in listed[:-1]] == [("picamera:0", "imx708", "picamera")]
