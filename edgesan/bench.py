"""How fast this machine sanitizes: `edgesan bench`. It measures four parts.

    stages  each stage of a frame: called alone, and as the running loop reports it
    wire    the real processes on a clip of 30 frames a second, at four sizes and with up to 16 faces: how old a frame
            is when it leaves, what it costs, and how many bytes cross from the camera's process to the network's
    idle    as wire, with one face or none at 15 frames a second, with a viewer and without: the cost of waiting
    long    as wire, for minutes, with temperature and clock rate: boards throttle when they are hot

All times are medians in ms. Compare two of them only as a ratio of one run. The clips are made from the bundled one.
`benchmarks/` holds what only a laboratory needs: the network's own speed, aims, and comparisons.
"""

import dataclasses
import http.client
import itertools
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces, message, noise, ort, render, sanitize
from edgesan.canvas import Canvas, flat
from edgesan.capture import DEMO_CLIP
from edgesan.capture.opencv import FileSource
from edgesan.config import Config
from edgesan.errors import EdgesanError
from edgesan.frames import Pixels, SanitizedFrame, lend
from edgesan.message import Latents
from edgesan.model.load import Model, load_model
from edgesan.scene import Still
from edgesan.silhouette import PERIOD_NS, Silhouettes
from edgesan.transmit.jpeg import JPEG_QUALITY
from edgesan.transmit.link import Pipes, Receiver, Sender

PARTS: Final = ("stages", "wire", "idle", "long")
STAGES: Final = ("detect", "align", "encode", "pipe", "decode", "paint")  # from a raw frame to a sanitized one
RATE: Final = 30  # frames a second of a clip
IDLE_RATE: Final = 15
SIZES: Final = ((480, 270), (640, 480), (1280, 720), (1920, 1080))
FACES: Final = (0, 1, 2, 4, 16)
BLOCK_S: Final = 0.03
FRAME_NS: Final = 10**9 // RATE


# --- the results ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Percentiles:
    """The 50th, 95th and 99th percentile of some durations, in ms."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on, and with which libraries."""

    processor: str
    cores: int
    int8: list[str]  # the instructions for int8 products that it has
    governor: str
    python: str
    edgesan: str
    onnxruntime: str
    opencv: str
    numpy: str


@dataclass(frozen=True)
class ModelName:
    """Which model was measured."""

    name: str
    version: int
    sha256: str


@dataclass(frozen=True)
class StageRow:
    """One stage at one size of picture, two faces. Stages that a frame does not go through have no `loop`."""

    size: str
    stage: str
    alone: Percentiles
    loop: Percentiles | None
    allocated_kb: float
    kernels: float | None = None  # of the whole frame: its time over the sum of its stages' times


@dataclass(frozen=True)
class WireRow:
    """One run of the real processes on a clip."""

    size: str
    faces: int
    found: int
    viewers: int
    fps: float
    glass_to_wire: Percentiles
    loop: float  # ms, the sum of the medians of STAGES
    wall_bytes_per_s: float
    cpu_percent: float
    memory_mb: float
    first_frame_s: float
    isolation: str
    ms: dict[str, Percentiles]


@dataclass(frozen=True)
class LongRow:
    """One sample of a long run. Temperature, clock rate and throttling: None where the board does not report them."""

    seconds: int
    fps: float
    p50: float
    p95: float
    p99: float
    detect: float
    celsius: float | None = None
    mhz: int | None = None
    throttled: str | None = None


@dataclass(frozen=True)
class Results:
    """All that was measured on one machine; a part that was not asked for is empty."""

    machine: Machine
    model: ModelName
    stages: Sequence[StageRow] = ()
    wire: Sequence[WireRow] = ()
    idle: Sequence[WireRow] = ()
    long: Sequence[LongRow] = ()


def plain(results: Results) -> dict[str, Any]:
    """Return the results for JSON, without empty parts and missing values."""
    return {part: _without_gaps(value) for part, value in dataclasses.asdict(results).items() if value}


def _without_gaps(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_gaps(each) for key, each in value.items() if each is not None}
    return [_without_gaps(each) for each in value] if isinstance(value, list | tuple) else value


