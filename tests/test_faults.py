"""The fault table: every stage fails in every way that could be made, and what left is searched for what the camera saw.

The camera is the bundled clip under a pattern (the canary). Each fault is put into a real run, in its own process, after
some frames that went well. Then every frame that left is searched for the pattern, at several scales, and every byte
that was written or printed for rows of raw pixels. `make wall` prints the table.
"""

import http.client
import os
import signal
import subprocess
import sys
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
from tests.support import CLIP, ROOT, free_port, report

CELL, STRENGTH = 4, 14  # of the pattern: pixels of a square, levels up or down
FOUND = 0.45  # correlation with the pattern, in a tile, from which it counts as found
TILE = 60
FRAMES = 12


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
            told = var_a > 0.25
            best = max(best, float((both[told] / np.sqrt(var_a[told] * var_b[told])).max(initial=0.0)))
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
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 10, pixels.shape[1::-1])
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


@dataclass(frozen=True)
class Fault:
    stage: str
    fault: str
    module: str
    code: str
    ends: tuple[int, ...]  # exit codes that are right


GOES_ON = (0,)
SANITIZE, MODEL, RENDER, LINK = "edgesan.sanitize", "edgesan.model.load", "edgesan.render", "edgesan.transmit.link"
FILES, HTTP = "edgesan.transmit.file", "edgesan.transmit.http"
KILLED = "def wrong(*a, **k): os.kill(os.getpid(), 9)\n"
MEMORY = "def wrong(*a, **k): raise MemoryError\n"
RAISE = "def wrong(*a, **k): raise {0}\n"
FAULTS = [
    Fault("capture", "exception", "edgesan.capture.opencv", RAISE.format("OSError('the driver')") + "broken(m.FileSource, 'frame', wrong)", (1,)),
    Fault("capture", "lost", "edgesan.capture.opencv", "from edgesan.errors import CameraLost\n" + RAISE.format("CameraLost('it was unplugged')") + "broken(m.FileSource, 'frame', wrong)", GOES_ON),
    Fault("capture", "wrong shape", "edgesan.capture.opencv", "broken(m, 'lend', lambda o, p, *a: o(p[:100, :80].copy(), *a))", (5,)),
    Fault("capture", "stale", "edgesan.capture.opencv", "broken(m, 'lend', lambda o, p, n, c, r: o(p, n, c - 10**10, r))", GOES_ON),
    Fault("capture", "clock jump", "edgesan.capture.opencv", "broken(m, 'lend', lambda o, p, n, c, r: o(p, n, c + 10**12, r))", GOES_ON),
    Fault("capture", "clock set back", "edgesan.capture.opencv", "import time\nt = time.time\ntime.time = lambda: t() - 86400 * 365\nbroken(m, 'lend', lambda o, *a: (time.time(), o(*a))[1])", GOES_ON),
    Fault("capture", "hang", "edgesan.capture.opencv", "import time\ndef wrong(o, *a):\n    time.sleep(2.5)\n    return o(*a)\nbroken(m.FileSource, 'frame', wrong)", GOES_ON),
    Fault("capture", "out of memory", "edgesan.capture.opencv", MEMORY + "broken(m.FileSource, 'frame', wrong)", (1,)),
    Fault("transmit", "clock set back", FILES, "import time\nt = time.time\ntime.time = lambda: t() - 86400 * 365", GOES_ON),
    Fault("detect", "exception", "edgesan.faces", RAISE.format("RuntimeError('detector')") + "broken(m.Detector, '__call__', wrong)", (1,)),
    Fault("detect", "NaN", "edgesan.faces", "import numpy as np\ndef wrong(o, *a):\n    found = o(*a)\n    for f in found: f.landmarks[:] = np.nan\n    return found\nbroken(m.Detector, '__call__', wrong)", GOES_ON),
    Fault("detect", "nothing", "edgesan.faces", "broken(m.Detector, '__call__', lambda o, *a: [])", GOES_ON),
    Fault("detect", "out of memory", "edgesan.faces", RAISE.format("MemoryError()") + "broken(m.Detector, '__call__', wrong)", (1,)),
    Fault("track", "exception", "edgesan.faces", RAISE.format("RuntimeError('tracker')") + "broken(m.Tracker, 'update', wrong)", (1,)),
    Fault("track", "forgets all", "edgesan.faces", "def wrong(o, self, *a): self.tracks = []\nbroken(m.Tracker, 'update', wrong)", GOES_ON),
    Fault("align", "exception", "edgesan.faces", RAISE.format("RuntimeError('alignment')") + "broken(m, 'alignment', wrong, 14)", (1,)),
    Fault("align", "NaN", "edgesan.faces", "import numpy as np\nbroken(m, 'alignment', lambda o, *a: np.full((2, 3), np.nan), 14)", (0, 1)),
    Fault("align", "far away", "edgesan.faces", "import numpy as np\nbroken(m, 'alignment', lambda o, *a: np.array([[1.0, 0, 1e6], [0, 1.0, 1e6]]), 14)", GOES_ON),
    Fault("noise", "NaN", SANITIZE, "import numpy as np\nbroken(m.noise, 'draw', lambda o, d, e: np.full(d, np.nan, np.float32), 0)", (0, 1, 4)),
    Fault("noise", "wrong shape", SANITIZE, "import numpy as np\nbroken(m.noise, 'draw', lambda o, d, e: np.zeros(3, np.float32), 0)", (0, 1, 4)),
    Fault("noise", "no entropy", SANITIZE, RAISE.format("OSError('entropy')") + "broken(m.noise, 'draw', wrong, 0)", (1,)),
    Fault("encode", "exception", MODEL, "from edgesan.errors import ModelError\n" + RAISE.format("ModelError('it failed')") + "broken(m.Encoder, 'encode', wrong)", (4,)),
    Fault("encode", "raw pixels for a code", MODEL, "broken(m.Encoder, 'encode', lambda o, self, chips, *a: [chip.tobytes() for chip in chips])", GOES_ON),
    Fault("encode", "a piece of raw pixels for a code", MODEL, "broken(m.Encoder, 'encode', lambda o, self, chips, *a: [chip.tobytes()[:64] for chip in chips])", GOES_ON),
    Fault("encode", "a code too few", MODEL, "broken(m.Encoder, 'encode', lambda o, *a: o(*a)[1:])", (1,)),
    Fault("encode", "short codes", MODEL, "broken(m.Encoder, 'encode', lambda o, *a: [code[:9] for code in o(*a)])", GOES_ON),
    Fault("encode", "hang", MODEL, "import time\ndef wrong(o, *a):\n    time.sleep(2.5)\n    return o(*a)\nbroken(m.Encoder, 'encode', wrong)", GOES_ON),
    Fault("encode", "out of memory", MODEL, MEMORY + "broken(m.Encoder, 'encode', wrong)", (1,)),
    Fault("message", "exception", LINK, RAISE.format("OSError('pipe')") + "broken(m.Sender, 'send', wrong)", (1,)),
    Fault("message", "raw frames instead", LINK, "def wrong(o, self, latents):\n    import cv2\n    pixels = cv2.VideoCapture(os.environ['EDGESAN_CLIP']).read()[1]\n    for i in range(0, 60000, 4096): \n        self._write(pixels.tobytes()[i : i + 4096])\nbroken(m.Sender, 'send', wrong)", GOES_ON),
    Fault("message", "raw pixels behind the head", LINK, "def wrong(o, self, latents):\n    import cv2\n    pixels = cv2.VideoCapture(os.environ['EDGESAN_CLIP']).read()[1]\n    self._write(m.message.pack(latents) + pixels.tobytes()[:800])\nbroken(m.Sender, 'send', wrong)", GOES_ON),
    Fault("message", "garbled", LINK, "def wrong(o, self, content): o(self, bytes([content[0], content[1], 99]) + content[3:])\nbroken(m.Sender, '_write', wrong)", GOES_ON),
    Fault("message", "lost", LINK, "broken(m.Sender, '_write', lambda o, *a: None)", GOES_ON),
    Fault("parse", "exception", LINK, RAISE.format("RuntimeError('parser')") + "broken(m.message, 'parse', wrong, 40)", (0, 1, 5)),
    Fault("decode", "exception", MODEL, "from edgesan.errors import ModelError\n" + RAISE.format("ModelError('it failed')") + "broken(m.Decoder, 'decode', wrong)", (0, 4, 5)),
    Fault("decode", "NaN", MODEL, "import numpy as np\nbroken(m.Decoder, 'decode', lambda o, self, codes, alpha: np.full((len(codes), 112, 112, 3), np.nan, np.float32))", (0, 1, 5)),
    Fault("decode", "hang", MODEL, "import time\ndef wrong(o, *a):\n    time.sleep(1.5)\n    return o(*a)\nbroken(m.Decoder, 'decode', wrong)", GOES_ON),
    Fault("paint", "exception", RENDER, RAISE.format("RuntimeError('canvas')") + "broken(m, 'paint', wrong)", (0, 1, 5)),
    Fault("paint", "nothing", RENDER, "broken(m, 'paint', lambda o, *a: None)", GOES_ON),
    Fault("paint", "out of memory", RENDER, MEMORY + "broken(m, 'paint', wrong)", (0, 1, 5)),
    Fault("encode", "exception", FILES, RAISE.format("RuntimeError('encoder')") + "broken(m.ClipWriter, 'write', wrong)", (0, 1, 5)),
    Fault("encode", "killed", FILES, "def wrong(*a): os.kill(os.getpid(), 9)\nbroken(m.ClipWriter, 'write', wrong)", (0, 5)),
    Fault("encode", "exception", HTTP, "def wrong(*a): raise m.cv2.error('encoder')\nbroken(m.cv2, 'imencode', wrong)", GOES_ON),
    Fault("encode", "nothing", HTTP, "broken(m.cv2, 'imencode', lambda o, *a: (False, None))", GOES_ON),
    Fault("encode", "killed", HTTP, KILLED + "broken(m.cv2, 'imencode', wrong)", GOES_ON),
    Fault("encode", "hang", HTTP, "import time\ndef wrong(o, *a):\n    time.sleep(1)\n    return o(*a)\nbroken(m.cv2, 'imencode', wrong)", GOES_ON),
    Fault("sink", "exception", HTTP, "from edgesan.errors import SinkError\nasync def wrong(*a): raise SinkError('it broke')\nbroken(m.HttpSink, 'send', wrong)", (5,)),
    Fault("sink", "out of memory", HTTP, "async def wrong(*a): raise MemoryError\nbroken(m.HttpSink, 'send', wrong)", GOES_ON),
    Fault("sink", "hang", HTTP, "import asyncio\nasync def wrong(o, *a):\n    await asyncio.sleep(1)\n    return await o(*a)\nbroken(m.HttpSink, 'send', wrong)", GOES_ON),
    *(Fault(stage, "killed", module, KILLED + f"broken({what}, wrong)", (137,)) for stage, module, what in (
        ("capture", "edgesan.capture.opencv", "m.FileSource, 'frame'"), ("detect", "edgesan.faces", "m.Detector, '__call__'"),
        ("encode", MODEL, "m.Encoder, 'encode'"), ("message", LINK, "m.Sender, 'send'"),
    )),
    *(Fault(stage, "killed", module, KILLED + f"broken({what}, wrong)", (0, 5)) for stage, module, what in (
        ("decode", MODEL, "m.Decoder, 'decode'"), ("paint", RENDER, "m, 'paint'"),
    )),
    Fault("sink", "disk full", FILES, "import errno, av\n" + RAISE.format("av.FFmpegError(errno.ENOSPC, 'No space left on device')") + "def failing(o, self, *a): raise self._failure(av.FFmpegError(errno.ENOSPC, 'No space left on device'))\nbroken(m.ClipWriter, 'write', failing)", (5,)),
    Fault("sink", "hang", FILES, "import time\ndef wrong(o, *a):\n    time.sleep(1)\n    return o(*a)\nbroken(m.ClipWriter, 'write', wrong)", (0, 5)),
]  # fmt: skip


