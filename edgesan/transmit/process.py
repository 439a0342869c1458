"""The transmit process: from messages to the network and to files. It never sees a pixel of the camera.

First it takes what it will need and may not ask for later: its ports, its files, its key for TLS, its event loop. Then it
gives up the rest (`edgesan.isolation.transmit`), and only then loads the libraries that read what comes from outside.
"""

import asyncio
import errno
import itertools
import os
import signal
import socket
import sys
import time
from collections import deque
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from edgesan import disk, isolation
from edgesan.config import SERVERS, Config
from edgesan.control import ALIVE, READY, ControlChannel
from edgesan.errors import ModelError, Reject, SinkError
from edgesan.isolation import IsolationClaim

if TYPE_CHECKING:  # numpy must not be loaded yet: see `edgesan.isolation`
    from edgesan.frames import SanitizedFrame
    from edgesan.message import Status
    from edgesan.model.load import Decoder
    from edgesan.transmit import Sink
    from edgesan.transmit.link import Receiver

FRESH_NS: Final = 1_000_000_000  # an older frame is no picture of now
SLATE_S: Final = 0.5  # between slates, while no fresh frame comes
ALIVE_S: Final = 1.0  # between signs of life for the parent
RATE_S: Final = 5.0  # that bytes a second are counted over
RELOAD_S: Final = 2.0  # between attempts to read another model
GIVEN: Final = 2  # descriptors: the pipe with messages, and the one back


def open_outputs(config: Config, *, again: bool) -> list[tuple[Path, BinaryIO]]:
    """The files that are written to, new and empty; the transmit process may open none itself.

    Args:
        again: it was killed, and its files stay as they are: clip.mkv becomes clip-2.mkv, or the next number that is free.

    Raises:
        SinkError: a file exists, or its place cannot be written.
    """
    opened: list[tuple[Path, BinaryIO]] = []
    try:
        for path in [Path(out).absolute() for out in config.out if not out.startswith(SERVERS)]:
            opened.append(_open_output(path, again=again))  # noqa: PERF401 - what was opened must be known where the next fails
    except SinkError:
        for path, file in opened:
            file.close()
            path.unlink()
        raise
    return opened


def _open_output(path: Path, *, again: bool) -> tuple[Path, BinaryIO]:
    numbers = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    for name in itertools.chain([path], numbers if again else []):
        try:
            return name, disk.new_file(name)
        except FileExistsError as error:
            if not again:
                raise SinkError(f"{name} exists: name another file, or move it away first") from error
        except OSError as error:
            reason = "there is no such folder" if error.errno == errno.ENOENT else error.strerror
            raise SinkError(f"cannot write {name}: {reason}; name a file in a folder that you may write to") from error
    raise SinkError(f"cannot write {path}: every name beside it is taken; move the files away")


def run(config: Config, files: list[tuple[Path, BinaryIO]], channel: socket.socket, control: ControlChannel) -> int:
    """The whole life of the process; its exit code.

    Args:
        files: from `open_outputs`.
        channel: gives the descriptors of the pipes (GIVEN of them), each time when there is a sanitize process to hear.
        control: to the parent.

    Raises:
        SinkError: a sink could not be opened, or failed. ModelError: the model may not be run.
        IsolationError: as `require_isolation` asks.
    """
    from edgesan.transmit.admission import listen
    from edgesan.transmit.tls import tls_context

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent coordinates
    servers = [(out, listen(out)) for out in config.out if out.startswith(SERVERS)]
    tls = None if config.tls_cert is None else tls_context(config.tls_cert, config.tls_key)
    loop = asyncio.new_event_loop()
    claims = isolation.transmit(model_folders(config.model))
    if config.require_isolation:
        isolation.require(claims)
    where = ", ".join(config.out)
    print(f"edgesan: transmit -> {where}\n  isolation: {isolation.summary(claims)}",
          *(f"  WARNING: {claim}" for claim in claims if not claim.holds), sep="\n", file=sys.stderr, flush=True)  # fmt: skip

    from edgesan.transmit.http import HttpSink

    transmitter = Transmitter(config, claims, channel, control)
    sinks: list[Sink] = [
        HttpSink(out, config.token, transmitter.report, transmitter.ask_alpha, sockets, tls) for out, sockets in servers
    ]
    if files:
        from edgesan.transmit.file import FileSink  # 16 MB of a library that streams do not need

        sinks += [FileSink(file, path) for path, file in files]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        loop.add_signal_handler(signal.SIGTERM, transmitter.end)
        runner.run(transmitter.serve(sinks))
    return 0


def model_folders(model: Path) -> list[Path]:
    """Where the model is read from: its folder; and, where that is a link which may be turned to another, the one around."""
    folder = model.absolute().parent
    return [folder.resolve(), folder.parent] if folder.is_symlink() else [folder.resolve()]


