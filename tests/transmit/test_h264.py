"""The one H.264 encoder: a packet a frame, key frames in time and on request, the camera's times, any decoder."""

import io
from collections.abc import Callable

import av
import numpy as np

from edgesan.frames import SanitizedFrame
from edgesan.outlets.channel import Video
from edgesan.transmit.h264 import H264Encoder

Make = Callable[..., SanitizedFrame]
STEP_NS = 66_666_667


def encoded(make: Make, count: int, size: tuple[int, int] = (64, 48), first_ns: int = 10**12) -> list[Video]:
    encoder = H264Encoder()
    found = []
    for number in range(count):
        frame = make(number, size, first_ns + number * STEP_NS, level=number * 7 % 256)
        packets = encoder(frame, key=False)
        assert len(packets) == 1, "no frame waits for a later one"
        found += packets
    assert encoder.count == count
    return found


def decoded(packets: list[Video]) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(b"".join(each.packet for each in packets)), format="h264") as stream:
        return list(stream.decode(video=0))


def test_each_frame_is_one_packet_that_a_decoder_shows(sanitized_frame: Make) -> None:
    packets = encoded(sanitized_frame, 40)
    frames = decoded(packets)
    assert len(frames) == 40
    for number, frame in enumerate(frames):
        level = number * 7 % 256
        assert abs(float(np.mean(frame.to_ndarray(format="bgr24"))) - level) < 6
    assert [each.captured_ns for each in packets] == [
        10**12 // 1000 * 1000 + n * STEP_NS // 1000 * 1000 for n in range(40)
    ]


def test_a_key_frame_comes_first_then_every_two_seconds_and_carries_the_header(sanitized_frame: Make) -> None:
    packets = encoded(sanitized_frame, 70)
    keys = [number for number, each in enumerate(packets) if each.key]
    assert keys == [0, 30, 60]
    for each in packets:
        assert bool(each.header) == each.key
        assert each.packet.find(each.header) >= 0
    assert len(decoded(packets[30:])) == 40, "a viewer may begin at any key frame"


def test_a_key_frame_comes_when_it_is_asked_for(sanitized_frame: Make) -> None:
    encoder = H264Encoder()
    keys = [encoder(sanitized_frame(n, captured_ns=n * STEP_NS), key=n == 7)[0].key for n in range(12)]
    assert [n for n, key in enumerate(keys) if key] == [0, 7]


def test_a_picture_of_another_size_begins_anew(sanitized_frame: Make) -> None:
    encoder = H264Encoder()
    for number, size in enumerate([(64, 48), (64, 48), (33, 21), (64, 48)]):
        (packet,) = encoder(sanitized_frame(number, size, number * STEP_NS), key=False)
        assert packet.key == (number != 1)
        assert (packet.width, packet.height) == (size[0] // 2 * 2, size[1] // 2 * 2)
    assert encoder(sanitized_frame(9, (1, 1)), key=False) == []


def test_times_rise_also_where_those_of_the_camera_do_not(sanitized_frame: Make) -> None:
    encoder = H264Encoder()
    times = [encoder(sanitized_frame(1, captured_ns=t), key=False)[0].captured_ns for t in (10**9, 10**9, 5 * 10**8)]
    assert times == sorted(set(times))
