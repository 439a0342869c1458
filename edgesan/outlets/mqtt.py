"""The camera in Home Assistant: `--out mqtt[s]://USER:PASSWORD@HOST[:PORT][/PREFIX][?ca=FILE]`.

    homeassistant/device/ID/config   what there is: one device with all its entities, as JSON, retained
    PREFIX/ID/available              online or offline; the broker itself says offline when we are gone (last will)
    PREFIX/ID/state                  figures and switches as JSON
    PREFIX/ID/picture                the newest sanitized picture, JPEG, at most one a second
    PREFIX/ID/alpha/set              a number turns the dial
    PREFIX/ID/privacy/set            ON closes the camera, OFF opens it

Whoever may publish to the last two turns the dial and opens the camera: brokers have access lists for that. A command
that the broker has kept is not obeyed, as it was meant for another day.
"""

import asyncio
import hashlib
import json
import logging
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgesan import __version__
from edgesan.config import Config, is_loopback
from edgesan.outlets.channel import JPEG, STATUS, Jpeg, Report
from edgesan.outlets.link import Attempts, Link, Lost, side_by_side
from edgesan.outlets.trust import trusting
from edgesan.request import Alpha, Privacy, Request
from edgesan.targets import Target

logger = logging.getLogger(__name__)
silent = logging.getLogger(f"{__name__}.aiomqtt")  # it would say in a line what each message of a flood was
silent.setLevel(logging.CRITICAL)

HOME_ASSISTANT: Final = "homeassistant"  # the prefix that it listens to, if nobody has changed it
BIRTH: Final = f"{HOME_ASSISTANT}/status"  # Home Assistant says online there when it has started
ANSWER_S: Final = 5.0  # for the broker to answer
KEEPALIVE_S: Final = 15  # a broker that says nothing for so long is gone
PICTURE_S: Final = 1.0  # between two pictures
STATE_S: Final = 5.0  # between two states in which only figures changed
COMMAND_S: Final = 0.1  # between two commands that are obeyed
COMPLAINT_S: Final = 10.0  # between two lines about commands that are not
MOST_TOPICS: Final = 8  # whose newest message waits
MOST_COMMAND: Final = 32  # bytes
MOST_PACKET: Final = 1024  # bytes that the broker may send at once: it drops what is larger (MQTT 5)


# --- what is said -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A camera as Home Assistant knows it."""

    id: str
    name: str
    prefix: str

    @classmethod
    def of(cls, name: str, prefix: str, host: str | None = None) -> "Device":
        """Return the device of a camera: the same one after each start, another one on each machine.

        Args:
            name: of the camera; may be empty.
            prefix: of its topics.
            host: name of the machine; this one's if None.
        """
        host = socket.gethostname() if host is None else host
        words = re.sub(r"[^a-z0-9]+", "_", (name or host).lower()).strip("_")[:40]
        digest = hashlib.sha256(f"{host}/{name}".encode()).hexdigest()[:8]
        return cls("_".join(filter(None, ("edgesan", words, digest))), name or f"edgesan {host}", prefix)

    def topic(self, rest: str) -> str:
        """Return a topic of ours."""
        return f"{self.prefix}/{self.id}/{rest}"

    @property
    def discovery_topic(self) -> str:
        """Where Home Assistant looks for what there is."""
        return f"{HOME_ASSISTANT}/device/{self.id}/config"


def prefix_of(target: Target) -> str:
    """Return the path of an address as the prefix of topics. It may hold no wildcards, and none is empty."""
    levels = re.sub(r"[+#\0]", "_", target.path).split("/")
    return "/".join(filter(None, levels)) or "edgesan"


def discovery(device: Device, report: dict[str, Any]) -> dict[str, Any]:
    """Return the device and its entities, as Home Assistant 2024.11 and later read them.

    Args:
        device: whose they are.
        report: `/api/status`: it has the range of the dial, and the address of the page.
    """
    low, high = report.get("model", {}).get("alpha_range", (0.0, 1.0))
    urls = [link["url"].removesuffix("api/status") for link in report.get("links", []) if link["kind"] == "status"]
    pages = [url for url in urls if not is_loopback(urlsplit(url).hostname or "")]  # which others can open
    diagnostic = {"entity_category": "diagnostic"}
    figure = {"platform": "sensor", "state_class": "measurement"}
    entities: dict[str, dict[str, Any]] = {
        "picture": {"platform": "camera", "name": None, "topic": device.topic("picture")},
        "faces": figure | {"name": "Faces", "icon": "mdi:face-recognition"},
        "fps": figure | diagnostic | {"name": "Frame rate", "unit_of_measurement": "fps", "icon": "mdi:filmstrip"},
        "delay": figure
        | diagnostic
        | {"name": "Delay", "device_class": "duration", "unit_of_measurement": "ms", "suggested_display_precision": 0},
        "alpha": {
            "platform": "number",
            "name": "Privacy dial",
            "icon": "mdi:knob",
            "command_topic": device.topic("alpha/set"),
            "min": low,
            "max": high,
            "step": 0.01,
            "mode": "slider",
        },
        "privacy": {
            "platform": "switch",
            "name": "Privacy",
            "icon": "mdi:camera-off",
            "command_topic": device.topic("privacy/set"),
        },
        "problem": diagnostic
        | {
            "platform": "binary_sensor",
            "name": "Problem",
            "device_class": "problem",
            "json_attributes_topic": device.topic("state"),
            "json_attributes_template": "{{ {'problems': value_json.problems} | tojson }}",
        },
    }
    for key, entity in entities.items():
        entity["unique_id"] = f"{device.id}_{key}"
        if key != "picture":
            entity |= {"state_topic": device.topic("state"), "value_template": f"{{{{ value_json.{key} }}}}"}
    return {
        "device": {
            "identifiers": [device.id],
            "name": device.name,
            "manufacturer": "edgesan",
            "model": "camera that sanitizes faces",
            "sw_version": __version__,
            **({"configuration_url": pages[0]} if pages else {}),
        },
        "origin": {"name": "edgesan", "sw_version": __version__},
        "availability_topic": device.topic("available"),
        "components": entities,
    }


