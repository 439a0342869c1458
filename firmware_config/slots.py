"""An option: two root file systems on a card, A and B, and signed updates that write the one which does not run.

    python -m firmware_config.build --debian --slots update.pem --settings board.toml --out board.img
    python -m firmware_config.build --bundle --slots update.pem --key update.key --out update.raucb

RAUC verifies and writes (https://rauc.readthedocs.io); `root-slots/usr/lib/edgesan/slots` decides what boots. A bundle
holds nothing that belongs to one board: the running system carries its settings, token and models over.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgesan import __version__
from edgesan.errors import ConfigError
from firmware_config import debian

FILES: Final = Path(__file__).parent / "root-slots"
PROGRAM: Final = "usr/lib/edgesan/slots"
IN_ROOT: Final = "opt/edgesan/BUNDLE"  # install.py leaves such a root as it is
SIZE: Final = "3G"  # of each root
CARD: Final = (1 + 512 + 2 * 3072) * 2**20  # with the boot partition: the image is as long, and fits on a card of 8 GB
LAYOUT: Final = debian.LAYOUT.replace("size = 3580M", f"size = {SIZE}").replace(
    'image = "rootfs.ext4" }',
    f'image = "rootfs.ext4" }}\n    partition rootfs-b {{ partition-type = 0x83 size = {SIZE} }}',
)
# Debian's hooks would write a kernel where no slot's is looked for, and config.txt without a slot.
HOOKS: Final = ("kernel/postinst.d", "kernel/postrm.d", "initramfs/post-update.d")
MANIFEST: Final = """\
[update]
compatible=edgesan-debian
version={version}

[bundle]
format=verity

[hooks]
filename=hook

[image.rootfs]
filename=rootfs.ext4
hooks=post-install
"""
HOOK: Final = f"""\
#!/bin/sh -e
slots="$RAUC_SLOT_MOUNT_POINT/{PROGRAM}"
"$slots" fill "$RAUC_SLOT_BOOTNAME" "$RAUC_SLOT_MOUNT_POINT"
"$slots" carry "$RAUC_SLOT_MOUNT_POINT"
"""


@contextmanager
def tree(near: Path, certificate: Path) -> Iterator[Path]:
    """Lend Debian's root as a folder, ready for either slot. Root only, as files keep their owners."""
    with tempfile.TemporaryDirectory(prefix="edgesan-", dir=near) as name:
        debian.run("tar", "--extract", "--numeric-owner", "--file", str(debian.root()), "--directory", name)
        debian.settle(Path(name))
        debian.check(Path(name))
        prepare(Path(name), certificate)
        yield Path(name)


def image(tree: Path, out: Path) -> None:
    """Write a card with this root in slot A, and room for B."""
    first(tree)
    debian.lay_out(tree, out, LAYOUT, CARD)


def with_runtime(tree: Path, payload: Path) -> None:
    """Install edgesan into a root, so that the card's first boot need not, and does not."""
    debian.run(sys.executable, str(payload / "install.py"), f"--root={tree}")
    (tree / IN_ROOT).touch()


def prepare(tree: Path, certificate: Path) -> None:
    """Prepare a root for either slot, and for bundles that are signed with this certificate's key.

    Raises:
        ConfigError: it is not a certificate.
    """
    if "BEGIN CERTIFICATE" not in read(certificate) or "PRIVATE KEY" in read(certificate):
        raise ConfigError(
            f"{certificate} must hold a certificate and no key: docs/board.md has the command that makes one"
        )
    shutil.copytree(FILES, tree, dirs_exist_ok=True)
    (tree / PROGRAM).chmod(0o755)
    shutil.copyfile(certificate, tree / "etc/rauc/keyring.pem")
    fstab = tree / "etc/fstab"  # the kernel's command line says which root it is
    fstab.write_text("".join(line for line in fstab.read_text().splitlines(keepends=True) if " / " not in line))
    for hook in HOOKS:
        (tree / "etc" / hook / "z50-raspi-firmware").unlink(missing_ok=True)
    debian.run("systemctl", f"--root={tree}", "--quiet", "enable", "edgesan-slot.service")


def first(tree: Path) -> None:
    """Make this root's boot partition that of slot A."""
    boot = tree / "boot/firmware"
    lines = [line for line in read(boot / "config.txt").splitlines() if not line.startswith(("kernel=", "initramfs "))]
    lines += ["kernel=vmlinuz", "initramfs initrd.img followkernel"]
    for name, slot in (("config.txt", "A"), ("tryboot.txt", "B")):
        (boot / name).write_text("\n".join([*lines, f"os_prefix={slot}/"]) + "\n")
    for pattern in ("vmlinuz-*", "initrd.img-*", "bcm*.dtb"):
        for file in boot.glob(pattern):
            file.unlink()
    debian.run(str(FILES / PROGRAM), "fill", "A", str(tree), EDGESAN_BOOT=str(boot))


def bundle(tree: Path, out: Path, certificate: Path, key: Path, version: str = __version__) -> None:
    """Sign a root as a bundle: an ext4 file system as small as it gets, which grows to its slot.

    Raises:
        ConfigError: `out` is there already.
        CalledProcessError: RAUC or e2fsprogs failed.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: name another file with --out")
    boot = tree / "boot/firmware"  # here another partition is mounted; `fill` takes what it needs from the root
    shutil.rmtree(boot, ignore_errors=True)
    boot.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="edgesan-", dir=out.parent) as name:
        folder = Path(name)
        root = folder / "rootfs.ext4"
        debian.run("mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-d", str(tree), str(root), SIZE)
        debian.run("resize2fs", "-M", str(root))
        (folder / "manifest.raucm").write_text(MANIFEST.format(version=version))
        (folder / "hook").write_text(HOOK)
        (folder / "hook").chmod(0o755)
        signing = [f"--cert={certificate}", f"--key={key}", f"--keyring={certificate}"]
        packing = "--mksquashfs-args=-comp zstd -Xcompression-level 6"
        debian.run("rauc", "bundle", *signing, packing, str(folder), str(out))


def read(path: Path) -> str:
    """Read a text; raise ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
