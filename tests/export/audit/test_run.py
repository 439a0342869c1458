"""The command: its options, and what it refuses."""

from pathlib import Path

import pytest

from edgesan.config import DEMO_MODEL
from export.audit import run
from export.audit.protocol import CURVE, QUICK
from export.audit.report import Plan
from tests.support import ROOT

MODEL, RECIPE = str(DEMO_MODEL), str(ROOT / "export" / "recipes" / "default.toml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--write"], "a quick look makes no claims: leave out --quick or --write"),
        ([], "--data and --networks are needed, except for --quick"),
        (["--data", "d", "--networks", "n", "--hidden", "age<3"], "'age<3' is no statement about a column"),
        (
            ["--data", "d", "--networks", "n", "--brief", "--recipe", RECIPE],
            "is not there: a set is a .tar of chips and a .csv",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([MODEL, *words, "--work", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_the_command_line_becomes_options() -> None:
    given = ["--data", "d", "--networks", "n", "--known", "k.jsonl", "--curve", "--alpha", "0.3", "--so-far"]
    options = run.options_of(run.parser().parse_args([MODEL, *given]))
    assert (options.model, options.alpha, options.plan, options.so_far) == (DEMO_MODEL, 0.3, Plan(), True)
    assert (options.folders.data, options.folders.work, options.folders.known) == (
        Path("d"),
        Path("runs/audit"),
        Path("k.jsonl"),
    )
    assert options.curve == CURVE
    assert options.baselines is None, "all of them"


def test_a_quick_look_measures_less() -> None:
    quick = run.options_of(run.parser().parse_args([MODEL, "--quick"]))
    assert quick.plan == QUICK
    assert [m.name for m in quick.baselines or ()] == ["blur, sigma 4", "pixelate, 8x8"]
    brief = run.options_of(run.parser().parse_args([MODEL, "--brief"]))
    assert brief.plan.brief
    assert brief.baselines == []
