"""WebRTC: real peers (aiortc's own, and a relay where one is installed) are served with packets of one encoder."""

import asyncio
import gc
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outlets.video import Encoder
from tests.support import free_port

aiortc = pytest.importorskip("aiortc", reason="aiortc is not installed (pip install '.[webrtc]')")
from aioice import stun  # noqa: E402
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription  # noqa: E402
from aiortc.exceptions import OperationError  # noqa: E402

from edgesan.outlets import webrtc  # noqa: E402
from edgesan.outlets.webrtc import MOST_ADDRESSES, MOST_QUEUED, Offer, Peers, parse_offer  # noqa: E402
from edgesan.targets import Relay  # noqa: E402

OFFER = str(
    Offer(
        ufrag="abcd",
        password="p" * 22,
        fingerprint="sha-256 " + ":".join(["0A"] * 32),
        setup="actpass",
        mid="0",
        payload=103,
        profile="42e0",
        repeats=104,
        addresses=(("192.0.2.7", 5000), ("2001:db8::7", 5001)),
    )
)


@pytest.fixture(autouse=True)
def no_sockets_of_a_test_in_the_next_one() -> Iterator[None]:
    """On a busy machine aioice leaves a socket open where a test ends while it looks for addresses."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Viewer:
    """A browser's part, played by aiortc."""

    def __init__(self, *servers: RTCIceServer) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=list(servers)))
        self.transceiver = self.connection.addTransceiver("video", "recvonly")

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def join(self, peers: Peers) -> str:
        answer = await peers.answer(await self.offer())
        assert answer.status == 201, answer.text
        await self.connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        return answer.peer

    async def see(self, count: int) -> list[int]:
        """Decode so many frames, and return their times in ticks of 90 kHz."""
        track = self.transceiver.receiver.track
        return [(await asyncio.wait_for(track.recv(), 20)).pts for _ in range(count)]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Peers, Encoder]]:
    encoder, watched = Encoder(), list[int]()
    peers = Peers(encoder.ask_key, watched.append, **options)
    tasks = [asyncio.create_task(encoder.run(peers.send)), asyncio.create_task(peers.look_after())]
    try:
        yield peers, encoder
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await peers.close()
        await asyncio.sleep(0.1)  # sockets close in the next rounds of the loop
    assert watched[-1:] in ([0], [])


@asynccontextmanager
async def viewing(count: int = 1, *servers: RTCIceServer) -> AsyncIterator[list[Viewer]]:
    viewers = [Viewer(*servers) for _ in range(count)]
    try:
        yield viewers
    finally:
        for viewer in viewers:
            await viewer.connection.close()


async def until(wanted: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not wanted():
            await asyncio.sleep(0.05)


def test_three_peers_see_the_frames_of_one_encoder() -> None:
    async def main() -> None:
        async with serving() as (peers, encoder), viewing(3) as viewers:
            names = [await viewer.join(peers) for viewer in viewers]
            seen = await asyncio.gather(*(viewer.see(15) for viewer in viewers))
            assert [len(frames) for frames in seen] == [15] * 3
            assert encoder.encodes < 3 * 15 + 60, "one a frame, whoever watches"
            assert peers.state() == {"peers": 3, "watching": 3, "most": 8}
            first = seen[0]
            assert 14 / 25 / 2 < (first[-1] - first[0]) / 90_000 < 20, "they carry the times of their capture"
            assert await peers.leave(names[0])
            assert not await peers.leave(names[0])
            assert len(peers) == 2

    asyncio.run(main())


def test_a_peer_that_comes_later_or_lost_a_picture_gets_a_key_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "KEY_S", 0.1)

    async def main() -> None:
        async with serving() as (peers, encoder), viewing(2) as (first, second):
            await first.join(peers)
            await first.see(2)
            before = encoder.keys_asked
            await second.join(peers)
            await second.see(2)  # the clip's own key frames are 100 s apart
            assert encoder.keys_asked > before
            before = encoder.keys_asked
            receiver = second.transceiver.receiver
            (source,) = receiver.getSynchronizationSources()
            await receiver._send_rtcp_pli(source.source)
            await until(lambda: encoder.keys_asked > before)
            before = encoder.keys_asked
            for _ in range(500):
                await receiver._send_rtcp_pli(source.source)
            assert encoder.keys_asked - before < 50, "whoever asks without end is not heard each time"

    asyncio.run(main())


def test_no_more_peers_than_allowed_are_taken() -> None:
    async def main() -> None:
        async with serving(most=1) as (peers, _), viewing(2) as (first, second):
            await first.join(peers)
            await first.see(1)
            answer = await peers.answer(await second.offer())
            assert (answer.status, answer.peer) == (503, "")
            assert "1 browsers watch" in answer.text

    asyncio.run(main())


