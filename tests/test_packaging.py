"""What `pip install .` installs: the runtime with its models, page and clip, and nothing of the laboratory."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesan import __version__
from tests.support import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel of this tree, made of a copy, since building leaves traces."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "edgesan.1", folder / "docs")
    shutil.copytree(ROOT / "edgesan", folder / "edgesan", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("export", "benchmarks", "firmware_config", "tests"):  # which must not get in
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder / "dist"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "dist").glob("*.whl")
    yield made
    shutil.rmtree(folder)


def test_the_wheel_holds_the_whole_runtime_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "edgesan"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    page = f"edgesan-{__version__}.data/data/share/man/man1/edgesan.1"
    assert inside == {path.relative_to(ROOT).as_posix() for path in files} | {page}
    assert inside > {
        "edgesan/capture/demo.mp4",
        "edgesan/capture/demo.png",
        "edgesan/models/default.onnx",
        "edgesan/models/default.onnx.sig",
        "edgesan/models/edgesan.pub",
        "edgesan/models/yunet.onnx",
        "edgesan/py.typed",
        "edgesan/web/index.html",
        "edgesan/web/login.html",
        "edgesan/web/webrtc.js",
        "edgesan/web/zones.js",
    }


def test_the_wheel_says_its_version_its_command_and_its_licences(wheel: Path) -> None:
    about = f"edgesan-{__version__}.dist-info"
    content = zipfile.ZipFile(wheel)
    assert f"Version: {__version__}" in content.read(f"{about}/METADATA").decode().splitlines()
    assert "edgesan = edgesan.cli:main" in content.read(f"{about}/entry_points.txt").decode()
    assert {f"{about}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= set(content.namelist())


def test_what_the_wheel_holds_runs_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-P", "-m", "edgesan", "inspect"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "edgesan" / "models" / "default.onnx") in done.stdout
    assert "known answer: right on this machine" in done.stdout
