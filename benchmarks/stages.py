"""Time each stage, and glass to wire: `python -m benchmarks.stages`.

The real two processes sanitize a clip of 30 frames a second, made from the bundled one, while one viewer reads the
stream. Figures are medians over the last 600 frames; read them as ratios, on a quiet machine.
"""

import argparse
import http.client
import json
import platform
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import cv2

from edgesan.capture import DEMO_CLIP

SIZES = ((480, 270), (1280, 720))
STAGES = ("detect", "align", "infer", "compose", "gate", "ring", "encode", "glass_to_wire")


def clip(path: Path, size: tuple[int, int], seconds: float) -> None:
    """The bundled clip to and fro, at 30 frames a second and another size."""
    capture = cv2.VideoCapture(str(DEMO_CLIP))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.resize(read[1], size, interpolation=cv2.INTER_CUBIC))
    frames += frames[::-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for i in range(round(30 * seconds)):
            picture = av.VideoFrame.from_ndarray(frames[i % len(frames)], format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def measure(size: tuple[int, int], seconds: float, options: list[str]) -> dict[str, Any]:
    """The status of a run that was watched for nearly all of its clip."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        path = Path(folder) / "clip.mkv"
        clip(path, size, seconds)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [
            sys.executable,
            "-m",
            "edgesan",
            "run",
            "--camera",
            str(path),
            "--out",
            f"http://127.0.0.1:{port}",
            *options,
        ]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + seconds - 1
            stream = connect(port, "/stream.mjpg")
            while time.monotonic() < deadline:
                stream.read(65536)
            answer: dict[str, Any] = json.loads(connect(port, "/api/status").read())
            process.terminate()
    return answer


def connect(port: int, path: str) -> http.client.HTTPResponse:
    """An answer of the server, once it is up."""
    for _ in range(200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("error: the run did not start; try `edgesan doctor`")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(names),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("onnxruntime", "opencv-python-headless", "numpy")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=25, help="length of each run (default 25)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments, options = parser.parse_known_args()
    results = {f"{w}x{h}": measure((w, h), arguments.seconds, options) for w, h in SIZES}
    if arguments.json:
        print(json.dumps({"machine": machine(), "results": results}, indent=2))
        return 0
    m = machine()
    print(f"{m['processor']}, {m['cores']} cores, onnxruntime {m['onnxruntime']}; 2 faces, 30 frames/s, 1 viewer; ms\n")
    print("| | " + " | ".join(results) + " |\n|---|" + "---|" * len(results))
    for stage in STAGES:
        cells = []
        for r in results.values():
            ms = (r["ms"] | r["transmit"]["ms"])[stage]
            cells.append(f"{ms['p50']:.2f}" + (f" (p99 {ms['p99']:.1f})" if stage == "glass_to_wire" else ""))
        print(f"| {stage.replace('_', ' ')} | " + " | ".join(cells) + " |")
    print("| frames/s | " + " | ".join(f"{r['fps']:.1f}" for r in results.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
