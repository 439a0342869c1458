"""From Latents to a SanitizedFrame: decode the codes that changed, and paint the faces on a canvas.

The canvas is a flat colour, or the still with silhouettes, and holds no live pixel. Faces are ovals whose edges fade
into it. Places are smoothed over time, so that a face that stands still does not jitter with the detector; in a stream
faces fade in and out.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.canvas import CLEAR, Canvas, lay
from edgesan.errors import Reject
from edgesan.faces import CHIP
from edgesan.frames import SWIFT_NS, Pixels, SanitizedFrame, Stamps
from edgesan.message import MOST_FACES, MOST_SIDE, FaceCode, Latents, Place
from edgesan.model.load import Decoder
from edgesan.scene import Still
from edgesan.zones import Zone, mask

FEATHER: Final = 8.0  # pixels over which a chip fades into the canvas
OVAL: Final = (55.0, 62.0)  # half axes of the painted part of a chip, in pixels; the chip's edge cuts it off
# One-euro filter (Casiez, Roussel and Vogel, CHI 2012): a slow movement is smoothed at 1.5 Hz, a fast one hardly at
# all.
LEAST_CUTOFF_HZ: Final = 1.5
SPEED_CUTOFF: Final = 4.0  # Hz for each face width a second
SPEED_FILTER_HZ: Final = 2.0
FADE_NS: Final = 300_000_000  # in which a face appears, and disappears
AT_FIRST: Final = 0.1  # opacity of a face that appears, in its first frame
JUMP: Final = 1.0  # face widths in one step: more is another place, not a movement


def _opacity() -> Pixels:
    """Return the opacity of a chip, uint8 [112, 112, 4], equal in all channels: 255 inside, 0 at the edge."""
    at = np.arange(CHIP) - (CHIP - 1) / 2
    radius = np.hypot(at[None] / OVAL[0], at[:, None] / OVAL[1])
    oval = np.clip((1 - radius) * OVAL[0] / FEATHER, 0, 1)
    ramp = np.clip((np.arange(CHIP) + 0.5) / FEATHER, 0, 1)
    edge = np.minimum(ramp, ramp[::-1])
    opacity = np.minimum(oval, np.minimum.outer(edge, edge))
    return np.repeat(opacity[..., None] * 255, 4, 2).round().astype(np.uint8)


OPACITY: Final = _opacity()
Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels."""
EVERYWHERE: Final = (0, 0, MOST_SIDE, MOST_SIDE)
NOTHING: Final = np.full((CHIP, CHIP, 4), CLEAR, np.uint8)


class Smoother:
    """Smooths a place over time: a one-euro filter of centre, logarithm of the side, and roll."""

    def __init__(self) -> None:
        self._at_ns = 0
        self._state: tuple[float, ...] = ()
        self._speed: tuple[float, ...] = (0.0,) * 4

    def __call__(self, place: Place, now_ns: int) -> Place:
        """Return the smoothed place at a time in ns, which must rise. A jump is not smoothed."""
        given = (place.x, place.y, math.log(place.side), place.roll)
        before, seconds = self._state, (now_ns - self._at_ns) / 1e9
        self._at_ns = now_ns
        if not before or seconds <= 0:
            self._state = given
            return place
        # In face widths, so that a near face is smoothed like a far one; a radian counts as half a width.
        turn = (given[3] - before[3] + math.pi) % math.tau - math.pi  # the shorter way round
        units = (place.side, place.side, 1.0, 2.0)
        ways = (given[0] - before[0], given[1] - before[1], given[2] - before[2], turn)
        steps = [way / unit for way, unit in zip(ways, units, strict=True)]
        if max(map(abs, steps)) > JUMP:
            self._state, self._speed = given, (0.0,) * 4
            return place
        share = _share(SPEED_FILTER_HZ, seconds)
        self._speed = tuple(v + share * (step / seconds - v) for v, step in zip(self._speed, steps, strict=True))
        share = _share(LEAST_CUTOFF_HZ + SPEED_CUTOFF * max(map(abs, self._speed)), seconds)
        x, y, log_side, roll = self._state = tuple(v + share * way for v, way in zip(before, ways, strict=True))
        return Place(x, y, math.exp(log_side), roll % math.tau)


def _share(cutoff_hz: float, seconds: float) -> float:
    """Return the share of a step that a first-order low pass follows in so many seconds."""
    return 1 / (1 + 1 / (math.tau * cutoff_hz * seconds))


@dataclass
class Painted:
    """A track as it is painted: its code, the decoded chip (from `fade`), and the smoother of its place."""

    code: bytes
    chip: Pixels
    smoother: Smoother


@dataclass
class Shown:
    """A face as the newest frame shows it, or an earlier one did: it fades out from there."""

    track: int
    chip: Pixels
    place: Place
    opacity: float
    at_ns: int


