"""Run for days, in an hour or two: `python -m benchmarks.soak`.

The real processes sanitize a small picture as fast as they can, with a face in it for part of the time, while one
viewer reads the stream. Memory, open files and latency of both working processes are sampled to the end. A straight
line through the samples shows whether anything grows; exit code 1 if it does. Root only: the processes let no other
user count their open files.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan.bench import free_port, get, machine
from edgesan.capture import DEMO_CLIP
from edgesan.errors import EdgesanError

WINDOW: Final = 96  # pixels on a side of what the camera shows: a part of the bundled clip that moves to and fro
WALL: Final = 960  # pixels beside the clip, of its last column: nobody is there, and the run takes hours less
CLAIMED_FPS: Final = 500  # of the clip: more than can be sanitized, so that a frame is always due
# A lost face is held for some 15 frames, as by a camera of 30 fps; the usual 0.5 s would be hundreds here.
HOLD_S: Final = 0.05
SAMPLES: Final = 300
WARM: Final = 0.1  # of the samples, left out: caches fill, and medians are not over a whole window yet
# The samples are averaged in so many blocks: neighbours are not independent, and a line's error bar needs that.
BLOCKS: Final = 15
STUDENT: Final = 2.16  # 97.5 % of Student's t with BLOCKS - 2 degrees of freedom
GROWTH: Final = 0.02  # of the mean, over the whole run: less would matter to nobody
FIGURES: Final = {
    "sanitize_rss_mb": "sanitize: memory, MB",
    "transmit_rss_mb": "transmit: memory, MB",
    "sanitize_files": "sanitize: open files",
    "transmit_files": "transmit: open files",
    "detect_ms": "detection, ms (p95 of 600)",
    "glass_to_wire_ms": "glass to wire, ms (p95 of 600)",
}


@dataclass(frozen=True)
class Trend:
    """A figure over the run: its mean, first and last value, and its rise per million frames with its error (95 %)."""

    mean: float
    first: float
    last: float
    per_million: float
    error: float
    grows: bool


def clip(path: Path, frames: int, wall: int) -> None:
    """Write a clip of that many frames: the packets of one passage to and fro, again and again."""
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
            part = np.asarray(pictures[i % len(pictures)][20 : 20 + WINDOW, left : left + WINDOW], np.uint8, order="C")
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
    """Read the stream, and come back when it was cut off."""
    while not over.is_set() and process.poll() is None:
        with suppress(OSError, http.client.HTTPException, EdgesanError), get(process, port, "/stream.mjpg") as stream:
            while not over.is_set() and stream.read1(65536):
                pass


def sample(parent: psutil.Process, port: int) -> dict[str, float] | None:
    """Return a row of figures; None while the processes start or end."""
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
    """Fit a straight line through the means of blocks of neighbours; return its rise, and half of its 95 % interval."""
    x = np.array([part.mean() for part in np.array_split(x, BLOCKS)])
    y = np.array([part.mean() for part in np.array_split(y, BLOCKS)])
    away = x - x.mean()
    rise = float((away * y).sum() / (away**2).sum())
    rest = y - y.mean() - rise * away
    return rise, STUDENT * float(np.sqrt((rest**2).sum() / (BLOCKS - 2) / (away**2).sum()))


def trends(rows: list[dict[str, float]]) -> dict[str, Trend]:
    """Judge each figure: does it rise by more than its error, and by more than GROWTH over the run?"""
    rows = rows[int(len(rows) * WARM) :]
    frames = np.array([row["frames"] for row in rows])
    found: dict[str, Trend] = {}
    for name in FIGURES:
        values = np.array([row[name] for row in rows])
        rise, error = slope(frames / 1e6, values)
        over_run = rise * (frames[-1] - frames[0]) / 1e6
        grows = bool(rise > error and over_run > GROWTH * values.mean())
        found[name] = Trend(float(values.mean()), float(values[0]), float(values[-1]), rise, error, grows)
    return found


def plot(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """Draw all figures over frames, each from zero, so that a slope looks as steep as it is."""
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


def measure(arguments: argparse.Namespace, options: list[str]) -> list[dict[str, float]]:
    """Run edgesan with these options of its own, and return the samples.

    Raises:
        SystemExit: the run failed, or was too short.
    """
    rows: list[dict[str, float]] = []
    seconds, started_s = arguments.minutes * 60, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, port = Path(folder) / "clip.mkv", free_port()
        clip(path, round(seconds * CLAIMED_FPS) if seconds else 4 * arguments.frames, arguments.wall)
        command = [sys.executable, "-m", "edgesan", "run", f"--camera={path}", f"--out=http://127.0.0.1:{port}"]
        command += [
            f"--hold={HOLD_S}",
            f"--duration={seconds}" if seconds else f"--frames={arguments.frames}",
            *options,
        ]
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
                rows.append(row | {"seconds": time.monotonic() - started_s})
                bar.update(round(row["frames"]) - bar.n)
                # The rest of the run gets SAMPLES; a short run, and the first minute, get one every second.
                part = (rows[-1]["seconds"] / seconds) if seconds else row["frames"] / arguments.frames
                step_s = max(1.0, rows[-1]["seconds"] / part / SAMPLES) if len(rows) > 60 else 1.0
            over.set()
            printed = process.stderr.read() if process.stderr else ""
        if process.returncode or len(rows) < 3 * BLOCKS:
            raise SystemExit(f"error: the run ended with {process.returncode} after {len(rows)} samples: {printed}")
    return rows


def main() -> int:
    """Run, and print whether anything grows; exit code 1 if it does. Options that it does not know are edgesan's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames to sanitize (default 1,000,000)")
    parser.add_argument("--minutes", type=float, default=0, help="run for so long instead")
    wall = "width of the part of the picture where nobody is; 0 is slower, as a face is in view more often"
    parser.add_argument("--wall", type=int, default=WALL, metavar="PIXELS", help=f"{wall} (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and samples here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture here")
    arguments, options = parser.parse_known_args()
    rows = measure(arguments, options)
    found = trends(rows)
    hours = (rows[-1]["seconds"] - rows[0]["seconds"]) / 3600
    frames, rejected = round(rows[-1]["frames"]), round(rows[-1]["rejected"])
    m = machine()
    title = f"{frames:,} frames in {hours:.1f} h, {rejected} rejected; {m.processor}, {m.cores} cores"
    print(f"\n{title}\n\n| | mean | first | last | per million frames | |\n|---|---|---|---|---|---|")
    for name, trend in found.items():
        print(
            f"| {FIGURES[name]} | {trend.mean:.2f} | {trend.first:.2f} | {trend.last:.2f} |"
            f" {trend.per_million:+.3f} ± {trend.error:.3f} | {'GROWS' if trend.grows else 'steady'} |"
        )
    if arguments.plot:
        plot(arguments.plot, rows, title)
    if arguments.json:
        figures = {name: asdict(trend) for name, trend in found.items()}
        done = {"frames": frames, "rejected": rejected, "hours": round(hours, 2)}
        table = {"machine": asdict(m), **done, "figures": figures, "samples": rows}
        arguments.json.write_text(json.dumps(table, default=float) + "\n")
    return int(any(trend.grows for trend in found.values()))


if __name__ == "__main__":
    sys.exit(main())
