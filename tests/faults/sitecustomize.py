"""Puts one fault of the table into edgesan, in whichever process loads the module that it is in.

Python imports this by itself in every process whose PYTHONPATH has this folder. EDGESAN_FAULT is a fault's title.
"""

import os
from importlib.machinery import SourceFileLoader
from typing import Any

if wanted := os.environ.get("EDGESAN_FAULT"):
    from cases import FAULTS, VIDEO

    fault = next(fault for fault in (*FAULTS, VIDEO) if fault.title == wanted)
    load = SourceFileLoader.exec_module

    def exec_module(self: SourceFileLoader, module: Any) -> None:
        """Load a module, and break it if it is the one."""
        load(self, module)
        if module.__name__ == fault.module:
            fault.put(module)

    SourceFileLoader.exec_module = exec_module  # type: ignore[method-assign]
