"""The int8 network paints on a Pi's processors what it paints here. `make arm` builds what this needs, once."""

import os
from pathlib import Path

import pytest

from benchmarks import arm64
from tests.model import arm

pytestmark = [pytest.mark.board, pytest.mark.slow]


def test_arms_pictures_are_within_the_bound_of_the_quantization(tmp_path: Path) -> None:
    """The reader there takes the model with its known answer; and what differs is less than int8 from float, by far."""
    if not ("EDGESAN_ARM" in os.environ and arm64.READY.exists() and arm.qemu()):
        pytest.skip("takes minutes, QEMU and an arm64 Python: `make arm` builds it and sets EDGESAN_ARM")
    figures = arm.compare(tmp_path)
    quantized = figures.pop("the float twin, here")
    assert figures.keys() == arm64.PROCESSORS.keys()
    for figure in figures.values():
        assert figure["mean"] < quantized["mean"] / 2
        assert figure["most"] <= quantized["most"]
