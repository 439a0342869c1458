"""The architecture, held by tests: floors, the wall between raw and sanitized, and what the runtime never imports."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgesan"
FLOORS = {
    "errors": 0, "frames": 0, "disk": 0,
    "config": 1, "noise": 1, "gate": 1, "graph": 1, "metrics": 1, "ring": 1, "isolation": 1, "signing": 1, "rollback": 1, "watchdog": 1, "board": 2,
    "capture": 2, "faces": 2, "model": 2, "transmit": 2,
    "sanitize": 3, "inspection": 3, "doctor": 3, "install": 3, "flash": 3,
    "pipeline": 4, "files": 4.5, "bench": 4.5,
    "cli": 5, "__main__": 6, "__init__": -1,
}  # fmt: skip
# On one floor, these may look at each other: the model's sessions are set up as the detector's are.
SAME_FLOOR = {("model", "faces")}


def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def part(path: Path) -> str:
    """The module or sub-package of `edgesan` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
                there = name.split(".")[1]
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
    assert users == {"transmit", "watchdog", "isolation", "doctor", "bench"}


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
    assert users == {"signing"}


def test_the_runtime_draws_no_numpy_randomness() -> None:
    users = [
        p
        for p, tree in sources().items()
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr == "random"
    ]
    assert users == []


def test_sanitized_frames_are_made_in_two_places_only() -> None:
    makers = {
        part(path)
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "_create"
    }
    assert makers == {"sanitize", "ring"}


def test_no_except_is_bare_or_broad() -> None:
    broad = [
        f"{path.name}:{node.lineno}"
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert broad == []


def test_the_transmit_process_loads_neither_camera_nor_model() -> None:
    program = (
        "import sys, edgesan.transmit.process, edgesan.transmit.http, edgesan.transmit.file;"
        "print([m for m in sys.modules if m.split('.')[0] in ('onnxruntime', 'onnx')"
        " or m in ('edgesan.model', 'edgesan.faces', 'edgesan.sanitize', 'edgesan.capture')])"
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
    "a raw frame is put into the ring": (
        "from edgesan.frames import RawFrame\nfrom edgesan.ring import RingWriter\n"
        "def leak(ring: RingWriter, raw: RawFrame) -> None:\n    ring.put(raw)\n",
        'incompatible type "RawFrame"; expected "SanitizedFrame"',
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
