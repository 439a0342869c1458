"""`edgesan sanitize`: a picture of one's own, and what stays of its surroundings."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edgesan import faces
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.files import FileSanitizer, head, plan
from edgesan.frames import Pixels
from tests.support import CLIP, run


def test_keep_leaves_the_surroundings_and_no_pixel_of_a_found_face(
    clip: list[Pixels], detector: faces.Detector, tmp_path: Path
) -> None:
    source, target = tmp_path / "raw.png", tmp_path / "kept.png"
    cv2.imwrite(str(source), clip[0])
    config = Config(background="keep", state_dir=tmp_path)
    report = FileSanitizer(config, stats=True)(source, target)
    assert (report.found, report.covered) == (2, 2)

    kept, inside = cv2.imread(str(target)), np.zeros(clip[0].shape[:2], np.bool_)
    for face in detector(clip[0]):
        inside[head(face.box)] = True
    assert (kept[~inside] == clip[0][~inside]).mean() > 0.99, "the surroundings are raw"
    assert (kept[inside] == clip[0][inside]).all(1).mean() < 0.01, "the heads are not"


def test_plain_leaves_no_pixel_of_the_surroundings(clip: list[Pixels], tmp_path: Path) -> None:
    source, target = tmp_path / "raw.png", tmp_path / "plain.png"
    cv2.imwrite(str(source), clip[0])
    FileSanitizer(Config(state_dir=tmp_path))(source, target)
    assert (cv2.imread(str(target)) == clip[0]).all(2).mean() < 0.01


@pytest.mark.parametrize("box", [(np.nan, 0, 9, 9), (0, 0, np.inf, 9)])
def test_a_head_that_cannot_be_placed_may_be_anywhere(box: tuple[float, ...]) -> None:
    assert head(np.array(box, np.float32)) == (slice(None), slice(None))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_goes_into_a_folder_and_one_broken_file_costs_itself_only(clip: list[Pixels], tmp_path: Path) -> None:
    holiday, shared = tmp_path / "holiday", tmp_path / "shared"
    (holiday / "day 2" / ".thumbnails").mkdir(parents=True)
    cv2.imwrite(str(holiday / "a.png"), clip[0])
    cv2.imwrite(str(holiday / "b.bmp"), clip[0])
    cv2.imwrite(str(holiday / "day 2" / "c.JPG"), clip[0])
    cv2.imwrite(str(holiday / "day 2" / ".thumbnails" / "c.jpg"), clip[0])
    (holiday / "broken.jpg").write_text("no picture")
    (holiday / "notes.txt").write_text("no picture either")
    done = run("sanitize", str(holiday), str(shared), "--json")
    assert done.returncode == 3
    assert "broken.jpg is not a picture that can be read" in done.stderr
    assert names(shared) == ["a.png", "b.png", "day 2/c.JPG"]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["faces"] for report in reports] == [2, 2, 2]
    for name in names(shared):
        assert (cv2.imread(str(shared / name)) == clip[0]).all(2).mean() < 0.05

    (holiday / "broken.jpg").unlink()
    (shared / "a.png").write_bytes(b"precious")
    again = run("sanitize", str(holiday), str(shared))
    assert (again.returncode, again.stdout) == (0, "")
    assert "a.png exists, and stays as it is" in again.stderr
    assert (shared / "a.png").read_bytes() == b"precious"


def test_several_files_need_a_folder_and_names_of_their_own(clip: list[Pixels], tmp_path: Path) -> None:
    sources = [tmp_path / "a.png", tmp_path / "b.webp"]
    for source in sources:
        cv2.imwrite(str(source), clip[0])
    assert run("sanitize", *map(str, sources), str(tmp_path / "out")).returncode == 0
    assert names(tmp_path / "out") == ["a.png", "b.webp"]
    file = run("sanitize", *map(str, sources), str(sources[0]))
    assert (file.returncode, "name a folder" in file.stderr) == (2, True)
    with pytest.raises(ConfigError, match="would both become"):
        plan([tmp_path / "a.bmp", sources[0]], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no picture and no clip"):
        plan([tmp_path / "empty"], tmp_path / "out")
    assert plan([tmp_path], tmp_path / "out") == [(source, tmp_path / "out" / source.name) for source in sources]


def test_a_new_folder_ends_in_a_slash_and_has_no_suffix_of_a_file(clip: list[Pixels], tmp_path: Path) -> None:
    photo, new = tmp_path / "photo.jpg", tmp_path / "new"
    cv2.imwrite(str(photo), clip[0])
    assert run("sanitize", str(photo), f"{new}/").returncode == 0
    assert names(new) == ["photo.jpg"]
    wrong = run("sanitize", str(photo), str(CLIP), str(tmp_path / "x.mp4"))
    assert (wrong.returncode, "x.mp4 has the name of a file" in wrong.stderr) == (2, True)
    assert run("sanitize", str(photo), f"{photo}/").returncode == 2
    assert not (tmp_path / "x.mp4").exists()


def test_no_clip_becomes_a_picture(tmp_path: Path) -> None:
    done = run("sanitize", str(CLIP), str(tmp_path / "out.jpg"))
    assert (done.returncode, (tmp_path / "out.jpg").exists()) == (2, False)
    assert done.stderr.endswith("out.jpg a picture: name a file ending in .mkv or .mp4 or .mov\n")


def test_a_file_has_no_scene_around_it(clip: list[Pixels], tmp_path: Path) -> None:
    """What a configuration says for the camera is no error: a file gets a flat colour."""
    photo, config = tmp_path / "photo.png", tmp_path / "edgesan.toml"
    cv2.imwrite(str(photo), clip[0])
    config.write_text('background = "scene"\n')
    wrong = run("sanitize", "--background", "scene", str(photo), str(tmp_path / "a.png"))
    assert (wrong.returncode, "--background: invalid choice: 'scene'" in wrong.stderr) == (2, True)
    assert run("sanitize", "--config", str(config), str(photo), str(tmp_path / "b.png")).returncode == 0
    assert "silhouettes" not in run("sanitize", "--help").stdout


def talking(path: Path, clip: list[Pixels], codec: str = "aac") -> Path:
    """A clip of a second, with a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = clip[0].shape[1], clip[0].shape[0], "yuv420p"
        sound = container.add_stream(codec, rate=16000)
        for pixels in clip[:10]:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(video.encode(None))
        tone = (8000 * np.sin(np.arange(16000) * 0.2)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def loudness(path: Path) -> tuple[float, float]:
    """The mean amplitude of a clip's sound, and its length in seconds; zero if it has none."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return 0, 0
        frames = [frame.to_ndarray().astype(np.float64) for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    samples = np.concatenate([frame.ravel() for frame in frames])
    return float(np.abs(samples).mean()), len(samples) / rate


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_the_sound_is_left_out_and_said_so_and_kept_only_when_asked(
    clip: list[Pixels], tmp_path: Path, suffix: str
) -> None:
    source, silent, loud = talking(tmp_path / "talk.mov", clip), tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    done = run("sanitize", str(source), str(silent))
    assert done.returncode == 0, done.stderr
    assert f"{source}: its sound is left out; --audio keeps it" in done.stderr
    assert loudness(silent) == (0, 0)
    done = run("sanitize", str(source), str(loud), "--audio")
    assert done.returncode == 0, done.stderr
    assert "WARNING: the sound is RAW" in done.stderr
    assert loudness(loud) == pytest.approx(loudness(source), rel=0.05)
    assert loudness(loud)[0] > 0
    with av.open(str(loud)) as container:
        assert len(list(container.decode(video=0))) == 10


def test_a_clip_that_cannot_hold_the_sound_is_refused_with_one_that_can(clip: list[Pixels], tmp_path: Path) -> None:
    source = talking(tmp_path / "talk.mov", clip, "pcm_mulaw")
    done = run("sanitize", str(source), str(tmp_path / "out.mp4"), "--audio")
    assert (done.returncode, "cannot hold the sound (pcm_mulaw): name an .mkv or .mov" in done.stderr) == (5, True), (
        done.stderr
    )
    assert not (tmp_path / "out.mp4").exists()
    assert run("sanitize", str(source), str(tmp_path / "out.mov"), "--audio").returncode == 0


def test_sound_whose_header_may_hold_a_picture_is_not_copied(clip: list[Pixels], tmp_path: Path) -> None:
    """Vorbis carries its comments, and a cover among them, in the header that would be copied."""
    source = tmp_path / "talk.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = clip[0].shape[1], clip[0].shape[0], "yuv420p"
        sound = container.add_stream("vorbis", rate=44100, layout="stereo", options={"strict": "experimental"})
        container.mux(video.encode(av.VideoFrame.from_ndarray(clip[0], format="bgr24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    done = run("sanitize", str(source), str(tmp_path / "out.mkv"), "--audio")
    assert (done.returncode, "(vorbis) is of a kind whose header may hold a picture" in done.stderr) == (5, True), done
    assert not (tmp_path / "out.mkv").exists()
    assert run("sanitize", str(source), str(tmp_path / "out.mkv")).returncode == 0


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(suffix: str, small_disk: Path) -> None:
    target = small_disk / f"clip{suffix}"
    done = run("sanitize", str(CLIP), str(target))
    assert done.returncode == 5
    assert "the disk is full; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(small_disk.iterdir()) == []
