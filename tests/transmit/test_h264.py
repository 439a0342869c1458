"""The one H.264 encoder: a packet a frame, key frames in time and on request, the camera's times, any decoder."""

import io
import logging
from collections.abc import Callable

import av
import numpy as np
import pytest

from edgesan.frames import SanitizedFrame
from edgesan.outlets.channel import Video
from edgesan.transmit import h264
from edgesan.transmit.h264 import H264Encoder

Make = Callable[..., SanitizedFrame]
STEP_NS = 66_666_667
TOO_WIDE = (16386, 16)  # libx264 takes 16384 pixels at most


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


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_an_encoder_that_refuses_a_picture_costs_pictures_and_goes_on_with_a_key_frame(
    sanitized_frame: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    encoder = H264Encoder(clock)
    packets = [encoder(sanitized_frame(n, captured_ns=n * STEP_NS), key=False)[0] for n in range(3)]
    assert encoder(sanitized_frame(3, TOO_WIDE, 3 * STEP_NS), key=False) == []
    assert (encoder.count, encoder.errors) == (3, 1)
    assert encoder.why.startswith("cannot encode a picture of 16386x16 as H.264: ")
    assert encoder(sanitized_frame(4, captured_ns=4 * STEP_NS), key=False) == [], "it rests"
    clock.now_s += 0.6
    packets += [encoder(sanitized_frame(n, captured_ns=n * STEP_NS), key=False)[0] for n in range(5, 8)]
    assert [each.key for each in packets] == [True, False, False, True, False, False]
    assert len(decoded(packets)) == 6
    assert (encoder.count, encoder.errors, encoder.why) == (6, 1, "")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_an_encoder_that_ends_in_the_middle_of_a_video_is_begun_anew(sanitized_frame: Make) -> None:
    clock = Clock()
    encoder = H264Encoder(clock)
    packets = [encoder(sanitized_frame(n, captured_ns=n * STEP_NS), key=False)[0] for n in range(3)]
    encoder._codec.encode(None)  # the end of the stream: what comes after it is refused
    assert encoder(sanitized_frame(3, captured_ns=3 * STEP_NS), key=False) == []
    clock.now_s += 0.6
    packets += [encoder(sanitized_frame(n, captured_ns=n * STEP_NS), key=False)[0] for n in range(4, 7)]
    assert [each.key for each in packets] == [True, False, False, True, False, False]
    assert len(decoded(packets)) == 6
    assert encoder.errors == 1


def test_one_that_fails_for_hours_is_said_once_and_tried_ever_more_rarely(
    sanitized_frame: Make, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    encoder = H264Encoder(clock)
    tried: list[float] = []
    for second in range(7200):
        before, clock.now_s = encoder.errors, 1000.0 + second
        assert encoder(sanitized_frame(second, TOO_WIDE, second * 10**9), key=False) == []
        tried += [second] * (encoder.errors - before)
    assert tried[1] - tried[0] <= 1
    assert 20 <= min(b - a for a, b in zip(tried[-20:], tried[-19:], strict=False)) <= 31
    assert len(caplog.records) == 1
    clock.now_s += 31
    assert encoder(sanitized_frame(1), key=False)[0].key
    clock.now_s += 60
    encoder(sanitized_frame(2, TOO_WIDE), key=False)
    clock.now_s += 0.6
    assert encoder(sanitized_frame(3), key=False)[0].key, "it was well for a while, so that it is tried soon"


def test_a_wheel_without_libx264_is_said_in_words(sanitized_frame: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h264, "CODEC", "libx299")  # which no wheel has
    encoder = H264Encoder()
    assert encoder(sanitized_frame(0), key=False) == []
    assert encoder.why.endswith("has no libx299 here; install a wheel that has it: pip install av")
    assert encoder.errors == 1
