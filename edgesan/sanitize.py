"""The only way from a RawFrame to Latents: detect, track, align, encode, and compare with the scene.

No pixel of the frame goes further than this module: it returns places, codes that contain noise, and a bit for each
coarse cell that differs from the still. A missed face leaves nothing else.

A person does not change thirty times a second, so a track is encoded when it is new, when its pose has changed, and
otherwise a few times a second. The mean of its newest codes leaves, so that the painted face does not flicker; all of
them have the same noise, so their mean tells nothing that they would not. Each frame encodes a limited number of faces,
those that have waited longest first. In a live run, faces that are known are followed, and searched every eighth of a
second and when something is new; chips are cut where they were found, and encoded over the frames until the next
search. Where nothing differs from the still, or nothing stirs, the detector rests.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from edgesan import faces, message, noise
from edgesan.frames import SWIFT_NS, Pixels, RawFrame
from edgesan.message import PLAIN, FaceCode, Latents, Place, Silhouette
from edgesan.model.load import Encoder
from edgesan.silhouette import Silhouettes, shrink
from edgesan.zones import Zone, contain

MOST_ENCODED: Final = 2  # faces encoded in one frame
OVER: Final = 4  # frames from one search to the next, over which the chips of a search are encoded
CONFIRM_NS: Final = 120_000_000  # for which faces are only followed: every fourth frame of 30 a second is searched
MISSED_NS: Final = 300_000_000  # for which a face that is missed is searched in each frame
MEAN_OF: Final = 5  # newest codes of a face whose mean leaves: those of two seconds
YOUNG: Final = 5  # times that a face must have been found before it is followed
EARLY_NS: Final = 10_000_000  # by which a code may come before its time, as frames do
REST_NS: Final = 1_000_000_000  # for which the detector rests at most, while nothing differs from the scene or stirs
COARSE: Final = (40, 30)  # pixels of the copy in which something stirs: a face that can be found covers one of them
STIRS: Final = 6  # levels from which a pixel of it has changed
POSE: Final = 5.0  # pixels that a landmark may move on the aligned chip before the face is encoded again


@dataclass(frozen=True)
class Settings:
    """How frames are sanitized."""

    zones: tuple[Zone, ...] = ()  # no face in these is encoded
    detect_every: int = 1  # frames from one detection to the next
    refresh_ns: int = 400_000_000  # from one code of a track to its next
    most_encoded: int = MOST_ENCODED  # faces encoded in one frame
    hold_ns: int = 700_000_000  # for which a track keeps a face that is not found
    alpha: float = 0.5  # at the start; `FrameSanitizer.alpha` changes it


class Watcher:
    """Tells whether the picture is as it was when faces were searched: a coarse copy of that frame is its memory."""

    def __init__(self) -> None:
        self._before: Pixels | None = None

    def see(self, pixels: Pixels) -> None:
        """Remember a frame, uint8 [height, width, 3] in BGR."""
        self._before = shrink(pixels, COARSE)

    def __call__(self, pixels: Pixels) -> bool:
        """Return whether a frame is like the one that was seen, but for the camera's noise."""
        return self._before is not None and int(cv2.absdiff(shrink(pixels, COARSE), self._before).max()) < STIRS


