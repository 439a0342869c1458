"""The architecture, held by tests: floors, the wall between raw and sanitized, and what the runtime never imports."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgesan"
FLOORS = {
    "errors": 0, "frames": 0, "disk": 0.5, "words": 0, "syscalls": 0,
    "config": 1, "noise": 1, "message": 1, "metrics": 1, "isolation": 1, "watchdog": 1,
    "model.graph": 1, "model.signing": 1, "model.rollback": 1, "board.settings": 2,
    "model.cut": 2, "capture": 2, "faces": 2, "model.load": 2.5, "transmit": 3,
    "sanitize": 3, "render": 3, "status": 3, "model.inspect": 3, "board.doctor": 3.5, "board.update": 3, "board.flash": 3,
    "pipeline": 4, "files": 4.5, "bench": 4.5, "supervisor": 4.5,
    "cli": 5, "__main__": 6, "__init__": -1, "model.__init__": -1, "board.__init__": -1,
}  # fmt: skip
# The transmit process paints what it serves; its parts that come before isolation import nothing of this floor.
SAME_FLOOR = {("transmit", "render"), ("transmit", "status")}


@cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def part(path: Path) -> str:
    """The module of `edgesan` that a file is, or the sub-package that has one floor."""
    return floor(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))


def floor(name: str) -> str:
    """`model.load` of `model.load.Model`, `capture` of `capture.opencv`."""
    return ".".join(name.split(".")[: 2 if name.split(".", maxsplit=1)[0] in ("model", "board") else 1])


@cache
def imported(tree: ast.Module) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_modules_import_only_from_floors_below() -> None:
    wrong = []
    for path, tree in sources().items():
        here = part(path)
        for name in imported(tree):
            if name.startswith("edgesan."):
                there = floor(name.removeprefix("edgesan."))
                if there not in FLOORS or there == here or (here, there) in SAME_FLOOR:
                    continue
                if FLOORS[there] >= FLOORS[here]:
                    wrong.append(f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})")
    assert wrong == []


def test_every_module_has_a_floor() -> None:
    assert {part(path) for path in sources()} == FLOORS.keys()


@pytest.mark.parametrize("forbidden", ["torch", "export", "random", "pickle", "shelve", "marshal"])
def test_the_runtime_never_imports(forbidden: str) -> None:
    users = [part(p) for p, tree in sources().items() for name in imported(tree) if name.split(".")[0] == forbidden]
    assert users == []


def test_sockets_are_made_where_they_belong() -> None:
    users = {part(p) for p, tree in sources().items() for name in imported(tree) if name.split(".")[0] == "socket"}
    # watchdog: systemd's ear; isolation and doctor: they try whether one can be made, and whether a port is free
    # supervisor: a pair, by which the transmit process gets its pipes
    assert users == {"transmit", "watchdog", "isolation", "board.doctor", "bench", "supervisor"}


def test_the_runtime_measures_no_time_with_a_clock_that_can_be_set() -> None:
    users = [
        str(p)
        for p, tree in sources().items()
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr == "time" and isinstance(n.value, ast.Name) and n.value.id == "time"
    ]
    assert users == []
    assert [p for p, tree in sources().items() if "datetime" in imported(tree) or "time.time" in imported(tree)] == []


def test_one_module_imports_cryptography() -> None:
    users = {part(p) for p, tree in sources().items() for name in imported(tree) if name.startswith("cryptography.")}
    assert users == {"model.signing"}


def test_the_runtime_draws_no_numpy_randomness() -> None:
    users = [
        p
        for p, tree in sources().items()
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr == "random"
    ]
    assert users == []


def test_sanitized_frames_are_made_in_one_place_only() -> None:
    makers = {
        part(path)
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "_create"
    }
    assert makers == {"render"}


def test_no_except_is_bare_or_broad() -> None:
    broad = [
        f"{path.name}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert broad == []


def test_the_transmit_process_loads_neither_camera_nor_detector() -> None:
    program = (
        "import sys, edgesan.transmit.process, edgesan.transmit.http, edgesan.transmit.file, edgesan.render, edgesan.status;"
        "print([m for m in sys.modules if m in ('edgesan.sanitize', 'edgesan.pipeline', 'edgesan.capture')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_library_that_starts_threads_is_loaded_before_isolation() -> None:
    program = (
        "import sys, edgesan.supervisor, edgesan.transmit.process, edgesan.transmit.admission, edgesan.transmit.tls;"
        "print([m for m in sys.modules if m in ('numpy', 'cv2', 'onnxruntime', 'av')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnxruntimes_telemetry_is_off_before_it_is_loaded() -> None:
    program = (
        "import sys, os, edgesan; assert 'onnxruntime' not in sys.modules; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    clean = {k: v for k, v in os.environ.items() if k not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.strip() == "1"


LEAKS = {
    "a raw frame is sent": (
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit import Sink\n"
        "async def leak(sink: Sink, raw: RawFrame) -> None:\n    await sink.send(raw)\n",
        'incompatible type "RawFrame"; expected "SanitizedFrame"',
    ),
    "raw pixels are sent": (
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit import Sink\n"
        "async def leak(sink: Sink, raw: RawFrame) -> None:\n    await sink.send(raw.pixels)\n",
        'expected "SanitizedFrame"',
    ),
    "a raw frame is sent over the wall": (
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit.link import Sender\n"
        "def leak(sender: Sender, raw: RawFrame) -> None:\n    sender.send(raw)\n",
        'incompatible type "RawFrame"; expected "Latents"',
    ),
    "a sanitized frame is sent over the wall": (
        "from edgesan.frames import SanitizedFrame\nfrom edgesan.transmit.link import Sender\n"
        "def leak(sender: Sender, frame: SanitizedFrame) -> None:\n    sender.send(frame)\n",
        'incompatible type "SanitizedFrame"; expected "Latents"',
    ),
    "a raw frame is painted": (
        "from edgesan.frames import RawFrame, SanitizedFrame\nfrom edgesan.render import Renderer\n"
        "def leak(renderer: Renderer, raw: RawFrame) -> SanitizedFrame:\n    return renderer(raw)\n",
        'incompatible type "RawFrame"; expected "Latents"',
    ),
    "pixels are a code": (
        "from edgesan.frames import RawFrame\nfrom edgesan.message import FaceCode, Place\n"
        "def leak(raw: RawFrame) -> FaceCode:\n    return FaceCode(1, Place(0, 0, 9, 0), raw.pixels)\n",
        'expected "bytes"',
    ),
    "a raw frame is returned as a sanitized one": (
        "from edgesan.frames import RawFrame, SanitizedFrame\ndef leak(raw: RawFrame) -> SanitizedFrame:\n    return raw\n",
        'got "RawFrame", expected "SanitizedFrame"',
    ),
    "a sanitized frame is changed": (
        "from edgesan.frames import RawFrame, SanitizedFrame\n"
        "def leak(frame: SanitizedFrame, raw: RawFrame) -> None:\n    frame.pixels = raw.pixels\n",
        'Property "pixels" defined in "SanitizedFrame" is read-only',
    ),
    "a raw frame is written to a clip": (
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit.file import ClipWriter\n"
        "def leak(clip: ClipWriter, raw: RawFrame) -> None:\n    clip.write(raw, 0.0)\n",
        'incompatible type "RawFrame"; expected "SanitizedFrame"',
    ),
}


def test_a_program_that_leaks_does_not_type_check(tmp_path: Path) -> None:
    for number, (program, _) in enumerate(LEAKS.values()):
        (tmp_path / f"leak{number}.py").write_text(program)
    files = [str(tmp_path / f"leak{number}.py") for number in range(len(LEAKS))]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(ROOT / ".mypy_cache"), *files],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for number, (name, (_, words)) in enumerate(LEAKS.items()):
        said = [line for line in lines if f"leak{number}.py" in line]
        assert len(said) == 1, (name, said)
        assert words in said[0], name
