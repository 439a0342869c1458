"""Which disks may be written, and what is on them afterwards. Listings are lsblk's own; the cards are files."""

import gzip
import hashlib
import json
import lzma
import os
import pty
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesan.board import flash
from edgesan.board.flash import Range
from edgesan.cli import main
from edgesan.errors import ConfigError, SinkError
from tests.support import COMMAND, ROOT, report

pytestmark = pytest.mark.slow  # an image is written and read back

GB = 10**9


def disk(path: str, size: int = 32 * GB, **more: Any) -> dict[str, Any]:
    row = {
        "path": path,
        "size": size,
        "vendor": None,
        "model": "Disk",
        "tran": None,
        "rm": False,
        "hotplug": False,
        "ro": False,
        "type": "disk",
        "mountpoints": [None],
    }
    return row | more


def part(path: str, *mounts: str, **more: Any) -> dict[str, Any]:
    return disk(path, type="part", mountpoints=list(mounts) or [None], **more)


LISTING = {
    "blockdevices": [
        disk(
            "/dev/nvme0n1",
            512 * GB,
            model="Fast 512",
            tran="nvme",
            children=[
                part("/dev/nvme0n1p1", "/boot/efi"),
                part(
                    "/dev/nvme0n1p2",
                    children=[
                        disk(
                            "/dev/mapper/crypt",
                            type="crypt",
                            children=[disk("/dev/mapper/root", type="lvm", mountpoints=["/"])],
                        )
                    ],
                ),
            ],
        ),
        disk("/dev/sda", 4000 * GB, model="Big 4T", tran="sata"),
        disk("/dev/sdb", model="Stick", vendor="Maker ", tran="usb", rm=True),
        disk("/dev/sdc", model="Mounted", tran="usb", rm=True, children=[part("/dev/sdc1", "/media/me/photos")]),
        disk("/dev/sdd", model="Home", tran="usb", hotplug=True, children=[part("/dev/sdd1", "/home")]),
        disk("/dev/sde", model="Locked", tran="usb", rm=True, ro=True),
        disk(
            "/dev/sdf",
            model="Raid",
            tran="usb",
            rm=True,
            children=[part("/dev/sdf1", children=[disk("/dev/md0", type="raid1")])],
        ),
        disk("/dev/sdg", 0, model="Empty reader", tran="usb", rm=True),
        disk("/dev/mmcblk0", model=None, tran="mmc", hotplug=True, children=[part("/dev/mmcblk0p1")]),
        disk("/dev/sdh", model="Swap", tran="usb", rm=True, children=[part("/dev/sdh1", "[SWAP]")]),
        disk("/dev/loop3", 10**8, type="loop", model=None),
        disk("/dev/loop4", 10**8, type="loop", model=None, mountpoints=["/snap/core/1"]),
        disk("/dev/sr0", type="rom", rm=True),
    ]
}
REFUSED = {
    "/dev/nvme0n1": r"/dev/nvme0n1 \(512\.0 GB, Fast 512\) is refused: the running system is on it \(/, /boot/efi\)",
    "/dev/sda": r"/dev/sda \(4000\.0 GB, Big 4T\) is refused: it cannot be taken out",
    "/dev/sdc": r"\(32\.0 GB, Mounted\) is refused: it is in use: sudo umount /media/me/photos",
    "/dev/sdd": r"the running system is on it \(/home\)",
    "/dev/sde": "write-protected",
    "/dev/sdf": r"part of something else \(raid1\)",
    "/dev/sdh": r"the running system is on it \(\[SWAP\]\)",
    "/dev/loop4": r"the running system is on it \(/snap/core/1\)",
    "/dev/sdg": "is no disk of this machine",
    "/dev/sr0": "is no disk of this machine",
    "/dev/sdb1": "is no disk of this machine",
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_disk_that_is_no_card_is_refused_with_its_name_and_size(path: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[path]):
        flash.choose(Path(path), flash.devices(LISTING), to_file=False)


@pytest.mark.parametrize("path", ["/dev/sdb", "/dev/mmcblk0", "/dev/loop3"])
def test_a_card_may_be_written(path: str) -> None:
    assert flash.choose(Path(path), flash.devices(LISTING), to_file=False).path == path


def test_the_table_shows_cards_first_and_why_others_are_none() -> None:
    lines = flash.table(flash.devices(LISTING)).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["/dev/sdb", "/dev/mmcblk0", "/dev/loop3"]
    assert lines[0].split(None, 3)[3] == "Maker Stick"
    assert all("refused, " in line for line in lines[3:])
    assert flash.table([]) == "no card was found: insert one, or connect a card reader"


def test_a_link_to_a_system_disk_is_refused_as_that_disk(tmp_path: Path) -> None:
    (tmp_path / "card").symlink_to("/dev/nvme0n1")
    with pytest.raises(ConfigError, match="Fast 512"):
        flash.choose(tmp_path / "card", flash.devices(LISTING), to_file=False)


def test_this_machines_own_disks_are_refused() -> None:
    """Whatever runs the tests runs from some disk, if it has one at all."""
    found = flash.list_devices()
    roots = [line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == "/"]
    for device in found:
        if any(root.startswith(device.path) for root in roots):
            assert "the running system is on it" in device.refused


# --- writing ----------------------------------------------------------------------------------------------------------


# Of a master boot record: one FAT32 partition from sector 8192 on, no others, the signature.
TABLE = struct.pack("<B3xB3xII", 0, 0x0C, 8192, 8192) + bytes(48) + b"\x55\xaa"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """3 blocks of 4096 bytes that hold something, among 2500."""
    path = tmp_path / "board.img"
    with path.open("wb") as file:
        for block in (0, 1, 2000):
            file.seek(4096 * block)
            file.write(bytes([block % 251 + 1]) * 4096)
        file.truncate(4096 * 2500 - 100)
        file.seek(446)
        file.write(TABLE)
    return path


def bmap(image: Path, *, digest: str | None = None) -> Path:
    """As bmaptool writes it."""
    content = image.read_bytes()
    rows = "".join(
        f'<Range chksum="{digest or hashlib.sha256(content[4096 * a : 4096 * (b + 1)]).hexdigest()}"> {a}-{b} </Range>'
        if a != b
        else f'<Range chksum="{digest or hashlib.sha256(content[4096 * a : 4096 * (b + 1)]).hexdigest()}"> {a} </Range>'
        for a, b in ((0, 1), (2000, 2000))
    )
    path = image.with_name(f"{image.name}.bmap")
    path.write_text(
        f'<?xml version="1.0" ?><bmap version="2.0"><ImageSize> {len(content)} </ImageSize>'
        "<BlockSize> 4096 </BlockSize>"
        f"<ChecksumType> sha256 </ChecksumType><BlockMap>{rows}</BlockMap></bmap>"
    )
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "flash", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)


