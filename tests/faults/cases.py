"""The faults of the fault table: each is put into one module, in whichever process loads it.

A case says where the fault is, what breaks, and which exit codes are right. `breaks` replaces a function after some
calls that go well: a run that never began proves nothing. Libraries that start threads are imported in the calls only,
since this module is loaded before isolation.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesan.errors import CameraLost, ModelError, ModelStalled, SinkError

CAPTURE, FACES, SANITIZE, MODEL = "edgesan.capture.opencv", "edgesan.faces", "edgesan.sanitize", "edgesan.model.load"
LINK, RENDER, FILES, HTTP = "edgesan.transmit.link", "edgesan.render", "edgesan.transmit.file", "edgesan.transmit.http"
JPEG, H264 = "edgesan.transmit.jpeg", "edgesan.transmit.h264"
AFTER = 5  # calls that go well
REACHED = "[the fault was reached]\n"
Wrong = Callable[..., Any]  # wrong(original, *arguments)
GOES_ON = (0,)
SERVES = (0, 1, 5)  # of the transmit process: it goes on, or ends with what it met


@dataclass(frozen=True)
class Fault:
    """A stage, what goes wrong in it, the module that `put` breaks, and the exit codes that are right."""

    stage: str
    name: str
    module: str
    put: Callable[[Any], None]
    ends: tuple[int, ...] = GOES_ON
    quick: bool = False
    """Whether it is tried in every run of the tests: one fault of each stage is."""

    @property
    def title(self) -> str:
        """The row of the table."""
        return f"{self.stage}: {self.name} ({self.module.removeprefix('edgesan.')})"


def breaks(path: str, wrong: Wrong, after: int = AFTER) -> Callable[[Any], None]:
    """Replace what lies at a path of names in the module: the first calls as ever, then wrong(original, *arguments)."""

    def put(module: Any) -> None:
        *parents, name = path.split(".")
        holder = module
        for parent in parents:
            holder = getattr(holder, parent)
        original, calls = getattr(holder, name), 0

        def replacement(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls <= after:
                return original(*arguments, **options)
            if calls == after + 1:
                say_so()
            return wrong(original, *arguments, **options)

        setattr(holder, name, replacement)

    return put


def say_so() -> None:
    """Tell the test that the fault was reached."""
    os.write(2, REACHED.encode())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def fails(error: BaseException) -> Wrong:
    def wrong(*_: Any, **__: Any) -> Any:
        raise error

    return wrong


def fails_later(error: BaseException) -> Wrong:
    async def wrong(*_: Any) -> Any:
        raise error

    return wrong


def hangs(seconds: float) -> Wrong:
    def wrong(original: Any, *arguments: Any) -> Any:
        import time

        time.sleep(seconds)
        return original(*arguments)

    return wrong


async def hangs_later(original: Any, *arguments: Any) -> Any:
    import asyncio

    await asyncio.sleep(1)
    return await original(*arguments)


def killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), 9)


def does_nothing(*_: Any) -> None:
    return None


def stamped(seconds: int) -> Wrong:
    """The frame was captured so much later than it was."""
    return lambda lend, pixels, number, captured_ns, received_ns: lend(
        pixels, number, captured_ns + seconds * 10**9, received_ns
    )


def set_clock_back(module: Any) -> None:
    import time

    right = time.time
    time.time = lambda: right() - 86400 * 365
    say_so()


def landmarks_of_nothing(detect: Any, *arguments: Any) -> Any:
    import numpy as np

    found = detect(*arguments)
    for face in found:
        face.landmarks[:] = np.nan
    return found


def forgets_all(_: Any, tracker: Any, *__: Any) -> None:
    tracker.tracks = []


def no_matrix(*_: Any) -> Any:
    import numpy as np

    return np.full((2, 3), np.nan)


def far_matrix(*_: Any) -> Any:
    import numpy as np

    return np.array([[1.0, 0, 1e6], [0, 1.0, 1e6]])


def no_noise(_: Any, dimensions: int, __: Any) -> Any:
    import numpy as np

    return np.full(dimensions, np.nan, np.float32)


def short_noise(*_: Any) -> Any:
    import numpy as np

    return np.zeros(3, np.float32)


def raw_codes(length: int | None = None) -> Wrong:
    return lambda encode, encoder, chips, *_: [chip.tobytes()[:length] for chip in chips]


def no_picture(_: Any, decoder: Any, codes: Any, alpha: float) -> Any:
    import numpy as np

    return np.full((len(codes), 112, 112, 3), np.nan, np.float32)


def raw_picture() -> bytes:
    """A frame as the camera gives it."""
    import cv2

    return bytes(cv2.VideoCapture(os.environ["EDGESAN_CLIP"]).read()[1].tobytes())


def sends_raw_frames(_: Any, sender: Any, latents: Any) -> None:
    content = raw_picture()
    for start in range(0, 60000, 4096):
        sender._write(content[start : start + 4096])


def sends_raw_behind_the_head(_: Any, sender: Any, latents: Any) -> None:
    from edgesan import message

    sender._write(message.pack(latents) + raw_picture()[:800])


def garbles(write: Any, sender: Any, content: bytes) -> None:
    write(sender, bytes([content[0], content[1], 99]) + content[3:])


def disk_full(_: Any, writer: Any, *__: Any) -> Any:
    import errno

    import av

    raise writer._failure(av.FFmpegError(errno.ENOSPC, "No space left on device"))


def codec_fails(module: Any) -> None:
    breaks("cv2.imencode", fails(module.cv2.error("encoder")))(module)


def codec_ends(module: Any) -> None:
    """End the stream of libx264 once, which then really refuses the next picture."""

    def wrong(encode: Any, encoder: Any, frame: Any, **options: Any) -> Any:
        nonlocal ended
        if not ended:
            ended = encoder._codec.encode(None) is not None
        return encode(encoder, frame, **options)

    ended = False
    breaks("H264Encoder._encode", wrong)(module)


VIDEO = Fault("video", "the encoder ends", H264, codec_ends)  # of a run with an outlet: tests/outlets/test_record.py
FAULTS = (
    Fault("capture", "exception", CAPTURE, breaks("FileSource.frame", fails(OSError("the driver"))), (1,)),
    Fault("capture", "lost", CAPTURE, breaks("FileSource.frame", fails(CameraLost("it was unplugged")))),
    Fault("capture", "wrong shape", CAPTURE, breaks("lend", lambda o, p, *a: o(p[:100, :80].copy(), *a)), (5,), True),
    Fault("capture", "stale", CAPTURE, breaks("lend", stamped(-10))),
    Fault("capture", "clock jump", CAPTURE, breaks("lend", stamped(1000))),
    Fault("capture", "clock set back", CAPTURE, set_clock_back),
    Fault("capture", "hang", CAPTURE, breaks("FileSource.frame", hangs(2.5))),
    Fault("capture", "out of memory", CAPTURE, breaks("FileSource.frame", fails(MemoryError())), (1,)),
    Fault("capture", "killed", CAPTURE, breaks("FileSource.frame", killed), (137,)),
    Fault("detect", "exception", FACES, breaks("Detector.__call__", fails(RuntimeError("detector"))), (1,)),
    Fault("detect", "NaN", FACES, breaks("Detector.__call__", landmarks_of_nothing), quick=True),
    Fault("detect", "nothing", FACES, breaks("Detector.__call__", lambda *_: [])),
    Fault("detect", "out of memory", FACES, breaks("Detector.__call__", fails(MemoryError())), (1,)),
    Fault("detect", "killed", FACES, breaks("Detector.__call__", killed), (137,)),
    Fault("track", "exception", FACES, breaks("Tracker.update", fails(RuntimeError("tracker"))), (1,)),
    Fault("track", "forgets all", FACES, breaks("Tracker.update", forgets_all), quick=True),
    Fault("align", "exception", FACES, breaks("alignment", fails(RuntimeError("alignment")), 4), (1,)),
    Fault("align", "NaN", FACES, breaks("alignment", no_matrix, 4), (0, 1)),
    Fault("align", "far away", FACES, breaks("alignment", far_matrix, 4), quick=True),
    Fault("noise", "NaN", SANITIZE, breaks("noise.draw", no_noise, 0), (0, 1, 4), True),
    Fault("noise", "wrong shape", SANITIZE, breaks("noise.draw", short_noise, 0), (0, 1, 4)),
    Fault("noise", "no entropy", SANITIZE, breaks("noise.draw", fails(OSError("entropy")), 0), (1,)),
    Fault("encode", "exception", MODEL, breaks("Encoder.encode", fails(ModelError("it failed"))), (4,)),
    Fault("encode", "stalls", MODEL, breaks("Encoder.encode", fails(ModelStalled("it took longer than 5 s")))),
    Fault("encode", "raw pixels for a code", MODEL, breaks("Encoder.encode", raw_codes()), (4,)),
    Fault("encode", "a piece of raw pixels for a code", MODEL, breaks("Encoder.encode", raw_codes(64)), quick=True),
    Fault("encode", "a code too few", MODEL, breaks("Encoder.encode", lambda o, *a: o(*a)[1:]), (1,)),
    Fault("encode", "short codes", MODEL, breaks("Encoder.encode", lambda o, *a: [code[:9] for code in o(*a)]), (4,)),
    Fault("encode", "hang", MODEL, breaks("Encoder.encode", hangs(2.5))),
    Fault("encode", "out of memory", MODEL, breaks("Encoder.encode", fails(MemoryError())), (1,)),
    Fault("encode", "killed", MODEL, breaks("Encoder.encode", killed), (137,)),
    Fault("message", "exception", LINK, breaks("Sender.send", fails(OSError("pipe"))), (1,)),
    Fault("message", "raw frames instead", LINK, breaks("Sender.send", sends_raw_frames), quick=True),
    Fault("message", "raw pixels behind the head", LINK, breaks("Sender.send", sends_raw_behind_the_head)),
    Fault("message", "garbled", LINK, breaks("Sender._write", garbles)),
    Fault("message", "lost", LINK, breaks("Sender._write", does_nothing)),
    Fault("message", "killed", LINK, breaks("Sender.send", killed), (137,)),
    Fault("parse", "exception", LINK, breaks("message.parse", fails(RuntimeError("parser")), 10), SERVES, True),
    Fault("decode", "exception", MODEL, breaks("Decoder.decode", fails(ModelError("it failed"))), (0, 4, 5)),
    Fault("decode", "NaN", MODEL, breaks("Decoder.decode", no_picture), SERVES, True),
    Fault("decode", "hang", MODEL, breaks("Decoder.decode", hangs(1.5))),
    Fault("decode", "killed", MODEL, breaks("Decoder.decode", killed), (0, 5)),
    Fault("paint", "exception", RENDER, breaks("paint", fails(RuntimeError("canvas"))), SERVES),
    Fault("paint", "nothing", RENDER, breaks("paint", does_nothing)),
    Fault("paint", "out of memory", RENDER, breaks("paint", fails(MemoryError())), SERVES, True),
    Fault("paint", "killed", RENDER, breaks("paint", killed), (0, 5)),
    Fault("file", "exception", FILES, breaks("ClipWriter.write", fails(RuntimeError("encoder"))), SERVES),
    Fault("file", "killed", FILES, breaks("ClipWriter.write", killed), (0, 5)),
    Fault("file", "clock set back", FILES, set_clock_back),
    Fault("file", "disk full", FILES, breaks("ClipWriter.write", disk_full), (5,), True),
    Fault("file", "hang", FILES, breaks("ClipWriter.write", hangs(1)), (0, 5)),
    Fault("jpeg", "exception", JPEG, codec_fails, quick=True),
    Fault("jpeg", "nothing", JPEG, breaks("cv2.imencode", lambda *_: (False, None))),
    Fault("jpeg", "killed", JPEG, breaks("cv2.imencode", killed)),
    Fault("jpeg", "hang", JPEG, breaks("cv2.imencode", hangs(1))),
    Fault("stream", "exception", HTTP, breaks("HttpSink.send", fails_later(SinkError("it broke"))), (5,), True),
    Fault("stream", "out of memory", HTTP, breaks("HttpSink.send", fails_later(MemoryError()))),
    Fault("stream", "hang", HTTP, breaks("HttpSink.send", hangs_later)),
)
