"""The outlets as the transmit process sees them: gives each what it wants, encoded once for all, and waits for none.

An outlet that takes nothing loses messages, and all outlets lose what is too large for one; the video then goes on with
the next key frame. What an outlet sends is parsed by one function (`edgesan.outlets.channel.parse_up`), and a malformed
message ends the channel: the parent then starts the outlet again, with a new one.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from edgesan import isolation, message
from edgesan.errors import Reject
from edgesan.frames import Pixels, SanitizedFrame
from edgesan.isolation import IsolationClaim
from edgesan.message import Latents
from edgesan.outlets.channel import (
    BLOCK,
    CHIP,
    CODES,
    JPEG,
    MOST_UP,
    STATUS,
    VIDEO,
    Chip,
    Claims,
    Codes,
    Down,
    Inbox,
    Jpeg,
    Key,
    Outbox,
    Report,
    Signal,
    State,
    Want,
    pack_down,
    parse_up,
)
from edgesan.request import Alpha, Privacy, Request
from edgesan.targets import Target
from edgesan.transmit.jpeg import JpegEncoder, encode

if TYPE_CHECKING:  # PyAV is loaded when an outlet wants video
    from edgesan.transmit.h264 import H264Encoder

logger = logging.getLogger(__name__)

ANSWER_S: Final = 10.0  # for an outlet to answer a question
MOST_QUESTIONS: Final = 16  # that wait for answers


@dataclass
class Peer:
    """An outlet. `descriptor` is -1 while it does not run."""

    target: Target
    descriptor: int = -1
    inbox: Inbox = field(default_factory=lambda: Inbox(MOST_UP))
    outbox: Outbox = field(default_factory=lambda: Outbox(-1))
    want: Want = Want(0)
    flowing: bool = False  # whether the video has begun, and nothing of it was lost
    state: State = State(False, "its process is starting")
    claims: list[IsolationClaim] = field(default_factory=list)
    jpeg_ns: int = 0  # when the last one was sent
    dropped: int = 0
    starts: int = 0  # of its process


class Outlets:
    """All outlets of a run. Everything is to be called in the event loop, and returns at once.

    Args:
        targets: `Config.targets`; the parent names an outlet by its place in here.
        jpeg: encodes for all sinks.
        request: passes on what an outlet asks for; False if nobody listens.
    """

    def __init__(self, targets: list[Target], jpeg: JpegEncoder, request: Callable[[Request], bool]) -> None:
        self._peers = [Peer(target) for target in targets]
        self._jpeg, self._request = jpeg, request
        self._h264: H264Encoder | None = None
        self._key = False  # whether an outlet needs a key frame
        self._too_large: set[type[Down]] = set()  # kinds of which a message was too large
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    def connect(self, number: int, descriptor: int) -> None:
        """Take the channel to an outlet that the parent has started."""
        if not 0 <= number < len(self._peers):
            os.close(descriptor)
            return
        peer = self._peers[number]
        self._disconnect(peer)
        os.set_blocking(descriptor, False)
        peer.descriptor, peer.inbox, peer.outbox = descriptor, Inbox(MOST_UP), Outbox(descriptor)
        peer.want, peer.flowing, peer.starts = Want(0), False, peer.starts + 1
        asyncio.get_running_loop().add_reader(descriptor, self._receive, peer)

    def close(self) -> None:
        """Close all channels: the outlets then finish what they write, and end."""
        for peer in self._peers:
            self._disconnect(peer)

    # --- to the outlets -----------------------------------------------------------------------------------------------

    def wants(self, kinds: int) -> bool:
        """Return whether any outlet wants one of these kinds."""
        return any(peer.want.kinds & kinds for peer in self._peers)

    def send(self, frame: SanitizedFrame) -> None:
        """Give a frame to those who want video or JPEG.

        Raises:
            SinkError: it cannot be encoded as JPEG.
        """
        captured_ns = frame.stamps.captured_ns
        if self.wants(VIDEO):
            if self._h264 is None:
                from edgesan.transmit.h264 import H264Encoder

                self._h264 = H264Encoder()
            key, self._key = self._key, False
            for packet in self._h264(frame, key=key):
                content = self._pack(packet)
                for peer in self._peers:
                    if peer.want.kinds & VIDEO and (peer.flowing or packet.key):
                        peer.flowing = self._put(peer, content)
                        self._key |= not peer.flowing
        for peer in self._peers:
            if peer.want.kinds & JPEG and captured_ns - peer.jpeg_ns >= peer.want.jpeg_every_ms * 1_000_000:
                peer.jpeg_ns = captured_ns
                self._put(peer, self._pack(Jpeg(self._jpeg(frame), captured_ns)))

    def send_codes(self, latents: Latents, model: str) -> None:
        """Give the codes of a frame to those who want them, with the SHA-256 of their model, in hex."""
        if self.wants(CODES):
            self._send(CODES, Codes(bytes.fromhex(model), message.pack(latents), latents))

    def send_chips(self, chips: list[tuple[int, Pixels]], captured_ns: int, model: str) -> None:
        """Give faces that were just decoded to those who want them: their tracks, and uint8 [112, 112, 3] in BGR."""
        if self.wants(CHIP):
            for track, pixels in chips:
                self._send(CHIP, Chip(bytes.fromhex(model), captured_ns, track, encode(pixels)))

    def send_status(self, report: Callable[[], dict[str, Any]]) -> None:
        """Give the status to those who want it."""
        if self.wants(STATUS):
            self._send(STATUS, Report(report()))

    async def ask(self, module: str, question: dict[str, Any]) -> dict[str, Any] | None:
        """Ask the outlet of a module, such as "webrtc", a question; return its answer, or None if there is none."""
        peer = next((each for each in self._peers if each.target.kind.module == module), None)
        if peer is None or peer.descriptor < 0 or len(self._questions) >= MOST_QUESTIONS:
            return None
        self._number = (self._number + 1) & 0xFFFFFFFF
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        number = self._number
        self._questions[number] = answer
        try:
            if not self._put(peer, self._pack(Signal(number, question))):
                return None
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    def _send(self, kind: int, value: Down) -> None:
        content = self._pack(value)
        for peer in self._peers:
            if peer.want.kinds & kind:
                self._put(peer, content)

    def _pack(self, value: Down) -> bytes:
        """Return a message, or nothing if it is too large, such as an 8K picture of noise; that is said once."""
        try:
            return pack_down(value)
        except Reject as reject:
            if type(value) not in self._too_large:
                logger.warning("%s; the outputs do without it and its like; pictures of a smaller size fit", reject)
            self._too_large.add(type(value))
            return b""

    def _put(self, peer: Peer, content: bytes) -> bool:
        """Send to an outlet, or drop it; return whether it was sent, or waits. Nothing counts as dropped."""
        try:
            taken = bool(content) and peer.outbox.put(content)
            if not peer.outbox.flush():
                asyncio.get_running_loop().add_writer(peer.descriptor, self._flush, peer)
        except OSError:
            self._disconnect(peer)
            return False
        peer.dropped += not taken
        return taken

    def _flush(self, peer: Peer) -> None:
        try:
            done = peer.outbox.flush()
        except OSError:
            self._disconnect(peer)
            return
        if done:
            asyncio.get_running_loop().remove_writer(peer.descriptor)

    # --- from the outlets ---------------------------------------------------------------------------------------------

    def _receive(self, peer: Peer) -> None:
        """Take what an outlet has sent."""
        try:
            content = os.read(peer.descriptor, BLOCK)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._disconnect(peer)
            return
        try:
            for kind, payload in peer.inbox.feed(content):
                self._take(peer, parse_up(kind, payload))
        except (Reject, ValueError) as error:  # ValueError: claims that are none
            logger.warning("%s: its process sent what is no message (%s), and is ended", peer.target.name, error)
            self._disconnect(peer)

    def _take(self, peer: Peer, value: Want | Claims | Key | State | Signal | Request) -> None:
        match value:
            case Want():
                if value.kinds & VIDEO and not peer.want.kinds & VIDEO:
                    peer.flowing, self._key = False, True
                peer.want = value
            case Claims(results):
                process = isolation.outlet_process(network=peer.target.kind.calls)
                peer.claims = isolation.unpack(results, process)
            case Key():
                self._key = True
            case State():
                peer.state = value
            case Signal(number, answer):
                if (question := self._questions.get(number)) and not question.done():
                    question.set_result(answer)
            case Alpha() | Privacy() if peer.target.kind.asks:
                self._request(value)
            case _:
                raise Reject("channel", f"{type(value).__name__} is not for an outlet of this kind to ask for")

    def _disconnect(self, peer: Peer) -> None:
        """Close the channel to an outlet, which then ends."""
        if peer.descriptor < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(peer.descriptor)
        loop.remove_writer(peer.descriptor)
        os.close(peer.descriptor)
        peer.descriptor, peer.want = -1, Want(0)
        why = peer.state.why or "its process ended, and is started again"
        peer.state = replace(peer.state, connected=False, why=why, viewers=0)

    # --- for the status -----------------------------------------------------------------------------------------------

    @property
    def claims(self) -> list[IsolationClaim]:
        """What the processes of the outlets gave up; of several with the same claims, the first one's."""
        return list({str(claim): claim for peer in self._peers for claim in peer.claims}.values())

    @property
    def encodes(self) -> dict[str, int]:
        """How many frames were encoded, by codec."""
        return {"jpeg": self._jpeg.metrics.totals["encoded"], "h264": self._h264.count if self._h264 else 0}

    @property
    def encode_errors(self) -> dict[str, int]:
        """How often an encoder failed, and was begun anew, by codec."""
        return {"h264": self._h264.errors if self._h264 else 0}

    def report(self) -> list[dict[str, Any]]:
        """Return the `outputs` of `/api/status`: where each outlet sends, and how that goes."""
        no_video = self._h264.why if self._h264 else ""
        return [
            {
                "to": peer.target.name,
                "kind": peer.target.kind.module,
                "connected": peer.state.connected and peer.descriptor >= 0,
                "why": peer.state.why or (no_video if peer.want.kinds & VIDEO else ""),
                "viewers": peer.state.viewers,
                "bytes": peer.state.bytes,
                "retries": peer.state.retries,
                "dropped": peer.dropped + peer.state.dropped,
                "starts": peer.starts,
            }
            for peer in self._peers
        ]
