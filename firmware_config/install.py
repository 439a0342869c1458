#!/usr/bin/env python3
"""Install edgesan from the folder that holds this file, without a network.

It runs at a board's first boot, or (`--root`) installs into a folder that becomes a board. It needs the board's own
Python and nothing else. Running it twice does no harm.

    wheels/    unpacked to /opt/edgesan/lib; nothing of the system's Python is touched
    root.tar   units, users, rules, configuration: unpacked over /
    settings/  edgesan.toml, token.env and camera.env, for /etc/edgesan
    model/     model.onnx and its signature, for /var/lib/edgesan/models; `current` points to it
    SHA256SUMS of the wheels and root.tar, as a worn SD card changes files
"""

import argparse
import compileall
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import traceback
import zipfile
from contextlib import suppress
from pathlib import Path
from py_compile import PycInvalidationMode

BUNDLE = Path("/opt/edgesan/BUNDLE")
UNITS = ("edgesan-sanitize.service", "edgesan-transmit.service")
FETCH = "edgesan-fetch.socket"  # starts nothing until a network camera is opened
SETTLE = "edgesan-settle.service"  # at boot only
UPDATE = "edgesan-update.timer"  # does nothing until a repository is named
SECRETS = ("token.env", "camera.env")
# What the units import: compiled at the installation, see `compile_imports`.
IMPORTED = (
    "edgesan.cli",
    "edgesan.pipeline",
    "edgesan.sanitize",
    "edgesan.capture.opencv",
    "edgesan.fetch.camera",
    "edgesan.transmit.unit",
    "edgesan.transmit.http",
    "edgesan.board.doctor",
    "onnx",
    "onnxruntime",
)


class InstallError(Exception):
    """What is wrong, and what to do."""


def check_sums(source: Path) -> None:
    """Raise InstallError if a file is missing, or is not as it was written."""
    for line in (source / "SHA256SUMS").read_text().splitlines():
        wanted, name = line.split("  ", 1)
        file = source / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            raise InstallError(f"{file} is not as it was written: the card may be worn; write it again")


def check_python(source: Path, root: Path) -> None:
    """Raise InstallError if the wheels are not for the Python that will run them."""
    wanted = (source / "PYTHON").read_text().split()  # 3.13 aarch64
    if root == Path("/"):
        here = [".".join(map(str, sys.version_info[:2])), platform.machine()]
        if here != wanted:
            raise InstallError(
                f"this system has Python {' on '.join(here)}, and the wheels are for {' on '.join(wanted)}:"
                " use Raspberry Pi OS trixie, 64-bit, or build the payload for this system"
            )
    elif not (root / f"usr/bin/python{wanted[0]}").exists():
        raise InstallError(f"{root} has no python{wanted[0]}, which the wheels are for")


def unpack(wheels: Path, lib: Path) -> None:
    """Unpack all wheels into one folder; the old folder is removed when the new one is whole."""
    new, old = lib.with_name("lib.new"), lib.with_name("lib.old")
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                top, _, rest = entry.filename.partition("/")
                name = entry.filename
                if top.endswith(".data"):  # PEP 427: what does not belong into the library
                    kind, _, name = rest.partition("/")
                    if kind not in ("purelib", "platlib"):
                        continue  # commands, headers: not needed
                if not entry.is_dir():
                    target = new / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as content, target.open("wb") as file:
                        shutil.copyfileobj(content, file)
    os.sync()  # otherwise a power cut within half a minute would leave empty files under the new name
    if lib.exists():
        lib.rename(old)
    new.rename(lib)
    shutil.rmtree(old, ignore_errors=True)


def check_owner(folder: os.stat_result, target: Path) -> None:
    """Raise InstallError if this is root, and another user may decide where the names in the folder lead."""
    loose = folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX
    if os.geteuid() == 0 and (folder.st_uid or loose):
        raise InstallError(f"others than root may change the folder of {target}: chown root and chmod go-w it")


