"""The last look at a frame: what does not prove that it was sanitized does not pass."""

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.errors import Reject
from edgesan.frames import Pixels

MOST_AGE_NS = 2_000_000_000
LEAST_CHANGE = 1.0  # mean absolute difference of a sanitized chip from the raw one, in levels of 255

SAMPLE = 16  # every so many rows are compared
MOST_SAME = 0.5  # share of details that may be equal to the raw ones, by chance


def check_chips(raw: NDArray[np.uint8], sanitized: NDArray[np.generic]) -> NDArray[np.uint8]:
    """What the network gave for raw chips [N, 112, 112, 3]; returns it, as uint8 of that shape.

    Raises:
        Reject: it has another shape or type, shares memory with the raw chips, or is (nearly) one of them.
    """
    if sanitized.dtype != np.uint8 or sanitized.shape != raw.shape:
        expected = f"uint8 {raw.shape}"
        raise Reject("shape", f"the model gave {sanitized.dtype} {sanitized.shape}, not {expected}")
    if np.may_share_memory(raw, sanitized):
        raise Reject("alias", "the model's output shares memory with the raw chips")
    chips: NDArray[np.uint8] = sanitized.astype(np.uint8, copy=False)
    for number, (before, after) in enumerate(zip(raw, chips, strict=True)):
        change = cv2.norm(before, after, cv2.NORM_L1) / before.size
        if change < LEAST_CHANGE:
            raise Reject("identity", f"chip {number} came back changed by {change:.2f} levels: it was not sanitized")
    return chips


def packed(pixels: Pixels) -> NDArray[np.uint32]:
    """Pixels as one number each [height, width]: a comparison of these takes a tenth of the time."""
    numbers: NDArray[np.uint32] = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA).view(np.uint32)[..., 0]
    return numbers


def check_frame(raw: Pixels, canvas: Pixels, age_ns: int, *, keeps: bool = False) -> None:
    """The composed frame, uint8 [height, width, 3], made from a raw one that is `age_ns` old.

    Args:
        keeps: the background is meant to be raw; else hardly a detail of it may be there.

    Raises:
        Reject: wrong shape or type, memory shared with the raw frame, raw details in it, or too old to be shown as now.
    """
    if canvas.dtype != np.uint8 or canvas.shape != raw.shape:
        raise Reject("shape", f"the composed frame is {canvas.dtype} {canvas.shape}, not uint8 {raw.shape}")
    if np.may_share_memory(raw, canvas):
        raise Reject("alias", "the composed frame shares memory with the raw one")
    if not keeps:
        before, after = packed(raw[::SAMPLE]), packed(canvas[::SAMPLE])
        details = before[:, 1:] != before[:, :-1]  # an even wall is the same in coarse blocks; an edge is not
        same = np.count_nonzero((before == after)[:, 1:] & details)
        if same > MOST_SAME * np.count_nonzero(details):
            raise Reject("identity", f"{same / np.count_nonzero(details):.0%} of the composed frame's details are raw")
    if not 0 <= age_ns <= MOST_AGE_NS:
        raise Reject(
            "stale", f"the frame is {age_ns / 1e9:.2f} s old; at most {MOST_AGE_NS / 1e9:.0f} s are shown as now"
        )