def launch(canary: Canary, folder: Path, fault: str, out: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "faults"), str(ROOT)]),
        "EDGESAN_FAULT": fault, "EDGESAN_CLIP": str(canary.path), "HOME": str(folder), "TMPDIR": str(folder), "XDG_STATE_HOME": str(folder),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "edgesan", "run", "--camera", str(canary.path), "--out", out or str(folder / "out.mkv"),
        "--frames", "30", "--duration", "8",
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def leaks(canary: Canary, folder: Path, said: str) -> tuple[float, int]:
    """The strongest trace of the pattern in a picture that left, and how many pieces of raw memory lie anywhere."""
    strongest = max((canary.found(picture) for picture in left(folder)), default=0.0)
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] + [said.encode()]
    return strongest, sum(piece in content for content in written for piece in canary.rows())


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.stage}: {f.fault}, {f.module}" for f in FAULTS])
def test_no_fault_lets_a_raw_pixel_out(canary: Canary, tmp_path: Path, fault: Fault) -> None:
    port = free_port()
    served = f"http://127.0.0.1:{port}" if fault.module == HTTP else ""
    process = launch(canary, tmp_path, f"{fault.module}\t{fault.code}", served)
    if served:
        viewer = threading.Thread(target=view, args=(process, port, tmp_path / "seen"))
        viewer.start()
    said, _ = process.communicate(timeout=60)
    if served:
        viewer.join()
    strongest, pieces = leaks(canary, tmp_path, said)
    leaked = int(strongest >= FOUND) + pieces
    where = fault.module.removeprefix("edgesan.")
    report(f"{fault.stage}: {fault.fault} ({where})", f"exit code {process.returncode}, trace {strongest:.2f}", leaked)
    assert strongest < FOUND, said
    assert pieces == 0
    late = "may not be whole: the transmit process had to be killed" in said  # on a busy machine, and told
    assert process.returncode in (*fault.ends, *((5,) if late else ())), said
    if fault.stage not in {"noise"}:
        assert left(tmp_path) or fault.fault == "killed" or process.returncode == 5, (
            "a run that never began proves nothing"
        )


def test_without_a_fault_frames_leave_and_nothing_raw_does(canary: Canary, tmp_path: Path) -> None:
    process = launch(canary, tmp_path, "")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert len(left(tmp_path)) > FRAMES
    strongest, pieces = leaks(canary, tmp_path, said)
    assert strongest < FOUND
    assert pieces == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda n: n.name)
def test_a_killed_process_leaves_nothing_raw_behind(canary: Canary, tmp_path: Path, number: signal.Signals) -> None:
    """No core dump, no file: SIGSEGV and SIGABRT would write one."""
    process = launch(canary, tmp_path, "")
    deadline = time.monotonic() + 30
    while not (tmp_path / "out.mkv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(number)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == -number  # the parent; both others end with it
    time.sleep(0.5)  # the other process ends its file
    strongest, pieces = leaks(canary, tmp_path, said)
    assert strongest < FOUND
    assert pieces == 0
    assert not list(tmp_path.glob("core*"))
