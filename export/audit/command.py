"""What the audit's commands have in common: how they end."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from edgesan.errors import EdgesanError
from export.audit import report
from export.errors import ExportError


def errors_as_lines(main: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """Make a command of a function: exit status 0, or 1 with an error in one line."""

    @functools.wraps(main)
    def command(arguments: list[str] | None = None) -> int:
        try:
            main(arguments)
        except (ExportError, EdgesanError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return command


def conclude(result: object, table: str, path: Path | None) -> None:
    """Print a result's table, and write the result as JSON if there is a path."""
    print(table)
    if path is not None:
        report.write(result, path)
