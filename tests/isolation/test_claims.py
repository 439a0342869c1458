"""Claims cross as a byte of each probe, and say the same words."""

import random
import re
from dataclasses import replace

import pytest

from edgesan import isolation
from edgesan.errors import IsolationError
from edgesan.isolation import IsolationClaim
from edgesan.isolation.probes import PROBES
from tests.isolation.support import SANITIZE


def some_results(pick: random.Random) -> bytes:
    return bytes(pick.choice([r for r in range(256) if probe.possible(r)]) for probe in PROBES["sanitize"])


def test_claims_cross_as_a_byte_of_each_probe_and_keep_their_words() -> None:
    pick = random.Random(1)
    for _ in range(300):
        results = some_results(pick)
        claims = isolation.unpack(results)
        assert isolation.pack(claims) == results
        assert len(results) == isolation.RESULTS
        assert tuple(claim.name for claim in claims) == SANITIZE
        assert all(claim.cure for claim in claims if not claim.holds)


def test_what_is_no_result_of_a_probe_is_refused() -> None:
    good = some_results(random.Random(2))
    for wrong in (b"", good[:-1], good + b"\0"):
        with pytest.raises(ValueError, match="claims of the sanitize process are"):
            isolation.unpack(wrong)
    for place, probe in enumerate(PROBES["sanitize"]):
        for result in (*range(0, 256, 17), 1, 2, 38, 133, 134, *range(252, 256)):
            changed = good[:place] + bytes([result]) + good[place + 1 :]
            if probe.possible(result):
                assert isolation.pack(isolation.unpack(changed)) == changed
            else:
                with pytest.raises(ValueError, match="is no result of"):
                    isolation.unpack(changed)


def test_one_open_way_is_a_claim_that_does_not_hold() -> None:
    closed = [next(r for r in range(256) if r in probe.closed and probe.possible(r)) for probe in PROBES["sanitize"]]
    assert all(claim.holds for claim in isolation.unpack(bytes(closed)))
    for place, probe in enumerate(PROBES["sanitize"]):
        opened = next(r for r in range(256) if r not in probe.closed and probe.possible(r))
        claims = isolation.unpack(bytes([*closed[:place], opened, *closed[place + 1 :]]))
        assert [claim.name for claim in claims if not claim.holds] == [probe.claim]


def test_what_is_missing_is_named_with_its_cure() -> None:
    held, missing = (
        IsolationClaim("sanitize", "no swap", True, "there is none"),
        IsolationClaim("transmit", "no camera", False, "ok", "x"),
    )
    isolation.require([held])
    with pytest.raises(IsolationError, match=r"transmit process: no camera does not hold: ok\. Cure: x"):
        isolation.require([held, missing])
    assert isolation.summary([held, missing]) == "sanitize: no swap; transmit: no camera does not hold"
    both = [held, replace(held, name="no files", holds=False), replace(held, name="no network", holds=False)]
    assert isolation.summary(both) == "sanitize: no swap (no files, no network do not hold)"


def test_every_claim_that_does_not_hold_is_a_sentence_about_what_it_means() -> None:
    for process, probes in PROBES.items():
        opened = bytes(next(r for r in range(252) if r not in p.closed and p.possible(r)) for p in probes)
        claims = isolation.unpack(opened, process)
        assert not any(claim.holds for claim in claims)
        sentences = isolation.warnings(claims)
        assert len(sentences) == len(claims), "each its own"
        for sentence in sentences:
            assert re.fullmatch(r"The process that [^:]+: [^:]+\.|The process that [^:]+\.", sentence), sentence


def test_a_status_has_the_claims_of_one_process_or_of_two() -> None:
    closed = {
        process: bytes(next(r for r in range(256) if r in p.closed and p.possible(r)) for p in probes)
        for process, probes in PROBES.items()
    }
    assert {claim.process for claim in isolation.unpack_all(closed["sanitize"])} == {"sanitize"}
    both = isolation.unpack_all(closed["sanitize"] + closed["fetch"])
    assert {claim.process for claim in both} == {"sanitize", "fetch"}
    assert isolation.warnings(both) == []
    for wrong in (b"", closed["fetch"][:-1], closed["sanitize"] + closed["fetch"][1:], closed["sanitize"] * 2 + b"0"):
        with pytest.raises(ValueError, match="claims of the"):
            isolation.unpack_all(wrong)
