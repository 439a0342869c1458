"""`edgesan flash IMAGE DEVICE`: write an image to a card, read it back, and write the board's settings into it.

The wrong disk must never be written. lsblk(8) must call the device a whole disk that can be taken out; nothing of the
running system may lie on it, and it may not be in use. A refusal names the device and its size. The kernel is asked,
too: it lets nobody open a mounted disk with O_EXCL (open(2)).

An image that has no partition table, once it is unpacked, is not written at all. With --to-file, an existing file is
overwritten only after a yes, and no link is followed.

A block map (IMAGE.bmap, bmaptool(1)) beside the image names the blocks that hold something. Then only these are
written, and the checksum of each range is compared before its last block is written.
"""

import fcntl
import gzip
import hashlib
import json
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from xml.etree import ElementTree

from tqdm import tqdm

from edgesan import disk
from edgesan.board.settings import inject, load_settings
from edgesan.errors import ConfigError, SinkError

SECTOR: Final = 512
CHUNK: Final = 4 * 2**20
BLKFLSBUF: Final = 0x1261  # linux/fs.h: forget what was read of the device
COLUMNS: Final = "NAME,PATH,SIZE,VENDOR,MODEL,TRAN,RM,HOTPLUG,RO,TYPE,MOUNTPOINTS"
REMOVABLE: Final = ("usb", "mmc")
# Desktops mount cards there. What is mounted elsewhere is the running system's.
CARD_MOUNTS: Final = ("/media/", "/run/media/", "/mnt/")


@dataclass(frozen=True)
class BlockDevice:
    """A disk, and the reason why it may not be written; empty if it may."""

    path: str
    size: int  # bytes
    model: str
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({size(self.size)}, {self.model or 'no name'})"


@dataclass(frozen=True)
class Range:
    """A range of bytes of an image that holds something. Without a block map, `sha256` is empty."""

    start: int
    length: int
    sha256: str = ""


