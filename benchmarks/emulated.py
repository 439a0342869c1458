"""What a frame takes on the processors of a Pi 4 and a Pi 5, EMULATED: `python -m benchmarks.emulated`.

Instructions and bytes are counted; nothing is timed, and no board was there. QEMU's user mode runs `benchmarks.counted`
with the arm64 Python and wheels of `benchmarks.arm64`: the clips, the noise and the clock of
`benchmarks.instructions`, and the kernels that the libraries choose on that processor. `count.c`, a plugin of QEMU,
counts the instructions of the program, and the bytes between the memory and a cache as large as the board's last one.
Not counted: what the kernel does, what a processor fetches ahead, and lines that are zeroed at a stroke (DC ZVA).

Needs `apt install gcc mmdebstrap qemu-user` of Debian 12: the plugin speaks QEMU's interface of version 1, and
qemu-user-static takes no plugins.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks import arm64, counted, instructions
from edgesan import bench

STORED: Final = Path(__file__).parent / "results" / "emulated.json"
SOURCE: Final = Path(__file__).parent / "count.c"
EMULATOR: Final = "qemu-aarch64"
SETS: Final = {"cortex-a72": 1024, "cortex-a76": 2048}
"""Of 16 lines of 64 bytes each: 1 MiB, the last cache of the Pi 4, and 2 MiB, that of the Pi 5."""
CLIPS: Final = ("0-faces", "1-faces", "2-faces", "4-faces")
MARKED: Final = re.compile(r"^(\S.*)/(\d+)\n(\d+) (\d+)$", re.MULTILINE)

Counts = dict[str, dict[str, float]]
"""By part: "millions" of instructions, and "megabytes", of a face in the network or of a frame."""


def versions() -> dict[str, str]:
    """Return what is counted there, and by what."""
    said = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout
    there = {each.name: each.version for each in metadata.distributions(path=[str(arm64.SITE)])}
    wheels = {name: there[name] for name in ("onnxruntime", "opencv-python-headless", "numpy")}
    machine = f"aarch64, emulated: {said.splitlines()[0]}"
    return {"machine": machine, "python": "3.11, Debian 12's"} | wheels | {"model": instructions.versions()["model"]}


def build(library: Path, sets: int) -> None:
    """Compile the plugin, for a cache of so many sets."""
    command = ["gcc", "-O2", "-shared", "-fPIC", f"-DMARK={counted.MARK}u", f"-DSETS={sets}"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)


def measure(processor: str, clips: Sequence[str] = CLIPS) -> Counts:
    """Count the networks and these clips on an emulated processor, one of SETS.

    Raises:
        SystemExit: the emulator failed.
    """
    with tempfile.TemporaryDirectory() as name:
        library = Path(name, "count.so")
        build(library, SETS[processor])
        instructions.prepare(Path(name), clips, networks=True)
        command = [*arm64.python(processor, EMULATOR, "-plugin", str(library)), "-m", "benchmarks.counted", name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = parse(run.stderr)
    if run.returncode or not counts["millions"]:
        raise SystemExit(f"error: {EMULATOR} ended with {run.returncode}: {run.stderr[-600:]}")
    return counts


def parse(said: str) -> Counts:
    """Return the counts that the program and the plugin wrote: the part and how often it ran, then its line."""
    millions, megabytes = defaultdict[str, float](float), defaultdict[str, float](float)
    for part, times, many, moved in MARKED.findall(said):
        millions[part] += int(many) / int(times) / 1e6
        megabytes[part] += int(moved) / int(times) / 1e6
    return {
        "millions": {part: round(count, 2) for part, count in millions.items()},
        "megabytes": {part: round(count, 3) for part, count in megabytes.items()},
    }


def text(processors: Mapping[str, Counts]) -> str:
    """Return the counts as tables."""

    def cell(processor: str, part: str) -> str:
        return f"{processors[processor]['millions'][part]:.2f} ({processors[processor]['megabytes'][part]:.1f})"

    parts = next(iter(processors.values()))["millions"]
    networks = [[name, *(cell(each, name) for each in processors)] for name in instructions.NETWORKS if name in parts]
    frames = [
        [f"{each}, {clip.replace('-', ' ')}", *(cell(each, f"{part}, {clip}") for part in instructions.PARTS)]
        for clip in instructions.CLIPS
        for each in processors
        if f"sanitize, {clip}" in parts
    ]
    head = "EMULATED, counted: million instructions (MB)"
    return "\n".join(
        [
            *bench.table((f"{head} of one face", *processors), networks),
            "",
            *bench.table((f"{head} a frame", *instructions.PARTS), frames),
        ]
    )


def load(path: Path = STORED) -> Mapping[str, Counts]:
    """Return the stored counts by processor."""
    stored: Mapping[str, Counts] = json.loads(path.read_text(encoding="utf-8"))["processors"]
    return stored


def main() -> None:
    """Print the counts, and write them where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulated", description=__doc__)
    help_ = "count frames of this clip (default: 0, 1, 2 and 4 faces); may be repeated"
    parser.add_argument("--clip", action="append", choices=instructions.CLIPS, help=help_)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    arguments = parser.parse_args()
    arm64.prepare({"gcc": "gcc", EMULATOR: "qemu-user"})
    processors = {processor: measure(processor, arguments.clip or CLIPS) for processor in SETS}
    print(text(processors))
    if arguments.json:
        stored = {"versions": versions(), "processors": processors}
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
