"""Write edgesan/capture/demo.png, the still of the bundled clip without its people: python docs/demo_still.py.

Two people stand before the wall in every frame, so no pixel behind them was ever seen. What is kept is the median over
time of the pixels that are wall in most frames, by their likeness to a smooth surface through the picture's edges.
The rest is that surface.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan.capture import DEMO_CLIP
from edgesan.scene import DEMO

ORDER: Final = 3  # of the surface, a polynomial
ALIKE: Final = 7.0  # levels up to which a pixel is wall
ROUNDS: Final = 6
MARGIN: Final = 25  # pixels around all that is not wall
SOFT: Final = 15.0  # pixels over which wall and surface blend


def frames() -> NDArray[np.float32]:
    """Return all frames of the clip, float32 [n, height, width, 3] in BGR."""
    capture, found = cv2.VideoCapture(str(DEMO_CLIP)), []
    while (read := capture.read())[0]:
        found.append(cv2.GaussianBlur(read[1].astype(np.float32), (0, 0), 1))
    return np.stack(found)


def surface(picture: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fit a polynomial of both coordinates to the known pixels of each channel, and return it everywhere."""
    height, width = known.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([x**i * y**j for i in range(ORDER + 1) for j in range(ORDER + 1 - i)], -1)
    weights = np.linalg.lstsq(terms[known], picture[known], rcond=None)[0]
    return np.asarray(terms @ weights, np.float32)


def still() -> NDArray[np.uint8]:
    """Return the room without its people, uint8 [height, width, 3] in BGR."""
    clip = frames()
    middle = np.median(clip, 0)
    height, width = middle.shape[:2]
    known = np.zeros((height, width), bool)
    known[:30], known[:, :20], known[:, -25:] = True, True, True
    known[-4:] = False  # a dark edge of the clip
    for _ in range(ROUNDS):
        wall = surface(middle, known)
        alike = (np.abs(clip - wall).max(-1) < ALIKE).mean(0) > 0.9
        alike = cv2.erode(alike.astype(np.uint8), np.ones((MARGIN, MARGIN), np.uint8)).astype(bool)
        known[4:-4] |= alike[4:-4]
    seen = cv2.GaussianBlur(alike.astype(np.float32), (0, 0), SOFT)[..., None]
    seen = np.clip(2 * seen - 1, 0, 1)  # none where a person was near
    return np.clip(seen * middle + (1 - seen) * wall, 0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    cv2.imwrite(str(DEMO), still(), [cv2.IMWRITE_PNG_COMPRESSION, 9])
