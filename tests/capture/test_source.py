"""What all sources share: foreign pixels become ours, cameras that hang turned, and the newest frame of a live one."""

import json
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan.capture import open_source, source
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.capture.source import FrameRateLimiter, LiveSource, fit, to_bgr
from edgesan.cli import configuration, parser
from edgesan.config import load
from edgesan.errors import CameraError, CameraLost, ConfigError
from edgesan.faces import Detector
from edgesan.frames import Pixels
from tests.capture.support import PATIENCE_S, HttpCamera, flat, open_camera, play, take
from tests.support import COMMAND, report


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_pixels_of_another_kind_are_refused(pixels: NDArray[Any]) -> None:
    with pytest.raises(CameraError, match="expected 8 or 16 bits"):
        to_bgr(pixels)


def test_nothing_is_copied_without_need() -> None:
    pixels = flat(3)
    assert to_bgr(pixels) is pixels
    assert fit(pixels, (64, 48)) is pixels


def admitted(fps: float | None, camera_fps: float) -> float:
    """Frames a second that pass, in ten seconds of a camera with 3 % of jitter."""
    moments = np.arange(round(10 * camera_fps)) / camera_fps
    jitter = np.random.default_rng(3).normal(0, 0.03 / camera_fps, len(moments))
    limiter = FrameRateLimiter(fps)
    return sum(limiter.admits(float(at)) for at in np.sort(moments + jitter)) / 10


@pytest.mark.parametrize(("fps", "camera"), [(30, 30), (30, 30.3), (15, 30), (10, 12), (7, 30), (24, 60), (60, 30)])
def test_the_limiter_keeps_the_mean_rate_in_spite_of_jitter(fps: float, camera: float) -> None:
    assert admitted(fps, camera) == pytest.approx(min(fps, camera), abs=0.3)


def test_without_a_rate_all_frames_pass() -> None:
    assert admitted(None, 30) == 30


class Script:
    """A CameraBackend that plays pictures (None: a damaged one), and is then lost, or hangs until `freed`."""

    def __init__(self, *steps: Pixels | None, hang: bool = False) -> None:
        self._steps = iter(steps)
        self._now: Pixels | None = None
        self.over, self.freed, self.closed = threading.Event(), threading.Event(), threading.Event()
        if not hang:
            self.freed.set()

    def grab(self) -> int:
        try:
            self._now = next(self._steps)
        except StopIteration:
            self.over.set()
            self.freed.wait(PATIENCE_S)
            raise CameraLost("the script is over") from None
        time.sleep(0.02)
        return time.monotonic_ns()

    def pixels(self) -> Pixels | None:
        return self._now

    def close(self) -> None:
        self.closed.set()


def test_a_damaged_picture_costs_one_frame() -> None:
    seen: list[int] = []
    source = LiveSource("script", Script(flat(1), None, flat(2), None, None, flat(3)), None, None)
    with closing(source), pytest.raises(CameraLost, match="script is over"):
        seen.extend(play(source))
    assert seen == sorted(set(seen))
    assert seen[-1] == 3


def test_a_picture_that_changes_its_size_is_a_lost_camera() -> None:
    source = LiveSource("script", Script(flat(1), flat(2, (32, 32))), None, None)
    with closing(source), pytest.raises(CameraLost, match="changed its picture from 64x48 to 32x32"):
        list(play(source))


def test_a_camera_without_a_first_picture_is_an_error_and_is_closed() -> None:
    device = Script(None)
    with pytest.raises(CameraError, match="opened but gave no picture"):
        LiveSource("script", device, None, None)
    assert device.closed.is_set()


def test_a_hanging_camera_is_lost_within_the_timeout_and_does_not_hold_close_up() -> None:
    device = Script(flat(1), hang=True)
    source = LiveSource("script", device, None, None)
    take(source)
    started_s = time.monotonic()
    with pytest.raises(CameraLost, match=r"script gave no picture for 0\.2 s"):
        take(source, timeout_s=0.2)
    source.close()
    assert time.monotonic() - started_s < 3
    assert not device.closed.is_set()  # its thread still has it
    device.freed.set()
    assert device.closed.wait(PATIENCE_S)


def test_no_frame_is_lent_twice_nor_after_close() -> None:
    device = Script(flat(1), flat(2), flat(3), hang=True)
    source = LiveSource("script", device, None, None)
    assert device.over.wait(PATIENCE_S)
    assert take(source)[1] == 3  # the first two were lost: only the newest is kept
    with pytest.raises(CameraLost, match="gave no picture"):
        take(source, timeout_s=0.05)
    device.freed.set()
    source.close()
    source.close()
    with pytest.raises(CameraLost):
        take(source)


def test_the_timeout_does_not_count_the_pace_that_was_asked_for() -> None:
    source = LiveSource("script", Script(*(flat(i) for i in range(40)), hang=False), None, 2.5)
    with closing(source):
        assert [take(source, timeout_s=0.2)[0].shape for _ in range(2)] == [(48, 64, 3)] * 2


TURNED = {0: None, 90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def hung(pixels: Pixels, rotate: int) -> Pixels:
    """As a camera sees it that hangs so that its picture must be turned by this."""
    code = TURNED[(360 - rotate) % 360]
    return pixels if code is None else np.asarray(cv2.rotate(pixels, code), np.uint8)


def write_turned(path: Path, frames: list[Pixels], rotate: int) -> Path:
    """Without loss: what comes out is what went in."""
    seen = [hung(pixels, rotate) for pixels in frames]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 30, (seen[0].shape[1], seen[0].shape[0]))
    assert writer.isOpened()
    for pixels in seen:
        writer.write(pixels)
    writer.release()
    return path


