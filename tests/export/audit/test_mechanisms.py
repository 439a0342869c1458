"""The mechanisms: our model in float32, and the baselines."""

import numpy as np
import pytest

from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from export.audit import clip, mechanisms

HALF = np.arange(64) % 2 == 0


@pytest.mark.slow
def test_float32_beside_int8_is_the_same_face_from_the_same_noise() -> None:
    """Of a model file alone: its own weights, in float32. Another draw of the noise is several times as far away."""
    chips, model = clip.two_people()[0], prepare(DEMO_MODEL, DEMO_MODEL.read_bytes(), threads=1)
    truth = np.zeros(len(chips), bool)
    beside, shipped = mechanisms.trained(DEMO_MODEL, 0.4), mechanisms.sanitizer(model, 0.4)
    int8 = shipped.apply(chips, truth, 3).astype(int)
    same, other = (np.abs(beside.apply(chips, truth, draw) - int8).mean() for draw in (3, 4))
    assert other > 5
    assert same < other / 3
    assert beside.stochastic


def test_the_baselines_do_what_they_say() -> None:
    random = np.random.default_rng(0)
    chips = random.integers(0, 256, (64, 112, 112, 3)).astype(np.uint8)
    blocks = mechanisms.pixelate(8).apply(chips, HALF, 0)
    assert np.all(blocks.reshape(64, 8, 14, 8, 14, 3).std((2, 4)) == 0)
    assert np.abs(blocks[:, ::14, ::14].astype(float) - chips.reshape(64, 8, 14, 8, 14, 3).mean((2, 4))).max() <= 1

    grey = np.full((64, 112, 112, 3), 128, np.uint8)
    noisy = mechanisms.dp_pix(2.0).apply(grey, HALF, 0)  # Laplace of scale 255 * 16 / (256 * 2) = 8
    assert np.abs(noisy[:, ::16, ::16].astype(float) - 128).mean() == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF, 0))
    assert not np.array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF, 1))