def state(report: dict[str, Any], delay_ms: float | None = None) -> dict[str, Any]:
    """Return what the entities show; None is `unknown` in Home Assistant.

    Args:
        report: `/api/status`.
        delay_ms: from the capture of the newest picture until it was here.
    """
    privacy, live = bool(report.get("privacy")), bool(report.get("camera_up"))
    problems = list(report.get("warnings", []))
    if not live and not privacy:
        problems.insert(0, "no live picture comes from the camera")
    return {
        "faces": report.get("faces"),
        "fps": round(report["fps"]) if live and "fps" in report else None,
        "delay": round(delay_ms) if live and delay_ms is not None else None,
        "alpha": report.get("alpha"),
        "privacy": "ON" if privacy else "OFF",
        "problem": "ON" if problems else "OFF",
        "problems": problems,
    }


def command(topic: str, content: bytes, alpha_range: tuple[float, float]) -> Request:
    """Return what a command asks for; the transmit process verifies it once more, as every request.

    Args:
        topic: its end, such as alpha/set.
        content: of the message.
        alpha_range: of the dial.

    Raises:
        ValueError: says why it is none.
    """
    if len(content) > MOST_COMMAND:
        raise ValueError(f"{len(content)} bytes for {topic}; expected at most {MOST_COMMAND}")
    text = content.decode("ascii", errors="backslashreplace").strip()
    if topic == "privacy/set":
        if text not in ("ON", "OFF"):
            raise ValueError(f"{text!r} for privacy; expected ON or OFF")
        return Privacy(text == "ON")
    low, high = alpha_range
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not low <= alpha <= high:  # nor NaN
        raise ValueError(f"{text!r} for alpha; expected a number within {low:g}..{high:g}")
    return Alpha(alpha)


# --- the connection ---------------------------------------------------------------------------------------------------


class Newest(asyncio.Queue[aiomqtt.Message]):
    """Messages that wait: of each topic the newest one, so that a flood ends with what was said last."""

    def _init(self, maxsize: int) -> None:
        self._queue = dict[str, aiomqtt.Message]()

    def _put(self, item: aiomqtt.Message) -> None:
        self._queue[item.topic.value] = item

    def _get(self) -> aiomqtt.Message:
        return self._queue.pop(next(iter(self._queue)))


async def run(link: Link, target: Target, prepared: ssl.SSLContext | None) -> None:
    """Keep the device at the broker up to date until the transmit process ends."""
    home = HomeAssistant(link, target, prepared)
    await side_by_side(home.receive(), home.attempts.run(home.attempt))


def prepare(config: Config, target: Target) -> ssl.SSLContext | None:
    """Load the certificates that are trusted, while files may be read; None for mqtt://.

    Raises:
        ConfigError: the file of the option `ca` cannot be read.
    """
    return trusting(target) if target.scheme == "mqtts" else None


