"""What `benchmarks.instructions` runs inside valgrind, and `benchmarks.emulated` inside QEMU: it imports little.

    python -m benchmarks.counted FOLDER

Inside valgrind all takes twenty times as long.

The folder holds still.npy, the pictures of each clip in clip-NAME.npy and, where networks are counted, their .onnx
files and feed.npz.
"""

import contextlib
import ctypes
import mmap
import os
import platform
import sys
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from edgesan import message, ort, render, sanitize
from edgesan.config import DEMO_MODEL, Config
from edgesan.faces import Detector
from edgesan.frames import Pixels, lend
from edgesan.message import Latents
from edgesan.model import load
from edgesan.model.load import Model, load_model
from edgesan.scene import Still
from edgesan.silhouette import Silhouettes

WARM: Final = 24  # frames that are not counted: all faces are known then
FRAMES: Final = 12  # from one code of a face to its next
FRAME_NS: Final = 10**9 // 30
CALLS: Final = 2  # of the network
X86: Final = platform.machine() == "x86_64"
AVX2, VNNI = frozenset({"avx2"}), frozenset({"avx2", "avx512_vnni"})  # flags of processors
MARK: Final = 0x3ED6E5A9  # no process has this number; count.c knows it
QUALITY: Final = 85  # of JPEG, as `edgesan.transmit.http` has it


class Valgrind:
    """Asks the valgrind around this process to count, by the instructions that valgrind.h documents for x86-64."""

    CODE: Final = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
    CALLGRIND: Final = 0x43540000
    DUMP, START, STOP = 3, 4, 5

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, len(self.CODE), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(self.CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        self._counts = False

    def _ask(self, what: int, text: bytes = b"") -> None:
        told = ctypes.create_string_buffer(text)
        self._call((ctypes.c_uint64 * 6)(self.CALLGRIND + what, ctypes.addressof(told)))

    def start(self) -> None:
        """Begin to count."""
        self._counts = True
        self._ask(self.START)

    def mark(self, name: str) -> None:
        """Write down under a name what was counted since the mark before, or since the start; nothing before that."""
        if self._counts:
            self._ask(self.DUMP, name.encode())

    def stop(self) -> None:
        """Count no more."""
        self._counts = False
        self._ask(self.STOP)


class Qemu(Valgrind):
    """Asks the plugin of the QEMU around this process. It always counts: a part is named, its line asked for."""

    def __init__(self) -> None:
        self._counts = False

    def _ask(self, what: int, text: bytes = b"") -> None:
        os.write(2, text + b"\n")
        with contextlib.suppress(ProcessLookupError):
            os.getpgid(MARK)


def main(folder: Path) -> None:
    """Run each part; what is around this process writes down what it takes."""
    pretend(AVX2)
    load.LIMIT.seconds = 600  # here a call takes long
    cv2.setNumThreads(1)
    valgrind, feed = Valgrind() if X86 else Qemu(), dict(np.load(folder / "feed.npz"))
    for path in sorted(folder.glob("*.onnx")):
        name, content = path.stem, path.read_bytes()
        kinds = {name: AVX2} | ({"int8, 8-bit products": VNNI} if X86 and name == "int8" else {})
        for kind, flags in kinds.items():
            pretend(flags)
            session = ort.session(content)
            session.run(None, feed)
            valgrind.start()
            for _ in range(CALLS):
                session.run(None, feed)
            valgrind.mark(f"{kind}/{CALLS}")
            valgrind.stop()
    pretend(AVX2)
    model, still = load_model(DEMO_MODEL), Still(np.load(folder / "still.npy"), 1)
    for path in sorted(folder.glob("clip-*.npy")):
        count_frames(valgrind, path.stem.removeprefix("clip-"), model, still, np.load(path))


def pretend(flags: frozenset[str]) -> None:
    """Let sessions be made as on an x86 processor with these flags, whatever the host has. Arm has its own."""
    if X86:
        ort.cpu_flags = lambda root=Path(): flags
        ort.int8_saturates.cache_clear()


def count_frames(valgrind: Valgrind, name: str, model: Model, still: Still, pictures: Pixels) -> None:
    """Count what a frame takes on either side of the wall: until it has left, and after that.

    Args:
        valgrind: what counts.
        name: of the clip.
        model: the loaded model.
        still: the scene.
        pictures: uint8 [WARM + FRAMES, height, width, 3] in BGR.
    """
    config = Config()
    settings = sanitize.Settings(refresh_ns=round(config.refresh * 1e9), hold_ns=round(config.hold * 1e9), alpha=0.5)
    random = np.random.default_rng(0)
    parts = (model.encoder, Detector(config.detect_size), settings, random.bytes, lambda: 0, Silhouettes(still))
    sanitizer = sanitize.FrameSanitizer(*parts)
    renderer = render.Renderer(model.decoder, (), still, lambda: 0, streams=True)
    view = None
    for number, pixels in enumerate(pictures):
        if number == WARM:
            valgrind.start()
        now_ns = 10**12 + number * FRAME_NS
        with lend(pixels, number, now_ns, now_ns) as raw:
            sent = message.pack(sanitizer(raw, late=True))
            valgrind.mark(f"sanitize, {name}/{FRAMES}")
            sanitizer.catch_up(raw)
            valgrind.mark(f"encode, {name}/{FRAMES}")
        latents = message.parse(sent)
        assert isinstance(latents, Latents)
        frame = renderer(latents, late=True)
        if frame.pixels is not view:
            cv2.imencode(".jpg", frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        view = frame.pixels
        valgrind.mark(f"transmit, {name}/{FRAMES}")
        renderer.catch_up()
        valgrind.mark(f"decode, {name}/{FRAMES}")
    valgrind.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
