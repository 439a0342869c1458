"""What a viewer gets from the device."""

import numpy as np

from edgesan.canvas import PLAIN
from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from export.audit import clip, device


def test_the_context_attacker_sees_output_frames() -> None:
    model, (chips, _) = prepare(DEMO_MODEL, DEMO_MODEL.read_bytes(), threads=1), clip.two_people()
    out, *_ = device.composed(model, chips[:1], 0.25)
    assert out.sent.shape == (320, 320, 3)
    assert len(out.tracks) == 1
    assert np.abs(out.sent[:60].astype(int) - PLAIN).max() <= 2, "nothing of the surroundings"
    inside = out.sent[104:216, 104:216, ::-1]
    assert np.abs(inside[30:90, 30:90].astype(int) - chips[0, 30:90, 30:90]).mean() > 5, "the face is another"
    assert inside[30:90, 30:90].std() > 10, "and it is there"
