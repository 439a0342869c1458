"""The virtual camera: what it may open, what it says where there is none, and pictures in a real one."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import isolation, v4l2
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.outlets import virtualcam
from edgesan.outlets.channel import JPEG, MOST_UP, Claims, Inbox, Jpeg, State, Up, Want, pack_down, parse_up
from edgesan.outlets.link import Link, Lost
from edgesan.targets import parse
from tests.isolation.support import program
from tests.outlets.support import output, status, until
from tests.support import ROOT, Running, run

NOWHERE = "v4l2:/dev/video909"


def loopback() -> Path | None:
    """A device of v4l2loopback of this machine."""
    return next((node for node in sorted(Path("/dev").glob("video*")) if virtualcam.unusable(node) == ("", "")), None)


def test_an_address_names_a_video_device() -> None:
    target = parse("v4l2:/dev/video10")
    assert (target.device, target.folder, target.name) == (Path("/dev/video10"), None, "v4l2:/dev/video10")
    for wrong in ("v4l2:/dev/sda", "v4l2:video10", "v4l2:/dev/video10/../sda", "v4l2:", "v4l2://dev/video10"):
        with pytest.raises(ConfigError, match=r"write v4l2:/dev/video10|such as v4l2:/dev/video10"):
            parse(wrong)
    with pytest.raises(ConfigError, match="unknown"):
        parse("v4l2:/dev/video10?size=9")


def test_a_device_that_is_not_there_or_is_none_is_said_with_the_cure(tmp_path: Path) -> None:
    assert virtualcam.unusable(tmp_path / "video9")[0] == "there is no such device"
    for node in (tmp_path / "file", Path("/dev/null")):
        if not node.exists():
            node.touch()
        why, cure = virtualcam.unusable(node)
        assert why.startswith("it is no video device (")
        assert "modprobe v4l2loopback" in cure
        assert not v4l2.is_virtual(node)
    with pytest.raises(ConfigError, match="v4l2:/dev/video909: there is no such device; sudo apt install v4l2loopback"):
        virtualcam.prepare(Config(out=(NOWHERE,)), parse(NOWHERE))


def test_a_camera_that_sees_something_is_never_written_to() -> None:
    why, _ = virtualcam.refused(v4l2.Device("uvcvideo", "HD Camera", v4l2.CAPTURE))
    assert why == "it is HD Camera (uvcvideo), and no virtual camera"
    assert virtualcam.refused(v4l2.Device("uvcvideo", "HD Camera", v4l2.CAPTURE | v4l2.OUTPUT))[0] == why
    why, _ = virtualcam.refused(v4l2.Device("v4l2 loopback", "edgesan", v4l2.CAPTURE))
    assert why == "another program shows its pictures there"
    assert virtualcam.refused(v4l2.Device("v4l2 loopback", "edgesan", v4l2.CAPTURE | v4l2.OUTPUT)) == ("", "")


def test_a_run_with_a_device_that_is_not_there_ends_with_the_cure() -> None:
    pytest.importorskip("pyvirtualcam", reason="pip install '.[virtualcam]'")
    done = run("run", "--camera", "demo", "--out", NOWHERE)
    assert done.returncode == ConfigError.exit_code
    assert f"{NOWHERE}: there is no such device; sudo apt install v4l2loopback-dkms" in done.stderr


def test_a_run_without_the_package_says_how_to_install_it() -> None:
    done = program(
        """
        import sys
        sys.modules["pyvirtualcam"] = None  # as where it is not installed
        from edgesan.cli import main
        sys.exit(main(["run", "--camera", "demo", "--out", sys.argv[1]]))
        """,
        NOWHERE,
    )
    assert done.returncode == ConfigError.exit_code
    assert f"{NOWHERE} needs pyvirtualcam, which is not installed: at the root of edgesan's clone" in done.stderr
    assert "pipx install --force '.[virtualcam]'" in done.stderr


def test_pictures_lose_an_odd_row_and_column_and_broken_ones_are_lost() -> None:
    pixels = np.full((33, 47, 3), (10, 200, 90), np.uint8)

    async def play() -> None:
        ours, theirs = socket.socketpair()
        link = Link(theirs.detach())
        with ours:
            ours.sendall(pack_down(Jpeg(cv2.imencode(".jpg", pixels)[1].tobytes(), 5)))
            picture = await virtualcam.newest(link)
            assert picture.shape == (32, 46, 3)
            assert np.abs(picture.astype(int) - pixels[:32, :46]).max() <= 4
            ours.sendall(pack_down(Jpeg(b"no picture", 6)))
            with pytest.raises(Lost, match="no picture"):
                await virtualcam.newest(link)

    asyncio.run(play())


def test_a_device_that_cannot_be_opened_is_an_attempt_that_is_lost() -> None:
    pytest.importorskip("pyvirtualcam", reason="pip install '.[virtualcam]'")
    with pytest.raises(Lost, match=r"it takes no pictures of 64x48 \(.*/dev/video909"):
        virtualcam.open_camera(parse(NOWHERE), np.zeros((48, 64, 3), np.uint8), 30)


OUTLET = """
import socket, sys
from edgesan.config import Config
from edgesan.control import ControlChannel
from edgesan.outlets import process
from edgesan.targets import parse

