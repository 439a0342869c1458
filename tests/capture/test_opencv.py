"""Real clips and pictures, and a V4L2 device where there is one."""

import itertools
import os
import struct
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan.capture import DEMO_CLIP, devices, open_source, opencv
from edgesan.capture.opencv import FileSource, read_picture
from edgesan.capture.source import to_bgr
from edgesan.errors import CameraError, EndOfStream
from tests.capture.support import PATIENCE_S, flat, index_of, play, take, write_clip


def test_the_demo_is_the_bundled_clip_lent_for_one_block() -> None:
    with closing(open_source("demo", None, None)) as source:
        assert (source.name, source.size) == ("demo", (480, 270))
        with source.frame(PATIENCE_S) as raw:
            assert raw.pixels.dtype == np.uint8
            assert raw.pixels.shape == (270, 480, 3)
            assert raw.captured_ns <= raw.received_ns <= time.monotonic_ns()
        with pytest.raises(RuntimeError, match="given back"):
            _ = raw.pixels


def test_a_clip_that_is_not_paced_gives_every_frame_in_order_and_then_ends(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 20, fps=10)
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        assert source.frame_count == 20
        seen = []
        for _ in range(20):
            with source.frame(PATIENCE_S) as raw:
                seen.append((index_of(raw.pixels), raw.number, round(source.position_s, 3)))
        assert seen == [(i, i + 1, i / 10) for i in range(20)]
        for _ in range(2):
            with pytest.raises(EndOfStream, match=r"clip\.mp4 is over"):
                source.frame(PATIENCE_S)


@pytest.mark.parametrize(("suffix", "code"), [("avi", "MJPG"), ("mkv", "mp4v"), ("mp4", "mp4v"), ("webm", "VP80")])
def test_positions_are_those_of_the_container(tmp_path: Path, suffix: str, code: str) -> None:
    clip = write_clip(tmp_path / f"clip.{suffix}", 12, code=code)
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        positions = [source.position_s for _ in range(12) if take(source)]
    assert positions == pytest.approx([i / 30 for i in range(12)], abs=0.002)


def test_a_stream_without_time_stamps_goes_by_its_frame_rate(tmp_path: Path) -> None:
    clip = tmp_path / "bare.mjpeg"
    clip.write_bytes(b"".join(cv2.imencode(".jpg", flat(i))[1].tobytes() for i in range(8)))
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source:
        assert source.frame_count is None
        positions = [source.position_s for _ in range(8) if take(source)]
    assert all(later > earlier for earlier, later in itertools.pairwise(positions))


def test_a_paced_clip_takes_as_long_as_it_lasts(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 10, fps=20)
    started_s = time.monotonic()
    with closing(open_source(str(clip), None, None)) as source, pytest.raises(EndOfStream):
        list(play(source))
    assert time.monotonic() - started_s >= 9 / 20


def test_a_slow_consumer_of_a_paced_clip_gets_the_newest_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 49, fps=50)
    with closing(open_source(str(clip), None, None)) as source:
        _, first = take(source)
        time.sleep(0.4)
        with source.frame(PATIENCE_S) as raw:
            assert raw.number - first >= 15
            assert index_of(raw.pixels) == raw.number - 1
            assert raw.received_ns - raw.captured_ns < 2e9


def test_a_long_stop_is_not_caught_up_with(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 50, fps=50)
    with closing(open_source(str(clip), None, None)) as source:
        _, first = take(source)
        time.sleep(opencv.MOST_LATE_S + 0.2)
        assert take(source)[1] == first + 1


def test_a_loop_goes_on_after_the_end_with_growing_positions(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 5, fps=100)
    with closing(FileSource(clip, None, None, loop=True, paced=False)) as source:
        seen = [(index_of(take(source)[0]), source.position_s) for _ in range(12)]
    assert [index for index, _ in seen] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [position for _, position in seen] == pytest.approx([i / 100 for i in range(12)], abs=0.002)


def test_a_loop_whose_file_disappears_is_an_error(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 3)
    with closing(FileSource(clip, None, None, loop=True, paced=False)) as source:
        clip.unlink()
        with pytest.raises(CameraError, match=r"clip\.mp4 is not a clip that can be read"):
            list(itertools.islice(play(source), 4))


def test_fps_drops_frames_of_a_clip(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 12, fps=30)
    with closing(FileSource(clip, None, 10, loop=False, paced=False)) as source:
        assert list(itertools.islice(play(source), 4)) == [0, 3, 6, 9]
        assert source.frame_count is None


