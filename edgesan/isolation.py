"""What the sanitize process gives up, because it sees raw pixels."""

import ctypes
import resource
from typing import Final

PR_SET_DUMPABLE: Final = 4


def forbid_dumps() -> None:
    """No core dump, and no debugger of the same user: a dump of this process would hold raw pixels (prctl(2)).

    RLIMIT_CORE alone does not stop a kernel that pipes its dumps to a program; "not dumpable" does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
