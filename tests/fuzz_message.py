"""Hostile messages, without end: `make fuzz`, or `python -m tests.fuzz_message --cases 1000000`.

Each case is a valid message of a frame or a status, changed at random: bits, bytes, fields, its length; now and then
bytes that never were a message. What must come of it is a value that packs to the very same bytes again, or a `Reject`,
and nothing else. The same seed gives the same cases; the number of a bad one is printed, and `--only` tries it again.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import Final

from edgesan import message
from edgesan.errors import Reject
from edgesan.message import COUNTERS, SPANS, FaceCode, Latents, Place, Silhouette, Status

BYTES: Final = (0, 1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 254, 255)
Case = Callable[[int, int], bytes]
Verdict = Callable[[bytes], str]
HEAD: Final = 36  # bytes before the faces, where a change hits more often


def frame(rng: random.Random) -> Latents:
    """A valid frame, up to the largest."""
    width, height = rng.choice(((640, 480), (1, 1), (message.MOST_SIDE, message.MOST_SIDE), (1920, 1080)))
    columns, rows = rng.choice(((0, 0), (1, 1), (20, 15), (64, 48), (255, 12)))
    bits = bytearray(rng.randbytes(-(-columns * rows // 8)))
    if columns * rows % 8:
        bits[-1] &= 0xFF << (8 - columns * rows % 8) & 0xFF
    size = rng.choice((1, 16, 64, 128))
    tracks = sorted(rng.sample(range(65536), rng.randint(0, message.most_faces(size, columns * rows))))
    faces = tuple(
        FaceCode(
            track,
            Place(rng.randrange(width), rng.randrange(height), rng.uniform(4, 300), rng.uniform(0, 6.28)),
            rng.randbytes(size),
        )
        for track in tracks
    )
    return Latents(
        rng.getrandbits(32),
        rng.getrandbits(63),
        rng.getrandbits(20),
        width,
        height,
        rng.random(),
        rng.getrandbits(32),
        faces,
        rng.getrandbits(32),
        Silhouette(columns, rows, bytes(bits)),
    )


def status(rng: random.Random) -> Status:
    """A valid status."""
    spans = tuple((rng.random(), 9 * rng.random(), 99 * rng.random()) for _ in SPANS)
    counters = tuple(rng.getrandbits(rng.choice((1, 20, 64))) for _ in COUNTERS)
    results = rng.randbytes(rng.choice((0, 1, message.MOST_RESULTS)))
    return Status(
        counters, rng.uniform(0, 1e9), 30 * rng.random(), rng.random(), spans, rng.getrandbits(32), 640, 480, results
    )


def seeds() -> list[bytes]:
    """What is changed: the same messages each time."""
    rng = random.Random(0)
    return [message.pack(frame(rng)) for _ in range(40)] + [message.pack_status(status(rng)) for _ in range(10)]


def change(rng: random.Random, content: bytes) -> bytes:
    """The message with a few things changed."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        end = min(HEAD, len(changed)) if rng.random() < 0.5 else len(changed)
        at = rng.randrange(end) if end else 0
        match rng.randrange(6):
            case 0 if changed:
                changed[at] = rng.choice(BYTES)
            case 1 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at : at + rng.choice((1, 2, 10, 74, 2048))]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 10, 74, 2048)))
            case 4:
                changed[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))
            case _:
                changed[at:at] = changed[at : at + rng.choice((10, 74))]
    return bytes(changed)


SEEDS: Final = seeds()


def case(seed: int, number: int) -> bytes:
    """The case of that number: one in sixteen is noise."""
    rng = random.Random(seed << 32 | number)
    return rng.randbytes(rng.randrange(2100)) if number % 16 == 15 else change(rng, rng.choice(SEEDS))


def verdict(content: bytes) -> str:
    """What the parser says of it; any other error than its own goes on."""
    try:
        parsed = message.parse(content)
    except Reject:
        return "refused"
    again = message.pack(parsed) if isinstance(parsed, Latents) else message.pack_status(parsed)
    assert again == content, f"{content.hex()} is {parsed}, which packs to {again.hex()}"
    return "parsed"


def run(seed: int, cases: int, case: Case = case, verdict: Verdict = verdict) -> dict[str, int]:
    """How often each verdict came."""
    started, counts = time.monotonic(), {"refused": 0, "parsed": 0}
    for number in range(cases):
        try:
            counts[verdict(case(seed, number))] += 1
        except BaseException:
            print(f"case {number} of seed {seed}:", file=sys.stderr)
            raise
        if (number + 1) % 100_000 == 0:
            print(f"{number + 1} cases, {counts}, {(number + 1) / (time.monotonic() - started):.0f}/s", flush=True)
    return counts


def main(text: str | None = __doc__, case: Case = case, verdict: Verdict = verdict) -> int:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="try this case alone")
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(verdict(case(arguments.seed, arguments.only)))
    else:
        print(run(arguments.seed, arguments.cases, case, verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main())
