"""The file sink: clips keep the times of their frames."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import av
import pytest

from edgesan.errors import SinkError
from edgesan.render import slate
from edgesan.transmit.file import ClipWriter, FileSink
from tests.transmit.server import Make


def times(path: Path) -> list[float]:
    """When each picture of a clip is shown, in seconds."""
    with av.open(str(path)) as container:
        return [picture.time for picture in container.decode(video=0) if picture.time is not None]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "2026-11-23T10:30:00.mkv"])
def test_a_clip_keeps_the_times_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitized_frame: Make, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with Path(name).open("xb") as file:
        writer = ClipWriter(file, Path(name))
        write_clip(writer, sanitized_frame)
    assert times(tmp_path / name) == pytest.approx([0, 0.033, 0.1, 0.101, 0.102, 2.5])


def write_clip(writer: ClipWriter, sanitized_frame: Make) -> None:
    for number, seconds in enumerate((0, 0.033, 0.1, 0.1, 0.05, 2.5)):  # it stood still, went back, and paused
        writer.write(sanitized_frame(number), seconds)
    writer.close()
    writer.close()


def test_a_clip_begins_with_the_first_live_frame_and_shows_the_cards_after_it(
    tmp_path: Path, sanitized_frame: Make
) -> None:
    async def record(file: BinaryIO) -> None:
        sink = FileSink(file, tmp_path / "clip.mkv")
        await sink.start()
        await sink.send(slate("the camera is off", (640, 360), 1, 10**9))
        for second in (2, 3):
            await sink.send(sanitized_frame(second, captured_ns=second * 10**9))
        await sink.send(slate("the camera is off", (64, 48), 2, 4 * 10**9))
        await sink.close()

    asyncio.run(record((tmp_path / "clip.mkv").open("xb")))
    assert times(tmp_path / "clip.mkv") == pytest.approx([0, 1, 2])


def test_a_clip_without_a_frame_stays_empty(tmp_path: Path) -> None:
    with (tmp_path / "clip.mp4").open("xb") as file:
        ClipWriter(file, tmp_path / "clip.mp4").close()
    assert (tmp_path / "clip.mp4").stat().st_size == 0


def test_a_clip_refuses_another_size_and_a_single_column(tmp_path: Path, sanitized_frame: Make) -> None:
    path = tmp_path / "clip.mkv"
    with path.open("xb") as file, closing(ClipWriter(file, path)) as writer:
        with pytest.raises(SinkError, match="at least 2x2"):
            writer.write(sanitized_frame(size=(1, 40)), 0)
        writer.write(sanitized_frame(), 0)
        with pytest.raises(SinkError, match="start a new file"):
            writer.write(sanitized_frame(size=(32, 24)), 1)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_an_encoder_that_takes_no_more_ends_a_clip_that_plays(tmp_path: Path, sanitized_frame: Make, name: str) -> None:
    path = tmp_path / name
    with path.open("xb") as file:
        writer = ClipWriter(file, path)
        for number in range(3):
            writer.write(sanitized_frame(number), number)
        writer._mux(None)
        with pytest.raises(SinkError, match=rf"cannot encode a picture of 64x48 for .*{name} \(libx264: "):
            writer.write(sanitized_frame(3), 3)
        with pytest.raises(SinkError, match="cannot encode"):
            writer.close()
    assert times(path) == pytest.approx([0, 1, 2])


def test_an_encoder_that_does_not_open_is_not_called_a_folder_without_rights(
    tmp_path: Path, sanitized_frame: Make
) -> None:
    path = tmp_path / "clip.mkv"
    with path.open("xb") as file, pytest.raises(SinkError, match=r"cannot encode a picture of 16386x16 .*smaller"):
        ClipWriter(file, path).write(sanitized_frame(size=(16386, 16)), 0)  # libx264 takes 16384 pixels at most


def test_a_missing_codec_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesan.transmit.file.CODEC", "libx999")
    path = tmp_path / "clip.mkv"
    with path.open("xb") as file, pytest.raises(SinkError, match=r"has no libx999 here .*: .*libx264"):
        ClipWriter(file, path)
    assert path.stat().st_size == 0
