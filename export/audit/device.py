"""What a viewer gets from the device: frames through the whole runtime, pictures through its JPEG."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import message, render, sanitize
from edgesan.frames import Pixels, lend
from edgesan.model.load import Model
from edgesan.transmit.http import JPEG_QUALITY
from export.audit.attackers import Chips
from export.audit.cells import Cell, Store
from export.audit.mechanisms import Mechanism
from export.audit.report import FoundAgain

MARGIN = 104  # pixels around a chip in a frame of its own: 320 in all


def encode(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the device's JPEG of a picture, BGR."""
    _, packet = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(packet, np.uint8)


def decode(packet: NDArray[np.uint8]) -> Pixels:
    """Return the picture of a JPEG, BGR."""
    return np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8)


def shrunk(picture: Pixels) -> Chips:
    """Return a picture in the size of a chip."""
    return np.asarray(cv2.resize(picture, (112, 112), interpolation=cv2.INTER_AREA), np.uint8)


def encode_chip(chip: Chips) -> NDArray[np.uint8]:
    """Return the device's JPEG of a chip [112, 112, 3] RGB."""
    return encode(np.ascontiguousarray(chip[..., ::-1]))


def jpeg(chips: Chips) -> Chips:
    """Return each chip as it is after the device's JPEG."""
    return np.stack([decode(encode_chip(chip))[..., ::-1] for chip in chips])


@dataclass(frozen=True)
class Labelled:
    """N chips with their truth, under a name."""

    name: str
    chips: Chips
    truth: NDArray[np.bool_]


def sending(store: Store, m: Mechanism, raw: Labelled, draw: int) -> Cell:
    """Return the cell of the packets that are sent of these chips."""

    def make(half: Path) -> None:
        packets = [encode_chip(chip) for chip in m.apply(raw.chips, raw.truth, draw)]
        np.savez(half, bytes=np.concatenate(packets), sizes=np.array([len(p) for p in packets]))

    return store.file(f"{raw.name} draw {draw}", "npz", make, m.identity)


def received(store: Store, m: Mechanism, raw: Labelled, draw: int) -> Chips:
    """Return what a viewer gets of each chip; kept as the packets that were sent."""
    cell = sending(store, m, raw, draw)
    cell.finish()
    with np.load(cell.path) as stored:
        packets = np.split(stored["bytes"], np.cumsum(stored["sizes"])[:-1])
    return np.stack([decode(packet)[..., ::-1] for packet in packets])


def shaken(chip: Chips, generator: np.random.Generator) -> Chips:
    """Return the chip as the next frame would give it: up to 1.5 pixels and 2 degrees off, 2 levels of sensor noise."""
    matrix = cv2.getRotationMatrix2D((56, 56), generator.uniform(-2, 2), 1)
    matrix[:, 2] = matrix[:, 2] + generator.uniform(-1.5, 1.5, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(chip), matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(moved + generator.normal(0, 2, chip.shape), 0, 255).astype(np.uint8)


def leave(
    sanitizer: sanitize.FrameSanitizer, renderer: render.Renderer, pixels: Pixels, number: int, at_ns: int
) -> Pixels:
    """Return what leaves of a frame, as it is before the JPEG: sanitized, sent as a message, and rendered."""
    with lend(pixels, number, at_ns, at_ns) as raw:
        crossed = message.parse(message.pack(sanitizer(raw)))
    assert isinstance(crossed, message.Latents)
    return renderer(crossed).pixels


@dataclass(frozen=True)
class Output:
    """A frame that left, and what was found in the raw one."""

    sent: Pixels  # [320, 320, 3] BGR
    tracks: list[runtime_faces.Track]
    detector: runtime_faces.Detector


def composed(model: Model, chips: Chips, alpha: float, seed: int = 5) -> Iterator[Output]:
    """Send each chip through the whole runtime, in a frame of its own, at its own size.

    Around the chip its edge pixels are repeated: what lies beyond is not in the data.
    """
    detector = runtime_faces.Detector(320)
    entropy = np.random.default_rng(seed).bytes
    for chip in tqdm(chips, desc="frames", leave=False):
        margins = (MARGIN, MARGIN, MARGIN, MARGIN)
        picture = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), *margins, cv2.BORDER_REPLICATE)
        sanitizer = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(alpha=alpha, hold_ns=0), entropy)
        renderer = render.Renderer(model.decoder)
        frame = leave(sanitizer, renderer, np.asarray(picture, np.uint8), 1, time.monotonic_ns())
        yield Output(decode(encode(frame)), sanitizer.tracker.tracks, detector)


def found_again(model: Model, chips: Chips, alpha: float) -> FoundAgain:
    """Run the provider's own detector on output frames: of the faces found raw, how many does it find again?"""
    found, again, errors = 0, 0, []
    for out in composed(model, chips, alpha):
        if not out.tracks:
            continue
        found += 1
        before = out.tracks[0]
        after = [f for f in out.detector(out.sent) if runtime_faces.overlap(f.box, before.box) > 0.3]
        if after:
            again += 1
            matrix = runtime_faces.alignment(before.landmarks)
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            errors.append(float(np.linalg.norm(after[0].landmarks - before.landmarks, axis=1).mean()) * scale)
    return FoundAgain(
        found_raw=found,
        found_again=again,
        share=again / max(1, found),
        landmark_error_px=float(np.median(errors)) if errors else float("nan"),
    )