config = Config(out=(sys.argv[1],), fps=10.0, require_isolation=True)
_, control = ControlChannel.pair()
sys.exit(process.run(config, parse(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), control))
"""


def test_the_process_of_an_outlet_shows_its_pictures_in_a_real_device_and_holds_to_its_claims() -> None:
    pytest.importorskip("pyvirtualcam", reason="pip install '.[virtualcam]'")
    device = loopback()
    if device is None:
        pytest.skip("there is no virtual camera: sudo modprobe v4l2loopback")
    pixels = np.full((48, 64, 3), (10, 200, 90), np.uint8)
    content = pack_down(Jpeg(cv2.imencode(".jpg", pixels)[1].tobytes(), 5))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", OUTLET, f"v4l2:{device}", str(theirs.fileno())]
    outlet = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    inbox, heard = Inbox(MOST_UP), list[Up]()
    with ours:
        ours.settimeout(120)
        while Want(JPEG) not in heard:
            heard += [parse_up(*each) for each in inbox.feed(ours.recv(4096))]
        while not any(isinstance(each, State) and each.connected for each in heard):
            ours.sendall(content)
            heard += [parse_up(*each) for each in inbox.feed(ours.recv(4096))]
        camera = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
        for _ in range(5):
            ours.sendall(content)
            whole, picture = camera.read()
            assert whole
            assert picture.shape == pixels.shape
        assert np.abs(picture.astype(int) - pixels).max() <= 8
        camera.release()
    assert outlet.wait(30) == 0
    (claims,) = (each for each in heard if isinstance(each, Claims))
    assert all(claim.holds for claim in isolation.unpack(claims.results, "recorder"))


def test_a_real_virtual_camera_shows_the_picture_of_a_run(edgesan: Callable[..., Running]) -> None:
    pytest.importorskip("pyvirtualcam", reason="pip install '.[virtualcam]'")
    device = loopback()
    if device is None:
        pytest.skip("there is no virtual camera: sudo modprobe v4l2loopback")
    assert v4l2.is_virtual(device)
    running = edgesan("--require-isolation", "--out", f"v4l2:{device}")
    until(lambda: output(running).get("connected"))
    camera = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
    shown = [camera.read() for _ in range(10)]
    camera.release()
    size = status(running)["size"]
    assert all(whole and picture.shape[1::-1] == tuple(size) for whole, picture in shown)
    assert float(np.std(shown[-1][1])) > 5, "a picture, and no flat colour"
    assert status(running)["isolation"]["whole"]
    code, _, _ = running.end()
    assert code == 0