class FrameSanitizer:
    """Turns raw frames into latents, one at a time. The tracks are its only memory."""

    def __init__(  # noqa: PLR0913, PLR0917 - its parts, each of which a test may replace
        self,
        encoder: Encoder,
        detector: faces.Detector,
        settings: Settings,
        entropy: noise.EntropySource = os.urandom,
        clock: Callable[[], int] = time.monotonic_ns,
        silhouettes: Silhouettes | None = None,
    ) -> None:
        self.encoder, self.settings, self.silhouettes = encoder, settings, silhouettes
        self._alpha = message.grid_alpha(settings.alpha)
        self._detector, self._clock = detector, clock
        self.tracker = faces.Tracker(settings.hold_ns, lambda: noise.draw(encoder.noise_dimensions, entropy))
        self._follower, self._watcher = faces.Follower(), Watcher()
        self._frames = 0
        self._detected_ns = 0  # when faces were searched last
        self.encoded = 0  # faces of the newest frame that were encoded
        self._late: list[faces.Track] = []  # whose chips `catch_up` is to cut
        self._waiting: list[tuple[faces.Track, Pixels]] = []  # chips that it is to encode
        self._turned = False  # whether alpha has changed since the newest frame
        self._before_ns = -SWIFT_NS  # when the newest frame was captured
        self.spans_ns: tuple[int, ...] = (0,) * len(message.SPANS)
        """How long the newest frame took in each of `message.SPANS`."""

    @property
    def alpha(self) -> float:
        """The privacy dial, rounded as the message rounds it."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        """Change it. Codes that were made with another alpha do not leave any more."""
        if message.grid_alpha(alpha) != self._alpha:
            self._alpha, self._turned = message.grid_alpha(alpha), True
            self._waiting = []
            for track in self.tracker.tracks:
                track.code, track.codes, track.cut_ns = b"", [], None

    def draw(self, zones: tuple[Zone, ...]) -> None:
        """Let neither a face nor a bit of these zones leave, from the next frame on."""
        self.settings = replace(self.settings, zones=zones)
        for track, _ in self._waiting:  # a face among them may lie in a zone now
            track.cut_ns = None
        self._waiting = []
        if self.silhouettes:
            self.silhouettes.draw(zones)

    def forget(self) -> None:
        """Forget all faces: the next frame has nothing to do with the ones before."""
        self.tracker.tracks, self._late, self._waiting, self._frames = [], [], [], 0
        self._follower.forget()
        if self.silhouettes:
            self.silhouettes.forget()

    def __call__(self, raw: RawFrame, *, late: bool = False) -> Latents:
        """Sanitize one frame.

        Args:
            raw: the frame, on loan.
            late: if frames follow each other fast, let `catch_up` encode what is due after this frame has left; the
                next frame brings the codes. So no frame waits for the network, however many faces it has.

        Raises:
            ModelError: the encoder could not be run.
        """
        stamps = [raw.received_ns]
        height, width = raw.pixels.shape[:2]
        cells = self.silhouettes(raw.pixels, raw.captured_ns) if self.silhouettes else None
        late = late and not self._turned and raw.captured_ns - self._before_ns <= SWIFT_NS
        if self._searches(raw, swift=late):
            self.tracker.update(self._detector(raw.pixels), raw.captured_ns)
            self._detected_ns = raw.captured_ns
            if late and not self.tracker.tracks:
                self._watcher.see(raw.pixels)
        else:
            self.tracker.expire(raw.captured_ns)
        self._frames += 1
        stamps.append(self._clock())

        placed = self._placed(width, height)
        due = self._due(list(placed), raw.captured_ns)
        self._late = due[: OVER * self.settings.most_encoded - len(self._waiting)] if late else []
        self._turned, self._before_ns = False, raw.captured_ns
        stamps.append(self._clock())

        self.encoded = 0 if late else self._encode(self._cut(raw, due[: self.settings.most_encoded]))
        stamps.append(self._clock())

        self.spans_ns = (
            max(0, raw.received_ns - raw.captured_ns),
            *(b - a for a, b in pairwise(stamps)),
            stamps[-1] - stamps[0],
        )
        age_us = min(max(0, stamps[-1] - raw.captured_ns) // 1000, 2**32 - 1)
        ready = sorted((track for track in placed if track.code), key=lambda track: track.number)
        codes = tuple(FaceCode(track.number, placed[track], track.code) for track in ready)
        scene = self.silhouettes.still.id if self.silhouettes and cells else PLAIN
        return Latents(
            *(raw.number, raw.captured_ns, age_us, width, height, self._alpha, self.encoder.id, codes),
            *(scene, cells or Silhouette()),
        )

    def _searches(self, raw: RawFrame, *, swift: bool) -> bool:
        """Return whether to search for faces in this frame; if not, move the tracks with their faces.

        While nothing is new, faces are followed. A chip is cut only where its face was found in the same frame, so
        codes do not depend on how it was followed.
        """
        now_ns, tracks = raw.captured_ns, self.tracker.tracks
        if self._frames % self.settings.detect_every != 0 or self._rests(raw, swift=swift):
            return False
        confirmed = 0 <= now_ns - self._detected_ns < CONFIRM_NS
        settled = all(
            track.found >= YOUNG
            and track.code
            and (track.seen_ns == self._detected_ns or now_ns - track.seen_ns >= MISSED_NS)
            for track in tracks
        )
        if not (swift and tracks and confirmed and settled):
            if swift and tracks:
                self._follower.see(raw.pixels)
            else:
                self._follower.forget()  # nobody follows from here
            return True
        return not self._follower(raw.pixels, tracks)

    def _rests(self, raw: RawFrame, *, swift: bool) -> bool:
        """Return whether no face can be new: none is followed, and nothing differs from the scene or has stirred."""
        if self.tracker.tracks or not 0 <= raw.captured_ns - self._detected_ns < REST_NS:
            return False
        return bool(self.silhouettes and self.silhouettes.quiet) or (swift and self._watcher(raw.pixels))

    def catch_up(self, raw: RawFrame) -> None:
        """Encode what `late` has put off, some of it in each frame: the next one brings these codes.

        Raises:
            ModelError: the encoder could not be run.
        """
        began_ns = self._clock()
        living = [each for each in self._waiting + self._cut(raw, self._late) if each[0] in self.tracker.tracks]
        living.sort(key=lambda each: bool(each[0].code))
        most = self.settings.most_encoded
        self._late, self._waiting = [], living[most:]
        self.encoded += self._encode(living[:most])
        capture, detect, align, encode, whole = self.spans_ns
        self.spans_ns = (capture, detect, align, encode + self._clock() - began_ns, whole)

    @staticmethod
    def _cut(raw: RawFrame, tracks: list[faces.Track]) -> list[tuple[faces.Track, Pixels]]:
        """Cut the chips of tracks out of a frame."""
        for track in tracks:
            track.cut_ns, track.pose = raw.captured_ns, faces.pose(track.landmarks)
        return [(track, faces.cut(raw.pixels, faces.alignment(track.landmarks))) for track in tracks]

    def _encode(self, cut: list[tuple[faces.Track, Pixels]]) -> int:
        """Give each track the mean of its newest codes, with that of its chip; return how many chips there were."""
        if cut:
            tracks, chips = zip(*cut, strict=True)
            codes = self.encoder.encode(np.stack(chips), np.stack([track.noise for track in tracks]), self._alpha)
            for track, code in zip(tracks, codes, strict=True):
                track.codes = [*track.codes, code][-MEAN_OF:]
                track.code = self.encoder.mean(track.codes)
        return len(cut)

    def _placed(self, width: int, height: int) -> dict[faces.Track, Place]:
        """Return the tracks that may leave, and their places: the largest with a centre in the picture and no zone."""
        places = {track: faces.place(track.landmarks) for track in self.tracker.tracks if faces.spread(track.landmarks)}
        inside = {
            track: place
            for track, place in places.items()
            if message.fits(place, width, height)
            and not contain(self.settings.zones, place.x / width, place.y / height)
        }
        largest = sorted(inside, key=lambda track: inside[track].side, reverse=True)
        cells = self.silhouettes.cells if self.silhouettes else 0
        return {track: inside[track] for track in largest[: message.most_faces(self.encoder.code_bytes, cells)]}

    def _due(self, tracks: list[faces.Track], now_ns: int) -> list[faces.Track]:
        """Return the tracks to encode, of those that were found in this frame.

        Those without a code come first, then those that waited longest.
        """
        wait_ns = self.settings.refresh_ns - EARLY_NS
        found = [track for track in tracks if track.seen_ns == now_ns]
        due = [track for track in found if track.cut_ns is None or now_ns - track.cut_ns >= wait_ns or _turned(track)]
        due.sort(key=lambda track: (bool(track.code), track.cut_ns or 0))
        return due


def _turned(track: faces.Track) -> bool:
    """Return whether the pose has changed since the chip of a track was cut."""
    return max(abs(now - then) for now, then in zip(faces.pose(track.landmarks), track.pose, strict=True)) > POSE
