"""What QEMU's plugin counts is right, its lines are read right, and the projection follows from them."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from benchmarks import counted, emulated, instructions, projection

BASE, DATA = 0x400000, 0x500000
ASK = [  # for the process group of MARK
    0x52800000 | (counted.MARK & 0xFFFF) << 5,  # movz w0, ...
    0x72A00000 | counted.MARK >> 16 << 5,  # movk w0, ..., lsl 16
    0xD2800000 | 155 << 5 | 8,  # movz x8, 155
    0xD4000001,  # svc 0
]
WRITE = [  # to a thousand lines of memory
    0xD2800000 | 1000 << 5 | 1,  # movz x1, 1000
    0xD2A00000 | DATA >> 16 << 5 | 3,  # movz x3, DATA
    0xF8000400 | 64 << 12 | 3 << 5 | 2,  # str x2, [x3], 64
    0xF1000421,  # subs x1, x1, 1
    0x54000001 | (-2 & 0x7FFFF) << 5,  # b.ne to the str
]
EXIT = [0xD2800000, 0xD2800000 | 93 << 5 | 8, 0xD4000001]


def program(words: list[int]) -> bytes:
    """An arm64 program of these instructions, in one segment of 4 MiB."""
    code = struct.pack(f"<{len(words)}I", *words)
    head = 64 + 56
    elf = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 183, 1, BASE + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = head + len(code)
    return elf + struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, 4 << 20, 0x1000) + code


@pytest.mark.parametrize(
    ("sets", "first", "second"),
    [(1024, 64 * 1000, 0), (1, 64 * (1000 + 984), 64 * (1000 + 1000))],
    ids=["a cache that holds them", "a cache of 16 lines"],
)
def test_the_plugin_counts_each_instruction_and_each_line_that_crosses(
    sets: int, first: int, second: int, tmp_path: Path
) -> None:
    """A loop of three instructions; its lines are read before they are written to, and written back when they go."""
    if not (shutil.which("gcc") and shutil.which(emulated.EMULATOR)):
        pytest.skip("needs `apt install gcc qemu-user`")
    emulated.build(tmp_path / "count.so", sets)
    guest = tmp_path / "guest"
    guest.write_bytes(program([*ASK, *WRITE, *ASK, *WRITE, *ASK, *EXIT]))
    guest.chmod(0o755)
    command = [emulated.EMULATOR, "-plugin", str(tmp_path / "count.so"), str(guest)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    many = len(ASK) + 2 + 3 * 1000
    assert run.stderr.splitlines() == ["4 0", f"{many} {first}", f"{many} {second}"]


def test_a_line_is_counted_for_the_part_that_was_named_before_it() -> None:
    frame = "sanitize, 1-faces/12\n6000000 0\n"
    said = f"a warning\n\n999000000 5\nint8/2\n3000000 128000\n{frame}{frame}\n7 7\n"
    assert emulated.parse(said) == {
        "millions": {"int8": 1.5, "sanitize, 1-faces": 1.0},
        "megabytes": {"int8": 0.064, "sanitize, 1-faces": 0.0},
    }


def test_what_is_stored_has_every_part_of_every_clip_on_both_processors() -> None:
    parts = {f"{part}, {clip}" for part in instructions.PARTS for clip in emulated.CLIPS} | {"int8", "fp32"}
    stored = emulated.load()
    assert stored.keys() == emulated.SETS.keys() == {board.processor for board in projection.BOARDS}
    for counts in stored.values():
        assert counts["millions"].keys() == counts["megabytes"].keys() == parts
    slow, fast = (stored[processor]["millions"]["int8"] for processor in ("cortex-a72", "cortex-a76"))
    assert fast < slow / 1.5, "dot products take fewer instructions"
    assert "| cortex-a76, 2 faces | " in emulated.text(stored)


def test_a_core_waits_for_every_byte_at_the_most_and_for_none_at_the_least() -> None:
    board = projection.Board("Pi", "", ghz=2.0, gb_s=4.0, points=())
    assert projection.by_instructions(board, 40, 20) == (10, 25)
    assert projection.by_instructions(board, 4, 20) == (5, 7), "memory alone takes longer"
    parts = {"sanitize, 1-faces": 36.0, "transmit, 1-faces": 4.0, "encode, 1-faces": 8.0, "decode, 1-faces": 80.0}
    row = projection.frame(board, {"millions": parts, "megabytes": parts}, "1-faces")
    assert row == ["Pi, 1 faces", "10.0 to 30.0", "11.0 to 33.0", "21.0 to 63.0"]
