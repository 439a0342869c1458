"""`python -m firmware_config.build`: put edgesan into your own Raspberry Pi OS image; no root, only mtools.

    python -m firmware_config.build raspios.img.xz --settings board.toml --out board.img
    python -m firmware_config.build --debian --settings board.toml --out board.img
                                                                root only: an image of Debian's packages alone
    python -m firmware_config.build --bundle --slots update.pem --key update.key --out update.raucb
                                                                a signed update of such an image, made with --slots
    python -m firmware_config.build --payload FOLDER            only what goes into an image, for another way

Building needs the network, to download the wheels; the board needs none at its first boot.
"""

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from edgesan import __version__
from edgesan.board import flash
from edgesan.board.settings import Settings, inject, load_settings, seed
from edgesan.errors import ConfigError, EdgesanError, SinkError
from edgesan.model.load import load_model
from firmware_config import debian, sbom, slots

HERE: Final = Path(__file__).parent
TREE: Final = HERE.parent
PYTHON: Final = "3.13"  # of Raspberry Pi OS and Debian trixie
MACHINE: Final = "aarch64"
GLIBC: Final = range(17, 42)  # trixie has 2.41; a wheel for an older one runs, too
CHUNK: Final = 2**20
PROGRAMS: Final = ("usr/bin/edgesan", "usr/lib/systemd/system-generators/edgesan-fetch")
DEVICES: Final = ["pi5-64bit", "pi4-64bit", "pi3-64bit"]  # the Imager's names


def wheels(folder: Path, python: str = PYTHON, machine: str = MACHINE) -> None:
    """Download the wheels of the runtime for the board's Python, and build edgesan's own from this tree.

    Raises:
        SinkError: pip failed.
    """
    needed = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["dependencies"]
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC]
    options = [*platforms, f"--platform=manylinux2014_{machine}", f"--python-version={python}", f"--dest={folder}"]
    pip("download", "--only-binary=:all:", "--implementation=cp", *options, *needed)
    with tempfile.TemporaryDirectory(prefix="edgesan-") as name:  # a copy: building leaves traces
        copy = Path(name) / "tree"
        (copy / "docs").mkdir(parents=True)
        for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "docs/edgesan.1"):
            shutil.copy(TREE / file, copy / file)
        shutil.copytree(TREE / "edgesan", copy / "edgesan", ignore=shutil.ignore_patterns("__pycache__"))
        pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(copy), SOURCE_DATE_EPOCH="1767225600")


