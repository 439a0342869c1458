"""Clips in a folder: they play, also after a crash; they stay within their limit; the index follows them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.frames import SanitizedFrame, Stamps
from edgesan.message import FaceCode, Latents, Place, Silhouette
from edgesan.outlets import record
from edgesan.outlets.channel import Codes, Video
from edgesan.outlets.record import Folder, Recorder
from edgesan.targets import parse
from edgesan.transmit.h264 import H264Encoder
from tests.faults.cases import REACHED, VIDEO
from tests.outlets.support import output, status, until
from tests.support import CLIP, ROOT, Running, child

STEP_NS = 100_000_000
VIDEO_TRACK = b"\x83\x81\x01"  # Matroska's TrackType
START_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z


@pytest.fixture(scope="module")
def film() -> list[Video]:
    """Two minutes at 10 fps, encoded once: what the transmit process would send."""
    encoder = H264Encoder()
    with av.open(str(CLIP)) as clip:
        pictures = [frame.to_ndarray(format="bgr24")[:90, :120].copy() for frame in clip.decode(video=0)]
    packets: list[Video] = []
    for number in range(1200):
        frame = SanitizedFrame._create(pictures[number % len(pictures)], Stamps(number, 10**12 + number * STEP_NS))
        packets += encoder(frame, key=False)
    return packets


@pytest.fixture
def clips(tmp_path: Path) -> Callable[..., tuple[Recorder, Folder]]:
    """Makes a recorder, and its folder, whose clock shows START_S."""

    def make(keep: int = 2**30, segment_s: float = 10, **options: Any) -> tuple[Recorder, Folder]:
        folder = Folder(tmp_path, keep)
        return Recorder(folder, round(segment_s * 1e9), wall=options.pop("wall", lambda: START_S), **options), folder

    return make


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.mkv"), key=lambda each: each.name.rpartition("-")[2])


def frames(path: Path) -> int:
    """How many pictures a real decoder shows."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def index(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]


def complete(folder: Folder) -> None:
    for _ in folder.complete():
        pass


def codes(video: Video, *, face: bool = False, cells: bytes = b"") -> Codes:
    faces = (FaceCode(3, Place(9, 9, 9, 0), b"code"),) if face else ()
    grid = Silhouette(8, 1, cells) if cells else Silhouette()
    return Codes(bytes(32), b"", Latents(1, video.captured_ns, 5, 120, 90, 0.0, 9, faces, 1, grid))


