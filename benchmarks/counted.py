"""What `benchmarks.instructions` runs inside valgrind, where all takes twenty times as long: it imports little.

    python -m benchmarks.counted FOLDER

The folder holds still.npy, pictures in N-faces.npy and, where networks are counted, their .onnx files and feed.npz.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
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

WARM: Final = 8  # frames that are not counted
FRAMES: Final = 6
FRAME_NS: Final = 10**9 // 30
CALLS: Final = 2  # of the network
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

    def _ask(self, what: int, text: bytes = b"") -> None:
        told = ctypes.create_string_buffer(text)
        self._call((ctypes.c_uint64 * 6)(self.CALLGRIND + what, ctypes.addressof(told)))

    def count(self, name: str, call: Callable[[], object]) -> None:
        """Count the instructions of a call, and write them down under a name."""
        self._ask(self.START)
        call()
        self._ask(self.DUMP, name.encode())
        self._ask(self.STOP)


def main(folder: Path) -> None:
    """Run each part; valgrind writes down what it takes."""
    ort.cpu_flags = lambda root=folder: frozenset({"avx2"})  # whatever the host has
    load.LIMIT.seconds = 600  # here a call takes long
    cv2.setNumThreads(1)
    valgrind, feed = Valgrind(), dict(np.load(folder / "feed.npz"))
    for path in sorted(folder.glob("*.onnx")):
        session = ort.session(path.read_bytes())
        session.run(None, feed)
        valgrind.count(f"{path.stem}/{CALLS}", lambda: [session.run(None, feed) for _ in range(CALLS)])  # noqa: B023
    model, still = load_model(DEMO_MODEL), Still(np.load(folder / "still.npy"), 1)
    for path in sorted(folder.glob("*-faces.npy")):
        for side, passes in sides(model, still, np.load(path)).items():
            next(passes)
            valgrind.count(f"{side}, {path.stem}/{FRAMES}", lambda: next(passes))  # noqa: B023


def sides(model: Model, still: Still, pictures: Pixels) -> dict[str, Iterator[None]]:
    """Return, for either side of the wall, an iterator that first gets warm, and then passes FRAMES frames.

    Args:
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
    messages: list[bytes] = []
    chunks = (range(WARM), range(WARM, WARM + FRAMES))

    def seen() -> Iterator[None]:
        for chunk in chunks:
            for number in chunk:
                now_ns = 10**12 + number * FRAME_NS
                with lend(pictures[number], number, now_ns, now_ns) as raw:
                    messages.append(message.pack(sanitizer(raw, late=True)))
                    sanitizer.catch_up(raw)
            yield

    def shown() -> Iterator[None]:
        view = None
        for chunk in chunks:
            for number in chunk:
                latents = message.parse(messages[number])
                assert isinstance(latents, Latents)
                frame = renderer(latents, late=True)
                if frame.pixels is not view:
                    cv2.imencode(".jpg", frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
                view = frame.pixels
                renderer.catch_up()
            yield

    return {"sanitize": seen(), "transmit": shown()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
