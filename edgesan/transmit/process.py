"""The transmit process: from messages to the network and to files. It never sees a pixel of the camera.

It first opens what it may not open later: ports, the key for TLS, its event loop. Then it gives up all other rights
(`edgesan.isolation.transmit`), and only then loads the libraries that read what comes from outside.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from edgesan import isolation, scene
from edgesan.config import Config
from edgesan.control import ALIVE, NOT_RECORDED, READY, RECORD_ZONES, RECORDED, ControlChannel
from edgesan.errors import ModelError, Reject
from edgesan.isolation import IsolationClaim
from edgesan.message import FRESH_NS, PLAIN
from edgesan.request import Privacy
from edgesan.standing import NOTHING_SET, Standing
from edgesan.transmit import sinks
from edgesan.transmit.directions import directions, links, visible_url
from edgesan.transmit.sinks import OutputFile, Sink
from edgesan.zones import Zone, pack

if TYPE_CHECKING:  # numpy must not be loaded before isolation
    from edgesan.frames import SanitizedFrame
    from edgesan.message import Status
    from edgesan.model.load import Decoder
    from edgesan.render import Renderer
    from edgesan.request import Request
    from edgesan.transmit.link import Receiver

logger = logging.getLogger(__name__)

SLATE_S: Final = 0.5  # between two slates, while no live frame comes
ALIVE_S: Final = 1.0  # between two ALIVE messages to the parent
RATE_S: Final = 5.0  # over which bytes a second are counted
LOG_S: Final = 60.0  # between two lines of counters in the log, with -v
RELOAD_S: Final = 2.0  # between two attempts to load another model
RECORD_S: Final = 2.0  # for the parent to record zones
ANSWER_S: Final = 2.0  # for the sanitize process to close or open the camera
CARD: Final = (640, 360)  # size of a card before the first frame


def run(
    config: Config,
    files: list[OutputFile],
    channel: socket.socket,
    control: ControlChannel,
    standing: Standing = NOTHING_SET,
) -> int:
    """Live the whole life of the transmit process, and return its exit code.

    Args:
        config: the options of the run.
        files: from `sinks.open_files`.
        channel: carries the pipes of each new sanitize process; see `link.receive_pipes`.
        control: the child's end of the channel to the parent.
        standing: what the owner has set.

    Raises:
        ConfigError: the still is damaged.
        SinkError: a sink could not be opened, or failed.
        ModelError: the model may not be run.
        IsolationError: `require_isolation` is set, and a restriction does not hold.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends them in order
    servers = sinks.open_servers(config)
    urls = [visible_url(server) for server in config.servers]
    loop = asyncio.new_event_loop()
    claims = isolation.transmit(config.model_folders)
    if config.require_isolation:
        isolation.require(claims)
    out = ", ".join([*config.servers, *(str(path) for path, _ in files), *(each.name for each in config.targets)])
    code = sys.stderr.isatty() and config.log_format == "text"
    where = [directions(url, token=bool(config.token), code=code) for url in urls]
    lines = [
        f"transmit{f' ({config.name})' if config.name else ''} -> {out}",
        f"  isolation: {isolation.summary(claims)}",
        *where,
    ]
    logger.info("%s", "\n".join(lines))
    for claim in claims:
        if not claim.holds:
            logger.warning("%s", claim)
    transmitter = Transmitter(config, claims, channel, control, standing)
    transmitter.links = [link for url in urls for link in links(url)]
    built = sinks.build(config, servers, files, transmitter, transmitter.jpeg)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        loop.add_signal_handler(signal.SIGTERM, transmitter.end)
        runner.run(transmitter.serve(built))
    return 0


