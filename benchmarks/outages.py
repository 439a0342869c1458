"""What failures outside cost the camera: `python -m benchmarks.outages` (root; ffmpeg, iproute2 and gst-rtsp-server).

A run pushes RTSP into another network namespace and serves MJPEG. In turn nothing happens, the server is killed, a
viewer stalls, and the network is cut for 30 s. Before each of these, and meanwhile, the 99th percentile of a frame on
the camera's side of the wall is read: from the camera's frame to the message. Nothing at all is the measure of how
quiet the host is.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from tqdm import tqdm

from edgesan import bench
from edgesan.config import DEMO_MODEL, Config

SIZE: Final = (640, 480)
WINDOW_S: Final = 21  # the status has percentiles of the last 600 frames, which are 20 s
CUT_S: Final = 30
PATIENCE_S: Final = 30
HERE: Final = "198.18.78.1"  # RFC 2544 keeps these for tests
THERE: Final = "198.18.78.2"
LINK: Final = "es-outage"
SERVER: Final = Path(__file__).parent.parent / "tests" / "outlets" / "servers" / "rtsp.py"


@dataclass(frozen=True)
class Outage:
    """One failure in one round."""

    what: str
    before_ms: float  # the 99th percentile of a frame on the camera's side of the wall
    meanwhile_ms: float
    fps: float  # that were sent meanwhile
    back_s: float  # until the stream is taken again
    grown_mb: float  # memory of all processes


class Run:
    """A run whose stream is pushed, and the server that takes it."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, start: Callable[[], subprocess.Popen[bytes]]
    ) -> None:
        self.process, self.port, self._start = process, port, start
        self.server = start()

    def status(self) -> dict[str, Any]:
        """Return what the run says of itself."""
        return bench.get_status(self.process, self.port)

    def p99_ms(self) -> float:
        """Wait until the window is of now alone, and read it."""
        time.sleep(WINDOW_S)
        return float(self.status()["ms"]["sanitize"]["p99"])

    def memory_mb(self) -> float:
        """Return the memory of all processes."""
        return sum(bench.memory_bytes(pid) for pid in bench.process_tree(self.process.pid)) / 1e6

    def connected(self) -> bool:
        """Return whether the server takes the stream."""
        return bool(self.status()["outputs"][0]["connected"])

    def back_s(self) -> float:
        """Return the seconds until the stream is taken again."""
        since_s = time.monotonic()
        while not self.connected():
            if time.monotonic() - since_s > PATIENCE_S:
                sys.exit(f"the stream was not taken again within {PATIENCE_S} s")
            time.sleep(0.05)
        return time.monotonic() - since_s

    @contextmanager
    def server_killed(self) -> Iterator[None]:
        """Kill the server; start it again afterwards."""
        self.server.kill()
        self.server.wait()
        yield
        self.server = self._start()

    @contextmanager
    def network_cut(self) -> Iterator[None]:
        """Take the link down for CUT_S."""
        set_link("link", "set", LINK, "down")
        cut_s = time.monotonic()
        yield
        time.sleep(max(0.0, CUT_S - (time.monotonic() - cut_s)))
        set_link("link", "set", LINK, "up")

    @contextmanager
    def viewer_stalled(self) -> Iterator[None]:
        """Ask for the stream, and read nothing."""
        with socket.create_connection(("127.0.0.1", self.port)) as viewer:
            viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            yield

    @contextmanager
    def nothing_at_all(self) -> Iterator[None]:
        """Change nothing."""
        yield


def set_link(*words: str) -> None:
    """Set links and addresses, by ip(8)."""
    subprocess.run(["/usr/bin/env", "ip", *words], check=True, capture_output=True, timeout=30)


@contextmanager
def namespace() -> Iterator[None]:
    """Another network, one link away."""
    set_link("netns", "add", LINK)
    try:
        set_link("link", "add", LINK, "type", "veth", "peer", "name", "inside", "netns", LINK)
        set_link("addr", "add", f"{HERE}/30", "dev", LINK)
        set_link("link", "set", LINK, "up")
        set_link("-n", LINK, "addr", "add", f"{THERE}/30", "dev", "inside")
        set_link("-n", LINK, "link", "set", "inside", "up")
        yield
    finally:
        set_link("netns", "del", LINK)


@contextmanager
def pushed(folder: Path, seconds: float) -> Iterator[Run]:
    """Start a run on a clip of two faces that sway, with one viewer, which pushes to a server in the namespace."""
    clip, port = folder / "clip.mkv", bench.free_port()
    bench.write_clip(clip, bench.Clip(SIZE, 2), seconds)

    def server() -> subprocess.Popen[bytes]:
        python = ("/usr/bin/env", "ip", "netns", "exec", LINK, "/usr/bin/python3")
        started = subprocess.Popen([*python, SERVER, f"{THERE}:{port}", folder / "got.mkv"], stdout=subprocess.PIPE)
        assert started.stdout
        if not started.stdout.readline():  # "ready"
            sys.exit("the server did not start: sudo apt install python3-gi gir1.2-gst-rtsp-server-1.0")
        return started

    config = Config(model=DEMO_MODEL)
    with bench.running(clip, config, outputs=(f"rtsp://{THERE}:{port}/live",)) as (http, process, _):
        run = Run(process, http, server)
        try:
            run.back_s()
            yield run
        finally:
            run.server.kill()
            run.server.wait()


def measure(rounds: int) -> list[Outage]:
    """Measure each failure so many times, in turn."""
    found: list[Outage] = []
    failures = (Run.nothing_at_all, Run.server_killed, Run.viewer_stalled, Run.network_cut)
    with namespace(), tempfile.TemporaryDirectory() as folder:
        seconds = rounds * (len(failures) * (2 * WINDOW_S + 10) + CUT_S) + 60
        with pushed(Path(folder), seconds) as run:
            for failure in tqdm(failures * rounds, unit=" failures"):
                before_ms, memory = run.p99_ms(), run.memory_mb()
                with failure(run):
                    meanwhile_ms, fps = run.p99_ms(), float(run.status()["fps"])
                    grown = run.memory_mb() - memory
                name = failure.__name__.replace("_", " ")
                found.append(Outage(name, before_ms, meanwhile_ms, fps, round(run.back_s(), 1), round(grown, 1)))
    return found


def text(outages: list[Outage]) -> str:
    """Return a table in Markdown, a row for each failure: medians over rounds, and the ratios of all rounds."""
    rows = []
    for what in dict.fromkeys(outage.what for outage in outages):
        own = [outage for outage in outages if outage.what == what]
        ratios = [outage.meanwhile_ms / outage.before_ms for outage in own]
        rows.append(
            [
                *(what, f"{median(o.before_ms for o in own):.2f}", f"{median(o.meanwhile_ms for o in own):.2f}"),
                f"{median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                f"{min(o.fps for o in own):.1f}",
                *(f"{max(o.back_s for o in own):.1f}", f"{max(o.grown_mb for o in own):.0f}"),
            ]
        )
    columns = ("failure", "p99 before, ms", "p99 meanwhile, ms", "ratio", "fps, least", "back after, s", "grown, MB")
    return "\n".join(bench.table(columns, rows))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each failure (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("only root may make a network namespace: run this with sudo")
    outages = measure(options.rounds)
    print(json.dumps([asdict(outage) for outage in outages], indent=1) if options.json else text(outages))


if __name__ == "__main__":
    main()
