"""What a viewer gets from the device: frames through the whole runtime, pictures through its JPEG."""

import time
from collections.abc import Iterator, Sequence
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
from edgesan.transmit.jpeg import JPEG_QUALITY
from export.audit.attackers import Chips
from export.audit.cells import Cell, Store
from export.audit.mechanisms import Mechanism
from export.audit.report import FoundAgain

MARGIN = 104  # pixels around a chip in a frame of its own: 320 in all
SAME_FACE = 0.3  # overlap of two boxes


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

    packet: NDArray[np.uint8]
    sent: Pixels  # [320, 320, 3] BGR
    tracks: list[runtime_faces.Track]
    detector: runtime_faces.Detector


def framed(chip: Chips) -> Pixels:
    """Return a chip in the middle of a frame of its own [320, 320, 3] BGR.

    Around the chip its edge pixels are repeated: what lies beyond is not in the data.
    """
    margins = (MARGIN, MARGIN, MARGIN, MARGIN)
    picture = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), *margins, cv2.BORDER_REPLICATE)
    return np.asarray(picture, np.uint8)


def composed(model: Model, chips: Chips, alpha: float, seed: int = 5) -> Iterator[Output]:
    """Send each chip through the whole runtime, in a frame of its own, at its own size."""
    detector = runtime_faces.Detector(320)
    entropy = np.random.default_rng(seed).bytes
    for chip in tqdm(chips, desc="frames", leave=False):
        sanitizer = sanitize.FrameSanitizer(model.encoder, detector, sanitize.Settings(alpha=alpha, hold_ns=0), entropy)
        renderer = render.Renderer(model.decoder)
        frame = leave(sanitizer, renderer, framed(chip), 1, time.monotonic_ns())
        packet = encode(frame)
        yield Output(packet, decode(packet), sanitizer.tracker.tracks, detector)


@dataclass(frozen=True)
class Seen:
    """What a provider makes of N frames of the device: it finds the largest face, and cuts it out."""

    chips: Chips  # [N, 112, 112, 3] RGB
    found: NDArray[np.bool_]  # [N]; where it is false, the chip is black
    camera: NDArray[np.bool_]  # [N]: the device itself found the face
    off_px: NDArray[np.float64]  # [N]: error of the landmarks in pixels of the chip; NaN: not found where it was


def sending_frames(store: Store, model: Model, raw: Labelled, alpha: float, seed: int, *depends: object) -> Cell:
    """Return the cell of the frames that are sent of these chips, and of where a provider finds faces in them."""

    def make(half: Path) -> None:
        packets, where, camera, off = [], [], [], []
        for out in composed(model, raw.chips, alpha, seed):
            packets.append(out.packet)
            faces = out.detector(out.sent)
            largest = max(faces, key=lambda face: float(face.box[2] * face.box[3])) if faces else None
            where.append(np.full((2, 3), np.nan) if largest is None else runtime_faces.alignment(largest.landmarks))
            camera.append(bool(out.tracks))
            off.append(landmark_error(out.tracks[0], largest) if out.tracks and largest else np.nan)
        np.savez(
            half,
            bytes=np.concatenate(packets),
            sizes=np.array([len(p) for p in packets]),
            where=np.array(where),
            camera=np.array(camera),
            off=np.array(off),
        )

    return store.file(f"{raw.name} frames draw {seed}", "npz", make, *depends)


def landmark_error(before: runtime_faces.Track, after: runtime_faces.Face) -> float:
    """Return how far the landmarks of a face moved, in pixels of the chip; NaN where it is not the same face."""
    if runtime_faces.overlap(after.box, before.box) <= SAME_FACE:
        return float("nan")
    matrix = runtime_faces.alignment(before.landmarks)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    return float(np.linalg.norm(after.landmarks - before.landmarks, axis=1).mean()) * scale


def seen(cell: Cell) -> Seen:
    """Return what a provider makes of the frames of a cell of `sending_frames`."""
    cell.finish()
    with np.load(cell.path) as stored:
        packets = np.split(stored["bytes"], np.cumsum(stored["sizes"])[:-1])
        where, camera, off = stored["where"], stored["camera"], stored["off"]
    found = np.isfinite(where[:, 0, 0])
    chips = np.zeros((len(packets), 112, 112, 3), np.uint8)
    for i in np.flatnonzero(found):
        chips[i] = runtime_faces.cut(decode(packets[i]), where[i])
    return Seen(chips, found, camera, off)


def unsanitized(chips: Chips) -> Chips:
    """Return raw chips as a provider would cut them out of frames that nobody sanitized, after the same JPEG."""
    detector, cuts = runtime_faces.Detector(320), []
    for chip in chips:
        sent = decode(encode(framed(chip)))
        faces = detector(sent)
        if faces:
            largest = max(faces, key=lambda face: float(face.box[2] * face.box[3]))
            cuts.append(runtime_faces.cut(sent, runtime_faces.alignment(largest.landmarks)))
    return np.stack(cuts)


def found_again(model: Model, chips: Chips, alpha: float) -> FoundAgain:
    """Run the provider's own detector on output frames: of the faces found raw, how many does it find again?"""
    found, errors = 0, []
    for out in composed(model, chips, alpha):
        if out.tracks:
            found += 1
            offs = [landmark_error(out.tracks[0], face) for face in out.detector(out.sent)]
            errors += [off for off in offs if np.isfinite(off)][:1]
    return again(found, errors)


def again(found: int, errors: Sequence[float]) -> FoundAgain:
    """Return how many of the faces found raw were found again, by the landmark errors of those that were."""
    return FoundAgain(
        found_raw=found,
        found_again=len(errors),
        share=len(errors) / max(1, found),
        landmark_error_px=float(np.median(errors)) if len(errors) else float("nan"),
    )
