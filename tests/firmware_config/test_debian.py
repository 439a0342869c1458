"""The image of Debian's packages, on a small tree; `make board` makes the whole image and boots it."""

import filecmp
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgesan.errors import SinkError
from firmware_config import debian

ELF = bytes.fromhex("7f454c46020101000000000000000000") + b"\3\0"  # of 64 bits, little-endian; its machine follows
ARM, X86 = ELF + b"\xb7\0", ELF + b"\x3e\0"


def tree(folder: Path) -> Path:
    (folder / "boot/firmware").mkdir(parents=True)
    (folder / "boot/firmware/config.txt").write_text("arm_64bit=1\n")
    (folder / "usr/bin").mkdir(parents=True)
    for number in range(300):
        (folder / f"usr/bin/{number}").write_bytes(ARM)
    os.link(folder / "usr/bin/1", folder / "usr/bin/one")
    (folder / "bin").symlink_to("usr/bin")
    return folder


def test_a_tree_gives_the_same_card_each_time(tmp_path: Path) -> None:
    missing = [name for name in ("genimage", "mcopy", "mkfs.fat", "mke2fs", "debugfs") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; `make board` installs them where it is root")
    for name in ("first", "second"):
        debian.lay_out(tree(tmp_path / name), tmp_path / f"{name}.img")
        time.sleep(1.1)  # the clock of file systems
    assert filecmp.cmp(tmp_path / "first.img", tmp_path / "second.img", shallow=False)


def test_an_image_with_a_program_of_another_processor_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path)
    debian.check(root)
    (root / "usr/bin/sh").write_bytes(X86)
    with pytest.raises(SinkError, match="/usr/bin/sh holds a program for x86-64: expected only programs for Arm"):
        debian.check(root)


def test_such_a_program_is_found_inside_an_initrd(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("not installed: zstd")
    initrd = tmp_path / "initrd.img-6.12"
    initrd.write_bytes(b"first TRAILER!!!\0\0" + packed(b"070701" + ARM))
    debian.check(tmp_path)
    initrd.write_bytes(b"first TRAILER!!!\0\0" + packed(b"070701" + ARM + X86))
    with pytest.raises(SinkError, match=r"/initrd.img-6.12 holds a program for x86-64"):
        debian.check(tmp_path)


def packed(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=content, check=True, stdout=subprocess.PIPE).stdout
