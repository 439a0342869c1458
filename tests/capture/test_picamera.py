"""The Raspberry Pi's cameras, on picamera2's double."""

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgesan.capture import open_source, picamera
from edgesan.errors import CameraError, CameraLost
from tests.capture.support import PATIENCE_S, play, take


def test_a_pi_camera_gives_bgr_frames_and_all_its_buffers_back(pi: Any) -> None:
    with closing(open_source("picamera", (320, 240), 60)) as source:
        assert (source.name, source.size) == ("picamera:0", (320, 240))
        numbers = []
        for _ in range(12):  # three times its buffers
            with source.frame(PATIENCE_S) as raw:
                assert raw.pixels[0, 0, 0] == 200  # blue comes first
                assert 0 <= raw.received_ns - raw.captured_ns < 2e9
                numbers.append(raw.number)
        assert numbers == sorted(set(numbers))
        camera = pi.opened[-1]
        assert camera.camera_config["main"]["format"] == "RGB888"
        assert camera.camera_config["controls"]["FrameRate"] == 60
    assert not camera.is_open
    assert camera.held == 0


def test_a_pi_camera_keeps_its_own_size_and_rate_unless_asked(pi: Any) -> None:
    with closing(open_source("picamera:0", None, None)) as source:
        assert source.size == (1280, 720)
        assert "FrameRate" not in pi.opened[-1].camera_config["controls"]


def test_a_pi_camera_tells_the_size_that_it_gives(pi: Any) -> None:
    with closing(open_source("picamera", (321, 241), None)) as source:
        assert source.size == (320, 240)


def test_a_hanging_pi_camera_is_lost_within_the_timeout_and_closed(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 0.5)
    with closing(open_source("picamera", (64, 48), None)) as source:
        take(source)
        monkeypatch.setattr(pi, "hang", True)
        with pytest.raises(CameraLost, match=r"gave no picture for 0\.2 s"):
            list(play(source, timeout_s=0.2))
        with pytest.raises(CameraLost, match="gives no pictures any more"):
            take(source)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_without_time_stamps_counts_from_arrival(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "stamps", False)
    with closing(open_source("picamera", (64, 48), None)) as source, source.frame(PATIENCE_S) as raw:
        assert 0 <= raw.received_ns - raw.captured_ns < 2e9


def test_a_pipeline_without_an_isp_gives_the_same_colours(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "gives", "NV12")
    with closing(open_source("picamera", (64, 48), None)) as source, source.frame(PATIENCE_S) as raw:
        assert raw.pixels.shape == (48, 64, 3)
        assert (raw.pixels[..., 0] > 200).all()
        assert (raw.pixels[..., 1:] < 60).all()


def test_a_pi_camera_of_an_unknown_format_is_refused_and_closed(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "gives", "YUV420")
    with pytest.raises(CameraError, match="gives YUV420, expected RGB888 or NV12"):
        open_source("picamera", None, None)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_can_be_opened_after_an_opening_that_failed_in_whatever_way(
    pi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(pi, "configure", lambda *_: {}["a bug of the library"])
        with pytest.raises(KeyError):
            open_source("picamera", None, None)
    assert not pi.opened[-1].is_open
    with closing(open_source("picamera", (64, 48), None)) as source:
        take(source)


def test_a_pi_camera_is_not_opened_while_it_is_still_given_back(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 1.5)
    with closing(open_source("picamera", (64, 48), None)) as source:
        monkeypatch.setattr(pi, "hang", True)
        with pytest.raises(CameraLost):
            list(play(source, timeout_s=0.2))
        source.close()  # its thread still waits for a picture
        monkeypatch.setattr(pi, "hang", False)
        with closing(open_source("picamera", (64, 48), None)) as again:
            take(again)


def test_a_process_opens_one_pi_camera_at_a_time(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera, "HANG_S", 0.1)
    with (
        closing(open_source("picamera", (64, 48), None)),
        pytest.raises(CameraError, match="this process has a camera open"),
    ):
        open_source("picamera:1", (64, 48), None)


def test_a_boot_time_becomes_the_same_moment_of_the_monotonic_clock() -> None:
    before_ns = time.monotonic_ns()
    now_ns = picamera.boot_to_monotonic_ns(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert before_ns - 1e6 <= now_ns <= time.monotonic_ns() + 1e6


def test_a_busy_pi_camera_is_refused(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi, "busy", True)
    with pytest.raises(CameraError, match=r"did not complete.*another program holds it"):
        open_source("picamera", None, None)


def test_a_pi_camera_that_finds_no_memory_is_refused_and_closed(pi: Any) -> None:
    with pytest.raises(CameraError, match=r"Cannot allocate memory.*contiguous memory is used up"):
        open_source("picamera", (7680, 4320), None)
    assert not pi.opened[-1].is_open


def test_a_pi_camera_that_is_not_there_is_refused_with_those_that_are(pi: Any) -> None:
    assert len(pi.cameras) == 2
    with pytest.raises(CameraError, match="no picamera:5; libcamera finds: imx708, UVC Camera"):
        open_source("picamera:5", None, None)


def test_without_picamera2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(CameraError, match=r"apt install python3-picamera2.*--system-site-packages"):
        open_source("picamera", None, None)


def test_a_picamera2_made_for_another_numpy_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picamera2.py").write_text('raise ValueError("numpy.dtype size changed")\n')
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CameraError, match=r"another NumPy .*numpy\.dtype size changed.*OS trixie or later"):
        open_source("picamera", None, None)


def test_the_double_has_the_trap_that_close_must_avoid(pi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = pi(0)
    camera.configure(camera.create_video_configuration(main={"format": "RGB888", "size": (64, 48)}))
    camera.start()
    monkeypatch.setattr(pi, "hang", True)
    with pytest.raises(TimeoutError):
        camera.capture_request(wait=0.01)
    with pytest.raises(AssertionError, match="for ever"):
        camera.stop()
