"""`python -m firmware_config.deb`: a Debian package for a board that already runs: the wheel, its wheels and the units.

    python -m firmware_config.deb --out edgesan.deb
    python -m firmware_config.deb --out edgesan.deb --machine x86_64 --python 3.11

It is for one Python and one kind of machine, because the wheels are: by default Raspberry Pi OS and Debian trixie.
Users, units and the bundled model are those of an image. The configuration is a conffile, which dpkg never overwrites
unasked, and models that were installed later stay. The board needs no network to install it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from edgesan import __version__
from edgesan.config import DEMO_MODEL
from edgesan.errors import EdgesanError, SinkError
from edgesan.model.signing import signature_path
from firmware_config import install, sbom
from firmware_config.build import HERE, MACHINE, PROGRAMS, PYTHON, wheels

ARCHITECTURES: Final = {"aarch64": "arm64", "x86_64": "amd64"}
EPOCH: Final = "1767225600"  # of all files: the same tree gives the same bytes
CONFIG: Final = "etc/edgesan/edgesan.toml"
CONTROL: Final = """\
Package: edgesan
Version: {version}
Architecture: {architecture}
Maintainer: edgesan <edgesan@localhost>
Depends: python3 (>= {python}), python3 (<< {next}), systemd
Recommends: python3-picamera2
Suggests: gir1.2-gst-rtsp-server-1.0, python3-gi, glib-networking
Section: video
Priority: optional
Description: camera that sanitizes every face before anything leaves it
 A private attribute of each face is reduced, a chosen service still works.
 The libraries lie in /opt/edgesan/lib, beside nothing else.
"""
# The model goes to its place only if there is none: `edgesan install` may have put another one there.
POSTINST: Final = """\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
systemd-sysusers /usr/lib/sysusers.d/edgesan.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/edgesan.conf
models=/var/lib/edgesan/models
if [ ! -e $models/current ]; then
    mkdir -p $models/first
    cp /opt/edgesan/model/model.onnx /opt/edgesan/model/model.onnx.sig $models/first/
    ln -sfn first $models/current
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    udevadm control --reload || true
    udevadm trigger --subsystem-match=dma_heap --subsystem-match=misc || true
    sysctl --quiet --load=/usr/lib/sysctl.d/60-edgesan.conf || true
fi
systemctl enable --quiet {enabled}
if [ -d /run/systemd/system ]; then
    systemctl restart --no-block {fetch} {units}
    systemctl start --no-block {timer}
fi
"""
PRERM: Final = """\
#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
[ ! -d /run/systemd/system ] || systemctl stop {timer} {fetch} {units}
systemctl disable --quiet {enabled}
"""
POSTRM: Final = """\
#!/bin/sh
set -e
[ "$1" = purge ] || exit 0
rm -rf /var/lib/edgesan /etc/edgesan /opt/edgesan
"""


def build(out: Path, python: str, machine: str, ready: Path | None = None, sbom_file: Path | None = None) -> None:
    """Write the package.

    Args:
        out: the file.
        python: version of the board's Python, such as 3.13.
        machine: aarch64 or x86_64.
        ready: a folder of wheels that were downloaded before; None: download them.
        sbom_file: a file for the list of what it carries (`firmware_config.sbom`); None: none.

    Raises:
        ConfigError: a list is asked for, and cyclonedx-bom is not installed.
        SinkError: the wheels could not be downloaded, or dpkg-deb is not here.
    """
    with tempfile.TemporaryDirectory(prefix="edgesan-deb-") as name:
        tree, source = Path(name, "tree"), Path(name, "wheels")
        if ready is None:
            source.mkdir()
            wheels(source, python, machine)
        install.unpack(ready or source, tree / "opt/edgesan/lib")
        if sbom_file:
            sbom.write(tree / "opt/edgesan/lib", sbom_file)
        shutil.copytree(HERE / "root", tree, dirs_exist_ok=True)
        for program in PROGRAMS:
            (tree / program).chmod(0o755)
        model = tree / "opt/edgesan/model"
        model.mkdir(parents=True)
        shutil.copyfile(DEMO_MODEL, model / "model.onnx")
        shutil.copyfile(signature_path(DEMO_MODEL), model / "model.onnx.sig")
        _describe(tree / "DEBIAN", python, machine)
        command = ["dpkg-deb", "-Zzstd", "--root-owner-group", "--build", str(tree), str(out)]
        try:
            done = subprocess.run(
                command,
                env={"SOURCE_DATE_EPOCH": EPOCH, "PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise SinkError(f"dpkg-deb cannot be run: {error.strerror}; build the package on Debian") from error
        if done.returncode:
            raise SinkError(f"dpkg-deb failed: {done.stderr.strip()}")


def _describe(folder: Path, python: str, machine: str) -> None:
    """Write what dpkg reads: the description, the conffile and what is run before and after."""
    major, _, minor = python.partition(".")
    units = " ".join(install.UNITS)
    words = {"units": units, "fetch": install.FETCH, "timer": install.UPDATE}
    words["enabled"] = f"{units} {install.FETCH} {install.SETTLE} {install.UPDATE}"
    folder.mkdir()
    (folder / "control").write_text(
        CONTROL.format(
            version=__version__,
            architecture=ARCHITECTURES[machine],
            python=python,
            next=f"{major}.{int(minor) + 1}",
        )
    )
    (folder / "conffiles").write_text(f"/{CONFIG}\n")
    for script, text in (("postinst", POSTINST.format(**words)), ("prerm", PRERM.format(**words)), ("postrm", POSTRM)):
        (folder / script).write_text(text)
        (folder / script).chmod(0o755)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="firmware_config.deb", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the package, .deb")
    parser.add_argument("--machine", choices=ARCHITECTURES, default=MACHINE, help=f"(default: {MACHINE})")
    parser.add_argument("--python", default=PYTHON, metavar="VERSION", help=f"of the board (default: {PYTHON})")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels that were downloaded before")
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="also list what is in it (firmware_config/sbom.py)")
    given = parser.parse_args(arguments)
    try:
        build(given.out, given.python, given.machine, given.wheels, given.sbom)
    except EdgesanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.0f} MB; on the board: sudo apt install ./{given.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
