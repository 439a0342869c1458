"""Run for days, in an hour or two: `python -m benchmarks.soak`.

The real processes sanitize a small picture as fast as they can, a face in it for a part of the time, while one viewer reads
the stream. Memory, open files and latency of both working processes are sampled to the end; a straight line through the samples
tells whether anything grows. Exit code 1 if it does. Root only: the processes let nobody else count their open files.
"""

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan.bench import get, machine
from edgesan.capture import DEMO_CLIP
from edgesan.errors import EdgesanError

WINDOW = 96  # pixels on a side of what the camera shows: a part of the bundled clip that moves to and fro
WALL = 960  # pixels beside the clip, of its last column: nobody is there, and the run takes hours less
CLAIMED_FPS = 500  # of the clip: more than can be sanitized, so that a frame is always due
HOLD_S = (
    0.05  # a lost face is held for some 15 frames, as by a camera of 30 fps; the usual 0.5 s would be hundreds here
)
SAMPLES = 300
WARM = 0.1  # of the samples: caches fill, and medians are not over a whole window yet
BLOCKS = 15  # the rest is averaged in: a line's error bar needs independent points, and neighbouring samples are not
GROWTH = 0.02  # of its mean, over the whole run: less is no leak that anybody would live to see
FIGURES = {
    "sanitize_rss_mb": "sanitize: memory, MB", "transmit_rss_mb": "transmit: memory, MB",
    "sanitize_files": "sanitize: open files", "transmit_files": "transmit: open files",
    "detect_ms": "detection, ms (p95 of 600)", "glass_to_wire_ms": "glass to wire, ms (p95 of 600)",
}  # fmt: skip


