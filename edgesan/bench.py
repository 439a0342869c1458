"""How fast this machine sanitizes: `edgesan bench`. Five parts, each a list of rows:

    core    the network alone: batches, threads, int8 and its float twin, beside a plain matrix product of the same library
    stages  each stage alone, and in the loop
    wire    the real processes on a clip of 30 frames a second: how old a frame is when it leaves, at four sizes and with
            up to 16 faces; and how many bytes cross from the camera's process to the network's
    idle    as wire, one face at 15 frames a second, with a viewer and without: what it costs just to be there
    long    as wire, for minutes, with temperature and clock: boards throttle

Figures are medians; compare them as ratios of one run. The clip is made from the bundled one.
"""

import http.client
import itertools
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from edgesan import faces, message, noise, ort, render, sanitize
from edgesan.capture import DEMO_CLIP
from edgesan.capture.opencv import FileSource
from edgesan.config import Config
from edgesan.errors import ConfigError, EdgesanError
from edgesan.frames import Pixels, SanitizedFrame, lend
from edgesan.message import Latents
from edgesan.model.load import Model, known_inputs, load_model, read
from edgesan.transmit.http import JPEG_QUALITY
from edgesan.transmit.link import Pipes, Receiver, Sender

PARTS: Final = ("core", "stages", "wire", "idle", "long")
BATCHES: Final = (1, 2, 4, 8)
SIZES: Final = ((480, 270), (640, 480), (1280, 720), (1920, 1080))
FACES: Final = (0, 1, 2, 4, 16)
PEAK: Final = 1024  # rows and columns of the matrices
RATE: Final = 30  # frames a second of the clip
IDLE_RATE: Final = 15
BLOCK_S: Final = 0.03
LOOP: Final = ("detect", "align", "encode", "pipe", "decode", "paint")  # from a raw frame to a sanitized one
FRAME_NS: Final = 10**9 // RATE
Rows = list[dict[str, Any]]


def run(parts: tuple[str, ...], config: Config, seconds: float, minutes: float) -> dict[str, Any]:
    """All the parts asked for, with the machine and the model named.

    Raises:
        EdgesanError: the model may not run, or the run that is measured did not start.
    """
    sanitizer = load_model(config.model, config.threads, config.trusted_keys, allow_unsigned=config.allow_unsigned)
    work: dict[str, Callable[[], Rows]] = {
        "core": lambda: core(read(config.model), seconds / 8),
        "stages": lambda: stages(sanitizer, config, seconds),
        "wire": lambda: [
            wire(size, count, config, seconds)
            for size, count in tqdm([*itertools.product(SIZES, FACES)], desc="wire", leave=False)
        ],
        "idle": lambda: [wire((640, 480), 1, config, seconds, IDLE_RATE, viewers=viewers) for viewers in (0, 1)],
        "long": lambda: long(config, minutes),
    }
    facts = sanitizer.metadata
    named = {"name": facts.name, "version": facts.version, "sha256": sanitizer.sha256}
    return {"machine": machine(), "model": named, **{part: work[part]() for part in parts}}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    about = {key.strip(): value.strip() for key, _, value in lines}
    flags = set((about.get("flags") or about.get("Features") or "").split())
    board = Path("/proc/device-tree/model")
    return {
        "processor": board.read_text().strip("\0") if board.exists() else about.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "int8": sorted(flags & {"avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"}),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("edgesan", "onnxruntime", "opencv-python-headless", "numpy")},
    }


def _read(path: Path) -> str:
    """A line of the kernel's, or "unknown" where this machine has none."""
    with suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return "unknown"


def percentiles(blocks: list[NDArray[np.float64]]) -> dict[str, float]:
    """p50, p95 and p99 in ms of all blocks together."""
    return {f"p{q}": round(float(np.percentile(np.concatenate(blocks), q)), 4) for q in (50, 95, 99)}


def in_blocks(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[NDArray[np.float64]]]:
    """ms of each call, repeated for BLOCK_S, then of the next, round and round: a block is short against the drift of a
    machine's clock, and long enough for its caches to be warm.
    """
    taken: dict[str, list[NDArray[np.float64]]] = {name: [] for name in calls}
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


