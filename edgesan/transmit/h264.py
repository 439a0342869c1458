"""H.264 for all outlets: each frame is encoded once, whoever takes it.

The encoder is libx264, set for latency: no frame waits for a later one. A key frame comes every two seconds and when an
outlet asks for one, and carries its header (SPS and PPS). Times are those of the capture. An encoder of a board
(h264_v4l2m2m) is a device like a camera, and the transmit process may open none.

An encoder that fails costs pictures of the video and nothing else: it is begun anew, after a rest that grows each time.
"""

import logging
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

import av
import numpy as np
from av.video.frame import PictureType

from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame
from edgesan.outlets.channel import Video
from edgesan.outlets.link import HEALTHY_S, BackOff

logger = logging.getLogger(__name__)

CODEC: Final = "libx264"
TIME_BASE: Final = Fraction(1, 1_000_000)
KEY_NS: Final = 2_000_000_000  # between two key frames
BITS_A_PIXEL: Final = 3  # a second, at most: 6 Mbit/s for 1920x1080, 0.9 for 640x480
LEAST_RATE: Final = 500_000  # bits a second that even small pictures may take
NOMINAL_FPS: Final = 30  # for the level in the header; the times of the frames are those of the camera
START: Final = b"\0\0\1"
NAL_SPS, NAL_PPS = 7, 8


class H264Encoder:
    """Encodes frames of any size; one whose size differs from the last begins anew with a key frame.

    An odd last row or column is left out (4:2:0 has none). What fails is said once, and again after it has worked.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        """Frames that were encoded."""
        self.errors = 0
        """How often the encoder failed."""
        self.why = ""
        """Why no video comes; empty while it does."""
        self._clock, self._back_off = clock, BackOff(clock)
        self._codec: Any = None
        self._key_ns = self._last_us = 0
        self._due_s = clock()  # when it works again

    def __call__(self, frame: SanitizedFrame, *, key: bool) -> list[Video]:
        """Encode a frame; return its packet, or nothing: of less than 2x2 pixels, or while the encoder does not work.

        Args:
            frame: the newest one.
            key: whether it must be a key frame.
        """
        if min(frame.pixels.shape[:2]) < 2 or self._clock() < self._due_s:
            return []
        try:
            packets = self._encode(frame, key=key)
        except SinkError as error:
            self._fail(str(error))
            return []
        if self.why:
            logger.info("the video goes on")
        self.count, self.why = self.count + 1, ""
        return packets

    def _encode(self, frame: SanitizedFrame, *, key: bool) -> list[Video]:
        """Return the packet of a frame. Raises SinkError."""
        height, width = frame.pixels.shape[0] // 2 * 2, frame.pixels.shape[1] // 2 * 2
        captured_ns = frame.stamps.captured_ns
        try:
            if self._codec is None or (self._codec.width, self._codec.height) != (width, height):
                self._codec, key = _codec(width, height), True
            if key or captured_ns - self._key_ns >= KEY_NS:
                key, self._key_ns = True, captured_ns
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels[:height, :width]), format="bgr24")
            self._last_us = max(self._last_us + 1, captured_ns // 1000)
            picture.pts, picture.time_base = self._last_us, TIME_BASE
            picture.pict_type = PictureType.I if key else PictureType.NONE
            packets = self._codec.encode(picture)
        except av.FFmpegError as error:
            raise SinkError(f"cannot encode a picture of {width}x{height} as H.264: {error.strerror}") from error
        return [_video(bytes(each), each.is_keyframe, each.pts * 1000, width, height) for each in packets]

    def _fail(self, why: str) -> None:
        """Drop the encoder, and rest. The next one begins with a key frame."""
        now_s = self._clock()
        if now_s - self._due_s >= HEALTHY_S:
            self._back_off.reset()
        if why != self.why:
            logger.warning("%s; the video stops, the encoder is begun anew", why)
        self._codec, self._due_s = None, now_s + self._back_off.next_s()
        self.errors, self.why = self.errors + 1, why


def _codec(width: int, height: int) -> Any:
    """Return an encoder, which opens with its first picture. Raises SinkError where PyAV has none."""
    if CODEC not in av.codecs_available:
        raise SinkError(f"PyAV {av.__version__} has no {CODEC} here; install a wheel that has it: pip install av")
    codec: Any = av.CodecContext.create(CODEC, "w")
    codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
    codec.time_base, codec.framerate = TIME_BASE, Fraction(NOMINAL_FPS)
    codec.thread_count = 1
    rate = max(LEAST_RATE, BITS_A_PIXEL * width * height)
    codec.options = {
        "preset": "superfast",
        "tune": "zerolatency",
        "profile": "baseline",  # which browsers take, too
        "forced-idr": "1",
        "g": "100000",  # the times of key frames are ours
        "crf": "23",
        "maxrate": str(rate),
        "bufsize": str(rate),
    }
    return codec


def _video(packet: bytes, key: bool, captured_ns: int, width: int, height: int) -> Video:
    return Video(packet, key, captured_ns, width, height, header(packet) if key else b"")


def header(packet: bytes) -> bytes:
    """Return the SPS and the PPS of a packet (Annex B), each behind a start code; empty if it has none."""
    units = packet.split(START)[1:]  # a start code cannot be inside of a unit (ITU-T H.264, 7.4.1)
    kept = [unit.rstrip(b"\0") for unit in units if unit and unit[0] & 31 in (NAL_SPS, NAL_PPS)]
    return b"".join(b"\0" + START + unit for unit in kept)