def zstd(content: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not here: apt install zstd")
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("packing", ["", *PACKERS])
def test_what_is_written_is_the_image_however_it_is_packed(image: Path, tmp_path: Path, packing: str) -> None:
    packed = image.with_name(image.name + packing)
    if packing:
        packed.write_bytes(PACKERS[packing](image.read_bytes()))
    done = run(packed, tmp_path / "card", "--to-file")
    assert done.returncode == 0, done.stderr
    assert "read back and compared" in done.stdout
    assert (tmp_path / "card").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("packing", ["", *PACKERS])
def test_by_a_block_map_only_what_holds_something_is_written(image: Path, tmp_path: Path, packing: str) -> None:
    bmap(image)
    packed = image.with_name(image.name + packing)
    if packing:
        packed.write_bytes(PACKERS[packing](image.read_bytes()))
    done = run(packed, tmp_path / "card", "--to-file")
    assert done.returncode == 0, done.stderr
    assert "0.0 MB of 10.2 MB" in done.stdout
    assert (tmp_path / "card").read_bytes() == image.read_bytes()
    assert (tmp_path / "card").stat().st_blocks * 512 < image.stat().st_size // 10


def test_a_map_of_another_image_is_seen_before_the_last_block(image: Path, tmp_path: Path) -> None:
    bmap(image, digest="0" * 64)
    done = run(image, tmp_path / "card", "--to-file")
    assert done.returncode == 2
    assert "is not what its block map says" in done.stderr


@pytest.mark.parametrize("text", ["", "<bmap/>", "<bmap><ImageSize>1</ImageSize></bmap>"])
def test_what_is_no_block_map_is_refused(image: Path, text: str) -> None:
    bmap(image).write_text(text)
    with pytest.raises(ConfigError, match=r"is no block map of version 2 .*: make it again, or remove it"):
        flash.block_map(image)


def test_a_dry_run_writes_nothing(image: Path, tmp_path: Path) -> None:
    done = run(image, tmp_path / "card", "--to-file", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("would write board.img: 10.2 MB of 10.2 MB to ")
    assert not (tmp_path / "card").exists()


def test_a_file_is_written_only_where_it_was_asked_for(image: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    done = run(image, precious, "--yes")
    assert done.returncode == 2
    assert f"{precious} is a file of 0.0 MB, and no device: give --to-file if you mean it" in done.stderr
    assert precious.read_bytes() == b"mine"
    assert "is the image itself" in run(image, image, "--to-file").stderr
    assert "is no file: leave out --to-file" in run(image, "/dev/null", "--to-file").stderr
    assert image.stat().st_size == 4096 * 2500 - 100


def boot_record(entry: bytes, end: bytes = b"\x55\xaa", after: bytes = b"") -> bytes:
    return bytes(446) + entry + bytes(48) + end + after + bytes(8192)


NO_IMAGES = {
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(8192),
    "a page that a server sent instead": b"<!doctype html><title>404</title>" + b" " * 8192,
    "zeros": bytes(8192),
    "too short": b"\x55\xaa",
    "no signature": boot_record(TABLE[:16], b"\0\0"),
    "no partition": boot_record(bytes(16)),
    "a partition of no sectors": boot_record(struct.pack("<B3xB3xII", 0, 0x0C, 8192, 0)),
    "a partition from sector 0 on": boot_record(struct.pack("<B3xB3xII", 0, 0x0C, 0, 99)),
    "a lone partition": b"\xeb\x58\x90mkfs.fat"
    + b"This is not a bootable disk. " * 15
    + bytes(64)
    + b"\x55\xaa"
    + bytes(8192),
    "an archive inside": gzip.compress(boot_record(TABLE[:16])),
}


@pytest.mark.parametrize("packing", ["", *PACKERS])
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_has_no_partition_table_is_not_written(tmp_path: Path, kind: str, packing: str) -> None:
    path = tmp_path / f"board.img{packing}"
    path.write_bytes(PACKERS.get(packing, bytes)(NO_IMAGES[kind]))
    with pytest.raises(ConfigError, match=r"is no image of a card: expected a partition table .* name the \.img"):
        flash.flash(path, tmp_path / "card", None, flash.Options(to_file=True, yes=True))
    assert not (tmp_path / "card").exists()


def test_a_gpt_is_a_partition_table_with_and_without_a_boot_record_before_it(tmp_path: Path) -> None:
    path = tmp_path / "board.img"
    for first in (bytes(512), bytes(446) + struct.pack("<B3xB3xII", 0, 0xEE, 1, 99) + bytes(48) + b"\x55\xaa"):
        path.write_bytes(first + b"EFI PART" + bytes(8192))
        flash.check_table(path)


def test_a_file_that_is_there_is_overwritten_only_after_a_yes(image: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.write_bytes(b"precious")
    refused = run(image, card, "--to-file")
    assert (refused.returncode, card.read_bytes()) == (2, b"precious")
    assert "would be lost: give --yes, as there is no terminal to ask at" in refused.stderr

    def answered(word: bytes) -> int:
        ours, its = pty.openpty()
        asking = subprocess.Popen(
            [*COMMAND, "flash", str(image), str(card), "--to-file"], stdin=its, stderr=its, stdout=its
        )
        os.close(its)
        os.write(ours, word + b"\n")
        code = asking.wait(60)
        os.close(ours)
        return code

    assert (answered(b"no"), card.read_bytes()) == (2, b"precious")
    assert (answered(b"yes"), card.read_bytes()) == (0, image.read_bytes())
    card.write_bytes(bytes(9 * 4096 * 2500))
    assert run(image, card, "--to-file", "--yes").returncode == 0
    assert card.read_bytes() == image.read_bytes(), "and what was longer is cut"
    report("flash --to-file onto a file that is there, nobody says yes", "exit code 2, the file is as it was", 0)


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_through_a_link(image: Path, tmp_path: Path, there: bool) -> None:
    victim, card = tmp_path / "victim", tmp_path / "card"
    if there:
        victim.write_bytes(b"precious")
    card.symlink_to(victim)
    done = run(image, card, "--to-file", "--yes")
    assert done.returncode == 2
    assert f"{card} is a link, which is not followed: name the file itself, {victim}" in done.stderr
    assert (victim.read_bytes() if victim.exists() else None) == (b"precious" if there else None)
    report(f"flash --to-file onto a link to {'a file' if there else 'nothing'}", "exit code 2, nothing is written", 0)


def test_nobody_to_ask_is_no_yes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(ConfigError, match=r"everything on /dev/loop3 \(100\.0 MB, no name\) would be lost: give --yes"):
        flash._ask(flash.choose(Path("/dev/loop3"), flash.devices(LISTING), to_file=False))
    sys.stdin.close()


@pytest.mark.parametrize("packing", PACKERS)
def test_a_damaged_download_is_an_error(image: Path, tmp_path: Path, packing: str) -> None:
    packed = image.with_name(image.name + packing)
    packed.write_bytes(PACKERS[packing](image.read_bytes())[:-40])
    done = run(packed, tmp_path / "card", "--to-file")
    assert done.returncode == 2
    assert "download it again" in done.stderr
    assert "cannot read" in run(tmp_path / f"none.img{packing}", tmp_path / "card", "--to-file").stderr


def test_the_map_that_bmaptool_makes_is_understood(image: Path) -> None:
    if shutil.which("bmaptool") is None:
        pytest.skip("bmaptool is not here: apt install bmap-tools")
    subprocess.run(["bmaptool", "-q", "create", "-o", image.with_suffix(".bmap"), image], check=True)
    found = flash.block_map(image)
    assert found is not None
    whole, ranges = found
    assert whole == image.stat().st_size
    assert [(r.start // 4096, r.length // 4096) for r in ranges] == [(0, 2), (2000, 1)]
    assert flash.block_map(image.with_name(f"{image.name}.zst")) == found, "it is for the packed one, too"


def test_a_card_that_gives_back_something_else_is_an_error(tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.write_bytes(b"abcd")
    good = hashlib.sha256(b"cd").hexdigest()
    flash.verify(card, [Range(2, 2, good)])
    with pytest.raises(SinkError, match="does not hold what was written at byte 1"):
        flash.verify(card, [Range(1, 2, good)])


def test_a_loop_device_is_written_and_read_back(image: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    card.write_bytes(b"\1" * (4096 * 2500))
    try:
        done = subprocess.run(["losetup", "--show", "--find", card], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be made here: this needs root and the kernel's loop")
    loop = done.stdout.strip()
    try:
        small = run(image, loop)
        assert small.returncode == 2
        assert "give --yes" in small.stderr
        written = run(image, loop, "--yes")
        assert written.returncode == 0, written.stderr
        assert card.read_bytes()[: image.stat().st_size] == image.read_bytes()
        with image.open("ab") as file:
            file.truncate(4096 * 2501)
        assert "is too small for board.img" in run(image, loop, "--yes").stderr
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_the_listing_that_lsblk_gives_here_is_understood() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert json.dumps([str(device) for device in flash.list_devices()])


def test_what_is_no_image_is_refused_before_anybody_is_asked_for_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["README.md"],
        ["README.md", "/dev/nowhere"],
        ["edgesan/capture/demo.mp4", "/dev/nowhere", "--dry-run"],
    ):
        assert main(["flash", str(ROOT / words[0]), *words[1:]]) == 2
        assert "is no image of a card: expected a partition table" in capsys.readouterr().err
