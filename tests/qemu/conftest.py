"""Real boots: skipped unless EDGESAN_BOARD is set, as `make board` does. What they measured is printed as one table."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

TABLE = pytest.StashKey[list[tuple[str, str]]]()
Row = Callable[[str, str], None]


@pytest.fixture(scope="session")
def row(pytestconfig: pytest.Config) -> Row:
    """Put a measured fact into the table."""
    table = pytestconfig.stash.setdefault(TABLE, [])
    return lambda name, value: table.append((name, value))


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Skip where the test was not asked for, or the machine lacks what it needs."""

    def check(*programs: str) -> None:
        if not os.environ.get("EDGESAN_BOARD"):
            pytest.skip("an hour of emulation: `make board` runs it")
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}; `make board` installs them where it is root")
        if os.geteuid() != 0:
            pytest.skip("root only: it makes root file systems")

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, [])
    if not table:
        return
    lines = ["| what | seen |", "|---|---|", *(f"| {name} | {value} |" for name, value in table)]
    terminalreporter.section("make board")
    for line in lines:
        terminalreporter.write_line(line)
    kept = Path("build/board.md")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("\n".join(lines) + "\n", encoding="utf-8")
