"""WebRTC peers of the page: each is handed the packets of the one encoder, so that one encode serves all of them.

Offer and answer pass through the HTTP server, in the manner of WHEP. Of an offer only a few values are read
(`parse_offer`), and aiortc is given a new one that is made of them: what a stranger wrote does not reach it, nor do the
addresses that were offered. A peer is answered where it calls from. Only with a TURN server are offered addresses used,
as a relay sends to nobody who was not named to it.

A peer costs at most `MOST_QUEUED` packets. One that does not connect, says for long that it received nothing, or calls
from ever more addresses is dropped.
"""

import asyncio
import ipaddress
import json
import logging
import re
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import aioice.ice
import av
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.stats import RTCRemoteInboundRtpStreamStats

from edgesan.config import Config
from edgesan.outlets.channel import VIDEO, Key, Signal, State, Video
from edgesan.outlets.link import Link
from edgesan.targets import Relay, Target

logger = logging.getLogger(__name__)

MOST_OFFER_BYTES: Final = 16384
MOST_PEERS: Final = 8
MOST_QUEUED: Final = 30  # packets of a peer that were not sent yet: about a second
MOST_ADDRESSES: Final = 32  # from which one peer may call, or that it may offer
CONNECT_S: Final = 15.0  # from the offer to the first packet; aiortc answers within 5 s
SILENT_S: Final = 10.0  # without a report of what was received; browsers send one a second
LOOK_S: Final = 1.0  # from one look at all peers to the next
KEY_S: Final = 1.0  # between two requests for a key frame, whoever asks
CLOSE_S: Final = 5.0  # for a peer to be let go

NANOSECOND: Final = Fraction(1, 1_000_000_000)

# RFC 8839: the two are 4 and 22 characters at least. Nobody needs 256.
OF_ICE: Final = re.compile(r"[A-Za-z0-9+/]{4,256}")
PASSWORD: Final = re.compile(r"[A-Za-z0-9+/]{22,256}")
FINGERPRINT: Final = re.compile(r"sha-256 (?:[0-9A-F]{2}:){31}[0-9A-F]{2}", re.IGNORECASE)
MID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
PAYLOAD: Final = re.compile(r"[0-9]{1,3}")
BASELINE: Final = re.compile(r"42(?:e0|00)[0-9a-f]{2}", re.IGNORECASE)
SETUPS: Final = ("actpass", "active", "passive")