class HomeAssistant:
    """The device at a broker, and what people ask of it.

    Args:
        link: to the transmit process.
        target: the broker; its path is the prefix of the topics.
        tls: None for mqtt://.
    """

    def __init__(self, link: Link, target: Target, tls: ssl.SSLContext | None) -> None:
        self._link, self._target, self._tls = link, target, tls
        self.attempts = Attempts(link, target.name, rest=asyncio.sleep)
        self._device = Device("", "", "")  # until the first report
        self._report: dict[str, Any] = {}
        self._picture: bytes | None = None
        self._delay_ms: float | None = None
        self._reported, self._changed, self._announce = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._complained_s, self._refused = -COMPLAINT_S, 0

    async def receive(self) -> None:
        """Take reports and pictures; of both only the newest waits. Raises Closed."""
        self._link.want(STATUS | JPEG, PICTURE_S)
        while True:
            match await self._link.receive():
                case Report(status):
                    if not self._report:
                        self._device = Device.of(str(status.get("name", "")), prefix_of(self._target))
                    self._report = status
                    self._reported.set()
                case Jpeg(picture, captured_ns):
                    self._picture, self._delay_ms = picture, (time.monotonic_ns() - captured_ns) / 1e6
            self._changed.set()

    async def attempt(self) -> None:
        """Connect, then publish and obey while the connection lasts.

        Raises:
            Lost: it has ended.
        """
        await self._reported.wait()
        available = self._device.topic("available")
        client = self._client(available)
        try:
            async with client:
                await client.publish(available, "online", qos=1, retain=True)
                for topic in (self._device.topic("alpha/set"), self._device.topic("privacy/set"), BIRTH):
                    await client.subscribe(topic)
                self.attempts.connected()
                self._announce.set()
                self._changed.set()
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._publish(client))
                        group.create_task(self._listen(client))
                except asyncio.CancelledError:  # a broker says the last will only of clients that break off
                    await client.publish(available, "offline", qos=1, retain=True)
                    raise
        except* aiomqtt.MqttError as errors:
            raise Lost(words(errors)) from errors
        finally:
            client._client.disconnect()  # aiomqtt 2.5 leaves the socket of a failed attempt open

    def _client(self, available: str) -> aiomqtt.Client:
        limits = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        limits.MaximumPacketSize = MOST_PACKET
        client = aiomqtt.Client(
            self._target.host,
            self._target.port,
            username=self._target.user or None,
            password=self._target.password or None,
            identifier=self._device.id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            properties=limits,
            will=aiomqtt.Will(available, "offline", qos=1, retain=True),
            timeout=ANSWER_S,
            keepalive=KEEPALIVE_S,
            queue_type=Newest,
            max_queued_incoming_messages=MOST_TOPICS,
            logger=silent,
        )
        # paho binds its socket before it connects, to any address and port: bind(2) is what the kernel forbids here. It
        # also leaves a socket open whose server could not be verified.
        client._client._create_socket_connection = self._connect  # type: ignore[method-assign]
        return client

    def _connect(self) -> socket.socket:
        """Connect, in a thread of aiomqtt's, and verify the server. Raises OSError."""
        plain = socket.create_connection((self._target.host, self._target.port), ANSWER_S)
        return self._tls.wrap_socket(plain, server_hostname=self._target.host) if self._tls else plain

    async def _publish(self, client: aiomqtt.Client) -> None:
        """Publish what is new. Each message has left before the next one: nothing piles up behind a slow broker."""
        told: dict[str, Any] = {}
        announced, told_s, pictured_s = "", 0.0, 0.0
        while True:
            await self._changed.wait()
            self._changed.clear()
            now_s, again = time.monotonic(), self._announce.is_set()
            self._announce.clear()
            found = json.dumps(discovery(self._device, self._report))
            if again or found != announced:
                await self._send(client, self._device.discovery_topic, found, retain=True)
                announced = found
            now = state(self._report, self._delay_ms)
            urgent = any(now[key] != told.get(key) for key in now if key not in ("fps", "delay"))
            if again or urgent or (now != told and now_s - told_s >= STATE_S):
                await self._send(client, self._device.topic("state"), json.dumps(now), retain=True)
                told, told_s = now, now_s
            if self._picture is not None and now_s - pictured_s >= PICTURE_S:
                picture, self._picture = self._picture, None
                await self._send(client, self._device.topic("picture"), picture)
                pictured_s = now_s

    async def _send(self, client: aiomqtt.Client, topic: str, content: str | bytes, *, retain: bool = False) -> None:
        await client.publish(topic, content, retain=retain)
        self.attempts.sent(len(content))

    async def _listen(self, client: aiomqtt.Client) -> None:
        """Obey commands, a few a second, and announce the device when Home Assistant has started."""
        async for message in client.messages:
            content = message.payload if isinstance(message.payload, bytes) else b""
            if message.topic.value == BIRTH:
                if content == b"online":
                    self._announce.set()
                    self._changed.set()
            elif message.retain:
                self._complain("a command that the broker had kept")
            else:
                self._obey(message.topic.value.removeprefix(self._device.topic("")), content)
            await asyncio.sleep(COMMAND_S)

    def _obey(self, topic: str, content: bytes) -> None:
        low, high = self._report.get("model", {}).get("alpha_range", (0.0, 1.0))
        try:
            self._link.send(command(topic, content, (low, high)))
        except ValueError as error:
            self._complain(str(error))

    def _complain(self, what: str) -> None:
        """Say why a command changed nothing; a flood of them is one line now and then."""
        self._refused += 1
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAINT_S:
            self._complained_s = now_s
            logger.warning("%s sent %s: nothing was changed (%d so far)", self._target.name, what, self._refused)


def words(errors: BaseException) -> str:
    """Return why a connection could not be made, or has ended, in words that help."""
    error = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error)
    if isinstance(error, MqttConnectError) and re.search("authori[sz]ed|password", text, re.IGNORECASE):
        return "it refuses this user name or password; correct them in out (EDGESAN_OUT keeps them from others)"
    if isinstance(error, MqttConnectError):
        return f"it refuses the connection: {text}"
    if "timed out" in text:
        return f"it says nothing for {ANSWER_S:g} s; is a broker at this port (1883; with TLS 8883)?"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate cannot be verified ({text}); name its authority by ?ca=FILE"
    return text
