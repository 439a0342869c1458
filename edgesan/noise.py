"""Standard normal noise from the operating system's CSPRNG.

It never comes from the network's graph or from a seeded generator: an attacker who can predict z can subtract it. z is
never logged.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

EntropySource = Callable[[int], bytes]
"""Returns n unpredictable bytes: `os.urandom`, except in tests."""


def draw(dimensions: int, entropy: EntropySource) -> NDArray[np.float32]:
    """Draw z, float32 [dimensions], standard normal: Box and Muller (1958) from uniforms of 53 bits."""
    half = (dimensions + 1) // 2
    words = np.frombuffer(entropy(16 * half), np.uint64).reshape(2, half)
    radius_u, angle_u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53  # within (0, 1)
    radius = np.sqrt(-2.0 * np.log(radius_u))
    angle = 2.0 * np.pi * angle_u
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:dimensions].astype(np.float32)
