"""What the owner sets while edgesan runs: it holds at once, and after a restart; with real processes."""

import json
import signal
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgesan import message, standing
from edgesan.config import Config
from edgesan.control import NOT_RECORDED, RECORD_PRIVACY, RECORD_ZONES, RECORDED, TURNED, ControlChannel
from edgesan.errors import ConfigError
from edgesan.faces import Detector
from edgesan.frames import Pixels
from edgesan.model.load import Model
from edgesan.pipeline import Owner
from edgesan.request import Alpha, Privacy, Zones
from edgesan.sanitize import FrameSanitizer, Settings
from edgesan.standing import Standing
from edgesan.zones import Zone
from tests.support import Running, child
from tests.transmit.server import Viewer, decode, until

TRIANGLE = Zone(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))


def test_what_is_recorded_is_read_again_and_is_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "edgesan"
    assert standing.read(folder) == Standing()
    standing.record_zones(folder, (TRIANGLE,))
    standing.record_privacy(folder, on=True)
    assert standing.read(folder) == Standing((TRIANGLE,), privacy=True)
    standing.record_zones(folder, ())
    standing.record_privacy(folder, on=False)
    assert standing.read(folder) == Standing()
    assert sorted(path.name for path in folder.iterdir()) == ["privacy", "zones.json"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_cannot_be_understood_keeps_the_camera_off_and_opens_no_zone(tmp_path: Path) -> None:
    for text in (b"", b"of", b"\xff", b"on"):
        standing.privacy_file(tmp_path).write_bytes(text)
        assert standing.read(tmp_path).privacy, text
    for text in (b"", b"[", b"{}", b"[[[0, 0]]]", b"[" * 50_000, b"x" * 70_000):
        standing.zones_file(tmp_path).write_bytes(text)
        with pytest.raises(ConfigError, match=r"zones\.json"):
            standing.read(tmp_path)
    standing.zones_file(tmp_path).unlink()
    standing.privacy_file(tmp_path).unlink()
    standing.privacy_file(tmp_path).symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="it is a link"):
        standing.read(tmp_path)