class Transmitter:
    """Hears messages, paints, and passes each newest frame on to all sinks."""

    def __init__(
        self, config: Config, claims: list[IsolationClaim], channel: socket.socket, control: ControlChannel
    ) -> None:
        from edgesan.metrics import Metrics
        from edgesan.render import Renderer

        self._config, self._claims, self._channel, self._control = config, claims, channel, control
        self._decoder = self._load()
        self._renderer = Renderer(self._decoder, config.zones)
        isolation.limit_memory()
        self._metrics = Metrics()
        self._receiver: Receiver | None = None
        self._given: list[int] = []
        self._status: Status | None = None
        self._news, self._over = asyncio.Event(), False
        self._size = (0, 0)
        self._newest_ns = 0  # when the newest frame was captured
        self._reload_s = 0.0
        self._slates = 0
        self._crossed = [0, 0, 0]  # bytes, messages, refused: by pipes that are closed
        self._samples: deque[tuple[float, int]] = deque()  # time, bytes so far

    def _load(self) -> "Decoder":
        from edgesan.model.load import load_decoder

        c = self._config
        return load_decoder(c.model, c.threads, c.trusted_keys, allow_unsigned=c.allow_unsigned)

    def end(self) -> None:
        """Let `serve` finish its files and streams, and return."""
        self._over = True
        self._news.set()

    async def serve(self, sinks: "list[Sink]") -> None:
        """Serve until `end`.

        Raises:
            SinkError: one of the sinks failed.
        """
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._meet)
        async with AsyncExitStack() as stack:  # closes every sink, also where another one fails
            for sink in sinks:
                await sink.start()
                stack.push_async_callback(sink.close)
            self._control.send(READY)
            stack.callback(loop.create_task(self._live()).cancel)
            while not self._over:
                try:
                    async with asyncio.timeout(SLATE_S):
                        await self._news.wait()
                except TimeoutError:
                    pass
                self._news.clear()
                for frame in self._frames():
                    for sink in sinks:
                        await sink.send(frame)
                    if not frame.stamps.slate:
                        await asyncio.sleep(0)  # viewers first
                        self._catch_up()

    def _frames(self) -> "list[SanitizedFrame]":
        """The newest frame, painted; a slate where none has come for long; else nothing."""
        from edgesan.render import slate

        latents = self._receiver.read(self._take_status) if self._receiver else None
        if self._receiver and self._receiver.over:
            self._leave()
        now_ns = time.monotonic_ns()
        if latents is not None and 0 <= now_ns - latents.captured_ns <= FRESH_NS:  # none of the future, either
            try:
                frame = self._renderer(latents, late=True)
            except Reject as reject:
                self._metrics.count(f"rejected_{reject.reason}")
                if reject.reason == "model":
                    self._reload()
            else:
                self._metrics.tick(time.monotonic_ns())
                self._size, self._newest_ns = (latents.width, latents.height), latents.captured_ns
                return [frame]
        elif latents is not None:
            self._metrics.count("rejected_stale")
        if self._newest_ns and now_ns - self._newest_ns > FRESH_NS and not self._over:
            self._slates += 1
            text = "camera lost" if self._receiver else "no sanitizer"
            return [slate(text, self._size, self._slates, now_ns)]
        return []

    def _catch_up(self) -> None:
        """Decode what the next frame shows."""
        self._renderer.catch_up()
        self._metrics.span("decode", self._renderer.decode_ns)
        self._metrics.span("paint", self._renderer.paint_ns)

    def _take_status(self, status: "Status") -> None:
        """Take what the sanitize process says of itself, if it can be right."""
        try:
            isolation.unpack(status.results)
        except ValueError:
            self._metrics.count("rejected_status")
        else:
            self._status = status

    def _reload(self) -> None:
        """Read the model anew, where another one was put in its place (`edgesan install`). One that may not run changes nothing."""
        from edgesan.render import Renderer

        if time.monotonic() < self._reload_s:
            return
        self._reload_s = time.monotonic() + RELOAD_S
        try:
            self._decoder = self._load()
        except ModelError as error:
            print(f"edgesan: {error}", file=sys.stderr, flush=True)
        else:
            self._renderer = Renderer(self._decoder, self._config.zones)

    def _meet(self) -> None:
        """Take the pipes of another sanitize process from the parent. Its tracks are others, too."""
        from edgesan.render import Renderer
        from edgesan.transmit.link import Receiver

        word, given, _, _ = socket.recv_fds(self._channel, 1, GIVEN)
        if not word:  # the parent is gone
            asyncio.get_running_loop().remove_reader(self._channel)
            return
        if len(given) != GIVEN:
            for fd in given:
                os.close(fd)
            return
        self._leave()
        self._given, self._receiver = given, Receiver(given[0], given[1])
        self._renderer = Renderer(self._decoder, self._config.zones)
        asyncio.get_running_loop().add_reader(given[0], self._news.set)

    def _leave(self) -> None:
        """Close the pipes of a sanitize process that is gone."""
        if self._receiver is None:
            return
        asyncio.get_running_loop().remove_reader(self._given[0])
        self._crossed = self._wall()
        self._receiver, self._status = None, None
        for fd in self._given:
            os.close(fd)

    def _wall(self) -> list[int]:
        r = self._receiver
        now = (r.bytes, r.messages, r.refused) if r else (0, 0, 0)
        return [before + more for before, more in zip(self._crossed, now, strict=True)]

    async def _live(self) -> None:
        """Tell the parent that the loop turns, and see how much crosses."""
        while True:
            self._control.send(ALIVE)
            now_s = time.monotonic()
            self._samples.append((now_s, self._wall()[0]))
            while now_s - self._samples[0][0] > RATE_S:
                self._samples.popleft()
            await asyncio.sleep(ALIVE_S)

    def ask_alpha(self, alpha: float) -> bool:
        """Pass a viewer's wish on. False if nobody listens."""
        return self._receiver is not None and self._receiver.ask_alpha(alpha)

    def report(self) -> dict[str, Any]:
        """What the page and the metrics say, but for the server's own figures."""
        from edgesan import status

        crossed, messages, refused = self._wall()
        (first_s, first), (last_s, last) = (self._samples[0], self._samples[-1]) if self._samples else ((0, 0), (0, 0))
        wall = {
            "bytes": crossed,
            "bytes_per_s": round((last - first) / (last_s - first_s), 1) if last_s > first_s else 0.0,
            "messages": messages,
            "refused": refused,
        }
        return status.report(self._config, self._decoder, self._status, self._claims, self._metrics, wall,
                             fresh=time.monotonic_ns() - self._newest_ns <= FRESH_NS)  # fmt: skip
