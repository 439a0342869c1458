"""What the scene costs is measured beside the same frames without it."""

import pytest

from benchmarks import scene
from edgesan.model.load import Model


@pytest.mark.slow
def test_each_frame_goes_through_both_chains_and_every_stage_is_timed(
    sanitizer_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "BLOCK", 2)
    chains = scene.measure(sanitizer_model, 1, rounds=2)
    assert [{len(taken) for taken in chain.took.values()} for chain in chains.values()] == [{4}, {4}]
    assert all(ms > 0 for chain in chains.values() for ms in scene.means(chain).values())
    for chain, ms in zip(chains.values(), (2.0, 2.2), strict=True):
        chain.took = {stage: [9.0, 9.0, ms, ms] for stage in scene.STAGES}
    assert scene.share(chains) == pytest.approx(0.1), "the first round is not counted"
