"""The documents tell the truth: their commands, options, files, modules and figures exist."""

import argparse
import json
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

import edgesan
from edgesan.cli import parser
from edgesan.config import DEMO_MODEL, Config
from edgesan.frames import Pixels
from edgesan.isolation import probes
from edgesan.model.load import IN_THE_WORST_SET, load_model
from export.audit import report
from export.audit.report import Report
from export.recipe import OLD_KEYS
from tests.support import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [
        *sorted(ROOT.glob("docs/*.md")),
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "firmware_config/README.md")),
    ]
}
PACKAGES = "edgesan|export|benchmarks|firmware_config|tests|docs|examples"


def without_comment(line: str) -> str:
    return re.sub(r"\s+#\s.*", "", line).strip()


def blocks(page: str) -> list[str]:
    """Each command line of the fenced blocks that have no language."""
    fenced = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [without_comment(line) for block in fenced for line in block.replace("\\\n", " ").splitlines()]


def spans(page: str) -> list[str]:
    """Each piece of inline code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))


def commands(program: str, text: list[str]) -> list[str]:
    """Those that start with the program, without `sudo`, a path to it and variables before it."""
    start = re.compile(rf"(?:[A-Z_]+=(?:\$\(.*?\)|\S+)\s+)*(?:sudo )?(?:~?[\w./-]+/bin/)?({program}(?:\s.*)?)$")
    return [found[1] for line in text if (found := start.match(line)) and "VERB" not in line]


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def exists(name: str) -> bool:
    """A file or folder of the project, or the module that a command of the project names."""
    return (ROOT / name).exists() or (ROOT / name.removesuffix(".py") / "__main__.py").exists()


WHOLE = sorted({(name, line) for name, page in PAGES.items() for line in commands("edgesan", blocks(page))})
INLINE = sorted({(name, span) for name, page in PAGES.items() for span in commands("edgesan", spans(page))})
MAKE = sorted({line for page in PAGES.values() for line in commands("make", blocks(page) + spans(page))})
MODULES = sorted({line for page in PAGES.values() for line in commands("python -m", blocks(page) + spans(page))})


def verbs() -> dict[str, argparse.ArgumentParser]:
    (group,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(group.choices)


@pytest.mark.parametrize(("page", "command"), WHOLE)
def test_a_command_of_a_document_can_be_given(page: str, command: str) -> None:
    words = [word for word in shlex.split(command) if word not in {"|", "..."}]
    parser().parse_args(words[1:])


@pytest.mark.parametrize(("page", "command"), INLINE)
def test_a_command_within_a_sentence_has_a_verb_and_options_that_exist(page: str, command: str) -> None:
    _, *words = command.split()
    if words and not words[0].startswith("-"):
        known = {option for action in verbs()[words[0]]._actions for option in action.option_strings}
        assert set(options(words)) <= known


def test_the_documents_have_commands_of_every_verb() -> None:
    assert {line.split()[1] for _, line in WHOLE if " " in line} == set(verbs())


@pytest.mark.parametrize("command", MAKE)
def test_a_verb_of_make_is_there(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in command.split()[1:] if "=" not in word and word not in targets] == []


@pytest.mark.parametrize("command", MODULES)
def test_a_module_that_a_document_runs_is_there_and_has_its_options(command: str) -> None:
    _, _, module, *words = command.split()
    if not module.startswith(("edgesan", "export", "benchmarks", "firmware_config", "tests")):
        return
    path = ROOT / module.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else sorted(path.glob("*.py"))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"there is no python -m {module}"
    source = "".join(file.read_text() for file in files)
    known = set(re.findall(r'"(?:--)?([a-z][a-z-]*)"', source))
    assert [option for option in options(words) if option.removeprefix("--") not in known] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_module_that_a_document_names_is_there(page: str) -> None:
    code = spans(PAGES[page]) + blocks(PAGES[page])
    suffixes = "py|toml|md|jsonl|json|onnx|pub|yml"  # other files, such as FAILED.txt, lie on a board
    files = [name for text in code for name in re.findall(rf"(?:^|\s)((?:{PACKAGES})/[\w./-]+\.(?:{suffixes}))", text)]
    modules = [name for text in code for name in re.findall(r"^((?:export|benchmarks)\.\w+)", text)]
    files += [f"{name.replace('.', '/')}.py" for name in modules]
    assert [name for name in files if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_code_that_a_document_has_is_there(page: str) -> None:
    names = [span for span in spans(PAGES[page]) if re.fullmatch(r"edgesan(\.[a-z_]+)+", span)]
    for name in names:
        if not name.endswith((".toml", ".service")):
            pkgutil.resolve_name(name)


def test_the_page_of_isolation_has_every_claim() -> None:
    claims = re.findall(r"^\| (no [a-z ]+) \|", PAGES["docs/isolation.md"], re.MULTILINE)
    assert set(claims) == {probe.claim for tried in probes.PROBES.values() for probe in tried}


def test_every_file_that_the_readme_links_to_is_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(linked) > 10
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "only numbers cross" in (tmp_path / "index.html").read_text().lower()
    for page in tmp_path.glob("*.html"):  # nothing is fetched from elsewhere when it is read
        assert re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//', page.read_text()) == []


def test_the_man_page_has_every_verb_and_option_and_is_written_anew_after_a_change(tmp_path: Path) -> None:
    page = ROOT / "docs" / "edgesan.1"
    written = runpy.run_path(str(ROOT / "docs" / "man.py"))["page"]()
    assert page.read_text() == written, "python docs/man.py"
    if groff := shutil.which("groff"):
        done = subprocess.run(
            [groff, "-man", "-ww", "-Tascii", "-P-cbou", str(page)], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        assert all(option in done.stdout for option in ("edgesan sanitize", "--embed-from ORIGIN", "EDGESAN_ALPHA=0.6"))


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGES["SECURITY.md"])
    assert len(set(named)) >= 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_of_the_api_has_every_public_name() -> None:
    documented = re.findall(r"^::: edgesan\.(\w+)$", PAGES["docs/api.md"], re.MULTILINE)
    assert sorted(documented) == sorted(set(edgesan.__all__) - {"__version__"})


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_program_on_a_page_runs_as_it_is_written(page: str, clip: list[Pixels], tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    cv2.imwrite(str(tmp_path / "group.jpg"), clip[0])
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)},
        check=True,
        timeout=60,
    )
    assert cv2.imread(str(tmp_path / "sanitized.png")).shape == clip[0].shape


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def claims() -> tuple[dict[str, Any], ...]:
    found = load_model(Config().model).metadata.claims
    assert found, "the bundled model claims nothing: run export.audit --write"
    return tuple(found)


def rows(page: str, *starts: str) -> list[list[str]]:
    """The cells of the table rows that start so, without the row's name."""
    found = [line.strip("|").split("|")[1:] for line in page.splitlines() if line.startswith(starts)]
    assert len(found) >= len(starts)
    return [[cell.strip() for cell in row] for row in found]