def answered(asked: str | urllib.request.Request) -> bytes:
    """What the server answers; asked again while it says so, as it may on a busy machine."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        time.sleep(0.1)
    raise AssertionError(f"{asked} is refused")


def put(running: Running, what: str, body: dict[str, Any]) -> dict[str, Any]:
    wish = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/api/{what}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    said: dict[str, Any] = json.loads(answered(wish))
    return said


def picture(running: Running) -> Pixels:
    return decode(answered(f"http://127.0.0.1:{running.port}/snapshot.jpg"))


def readiness(running: Running) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/readyz", timeout=5) as answer:
            return str(answer.read().decode().strip())
    except urllib.error.HTTPError as error:
        return error.read().decode().strip()


def seconds_up(running: Running) -> float:
    seconds = running.status().get("uptime_s", 0.0)
    assert isinstance(seconds, float)
    return seconds


def next_one(running: Running, before: psutil.Process) -> psutil.Process:
    """The sanitize process after that one, once it has told its status."""
    until(lambda: child(running.process.pid, "sanitize").pid != before.pid, 20)
    until(lambda: 0.4 < seconds_up(running) < 5, 20)  # it tells this every half second
    return child(running.process.pid, "sanitize")


def opened(process: Any, name: str) -> bool:
    """Whether a process has a file of that name open."""
    return any(name in file.path for file in process.open_files())


def test_privacy_closes_the_camera_says_so_and_outlives_everything(tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = ("--camera", "demo", "--state-dir", str(state), "--name", "front door")
    running = Running(*options)
    running.until("faces", 2)
    status = running.status()
    assert (status["name"], status["privacy"]) == ("front door", False)
    assert [link["kind"] for link in status["links"]] == ["picture stream", "snapshot", "status", "metrics"]  # type: ignore[attr-defined]
    before = child(running.process.pid, "sanitize")
    assert opened(before, "demo.mp4")
    put(running, "alpha", {"alpha": 0.75})
    running.until("alpha", 0.75)
    viewer = Viewer(running.port)
    assert put(running, "privacy", {"on": True}) == {"asked": True, "recorded": True}
    running.until("privacy", True)
    assert readiness(running) == "privacy is on: the camera is off"
    sanitizer = next_one(running, before)
    assert not opened(sanitizer, "demo.mp4")
    status = running.status()
    assert (status["faces"], status["camera_up"], status["size"]) == (None, False, [0, 0])
    assert status["totals"]["captured"] == 0  # type: ignore[index]
    assert status["alpha"] == 0.75, "the dial stays where it was"
    while abs(int(decode(viewer.read())[2, 2, 0]) - 40) > 5:
        pass  # the canvas is lighter than a card
    viewer.close()
    assert running.end()[0] == 0
    assert standing.read(state).privacy

    running = Running(*options)
    resting = child(running.process.pid, "sanitize")
    resting.suspend()
    running.until("privacy", True)
    assert "camera" not in running.status(), "it has told nothing yet"
    resting.resume()
    running.until("size", [0, 0])
    assert readiness(running) == "privacy is on: the camera is off", "a card is there before any frame"
    put(running, "privacy", {"on": False})
    running.until("ready", True)
    assert running.status()["privacy"] is False
    assert not standing.read(state).privacy
    code, said, _ = running.end()
    assert code == 0
    assert "privacy is on: the camera stays off" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_switch_that_cannot_be_recorded_closes_the_camera_and_does_not_open_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    running = Running("--camera", "demo", "--allow-rollback", "--state-dir", str(state / "below"))
    running.until("ready", True)
    state.write_text("a file, where the folder should be")
    before = child(running.process.pid, "sanitize")
    assert put(running, "privacy", {"on": True}) == {"asked": True, "recorded": False}
    running.until("privacy", True)
    resting = next_one(running, before)
    assert put(running, "privacy", {"on": True}) == {"asked": True, "recorded": False}, "it is tried again"
    assert put(running, "privacy", {"on": False}) == {"asked": False, "recorded": False}
    rested_s = seconds_up(running)
    until(lambda: seconds_up(running) > rested_s + 1)
    assert running.status()["privacy"] is True
    assert child(running.process.pid, "sanitize").pid == resting.pid
    state.unlink()
    assert put(running, "privacy", {"on": True}) == {"asked": True, "recorded": True}
    assert standing.read(state / "below").privacy
    code, said, _ = running.end(signal.SIGTERM)
    assert code == 0
    assert "the camera is closed, but it is opened at the next start: cannot record it" in said
    assert "the camera stays closed: cannot record it" in said


@pytest.mark.slow
def test_zones_that_are_drawn_hold_at_once_for_pixels_and_codes_and_after_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = ("--camera", "demo", "--state-dir", str(state), "--zone", "0,0,0.1,0.1")
    running = Running(*options)
    running.until("ready", True)
    running.until("faces", 2)
    left = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
    assert len(put(running, "zones", {"zones": [left]})["zones"]) == 1
    running.until("faces", 1)
    shot = picture(running)
    assert shot[:, : shot.shape[1] // 2 - 8].max() < 20
    assert shot[:, shot.shape[1] // 2 + 8 :].mean() > 40
    assert running.status()["zones"] == 2
    assert running.end()[0] == 0
    assert len(standing.read(state).zones) == 1

    running = Running(*options)
    running.until("ready", True)
    running.until("faces", 1)
    assert put(running, "zones", {"zones": []})["zones"] == []
    running.until("faces", 2)
    shot = picture(running)
    assert shot[:20, :40].max() < 20, "what the configuration closes stays closed"
    assert running.end()[0] == 0
    assert standing.read(state).zones == ()


def test_what_is_asked_for_is_done_until_privacy_is_switched(sanitizer_model: Model, detector: Detector) -> None:
    parent, control = ControlChannel.pair()
    config = Config(zone=("0,0,0.5,0.5",), role="sanitize")
    sanitizer = FrameSanitizer(sanitizer_model.encoder, detector, Settings())
    owner = Owner(config, sanitizer, control, Standing((TRIANGLE,), alpha=0.25))
    assert (sanitizer.settings.zones, sanitizer.alpha) == ((*config.zones, TRIANGLE), message.grid_alpha(0.25))
    for kind in (NOT_RECORDED, RECORDED):
        parent.send(kind)
    wishes = iter([Zones(()), Alpha(0.5), Privacy(on=False), Privacy(on=True, number=7), Alpha(1.0)])
    assert owner.switches(wishes)
    assert list(wishes) == [Alpha(1.0)], "the rest is the next process's"
    assert sanitizer.settings.zones == config.zones, "those of the configuration stay"
    assert owner.switched_to == (True, 7, True)
    asked = [parent.receive() for _ in range(4)]
    half = repr(message.grid_alpha(0.5)).encode()
    assert asked == [(RECORD_ZONES, b"\0"), (TURNED, half), (RECORD_PRIVACY, b"1"), None]
    closed = Owner(config, sanitizer, control, Standing(privacy=True))
    parent.send(NOT_RECORDED)
    assert not closed.switches([Privacy(on=False, number=8)]), "it is not opened before that is recorded"
    rests = closed.resting(b"")
    assert (rests.privacy, rests.switch, rests.recorded) == (True, 8, False)
    parent.close()
    control.close()


def test_recorded_zones_that_are_damaged_end_the_run_before_it_begins(tmp_path: Path) -> None:
    standing.zones_file(tmp_path).write_text("[[[0, 0]]]")
    running = Running("--camera", "demo", "--state-dir", str(tmp_path))
    _, said = running.process.communicate(timeout=20)
    assert running.process.returncode == 2
    assert "zones.json is damaged" in said