class Renderer:
    """Paints frames from latents and the still alone. The chips of the tracks are its only memory."""

    def __init__(
        self,
        decoder: Decoder,
        zones: Sequence[Zone] = (),
        still: Still | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        streams: bool = False,
    ) -> None:
        """Make a renderer of one stream.

        Args:
            decoder: the model's second half.
            zones: parts of the picture that stay black.
            still: the scene that frames may name.
            clock: CLOCK_MONOTONIC in ns.
            streams: whether faces fade in and out, where frames follow each other fast; and whether the pixels of a
                frame hold only until the next one is painted, so that only what changes need be.
        """
        self.decoder, self.zones, self._clock, self._streams = decoder, tuple(zones), clock, streams
        self._open: tuple[tuple[Zone, ...], Pixels] | None = None  # what lies in no zone, 255 there
        self._canvas = Canvas(still)
        self._picture = self._view = np.zeros((0, 0, 3), np.uint8)  # the newest frame of a stream
        self._under: tuple[Pixels, tuple[Zone, ...]] | None = None  # the canvas on which it was painted, and the zones
        self._boxes: list[Box] = []  # where its faces lie
        self._painted: dict[int, Painted] = {}
        self._born_ns: dict[int, int] = {}  # when each track was there first
        self._shown: list[Shown] = []  # in the newest frame, and those that fade out
        self._late: list[FaceCode] = []  # to be decoded by `catch_up`
        self._alpha, self._at_ns = -1.0, 0  # of the newest frame
        self.decoded = 0  # codes of the newest frame that were decoded
        self.news: list[tuple[int, Pixels]] = []  # their tracks and chips, uint8 [112, 112, 3] in BGR
        self.decode_ns = self.paint_ns = 0  # durations of the newest frame

    def __call__(self, latents: Latents, canvas: Pixels | None = None, *, late: bool = False) -> SanitizedFrame:
        """Paint a frame.

        Args:
            latents: what `message.parse` returned.
            canvas: uint8 [height, width, 3] in BGR to paint on, instead of the flat colour; it is changed. Only
                `edgesan.files` gives one, for `background = "keep"`.
            late: if frames follow each other fast, let `catch_up` decode the new codes after this frame has left; the
                next frame shows them.

        Raises:
            Reject: the codes are of another model, or the scene is not known here.
            ModelError: the decoder could not be run.
        """
        if latents.model != self.decoder.id:
            raise Reject(
                "model", f"the codes are of the model {latents.model:08x}, but {self.decoder.id:08x} runs here"
            )
        if latents.scene and not (self._canvas.still and self._canvas.still.id == latents.scene):
            raise Reject("scene", f"the frame names the scene {latents.scene:08x}, which is not known here")
        if any(len(face.code) != self.decoder.code_bytes for face in latents.faces):
            raise Reject("code", f"a code has another length than the model's {self.decoder.code_bytes} bytes")
        turned, before_ns = latents.alpha != self._alpha, self._at_ns
        self._alpha, self._at_ns = latents.alpha, latents.captured_ns
        known = {face.track: self._painted.get(face.track) for face in latents.faces}
        self._painted = {track: painted for track, painted in known.items() if painted}  # forget tracks that ended
        codes = {track: painted.code for track, painted in self._painted.items()}
        news = [face for face in latents.faces if turned or codes.get(face.track) != face.code]
        swift = not turned and latents.captured_ns - before_ns <= SWIFT_NS
        late = late and swift
        self._late = news if late else []
        self.decoded, self.decode_ns, self.news = 0, 0, []
        self._decode([] if late else news)
        began_ns = self._clock()
        self._shown = [*self._fading(latents, swift=swift), *self._living(latents, swift=swift)]
        if canvas is None:
            faces = {each.track: each.place for each in self._shown}
            under = self._canvas((latents.width, latents.height), latents.scene, latents.silhouette, faces)
            canvas = self._again(under) if self._streams else self._paint(under.copy())
        else:
            self._paint(canvas)
        self.paint_ns = self._clock() - began_ns
        return SanitizedFrame._create(canvas, Stamps(latents.number, latents.captured_ns, len(latents.faces)))

    def _paint(self, canvas: Pixels) -> Pixels:
        """Paint the faces and the zones on a canvas, and return it."""
        for each in self._shown:
            paint(canvas, each.chip, each.place, each.opacity)
        self._blacken(canvas)
        return canvas

    def _again(self, under: Pixels) -> Pixels:
        """Paint the picture of a stream again, where it changes.

        Args:
            under: the canvas; the same array as for the frame before, if nothing in it has changed.

        Returns:
            The same view as for the frame before, if nothing in the picture has changed; else another one.
        """
        new = self._under is None or under is not self._under[0] or self.zones != self._under[1]
        if not (new or self._boxes or self._shown):
            return self._view
        if self._picture.shape != under.shape:
            self._picture = np.empty_like(under)
        for left, top, right, bottom in [EVERYWHERE] if new else self._boxes:
            self._picture[top:bottom, left:right] = under[top:bottom, left:right]
        size = (under.shape[1], under.shape[0])
        self._under, self._boxes = (under, self.zones), [box(each.place, size) for each in self._shown]
        self._view = self._paint(self._picture).view()
        return self._view

    def _living(self, latents: Latents, *, swift: bool) -> list[Shown]:
        """Return the faces of a frame whose chips are there, each at its smoothed place."""
        now_ns = latents.captured_ns
        first_ns = now_ns if self._streams and swift else now_ns - FADE_NS
        self._born_ns = {face.track: self._born_ns.get(face.track, first_ns) for face in latents.faces}
        living = []
        for face in latents.faces:
            painted = self._painted.get(face.track)
            if painted:
                opacity = min(1.0, AT_FIRST + (now_ns - self._born_ns[face.track]) / FADE_NS)
                place = painted.smoother(face.place, now_ns)
                living.append(Shown(face.track, painted.chip, place, opacity, now_ns))
        return living

    def _fading(self, latents: Latents, *, swift: bool) -> list[Shown]:
        """Return the faces whose tracks have ended, and which are not gone yet. Their chips were painted before."""
        if not (self._streams and swift):
            return []
        tracks = {face.track for face in latents.faces}
        fading = []
        for each in self._shown:
            opacity = each.opacity - (latents.captured_ns - each.at_ns) / FADE_NS
            if each.track not in tracks and opacity > 0:
                fading.append(Shown(each.track, each.chip, each.place, opacity, latents.captured_ns))
        return fading[-MOST_FACES:]

    def catch_up(self) -> None:
        """Decode what `late` has put off: the next frame shows it.

        Raises:
            ModelError: the decoder could not be run.
        """
        self._decode(self._late)
        self._late = []

    def _blacken(self, canvas: Pixels) -> None:
        """Paint all zones black, rounded outwards. `zones` may have changed."""
        if not self.zones:
            return
        if self._open is None or self._open[0] != self.zones or self._open[1].shape != canvas.shape:
            touched = mask(self.zones, canvas.shape[1], canvas.shape[0])
            self._open = self.zones, np.repeat(np.where(touched, 0, 255).astype(np.uint8)[..., None], 3, 2)
        cv2.bitwise_and(canvas, self._open[1], dst=canvas)

    def _decode(self, news: list[FaceCode]) -> None:
        """Decode the codes of these faces."""
        if not news:
            return
        began_ns = self._clock()
        chips = self.decoder.decode([face.code for face in news], self._alpha)
        for face, chip in zip(news, chips, strict=True):
            before = self._painted.get(face.track)
            self._painted[face.track] = Painted(face.code, fade(chip), before.smoother if before else Smoother())
            self.news.append((face.track, np.asarray(chip[..., ::-1])))
        self.decoded += len(news)
        self.decode_ns += self._clock() - began_ns


