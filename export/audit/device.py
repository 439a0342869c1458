"""The device's own path, as an audit walks it: frames through the runtime, and its JPEG."""

import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import message, render, sanitize
from edgesan.frames import Pixels, lend
from edgesan.model.load import Model
from export.audit.attackers import Chips

JPEG_QUALITY = 85  # the device's own


def jpeg(chips: Chips) -> Chips:
    """Each chip through the device's JPEG."""
    out = np.empty_like(chips)
    for i, chip in enumerate(chips):
        _, packet = cv2.imencode(
            ".jpg", np.ascontiguousarray(chip[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        out[i] = cv2.imdecode(packet, cv2.IMREAD_COLOR)[..., ::-1]
    return out


def shaken(chip: Chips, generator: np.random.Generator) -> Chips:
    """The chip as the next frame would give it: up to 1.5 pixels and 2 degrees off, with 2 levels of sensor noise."""
    matrix = cv2.getRotationMatrix2D((56, 56), generator.uniform(-2, 2), 1)
    matrix[:, 2] += generator.uniform(-1.5, 1.5, 2)
    moved = cv2.warpAffine(np.ascontiguousarray(chip), matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(moved + generator.normal(0, 2, chip.shape), 0, 255).astype(np.uint8)


def leave(door: sanitize.FrameSanitizer, renderer: render.Renderer, pixels: Pixels, number: int, at_ns: int) -> Pixels:
    """What a frame that was captured at a time leaves, through the message and past the wall, before it is encoded."""
    with lend(pixels, number, at_ns, at_ns) as raw:
        crossed = message.parse(message.pack(door(raw)))
    assert isinstance(crossed, message.Latents)
    return renderer(crossed).pixels


def composed(
    model: Model, chips: Chips, alpha: float
) -> Iterator[tuple[Pixels, list[runtime_faces.Track], runtime_faces.Detector]]:
    """Each chip in a frame [320, 320, 3] BGR of its own, at its own size, with its edge pixels around it, through the whole
    runtime: detect, align, encode, cross, decode, paint, JPEG. What comes out, the faces that were found raw, and the detector.
    """
    detector = runtime_faces.Detector(320)
    entropy = np.random.default_rng(5).bytes
    for chip in tqdm(chips, desc="frames", leave=False):
        picture = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), 104, 104, 104, 104, cv2.BORDER_REPLICATE)
        door = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(), alpha, 0, entropy)
        frame = leave(door, render.Renderer(model.decoder), np.asarray(picture, np.uint8), 1, time.monotonic_ns())
        _, packet = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        yield np.asarray(cv2.imdecode(packet, cv2.IMREAD_COLOR), np.uint8), door.tracker.tracks, detector


def found_again(model: Model, chips: NDArray[np.uint8], alpha: float) -> dict[str, Any]:
    """The provider's own detector on composed output frames: of the faces found raw, how many are found again.

    Landmark errors are in pixels of the chip.
    """
    found, again, errors = 0, 0, []
    for sent, tracks, detector in composed(model, chips, alpha):
        if not tracks:
            continue
        found += 1
        before = tracks[0]
        after = [f for f in detector(sent) if runtime_faces.overlap(f.box, before.box) > 0.3]
        if after:
            again += 1
            matrix = runtime_faces.alignment(before.landmarks)
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            errors.append(float(np.linalg.norm(after[0].landmarks - before.landmarks, axis=1).mean()) * scale)
    return {"found_raw": found, "found_again": again, "share": again / max(1, found),
            "landmark_error_px": float(np.median(errors)) if errors else float("nan")}  # fmt: skip
