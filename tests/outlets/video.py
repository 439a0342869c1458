"""H.264 for outlets, as the one encoder makes it, from the bundled clip: packets with times, at their pace."""

import asyncio
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import av

from edgesan.outlets.channel import Key, State, Video
from tests.support import CLIP

FPS = 25
NANOSECONDS = Fraction(1, 1_000_000_000)


class Encoder:
    """Encodes the clip over and over. It counts, and makes a key frame when it is asked for one."""

    def __init__(self, size: tuple[int, int] = (320, 240)) -> None:
        self.encodes = self.keys_asked = 0
        self.size = size
        self._wanted = False
        codec = av.CodecContext.create("libx264", "w")
        codec.width, codec.height = size
        codec.pix_fmt, codec.time_base, codec.framerate = "yuv420p", NANOSECONDS, Fraction(FPS)
        codec.bit_rate, codec.gop_size = 1_000_000, 100 * FPS
        codec.options = {"preset": "ultrafast", "tune": "zerolatency"}
        codec.profile = "Baseline"
        self._codec = codec
        with av.open(str(CLIP)) as clip:
            self._pictures = [
                frame.reformat(*size, format="yuv420p")
                for frame, _ in zip(clip.decode(video=0), range(50), strict=False)
            ]

    def ask_key(self) -> None:
        self.keys_asked += 1
        self._wanted = True

    def packets(self) -> Iterator[av.Packet]:
        """One packet a call, of the picture of now."""
        n = 0
        while True:
            picture = self._pictures[n % len(self._pictures)]
            picture.pts, picture.time_base = time.monotonic_ns(), NANOSECONDS
            kind = av.video.frame.PictureType
            picture.pict_type = kind.I if self._wanted else kind.NONE
            self._wanted = False
            self.encodes, n = self.encodes + 1, n + 1
            for packet in self._codec.encode(picture):
                packet.time_base = NANOSECONDS
                yield packet

    def video(self, packet: av.Packet) -> Video:
        assert packet.pts is not None
        return Video(bytes(packet), packet.is_keyframe, packet.pts, *self.size)

    async def run(self, *takers: Callable[[Video], None]) -> None:
        """Hand packets to all takers, at their pace."""
        for packet in self.packets():
            for take in takers:
                take(self.video(packet))
            await asyncio.sleep(1 / FPS)


class Line:
    """Stands for `Link`: gives the encoder's packets, once video is wanted, and keeps what is sent."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._packets = encoder, encoder.packets()
        self._wanted = asyncio.Event()
        self.states: list[State] = []
        self.sent_ns: list[int] = []  # capture times
        self.wants: list[int] = []

    def want(self, kinds: int) -> None:
        self.wants.append(kinds)
        (self._wanted.set if kinds else self._wanted.clear)()

    def send(self, value: object) -> None:
        if isinstance(value, Key):
            self._encoder.ask_key()
        elif isinstance(value, State):
            self.states.append(value)

    async def video(self) -> Video:
        await self._wanted.wait()
        await asyncio.sleep(1 / FPS)
        video = self._encoder.video(next(self._packets))
        self.sent_ns.append(video.captured_ns)
        return video