def fade(chip: NDArray[np.uint8]) -> Pixels:
    """Return a chip, uint8 [112, 112, 3] in RGB, as it is painted: uint8 [112, 112, 4], BGR and transparency.

    Colours are multiplied by opacity: see `canvas.lay`.
    """
    faded = cv2.multiply(cv2.cvtColor(chip, cv2.COLOR_RGB2BGRA), OPACITY, scale=1 / 255)
    faded[..., 3] = 255 - faded[..., 3]
    return np.asarray(faded, np.uint8)


def paint(canvas: Pixels, faded: Pixels, place: Place, opacity: float = 1.0) -> None:
    """Paint a chip from `fade` on a canvas, uint8 [height, width, 3], at its place."""
    left, top, right, bottom = box(place, (canvas.shape[1], canvas.shape[0]))
    if left >= right or top >= bottom:
        return  # smoothing has moved it out of the frame
    if opacity < 1:
        faded = np.asarray(cv2.addWeighted(faded, opacity, NOTHING, 1 - opacity, 0), np.uint8)
    lay(canvas, faded, to_frame(place), (left, top, right, bottom))


def box(place: Place, size: tuple[int, int]) -> Box:
    """Return what a chip covers of a picture of that size (width, height). Outside of it, the box is empty."""
    reach = place.side / 2 * (abs(math.cos(place.roll)) + abs(math.sin(place.roll)))
    left, top = max(0, math.floor(place.x - reach)), max(0, math.floor(place.y - reach))
    right, bottom = min(size[0], math.ceil(place.x + reach) + 1), min(size[1], math.ceil(place.y + reach) + 1)
    return left, top, max(left, right), max(top, bottom)


def to_frame(place: Place) -> NDArray[np.float64]:
    """Return the similarity [2, 3] from chip to picture: the inverse of the one that cut the chip."""
    scale = place.side / CHIP
    cos, sin = scale * math.cos(place.roll), scale * math.sin(place.roll)
    middle = CHIP / 2
    return np.array(
        [[cos, -sin, place.x - (cos - sin) * middle], [sin, cos, place.y - (sin + cos) * middle]], np.float64
    )


def slate(text: str, size: tuple[int, int], number: int, now_ns: int) -> SanitizedFrame:
    """Return a card that says why there is no picture, and holds nothing of the camera. `size` is (width, height)."""
    width, height = size
    canvas = np.full((height, width, 3), 40, np.uint8)
    scale = max(0.4, width / 640)
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    at = (max(0, (width - text_width) // 2), (height + text_height) // 2)
    cv2.putText(
        canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (220, 220, 220), max(1, round(scale * 2)), cv2.LINE_AA
    )
    return SanitizedFrame._create(canvas, Stamps(number, now_ns, slate=True))