@pytest.mark.parametrize(
    ("asked", "got"),
    [((240, 240), (240, 135)), ((160, 45), (80, 45)), ((4000, 4000), (480, 270)), ((1, 1), (1, 1))],
)
def test_a_picture_is_scaled_down_to_within_the_size_and_never_up(asked: tuple[int, int], got: tuple[int, int]) -> None:
    with closing(FileSource(DEMO_CLIP, asked, None, loop=False, paced=False)) as source:
        assert source.size == got
        assert take(source)[0].shape == (got[1], got[0], 3)


def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "50%02d.mp4", 3)
    with closing(open_source(str(clip), None, None)) as source:
        assert next(play(source)) == 0
    picture = tmp_path / "at%d.png"
    cv2.imwrite(str(picture), flat(7))
    assert index_of(read_picture(picture)) == 7


def test_a_clip_that_is_cut_short_plays_to_the_cut(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 50)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    seen: list[int] = []
    with closing(FileSource(clip, None, None, loop=False, paced=False)) as source, pytest.raises(EndOfStream):
        seen.extend(play(source))
    assert seen == list(range(len(seen)))
    assert 5 < len(seen) < 50


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of each way to be no clip."""
    kinds = ("text", "empty", "random", "cut", "playlist", "folder", "pipe", "missing")
    made = {kind: folder / f"{kind}.mp4" for kind in kinds}
    made["text"].write_text("hello world\n" * 100)
    made["empty"].touch()
    made["random"].write_bytes(np.random.default_rng(1).bytes(5000))
    made["cut"].write_bytes(DEMO_CLIP.read_bytes()[:60_000])  # its index was at the end
    made["playlist"].write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/a\n#EXT-X-ENDLIST\n")
    made["folder"].mkdir()
    os.mkfifo(made["pipe"])
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "not a clip that can be read"),
        ("empty", r"empty \(0 bytes\)"),
        ("random", "not a clip that can be read"),
        ("cut", "not a clip that can be read"),
        ("playlist", "not a clip that can be read"),
        ("folder", "is a folder"),
        ("pipe", "is a special file"),
        ("missing", "No such file"),
    ],
)
def test_what_is_no_clip_is_refused_in_our_words_only(
    tmp_path: Path, kind: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bad_files(tmp_path)[kind]
    with pytest.raises(CameraError, match=words):
        FileSource(path, None, None, loop=False, paced=False)
    with pytest.raises(CameraError):
        open_source(str(path), None, None)
    with pytest.raises(CameraError):
        read_picture(path)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((48, 64), 100, np.uint8),
        np.full((48, 64, 3), 100, np.uint8),
        np.full((48, 64, 4), 100, np.uint8),
        np.full((48, 64), 100 * 257, np.uint16),
        np.full((48, 64, 3), 100 * 257, np.uint16),
        np.full((48, 64, 4), 100 * 257, np.uint16),
        np.full((1, 1, 3), 100, np.uint8),
        np.full((5, 3, 3), 100, np.uint8),
        np.full((2160, 3840, 3), 100, np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_every_kind_of_picture_becomes_bgr_of_8_bits(tmp_path: Path, pixels: NDArray[Any]) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    for bgr in (read_picture(path), to_bgr(pixels)):
        assert bgr.dtype == np.uint8
        assert bgr.shape == (*pixels.shape[:2], 3)
        assert (bgr == 100).all()


def test_a_picture_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    encoded = cv2.imencode(".jpg", np.random.default_rng(2).integers(0, 255, (50, 50, 3), np.uint8))[1].tobytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(CameraError, match="not a picture that can be read"):
        read_picture(path)


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16000, 16000, 8, 0, 0, 0, 0))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    with pytest.raises(CameraError, match="damaged"):
        read_picture(path)


def test_a_picture_is_shown_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), flat(9, (200, 100)))
    with closing(open_source(str(path), (100, 100), 50)) as source:
        assert source.size == (100, 50)
        seen = [take(source) for _ in range(5)]
    assert [number for _, number in seen] == [1, 2, 3, 4, 5]
    assert {index_of(pixels) for pixels, _ in seen} == {9}


def test_a_real_v4l2_camera_gives_frames() -> None:
    usable = [device for device in devices.list_devices() if device.kind == "v4l2" and device.usable]
    if not usable:
        pytest.skip("this machine has no V4L2 camera")
    with closing(open_source(usable[0].spec, (640, 480), None)) as source:
        numbers = [take(source)[1] for _ in range(5)]
    assert numbers == sorted(set(numbers))
