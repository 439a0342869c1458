"""Packets of the one encoder as PyAV muxes them."""

import io
from fractions import Fraction
from typing import Any, Final

import av

from edgesan.outlets.channel import Video

TIME_BASE: Final = Fraction(1, 1_000_000)


def add_video(container: Any, first: Video) -> None:
    """Add the video that begins with this packet, a key frame, to a container, and write its head.

    Raises:
        FFmpegError, OSError: the other side does not take it.
    """
    with av.open(io.BytesIO(first.packet), format="h264") as described:
        stream = container.add_stream_from_template(described.streams.video[0], opaque=True)
    stream.time_base = TIME_BASE
    container.start_encoding()


def packet_of(video: Video, began_ns: int, container: Any) -> Any:
    """Return a packet for the only stream of a container, whose time began then."""
    packet: Any = av.Packet(video.packet)
    packet.pts = packet.dts = (video.captured_ns - began_ns) // 1000
    packet.time_base, packet.is_keyframe = TIME_BASE, video.key
    packet.stream = container.streams[0]
    return packet