def of_blocks(taken: dict[str, list[NDArray[np.float64]]], above: str, *below: str) -> float:
    """How many times as long one call takes as some others together: the median over rounds."""
    upper, *lower = (np.array([np.median(block) for block in taken[name]]) for name in (above, *below))
    return round(float(np.median(upper / sum(lower))), 3)


def in_turn(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median ms of each, one call of each after the other, so that a busy moment of the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[next(iter(calls))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[1:])) * 1e3 for name, values in taken.items()}


def allocated(call: Callable[[], object]) -> float:
    """kB that Python, numpy and OpenCV allocate in a call, at most at one time; onnxruntime's own arena is not seen."""
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(most / 1e3, 1)


# --- the network alone ------------------------------------------------------------------------------------------------


def core(content: bytes, seconds: float) -> Rows:
    """A row for each number of threads, batch and precision. "share": of the peak, which the same library reaches on a
    matrix product of that precision with as many threads; "float": how many times as long the float twin takes.
    """
    quantized = onnx.load_model_from_string(content)
    macs, moved = cost(quantized)
    twins = {"int8": content, "fp32": unquantized(quantized).SerializeToString()}
    rows: Rows = []
    for threads in (t for t in (1, 2, 4, 8) if t <= (os.cpu_count() or 1)):
        sessions = {precision: start(twin, threads) for precision, twin in twins.items()}
        peaks = {f"{precision} peak": product(precision, threads) for precision in twins}
        for batch in tqdm(BATCHES, desc=f"core, threads {threads}", leave=False):
            calls = {precision: feed(session, batch) for precision, session in sessions.items()}
            taken = in_blocks(calls | peaks, seconds * 4)
            for precision, call in calls.items():
                ms = percentiles(taken[precision])
                share = of_blocks(taken, f"{precision} peak", precision) * macs * batch / PEAK**3
                rows.append({
                    "precision": precision, "threads": threads, "batch": batch, **ms,
                    "gmacs": round(macs * batch / 1e6 / ms["p50"], 1),
                    "peak_gmacs": round(PEAK**3 / 1e6 / percentiles(taken[f"{precision} peak"])["p50"], 1),
                    "share": round(share, 3), "float": of_blocks(taken, "fp32", precision),
                    "mmac": round(macs / 1e6, 1), "moved_mb": round(moved[precision] * batch / 1e6, 2),
                    "allocated_kb": allocated(call),
                })  # fmt: skip
    return rows


def start(content: bytes, threads: int) -> ort.InferenceSession:
    """A session as the runtime has it."""
    return ort.session(content, threads)


def feed(session: ort.InferenceSession, batch: int) -> Callable[[], object]:
    """A call of a sanitizer's session on so many faces."""
    dimensions = next((i.shape[1] for i in session.get_inputs() if i.name == "noise"), 0)
    chips, z = known_inputs(batch, dimensions)
    inputs: dict[str, NDArray[Any]] = {"face": chips, "alpha": np.full((batch, 1), 0.5, np.float32)}
    if dimensions:
        inputs["noise"] = z
    return lambda: session.run(["sanitized"], inputs)


