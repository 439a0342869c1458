"""The README tells the truth: its commands, options and figures exist."""

import re
import shlex

import pytest

from edgesan.cli import parser
from edgesan.config import DEMO_MODEL, Config
from edgesan.model.load import load_model
from tests.support import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = sorted({line.split("#")[0].strip() for line in README.splitlines() if line.startswith("edgesan ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_can_be_given(command: str) -> None:
    parser().parse_args(shlex.split(command)[1:])


def test_the_readme_has_commands_of_every_verb() -> None:
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs == set(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]


def test_every_recipe_and_module_that_the_readme_runs_is_there() -> None:
    run = re.findall(r"export/recipes/[\w.]+", README)
    run += [
        f"{name.replace('.', '/')}.py"
        for name in re.findall(r"python -m ((?:export|benchmarks|firmware_config)\.\w+)", README)
    ]
    assert run
    assert [
        name
        for name in run
        if not (ROOT / name).exists() and not (ROOT / name.removesuffix(".py") / "__main__.py").exists()
    ] == []


def test_every_file_that_the_readme_names_is_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:edgesan|export|docs)/[\w./]+)`", README)
    assert linked
    assert [
        name
        for name in linked
        if not (ROOT / name).exists() and not (ROOT / name.removesuffix(".py") / "__main__.py").exists()
    ] == []


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/test_\w+\.py)`", (ROOT / "SECURITY.md").read_text())
    assert len(set(named)) >= 6
    assert [
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / name.removesuffix(".py") / "__main__.py").exists()
    ] == []


def test_every_figure_of_the_readmes_table_is_a_claim_of_the_model() -> None:
    """The table is what `export.audit` printed; the model carries the same figures."""
    claims = load_model(Config().model).metadata.claims
    assert claims, "the bundled model claims nothing: run export.audit --write"
    values = [100 * claim["value"] for claim in claims]
    rows = [line for line in README.splitlines() if line.startswith(("| identity", "| gender by"))]
    assert len(rows) >= 6
    for row in rows:
        figures = [float(cell.split()[0]) for cell in row.split("|")[2:4] if cell.strip() != "–"]
        assert figures
        for figure in figures:
            assert min(abs(figure - value) for value in values) <= 0.06, row


def test_every_claim_about_an_attacker_names_its_seeds_its_interval_and_what_ten_pictures_tell() -> None:
    claims = [
        c
        for c in load_model(Config().model).metadata.claims
        if c["figure"].startswith("gender accuracy, ") and "seeds" in c
    ]
    assert {c["figure"] for c in claims} == {"gender accuracy, raw", "gender accuracy, sanitized"}
    for claim in claims:
        low, high = claim["accuracy_95"]
        assert low - 0.01 <= claim["value"] <= high + 0.01, (
            "the interval is the first seed's, the value the mean of all"
        )
        assert low < high
        assert 0 <= claim["pooling_10"] <= 1
    best = max((c for c in claims if c["figure"].endswith("sanitized")), key=lambda c: c["value"])
    assert best["seeds"] >= 3


def test_the_bundled_model_is_small_enough_for_the_board() -> None:
    assert DEMO_MODEL.stat().st_size <= 1_000_000


def test_nothing_names_paths_of_one_machine() -> None:
    for path in [*ROOT.glob("edgesan/**/*.py"), *ROOT.glob("export/**/*"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        if path.suffix in {".py", ".md", ".toml"}:
            assert not re.search(r"/(home|root)/\w", path.read_text()), path