def size(number: int) -> str:
    """Return a number of bytes in words, as it is printed on a card."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


# --- which device -----------------------------------------------------------------------------------------------------


def devices(listing: dict[str, Any]) -> list[BlockDevice]:
    """Return all disks of a listing by `lsblk --json --bytes`, each with the reason why it is refused."""
    rows = listing.get("blockdevices", [])
    return [_device(row) for row in rows if row.get("type") in ("disk", "loop") and row["size"]]


def _device(row: dict[str, Any]) -> BlockDevice:
    name = " ".join(str(row.get(key) or "").strip() for key in ("vendor", "model")).strip()
    return BlockDevice(row["path"], int(row["size"]), name, _refusal(row))


def _refusal(row: dict[str, Any]) -> str:
    mounts = sorted(place for each in _with_children(row) for place in each.get("mountpoints") or [] if place)
    system = [place for place in mounts if not place.startswith(CARD_MOUNTS)]
    if system:
        return f"the running system is on it ({', '.join(system)})"
    if mounts:
        return f"it is in use: sudo umount {' '.join(mounts)}"
    inner = {each.get("type") for each in row.get("children") or [] for each in _with_children(each)} - {"part"}
    if inner:
        return f"it is part of something else ({', '.join(sorted(map(str, inner)))})"
    if row.get("ro"):
        return "it is write-protected: see the switch at its side"
    if row["type"] == "loop" or row.get("rm") or row.get("hotplug") or row.get("tran") in REMOVABLE:
        return ""
    return "it cannot be taken out, so it is no card"


def _with_children(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield row
    for child in row.get("children") or []:
        yield from _with_children(child)


def list_devices() -> list[BlockDevice]:
    """Return all disks of this machine.

    Raises:
        ConfigError: lsblk cannot be asked.
    """
    command = ["lsblk", "--json", "--bytes", "--output", COLUMNS]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        listing: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ConfigError(f"cannot list the disks of this machine ({error}): install lsblk (util-linux)") from error
    return devices(listing)


def table(found: Iterable[BlockDevice]) -> str:
    """Return a table of the cards, and of the other disks with the reason why each is refused."""
    lines = [f"{d.path:<14} {size(d.size):>9}  {d.model}" for d in found if not d.refused]
    lines = lines or ["no card was found: insert one, or connect a card reader"]
    lines += [f"{d.path:<14} {size(d.size):>9}  {d.model}: refused, {d.refused}" for d in found if d.refused]
    return "\n".join(lines)


def choose(path: Path, found: Iterable[BlockDevice], *, to_file: bool) -> BlockDevice:
    """Return the device of that name, if it may be written.

    Args:
        path: its name, or a link to it.
        found: the disks of this machine.
        to_file: take an ordinary file, which need not exist.

    Raises:
        ConfigError: it is not here, is no whole disk, or is refused; the message has its name and size.
    """
    if to_file and path.is_symlink():
        raise ConfigError(f"{path} is a link, which is not followed: name the file itself, {path.resolve()}")
    real = path.resolve()
    if to_file:
        disk.own(real.parent)
        if real.exists() and not real.is_file():
            raise ConfigError(f"{path} is no file: leave out --to-file, which is for files")
        return BlockDevice(str(real), real.stat().st_size if real.exists() else 0, "a file")
    known = {device.path: device for device in found}
    if str(real) not in known:
        if real.is_file():
            raise ConfigError(
                f"{path} is a file of {size(real.stat().st_size)}, and no device: give --to-file if you mean it"
            )
        hint = "it is a part of a disk: name the whole disk" if real.is_block_device() else "`edgesan flash` lists them"
        raise ConfigError(f"{path} is no disk of this machine; {hint}")
    device = known[str(real)]
    if device.refused:
        raise ConfigError(f"{device} is refused: {device.refused}")
    return device


# --- what is written --------------------------------------------------------------------------------------------------


class _Zstd:
    """What zstd(1) unpacks, to be read from start to end: Python has no reader of its own before 3.14."""

    def __init__(self, image: Path, mode: str) -> None:
        image.open(mode).close()  # for its errors, which are clearer
        self._process = subprocess.Popen(["zstd", "-dcq", "--", str(image)], stdout=subprocess.PIPE)  # noqa: S607
        self._at = 0

    def read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        block = self._process.stdout.read(count)
        self._at += len(block)
        if not block and self._process.wait():
            raise EOFError("zstd says that it is damaged")
        return block

    def seek(self, place: int) -> None:
        while self._at < place and self.read(min(CHUNK, place - self._at)):
            pass

    def __enter__(self) -> "_Zstd":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()


OPENERS: Final[dict[str, Callable[..., Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".zst": _Zstd}


def opened(image: Path) -> BinaryIO:
    """Open the image as a stream, unpacked by the suffix of its name (.xz, .gz, .zst).

    Raises:
        ConfigError: it cannot be read.
    """
    if image.suffix == ".zst" and shutil.which("zstd") is None:
        raise ConfigError(f"{image.name} is unpacked by zstd, which is missing: sudo apt install zstd")
    try:
        return OPENERS.get(image.suffix, open)(image, "rb")  # type: ignore[no-any-return]
    except OSError as error:
        raise ConfigError(f"cannot read {image}: {error.strerror}; name an .img, .img.xz or .img.zst") from error


def block_map(image: Path) -> tuple[int, list[Range]] | None:
    """Return the image's size and the ranges that its block map names; None where there is no map beside it.

    Raises:
        ConfigError: the map is not one of version 2.
    """
    names = [image.with_name(f"{name}.bmap") for name in (image.name, image.stem, image.stem.removesuffix(".img"))]
    found = next((name for name in names if name.exists()), None)
    if found is None:
        return None
    try:
        root = ElementTree.fromstring(found.read_text(encoding="utf-8"))  # noqa: S314
        block, whole = int(_said(root, "BlockSize")), int(_said(root, "ImageSize"))
        kind = _said(root, "ChecksumType")
        ranges = []
        for each in root.iter("Range"):
            first, _, last = str(each.text).strip().partition("-")
            start, end = int(first) * block, min((int(last or first) + 1) * block, whole)
            ranges.append(Range(start, end - start, each.attrib["chksum"]))
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise ConfigError(f"{found} is no block map of version 2 ({error}): make it again, or remove it") from error
    ends = [0, *(r.start + r.length for r in ranges)]
    if (
        kind != "sha256"
        or not ranges
        or any(r.start < end or r.length <= 0 for r, end in zip(ranges, ends, strict=False))
    ):
        raise ConfigError(f"{found} is no block map with SHA-256 and ranges in order: make it again, or remove it")
    return whole, ranges


def _said(root: ElementTree.Element, name: str) -> str:
    text = root.findtext(name)
    if text is None:
        raise ValueError(f"no {name}")
    return text.strip()


def length(image: Path) -> int:
    """Return the size of the unpacked image in bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    total = 0
    with opened(image) as stream:
        if image.suffix not in OPENERS:
            return image.stat().st_size
        try:
            while block := stream.read(CHUNK):
                total += len(block)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise ConfigError(f"cannot unpack {image} ({error}): download it again") from error
    return total


