"""The list of what an image carries: wheels, the libraries inside of them with their licences, Debian's packages."""

import json
import shutil
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from edgesan import __version__
from firmware_config import deb, sbom

HERE = Path(sysconfig.get_path("purelib"))
SOURCES = ("https://code.videolan.org/videolan/x264", "https://bitbucket.org/multicoreware/x265_git")


@pytest.fixture
def needed() -> None:
    if words := sbom.missing():
        pytest.skip(words)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PyAV's wheel, made again of what is installed here, and edgesan's without its files."""
    import av

    installed, folder = Path(av.__file__).parent.parent, tmp_path_factory.mktemp("wheels")
    libraries, (about,) = installed / "av.libs", installed.glob("av-*.dist-info")
    if not libraries.exists():
        pytest.skip("PyAV is not of a wheel here: pip install av")
    with zipfile.ZipFile(folder / f"{about.stem}-cp311-cp311-linux_x86_64.whl", "w") as wheel:
        for file in (*libraries.iterdir(), about / "METADATA"):
            wheel.write(file, file.relative_to(installed))
    with zipfile.ZipFile(folder / f"edgesan-{__version__}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("edgesan/cli.py", "")
        metadata = f"Metadata-Version: 2.4\nName: edgesan\nVersion: {__version__}\nRequires-Dist: av>=14,<19\n"
        wheel.writestr(f"edgesan-{__version__}.dist-info/METADATA", metadata)
    return folder


def read(path: Path) -> dict[str, Any]:
    """A list that holds to the schema of CycloneDX 1.6."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    content = path.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content) is None
    listed: dict[str, Any] = json.loads(content)
    return listed


def named(components: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = (each for each in components if each["name"] == name)
    return found


@pytest.mark.usefixtures("needed")
@pytest.mark.slow
def test_the_gpl_libraries_inside_of_pyav_are_listed_with_their_sources(wheels: Path, tmp_path: Path) -> None:
    assert sbom.main([str(wheels), "--out", str(tmp_path / "list.json")]) == 0
    listed = read(tmp_path / "list.json")
    assert listed["metadata"]["component"]["name"] == "edgesan"
    assert listed["metadata"]["component"]["version"] == __version__
    wheel = named(listed["components"], "av")
    assert wheel["licenses"][0]["license"]["id"] == "BSD-3-Clause"
    for name, source in zip(("libx264", "libx265"), SOURCES, strict=True):
        library = named(wheel["components"], name)
        assert library["licenses"] == [{"license": {"id": "GPL-2.0-or-later"}}]
        urls = [each["url"] for each in library["externalReferences"]]
        assert urls == [source, "https://github.com/PyAV-Org/pyav-ffmpeg"]
    assert named(wheel["components"], "libavcodec")["licenses"] == [{"license": {"id": "LGPL-3.0-or-later"}}]


@pytest.mark.usefixtures("needed")
@pytest.mark.slow
def test_nothing_of_this_machine_is_listed_and_the_same_wheels_give_the_same_list(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbom.write(wheels, tmp_path / "first.json")
    (tmp_path / "stray-1.dist-info").mkdir()
    (tmp_path / "stray-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.4\nName: stray\nVersion: 1\n")
    monkeypatch.chdir(tmp_path)
    sbom.write(wheels, tmp_path / "second.json")
    assert {each["name"] for each in read(tmp_path / "first.json")["components"]} <= {"av", "edgesan"}
    assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()


@pytest.mark.usefixtures("needed")
@pytest.mark.slow
def test_what_is_installed_is_listed_with_its_versions_and_debians_packages(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_text("libc6 2.41-12+deb13u1\npython3 3.13.5-1\n")
    sbom.write(HERE, tmp_path / "list.json", tmp_path / "packages.txt")
    listed = read(tmp_path / "list.json")
    assert named(listed["components"], "cyclonedx-bom")["version"] == version("cyclonedx-bom")
    assert named(listed["components"], "libc6")["purl"] == "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1"
    assert named(listed["components"], "python3")["version"] == "3.13.5-1"


@pytest.mark.usefixtures("needed")
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here: apt install dpkg")
def test_a_package_is_built_with_its_list(wheels: Path, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "e.deb"), "--wheels", str(wheels), "--sbom", str(tmp_path / "e.json")]
    assert deb.main(options) == 0
    assert named(read(tmp_path / "e.json")["components"], "av")["components"]


def test_a_folder_without_packages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sbom.main([str(tmp_path), "--out", str(tmp_path / "list.json")]) == 2
    assert f"{tmp_path} holds neither wheels nor what was installed of them" in capsys.readouterr().err
    assert not (tmp_path / "list.json").exists()
