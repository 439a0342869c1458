"""The device in Home Assistant, at a real mosquitto."""

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trustme

from edgesan import targets
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.outlets import mqtt
from edgesan.outlets.channel import Jpeg, Report
from edgesan.outlets.mqtt import Device, command, discovery, state
from edgesan.request import Alpha, Privacy, Request
from tests.outlets.broker import Listener, Mosquitto
from tests.outlets.far_end import FarEnd, report
from tests.support import Running, child, free_port
from tests.transmit.server import until

REPORT = report()


class Camera(FarEnd):
    """The outlet, and what the transmit process tells it."""

    def __init__(self, url: str) -> None:
        super().__init__(mqtt, url)
        self.device = Device.of("front door", "edgesan")
        self.status()

    def status(self, **changes: Any) -> None:
        self.send(Report(report(**changes)))


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def mosquitto(tmp_path: Path, ends: ExitStack) -> Mosquitto:
    broker = Mosquitto(tmp_path)
    ends.callback(broker.kill)
    return broker


@pytest.fixture
def camera(mosquitto: Mosquitto, ends: ExitStack) -> Camera:
    camera = Camera(mosquitto.url)
    ends.callback(camera.close)
    camera.until_connected()
    return camera


@pytest.fixture
def listener(mosquitto: Mosquitto, ends: ExitStack) -> Listener:
    listener = Listener(mosquitto.port, "homeassistant/#", "edgesan/#")
    ends.callback(listener.close)
    return listener


# --- what is said -----------------------------------------------------------------------------------------------------


def test_every_entity_has_a_unique_name_and_a_topic_that_we_publish_or_hear() -> None:
    device = Device.of("front door", "edgesan", "host")
    found = discovery(device, REPORT)
    assert found.keys() == {"device", "origin", "availability_topic", "components"}
    assert found["device"]["identifiers"] == [device.id]
    assert found["device"]["configuration_url"] == "http://192.168.1.20:8080/"
    alone = report(links=[{"kind": "status", "url": "http://127.0.0.1:8080/api/status"}])
    assert "configuration_url" not in discovery(device, alone)["device"], "others cannot open it"
    parts = found["components"]
    assert {key: part["platform"] for key, part in parts.items()} == {
        "picture": "camera",
        "faces": "sensor",
        "fps": "sensor",
        "delay": "sensor",
        "alpha": "number",
        "privacy": "switch",
        "problem": "binary_sensor",
    }
    assert len({part["unique_id"] for part in parts.values()}) == len(parts)
    assert (parts["alpha"]["min"], parts["alpha"]["max"]) == (0.0, 0.8)
    shown = {
        re.fullmatch(r"{{ value_json\.(\w+) }}", p["value_template"])[1]
        for p in parts.values()
        if "value_template" in p
    }  # type: ignore[index]
    assert shown < state(REPORT).keys()


def test_a_device_keeps_its_name_and_two_cameras_or_machines_have_two() -> None:
    first = Device.of("front door", "edgesan", "host")
    assert first == Device.of("front door", "edgesan", "host")
    assert re.fullmatch(r"edgesan_front_door_[0-9a-f]{8}", first.id)
    others = [Device.of("garden", "edgesan", "host"), Device.of("front door", "edgesan", "other")]
    strange = [
        Device.of("Haustür", "edgesan", "host"),
        Device.of("玄関", "edgesan", "host"),
        Device.of("", "p", "host"),
    ]
    ids = {device.id for device in (first, *others, *strange)}
    assert len(ids) == 6
    assert all(re.fullmatch(r"[a-z0-9_]{1,64}", each) for each in ids)