def clip(path: Path, frames: int, wall: int) -> None:
    """That many frames: the packets of one passage to and fro, again and again."""
    capture, pictures = cv2.VideoCapture(str(DEMO_CLIP)), []
    while (read := capture.read())[0]:
        small = cv2.resize(read[1], (240, 135), interpolation=cv2.INTER_AREA)
        pictures.append(cv2.copyMakeBorder(small, 0, 0, 0, wall, cv2.BORDER_REPLICATE))
    pictures += pictures[::-1]
    lefts = np.linspace(0, 240 + wall - WINDOW, 2 * len(pictures)).round().astype(int)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=CLAIMED_FPS, options={"preset": "veryfast", "crf": "28", "bf": "0", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = WINDOW, WINDOW, "yuv420p"
        packets = []
        for i, left in enumerate([*lefts, *lefts[::-1]]):
            part = np.ascontiguousarray(pictures[i % len(pictures)][20 : 20 + WINDOW, left : left + WINDOW])
            packets += stream.encode(av.VideoFrame.from_ndarray(part, format="bgr24"))
        packets += stream.encode(None)
        again = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in tqdm(range(frames), desc="clip", unit="frame", leave=False):
            content, keyframe = again[number % len(again)]
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, keyframe
            packet.time_base = stream.codec_context.time_base
            container.mux(packet)


def watch(process: subprocess.Popen[str], port: int, over: threading.Event) -> None:
    """One viewer, who reads all that comes, and comes back when it was cut off."""
    while not over.is_set() and process.poll() is None:
        with suppress(OSError, http.client.HTTPException, EdgesanError), get(process, port, "/stream.mjpg") as stream:
            while not over.is_set() and stream.read1(65536):
                pass


def sample(parent: psutil.Process, port: int) -> dict[str, float] | None:
    """One row of figures; None while it starts or ends."""
    try:
        transmit, sanitize = sorted(parent.children(), key=lambda child: child.pid)[:2]  # in the order of their start
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/status")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        row: dict[str, float] = {"frames": answer["totals"]["sanitized"]}
        for name, process in (("sanitize", sanitize), ("transmit", transmit)):
            row[f"{name}_rss_mb"] = process.memory_info().rss / 1e6
            row[f"{name}_files"] = process.num_fds()
        row["detect_ms"] = answer["ms"]["detect"]["p95"]
        row["glass_to_wire_ms"] = answer["transmit"]["ms"]["glass_to_wire"]["p95"]
    except (psutil.NoSuchProcess, OSError, http.client.HTTPException, ValueError, KeyError):
        return None
    return row | {"rejected": sum(n for name, n in answer["totals"].items() if name.startswith("rejected"))}


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Of a straight line through the means of blocks of neighbours, and half of its 95 % interval."""
    x = np.array([part.mean() for part in np.array_split(x, BLOCKS)])
    y = np.array([part.mean() for part in np.array_split(y, BLOCKS)])
    away = x - x.mean()
    rise = float((away * y).sum() / (away**2).sum())
    rest = y - y.mean() - rise * away
    student = 2.16  # of 13 degrees of freedom, 97.5 %
    return rise, student * float(np.sqrt((rest**2).sum() / (BLOCKS - 2) / (away**2).sum()))


def verdict(rows: list[dict[str, float]]) -> dict[str, dict[str, float | bool]]:
    """For each figure: its mean, what it rises per million frames and how sure that is, and whether it grows."""
    rows = rows[int(len(rows) * WARM) :]
    frames = np.array([row["frames"] for row in rows])
    figures: dict[str, dict[str, float | bool]] = {}
    for name in FIGURES:
        values = np.array([row[name] for row in rows])
        rise, error = slope(frames / 1e6, values)
        over_run = rise * (frames[-1] - frames[0]) / 1e6
        grows = rise > error and over_run > GROWTH * values.mean()
        figures[name] = {
            "mean": float(values.mean()), "first": float(values[0]), "last": float(values[-1]),
            "per_million": rise, "error": error, "grows": bool(grows),
        }  # fmt: skip
    return figures


def plot(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """All figures over frames, each from zero, so that a slope looks as steep as it is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for axis, (name, label) in zip(axes.flat, FIGURES.items(), strict=True):
        axis.plot([row["frames"] / 1e6 for row in rows], [row[name] for row in rows], linewidth=1)
        axis.set_title(label, fontsize=10)
        axis.set_ylim(bottom=0, top=1.3 * max(row[name] for row in rows))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("million frames")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames to sanitize (default 1,000,000)")
    parser.add_argument("--minutes", type=float, default=0, help="end after so long instead")
    parser.add_argument(
        "--wall",
        type=int,
        default=WALL,
        metavar="PIXELS",
        help="0: faces are often in view, and it is slower (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and samples here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture here")
    arguments, options = parser.parse_known_args()
    rows: list[dict[str, float]] = []
    seconds, started = arguments.minutes * 60, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        path = Path(folder) / "clip.mkv"
        clip(path, round(seconds * CLAIMED_FPS) if seconds else 4 * arguments.frames, arguments.wall)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [
            sys.executable, "-m", "edgesan", "run", "--camera", str(path), "--out", f"http://127.0.0.1:{port}",
            "--hold", str(HOLD_S), *options,
        ]  # fmt: skip
        command += ["--duration", str(seconds)] if seconds else ["--frames", str(arguments.frames)]
        over = threading.Event()
        with (
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
            tqdm(total=None if seconds else arguments.frames, desc="soak", unit="frame") as bar,
        ):
            viewer = threading.Thread(target=watch, args=(process, port, over), daemon=True)
            viewer.start()
            parent, step_s = psutil.Process(process.pid), 1.0
            while process.poll() is None:
                time.sleep(step_s)
                row = sample(parent, port)
                if row is None:
                    continue
                rows.append(row | {"seconds": time.monotonic() - started})
                bar.update(round(row["frames"]) - bar.n)
                # Samples spread evenly over what is to come; a short run, and the first minute, get them every second.
                part = (rows[-1]["seconds"] / seconds) if seconds else row["frames"] / arguments.frames
                step_s = max(1.0, rows[-1]["seconds"] / part / SAMPLES) if len(rows) > 60 else 1.0
            over.set()
            said = process.stderr.read() if process.stderr else ""
        if process.returncode or len(rows) < 3 * BLOCKS:
            raise SystemExit(f"error: the run ended with {process.returncode} after {len(rows)} samples: {said}")
    figures = verdict(rows)
    hours = (rows[-1]["seconds"] - rows[0]["seconds"]) / 3600
    done = {"frames": round(rows[-1]["frames"]), "rejected": round(rows[-1]["rejected"]), "hours": round(hours, 2)}
    m = machine()
    title = (
        f"{done['frames']:,} frames in {hours:.1f} h, {done['rejected']} rejected; {m['processor']}, {m['cores']} cores"
    )
    print(f"\n{title}\n\n| | mean | first | last | per million frames | |\n|---|---|---|---|---|---|")
    for name, f in figures.items():
        print(
            f"| {FIGURES[name]} | {f['mean']:.2f} | {f['first']:.2f} | {f['last']:.2f} |"
            f" {f['per_million']:+.3f} ± {f['error']:.3f} | {'GROWS' if f['grows'] else 'steady'} |"
        )
    if arguments.plot:
        plot(arguments.plot, rows, title)
    if arguments.json:
        table = {"machine": m, **done, "figures": figures, "samples": rows}
        arguments.json.write_text(json.dumps(table, default=float) + "\n")
    return int(any(f["grows"] for f in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
