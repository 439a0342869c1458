"""The Debian package: what is in it, and what it runs."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from edgesan import __version__
from firmware_config import deb, install

FILES = [
    "./opt/edgesan/lib/edgesan/cli.py",
    "./opt/edgesan/model/model.onnx.sig",
    "./usr/bin/edgesan",
    "./etc/edgesan/edgesan.toml",
    "./usr/lib/sysusers.d/edgesan.conf",
    *(f"./usr/lib/systemd/system/{unit}" for unit in (*install.UNITS, install.FETCH, install.SETTLE, install.UPDATE)),
    "./usr/lib/systemd/system-generators/edgesan-fetch",
]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A wheel that holds one module of edgesan."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"edgesan-{__version__}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("edgesan/cli.py", "")
    return folder


def described(package: Path, *what: str) -> str:
    return subprocess.run(["dpkg-deb", *what, str(package)], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here: apt install dpkg")
def test_the_package_has_the_units_the_libraries_and_the_model(wheels: Path, tmp_path: Path) -> None:
    package = tmp_path / "edgesan.deb"
    options = ["--out", str(package), "--wheels", str(wheels)]
    assert deb.main(options) == 0
    control = described(package, "--field")
    assert "Architecture: arm64" in control
    assert "python3 (>= 3.13), python3 (<< 3.14)" in control
    assert f"Version: {__version__}" in control
    assert "Suggests: gir1.2-gst-rtsp-server-1.0, python3-gi, glib-networking" in control, "612 MB: not recommended"
    listed = [line.split() for line in described(package, "--contents").splitlines()]
    assert {owner for _, owner, *_ in listed} == {"root/root"}
    assert set(FILES) <= {words[5] for words in listed}
    assert {words[5] for words in listed if words[0][7] == "w" or words[0].startswith("-rws")} == set()
    again = tmp_path / "again.deb"
    deb.build(again, "3.13", "aarch64", wheels)
    assert again.read_bytes() == package.read_bytes(), "the same tree gives the same bytes"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here: apt install dpkg")
def test_its_scripts_are_shell_and_keep_what_the_owner_has(wheels: Path, tmp_path: Path) -> None:
    package = tmp_path / "edgesan.deb"
    deb.build(package, "3.11", "x86_64", wheels)
    subprocess.run(["dpkg-deb", "--control", str(package), str(tmp_path / "control")], check=True)
    for script in ("postinst", "prerm", "postrm"):
        file = tmp_path / "control" / script
        assert subprocess.run(["sh", "-n", str(file)], check=False).returncode == 0
        for wrong in ("upgrade", "abort-install"):  # nothing is done but what is meant
            assert subprocess.run(["sh", str(file), wrong], check=False).returncode == 0
    assert (tmp_path / "control" / "conffiles").read_text() == "/etc/edgesan/edgesan.toml\n"
    assert "if [ ! -e $models/current ]" in (tmp_path / "control" / "postinst").read_text()


def test_without_wheels_the_error_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wheels").mkdir()
    assert deb.main(["--out", str(tmp_path / "no" / "x.deb"), "--wheels", str(tmp_path / "wheels")]) == 5
    assert "dpkg-deb" in capsys.readouterr().err