def test_a_camera_that_gives_nothing_is_a_problem_and_one_that_is_switched_off_is_none() -> None:
    assert state(REPORT, 41.26) == {
        "faces": 2,
        "fps": 25,
        "delay": 41,
        "alpha": 0.4,
        "privacy": "OFF",
        "problem": "OFF",
        "problems": [],
    }
    lost = state(REPORT | {"camera_up": False, "faces": None}, 41.26)
    assert (lost["problem"], lost["problems"]) == ("ON", ["no live picture comes from the camera"])
    assert (lost["faces"], lost["fps"], lost["delay"]) == (None, None, None)
    off = state(REPORT | {"camera_up": False, "privacy": True})
    assert (off["problem"], off["privacy"]) == ("OFF", "ON")
    assert state(REPORT | {"warnings": ["the model is UNSIGNED"]})["problems"] == ["the model is UNSIGNED"]
    assert state({})["problem"] == "ON"


@pytest.mark.parametrize(
    ("content", "wanted"), [(b"0.25", Alpha(0.25)), (b" 0.8\n", Alpha(0.8)), (b"0", Alpha(0.0)), (b"8e-1", Alpha(0.8))]
)
def test_a_number_within_the_dials_range_turns_it(content: bytes, wanted: Request) -> None:
    assert command("alpha/set", content, (0.0, 0.8)) == wanted


