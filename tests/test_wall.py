"""The architecture: who imports whom, the wall between raw and sanitized, what the runtime never imports."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "edgesan"
# Each package of the repository, and the others that it may import.
PACKAGES = {
    "edgesan": set(),
    "export": {"edgesan"},
    "firmware_config": {"edgesan"},
    "benchmarks": {"edgesan", "export"},
}
# The modules and sub-packages of edgesan, from the bottom: each imports only what stands on a floor below its own.
FLOORS = (
    {"control", "errors", "frames", "log", "metrics", "noise", "ort", "v4l2"},
    {"disk", "isolation", "message", "targets", "watchdog", "zones"},
    {"config", "fetch", "request", "standing"},
    {"outlets"},
    {"capture", "faces"},
    {"model"},
    {"scene"},
    {"canvas", "silhouette"},
    {"render", "sanitize", "status"},
    {"transmit"},
    {"board", "pipeline", "survey"},
    {"bench", "local", "owner", "supervisor"},
    {"files"},
    {"cli"},
    {"__main__"},
)


@cache
def sources(package: str = "edgesan") -> dict[str, ast.Module]:
    """The modules of a package by their dotted names, such as `edgesan.model.load`; a sub-package has its own name."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return {name: ast.parse(file.read_text()) for name, file in zip(names, files, strict=True)}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All that is run of a module: not what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


@cache
def imported(tree: ast.Module) -> set[str]:
    """Dotted names of all that a module imports, anywhere in it."""
    names = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def dependencies(module: str) -> set[str]:
    """The modules of this repository that a module imports."""
    known = {name for package in PACKAGES for name in sources(package)}
    found = set()
    for name in imported(sources(module.partition(".")[0])[module]):
        # edgesan.model.load of edgesan.model.load.load_model
        parents = set(accumulate(name.split("."), "{}.{}".format))
        found.add(max(known & parents, key=len, default=module))
    return found - {module}


def users(wanted: str) -> set[str]:
    """The modules of edgesan that import a library, as `model.load` of `edgesan.model.load`."""
    return {
        module.removeprefix("edgesan.")
        for module, tree in sources().items()
        if any(name.partition(".")[0] == wanted for name in imported(tree))
    }


def part(module: str) -> str:
    """The floor's name for a module: `model` of `edgesan.model.load`."""
    return module.split(".")[1]


def test_every_module_of_the_runtime_stands_on_one_floor() -> None:
    assert sorted(name for floor in FLOORS for name in floor) == sorted({part(m) for m in sources() if "." in m})


def test_modules_import_only_from_floors_below() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = [
        f"{module} imports {other}"
        for module in sources()
        for other in dependencies(module)
        if "." in module
        and "." in other
        and part(module) != part(other)
        and height[part(other)] >= height[part(module)]
    ]
    assert wrong == []


def test_packages_import_only_those_below_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for package, below in PACKAGES.items()
        for module in sources(package)
        for other in dependencies(module)
        if other.partition(".")[0] not in below | {package}
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: dependencies(module) for package in PACKAGES for module in sources(package)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_one_module_sets_the_options_of_onnxruntime() -> None:
    makers = {
        module
        for package in PACKAGES
        for module, tree in sources(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("SessionOptions", "InferenceSession"))
    }
    assert makers == {"edgesan.ort"}


@pytest.mark.parametrize("forbidden", ["torch", "export", "random", "pickle", "shelve", "marshal"])
def test_the_runtime_never_imports(forbidden: str) -> None:
    assert users(forbidden) == set()


def test_sockets_are_made_where_they_belong() -> None:
    assert users("socket") == {
        "bench",  # a viewer of its own
        "board.doctor",  # tries whether a port is free, and a network camera takes connections
        "fetch",  # the connection between the sanitize unit and the one that fetches
        "fetch.address",  # looks up where a network camera is
        "fetch.camera",  # asks it before FFmpeg does
        "isolation.limits",  # tries whether a stranger can be reached
        "isolation.probes",  # tries whether a socket can be made
        "outlets.mqtt",  # to the broker, and the name of the machine
        "outlets.announce",  # asks the kernel which address this machine has
        "outlets.process",  # its end of a pair
        "outlets.push",  # asks why a server is not reached
        "outlets.rtsp_server",  # a pair, through which it feeds the program
        "supervisor",  # a pair, through which the transmit process receives its pipes, and one for each outlet
        "transmit.admission",
        "transmit.directions",  # asks the kernel which address others see
        "transmit.http",
        "transmit.link",
        "transmit.process",
        "transmit.unit",
        "watchdog",  # the service manager's socket
    }


def test_the_runtime_measures_no_time_with_a_clock_that_can_be_set() -> None:
    attributes = [n for tree in sources().values() for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    assert [n for n in attributes if ast.unparse(n) == "time.time"] == []
    # The one asks no clock; the other says when a face was seen, and measures nothing by it.
    assert users("datetime") == {"outlets.certificate", "outlets.feed"}
    assert [module for module, tree in sources().items() if "time.time" in imported(tree)] == []


def test_the_modules_that_import_cryptography_are_known() -> None:
    assert users("cryptography") == {"model.signing", "outlets.certificate"}


def test_the_runtime_draws_no_numpy_randomness() -> None:
    nodes = [n for tree in sources().values() for n in ast.walk(tree)]
    assert [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "random"] == []


def test_sanitized_frames_are_made_in_one_place_only() -> None:
    makers = {
        module
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "_create"
    }
    assert makers == {"edgesan.render"}


def test_no_except_is_bare_or_broad() -> None:
    broad = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert broad == []


def test_the_transmit_process_loads_neither_camera_nor_detector() -> None:
    program = (
        "import sys, edgesan.transmit.process, edgesan.transmit.http, edgesan.transmit.file;"
        "import edgesan.render, edgesan.status;"
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
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit.sinks import Sink\n"
        "async def leak(sink: Sink, raw: RawFrame) -> None:\n    await sink.send(raw)\n",
        'incompatible type "RawFrame"; expected "SanitizedFrame"',
    ),
    "raw pixels are sent": (
        "from edgesan.frames import RawFrame\nfrom edgesan.transmit.sinks import Sink\n"
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
        "from edgesan.frames import RawFrame, SanitizedFrame\n"
        "def leak(raw: RawFrame) -> SanitizedFrame:\n    return raw\n",
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
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--cache-dir",
            str(ROOT / ".mypy_cache"),
            *files,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    lines = done.stdout.splitlines()
    for number, (name, (_, words)) in enumerate(LEAKS.items()):
        said = [line for line in lines if f"leak{number}.py" in line]
        assert len(said) == 1, (name, said)
        assert words in said[0], name
