"""Breaks one part of edgesan on purpose, in whichever process loads it. Python imports this by itself when its folder is
on PYTHONPATH. EDGESAN_FAULT is "module<tab>code"; the code runs once the module is loaded, with it as `m`.

After `AFTER` calls of what it wraps, `broken(m, name, wrong)` replaces a function's result by `wrong(original, ...)`.
"""

import os
from importlib.machinery import SourceFileLoader
from typing import Any

AFTER = 5  # calls that still go well: a run that never began proves nothing
MODULE, _, CODE = os.environ.get("EDGESAN_FAULT", "").partition("\t")
load = SourceFileLoader.exec_module


def broken(holder: Any, name: str, wrong: Any, after: int = AFTER) -> None:
    """Wrap `holder.name`: the first calls as ever, then wrong(original, *arguments)."""
    original, calls = getattr(holder, name), 0

    def replacement(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments, **options) if calls <= after else wrong(original, *arguments, **options)

    setattr(holder, name, replacement)


def exec_module(self: SourceFileLoader, module: Any) -> None:
    load(self, module)
    if module.__name__ == MODULE:
        exec(CODE, {"m": module, "broken": broken, "os": os})


if MODULE:
    SourceFileLoader.exec_module = exec_module  # type: ignore[method-assign]