def check_table(image: Path) -> None:
    """Refuse what no board could boot: an archive, a single partition, an error page of a server.

    Raises:
        ConfigError: it begins with no partition table, or cannot be read.
    """
    with opened(image) as stream:
        try:
            head = stream.read(2 * SECTOR)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise ConfigError(f"cannot unpack {image} ({error}): download it again") from error
    # Each of the 4 entries of a master boot record: whether it boots, CHS, its type, CHS, first sector, sectors. A
    # single FAT or NTFS partition has the same signature, and program text in place of the entries.
    entries = [struct.unpack_from("<B3xB3xII", head, 446 + 16 * n) for n in range(4)] if len(head) >= SECTOR else []
    sound = all(active in (0, 0x80) for active, *_ in entries)
    filled = any(kind and first and count for _, kind, first, count in entries)
    if not (head[510:512] == b"\x55\xaa" and sound and filled) and not head[SECTOR:].startswith(b"EFI PART"):
        raise ConfigError(
            f"{image} is no image of a card: expected a partition table in its first sectors (a master boot record that"
            " ends in 55 AA and names a partition, or a GPT, EFI PART) once .xz, .gz or .zst is unpacked; name the .img"
        )


def write(image: Path, ranges: list[Range], target: BinaryIO) -> list[Range]:
    """Write these ranges, and return each with the checksum of what was written.

    Raises:
        ConfigError: the image is damaged.
        SinkError: the device does not take it.
    """
    done = []
    with (
        opened(image) as stream,
        tqdm(total=sum(r.length for r in ranges), unit="B", unit_scale=True, leave=False) as bar,
    ):
        try:
            for each in ranges:
                stream.seek(each.start)
                digest, left = hashlib.sha256(), each.length
                target.seek(each.start)
                while left:
                    block = stream.read(min(CHUNK, left))
                    if not block:
                        raise ConfigError(f"{image} ends early, {left} bytes before byte {each.start + each.length}")
                    digest.update(block)
                    left -= len(block)
                    if not left and each.sha256 and digest.hexdigest() != each.sha256:
                        raise ConfigError(f"{image} is not what its block map says: download both again")
                    _put(target, block)
                    bar.update(len(block))
                done.append(Range(each.start, each.length, digest.hexdigest()))
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ConfigError(f"cannot unpack {image} ({error}): download it again") from error
    return done


def _put(target: BinaryIO, block: bytes) -> None:
    try:
        target.write(block)
    except OSError as error:
        raise SinkError(f"cannot write to {target.name}: {error.strerror}; the card may be worn") from error


def verify(path: Path, ranges: list[Range]) -> None:
    """Read back what was written, from the device and not from memory, and compare it.

    Raises:
        SinkError: it differs.
    """
    with (
        path.open("rb") as file,
        tqdm(total=sum(r.length for r in ranges), unit="B", unit_scale=True, leave=False) as bar,
    ):
        if stat.S_ISBLK(os.fstat(file.fileno()).st_mode):
            fcntl.ioctl(file.fileno(), BLKFLSBUF)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for each in ranges:
            file.seek(each.start)
            digest, left = hashlib.sha256(), each.length
            while left:
                block = file.read(min(CHUNK, left))
                if not block:
                    break
                digest.update(block)
                left -= len(block)
                bar.update(len(block))
            if digest.hexdigest() != each.sha256:
                raise SinkError(
                    f"{path} does not hold what was written at byte {each.start}: the card is worn; take another"
                )


