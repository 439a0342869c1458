"""Whether it became slower: instructions are compared, with those of the same versions only."""

import pytest

from benchmarks import check, instructions


def test_a_count_that_is_higher_by_more_than_3_percent_is_named() -> None:
    stored = {"sanitize": 20.0, "transmit": 10.0}
    assert check.worse(stored, stored) == []
    assert check.worse(stored, {"sanitize": 20.5, "transmit": 5.0}) == [], "fewer is no fault"
    assert check.worse(stored, {"sanitize": 20.7}) == ["sanitize"]
    assert check.worse(stored, {"sanitize": 20.0, "transmit": float("nan")}) == ["transmit"]
    assert check.worse(stored, {"decode": 1.0}) == ["decode"], "nothing is stored to compare it with"
    assert "| sanitize | 20 | 20.7 | WORSE |" in check.text(stored, {"sanitize": 20.7})


def test_counts_of_other_versions_are_not_compared() -> None:
    versions = {"numpy": "2.4.6", "model": "abc"}
    assert check.incomparable(versions, versions) == ""
    assert "here is model def (abc)" in check.incomparable(versions, versions | {"model": "def"})
    assert "numpy 2.4.6 (None)" in check.incomparable({}, versions)


def test_what_is_stored_has_every_count_that_is_compared() -> None:
    versions, millions = instructions.load()
    assert versions.keys() == instructions.versions().keys()
    assert {f"{part}, {clip}" for part in instructions.PARTS for clip in check.CLIPS} <= millions.keys()
    assert set(instructions.NETWORKS) <= millions.keys()


@pytest.mark.slow
def test_a_frame_takes_no_more_instructions_than_are_stored() -> None:
    versions, stored = instructions.load()
    reason = instructions.missing() or check.incomparable(versions, instructions.versions())
    if reason:
        pytest.skip(reason)
    now = instructions.measure(check.CLIPS, networks=False)
    assert len(now) == len(instructions.PARTS)
    assert check.worse(stored, now) == [], check.text(stored, now)
