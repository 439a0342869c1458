"""What the scene costs: `python -m benchmarks.scene`. Processor time a frame, in ms, without a scene and with one.

The same frames go through both chains in turn, 30 at a time, so that a busy machine slows both alike. The faces sway,
so that each look finds other cells. Left out is what the camera's driver and the server take.
"""

import time
from dataclasses import dataclass, field
from statistics import mean
from typing import Final

import cv2

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
        return cls(sanitizer, Renderer(model.decoder, (), still, fades=True))

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


def measure(model: Model, count: int) -> dict[str, Chain]:
    """Pass frames of so many faces through both chains."""
    pictures, still = bench.draw(bench.Clip(SIZE, count)), Still(bench.draw(bench.Clip(SIZE, 0))[0], 1)
    chains = {"plain": Chain.of(model, None), "scene": Chain.of(model, still)}
    for turn in range(ROUNDS):
        for chain in chains.values():
            for number in range(turn * 30, turn * 30 + 30):
                chain.frame(pictures[number % len(pictures)], number)
    return chains


def main() -> None:
    """Measure one face and two, and print a table."""
    cv2.setNumThreads(1)
    model = load_model(DEMO_MODEL)
    print(
        "| faces | " + " | ".join(f"{stage}: plain / scene" for stage in STAGES) + " | together: plain / scene | more |"
    )
    print("|---" * 6 + "|")
    for count in (1, 2):
        chains = measure(model, count)
        ms = {name: [1000 * mean(chain.took[stage][30:]) for stage in STAGES] for name, chain in chains.items()}
        cells = [f"{a:.2f} / {b:.2f}" for a, b in zip(ms["plain"], ms["scene"], strict=True)]
        plain, scene = sum(ms["plain"]), sum(ms["scene"])
        print(
            f"| {count} | " + " | ".join(cells) + f" | {plain:.2f} / {scene:.2f} | {100 * (scene / plain - 1):.0f} % |"
        )


if __name__ == "__main__":
    main()