@dataclass(frozen=True)
class Options:
    """How to flash: only say what would be done, write to an ordinary file, and ask nothing."""

    dry_run: bool = False
    to_file: bool = False
    yes: bool = False


def flash(image: Path, path: Path, settings: Path | None, options: Options) -> str:
    """Write the image, read it back, and write the settings into it.

    Args:
        image: the image, which may be packed.
        path: the card, or a file.
        settings: the file of settings (TOML); None: the image's own stay.
        options: how.

    Returns:
        What was done, in a line.

    Raises:
        ConfigError: the image, the device or the settings are wrong, or the user did not type yes.
        SinkError: the device does not take it.
    """
    check_table(image)
    board = load_settings(settings) if settings else None
    device = choose(path, [] if options.to_file else list_devices(), to_file=options.to_file)
    if Path(device.path).exists() and image.exists() and image.samefile(device.path):
        raise ConfigError(f"{path} is the image itself: name another")
    mapped = block_map(image)
    whole, ranges = mapped or (length(image), [])
    ranges = ranges or [Range(0, whole)]
    if not options.to_file and whole > device.size:
        raise ConfigError(f"{device} is too small for {image.name}, which needs {size(whole)}")
    plan = f"{image.name}: {size(sum(r.length for r in ranges))} of {size(whole)} to {device}"
    plan += " by its block map" if mapped else ""
    plan += f"; then the settings of {settings}" if settings else ""
    if options.dry_run:
        return f"would write {plan}; nothing was written"
    new = options.to_file and not Path(device.path).exists()
    if not (options.yes or new):
        _ask(device)
    written = _write_whole(image, ranges, device, whole if options.to_file else None, new=new)
    verify(Path(device.path), written)
    if board is not None:
        inject(Path(device.path), board)
        os.sync()
    return f"wrote {plan}; read back and compared"


def _write_whole(
    image: Path, ranges: list[Range], device: BlockDevice, file_size: int | None, *, new: bool
) -> list[Range]:
    """Write to the device, or to a file of this size.

    Raises:
        SinkError: it cannot be opened or written.
    """
    # Of a device, O_EXCL makes the kernel refuse a mounted one; of a new file, one that is there already.
    exclusive = os.O_EXCL if file_size is None else os.O_CREAT | os.O_EXCL if new else 0
    mode = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | exclusive
    try:
        with os.fdopen(os.open(device.path, mode, 0o600), "wb", buffering=0) as target:
            if file_size is not None:
                if not stat.S_ISREG(os.fstat(target.fileno()).st_mode):
                    raise SinkError(f"{device.path} is no file any more: leave out --to-file, which is for files")
                target.truncate(file_size)
            written = write(image, ranges, _Whole(target))  # type: ignore[arg-type]
            os.fsync(target.fileno())
    except OSError as error:
        cure = "run it with sudo, and end what uses it"
        raise SinkError(f"cannot write to {device}: {error.strerror}; {cure}") from error
    return written


class _Whole:
    """A raw file whose writes are whole: write(2) may be short."""

    def __init__(self, raw: Any) -> None:
        self._raw, self.name = raw, raw.name

    def seek(self, place: int) -> None:
        self._raw.seek(place)

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[self._raw.write(view) :]


def _ask(device: BlockDevice) -> None:
    """Ask the user; raise ConfigError unless the answer is yes."""
    if not sys.stdin.isatty():
        raise ConfigError(f"everything on {device} would be lost: give --yes, as there is no terminal to ask at")
    if input(f"Everything on {device} will be lost. Type yes to continue: ").strip() != "yes":
        raise ConfigError("nothing was written: the answer was not yes")