def run(parts: Sequence[str], config: Config, seconds: float, minutes: float) -> Results:
    """Measure the parts asked for.

    Args:
        parts: some of PARTS.
        config: the model, its threads, how often faces are detected, and whom to trust.
        seconds: length of each run.
        minutes: length of the part "long".

    Raises:
        EdgesanError: the model may not run, or the run that is measured did not start.
    """
    model = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
    clips = [Clip(size, count) for size, count in itertools.product(SIZES, FACES)]
    idle = itertools.product((Clip((640, 480), 1, IDLE_RATE), Clip((640, 480), 0, IDLE_RATE)), (0, 1))
    return Results(
        machine(),
        ModelName(model.metadata.name, model.metadata.version, model.sha256),
        stages=stages(model, config, seconds) if "stages" in parts else (),
        wire=[wire(clip, config, seconds) for clip in tqdm(clips, "wire", leave=False)] if "wire" in parts else (),
        idle=[wire(clip, config, seconds, viewers) for clip, viewers in idle] if "idle" in parts else (),
        long=long_run(config, minutes) if "long" in parts else (),
    )


def machine() -> Machine:
    """Describe this machine."""
    board = Path("/proc/device-tree/model")
    name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return Machine(
        processor=board.read_text().strip("\0") if board.exists() else name[1] if name else platform.machine(),
        cores=os.cpu_count() or 1,
        int8=sorted(ort.cpu_flags() & {"avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"}),
        governor=_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        python=platform.python_version(),
        edgesan=metadata.version("edgesan"),
        onnxruntime=metadata.version("onnxruntime"),
        opencv=metadata.version("opencv-python-headless"),
        numpy=metadata.version("numpy"),
    )


def _line(path: Path) -> str:
    """Return a line of the kernel's, or "unknown" where this machine has none."""
    with suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return "unknown"


# --- timing calls -----------------------------------------------------------------------------------------------------

Blocks = list[NDArray[np.float64]]  # ms of each call, in blocks of neighbouring calls


def in_blocks(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Blocks]:
    """Time each call repeatedly for BLOCK_S, then the next one, round and round.

    A block is short against the drift of a machine's clock rate, and long enough for its caches to be warm.
    """
    taken: dict[str, Blocks] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[next(iter(calls))]) < 2:
        for name, call in calls.items():
            block: list[float] = []
            began = time.perf_counter()
            while (start := time.perf_counter()) < began + BLOCK_S or len(block) < 4:
                call()
                block.append((time.perf_counter() - start) * 1e3)
            taken[name].append(np.array(block[1:]))
    return taken


def percentiles(blocks: Blocks) -> Percentiles:
    """Return the percentiles of all blocks together."""
    return Percentiles(*(round(float(np.percentile(np.concatenate(blocks), q)), 4) for q in (50, 95, 99)))


def ratio(taken: dict[str, Blocks], above: str, *below: str) -> float:
    """Return how many times as long one call takes as some others together: the median over rounds."""
    upper, *lower = (np.array([np.median(block) for block in taken[name]]) for name in (above, *below))
    return round(float(np.median(upper / sum(lower))), 3)


def allocated(call: Callable[[], object]) -> float:
    """Return the most kB that Python, numpy and OpenCV hold at one time in a call; onnxruntime's arena is not seen."""
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(most / 1e3, 1)


# --- the stages -------------------------------------------------------------------------------------------------------


def stages(model: Model, config: Config, seconds: float) -> list[StageRow]:
    """Measure each stage: alone, again and again on the frames of a clip, and in the running loop; two faces.

    "frame" is the whole way from a raw frame to a sanitized one, with both faces encoded; its row also compares it with
    the sum of its stages. In the loop a face is encoded a few times a second, so a median frame encodes none. What the
    scene adds is "silhouette" and "canvas", each five times a second at most; "frame" is without a scene.
    """
    rows: list[StageRow] = []
    for size in tqdm(((480, 270), (1280, 720)), desc="stages", leave=False):
        clip = Clip(size, 2)
        looped = wire(clip, config, seconds).ms
        with ExitStack() as stack:
            calls = stage_calls(clip, model, config, stack)
            taken = in_blocks(calls, seconds)
            for stage, call in calls.items():
                kernels = ratio(taken, "frame", *STAGES) if stage == "frame" else None
                alone = percentiles(taken[stage])
                rows.append(StageRow(clip.name, stage, alone, looped.get(stage), allocated(call), kernels))
    return rows