def test_a_peer_that_never_connects_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_S", 1.0)
    monkeypatch.setattr(webrtc, "LOOK_S", 0.1)

    async def main() -> None:
        async with serving() as (peers, _), viewing() as (viewer,):
            assert (await peers.answer(await viewer.offer())).status == 201
            await until(lambda: len(peers) == 0)

    asyncio.run(main())


def test_a_peer_without_an_answer_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    aiortc_refuses = replace(parse_offer(OFFER), repeats=103)

    async def main() -> None:
        async with serving(most=1) as (peers, _), viewing() as (viewer,):
            with monkeypatch.context() as patch:
                patch.setattr(webrtc, "parse_offer", lambda *_, **__: aiortc_refuses)
                with pytest.raises(OperationError):
                    await peers.answer(OFFER)
            assert len(peers) == 0
            await viewer.join(peers)
            await viewer.see(1)

    asyncio.run(main())


def test_a_peer_whose_answer_never_comes_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_S", 0.2)
    monkeypatch.setattr(webrtc, "LOOK_S", 0.1)
    monkeypatch.setattr(RTCPeerConnection, "createAnswer", lambda _: asyncio.Event().wait())

    async def main() -> None:
        async with serving() as (peers, _):
            answering = asyncio.create_task(peers.answer(OFFER))
            await until(lambda: len(peers) == 1)
            await until(lambda: len(peers) == 0)
            answering.cancel()

    asyncio.run(main())


@pytest.mark.slow
def test_a_peer_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "SILENT_S", 4.0)
    monkeypatch.setattr(webrtc, "LOOK_S", 0.1)

    async def main() -> None:
        async with serving() as (peers, _), viewing(2) as (lazy, lively):
            await lazy.join(peers)
            await lazy.see(3)
            lazy.transceiver.receiver._RTCRtpReceiver__rtcp_task.cancel()  # it says no more what it received
            await lively.join(peers)
            await until(lambda: len(peers) == 1)
            await lively.see(30)
            assert peers.state()["watching"] == 1

    asyncio.run(main())


def test_a_peer_that_calls_from_ever_more_addresses_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "LOOK_S", 0.1)

    async def main() -> None:
        async with serving() as (peers, _), viewing() as (viewer,):
            name = await viewer.join(peers)
            await viewer.see(1)
            local = viewer.connection.getTransceivers()[0].sender.transport.transport._connection
            pair = next(iter(local._nominated.values()))
            for _ in range(2 * MOST_ADDRESSES):
                request = local.build_request(pair, nominate=False)
                request.transaction_id = stun.random_transaction_id()
                request.add_message_integrity(local.remote_password.encode())
                family = socket.AF_INET6 if ":" in pair.remote_addr[0] else socket.AF_INET
                with closing(socket.socket(family, socket.SOCK_DGRAM)) as other:
                    other.sendto(bytes(request), pair.remote_addr)
            await until(lambda: len(peers) == 0)
            assert not await peers.leave(name)

    asyncio.run(main())


def test_a_peer_that_falls_behind_loses_all_up_to_the_next_key_frame() -> None:
    async def main() -> None:
        encoder = Encoder()
        packets, asked = encoder.packets(), []
        queue = webrtc._Packets(lambda: asked.append(1))
        for _ in range(3 * MOST_QUEUED):
            queue.put(next(packets))
        assert queue._queue.qsize() == 0, "nothing that could not be decoded waits"
        assert len(asked) == 1
        encoder.ask_key()
        queue.put(next(packets))
        queue.put(next(packets))
        assert (await queue.recv()).is_keyframe
        assert not (await queue.recv()).is_keyframe

    asyncio.run(main())


def test_the_addresses_of_a_machine_are_found_without_a_socket(tmp_path: Path) -> None:
    found = webrtc.own_addresses(True, True)
    assert found == webrtc.own_addresses(True, False) + webrtc.own_addresses(False, True)
    assert own_address() in found
    trie = "     |-- {}\n        /32 {}\n"
    rows = [("127.0.0.1", "host LOCAL"), ("192.0.2.2", "host LOCAL"), ("192.0.2.255", "link BROADCAST")]
    (tmp_path / "fib_trie").write_text(2 * "".join(trie.format(*row) for row in rows))
    assert webrtc.own_addresses(True, True, tmp_path) == ["192.0.2.2"], "a kernel without IPv6"
    six = ("fe80" + 28 * "0", 31 * "0" + "1", "20010db8" + 23 * "0" + "7")
    (tmp_path / "if_inet6").write_text("".join(f"{each} 04 40 20 80     eth0\n" for each in six))
    assert webrtc.own_addresses(True, True, tmp_path) == ["192.0.2.2", "2001:db8::7"]


def test_an_offer_is_read_and_written_the_same() -> None:
    offer = parse_offer(OFFER, addresses=True)
    assert str(offer) == OFFER
    assert offer.addresses == (("192.0.2.7", 5000), ("2001:db8::7", 5001))