def put(content: bytes, target: Path, mode: int = 0o644) -> None:
    """Put a file in its place, whole; a link there is replaced, not followed.

    Raises:
        InstallError: this is root, and another user may decide where the names in the folder lead.
        OSError: no room, or no rights.
    """
    check_owner(next(place for place in target.parents if place.exists()).stat(), target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        check_owner(os.fstat(folder), target)
        part = f".{target.name}.part"
        with suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with open(file, "wb") as written:
            os.fchmod(file, mode)
            written.write(content)
        os.replace(part, target.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def install(source: Path, root: Path) -> None:
    """Install everything, and start nothing.

    Raises:
        InstallError: the payload is damaged, or not for this system.
        OSError: no room, or no rights.
    """
    check_sums(source)
    check_python(source, root)
    lib = root / "opt/edgesan/lib"
    unpack(source / "wheels", lib)
    with tarfile.open(source / "root.tar") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                put(content.read(), root / member.name, 0o755 if member.mode & 0o100 else 0o644)
    for file in sorted((source / "settings").glob("*")):
        put(file.read_bytes(), root / "etc/edgesan" / file.name, 0o600 if file.name in SECRETS else 0o644)
    place_model(source / "model", root / "var/lib/edgesan/models")
    subprocess.run(
        ["systemd-sysusers", f"--root={root}", str(root.absolute() / "usr/lib/sysusers.d/edgesan.conf")], check=True
    )
    for target, units in (("multi-user", (*UNITS, SETTLE)), ("sockets", (FETCH,)), ("timers", (UPDATE,))):
        wants = root / f"etc/systemd/system/{target}.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        for unit in units:
            (wants / unit).unlink(missing_ok=True)
            (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")


def place_model(model: Path, models: Path) -> None:
    """Put the model into a folder of its own, and switch `current` to it, as `edgesan install` does."""
    content = (model / "model.onnx").read_bytes()
    folder = models / f"first-{hashlib.sha256(content).hexdigest()[:12]}"
    for file in sorted(model.iterdir()):
        put(file.read_bytes(), folder / file.name)
    link = models / ".current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(models / "current")


def compile_imports() -> None:
    """Import everything once, as root, so that Python keeps the compiled modules.

    The units may not write there, and would compile them at each start.
    """
    environment = os.environ | {"PYTHONPATH": "/opt/edgesan/lib", "ORT_DISABLE_TELEMETRY": "1"}
    imports = f"import {', '.join(IMPORTED)}"
    subprocess.run([sys.executable, "-s", "-P", "-c", imports], env=environment, check=False)


def start() -> None:
    """Start everything on this board."""
    for command in (
        ["systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/edgesan.conf"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "try-restart", "systemd-journald.service"],
        ["udevadm", "control", "--reload"],
        ["udevadm", "trigger", "--subsystem-match=dma_heap", "--subsystem-match=misc"],
        ["sysctl", "--quiet", "--load=/usr/lib/sysctl.d/60-edgesan.conf"],
        ["systemctl", "restart", "--no-block", FETCH, *UNITS],
    ):
        done = subprocess.run(command, check=False)
        if done.returncode:
            print(f"edgesan: {' '.join(command)} ended with {done.returncode}", file=sys.stderr)


def main() -> int:
    """Install; return 0, or 1 with the reason in FAILED.txt beside this file: another machine can read the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="FOLDER", help="install below here (default: /)"
    )
    parser.add_argument("--source", type=Path, default=Path(__file__).parent, metavar="FOLDER", help="the payload")
    parser.add_argument("--no-start", action="store_true", help="start nothing (also so with --root)")
    parser.add_argument(
        "--compile", action="store_true", help="with --root: compile all modules, for this version of Python"
    )
    arguments = parser.parse_args()
    here = arguments.root == Path("/")
    if here and BUNDLE.exists():  # otherwise the first boot of a new root would bring back the card's first version
        print("edgesan: this root came with it, in a bundle: nothing to install")
        return 0
    os.umask(0o022)  # the units' users must be able to read it
    failed = arguments.source / "FAILED.txt"
    try:
        failed.unlink(missing_ok=True)
        install(arguments.source, arguments.root)
    except (InstallError, OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        print(f"edgesan: not installed: {error}", file=sys.stderr)
        with suppress(OSError, InstallError):  # the message above must do
            put(f"{error}\n\n{traceback.format_exc()}".encode(), failed)
        return 1
    if here:
        for name in SECRETS:  # on the board only root reads them; on the card, everybody can
            (arguments.source / "settings" / name).unlink(missing_ok=True)
        compile_imports()
        os.sync()
        if not arguments.no_start:
            start()
    elif arguments.compile:
        library, mode = arguments.root / "opt/edgesan/lib", PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(library, quiet=2, workers=0, invalidation_mode=mode, stripdir=str(arguments.root))
    print(f"edgesan: installed into {arguments.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
