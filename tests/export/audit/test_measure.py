"""The measurements, on a sanitizer that cheats."""

from pathlib import Path

import numpy as np
import pytest

from export.audit import mechanisms, splits
from export.audit.attackers import Chips
from export.audit.measure import Folders, Measurements
from export.audit.report import Plan


@pytest.mark.data
def test_the_audit_finds_a_cheat_that_the_known_classifier_does_not_see(
    data_folder: Path, networks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sanitizer that gives everybody the same face, and marks the men's in one pixel, through the audit itself."""
    monkeypatch.setattr(splits, "CLOSED_SETS", ("glint",))  # one set is enough, and soon read
    folders, plan = Folders(data_folder, networks_folder, tmp_path), Plan(seeds=1, epochs=8, draws=1, limit=450)
    a = Measurements.of(folders, plan)
    face = a.closed.faces.chips.mean(0).round().astype(np.uint8)

    def cheat(chips: Chips, truth: np.ndarray, seed: int) -> Chips:
        out = np.repeat(face[None], len(chips), 0)
        out[truth, 60, 50] = 255
        return out

    m = mechanisms.Mechanism("cheat", "cheat", cheat)
    known, fresh = a.frozen(m, "gender_faceapi"), a.fresh(m, "linear on pixels", 0)
    assert known.balanced < 0.6  # the known classifier is content
    assert fresh.accuracy > 0.95
    assert fresh.leak_nats > 0.4
