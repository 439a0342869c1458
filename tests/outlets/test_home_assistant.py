"""The camera in a real Home Assistant, whose `hass` the variable EDGESAN_HASS names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import cv2
import numpy as np
import psutil
import pytest

from edgesan.frames import Pixels
from tests.outlets.broker import Mosquitto
from tests.outlets.home import Home
from tests.outlets.support import until
from tests.support import Running

pytestmark = pytest.mark.slow

CAMERA, FACES, RATE, DELAY = "camera.door", "sensor.door_faces", "sensor.door_frame_rate", "sensor.door_delay"
DIAL, PRIVACY, PROBLEM = "number.door_privacy_dial", "switch.door_privacy", "binary_sensor.door_problem"
ALL = {CAMERA, FACES, RATE, DELAY, DIAL, PRIVACY, PROBLEM}


@pytest.fixture(scope="module")
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, ends: ExitStack) -> Mosquitto:
    broker = Mosquitto(tmp_path_factory.mktemp("broker"))
    ends.callback(broker.kill)
    return broker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, broker: Mosquitto, ends: ExitStack) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    ends.callback(home.stop)
    home.start()
    home.move_in(broker)
    return home


@pytest.fixture
def camera(edgesan: Callable[..., Running], broker: Mosquitto, home: Home) -> Running:
    camera = edgesan("--name", "door", "--out", broker.url)
    until(lambda: home.state(FACES) == "2")
    return camera


def test_home_assistant_shows_every_entity_with_its_value(camera: Running, home: Home) -> None:
    until(lambda: home.state(DELAY) not in ("unknown", "unavailable"))
    shown = home.states()
    values = {name: shown[name]["state"] for name in (FACES, DIAL, PRIVACY, PROBLEM)}
    assert values == {FACES: "2", DIAL: "0.4", PRIVACY: "off", PROBLEM: "off"}
    assert float(shown[RATE]["state"]) > 0
    assert (shown[DIAL]["attributes"]["min"], shown[DIAL]["attributes"]["max"]) == (0, 1)
    assert shown[PROBLEM]["attributes"]["problems"] == []


def test_home_assistant_shows_the_painted_picture(camera: Running, home: Home, clip: list[Pixels]) -> None:
    until(lambda: home.picture(CAMERA))
    picture = cv2.imdecode(np.frombuffer(home.picture(CAMERA), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == clip[0].shape
    assert min(np.abs(picture - raw.astype(np.float32)).mean() for raw in clip) > 10, "it is no picture of the camera"


def test_home_assistant_turns_the_dial(camera: Running, home: Home) -> None:
    home.call("number/set_value", DIAL, value=0.61)
    camera.until("alpha", 0.61)
    until(lambda: home.state(DIAL) == "0.61")


def test_home_assistant_closes_and_opens_the_camera(camera: Running, home: Home) -> None:
    home.call("switch/turn_on", PRIVACY)
    camera.until("privacy", True)
    until(lambda: [home.state(name) for name in (PRIVACY, FACES, PROBLEM)] == ["on", "unknown", "off"])
    home.call("switch/turn_off", PRIVACY)
    until(lambda: [home.state(name) for name in (PRIVACY, FACES, PROBLEM)] == ["off", "2", "off"])


@pytest.mark.parametrize("killed", [False, True])
def test_home_assistant_says_that_a_camera_that_has_ended_is_unavailable(
    camera: Running, home: Home, killed: bool
) -> None:
    if killed:
        for each in (*psutil.Process(camera.process.pid).children(), camera.process):
            each.kill()
        camera.process.communicate()
    else:
        camera.end()
    until(lambda: {home.states()[name]["state"] for name in ALL} == {"unavailable"})


def test_home_assistant_has_the_camera_again_after_its_own_restart(camera: Running, home: Home) -> None:
    home.stop()
    home.start()
    until(lambda: home.state(FACES) == "2" and home.picture(CAMERA))


def test_home_assistant_shows_the_stream_by_its_mjpeg_camera(
    home: Home, edgesan: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESAN_TOKEN", "of-16-characters")
    at = f"http://127.0.0.1:{edgesan().port}"
    form = {"mjpeg_url": f"{at}/stream.mjpg", "still_image_url": f"{at}/snapshot.jpg", "username": "cam"}
    until(lambda: home.add("mjpeg", name="live", password="of-16-characters", **form)["type"] == "create_entry")
    until(lambda: home.picture("camera.live").startswith(b"\xff\xd8"))