def stage_calls(clip: "Clip", model: Model, config: Config, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return a call for each stage, which works on the next frame of the clip each time.

    Args:
        clip: what the camera shows; it must show a face.
        model: the loaded model.
        config: the detector's size, and what `pipeline` reads.
        stack: closes what the calls hold.
    """
    pictures = draw(clip)
    detector = faces.Detector(config.detect_size)
    found = detector(pictures[0])
    frames = itertools.cycle(pictures)
    few = sanitize.MOST_ENCODED
    z = np.stack([noise.draw(model.noise_dimensions, os.urandom) for _ in found[:few]])

    def align() -> NDArray[np.uint8]:
        pixels = next(frames)
        return np.stack([faces.cut(pixels, faces.alignment(face.landmarks)) for face in found[:few]])

    chips = align()
    codes = model.encoder.encode(chips, z, 0.5)
    faded = [render.fade(chip) for chip in model.decoder.decode(codes, 0.5)]
    places = [faces.place(face.landmarks) for face in found]
    coded = tuple(message.FaceCode(i, place, codes[i % len(codes)]) for i, place in enumerate(places))
    latents = Latents(1, time.monotonic_ns(), 0, *clip.size, 0.5, model.id, coded)

    def paint() -> Pixels:
        canvas = flat(*clip.size)
        for i, place in enumerate(places):
            render.paint(canvas, faded[i % len(faded)], place)
        return canvas

    still = Still(draw(dataclasses.replace(clip, faces=0))[0], 1)
    silhouettes, make_canvas, looks = Silhouettes(still), Canvas(still), itertools.count(1)
    grid = silhouettes(pictures[0], 0) or message.Silhouette()
    changed = itertools.cycle([grid, dataclasses.replace(grid, bits=grid.bits[:-1] + b"\xff")])
    there = dict(enumerate(places))
    painted = paint()
    whole = pipeline(model, config, refresh_ns=0)
    return {
        "capture": _capture_call(clip, stack),
        "silhouette": lambda: silhouettes(next(frames), next(looks) * PERIOD_NS),
        "detect": lambda: detector(next(frames)),
        "align": align,
        "noise": lambda: noise.draw(max(1, model.noise_dimensions), os.urandom),
        "encode": lambda: model.encoder.encode(chips, z, 0.5),
        "pipe": _pipe_call(latents, stack),
        "decode": lambda: [render.fade(chip) for chip in model.decoder.decode(codes, 0.5)],
        "canvas": lambda: make_canvas(clip.size, still.id, next(changed), there),
        "paint": paint,
        "frame": lambda: whole(next(frames)),
        "jpeg": lambda: jpeg(painted),
        "send": _send_call(jpeg(painted).tobytes(), stack),
    }


def _capture_call(clip: "Clip", stack: ExitStack) -> Callable[[], object]:
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clip.mkv"
    write_clip(path, clip, 2)
    source = FileSource(path, None, None, loop=True, paced=False)
    stack.callback(source.close)

    def capture() -> None:
        with source.frame(1):
            pass

    return capture


def _pipe_call(latents: Latents, stack: ExitStack) -> Callable[[], object]:
    pipes = Pipes.make()
    stack.callback(pipes.close)
    sender, receiver = Sender(pipes), Receiver(pipes.frames_in, pipes.requests_out)

    def pipe() -> object:
        sender.send(latents)
        return receiver.read(lambda status: None)

    return pipe


def _send_call(packet: bytes, stack: ExitStack) -> Callable[[], object]:
    near, far = (stack.enter_context(end) for end in socket.socketpair())

    def send() -> None:
        near.sendall(packet)
        left = len(packet)
        while left:
            left -= len(far.recv(left))

    return send


def pipeline(model: Model, config: Config, refresh_ns: int | None = None) -> Callable[[Pixels], SanitizedFrame]:
    """Return the way of a frame, from raw to sanitized, in one process, as if RATE frames came in a second.

    Args:
        model: the loaded model.
        config: the zones, the detector's settings, and how often a face is encoded.
        refresh_ns: the time between two codes of a face, in place of the configuration's. 0: each frame searches, and
            encodes as many faces as a frame may. None: as a live run, where pixels of a frame hold until the next.
    """
    live = refresh_ns is None
    wait_ns = round(config.refresh * 1e9) if refresh_ns is None else refresh_ns
    hold_ns = round(config.hold * 1e9)
    settings = sanitize.Settings(config.zones, config.detect_every, wait_ns, hold_ns=hold_ns)
    detector = faces.Detector(config.detect_size)
    sanitizer = sanitize.FrameSanitizer(model.encoder, detector, settings)
    renderer = render.Renderer(model.decoder, config.zones, streams=live)
    times = itertools.count(time.monotonic_ns(), FRAME_NS)

    def call(pixels: Pixels) -> SanitizedFrame:
        now_ns = next(times)
        with lend(pixels, 1, now_ns, now_ns) as raw:
            latents = message.parse(message.pack(sanitizer(raw, late=live)))
            sanitizer.catch_up(raw)
        assert isinstance(latents, Latents)
        frame = renderer(latents, late=live)
        renderer.catch_up()
        return frame

    return call


def jpeg(pixels: Pixels) -> NDArray[np.uint8]:
    """Encode a picture as the stream does."""
    return np.asarray(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1], np.uint8)


# --- clips ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """What the camera shows: a size (width, height), so many faces of the bundled clip, so many frames a second."""

    size: tuple[int, int]
    faces: int
    rate: int = RATE

    @property
    def name(self) -> str:
        """The size in words, as 640x480."""
        return f"{self.size[0]}x{self.size[1]}"


def draw(clip: Clip) -> list[Pixels]:
    """Draw two seconds of the clip: its faces stand in rows, and each sways a little."""
    capture, pictures = cv2.VideoCapture(str(DEMO_CLIP)), list[Pixels]()
    while (read := capture.read())[0] and len(pictures) < RATE:
        pictures.append(np.asarray(read[1], np.uint8))
    found = faces.Detector(320)(pictures[0])[:2]
    width, height = clip.size
    wall = cv2.GaussianBlur(cv2.resize(pictures[0], clip.size), (0, 0), height / 6)
    across = math.ceil(math.sqrt(max(1, clip.faces)))
    cell = min(width, height) // max(across, 2)
    heads: list[list[Pixels]] = []
    for face in found:
        x, y, w, h = face.box
        side = 1.5 * max(w, h)
        left, top = (max(0, round(float(v - side / 2))) for v in (x + w / 2, y + h / 2))
        parts = [picture[top : top + round(side), left : left + round(side)] for picture in pictures]
        heads.append([np.asarray(cv2.resize(part, (cell * 9 // 10,) * 2), np.uint8) for part in parts])
    drawn = []
    for number in range(2 * RATE):
        canvas = np.asarray(wall.copy(), np.uint8)
        sway = round(0.04 * cell * math.sin(math.pi * number / RATE))
        for i in range(clip.faces):
            head = heads[i % len(heads)][min(number, 2 * RATE - 1 - number)]
            left = (i % across) * (width // across) + (width // across - cell) // 2 + cell // 20 + sway
            top = (i // across) * (height // across) + (height // across - cell) // 2 + cell // 20
            canvas[top : top + len(head), left : left + len(head)] = head
        drawn.append(canvas)
    return drawn


def write_clip(path: Path, clip: Clip, seconds: float) -> None:
    """Write so many seconds of a clip, its pictures again and again."""
    pictures = draw(clip)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=clip.rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = clip.size[0], clip.size[1], "yuv420p"
        for number in range(round(clip.rate * seconds)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[number % len(pictures)], format="bgr24")))
        container.mux(stream.encode(None))


# --- the real processes -----------------------------------------------------------------------------------------------


def wire(clip: Clip, config: Config, seconds: float, viewers: int = 1) -> WireRow:
    """Measure one run of the real processes on a clip.

    Raises:
        EdgesanError: the run did not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        write_clip(path, clip, seconds + 6)
        with running(path, config, viewers) as (port, process, first_s):
            time.sleep(1)  # caches fill
            before_s, start_s = processor_seconds(process.pid), time.monotonic()
            time.sleep(seconds)
            status = get_status(process, port)
            busy = (processor_seconds(process.pid) - before_s) / (time.monotonic() - start_s)
            memory = sum(memory_bytes(pid) for pid in process_tree(process.pid))
    served = dict(status["transmit"]["ms"])
    spans = status["ms"] | {"jpeg": served.pop("encode")} | served
    ms = {stage: Percentiles(**span) for stage, span in spans.items()}
    return WireRow(
        size=clip.name,
        faces=clip.faces,
        found=status["faces"],
        viewers=viewers,
        fps=status["fps"],
        glass_to_wire=ms["glass_to_wire"],
        loop=round(sum(ms[stage].p50 for stage in STAGES if stage in ms), 2),
        wall_bytes_per_s=status["wall"]["bytes_per_s"],
        cpu_percent=round(100 * busy, 1),
        memory_mb=round(memory / 1e6),
        first_frame_s=round(first_s, 2),
        isolation=status["isolation"]["summary"],
        ms=ms,
    )


@contextmanager
def running(
    camera: Path, config: Config, viewers: int = 1, outputs: Sequence[str] = ()
) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """Start `edgesan run` with so many viewers; lend its port, its process, and the seconds until the first frame."""
    port = free_port()
    command = [sys.executable, "-m", "edgesan", "run", f"--camera={camera}", f"--out=http://127.0.0.1:{port}"]
    command += [f"--out={output}" for output in outputs]
    command += [f"--model={config.model}", f"--threads={config.threads}", f"--detect-every={config.detect_every}"]
    command += [f"--trusted-keys={key}" for key in config.trusted_keys]
    command += ["--allow-unsigned"] if config.allow_unsigned else []
    started_s = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with get(process, port, "/stream.mjpg") as stream:
                stream.read(1)
                first_s = time.monotonic() - started_s
            watchers = [threading.Thread(target=_watch, args=(process, port), daemon=True) for _ in range(viewers)]
            for watcher in watchers:
                watcher.start()
            try:
                yield port, process, first_s
            finally:
                process.terminate()
                for watcher in watchers:
                    watcher.join(5)
        finally:
            process.terminate()


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch(process: subprocess.Popen[bytes], port: int) -> None:
    """Read the stream to its end, as a viewer does."""
    with suppress(OSError, http.client.HTTPException), get(process, port, "/stream.mjpg") as stream:
        while stream.read1(65536):
            pass


def get(process: subprocess.Popen[Any], port: int, path: str) -> http.client.HTTPResponse:
    """Ask the server of a run, which may still be starting.

    Raises:
        EdgesanError: the run ended, or did not start within 20 s.
    """
    for _ in range(400):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse()
        except ConnectionRefusedError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    raise EdgesanError("the run to be measured did not start: `edgesan run --camera demo` prints the reason")


def get_status(process: subprocess.Popen[Any], port: int) -> dict[str, Any]:
    """Return the answer of /api/status."""
    with get(process, port, "/api/status") as answer:
        status: dict[str, Any] = json.load(answer)
        return status


def process_tree(pid: int) -> list[int]:
    """Return a process and all its descendants: proc(5)."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return [pid, *itertools.chain.from_iterable(process_tree(child) for child in own)]


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process and all its descendants."""
    ticks = 0
    for each in process_tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Return the memory of a process. Shared pages count in part, or in full where only root may know the part."""
    with suppress(PermissionError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def long_run(config: Config, minutes: float) -> list[LongRow]:
    """Sample a run of some minutes every five seconds: 640x480, two faces."""
    rows: list[LongRow] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        write_clip(path, Clip((640, 480), 2), 60 * minutes + 6)
        started_s = time.monotonic()
        with (
            running(path, config) as (port, process, _),
            tqdm(total=round(60 * minutes), desc="long", leave=False) as bar,
        ):
            while (now_s := time.monotonic() - started_s) < 60 * minutes:
                time.sleep(5)
                status = get_status(process, port)
                wired = status["transmit"]["ms"]["glass_to_wire"]
                detect = status["ms"]["detect"]["p50"]  # of each frame; encoding is not
                rows.append(LongRow(round(now_s), status["fps"], **wired, detect=detect, **_heat()))
                bar.update(5)
    return rows


def _heat() -> dict[str, Any]:
    """Return what the board reports of its temperature, clock rate and throttling, as LongRow names it."""
    heat: dict[str, Any] = {}
    zone = _line(Path("/sys/class/thermal/thermal_zone0/temp"))
    clock = _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    throttled = _line(Path("/sys/devices/platform/soc/soc:firmware/get_throttled"))  # Raspberry Pi's, as vcgencmd
    if zone.isdigit():
        heat["celsius"] = int(zone) / 1000
    if clock.isdigit():
        heat["mhz"] = int(clock) // 1000
    if throttled != "unknown":
        heat["throttled"] = throttled
    return heat


# --- tables -----------------------------------------------------------------------------------------------------------


def head(machine: Machine, model: ModelName) -> list[str]:
    """Return the lines that say what was measured, on what."""
    int8 = ", ".join(machine.int8) or "no int8 products"
    return [
        f"{machine.processor}, {machine.cores} cores ({int8}), governor {machine.governor}",
        f"edgesan {machine.edgesan}, onnxruntime {machine.onnxruntime}",
        f"model {model.name} v{model.version} ({model.sha256[:8]}); times in ms",
    ]


def text(results: Results) -> str:
    """Return the tables, in Markdown."""
    lines = head(results.machine, results.model)
    if results.stages:
        cells = [(r.size, r.stage, r.alone.p50, r.loop.p50 if r.loop else "", r.allocated_kb) for r in results.stages]
        lines += ["", "stages, 2 faces", *table(("size", "stage", "alone", "in the loop", "allocated kb"), cells)]
        for row in results.stages:
            if row.kernels is not None:
                lines += ["", f"{row.size}: a frame takes {row.kernels:.2f} times the sum of its stages alone"]
    if results.wire:
        rows = [dataclasses.asdict(row) | dataclasses.asdict(row.glass_to_wire) for row in results.wire]
        names = "size faces found fps p50 p95 p99 loop cpu_percent memory_mb first_frame_s wall_bytes_per_s"
        lines += ["", f"glass to wire, {RATE} frames a second, one viewer", *_fields(rows, names.split())]
    if results.idle:
        rows = [dataclasses.asdict(row) for row in results.idle]
        lines += ["", f"idle: {IDLE_RATE} frames a second, one face and none"]
        lines += _fields(rows, ["size", "faces", "viewers", "fps", "cpu_percent", "memory_mb"])
    if results.long:
        rows = [_without_gaps(dataclasses.asdict(row)) for row in results.long]
        lines += ["", "long, 640x480, 2 faces", *_fields(rows[:: max(1, len(rows) // 10)], list(rows[0]))]
    used = {name for line in lines if line.startswith("| ") for name in line.strip("| ").split(" | ")}
    lines += ["", *(f"- {name}: {meaning}" for name, meaning in EXPLAINED.items() if name in used)]
    return "\n".join(lines)


EXPLAINED: Final = {
    "alone": "ms of the stage by itself, median",
    "in the loop": "ms of the stage within a run, median, where other stages have used the caches",
    "allocated kb": "memory that the stage asks for and gives back, for a frame",
    "found": "faces that were found; where fewer than there are, the other figures are too good",
    "fps": "frames a second that were sent",
    "p50": "ms from glass to wire: from the camera's frame to the socket; half of the frames are faster",
    "p95": "the same, 95 of 100 frames are faster",
    "p99": "the same, 99 of 100 frames are faster",
    "loop": "ms of all stages of a frame together, medians",
    "cpu percent": "of one core, all processes together",
    "memory mb": "of all processes",
    "first frame s": "seconds from the start to the first frame that was sent",
    "wall bytes per s": "what crosses from the process with the camera to the one with the network",
    "viewers": "streams that are open",
    "celsius": "temperature of the processor",
    "mhz": "clock of the processor",
    "throttled": "why the board slowed down, if it did",
}


def _fields(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Return a table of these fields of each row."""
    return table([name.replace("_", " ") for name in names], [[row.get(name, "") for name in names] for row in rows])


def table(columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [[f"{cell:g}" if isinstance(cell, int | float) else cell for cell in row] for row in rows]
    head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return [*head, *("| " + " | ".join(row) + " |" for row in cells)]
