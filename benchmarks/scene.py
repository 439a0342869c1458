"""What the scene costs: `python -m benchmarks.scene`. Processor time a frame, in ms, without a scene and with one.

The same frames go through both chains in turn, BLOCK at a time, so that a busy machine slows both alike. The faces
sway, so that each look finds other cells. Left out is what the camera's driver and the server take.
"""

import time
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from edgesan import bench, faces, message, sanitize
from edgesan.config import DEMO_MODEL
from edgesan.frames import Pixels, lend
from edgesan.message import Latents
from edgesan.model.load import Model, load_model
from edgesan.render import Renderer
from edgesan.scene import Still
from edgesan.silhouette import Silhouettes

SIZE: Final = (1280, 720)
FRAME_NS: Final = 33_333_333
BLOCK: Final = 30
ROUNDS: Final = 20  # the first one is not counted
STAGES: Final = ("sanitize", "render", "JPEG")


@dataclass
class Chain:
    """Both sides of the wall, and how long each stage took in each frame, in s."""

    sanitizer: sanitize.FrameSanitizer
    renderer: Renderer
    took: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    @classmethod
    def of(cls, model: Model, still: Still | None) -> "Chain":
        """Return a chain with a scene, or without one."""
        silhouettes = Silhouettes(still) if still else None
        sanitizer = sanitize.FrameSanitizer(
            model.encoder, faces.Detector(320), sanitize.Settings(), silhouettes=silhouettes
        )
        return cls(sanitizer, Renderer(model.decoder, (), still, streams=True))

    def frame(self, pixels: Pixels, number: int) -> None:
        """Pass a frame through, as the two processes do."""
        now_ns, stamps = 10**12 + number * FRAME_NS, [time.thread_time()]
        with lend(pixels, number, now_ns, now_ns) as raw:
            latents = self.sanitizer(raw, late=True)
            crossed = message.parse(message.pack(latents))
            self.sanitizer.catch_up(raw)
        stamps.append(time.thread_time())
        assert isinstance(crossed, Latents)
        shown = self.renderer(crossed, late=True)
        self.renderer.catch_up()
        stamps.append(time.thread_time())
        bench.jpeg(shown.pixels)
        stamps.append(time.thread_time())
        for stage, began, ended in zip(STAGES, stamps, stamps[1:], strict=False):
            self.took[stage].append(ended - began)


def measure(model: Model, count: int, rounds: int = ROUNDS) -> dict[str, Chain]:
    """Pass frames of so many faces through both chains, BLOCK in each round."""
    pictures, still = bench.draw(bench.Clip(SIZE, count)), Still(bench.draw(bench.Clip(SIZE, 0))[0], 1)
    chains = {"plain": Chain.of(model, None), "scene": Chain.of(model, still)}
    for turn in range(rounds):
        for chain in chains.values():
            for number in range(turn * BLOCK, (turn + 1) * BLOCK):
                chain.frame(pictures[number % len(pictures)], number)
    return chains


def means(chain: Chain) -> dict[str, float]:
    """Return the ms that each stage takes: the median over rounds of its mean, without the first round."""
    rounds = {stage: np.reshape(taken, (-1, BLOCK))[1:] for stage, taken in chain.took.items()}
    return {stage: 1000 * float(np.median(taken.mean(1))) for stage, taken in rounds.items()}


def share(chains: dict[str, Chain]) -> float:
    """Return what the scene adds to a frame, as a share of the frame without it: the median over rounds."""
    plain, scene = (
        sum(np.reshape(taken, (-1, BLOCK))[1:].mean(1) for taken in chains[name].took.values())
        for name in ("plain", "scene")
    )
    return float(np.median(scene / plain)) - 1


def main() -> None:
    """Measure one face and two, and print a table."""
    cv2.setNumThreads(1)
    model = load_model(DEMO_MODEL)
    stages = [f"{stage}: plain / scene" for stage in STAGES]
    rows = []
    for count in (1, 2):
        chains = measure(model, count)
        ms = {name: means(chain) for name, chain in chains.items()}
        cells = [f"{ms['plain'][stage]:.2f} / {ms['scene'][stage]:.2f}" for stage in STAGES]
        together = f"{sum(ms['plain'].values()):.2f} / {sum(ms['scene'].values()):.2f}"
        rows.append((count, *cells, together, f"{share(chains):.0%}"))
    print(*bench.table(("faces", *stages, "together: plain / scene", "more"), rows), sep="\n")


if __name__ == "__main__":
    main()
