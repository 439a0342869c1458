"""Makers of signed models, and a picture, for the tests of this folder."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support import Maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path, "maker")


@pytest.fixture
def stranger(tmp_path: Path) -> Maker:
    (tmp_path / "elsewhere").mkdir()
    return Maker(tmp_path / "elsewhere", "stranger")


@pytest.fixture
def picture(tmp_path: Path, clip: list[np.ndarray]) -> Path:
    path = tmp_path / "in.png"
    cv2.imwrite(str(path), clip[0])
    return path
