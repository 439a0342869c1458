"""Shared by the tests of isolation."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.isolation.support import Target, reachable
from tests.support import ROOT

NOBODY = 65534


def works() -> bool:
    """Whether this machine's kernel gives all of it; where it does not, edgesan must say so."""
    processes = ("sanitize", "transmit", "fetch")
    commands = ([sys.executable, "-P", "-m", "edgesan.isolation", process] for process in processes)
    printed = [subprocess.run(command, capture_output=True, check=True).stdout for command in commands]
    return all(claim["holds"] for each in printed for claim in json.loads(each))


@pytest.fixture(scope="session")
def whole() -> None:
    if not works():
        pytest.skip("this kernel does not give all of the isolation")


@pytest.fixture(params=["root", "an ordinary user"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    is_root = os.getuid() == 0
    if request.param == "root" and not is_root:
        pytest.skip("only root can be root")
    if not reachable(ROOT):
        pytest.skip("the sources lie where no other user may go")
    user = NOBODY if is_root and request.param != "root" else None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, closing(Target(Path(folder), user)) as target:
        yield target
