"""Whom the audit is about."""

from pathlib import Path

import numpy as np
import pytest

from export import data
from export.audit import splits


def test_a_limited_closed_set_keeps_a_fifth_for_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    split = np.repeat(["train", "val", "test", ""], [80, 20, 30, 10])
    columns = {
        "closed_set_split": split,
        "identity": np.array([f"p{i % 7}" for i in range(140)]),
        "gender": np.array(["M", "F"] * 70),
    }
    everyone = data.Faces(np.zeros((140, 1), np.uint8), columns)
    monkeypatch.setattr(
        data, "load_set", lambda folder, name: everyone.where(np.arange(140) % 3 == "lgp".index(name[0]))
    )
    c = splits.closed_set(Path(), 100)
    assert (int(c.train.sum()), int(c.val.sum()), int(c.test.sum())) == (67, 13, 20)
    assert len(splits.closed_set(Path(), None).faces) == 130
    few = c.fewer(40)
    assert int((few & c.train).sum()) == 40
    assert few[~c.train].all(), "the test pictures stay the same"
    part = c.where(few)
    assert (int(part.train.sum()), len(part.faces)) == (40, len(c.faces) - 27)
    assert np.array_equal(part.person, c.person[few])