def test_clips_have_their_length_play_and_are_in_the_index(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    recorder, _ = clips()
    for packet in film[:350]:
        recorder.take(packet)
    recorder.close()
    made = files(tmp_path)
    assert [each.name for each in made[:2]] == ["20270115T080000Z-000001.mkv", "20270115T080000Z-000002.mkv"]
    assert [frames(each) for each in made] == [100, 100, 100, 50]
    said = index(tmp_path)
    assert [entry["file"] for entry in said] == [each.name for each in made]
    assert [entry["frames"] for entry in said] == [100, 100, 100, 50]
    assert [entry["bytes"] for entry in said] == [each.stat().st_size for each in made]
    assert said[0]["start"] == "2027-01-15T08:00:00Z"
    assert said[0]["seconds"] == pytest.approx(9.9)


def test_a_folder_never_holds_more_than_it_may_and_loses_the_oldest(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    keep = 150_000
    recorder, _ = clips(keep=keep, segment_s=4)
    for packet in film:
        recorder.take(packet)
        assert sum(each.stat().st_size for each in files(tmp_path)) <= keep
    recorder.close()
    assert sum(len(each.packet) for each in film) > 2 * keep, "it was really too much"
    made = files(tmp_path)
    assert "-000001" not in made[0].name
    assert sum(each.stat().st_size for each in made) > keep / 2
    assert all(frames(each) for each in (made[0], made[-1]))


def test_a_clip_that_alone_is_too_large_is_cut(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    recorder, _ = clips(keep=100_000, segment_s=86400)
    for packet in film:
        recorder.take(packet)
        assert sum(each.stat().st_size for each in files(tmp_path)) <= 100_000
    recorder.close()
    assert len(files(tmp_path)) > 1


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.999])
def test_what_a_power_cut_leaves_plays(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path, cut: float
) -> None:
    recorder, _ = clips(segment_s=100)
    for packet in film[:600]:
        recorder.take(packet)
    (clip,) = files(tmp_path)
    content = clip.read_bytes()
    recorder.close()
    left = tmp_path / "left.mkv"
    left.write_bytes(content[: int(len(content) * cut)])
    assert frames(left) > 600 * cut * 0.5


def test_the_index_is_written_anew_at_the_start_and_numbers_go_on(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    recorder, _ = clips()
    for packet in film[:250]:
        recorder.take(packet)
    left = tmp_path / "left"  # by a recorder that was killed: its third clip is not finished, and not in the index
    left.mkdir()
    for path in (*files(tmp_path), tmp_path / "index.jsonl"):
        shutil.copy(path, left)
    recorder.close()
    with (left / "index.jsonl").open("a") as file:
        file.write('{"file": "2027')
    files(left)[0].unlink()
    (left / "notes.txt").write_text("not ours")
    folder = Folder(left, 2**30)
    recorder = Recorder(folder, 10**10)
    complete(folder)
    said = index(left)
    assert [entry["file"][-10:] for entry in said] == ["000002.mkv", "000003.mkv"]
    assert said[1]["frames"] > 30
    for packet in film[:50]:
        recorder.take(packet)
    recorder.close()
    assert files(left)[-1].name.endswith("-000004.mkv")
    assert (left / "notes.txt").exists()


def test_clips_that_the_index_lacks_are_read_a_little_at_a_time_while_video_is_recorded(
    clips: Callable[..., tuple[Recorder, Folder]],
    film: list[Video],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "PROBE_S", 0.0)  # a packet in each step
    recorder, _ = clips()
    for packet in film[:500]:
        recorder.take(packet)
    recorder.close()
    before = index(tmp_path)
    (tmp_path / "index.jsonl").unlink()
    recorder, folder = clips()
    assert index(tmp_path) == [], "it starts at once"
    steps = folder.complete()
    for packet in film[:150]:
        recorder.take(packet)
        next(steps)
    recorder.close()
    assert [entry["file"][-10:] for entry in index(tmp_path)] == ["000006.mkv", "000001.mkv", "000007.mkv"]

    _, folder = clips()  # started again: what was read is kept
    assert [entry["file"][-10:] for entry in index(tmp_path)] == ["000001.mkv", "000006.mkv", "000007.mkv"]
    steps = folder.complete()
    next(steps)  # in the second clip, the oldest but one
    folder.keep = sum(each.stat().st_size for each in files(tmp_path)[2:]) + record.OVERHEAD
    folder.make_room(0)
    for _ in steps:
        pass
    assert [entry["file"] for entry in index(tmp_path)] == [each.name for each in files(tmp_path)]
    assert index(tmp_path)[:3] == before[2:]


def test_a_clip_that_is_damaged_is_in_the_index_and_costs_nothing_else(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    recorder, _ = clips()
    for packet in film[:400]:
        recorder.take(packet)
    recorder.close()
    (tmp_path / "index.jsonl").unlink()
    empty, without_video, bad_tags, _ = files(tmp_path)
    empty.write_bytes(b"")
    content = without_video.read_bytes()
    assert content.count(VIDEO_TRACK) == 1
    without_video.write_bytes(content.replace(VIDEO_TRACK, b"\x83\x81\x02"))
    bad_tags.write_bytes(bad_tags.read_bytes().replace(b"Lavf", b"\xff\xff\xff\xff"))
    _, folder = clips()
    complete(folder)
    assert [entry["frames"] for entry in index(tmp_path)] == [0, 0, 0, 100]


def test_an_index_that_is_too_long_is_like_one_that_is_lost(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, _ = clips()
    for packet in film[:250]:
        recorder.take(packet)
    recorder.close()
    before = index(tmp_path)
    monkeypatch.setattr(record, "MOST_INDEX_BYTES", (tmp_path / "index.jsonl").stat().st_size - 1)
    complete(record.prepare(Config(), parse(f"dir:{tmp_path}")))
    assert [entry["frames"] for entry in index(tmp_path)] == [entry["frames"] for entry in before]


def test_a_clock_that_jumps_back_neither_hides_nor_removes_new_clips(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    now = [START_S]
    recorder, _ = clips(keep=150_000, segment_s=4, wall=lambda: now[0])
    for number, packet in enumerate(film):
        now[0] = START_S if number < 300 else 0.0
        recorder.take(packet)
    recorder.close()
    made = files(tmp_path)
    assert made[-1].name.startswith("19700101T000000Z")
    numbers = [int(each.stem.rpartition("-")[2]) for each in made]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    clip = Folder(tmp_path, 150_000).begin(film[0], 0)
    clip.close()
    assert clip.path.name.endswith(f"-{numbers[-1] + 1:06}.mkv")


def test_only_what_moves_is_recorded_with_some_seconds_around_it(
    clips: Callable[..., tuple[Recorder, Folder]], film: list[Video], tmp_path: Path
) -> None:
    recorder, _ = clips(segment_s=100, motion=True)
    for number, packet in enumerate(film):
        recorder.see(codes(packet, face=300 <= number < 320, cells=b"\x10" if 700 <= number < 710 else b"\0"))
        recorder.take(packet)
    recorder.close()
    first, second = (entry["frames"] for entry in index(tmp_path))
    assert 20 + 30 + 50 <= first <= 20 + 50 + 50 + 1, "3 to 5 s before, 5 s after"
    assert 10 + 30 + 50 <= second <= 10 + 50 + 50 + 1
    assert [frames(each) for each in files(tmp_path)] == [first, second]


def test_what_stands_still_costs_no_memory(clips: Callable[..., tuple[Recorder, Folder]], film: list[Video]) -> None:
    recorder, _ = clips(motion=True)
    for packet in film:
        assert recorder.take(packet) == 0
        assert len(recorder._before) <= 51


def test_a_folder_that_could_never_hold_so_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the whole disk of"):
        record.prepare(Config(), parse(f"dir:{tmp_path}?keep=1000000TB"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot record in"):
        record.prepare(Config(), parse(f"dir:{tmp_path}/file"))


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recorder_that_is_killed_goes_on_in_a_new_clip_and_all_play(
    edgesan: Callable[..., Running], tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    running = edgesan("--out", f"dir:{folder}?segment=60s")
    until(lambda: files(folder) and files(folder)[0].stat().st_size > 30_000)
    child(running.process.pid, "out-0").kill()
    until(lambda: len(files(folder)) == 2 and files(folder)[1].stat().st_size > 30_000)
    assert output(running)["starts"] == 2
    code, said, _ = running.end()
    assert code == 0
    assert "its process ended (-9); starting it again" in said
    assert all(frames(each) > 5 for each in files(folder))
    assert [entry["file"] for entry in index(folder)] == [each.name for each in files(folder)]


@pytest.mark.slow
def test_an_encoder_that_fails_in_a_run_costs_a_moment_of_the_recording_and_nothing_else(
    edgesan: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests" / "faults", ROOT))))
    monkeypatch.setenv("EDGESAN_FAULT", VIDEO.title)
    folder = tmp_path / "clips"
    running = edgesan("--out", f"dir:{folder}?segment=60s")
    until(lambda: status(running).get("encode_errors") == {"h264": 1})
    before, transmit = status(running), child(running.process.pid, "transmit")
    until(lambda: status(running)["encodes"]["h264"] > before["encodes"]["h264"] + 20)
    after = status(running)
    assert transmit.is_running()
    assert after["ready"]
    assert after["outputs"][0]["starts"] == 1
    assert after["encode_errors"] == {"h264": 1}
    code, text, _ = running.end()
    assert code == 0
    assert text.count("as H.264: ") == 1
    assert REACHED in text
    (path,) = files(folder)
    with av.open(str(path)) as clip:
        assert len(list(clip.decode(video=0))) > 20


def test_a_transmit_process_that_is_killed_costs_a_recording_a_moment(
    edgesan: Callable[..., Running], tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    running = edgesan("--out", f"dir:{folder}?segment=60s")
    until(lambda: files(folder) and files(folder)[0].stat().st_size > 30_000)
    child(running.process.pid, "transmit").kill()
    until(lambda: len(files(folder)) == 2 and files(folder)[1].stat().st_size > 30_000)
    until(lambda: output(running).get("connected"))
    code, said, _ = running.end()
    assert code == 0
    assert "Traceback" not in said
    assert all(frames(each) > 5 for each in files(folder))
    assert [entry["file"] for entry in index(folder)] == [each.name for each in files(folder)]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_said_once_and_recording_goes_on_when_there_is_room(
    edgesan: Callable[..., Running], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(2_800_000))
        running = edgesan("--out", f"dir:{disk}/clips?segment=3s&keep=3MB")
        until(lambda: output(running).get("connected"))
        filler.write_bytes(bytes(disk_free(disk) + 2_800_000 - 20_000))
        until(lambda: "the disk is full" in str(output(running).get("why")))
        before, sanitized = len(files(disk / "clips")), totals(running)
        time.sleep(6)
        assert len(files(disk / "clips")) <= before + 1, "no tiny clips"
        assert totals(running) > sanitized + 20, "the camera goes on"
        filler.unlink()
        until(lambda: output(running)["connected"] and len(files(disk / "clips")) > before + 1)
        code, said, _ = running.end()
        assert code == 0
        assert said.count("the disk is full") == 1
        assert said.count("takes the stream again") == 1
        shutil.copytree(disk / "clips", tmp_path / "copy")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert all(frames(each) > 0 for each in files(tmp_path / "copy"))


def disk_free(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def totals(running: Running) -> int:
    return int(status(running)["totals"]["sanitized"])