@pytest.mark.parametrize("rotate", TURNED)
def test_a_clip_of_a_camera_that_hangs_otherwise_gives_the_frames_of_one_that_hangs_upright(
    tmp_path: Path, clip: list[Pixels], rotate: int
) -> None:
    upright = write_turned(tmp_path / "upright.avi", clip[:10], 0)
    turned = write_turned(tmp_path / "turned.avi", clip[:10], rotate)
    for size in (None, (240, 240), (100, 300)):
        with (
            closing(FileSource(upright, size, None, loop=False, paced=False)) as one,
            closing(FileSource(turned, size, None, rotate, loop=False, paced=False)) as other,
        ):
            assert one.size == other.size
            for _ in range(10):
                pixels, number = take(one)
                same, same_number = take(other)
                assert (number, pixels.shape) == (same_number, same.shape)
                # Scaling by area is not quite the same from the other side: by one level.
                assert np.abs(pixels.astype(int) - same).max() <= (0 if size is None else 1)
                assert (same.shape[1], same.shape[0]) == other.size


@pytest.mark.parametrize("rotate", TURNED)
def test_everything_that_can_be_a_camera_is_turned(
    tmp_path: Path, clip: list[Pixels], pi: Any, http_camera: HttpCamera, rotate: int
) -> None:
    across = rotate in (90, 270)
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), hung(clip[0], rotate))
    assert (read_picture(picture, rotate) == clip[0]).all()
    with closing(open_source(str(picture), (240, 240), 50, rotate)) as source:
        assert source.size == (240, 135)
    with closing(open_source(str(write_turned(tmp_path / "clip.avi", clip[:3], rotate)), None, None, rotate)) as source:
        assert (take(source)[0] == clip[0]).all()
    with closing(open_source("demo", None, None, rotate)) as source:
        assert source.size == ((270, 480) if across else (480, 270))
    with closing(LiveSource("script", Script(*[hung(clip[5], rotate)] * 9), None, None, rotate)) as source:
        assert (take(source)[0] == clip[5]).all()
    with closing(open_camera(http_camera.url, rotate=rotate)) as source:
        assert source.size == ((240, 320) if across else (320, 240))
    with closing(open_source("picamera", (240, 320), None, rotate)) as source:
        assert source.size == (240, 320), "what is asked for is meant after the turn"
        assert pi.opened[-1].camera_config["main"]["size"] == ((320, 240) if across else (240, 320))


@pytest.mark.parametrize("wrong", [45, -90, 360, 1])
def test_the_command_line_and_the_file_take_four_turns(tmp_path: Path, wrong: int) -> None:
    toml = tmp_path / "edgesan.toml"
    for right in TURNED:
        toml.write_text(f"rotate = {right}\n")
        assert load(toml, {}).rotate == right
        arguments = parser().parse_args(["run", "--rotate", str(right)])
        assert configuration(arguments).rotate == right
    toml.write_text(f"rotate = {wrong}\n")
    with pytest.raises(ConfigError, match=f"rotate is {wrong}: choose one of 0, 90, 180, 270"):
        load(toml, {})
    for text in ("true", '"90"', "90.0"):
        toml.write_text(f"rotate = {text}\n")
        with pytest.raises(ConfigError, match=r"rotate = .* has the wrong type"):
            load(toml, {})


def test_a_picture_and_a_clip_are_turned_when_they_are_sanitized(tmp_path: Path, clip: list[Pixels]) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), hung(clip[0], 90))
    write_turned(tmp_path / "in.avi", clip[:5], 90)

    def faces(given: str, target: str, *more: str) -> int:
        asked = [*COMMAND, "sanitize", str(tmp_path / given), str(tmp_path / target), "--force", "--json", *more]
        return int(json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["faces"])

    assert faces("in.png", "out.png") < 2
    assert faces("in.png", "out.png", "--rotate", "90") == 2
    assert faces("in.avi", "out.mkv", "--rotate", "90") == 2 * 5
    assert read_picture(tmp_path / "out.png").shape == clip[0].shape
    with closing(FileSource(tmp_path / "out.mkv", None, None, loop=False, paced=False)) as out:
        assert out.size == (480, 270)


def test_a_picture_that_is_not_turned_is_not_copied() -> None:
    pixels = flat(3)
    assert source.upright(pixels, None, 0) is pixels


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_the_faces_of_a_camera_that_hangs_otherwise_are_found_once_it_is_turned(
    tmp_path: Path, clip: list[Pixels], detector: Detector, rotate: int
) -> None:
    path = write_turned(tmp_path / "clip.avi", clip[::10], rotate)

    def found(by: int) -> int:
        with closing(FileSource(path, None, None, by, loop=False, paced=False)) as source:
            return sum(len(detector(take(source)[0])) for _ in clip[::10])

    upright = sum(len(detector(pixels)) for pixels in clip[::10])
    assert upright >= len(clip[::10])
    assert found(rotate) == upright
    missed = upright - found(0)
    report(
        f"a camera that hangs turned by {rotate} degrees",
        f"of {upright} faces {missed} are missed, with rotate none",
        0,
    )
    assert missed > upright / 2
