"""`edgesan scene`: an empty room becomes a proposal, and a proposal that was accepted a scene; nothing else does."""

import json
import signal
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import owner, scene, standing
from edgesan.config import Config
from edgesan.errors import CameraError, ConfigError, EdgesanError, IsolationError
from edgesan.frames import Pixels
from edgesan.survey import Survey
from edgesan.zones import Zone
from tests.support import CLIP, Running, run


@pytest.fixture(scope="module")
def room() -> Pixels:
    random = np.random.default_rng(8)
    return cv2.resize(random.integers(60, 220, (9, 16, 3)).astype(np.uint8), (320, 180), interpolation=cv2.INTER_CUBIC)


def frames(room: Pixels, count: int = 12) -> list[Pixels]:
    """What a camera sees: noise, and a light that flickers a little."""
    random = np.random.default_rng(9)
    light = random.normal(1, 0.01, count)
    return [np.clip(room * k + random.normal(0, 4, room.shape), 0, 255).astype(np.uint8) for k in light]


def surveyed(pictures: list[Pixels], zones: tuple[Zone, ...] = ()) -> Pixels:
    survey = Survey(10, zones)
    for number, pixels in enumerate(pictures):
        survey.look(pixels, 10 * number / len(pictures))
    return survey.still()


def test_the_still_is_the_room_without_its_noise(room: Pixels) -> None:
    off = surveyed(frames(room)).astype(int) - room
    assert np.abs(off).mean() < 2
    assert np.abs(frames(room)[0].astype(int) - room).mean() > 3


def test_a_face_in_any_frame_is_refused(room: Pixels, clip: list[Pixels]) -> None:
    wide = cv2.resize(room, (480, 270))
    with pytest.raises(CameraError, match=r"a face is seen at \d+ %"):
        surveyed([*frames(wide)[:5], clip[0]])
    with pytest.raises(CameraError, match="a face is seen"):
        surveyed([clip[0]] * 6, (Zone.rectangle(0, 0, 0.5, 1),))


def test_what_moves_is_refused_but_not_in_a_zone_which_is_left_out(room: Pixels) -> None:
    seen = frames(room)
    for number, pixels in enumerate(seen[4:8]):
        pixels[60:84, 200 + 4 * number : 212 + 4 * number] += 25  # a hand
    with pytest.raises(CameraError, match=r"something moves at 6\d % .* 39 %"):
        surveyed(seen)
    still = surveyed(seen, (Zone.rectangle(0.6, 0.3, 0.15, 0.2),))
    assert len(np.unique(still[56:88, 194:238])) == 1, "of what is in a zone, the still shows nothing"


def test_a_dark_room_and_a_short_look_are_refused(room: Pixels) -> None:
    with pytest.raises(CameraError, match="too little light: the mean level is 1"):
        surveyed([room // 10] * 6)
    with pytest.raises(CameraError, match="only 3 frames came"):
        surveyed(frames(room, 3))


@pytest.mark.slow
def test_a_still_is_taken_looked_at_accepted_and_cleared(room: Pixels, tmp_path: Path) -> None:
    camera, state = tmp_path / "room.png", tmp_path / "owner" / "state"
    cv2.imwrite(str(camera), room)
    options = ("--camera", str(camera), "--state-dir", str(state))
    early = run("scene", "accept", *options)
    assert (early.returncode, "take one first" in early.stderr) == (2, True)
    told = run("scene", "take", "--seconds", "2", *options)
    assert told.returncode == 0, told.stderr
    proposal = state / "scene-proposed.png"
    assert str(proposal) in told.stdout
    assert "edgesan scene accept" in told.stdout
    assert stat.S_IMODE(proposal.stat().st_mode) == 0o600
    assert (scene.load(proposal).pixels == room).all(), "a picture has no noise"
    config = Config(camera=str(camera), state_dir=state)
    assert scene.of_run(config) is None
    number = scene.load(proposal).id
    assert owner.accept(config) == state / "scene.png"
    assert not proposal.exists()
    facts = json.loads(run("scene", "show", "--json", *options).stdout)
    assert facts["in_force"]["id"] == f"{number:08x}"
    assert facts["in_force"]["size"] == [320, 180]
    assert facts["proposed"] is None
    assert owner.clear(config) == [state / "scene.png"]
    assert owner.clear(config) == []
    assert "a flat colour" in owner.text(owner.facts(config))


def test_people_before_the_camera_leave_no_proposal(tmp_path: Path) -> None:
    refused = run("scene", "take", "--seconds", "1", "--camera", str(CLIP), "--state-dir", str(tmp_path))
    assert refused.returncode == 3
    assert "a face is seen" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    assert run("scene", "take", "--camera", "demo").returncode == 2


def test_the_owners_zones_and_switch_hold_here_too(tmp_path: Path) -> None:
    standing.record_privacy(tmp_path, on=True)
    with pytest.raises(ConfigError, match="privacy is on"):
        owner.take(Config(camera=str(CLIP), state_dir=tmp_path), 1)
    standing.record_privacy(tmp_path, on=False)
    standing.record_zones(tmp_path, (Zone.rectangle(0, 0, 1, 1),))
    said = run("scene", "take", "--seconds", "1", "--camera", str(CLIP), "--state-dir", str(tmp_path)).stderr
    assert "too little light" in said, "nothing is left to look at"


def test_a_proposal_with_a_face_is_not_accepted(tmp_path: Path, clip: list[Pixels]) -> None:
    (tmp_path / "scene-proposed.png").write_bytes(cv2.imencode(".png", clip[0])[1].tobytes())
    with pytest.raises(CameraError, match="a face is seen in the still"):
        owner.accept(Config(state_dir=tmp_path))
    assert not (tmp_path / "scene.png").exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        owner.take(Config(state_dir=tmp_path, scene=tmp_path / "file" / "scene.png"), 1)


def test_a_run_takes_up_a_still_that_was_accepted_when_it_is_told_to(room: Pixels, tmp_path: Path) -> None:
    camera, state = tmp_path / "room.png", tmp_path / "state"
    cv2.imwrite(str(camera), room)
    config = Config(camera=str(camera), state_dir=state)
    state.mkdir()
    running = Running("--camera", str(camera), "--state-dir", str(state))
    try:
        running.until("scene", {"in_force": False, "id": "", "differs": False})
        (state / "scene-proposed.png").write_bytes(cv2.imencode(".png", room)[1].tobytes())
        owner.accept(config)
        number = scene.load(state / "scene.png").id
        running.process.send_signal(signal.SIGHUP)
        running.until("scene", {"in_force": True, "id": f"{number:08x}", "differs": False})
        running.until("camera_up", True)
        assert running.status()["totals"]["sanitized"] > 0  # type: ignore[index]
    finally:
        assert running.end()[0] == 0


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", CameraError, "without an answer"),
        (b"x\x89PNG", CameraError, "without an answer"),
        (b"Cit moves", CameraError, "^it moves$"),
        (b"Ono such size", ConfigError, "^no such size$"),
        (b"Ia network", IsolationError, "^a network$"),
        (b"C" + b"\xff" * 10**6, CameraError, "^\ufffd{1999}$"),
    ],
)
def test_an_answer_of_the_child_is_a_still_or_one_of_three_errors(
    answer: bytes, kind: type[EdgesanError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        owner.still_of(answer)
    assert owner.still_of(b"D" + answer) == answer