def test_every_figure_of_the_models_table_is_a_claim_of_the_model() -> None:
    """The table is what `export.audit` printed; the model carries the same figures."""
    values = [100 * claim["value"] for claim in claims()]
    found = rows(PAGES["docs/model-tables.md"], "| identity, ", "| gender by gender_", "| gender by fresh ")
    assert len(found) >= 8
    for row in found:
        figures = [float(cell.split()[0]) for cell in row if cell != "–"]
        assert figures
        for figure in figures:
            assert min(abs(figure - value) for value in values) <= 0.06, row


def test_the_readmes_table_is_what_was_measured() -> None:
    stored = report.read(Report, ROOT / "docs" / "audit.json")
    speed = json.loads((ROOT / "benchmarks/results/amd-epyc-2-cores.json").read_text())["side_by_side"]["1280x720"]
    strangers, rows_of_people = stored.strangers, (stored.raw, stored.ours, stored.table["blur, sigma 4"])
    assert strangers is not None
    name, seen = next(iter(strangers.unseen.items()))
    expected = {
        "| a stranger is named": (strangers.raw[name].household.value, seen.household.value),
        "| a stranger is verified": [m.tar["0.01"]["raw"].value for m in (strangers.raw[name], seen)],
        "| a stranger's gender, best": (strangers.strongest_of_raw()[2], strangers.strongest()[2]),
        "| a stranger's gender, by a": [
            found["gender_faceapi"].all.balanced for found in (strangers.gender_raw, strangers.frozen)
        ],
        "| a known person": [row.utility.top5 for row in rows_of_people],
        "| their gender, by the best": [row.strongest()[1].accuracy for row in rows_of_people],
        "| their gender, by a": [row.frozen["gender_faceapi"].accuracy for row in rows_of_people],
    }
    figures = {start: [100 * share for share in shares] for start, shares in expected.items()}
    figures["| ms"] = [speed[name] for name in ("edgesan", "same detector, blurred", "deface 1.5.0")]
    for start, measured in figures.items():
        ((*cells,),) = rows(README, start)
        assert [float(cell) for cell in cells if cell != "–"] == [pytest.approx(f, abs=0.06) for f in measured], start