def test_offered_addresses_are_not_called() -> None:
    assert parse_offer(OFFER).addresses == ()
    flood = "".join(f"a=candidate:1 1 udp 1 192.0.2.{n} 5000 typ host\r\n" for n in range(255))
    assert len(parse_offer(OFFER + flood, addresses=True).addresses) == MOST_ADDRESSES
    named = "a=candidate:1 1 udp 1 {} 5000 typ host\r\n"
    for host in ("secret.example", "0123.local", "fe80::1%eth0", "192.0.2.300"):
        assert len(parse_offer(OFFER + named.format(host), addresses=True).addresses) == 2


@pytest.mark.parametrize(
    ("instead", "of", "words"),
    [
        ("m=audio 9", "m=video 9", "one part"),
        ("m=video 9 RTP/AVP 103\r\nm=video 9", "m=video 9", "one part"),
        ("RTP/AVP", "UDP/TLS/RTP/SAVPF", "one part"),
        ("", "a=rtcp-mux", "rtcp-mux"),
        ("a=sendonly", "a=recvonly", "receive"),
        ("VP8/90000", "H264/90000", "no H.264"),
        ("packetization-mode=0", "packetization-mode=1", "no H.264"),
        ("profile-level-id=64001f", "profile-level-id=42e01f", "no H.264"),
        ("a=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=103;", "a=fmtp:103 ", "two codecs"),
        ("a=ice-ufrag:ab", "a=ice-ufrag:abcd", "ice-ufrag"),
        ("a=ice-pwd:short", "a=ice-pwd:" + "p" * 22, "ice-pwd"),
        ("a=fingerprint:sha-1 0A", "a=fingerprint:sha-256 0A", "fingerprint"),
        ("a=setup:holdconn", "a=setup:actpass", "setup"),
        ("a=mid:ä", "a=mid:0", "ASCII"),
        ("a=mid:0\r\n" + 17000 * "a", "a=mid:0", "characters"),
    ],
)
def test_an_offer_that_lacks_something_is_refused_in_words(instead: str, of: str, words: str) -> None:
    assert of in OFFER
    with pytest.raises(ValueError, match=words):
        parse_offer(OFFER.replace(of, instead))


LINES = st.lists(st.sampled_from(OFFER.splitlines()) | st.text(max_size=60), max_size=40).map("\r\n".join)


@settings(max_examples=30, deadline=None)
@given(LINES | st.text())
def test_any_text_gives_an_offer_or_the_one_error(text: str) -> None:
    try:
        offer = parse_offer(text, addresses=True)
    except ValueError:
        return
    assert parse_offer(str(offer), addresses=True) == offer


def test_a_question_that_is_none_gets_an_answer() -> None:
    async def main() -> None:
        async with serving(turn=Relay("turn.example:3478", "cam", "secret")) as (peers, _):
            assert (await peers.serve({"do": "dance"}))["status"] == 400
            assert (await peers.serve({"do": "offer", "sdp": 7}))["status"] == 400
            assert (await peers.serve({"do": "offer", "sdp": "v=0"}))["status"] == 400
            assert (await peers.serve({"do": "leave", "peer": "ff"}))["status"] == 404
            begun = await peers.serve({"do": "begin"})
            assert "turn:turn.example:3478?transport=udp" in begun["text"]

    asyncio.run(main())


def test_a_configured_relay_is_used() -> None:
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("coturn is not installed (apt install coturn)")
    port = free_port()
    own = own_address()
    relay = subprocess.Popen(
        [
            *(program, "-n", "--no-cli", "--no-tls", "--no-dtls", "--lt-cred-mech", "--user=cam:secret"),
            *("--realm=test", f"--listening-ip={own}", f"--relay-ip={own}", f"--listening-port={port}"),
            *("--pidfile=/dev/null", "--log-file=stdout", "--simple-log"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)
    turn = Relay(f"{own}:{port}", "cam", "secret")
    only = RTCIceServer(turn.url, turn.user, turn.password)

    async def main() -> None:
        async with serving(turn=turn) as (peers, _), viewing(1, only) as (viewer,):
            text = await viewer.offer()
            # All direct ways are taken out of the offer and the answer: what arrives came through the relay.
            answer = await peers.answer(_relayed(text))
            assert answer.status == 201, answer.text
            assert " typ relay" in answer.text
            await viewer.connection.setRemoteDescription(RTCSessionDescription(_relayed(answer.text), "answer"))
            assert len(await viewer.see(5)) == 5

    try:
        asyncio.run(main())
    finally:
        relay.kill()
        relay.wait()


def _relayed(sdp: str) -> str:
    return "".join(line for line in sdp.splitlines(keepends=True) if "a=candidate" not in line or "relay" in line)


def own_address() -> str:
    """An address of this machine that is not loopback, without sending anything."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network: WebRTC needs an address beside loopback")
        return str(probe.getsockname()[0])