@pytest.mark.parametrize(
    ("topic", "content"),
    [
        *(("alpha/set", content) for content in (b"", b"nan", b"inf", b"-0.1", b"0.81", b"ON", b"\xff", b"1" * 33)),
        *(("privacy/set", content) for content in (b"", b"on", b"1", b"ONOFF")),
    ],
)
def test_what_is_no_command_is_refused_in_words(topic: str, content: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        command(topic, content, (0.0, 0.8))


def test_a_path_is_the_prefix_of_topics() -> None:
    for path, prefix in (("", "edgesan"), ("/", "edgesan"), ("/house/cams/", "house/cams"), ("/a//%23/+", "a/_/_")):
        assert mqtt.prefix_of(targets.parse(f"mqtt://cam:secret@host{path}")) == prefix


# --- at a broker ------------------------------------------------------------------------------------------------------


def test_a_client_discovers_the_device_and_sees_its_figures_and_pictures(camera: Camera, listener: Listener) -> None:
    found = json.loads(listener.until(camera.device.discovery_topic))
    assert found == discovery(camera.device, REPORT)
    assert listener.until("/available") == b"online"
    assert json.loads(listener.until("/state"))["faces"] == 2
    camera.status(faces=5)
    listener.until("/state", lambda content: json.loads(content)["faces"] == 5)
    for number in range(20):
        camera.send(Jpeg(b"\xff\xd8 picture %d" % number, number))
        camera.status(faces=number)
        time.sleep(0.1)
    listener.until("/picture")
    assert 1 <= len(listener.of("/picture")) <= 5, "at most one a second"


def test_who_comes_later_finds_the_device_and_its_figures_but_no_old_picture(
    camera: Camera, listener: Listener, mosquitto: Mosquitto, ends: ExitStack
) -> None:
    camera.send(Jpeg(b"\xff\xd8 picture", 1))
    listener.until("/picture")
    late = Listener(mosquitto.port, "homeassistant/#", "edgesan/#")
    ends.callback(late.close)
    for end in ("/config", "/available", "/state"):
        late.until(end)
    assert late.of("/picture") == []


def test_commands_become_requests(camera: Camera, listener: Listener) -> None:
    parts = json.loads(listener.until(camera.device.discovery_topic))["components"]
    listener.publish(parts["alpha"]["command_topic"], "0.5")
    until(lambda: camera.asked == [Alpha(0.5)])
    listener.publish(parts["privacy"]["command_topic"], "ON")
    until(lambda: camera.asked[1:] == [Privacy(True)])
    listener.publish(parts["privacy"]["command_topic"], "OFF")
    until(lambda: camera.asked[2:] == [Privacy(False)])


def test_wrong_commands_change_nothing_and_are_said_once(
    camera: Camera, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for content in ("2", "high", "nan", ""):
            listener.publish(camera.device.topic("alpha/set"), content)
            time.sleep(0.3)
        listener.publish(camera.device.topic("alpha/set"), "0.3")
        until(lambda: bool(camera.asked))
    assert camera.asked == [Alpha(0.3)]
    assert len(caplog.messages) == 1
    assert "'2' for alpha; expected a number within 0..0.8: nothing was changed" in caplog.messages[0]


def test_a_command_that_the_broker_has_kept_is_not_obeyed(
    mosquitto: Mosquitto, listener: Listener, ends: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device.of("front door", "edgesan")
    listener.publish(device.topic("privacy/set"), "OFF", retain=True)
    camera = Camera(mosquitto.url)
    ends.callback(camera.close)
    listener.until("/state")
    with caplog.at_level(logging.WARNING):
        until(lambda: "a command that the broker had kept: nothing was changed" in caplog.text, 20)
    assert camera.asked == []


@pytest.mark.slow
def test_a_flood_of_commands_is_bounded_and_ends_with_the_last_one(camera: Camera, listener: Listener) -> None:
    before = time.monotonic()
    listener.publish(camera.device.topic("alpha/set"), "0.1", times=3000)
    listener.publish(camera.device.topic("alpha/set"), "0.7")
    listener.publish(camera.device.topic("privacy/set"), "x" * 100_000)  # which the broker drops
    until(lambda: bool(camera.asked) and camera.asked[-1] == Alpha(0.7), 60)
    assert len(camera.asked) <= 2 + 10 * (time.monotonic() - before)


def test_it_announces_itself_again_when_home_assistant_starts(camera: Camera, listener: Listener) -> None:
    listener.until(camera.device.discovery_topic)
    for _ in range(2):
        announced, told = len(listener.of("/config")), len(listener.of("/state"))
        listener.publish("homeassistant/status", "online")
        listener.until("/config", after=announced)
        listener.until("/state", after=told)


def test_a_camera_that_ends_is_unavailable(camera: Camera, mosquitto: Mosquitto, ends: ExitStack) -> None:
    early = Listener(mosquitto.port, "edgesan/#")
    ends.callback(early.close)
    early.until("/available", lambda content: content == b"online")
    camera.stop()
    early.until("/available", lambda content: content == b"offline")


@pytest.mark.slow
def test_a_broker_that_was_killed_has_everything_again_in_seconds(
    camera: Camera, mosquitto: Mosquitto, ends: ExitStack
) -> None:
    mosquitto.kill()
    until(lambda: not camera.connected)
    assert camera.why
    time.sleep(3)
    mosquitto.start()
    late = Listener(mosquitto.port, "homeassistant/#", "edgesan/#")  # the broker has forgotten everything
    ends.callback(late.close)
    began = time.monotonic()
    late.until("/config")
    late.until("/available", lambda content: content == b"online")
    late.until("/state")
    assert time.monotonic() - began < 15, "some 4 s on a machine that has nothing else to do"


def test_a_refused_password_is_said_in_words_without_it(mosquitto: Mosquitto, ends: ExitStack) -> None:
    camera = Camera(f"mqtt://cam:WRONG@127.0.0.1:{mosquitto.port}")
    ends.callback(camera.close)
    until(lambda: "refuses this user name or password" in camera.why, 20)
    assert not any(state.connected or "WRONG" in state.why for state in camera.states)


@pytest.mark.slow
def test_a_server_that_says_nothing_is_left_again(ends: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.5)
    silent = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
    camera = Camera(f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
    ends.callback(camera.close)
    until(lambda: bool(camera.states) and camera.states[-1].retries > 1, 20)
    assert "says nothing" in camera.why
    assert "is a broker at this port" in camera.why


def test_nobody_at_the_port_and_an_unknown_host_are_told_apart(ends: ExitStack) -> None:
    nobody, unknown = Camera(f"mqtt://127.0.0.1:{free_port()}"), Camera("mqtt://no.such.host.invalid")
    for camera in (nobody, unknown):
        ends.callback(camera.close)
    until(lambda: "refused" in nobody.why, 30)
    until(lambda: "not known" in unknown.why or "resolution" in unknown.why, 30)


def test_tls_is_verified_by_the_authority_that_is_named(tmp_path: Path, ends: ExitStack) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    for ca, name in ((authority, "ca"), (stranger, "stranger")):
        ca.cert_pem.write_to_path(str(tmp_path / name))
    mosquitto = Mosquitto(tmp_path, tls=(certificate, key))
    ends.callback(mosquitto.kill)
    url = mosquitto.url.replace("mqtt://", "mqtts://")
    trusting, distrusting = Camera(f"{url}?ca={tmp_path}/ca"), Camera(f"{url}?ca={tmp_path}/stranger")
    for camera in (trusting, distrusting):
        ends.callback(camera.close)
    trusting.until_connected()
    listener = Listener(mosquitto.port, "edgesan/#", ca=tmp_path / "ca")
    ends.callback(listener.close)
    listener.publish(trusting.device.topic("alpha/set"), "0.5")
    until(lambda: trusting.asked == [Alpha(0.5)])
    until(lambda: "certificate cannot be verified" in distrusting.why, 20)


def test_an_authority_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("no certificate")
    for name, words in (("missing", "No such file"), ("none", "holds no certificate")):
        with pytest.raises(ConfigError, match=words):
            mqtt.prepare(Config(), targets.parse(f"mqtts://cam:secret@host?ca={tmp_path}/{name}"))


# --- with a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_home_assistant_sees_and_commands_a_camera_that_runs(mosquitto: Mosquitto, ends: ExitStack) -> None:
    listener = Listener(mosquitto.port, "homeassistant/#", "edgesan/#")
    ends.callback(listener.close)
    run = Running("--camera", "demo", "--name", "front door", "--out", f"{mosquitto.url}/edgesan")
    ends.callback(lambda: run.process.poll() is None and run.end())
    listener.until("/state", lambda content: json.loads(content)["faces"] == 2, 60)
    parts = json.loads(listener.until("/config"))["components"]
    picture = cv2.imdecode(np.frombuffer(listener.until("/picture"), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (270, 480, 3)
    listener.until("/state", lambda content: json.loads(content)["delay"] is not None)

    listener.publish(parts["alpha"]["command_topic"], "0.6")
    listener.until("/state", lambda content: json.loads(content)["alpha"] == 0.6)
    listener.publish(parts["alpha"]["command_topic"], "7")
    listener.publish(parts["privacy"]["command_topic"], "ON")
    off = json.loads(listener.until("/state", lambda content: json.loads(content)["privacy"] == "ON"))
    assert off["alpha"] == 0.6
    told = len(listener.of("/state"))
    listener.publish(parts["privacy"]["command_topic"], "OFF")
    listener.until("/state", lambda content: json.loads(content)["faces"] == 2, 60, after=told)

    def output() -> dict[str, Any]:
        (found,) = run.status()["outputs"]  # type: ignore[misc, attr-defined]
        said: dict[str, Any] = found
        return said

    assert output()["connected"]
    assert output()["to"] == f"mqtt://127.0.0.1:{mosquitto.port}"
    available = len(listener.of("/available"))
    child(run.process.pid, "out-0").kill()
    listener.until("/available", lambda content: content == b"offline", after=available)
    listener.until("/available", lambda content: content == b"online", 60, after=available)

    mosquitto.kill()
    until(lambda: not output()["connected"], 30)
    mosquitto.start()
    until(lambda: output()["connected"], 30)
    code, said, _ = run.end()
    assert code == 0, said
    assert "'7' for alpha; expected a number within" in said
    assert "takes the stream again" in said
    assert "p@ss" not in said
    assert "p%40ss" not in said