@pytest.mark.parametrize("page", ["README.md", "docs/model.md"])
def test_every_percentage_of_a_sentence_about_the_model_was_measured(page: str) -> None:
    stored = report.read(Report, ROOT / "docs" / "audit.json")
    kinds = ("value", "pooling_10", IN_THE_WORST_SET)
    measured = [stored.closed_set.prior, *(claim[kind] for claim in claims() for kind in kinds if kind in claim)]
    sentences = "\n".join(line for line in PAGES[page].splitlines() if not line.startswith("|"))
    figures = [float(figure) for figure in re.findall(r"(\d+\.\d) %", sentences)]
    assert len(figures) >= 4
    assert [f for f in figures if min(abs(f - 100 * value) for value in measured) > 0.06] == []


def test_every_claim_about_an_attacker_names_its_seeds_its_interval_and_what_ten_pictures_tell() -> None:
    about = [c for c in claims() if c["figure"].startswith("gender accuracy, ") and "seeds" in c]
    assert {c["figure"] for c in about} == {"gender accuracy, raw", "gender accuracy, sanitized"}
    for claim in about:
        low, high = claim["accuracy_95"]
        in_interval = low - 0.01 <= claim["value"] <= high + 0.01
        assert in_interval, "the interval is the first seed's, the value the mean of all"
        assert low < high
        assert 0 <= claim["pooling_10"] <= 1
    best = max((c for c in about if c["figure"].endswith("sanitized")), key=lambda c: c["value"])
    assert best["seeds"] >= 3


def test_the_bundled_model_is_small_enough_for_the_board() -> None:
    assert DEMO_MODEL.stat().st_size <= 6 * 2**20


def test_the_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    versions = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0][0] == edgesan.__version__
    assert versions == sorted(versions, key=lambda v: [int(n) for n in v[0].split(".")], reverse=True)


def test_the_changelog_has_every_recipe_key_that_was_renamed() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`\w+`(?:, `\w+`)*) \|$", text, re.MULTILINE)
    pairs = [pair for old, new in rows for pair in zip(old.split(", "), new.split(", "), strict=True)]
    assert {old.strip("`"): new.strip("`") for old, new in pairs} == OLD_KEYS


def test_nothing_names_paths_of_one_machine() -> None:
    for path in [*ROOT.glob("edgesan/**/*.py"), *ROOT.glob("export/**/*"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        if path.suffix in {".py", ".toml", ".md"}:
            assert not re.search(r"/(home|root)/\w", path.read_text()), path
