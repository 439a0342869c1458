"""`python -m firmware_config.sbom`: list what an image or a package carries (SBOM: CycloneDX 1.6, JSON).

    python -m firmware_config.sbom FOLDER --out FILE [--packages LIST]

FOLDER holds wheels, or what was installed of them. cyclonedx-py lists them, with licences and addresses. It does not
look inside: the libraries that a wheel carries (NAME.libs) are added here, as parts of it, with the licences of those
that whoever hands them on must know of (NOTICE). LIST has Debian's packages, a line each: name and version.
"""

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from edgesan import __version__
from edgesan.errors import ConfigError, EdgesanError, SinkError
from firmware_config import install

TREE: Final = Path(__file__).parent.parent
LIBRARY: Final = re.compile(r"(.+?)(?:-[0-9a-f]{8})*\.so(?:\.([\w.]+))?")  # libx264-d6533a8d.so.165
_FFMPEG: Final = ("LGPL-3.0-or-later", "https://ffmpeg.org/download.html")
# By wheel and library: the licence as PyAV's wheels say it (av._core.library_meta), and where the source is.
INSIDE: Final = {
    ("av", "libx264"): ("GPL-2.0-or-later", "https://code.videolan.org/videolan/x264"),
    ("av", "libx265"): ("GPL-2.0-or-later", "https://bitbucket.org/multicoreware/x265_git"),
    **{("av", f"libav{part}"): _FFMPEG for part in ("codec", "device", "filter", "format", "util")},
    **{("av", f"libsw{part}"): _FFMPEG for part in ("resample", "scale")},
}
BUILDS: Final = {"av": "https://github.com/PyAV-Org/pyav-ffmpeg"}  # scripts, versions and checksums of all libraries


def write(folder: Path, out: Path, packages: Path | None = None) -> None:
    """Write an SBOM.

    Args:
        folder: of wheels, or of what was installed of them.
        out: the file.
        packages: a list of Debian's packages that are there, too.

    Raises:
        ConfigError: cyclonedx-bom is not installed, or nothing is in the folder.
        SinkError: cyclonedx-py failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgesan-sbom-") as name:
        library = folder.absolute()
        if any(folder.glob("*.whl")):
            library = Path(name, "lib")
            install.unpack(folder, library)
        if not any(library.glob("*.dist-info")):
            raise ConfigError(f"{folder} holds neither wheels nor what was installed of them: name such a folder")
        listed = _listed(library, Path(name))
        parts = {_normal(each.stem): _inside(each) for each in sorted(library.glob("*.libs"))}
    listed["metadata"]["component"]["version"] = __version__
    for component in listed["components"]:
        if found := parts.get(_normal(component["name"])):
            component["components"] = found
    if packages is not None:
        listed["components"] += map(_package, packages.read_text(encoding="utf-8").splitlines())
    out.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def missing() -> str:
    """Return what keeps this Python from writing an SBOM, in words; empty if nothing."""
    return (
        ""
        if find_spec("cyclonedx_py")
        else "an SBOM needs cyclonedx-bom: pip install '.[sbom]', at the root of the clone"
    )


def _listed(library: Path, work: Path) -> dict[str, Any]:
    """Return what cyclonedx-py says of a folder.

    It asks a Python for its search path. The one that is named here has that folder, and no other packages.
    """
    if words := missing():
        raise ConfigError(words)
    python = work / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(library))} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "-S", "--output-reproducible", "--sv=1.6"]
    command += [f"--pyproject={TREE / 'pyproject.toml'}", str(python)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SinkError(f"cyclonedx-py failed: {done.stderr.strip()}")
    listed: dict[str, Any] = json.loads(done.stdout)
    return listed


def _inside(folder: Path) -> list[dict[str, Any]]:
    """Return the libraries that a wheel carries, in NAME.libs, as components; versions are those in their names."""
    wheel, found = _normal(folder.stem), []
    for file in sorted(folder.iterdir()):
        match = LIBRARY.fullmatch(file.name)
        name, version = match.groups() if match else (file.name, None)
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": f"{wheel}/{file.name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(file.read_bytes()).hexdigest()}],
        }
        if version:
            component["version"] = version
        if (wheel, name) in INSIDE:
            licence, source = INSIDE[wheel, name]
            component["licenses"] = [{"license": {"id": licence}}]
            component["externalReferences"] = [
                {"type": "source-distribution", "url": source},
                {"type": "build-meta", "url": BUILDS[wheel]},
            ]
        found.append(component)
    return found


def _package(line: str) -> dict[str, Any]:
    """Return a package of Debian's as a component: name and version."""
    name, version = line.split()
    url = f"pkg:deb/debian/{name}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _normal(name: str) -> str:
    """Return the name of a wheel as packaging compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="firmware_config.sbom", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of wheels, or of what was installed of them")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the SBOM, .cdx.json")
    parser.add_argument(
        "--packages", type=Path, metavar="LIST", help="Debian's packages: name and version, a line each"
    )
    given = parser.parse_args(arguments)
    try:
        write(given.folder, given.out, given.packages)
    except EdgesanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{given.out}: what {given.folder} carries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
