"""The fault table: every stage fails in every way that could be made; what left is searched for what the camera saw.

The camera is the bundled clip under a pattern (the canary). Each fault is put into a real run, in its own process,
after some frames that went well. Then every frame that left is searched for the pattern, at several scales, and every
byte that was written or printed for rows of raw pixels. `make wall` prints the table.
"""

import http.client
import os
import signal
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesan.frames import Pixels
from tests.faults.cases import FAULTS, HTTP, JPEG, REACHED, Fault
from tests.support import CLIP, COMMAND, ROOT, free_port, report

CELL, STRENGTH = 4, 14  # of the pattern: pixels of a square, levels up or down
FOUND = 0.45  # correlation with the pattern, in a tile, from which it counts as found
TILE = 60
FRAMES = 12
FPS = 25


def pattern(height: int, width: int) -> NDArray[np.float32]:
    signs = np.random.default_rng(99).choice([-1.0, 1.0], (-(-height // CELL), -(-width // CELL)))
    return signs.repeat(CELL, 0).repeat(CELL, 1)[:height, :width].astype(np.float32)


@dataclass(frozen=True)
class Canary:
    """The clip that the camera shows, and its frames as the program decodes them."""

    path: Path
    frames: list[Pixels]

    def found(self, picture: Pixels) -> float:
        """The strongest correlation of any tile of a picture (of any size) with the pattern."""
        height, width = self.frames[0].shape[:2]
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
        grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
        grey = np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 6), np.float32)
        mark, best = pattern(height, width).astype(np.float32), 0.0
        for blur in (0.0, 2.0):  # as sharp as it was, and as a small or hard pressed picture leaves it
            seen = mark if not blur else np.asarray(cv2.GaussianBlur(mark, (0, 0), blur))
            mean_a, mean_b = tiles(grey), tiles(seen)
            var_a, var_b = tiles(grey * grey) - mean_a**2, tiles(seen * seen) - mean_b**2
            both = tiles(grey * seen) - mean_a * mean_b
            textured = var_a > 0.25
            scale = np.sqrt(var_a[textured] * var_b[textured])
            best = max(best, float((both[textured] / scale).max(initial=0.0)))
        return best

    def rows(self) -> list[bytes]:
        """Pieces of raw memory, BGR and RGB."""
        pieces = []
        for frame in self.frames:
            for y in range(40, frame.shape[0], 60):
                row = frame[y, 100:116]
                pieces += [row.tobytes(), row[:, ::-1].tobytes()]
        return pieces


def tiles(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean of each tile; they overlap by half."""
    means = cv2.boxFilter(values.astype(np.float64), -1, (TILE, TILE), anchor=(0, 0))
    return means[: values.shape[0] - TILE + 1 : TILE // 2, : values.shape[1] - TILE + 1 : TILE // 2]


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Canary:
    path = tmp_path_factory.mktemp("canary") / "canary.mkv"
    capture, writer = cv2.VideoCapture(str(CLIP)), None
    for _ in range(3 * FRAMES):
        done, pixels = capture.read()
        assert done
        marked = pixels + STRENGTH * pattern(*pixels.shape[:2])[..., None]
        if writer is None:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), FPS, pixels.shape[1::-1])
        writer.write(np.clip(marked, 0, 255).astype(np.uint8))
    assert writer is not None
    writer.release()
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        done, pixels = capture.read()
        if not done:
            return Canary(path, frames)
        frames.append(pixels)


def test_the_search_finds_the_pattern_where_it_is(canary: Canary) -> None:
    """It must be able to find something, or the table below proves nothing."""
    raw = canary.frames[3]
    height, width = raw.shape[:2]
    assert canary.found(raw) > 2 * FOUND
    for quality in (90, 50):
        packet = cv2.imencode(".jpg", raw, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        assert canary.found(cv2.imdecode(packet, cv2.IMREAD_COLOR)) > FOUND
    assert canary.found(cv2.resize(raw, (width // 2, height // 2), interpolation=cv2.INTER_AREA)) > FOUND
    part = np.zeros_like(raw)
    part[90:170, 150:230] = raw[90:170, 150:230]
    assert canary.found(part) > FOUND, "one face's worth of it is enough"
    assert canary.found(np.zeros_like(raw)) == 0


def launch(canary: Canary, folder: Path, fault: str, out: str = "") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)])
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_STATE_HOME"), str(folder))
    command = [*COMMAND, "run", f"--camera={canary.path}", f"--out={out or folder / 'out.mkv'}", "--refresh=0.01"]
    return subprocess.Popen(
        [*command, "--frames=30", "--duration=8"],
        cwd=folder,
        env=os.environ | places | {"PYTHONPATH": path, "EDGESAN_FAULT": fault, "EDGESAN_CLIP": str(canary.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def view(process: subprocess.Popen[str], port: int, path: Path) -> None:
    """A viewer who keeps every byte of the stream, and comes back when it was cut off."""
    with path.open("ab") as kept:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/stream.mjpg", timeout=5) as stream:
                    while content := stream.read1(65536):
                        kept.write(content)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)


def left(folder: Path) -> list[Pixels]:
    """All pictures in all clips that were written, whole or torn, and all that the viewer got."""
    pictures: list[Pixels] = []
    for path in folder.glob("seen"):
        packets = path.read_bytes().split(b"\xff\xd8\xff")[1:]
        seen = [cv2.imdecode(np.frombuffer(b"\xff\xd8\xff" + p, np.uint8), cv2.IMREAD_COLOR) for p in packets]
        pictures += [picture for picture in seen if picture is not None]
    for path in folder.glob("out*.mkv"):
        try:
            with av.open(str(path)) as clip:
                pictures += [frame.to_ndarray(format="bgr24") for frame in clip.decode(video=0)]
        except (av.FFmpegError, IndexError):
            continue  # its writer was killed before the header, or in a packet
    return pictures


def leaks(canary: Canary, folder: Path, printed: str) -> tuple[float, int]:
    """The strongest trace of the pattern in a picture that left, and how many pieces of raw memory lie anywhere."""
    strongest = max((canary.found(picture) for picture in left(folder)), default=0.0)
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] + [printed.encode()]
    return strongest, sum(piece in content for content in written for piece in canary.rows())


def test_every_stage_has_one_fault_that_is_tried_in_every_run() -> None:
    assert [fault.stage for fault in FAULTS if fault.quick] == list(dict.fromkeys(fault.stage for fault in FAULTS))


ROWS = [pytest.param(f, id=f.title, marks=() if f.quick else pytest.mark.slow) for f in FAULTS]


@pytest.mark.parametrize("fault", ROWS)
def test_no_fault_lets_a_raw_pixel_out(canary: Canary, tmp_path: Path, fault: Fault) -> None:
    port = free_port()
    served = f"http://127.0.0.1:{port}" if fault.module in (HTTP, JPEG) else ""
    process = launch(canary, tmp_path, fault.title, served)
    if served:
        viewer = threading.Thread(target=view, args=(process, port, tmp_path / "seen"))
        viewer.start()
    printed, _ = process.communicate(timeout=60)
    if served:
        viewer.join()
    strongest, pieces = leaks(canary, tmp_path, printed)
    leaked = int(strongest >= FOUND) + pieces
    report(fault.title, f"exit code {process.returncode}, trace {strongest:.2f}", leaked)
    assert strongest < FOUND, printed
    assert pieces == 0
    assert REACHED in printed, "a fault that was not reached proves nothing"
    late = "may not be whole: the transmit process had to be killed" in printed  # on a busy machine, and said so
    assert process.returncode in (*fault.ends, *((5,) if late else ())), printed
    if fault.stage != "noise":
        began = left(tmp_path) or fault.name == "killed" or process.returncode == 5
        assert began, "a run that never began proves nothing"


def test_without_a_fault_frames_leave_and_nothing_raw_does(canary: Canary, tmp_path: Path) -> None:
    process = launch(canary, tmp_path, "")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert len(left(tmp_path)) > FRAMES
    strongest, pieces = leaks(canary, tmp_path, printed)
    assert strongest < FOUND
    assert pieces == 0


SIGNALS = (
    signal.SIGSEGV,
    pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(signal.SIGABRT, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("number", SIGNALS, ids=("SIGSEGV", "SIGKILL", "SIGABRT"))
def test_a_killed_process_leaves_nothing_raw_behind(canary: Canary, tmp_path: Path, number: signal.Signals) -> None:
    """No core dump, no file: SIGSEGV and SIGABRT would write one."""
    process = launch(canary, tmp_path, "")
    deadline = time.monotonic() + 30
    while not (tmp_path / "out.mkv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=10)
    assert process.returncode == -number  # the parent; both others end with it
    time.sleep(0.5)  # the other process ends its file
    strongest, pieces = leaks(canary, tmp_path, printed)
    assert strongest < FOUND
    assert pieces == 0
    assert not list(tmp_path.glob("core*"))
