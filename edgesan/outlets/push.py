"""Push to a server: RTSP(S), RTMP(S) and WHIP, by PyAV.

The packets are those of the one encoder; nothing is encoded here. A library that waits for a server waits in a thread,
and each call has a time limit of FFmpeg's own. The last resort is the end of this process (`Hung`).
"""

import asyncio
import io
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from typing import Any, Final, TypeVar

import av

from edgesan.outlets.channel import VIDEO, Video
from edgesan.outlets.link import Attempts, Hung, Link, Lost
from edgesan.targets import Target

TIME_BASE: Final = Fraction(1, 1_000_000)
SILENT_S: Final = 3.0  # for a server to answer
HUNG_S: Final = 10.0  # for a call of FFmpeg to come back
FORMATS: Final = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "flv",
    "rtmps": "flv",
    "whip+http": "whip",
    "whip+https": "whip",
}
Result = TypeVar("Result")


async def run(link: Link, target: Target, prepared: Any) -> None:
    """Push the video until the transmit process ends."""
    pusher = Pusher(link, target)
    await pusher.attempts.run(pusher.attempt)


class Pusher:
    """Pushes the video of a link to a target."""

    def __init__(self, link: Link, target: Target) -> None:
        self._link, self._target = link, target
        self.attempts = Attempts(link, target.name)
        self._thread = ThreadPoolExecutor(1)

    async def attempt(self) -> None:
        """Connect, and push until the size of the picture changes.

        Raises:
            Lost: the server does not take it, or not any more.
            Hung: FFmpeg does not come back.
        """
        self._link.want(VIDEO)
        first = await self._link.key_frame()
        container = await self._call(open_server, self._target, first)
        try:
            self.attempts.connected()
            packet = await self._link.key_frame()
            began_ns = packet.captured_ns
            while (packet.width, packet.height) == (first.width, first.height):
                await self._call(mux, container, packet, began_ns)
                self.attempts.sent(len(packet.packet))
                packet = await self._link.video()
        finally:
            with suppress(Lost):  # it says no more than the first error
                await self._call(container.close)

    async def _call(self, what: Callable[..., Result], *arguments: Any) -> Result:
        """Call FFmpeg in the thread, and put its errors into words."""
        began_s = time.monotonic()
        called = asyncio.get_running_loop().run_in_executor(self._thread, what, *arguments)
        try:
            async with asyncio.timeout(HUNG_S):
                return await asyncio.shield(called)
        except TimeoutError as error:
            if not called.done():
                raise Hung(f"{self._target.name} does not answer for {HUNG_S:g} s") from error
            raise Lost(words(error, self._target, time.monotonic() - began_s)) from error
        except (av.FFmpegError, OSError) as error:
            raise Lost(words(error, self._target, time.monotonic() - began_s)) from error


def open_server(target: Target, first: Video) -> Any:
    """Connect to a server, and announce the video that begins with this packet. Raises FFmpegError or OSError."""
    timeout_us = str(round(SILENT_S * 1e6))
    options = {
        "rtsp": {"rtsp_transport": "tcp", "timeout": timeout_us},
        "flv": {"rw_timeout": timeout_us, "flvflags": "no_duration_filesize"},
        "whip": {"rw_timeout": timeout_us, "handshake_timeout": str(round(SILENT_S * 1000))},
    }[FORMATS[target.scheme]]
    if target.scheme in ("rtsps", "rtmps", "whip+https"):
        authorities = ssl.get_default_verify_paths()  # SSL_CERT_FILE names others
        options |= {"tls_verify": "1", "verifyhost": target.host}
        if authorities.cafile:
            options["ca_file"] = authorities.cafile
    url = target.url.removeprefix("whip+")
    container = av.open(url, "w", format=FORMATS[target.scheme], options=options)
    with av.open(io.BytesIO(first.packet), format="h264") as described:
        stream = container.add_stream_from_template(described.streams.video[0], opaque=True)
    stream.time_base = TIME_BASE
    container.start_encoding()
    return container


def mux(container: Any, video: Video, began_ns: int) -> None:
    """Send a packet. Raises FFmpegError or OSError."""
    packet = av.Packet(video.packet)
    packet.pts = packet.dts = (video.captured_ns - began_ns) // 1000
    packet.time_base, packet.is_keyframe = TIME_BASE, video.key
    packet.stream = container.streams[0]
    container.mux(packet)


def words(error: Exception, target: Target, seconds: float) -> str:
    """Say why a server does not take the video, and what to do."""
    return f"{type(error).__name__} {getattr(error, 'strerror', '')}"
