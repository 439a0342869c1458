"""`edgesan inspect`: what is said of models that run, of a stranger's and of broken ones."""

import json
from pathlib import Path

import pytest

from edgesan.cli import main
from edgesan.config import DEMO_MODEL
from edgesan.model import inspect, load
from tests.support import ROOT, Maker


def told(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = main(["inspect", str(path), *options])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def test_a_strangers_model_is_described_and_not_run(
    maker: Maker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = maker.model(private="age")
    code, text = told(path, capsys, *maker.options)
    assert (code, "runs here: yes" in text) == (0, True)
    monkeypatch.setattr(load.ort, "session", lambda *_: pytest.fail("a stranger's network was run"))
    code, text = told(path, capsys)
    assert code == 4
    assert "runs here: NO" in text
    assert "is signed by the untrusted key" in text
    assert f"signed by {maker.key.fingerprint}, NOT TRUSTED" in text
    assert "private age, useful identity" in text
    assert "known answer: not tried" in text
    facts = json.loads(told(path, capsys, "--json")[1])
    assert (facts["runs_here"], facts["private"], len(facts["problems"])) == (False, "age", 1)


def test_an_unsigned_and_a_changed_model_are_described(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    path = maker.model(sign=False)
    code, text = told(path, capsys)
    assert (code, "is not signed" in text, "private gender" in text) == (4, True, True)
    assert told(path, capsys, "--allow-unsigned")[0] == 0
    maker.sign(path)
    content = path.read_bytes()
    changed = content.replace(b'"useful', b'"UseFul', 1) if b'"useful' in content else content + b"\0"
    path.write_bytes(changed)
    code, text = told(path, capsys, *maker.options, "--allow-unsigned")
    assert (code, "is over other bytes" in text) == (4, True)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pyproject.toml", "is not an ONNX file, or a damaged one"),
        ("edgesan/models/yunet.onnx", "is not a sanitizer: its inputs are"),
    ],
)
def test_each_reason_why_a_file_is_no_model_is_given(file: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(ROOT / file, capsys)
    assert code == 4
    assert "is not signed" in text
    assert words in text
    assert "sha256 " in text


def test_a_wrong_known_answer_is_said(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    answer = inspect.facts(maker.config(maker.model()))["known_answer"]
    samples = load.load_model(DEMO_MODEL).metadata.known_answer["samples"]
    wrong = [[*place, 255 - value] for *place, value in samples]
    path = maker.model(known_answer={k: v for k, v in answer.items() if k != "result"} | {"samples": wrong})
    code, text = told(path, capsys, *maker.options)
    assert (code, "known answer: WRONG" in text, "gives a wrong known answer" in text) == (4, True, True)


def test_a_summary_names_the_best_attacker_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(DEMO_MODEL, capsys)[1]
    claims = load.load_model(DEMO_MODEL).metadata.claims
    attacks = [c for c in claims if c["figure"] == "gender accuracy, sanitized"]
    best = max(attacks, key=lambda c: float(c["value"]))
    (line,) = [line for line in text.splitlines() if line.startswith("  gender accuracy, sanitized")]
    assert f"{best['value']:.3f}" in line
    assert f"the best of {len(attacks)} attackers: {best['attack']}" in line