class Transmitter:
    """Receives messages, renders the newest one, and passes the frame on to all sinks."""

    def __init__(
        self,
        config: Config,
        claims: list[IsolationClaim],
        channel: socket.socket,
        control: ControlChannel,
        standing: Standing = NOTHING_SET,
    ) -> None:
        from edgesan.metrics import Metrics
        from edgesan.transmit.jpeg import JpegEncoder
        from edgesan.transmit.outlets import Outlets

        self._config, self._claims, self._channel, self._control = config, claims, channel, control
        self._drawn = standing.zones
        self.links: list[dict[str, str]] = []
        """What servers of this run offer."""
        self.jpeg = JpegEncoder()
        """Encodes for all sinks."""
        self.outlets = Outlets(config.targets, self.jpeg, self.request)
        """What reaches out."""
        self._recorded: asyncio.Queue[str] = asyncio.Queue()  # the parent's answers: why not, or nothing
        self._strange = False  # whether frames named a scene that is not known here
        self._still = scene.decode(standing.still) if standing.still else None
        self._scene = PLAIN  # which one the newest frame names
        self._decoder = self._load()
        self._renderer = self._new_renderer()
        isolation.limit_memory()
        self._metrics = Metrics()
        self._receiver: Receiver | None = None
        self._descriptors: list[int] = []
        self._status: Status | None = None
        # Of a unit of its own only the other one knows.
        self._closed = None if config.role == "transmit" else standing.privacy
        self._switches, self._told = 0, asyncio.Event()  # it is set whenever a status has come
        self._arrived, self._ending = asyncio.Event(), False
        self._size = CARD
        self._newest_ns = 0  # when the newest live frame was captured
        self._reload_s = 0.0
        self._slates = 0
        self._crossed = [0, 0, 0]  # bytes, messages and refused messages of earlier pipes
        self._samples: deque[tuple[float, int]] = deque()  # time, total of bytes

    def _load(self) -> "Decoder":
        from edgesan.model.load import load_decoder

        c = self._config
        return load_decoder(c.model, c.threads, c.trusted_keys, allow_unsigned=c.allow_unsigned)

    def _new_renderer(self) -> "Renderer":
        from edgesan.render import Renderer

        return Renderer(self._decoder, (*self._config.zones, *self._drawn), self._still, streams=True)

    def end(self) -> None:
        """Make `serve` finish its files and streams, and return."""
        self._ending = True
        self._arrived.set()

    async def serve(self, sinks: list[Sink]) -> None:
        """Serve until `end`.

        Raises:
            SinkError: one of the sinks failed.
        """
        from edgesan.transmit.http import HttpSink

        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._receive_pipes)
        loop.add_reader(self._control.read_fd, self._receive_answer)
        async with AsyncExitStack() as stack:  # closes every sink, also if another one fails
            for sink in sinks:
                await sink.start()
                stack.push_async_callback(sink.close)
            stack.callback(self.outlets.close)
            self._control.send(READY)
            report = next((sink.report for sink in sinks if isinstance(sink, HttpSink)), self.report)
            stack.callback(loop.create_task(self._report_alive(report)).cancel)
            while not self._ending:
                try:
                    async with asyncio.timeout(SLATE_S):
                        await self._arrived.wait()
                except TimeoutError:
                    pass
                self._arrived.clear()
                for frame in self._frames():
                    for sink in sinks:
                        await sink.send(frame)
                    await asyncio.sleep(0)  # viewers first
                    self.outlets.send(frame)
                    if not frame.stamps.slate:
                        self._catch_up()

    def _frames(self) -> "list[SanitizedFrame]":
        """Return the newest frame, or a slate if none has come for long, or nothing."""
        from edgesan.render import slate

        latents = self._receiver.read(self._take_status) if self._receiver else None
        if self._receiver and self._receiver.is_closed:
            self._close_pipes()
        now_ns = time.monotonic_ns()
        if latents is not None and 0 <= now_ns - latents.captured_ns <= FRESH_NS:  # nor from the future
            try:
                frame = self._renderer(latents, late=True)
            except Reject as reject:
                self._metrics.count(f"rejected_{reject.reason}")
                if reject.reason == "model":
                    self._reload()
                elif reject.reason == "scene":
                    self._learn_scene(latents.scene)
            else:
                self._metrics.tick(time.monotonic_ns())
                self._size, self._newest_ns = (latents.width, latents.height), latents.captured_ns
                self._scene = latents.scene
                self.outlets.send_codes(latents, self._decoder.sha256)
                return [frame]
        elif latents is not None:
            self._metrics.count("rejected_stale")
        lost = self._newest_ns and now_ns - self._newest_ns > FRESH_NS
        if (lost or self._privacy) and not self._ending:
            self._slates += 1
            return [slate(self._why(), self._size, self._slates, now_ns)]
        return []

    def _why(self) -> str:
        """Say on a card why there is no picture."""
        if self._privacy:
            return "the camera is off"
        if self._status and not self._status.width:
            return "opening the camera"
        return "camera lost" if self._receiver else "no sanitizer"

    def _catch_up(self) -> None:
        """Decode the codes that the next frame will show."""
        self._renderer.catch_up()
        self.outlets.send_chips(self._renderer.news, self._newest_ns, self._decoder.sha256)
        self._metrics.span("decode", self._renderer.decode_ns)
        self._metrics.span("paint", self._renderer.paint_ns)

    def _take_status(self, status: "Status") -> None:
        """Keep the status of the sanitize process, if it is well-formed."""
        try:
            isolation.unpack_all(status.results)
        except ValueError:
            self._metrics.count("rejected_status")
        else:
            self._status, self._closed = status, status.privacy
            self._told.set()
            self._told.clear()

    def _reload(self) -> None:
        """Load the model again, as `edgesan install` may have replaced it. A model that may not run changes nothing."""
        if time.monotonic() < self._reload_s:
            return
        self._reload_s = time.monotonic() + RELOAD_S
        try:
            self._decoder = self._load()
        except ModelError as error:
            logger.error("%s", error)
        else:
            self._renderer = self._new_renderer()

    def _learn_scene(self, number: int) -> None:
        """Take the demo's still, which a sanitize unit may show; say once that another one is not known here."""
        if self._strange:
            return
        self._strange = True
        demo = scene.load(scene.DEMO)
        if number == demo.id and self._config.role == "transmit":
            self._still = demo
            self._renderer = self._new_renderer()
        else:
            logger.warning(
                "the frames name the scene %08x, which is not known here, so they are dropped: give both units the same"
                " still (scene) and background, and have both read their configuration again",
                number,
            )

    def _receive_pipes(self) -> None:
        """Take the pipes of a new sanitize process from the parent, or the channel to an outlet."""
        from edgesan.transmit.link import Receiver, receive_ends

        ends = receive_ends(self._channel)
        if ends is None:  # the parent is gone
            asyncio.get_running_loop().remove_reader(self._channel)
            return
        number, given = ends
        if number is not None:
            self.outlets.connect(number, given[0])
            return
        if not given:
            return
        self._close_pipes()
        self._descriptors, self._receiver = given, Receiver(given[0], given[1])  # its tracks are new, too
        self._renderer = self._new_renderer()
        asyncio.get_running_loop().add_reader(given[0], self._arrived.set)

    def _close_pipes(self) -> None:
        """Close the pipes of a sanitize process that has ended."""
        if self._receiver is None:
            return
        asyncio.get_running_loop().remove_reader(self._descriptors[0])
        self._crossed = self._traffic()
        self._receiver, self._status = None, None
        for fd in self._descriptors:
            os.close(fd)

    def _traffic(self) -> list[int]:
        """Return the bytes, messages and refused messages that have arrived, in total."""
        r = self._receiver
        now = (r.bytes, r.messages, r.refused) if r else (0, 0, 0)
        return [before + more for before, more in zip(self._crossed, now, strict=True)]

    async def _report_alive(self, report: Callable[[], dict[str, Any]]) -> None:
        """Tell the parent that the loop runs, and outlets the status; sample how much arrives, and log it."""
        logged_s, before = time.monotonic(), self._traffic()
        while True:
            self._control.send(ALIVE)
            self.outlets.send_status(report)
            now_s = time.monotonic()
            if now_s - logged_s >= LOG_S:
                traffic = self._traffic()
                counts = [now - then for now, then in zip(traffic, before, strict=True)]
                logger.debug("in %.0f s: %d bytes, %d messages, %d refused", now_s - logged_s, *counts)
                logged_s, before = now_s, traffic
            self._samples.append((now_s, self._traffic()[0]))
            while now_s - self._samples[0][0] > RATE_S:
                self._samples.popleft()
            await asyncio.sleep(ALIVE_S)

    @property
    def _privacy(self) -> bool:
        """Whether the owner has the camera closed."""
        return bool(self._closed)

    def request(self, wanted: "Request") -> bool:
        """Ask the sanitize process for something. Return False if none listens."""
        return self._receiver is not None and self._receiver.request(wanted)

    @property
    def zones(self) -> tuple[tuple[Zone, ...], tuple[Zone, ...]]:
        """The zones of the configuration, and those that the owner has drawn."""
        return self._config.zones, self._drawn

    async def ask_webrtc(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Pass a question on to the outlet of WebRTC; None if there is none, or it does not answer."""
        return await self.outlets.ask("webrtc", question)

    async def switch(self, *, on: bool) -> bool | None:
        """Have the camera closed or opened, and wait for the answer.

        Returns:
            Whether what was asked for outlives a restart; None if nobody has answered yet.

        Raises:
            ConnectionError: no sanitize process listens.
        """
        self._switches = number = self._switches % 255 + 1
        if not self.request(Privacy(on, number)):
            raise ConnectionError
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while self._status is None or self._status.switch != number:
                    await self._told.wait()
                return self._status.recorded
        return None

    async def draw(self, zones: tuple[Zone, ...]) -> str:
        """Blacken these zones from the next frame on, and have the parent record them; return why it did not."""
        self._drawn = zones
        self._renderer.zones = (*self._config.zones, *zones)
        while not self._recorded.empty():  # an answer that came too late for who asked
            self._recorded.get_nowait()
        self._control.send(RECORD_ZONES, pack(zones))
        try:
            async with asyncio.timeout(RECORD_S):
                return await self._recorded.get()
        except TimeoutError:
            return f"the parent process did not answer within {RECORD_S:g} s"

    def _receive_answer(self) -> None:
        """Take an answer of the parent."""
        given = self._control.receive()  # does not block: something is there
        if given is None or not given.kind:  # the parent is gone
            asyncio.get_running_loop().remove_reader(self._control.read_fd)
        elif given.kind in (RECORDED, NOT_RECORDED):
            self._recorded.put_nowait(given.payload.decode(errors="replace"))

    def report(self) -> dict[str, Any]:
        """Return the status for the page and the metrics, without the server's own figures."""
        from edgesan import status

        crossed, messages, refused = self._traffic()
        (first_s, first), (last_s, last) = (self._samples[0], self._samples[-1]) if self._samples else ((0, 0), (0, 0))
        wall = {
            "bytes": crossed,
            "bytes_per_s": round((last - first) / (last_s - first_s), 1) if last_s > first_s else 0.0,
            "messages": messages,
            "refused": refused,
        }
        fresh = time.monotonic_ns() - self._newest_ns <= FRESH_NS
        own = self._metrics.summary(time.monotonic_ns())
        known = self._still is not None
        room = {
            "in_force": known,
            "id": f"{self._still.id:08x}" if self._still else "",
            "differs": known and fresh and self._scene == PLAIN,
        }
        claims = [*self._claims, *self.outlets.claims]
        transmission = status.Transmission(
            claims, own, wall, fresh, self.links, len(self._renderer.zones), room, self._closed
        )
        said = status.report(self._config, self._decoder, self._status, transmission)
        encoders = {"encodes": self.outlets.encodes, "encode_errors": self.outlets.encode_errors}
        return said | {"outputs": self.outlets.report()} | encoders
