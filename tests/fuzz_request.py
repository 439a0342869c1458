"""Hostile requests, without end: `python -m tests.fuzz_request --cases 1000000`.

As `tests.fuzz_message`, for what crosses back: valid requests, changed at random, and bytes that never were one.
"""

import random
import sys
from typing import Final

from edgesan import request
from edgesan.errors import Reject
from edgesan.request import Alpha, Privacy, Request, Zones
from edgesan.zones import MOST_POINTS, MOST_ZONES, Zone
from tests import fuzz_message


def zone(rng: random.Random) -> Zone:
    """A valid zone: a triangle, and any points."""
    more = rng.choice((0, 0, 1, 5, MOST_POINTS - 3))
    return Zone(((0.0, 0.0), (1.0, 0.25), (0.5, 1.0), *((rng.random(), rng.random()) for _ in range(more))))


def seeds() -> list[bytes]:
    """What is changed: the same requests each time."""
    rng = random.Random(0)
    made: list[Request] = [Alpha(rng.random()) for _ in range(5)] + [Privacy(on, 255) for on in (True, False)]
    made += [Zones(tuple(zone(rng) for _ in range(count))) for count in (0, 1, 1, 1, 2, 2, 5, MOST_ZONES)]
    return [request.pack(each) for each in made]


SEEDS: Final = seeds()


def case(seed: int, number: int) -> bytes:
    """The case of that number: one in sixteen is noise."""
    rng = random.Random(seed << 32 | number)
    noise = number % 16 == 15
    return rng.randbytes(rng.randrange(2200)) if noise else fuzz_message.change(rng, rng.choice(SEEDS))


def verdict(content: bytes) -> str:
    """What the parser says of it; any other error than its own goes on."""
    try:
        parsed = request.parse(content)
    except Reject:
        return "refused"
    again = request.pack(parsed)
    assert again == content, f"{content.hex()} is {parsed}, which packs to {again.hex()}"
    return "parsed"


if __name__ == "__main__":
    sys.exit(fuzz_message.main(__doc__, case, verdict))
