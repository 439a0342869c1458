"""Our capture backend on the real picamera2 and the real libcamera, whose virtual pipeline stands in for a sensor.

Runs inside a Debian trixie root (see `test_picamera.py`). A line for each fact; the first one that does not hold ends
it.

The virtual pipeline is no Raspberry Pi's, and picamera2 was written for those. What is bent here, in the library and
not in edgesan: `pykms` (its preview windows) is empty; no raw stream is asked for; buffers are libcamera's own, since
picamera2's hold one plane where NV12 has two. /dev/dma_heap comes from dma_heap.c.
"""

import gc
import os
import sys
import time
import types
from collections import deque
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version

import numpy as np

pykms = types.ModuleType("pykms")
pykms.PixelFormat = type("PixelFormat", (type,), {"__getattr__": lambda _, name: name})("PixelFormat", (), {})
sys.modules["pykms"] = pykms

import libcamera  # noqa: E402
import picamera2  # noqa: E402
from picamera2.allocators import Allocator, LibcameraAllocator  # noqa: E402

from edgesan.capture import Source, devices, open_source, picamera  # noqa: E402
from edgesan.errors import CameraError, CameraLost  # noqa: E402

really_open = picamera2.Picamera2.__init__
opened: deque[picamera2.Picamera2] = deque(maxlen=1)  # the last one


def with_its_own_buffers(camera: picamera2.Picamera2, number: int = 0) -> None:
    really_open(camera, number, allocator=Allocator())
    camera.allocator = LibcameraAllocator(camera.camera)
    opened.append(camera)


picamera2.Picamera2.__init__ = with_its_own_buffers
picamera2.Picamera2._get_raw_modes = lambda _: [{"format": "NV12", "size": (640, 480)}]


def fact(name: str, detail: str) -> None:
    print(f"ok  {name}: {detail}", flush=True)


def raised(what: Callable[[], object]) -> CameraError:
    try:
        what()
    except CameraError as error:
        return error
    raise AssertionError("nothing was raised")


def open_again(size: tuple[int, int]) -> Source:
    """As the loop does, which tries until the camera is back. Each failure is printed."""
    for attempt in range(10):
        try:
            return open_source("picamera", size, None)
        except CameraError as error:
            print(f"    attempt {attempt + 1}: {error}", flush=True)
            time.sleep(0.5)
    raise AssertionError("the camera never came back")


def take(count: int, size: tuple[int, int]) -> None:
    with closing(open_again(size)) as source:
        assert source.size == size, source.size
        for _ in range(count):
            with source.frame(2.0):
                pass


def fail(_: object) -> None:
    raise RuntimeError("Failed to queue request: No such device")


def lose(name: str, instead: Callable[[object], None]) -> None:
    """Lose the camera, check that the loss is reported and the camera given back, and open it again."""
    with closing(open_again((640, 480))) as source:
        with source.frame(2.0):
            started_s = time.monotonic()
            opened[-1].process_requests = instead
        lost = raised(lambda: [source.frame(2.0).__enter__() for _ in range(1000)])
        assert isinstance(lost, CameraLost), lost
        source._thread.join(60)
        assert opened[-1].is_open is False, "it was not given back"
        fact(
            name, f"{lost}, after {time.monotonic() - started_s:.1f} s (silence is a loss after {picamera.HANG_S:g} s)"
        )
    take(5, (640, 480))
    fact("back", "opened again: 5 frames")


def main() -> None:
    print(f"picamera2 {version('picamera2')}, libcamera {libcamera.CameraManager.singleton().version}", flush=True)
    listed = [device for device in devices.list_devices() if device.kind == "picamera"]
    assert [device.spec for device in listed] == ["picamera:0"], listed
    fact("listed", f"{listed[0].spec} {listed[0].name}")

    with closing(open_source("picamera", (640, 480), None)) as source:
        assert source.size == (640, 480), source.size
        numbers, ages_ms = [], []
        started_s = time.monotonic()
        while len(numbers) < 90:
            with source.frame(2.0) as raw:
                numbers.append(raw.number)
                ages_ms.append((time.monotonic_ns() - raw.captured_ns) / 1e6)
                pixels = np.array(raw.pixels)
        seconds = time.monotonic() - started_s
        assert numbers == sorted(set(numbers)), "a frame was lent twice"
        assert min(ages_ms) >= 0, f"not of this clock: {ages_ms}"
        assert max(ages_ms) < 60_000, f"not of this clock: {ages_ms}"
        fact("start", f"90 frames of {pixels.shape} {pixels.dtype} in {seconds:.1f} s, each newer than the last")
        colours = {tuple(int(v) for v in np.round(column / 255)) for column in pixels[240, 20::80]}
        assert len(colours) >= 6, colours
        fact("picture", f"colour bars, {len(colours)} of the 8 corners of the colour cube: {sorted(colours)}")
    assert not opened[-1].started
    fact("stop", "the source is closed, and so is the camera")

    for size in ((320, 240), (640, 480), (320, 240)):
        take(5, size)
    fact("reconfigure", "5 frames each of 320x240, 640x480, 320x240, opened anew each time")
    gc.collect()  # picamera2 leaves what it held open in rings of references, two files for each opening
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        take(2, (320, 240))
    gc.collect()
    after = len(os.listdir("/proc/self/fd"))
    assert after <= before, f"{after - before} descriptors leak"
    fact("again", f"opened and closed 10 times more, {after} open files before and after")

    with closing(open_again((640, 480))) as source:
        error = raised(lambda: open_source("picamera", (640, 480), None))
        fact("busy", str(error))
        with source.frame(2.0):
            fact("still", "the one that has it still gets frames")

    # Two ways to go: nothing comes any more (a cable came loose), or picamera2's event loop dies of an error.
    lose("lost, silently", lambda _: None)
    lose("lost, with an error", fail)
    error = raised(lambda: open_source("picamera:1", None, None))
    fact("missing", str(error))


if __name__ == "__main__":
    main()