def pip(*arguments: str, **environment: str) -> None:
    """Run pip; raise SinkError with its own message if it fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SinkError(f"pip {arguments[0]} failed; it needs the network, or --wheels: {done.stderr.strip()}")


def payload(folder: Path, settings: Settings, ready: Path | None = None) -> None:
    """Lay out all that a board needs, with `install.py`, whose first lines describe it.

    Args:
        folder: empty, or not there.
        settings: the board's.
        ready: a folder of wheels that were downloaded before; None: download them.

    Raises:
        ConfigError: the model may not run.
        SinkError: the wheels could not be downloaded.
    """
    run = settings.run
    try:  # here, and not only on the board, where nobody would see it
        load_model(run.model, 1, run.trusted_keys, allow_unsigned=run.allow_unsigned)
    except EdgesanError as error:
        raise ConfigError(f"the board would refuse the model: {error}") from error
    (folder / "wheels").mkdir(parents=True)
    if ready is None:
        wheels(folder / "wheels")
    else:
        for wheel in sorted(ready.glob("*.whl")):
            shutil.copy(wheel, folder / "wheels")
    # One file: FAT knows no modes, and mcopy -s of mtools 4.0.32 crashes over folders that lie this deep.
    with tarfile.open(folder / "root.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in sorted(path for path in (HERE / "root").rglob("*") if path.is_file()):
            member = tarfile.TarInfo(file.relative_to(HERE / "root").as_posix())
            member.size, member.mode = file.stat().st_size, 0o755 if member.name in PROGRAMS else 0o644
            with file.open("rb") as stream:
                archive.addfile(member, stream)
    shutil.copy(HERE / "install.py", folder)
    (folder / "PYTHON").write_text(f"{PYTHON} {MACHINE}\n")
    for name, content in seed(settings).items():
        if name.startswith("edgesan/"):
            target = folder / name.removeprefix("edgesan/")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
    files = [folder / "root.tar", *sorted((folder / "wheels").iterdir())]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def copy_image(source: Path, target: Path) -> None:
    """Unpack an image, with holes where it is empty.

    Raises:
        ConfigError: it cannot be read, or the target is there already.
        SinkError: no room.
    """
    if target.exists():
        raise ConfigError(f"{target} exists: name another file with --out")
    try:
        with flash.opened(source) as stream, target.open("wb") as file:
            while block := stream.read(CHUNK):
                if block.count(0) == len(block):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate(file.tell())
    except (OSError, lzma.LZMAError, EOFError) as error:
        target.unlink(missing_ok=True)
        raise SinkError(f"cannot unpack {source} to {target}: {error}") from error


def manifest(image: Path, settings: Settings) -> dict[str, Any]:
    """Return what Raspberry Pi Imager 2 reads with --repo, by its os-list-schema.json. Not tried with the Imager."""
    digest = hashlib.sha256()
    with image.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    entry = {
        "name": f"edgesan {__version__} ({settings.hostname})",
        "description": "Raspberry Pi OS with edgesan: a camera that sanitizes every face before anything leaves it",
        "icon": "",
        "url": image.absolute().as_uri(),
        "extract_size": image.stat().st_size,
        "extract_sha256": digest.hexdigest(),
        "image_download_size": image.stat().st_size,
        "release_date": "",
        "init_format": "cloudinit-rpi",
        "devices": DEVICES,
    }
    return {"os_list": [entry]}


def arguments_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m firmware_config.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("image", type=Path, nargs="?", metavar="IMAGE", help="Raspberry Pi OS trixie, 64-bit: .img, .img.xz")
    add("--settings", type=Path, metavar="FILE", help="the board's settings: see edgesan/board/settings.py")
    add("--out", type=Path, metavar="FILE", help="the image to write (default: edgesan-HOSTNAME.img)")
    add("--wheels", type=Path, metavar="FOLDER", help="wheels that were downloaded before")
    add("--payload", type=Path, metavar="FOLDER", help="write only the payload, into this folder")
    add("--fetch", type=Path, metavar="FOLDER", help="download only the wheels, into this folder")
    debian_help = "make the image of Debian's packages, and its block map: USB cameras only"
    add("--debian", action="store_true", help=debian_help)
    slots_help = "with --debian: two roots, and signed updates of them: see firmware_config/slots.py"
    add("--slots", type=Path, metavar="CERTIFICATE", help=slots_help)
    add("--bundle", action="store_true", help="make such an update; --key signs it")
    add("--key", type=Path, metavar="FILE", help="the private key of the certificate")
    add("--compress", action="store_true", help="with --debian: also write it as .xz, for publishing")
    add("--sbom", type=Path, metavar="FILE", help="also list what is in it: see firmware_config/sbom.py")
    add("--manifest", type=Path, metavar="FILE", help="also write a manifest for Raspberry Pi Imager")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build what the options ask for; the exit codes are those of `edgesan.errors`."""
    parser = arguments_parser()
    arguments = parser.parse_args(argv)
    if wrong := _wrong(arguments):
        parser.error(wrong)
    try:
        if arguments.fetch:
            wheels(arguments.fetch)
            return 0
        settings = load_settings(arguments.settings)
        if arguments.payload:
            payload(arguments.payload, settings, arguments.wheels)
            write_sbom(arguments.payload, arguments.payload, arguments)
            print(f"{arguments.payload}: install it with python3 {arguments.payload / 'install.py'} [--root FOLDER]")
        elif arguments.bundle:
            out = arguments.out or Path("edgesan.raucb")
            make_bundle(out, settings, arguments)
            print(f"{out}: {out.stat().st_size / 1e9:.1f} GB; on the board: sudo rauc install {out.name}")
        else:
            out = arguments.out or Path(f"edgesan-{settings.hostname}.img")
            make_image(out, settings, arguments)
            print(f"{out}: {out.stat().st_size / 1e9:.1f} GB; write it with sudo edgesan flash {out} DEVICE")
    except subprocess.CalledProcessError as error:
        print(f"firmware_config.build: {error.cmd[0]} ended with {error.returncode}: see above", file=sys.stderr)
        return SinkError.exit_code
    except EdgesanError as error:
        print(f"firmware_config.build: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _wrong(arguments: argparse.Namespace) -> str:
    """Return what is wrong with a combination of options, or nothing."""
    if arguments.sbom and (words := sbom.missing()):
        return words
    if arguments.fetch or arguments.payload:
        return ""
    if arguments.slots and not (arguments.debian or arguments.bundle):
        return "--slots goes with --debian or --bundle: Raspberry Pi OS has one root"
    if arguments.bundle:
        complete = arguments.slots is not None and arguments.key is not None
        return "" if complete else "a bundle needs --slots CERTIFICATE and --key FILE"
    if (arguments.image is None) != arguments.debian:
        return "name the image of Raspberry Pi OS, or --debian, or --bundle, or --payload FOLDER"
    return ""


def make_bundle(out: Path, settings: Settings, arguments: argparse.Namespace) -> None:
    """Make a signed update with the runtime in it."""
    with tempfile.TemporaryDirectory(prefix="edgesan-") as name, slots.tree(out.parent, arguments.slots) as tree:
        payload(Path(name) / "payload", settings, arguments.wheels)
        slots.with_runtime(tree, Path(name) / "payload")
        slots.bundle(tree, out, arguments.slots, arguments.key)
        debian.list_packages(tree, out)
        write_sbom(Path(name) / "payload", out, arguments)


def make_image(out: Path, settings: Settings, arguments: argparse.Namespace) -> None:
    """Make an image with the payload and the settings in it."""
    with tempfile.TemporaryDirectory(prefix="edgesan-") as name:
        payload(Path(name) / "payload", settings, arguments.wheels)
        if arguments.debian and arguments.slots:
            with slots.tree(out.parent, arguments.slots) as tree:
                slots.image(tree, out)
                debian.list_packages(tree, out)
        elif arguments.debian:
            debian.image(out)
        else:
            copy_image(arguments.image, out)
        try:
            inject(out, settings, Path(name) / "payload")
        except EdgesanError:
            out.unlink()  # half of it is of no use
            raise
        write_sbom(Path(name) / "payload", out, arguments)
    if arguments.debian:
        debian.publish(out, compress=arguments.compress)
    if arguments.manifest:
        arguments.manifest.write_text(json.dumps(manifest(out, settings), indent=2) + "\n")


def write_sbom(payload: Path, out: Path, arguments: argparse.Namespace) -> None:
    """List what is carried, if that is asked for; of an image of Raspberry Pi OS, only what was added."""
    if arguments.sbom:
        debians = arguments.debian or arguments.bundle
        sbom.write(payload / "wheels", arguments.sbom, out.with_suffix(".packages.txt") if debians else None)


if __name__ == "__main__":
    sys.exit(main())