def product(precision: str, threads: int) -> Callable[[], object]:
    """A call of a square matrix product: the most that onnxruntime gets out of this machine."""
    kinds = {"int8": (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32), "fp32": (TensorProto.FLOAT,) * 3}
    left, right, out = kinds[precision]
    shape = (PEAK, PEAK)
    generator = np.frombuffer(os.urandom(PEAK * PEAK), np.uint8).reshape(shape)
    weights = (generator // 2).astype(helper.tensor_dtype_to_np_dtype(right))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if precision == "int8" else "MatMul", ["a", "b"], ["c"])], "peak",
        [helper.make_tensor_value_info("a", left, shape)], [helper.make_tensor_value_info("c", out, shape)],
        [numpy_helper.from_array(weights, "b")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.session(proto.SerializeToString(), threads)
    inputs = {"a": generator.astype(helper.tensor_dtype_to_np_dtype(left))}
    return lambda: session.run(["c"], inputs)


def cost(proto: onnx.ModelProto) -> tuple[int, dict[str, int]]:
    """Multiplications of one face, and the bytes that its layers read and write, for each precision.

    Counted for convolutions, which are all that counts: weights, input and output once each.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    macs = elements = 0
    for node in graph.node:
        if node.op_type == "Conv":
            weights, output = shapes[node.input[1]], shapes[node.output[0]]
            macs += math.prod(output) * math.prod(weights[1:])
            elements += math.prod(output) + math.prod(weights) + math.prod(shapes[node.input[0]])
    return macs, {"int8": elements, "fp32": 4 * elements}


def unquantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float twin of a quantized model: the same layers and weights, and the same limits of each activation, which
    do the work of the ReLUs; only nothing is rounded.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    graph = twin.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.float32] | np.float32] = {}
    same: dict[str, str] = {}
    for node in graph.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            whole, scale = values[node.input[0]], values[node.input[1]]
            zero = values[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, np.int8)
            spread = [-1 if i == axis and scale.ndim else 1 for i in range(whole.ndim)]
            away = whole.astype(np.float32) - zero.astype(np.float32).reshape(spread if zero.ndim else ())
            constants[node.output[0]] = away * scale.reshape(spread if scale.ndim else ())
        elif node.op_type == "DequantizeLinear":
            same[node.output[0]] = inputs[0]
        elif node.op_type == "QuantizeLinear":
            scale, zero = values[node.input[1]], values[node.input[2]]
            limits = np.iinfo(zero.dtype)
            names = [f"{node.output[0]}_least", f"{node.output[0]}_most"]
            for name, limit in zip(names, (limits.min, limits.max), strict=True):
                constants[name] = np.float32((limit - float(zero)) * scale)
            nodes.append(helper.make_node("Clip", [inputs[0], *names], [node.output[0]]))
        else:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            kept.input[:] = inputs
            nodes.append(kept)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    tensors += [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return twin


# --- the stages -------------------------------------------------------------------------------------------------------


def stages(sanitizer: Model, config: Config, seconds: float) -> Rows:
    """A row for each stage: alone, again and again on the frames of a scene, and in the loop on a clip; two faces.
    "frame" is the whole way from a raw frame to a sanitized one, both faces encoded: beside the sum of its stages alone.
    In the loop a face is encoded a few times a second, so a median frame encodes none.
    """
    rows: Rows = []
    for size in tqdm(((480, 270), (1280, 720)), desc="stages", leave=False):
        looped = wire(size, 2, config, seconds)["ms"]
        with ExitStack() as stack:
            calls = kernels(size, sanitizer, config, stack)
            taken = in_blocks(calls, seconds)
            rows += [
                {
                    "size": f"{size[0]}x{size[1]}", "stage": stage, "alone": percentiles(taken[stage]),
                    "loop": looped.get(stage), "allocated_kb": allocated(call),
                }
                | ({"kernels": of_blocks(taken, "frame", *LOOP)} if stage == "frame" else {})
                for stage, call in calls.items()
            ]  # fmt: skip
    return rows


def kernels(
    size: tuple[int, int], sanitizer: Model, config: Config, stack: ExitStack, count: int = 2
) -> dict[str, Callable[[], object]]:
    """A call of each stage, each time on the next frame of a scene. `stack` gives back what they hold."""
    scenes = scene(size, count)
    detector = faces.Detector(config.detect_size)
    found = detector(scenes[0])
    frames = itertools.cycle(scenes)
    z = np.stack([noise.draw(sanitizer.noise_dimensions, os.urandom) for _ in found])
    few = sanitize.MOST_ENCODED

    def align() -> NDArray[np.uint8]:
        pixels = next(frames)
        return np.stack([faces.cut(pixels, faces.alignment(face.landmarks)) for face in found[:few]])

    chips = align()
    codes = sanitizer.encoder.encode(chips, z[:few], 0.5)
    faded = [render.fade(chip) for chip in sanitizer.decoder.decode(codes, 0.5)]
    places = [faces.place(face.landmarks) for face in found]
    told = tuple(message.FaceCode(i, place, codes[i % len(codes)]) for i, place in enumerate(places))
    latents = Latents(1, time.monotonic_ns(), 0, *size, 0.5, sanitizer.id, told)

    def paint() -> Pixels:
        canvas = render.flat(*size)
        for i, place in enumerate(places):
            render.paint(canvas, faded[i % len(faded)], place)
        return canvas

    pipes = Pipes.make()
    stack.callback(pipes.close)
    sender, receiver = Sender(pipes), Receiver(pipes.frames_in, pipes.requests_out)

    def pipe() -> object:
        sender.send(latents)
        return receiver.read(lambda status: None)

    camera = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clip.mkv"
    clip(camera, size, count, 2)
    source = FileSource(camera, None, None, loop=True, paced=False)
    stack.callback(source.close)
    near, far = (stack.enter_context(end) for end in socket.socketpair())
    painted = paint()
    picture = jpeg(painted).tobytes()
    whole = pipeline(sanitizer, config, refresh_ns=0)

    def capture() -> None:
        with source.frame(1):
            pass

    def send() -> None:
        near.sendall(picture)
        left = len(picture)
        while left:
            left -= len(far.recv(left))

    return {
        "capture": capture,
        "detect": lambda: detector(next(frames)),
        "align": align,
        "noise": lambda: noise.draw(max(1, sanitizer.noise_dimensions), os.urandom),
        "encode": lambda: sanitizer.encoder.encode(chips, z[:few], 0.5),
        "pipe": pipe,
        "decode": lambda: [render.fade(chip) for chip in sanitizer.decoder.decode(codes, 0.5)],
        "paint": paint,
        "frame": lambda: whole(next(frames)),
        "jpeg": lambda: jpeg(painted),
        "send": send,
    }


def pipeline(sanitizer: Model, config: Config, refresh_ns: int | None = None) -> Callable[[Pixels], SanitizedFrame]:
    """The way of a frame, from raw to sanitized, in one process; for it, RATE frames come in a second.

    Args:
        refresh_ns: instead of the configuration's; 0: each frame encodes as many faces as a frame may.
    """
    wait_ns = round(config.refresh * 1e9) if refresh_ns is None else refresh_ns
    settings = sanitize.Settings(config.zones, config.detect_every, wait_ns)
    detector, hold_ns = faces.Detector(config.detect_size), round(config.hold * 1e9)
    door = sanitize.FrameSanitizer(sanitizer.encoder, detector, settings, 0.5, hold_ns)
    renderer = render.Renderer(sanitizer.decoder, config.zones)
    times = itertools.count(time.monotonic_ns(), FRAME_NS)

    def call(pixels: Pixels) -> SanitizedFrame:
        now_ns = next(times)
        with lend(pixels, 1, now_ns, now_ns) as raw:
            latents = message.parse(message.pack(door(raw)))
        assert isinstance(latents, Latents)
        return renderer(latents)

    return call


def period(config: Config) -> int:
    """Frames from one code of a track to its next: so many show what a frame takes on average, as most encode nobody."""
    return max(1, round(config.refresh * RATE))


def jpeg(pixels: Pixels) -> NDArray[np.uint8]:
    """A picture as the stream carries it."""
    return np.asarray(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1], np.uint8)


# --- from glass to wire -----------------------------------------------------------------------------------------------


def scene(size: tuple[int, int], count: int) -> list[Pixels]:
    """Two seconds of so many faces of the bundled clip in rows, each of which sways a little."""
    capture, pictures = cv2.VideoCapture(str(DEMO_CLIP)), list[Pixels]()
    while (read := capture.read())[0] and len(pictures) < RATE:
        pictures.append(np.asarray(read[1], np.uint8))
    found = faces.Detector(320)(pictures[0])[:2]
    width, height = size
    wall = cv2.GaussianBlur(cv2.resize(pictures[0], size), (0, 0), height / 6)
    across = math.ceil(math.sqrt(max(1, count)))
    cell = min(width, height) // max(across, 2)
    heads: list[list[Pixels]] = []
    for face in found:
        x, y, w, h = face.box
        side = 1.5 * max(w, h)
        left, top = (max(0, round(float(v - side / 2))) for v in (x + w / 2, y + h / 2))
        parts = [picture[top : top + round(side), left : left + round(side)] for picture in pictures]
        heads.append([np.asarray(cv2.resize(part, (cell * 9 // 10,) * 2), np.uint8) for part in parts])
    scenes = []
    for number in range(2 * RATE):
        canvas = np.asarray(wall.copy(), np.uint8)
        sway = round(0.04 * cell * math.sin(math.pi * number / RATE))
        for i in range(count):
            head = heads[i % len(heads)][min(number, 2 * RATE - 1 - number)]
            left = (i % across) * (width // across) + (width // across - cell) // 2 + cell // 20 + sway
            top = (i // across) * (height // across) + (height // across - cell) // 2 + cell // 20
            canvas[top : top + len(head), left : left + len(head)] = head
        scenes.append(canvas)
    return scenes


def clip(path: Path, size: tuple[int, int], count: int, seconds: float, rate: int = RATE) -> None:
    """A scene to and fro, at so many frames a second."""
    scenes = scene(size, count)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for number in range(round(rate * seconds)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scenes[number % len(scenes)], format="bgr24")))
        container.mux(stream.encode(None))


@contextmanager
def running(camera: Path, config: Config, viewers: int = 1) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """`edgesan run` with viewers who take what comes: port, process, and seconds until a first one saw a frame."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "edgesan", "run", "--camera", str(camera), "--out", f"http://127.0.0.1:{port}"]
    command += [
        "--model",
        str(config.model),
        "--threads",
        str(config.threads),
        "--detect-every",
        str(config.detect_every),
    ]
    command += [f"--trusted-keys={key}" for key in config.trusted_keys]
    command += ["--allow-unsigned"] if config.allow_unsigned else []
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with get(process, port, "/stream.mjpg") as stream:
                stream.read(1)
                first = time.monotonic() - started
            watchers = [threading.Thread(target=watch, args=(process, port), daemon=True) for _ in range(viewers)]
            for watcher in watchers:
                watcher.start()
            try:
                yield port, process, first
            finally:
                process.terminate()
                for watcher in watchers:
                    watcher.join(5)
        finally:
            process.terminate()


def watch(process: subprocess.Popen[bytes], port: int) -> None:
    """A viewer, to the end."""
    with suppress(OSError, http.client.HTTPException), get(process, port, "/stream.mjpg") as stream:
        while stream.read1(65536):
            pass


def ask(process: subprocess.Popen[Any], port: int) -> dict[str, Any]:
    """What /api/status says."""
    with get(process, port, "/api/status") as answer:
        status: dict[str, Any] = json.load(answer)
        return status


def get(process: subprocess.Popen[Any], port: int, path: str) -> http.client.HTTPResponse:
    """An answer of the server, once it is up.

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
    raise EdgesanError("the run that is measured did not start; see what `edgesan run --camera demo` says")


def wire(
    size: tuple[int, int], count: int, config: Config, seconds: float, rate: int = RATE, viewers: int = 1
) -> dict[str, Any]:
    """One run on a clip of so many faces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        clip(path, size, count, seconds + 6, rate)
        with running(path, config, viewers) as (port, process, first):
            time.sleep(1)  # caches fill
            before, start = used(process.pid), time.monotonic()
            time.sleep(seconds)
            status = ask(process, port)
            busy = (used(process.pid) - before) / (time.monotonic() - start)
            memory = sum(resident(pid) for pid in family(process.pid))
    served = dict(status["transmit"]["ms"])
    ms = status["ms"] | {"jpeg": served.pop("encode")} | served
    return {
        "size": f"{size[0]}x{size[1]}", "faces": count, "found": status["faces"], "viewers": viewers,
        "fps": status["fps"], "glass_to_wire": ms["glass_to_wire"],
        "loop": round(sum(ms[stage]["p50"] for stage in LOOP if stage in ms), 2), "wall_bytes_per_s": status["wall"]["bytes_per_s"],
        "cpu_percent": round(100 * busy, 1), "memory_mb": round(memory / 1e6), "first_frame_s": round(first, 2),
        "isolation": status["isolation"]["summary"], "ms": ms,
    }  # fmt: skip


def family(pid: int) -> list[int]:
    """A process and all that come of it, by proc(5)."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return [pid, *itertools.chain.from_iterable(family(child) for child in own)]


def used(pid: int) -> float:
    """Seconds of processor time of a process and all that come of it."""
    ticks = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory of a process; what it shares counts in part, or, where only root may know, in full."""
    with suppress(PermissionError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def long(config: Config, minutes: float) -> Rows:
    """A row every five seconds: 640x480, two faces."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        clip(path, (640, 480), 2, 60 * minutes + 6)
        started = time.monotonic()
        with (
            running(path, config) as (port, process, _),
            tqdm(total=round(60 * minutes), desc="long", leave=False) as bar,
        ):
            while (now := time.monotonic() - started) < 60 * minutes:
                time.sleep(5)
                status = ask(process, port)
                wired = status["transmit"]["ms"]["glass_to_wire"]
                detect = status["ms"]["detect"]["p50"]  # of each frame; encoding is not
                rows.append({"seconds": round(now), "fps": status["fps"], **wired, "detect": detect, **temperature()})
                bar.update(5)
    return rows


def temperature() -> dict[str, Any]:
    """What the board says of its heat: degrees C, MHz, and whether it throttles. Absent where it says nothing."""
    heat: dict[str, Any] = {}
    zone = _read(Path("/sys/class/thermal/thermal_zone0/temp"))
    clock = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    throttled = _read(Path("/sys/devices/platform/soc/soc:firmware/get_throttled"))  # Raspberry Pi's, as vcgencmd
    if zone.isdigit():
        heat["celsius"] = int(zone) / 1000
    if clock.isdigit():
        heat["mhz"] = int(clock) // 1000
    if throttled != "unknown":
        heat["throttled"] = throttled
    return heat


# --- what is shown ----------------------------------------------------------------------------------------------------


def text(results: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    m, named = results["machine"], results["model"]
    lines = [
        f"{m['processor']}, {m['cores']} cores ({', '.join(m['int8']) or 'no int8 products'}), governor {m['governor']}",
        f"edgesan {m['edgesan']}, onnxruntime {m['onnxruntime']}",
        f"model {named['name']} v{named['version']} ({named['sha256'][:8]}); times in ms",
    ]
    if "core" in results:
        lines += ["", f"core: {results['core'][0]['mmac']:g} MMAC a face"]
        lines += table(results["core"], ("precision", "threads", "batch", "p50", "p95", "p99", "gmacs", "share", "float",
                                         "moved_mb", "allocated_kb"))  # fmt: skip
    if "stages" in results:
        rows = [{"size": r["size"], "stage": r["stage"], "alone": r["alone"]["p50"], "in the loop": (r["loop"] or {}).get("p50", ""),
                 "allocated_kb": r["allocated_kb"]} for r in results["stages"]]  # fmt: skip
        lines += ["", "stages, 2 faces", *table(rows, ("size", "stage", "alone", "in the loop", "allocated_kb"))]
        for row in results["stages"]:
            if "kernels" in row:
                lines += ["", f"{row['size']}: a frame takes {row['kernels']:.2f} times the sum of its stages alone"]
    if "wire" in results:
        rows = [row | row["glass_to_wire"] for row in results["wire"]]
        lines += ["", f"glass to wire, {RATE} frames a second, one viewer"]
        lines += table(rows, ("size", "faces", "found", "fps", "p50", "p95", "p99", "loop", "cpu_percent", "memory_mb",
                              "first_frame_s", "wall_bytes_per_s"))  # fmt: skip
    if "idle" in results:
        lines += ["", f"idle: {IDLE_RATE} frames a second, one face"]
        lines += table(results["idle"], ("size", "viewers", "fps", "cpu_percent", "memory_mb"))
    if "long" in results:
        rows = results["long"]
        step = max(1, len(rows) // 10)
        lines += ["", "long, 640x480, 2 faces", *table(rows[::step], tuple(rows[0]))]
    return "\n".join(lines)


def table(rows: Rows, columns: tuple[str, ...]) -> list[str]:
    """Rows in Markdown."""
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [f"{row[c]:g}" if isinstance(row[c], int | float) else str(row[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Core and glass to wire of one machine or several, as a picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure as figures
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib, or use --json") from error
    figure = figures.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result in results:
        name = result["machine"]["processor"]
        for precision, style in (("int8", "o-"), ("fp32", "s--")):
            rows = [r for r in result.get("core", []) if r["precision"] == precision and r["threads"] == 1]
            left.plot(
                [r["batch"] for r in rows], [r["p50"] / r["batch"] for r in rows], style, label=f"{name}, {precision}"
            )
        for count in FACES:
            rows = [r for r in result.get("wire", []) if r["faces"] == count]
            if not rows:
                continue  # not measured there
            right.plot(
                [r["size"] for r in rows],
                [r["glass_to_wire"]["p50"] for r in rows],
                "o-",
                label=f"{name}, {count} faces",
            )
    left.set(xlabel="faces in a batch", ylabel="ms a face", title="network alone, one thread", ylim=(0, None))
    right.set(ylabel="ms, median", title="from glass to wire", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6).set_in_layout(False)
    figure.savefig(path, dpi=90)