@dataclass(frozen=True, slots=True)
class Offer:
    """What is taken from an offer. Each value has been checked; `str` writes an offer of these alone."""

    ufrag: str
    password: str
    fingerprint: str
    setup: str
    mid: str
    payload: int  # type number of H.264
    profile: str  # four hex digits
    repeats: int | None  # type number of what is sent again (rtx)
    addresses: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        types = f"{self.payload}" if self.repeats is None else f"{self.payload} {self.repeats}"
        lines = [
            *("v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0", f"a=group:BUNDLE {self.mid}"),
            *(f"m=video 9 UDP/TLS/RTP/SAVPF {types}", "c=IN IP4 0.0.0.0", f"a=mid:{self.mid}"),
            *("a=recvonly", "a=rtcp-mux", f"a=setup:{self.setup}", f"a=fingerprint:{self.fingerprint}"),
            *(f"a=ice-ufrag:{self.ufrag}", f"a=ice-pwd:{self.password}"),
            f"a=rtpmap:{self.payload} H264/90000",
            f"a=fmtp:{self.payload} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={self.profile}1f",
            *(f"a=rtcp-fb:{self.payload} nack", f"a=rtcp-fb:{self.payload} nack pli"),
        ]
        if self.repeats is not None:
            lines += [f"a=rtpmap:{self.repeats} rtx/90000", f"a=fmtp:{self.repeats} apt={self.payload}"]
        lines += [
            f"a=candidate:{n} 1 udp {2**24 - n} {host} {port} typ host"
            for n, (host, port) in enumerate(self.addresses, 1)
        ]
        return "\r\n".join([*lines, ""])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told: `status` and `text` in the terms of HTTP; `peer` names the connection if there is one."""

    status: int
    text: str
    peer: str = ""


def parse_offer(text: str, *, addresses: bool = False) -> Offer:
    """Return what an offer says, in SDP, with one stream of H.264 that is to be received.

    Args:
        text: the offer.
        addresses: whether the addresses that it names are taken, too: numbers only, and only of UDP.

    Raises:
        ValueError: it is too long, or something is missing or malformed; the message says what.
    """
    if len(text) > MOST_OFFER_BYTES:
        raise ValueError(f"the offer has {len(text)} characters, more than {MOST_OFFER_BYTES}")
    if not text.isascii():
        raise ValueError("the offer is not ASCII")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    media = [line.split() for line in lines if line.startswith("m=")]
    if len(media) != 1 or media[0][0] != "m=video" or media[0][2:3] != ["UDP/TLS/RTP/SAVPF"]:
        raise ValueError("the offer must have one part, m=video with UDP/TLS/RTP/SAVPF: no sound, no data")
    if "a=rtcp-mux" not in lines:
        raise ValueError("the offer lacks a=rtcp-mux")
    if not {"a=recvonly", "a=sendrecv"} & set(lines):
        raise ValueError("the offer must want to receive: a=recvonly")
    payload, profile = _h264(lines, media[0][3:])
    repeats = [n for n, parameters in _of_type(lines, "rtx/90000") if parameters.get("apt") == str(payload)]
    if payload in repeats:
        raise ValueError(f"the offer gives two codecs the type number {payload}")
    return Offer(
        ufrag=_value(lines, "ice-ufrag", OF_ICE),
        password=_value(lines, "ice-pwd", PASSWORD),
        fingerprint=_value(lines, "fingerprint", FINGERPRINT),
        setup=_value(lines, "setup", re.compile("|".join(SETUPS))),
        mid=_value(lines, "mid", MID),
        payload=payload,
        profile=profile,
        repeats=repeats[0] if repeats else None,
        addresses=_addresses(lines) if addresses else (),
    )


def _value(lines: list[str], name: str, form: re.Pattern[str]) -> str:
    """Return the first value of an attribute."""
    value = next((line.partition(":")[2] for line in lines if line.startswith(f"a={name}:")), "")
    if not form.fullmatch(value):
        raise ValueError(f"the offer lacks a={name}, or its value has another form than expected")
    return value


def _h264(lines: list[str], wanted: list[str]) -> tuple[int, str]:
    """Return type number and profile of the H.264 that every peer can decode."""
    for number, parameters in _of_type(lines, "H264/90000"):
        profile = parameters.get("profile-level-id", "")
        if str(number) in wanted and parameters.get("packetization-mode") == "1" and BASELINE.fullmatch(profile):
            return number, profile[:4].lower()
    raise ValueError("the offer has no H.264 of the baseline profile with packetization-mode=1")


def _of_type(lines: list[str], name: str) -> list[tuple[int, dict[str, str]]]:
    """Return the type numbers that a codec has, with the parameters of each."""
    found = []
    for line in lines:
        number, _, codec = line.removeprefix("a=rtpmap:").partition(" ")
        if line.startswith("a=rtpmap:") and codec.lower() == name.lower() and PAYLOAD.fullmatch(number):
            start = f"a=fmtp:{number} "
            texts = [line.removeprefix(start) for line in lines if line.startswith(start)]
            pairs = (pair.strip().partition("=") for text in texts[:1] for pair in text.split(";"))
            found.append((int(number), {key.lower(): value for key, _, value in pairs}))
    return [(number, parameters) for number, parameters in found if 35 <= number <= 127]


def _addresses(lines: list[str]) -> tuple[tuple[str, int], ...]:
    """Return the addresses of an offer. Names are left out: looking them up would be a way to reach others."""
    found = []
    for line in lines:
        fields = line.split()
        if not line.startswith("a=candidate:") or len(fields) < 6 or fields[1] != "1" or fields[2].lower() != "udp":
            continue
        host, port = fields[4:6]
        if re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16 and _is_number(host):
            found.append((host, int(port)))
    return tuple(found[:MOST_ADDRESSES])


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


class _Packets(MediaStreamTrack):
    """What one peer is to be sent. A peer that falls behind loses all up to the next key frame."""

    kind = "video"

    def __init__(self, ask_key: Callable[[], None]) -> None:
        super().__init__()
        self._ask_key = ask_key
        self._queue: asyncio.Queue[av.Packet[Any]] = asyncio.Queue(MOST_QUEUED)
        self._follows = False  # whether the peer has had what the next packet builds on

    def put(self, packet: "av.Packet[Any]") -> None:
        if packet.is_keyframe or self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._follows = packet.is_keyframe
            if not self._follows:
                self._ask_key()
        if self._follows:
            self._queue.put_nowait(packet)

    async def recv(self) -> "av.Packet[Any]":
        return await self._queue.get()


class _Peer:
    """One connection, and when it last gave a sign of life."""

    def __init__(self, turn: Relay | None, ask_key: Callable[[], None]) -> None:
        # An empty list, as aiortc has a server of its own by default, which would learn who watches.
        servers = [RTCIceServer(turn.url, turn.user, turn.password)] if turn else []
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.packets = _Packets(ask_key)
        self.sender: RTCRtpSender = self.connection.addTrack(self.packets)
        # aiortc keeps a peer's request for a key frame to its own encoder, which does not run.
        self.sender._send_keyframe = ask_key  # type: ignore[method-assign]
        self.connection.on("connectionstatechange", lambda: ask_key() if self.is_connected else None)
        self._heard_s = _now_s()
        self._report: object = None
        self._sent = False  # whether it was sent something since the last look, so that it has something to report

    @property
    def is_connected(self) -> bool:
        return self.connection.connectionState == "connected"

    def send(self, packet: "av.Packet[Any]") -> None:
        if self.is_connected:
            self.packets.put(packet)
            self._sent = True

    async def why_dropped(self) -> str:
        """Return why this peer is to be let go; empty if it is well."""
        if self.connection.connectionState in {"failed", "closed"}:
            return "it is gone"
        if len(self.sender.transport.transport.getRemoteCandidates()) > MOST_ADDRESSES:
            return "it calls from too many addresses"
        now_s = _now_s()
        if not self.is_connected:
            return f"it did not connect within {CONNECT_S:g} s" if now_s - self._heard_s > CONNECT_S else ""
        reports = (await self.sender.getStats()).values()
        newest = [each.timestamp for each in reports if isinstance(each, RTCRemoteInboundRtpStreamStats)]
        if newest != self._report or not self._sent:
            self._report, self._heard_s = newest, now_s
        self._sent = False
        return "it does not say what it received" if now_s - self._heard_s > SILENT_S else ""

    async def answer(self, offer: Offer) -> str:
        connection = self.connection
        await connection.setRemoteDescription(RTCSessionDescription(str(offer), "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        return connection.localDescription.sdp


def own_addresses(use_ipv4: bool, use_ipv6: bool, net: Path = Path("/proc/self/net")) -> list[str]:
    """Return the addresses of this machine that others may reach. No socket is made: this process may make none for it.

    Args:
        use_ipv4: with those of IPv4.
        use_ipv6: with those of IPv6.
        net: where the kernel shows them: proc(5).
    """
    tries = (net / "fib_trie").read_text(encoding="ascii") if use_ipv4 else ""
    six = use_ipv6 and (net / "if_inet6").exists()  # not in a kernel without IPv6
    lines = (net / "if_inet6").read_text(encoding="ascii").splitlines() if six else []
    found = [ipaddress.ip_address(text) for text in re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", tries)]
    found += [ipaddress.ip_address(bytes.fromhex(line.split()[0])) for line in lines]
    return [str(each) for each in dict.fromkeys(found) if not (each.is_loopback or each.is_link_local)][:MOST_ADDRESSES]


def prepare(config: Config, target: Target) -> None:
    """Do nothing: this module is imported for it, as one of its libraries writes a file when it is imported."""


async def run(link: Link, target: Target, prepared: None) -> None:
    """Serve peers until the transmit process ends. Video is asked for only while there are some."""
    aioice.ice.get_host_addresses = own_addresses  # its own asks the kernel by a socket

    def tell(count: int) -> None:
        link.want(VIDEO if count else 0)
        link.send(State(connected=True, viewers=count))

    peers = Peers(
        lambda: link.send(Key()),
        tell,
        target.options.get("peers", MOST_PEERS),
        target.options.get("turn"),
    )
    tell(0)
    looking = asyncio.create_task(peers.look_after())
    answering: set[asyncio.Task[None]] = set()

    async def answer(question: Signal) -> None:
        link.send(Signal(question.number, await peers.serve(question.value)))

    try:
        while True:
            if looking.done():
                looking.result()  # raises what went wrong there
            match await link.receive():
                case Video() as video:
                    peers.send(video)
                case Signal() as question:
                    answering.add(task := asyncio.create_task(answer(question)))
                    task.add_done_callback(answering.discard)
    finally:
        looking.cancel()
        await peers.close()


class Peers:
    """All peers, and the packets for them.

    Args:
        ask_key: asks the encoder for a key frame.
        tell: is told how many peers there are, whenever one has come or gone.
        most: so many peers at once.
        turn: a relay for peers that no direct way leads to.
    """

    def __init__(
        self,
        ask_key: Callable[[], None],
        tell: Callable[[int], None],
        most: int = MOST_PEERS,
        turn: Relay | None = None,
    ) -> None:
        self._ask, self._tell, self._most, self._turn = ask_key, tell, most, turn
        self._peers: dict[str, _Peer] = {}
        self._asking: asyncio.TimerHandle | None = None
        self._asked_s = float("-inf")

    def __len__(self) -> int:
        return len(self._peers)

    def state(self) -> dict[str, Any]:
        """Return how many peers there are, how many of them see the picture, and how many there may be."""
        watching = sum(peer.is_connected for peer in self._peers.values())
        return {"peers": len(self._peers), "watching": watching, "most": self._most}

    async def answer(self, text: str) -> Answer:
        """Take a peer on, by its offer."""
        try:
            offer = parse_offer(text, addresses=self._turn is not None)
        except ValueError as error:
            return Answer(400, f"{error}\n")
        if len(self._peers) >= self._most:
            return Answer(503, f"{self._most} browsers watch by WebRTC already, and no more may; MJPEG has room\n")
        name, peer = secrets.token_hex(8), _Peer(self._turn, self._ask_key)
        self._peers[name] = peer
        self._tell(len(self._peers))
        async with AsyncExitStack() as undo:  # whatever ends the answer, its peer keeps no place
            undo.push_async_callback(self.leave, name)
            text = await peer.answer(offer)
            undo.pop_all()
        return Answer(201, text, name)

    async def leave(self, name: str) -> bool:
        """Let a peer go. Return whether there was one of this name."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._tell(len(self._peers))
            await _close(peer)
        return peer is not None

    def send(self, video: Video) -> None:
        """Hand a packet to all peers, without waiting for any."""
        packet = av.Packet(video.packet)
        packet.is_keyframe, packet.pts, packet.time_base = video.key, video.captured_ns, NANOSECOND
        for peer in self._peers.values():
            peer.send(packet)

    async def serve(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer what the HTTP server passes on: an offer, or that a peer leaves, or what a browser needs to begin."""
        match question:
            case {"do": "offer", "sdp": str(offer)}:
                return asdict(await self.answer(offer))
            case {"do": "leave", "peer": str(name)}:
                return asdict(Answer(200, "")) if await self.leave(name) else asdict(Answer(404, "no such peer\n"))
            case {"do": "begin"}:
                turn = self._turn
                ice = [{"urls": turn.url, "username": turn.user, "credential": turn.password}] if turn else []
                return asdict(Answer(200, json.dumps({"ice": ice})))
        return asdict(Answer(400, "this is no question for a WebRTC server\n"))

    async def look_after(self) -> None:
        """Let go who is gone or misbehaves; does not return."""
        while True:
            await asyncio.sleep(LOOK_S)
            for name, peer in list(self._peers.items()):
                if reason := await peer.why_dropped():
                    logger.info("WebRTC: a peer is let go: %s", reason)
                    await self.leave(name)

    async def close(self) -> None:
        """Let all go."""
        for name in list(self._peers):
            await self.leave(name)

    def _ask_key(self) -> None:
        """Ask for a key frame, at most once in `KEY_S`: peers that ask without end would cost all the others."""
        if self._asking is None:
            wait_s = max(0.0, self._asked_s + KEY_S - _now_s())
            self._asking = asyncio.get_running_loop().call_later(wait_s, self._ask_now)

    def _ask_now(self) -> None:
        self._asking, self._asked_s = None, _now_s()
        self._ask()


async def _close(peer: _Peer) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await peer.connection.close()
    except TimeoutError:
        logger.warning("WebRTC: a peer did not let itself be closed within %g s", CLOSE_S)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
