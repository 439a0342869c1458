"""The public API: every name is exported, documented and typed, and the example runs as it is written."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edgesan
from edgesan import errors
from edgesan.errors import CameraError
from edgesan.frames import Pixels
from tests.support import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EVERY_EXAMPLE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py"))


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory: pytest.TempPathFactory) -> edgesan.Sanitizer:
    return edgesan.Sanitizer(edgesan.Config(state_dir=tmp_path_factory.mktemp("state")))


def sanitize_folder(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "sanitize_folder.py"), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_public_name_is_exported_and_documented() -> None:
    assert edgesan.__all__ == sorted(edgesan.__all__)
    assert set(dir(edgesan)) == set(edgesan.__all__)
    for name in set(edgesan.__all__) - {"__version__"}:
        public = getattr(edgesan, name)
        assert inspect.getdoc(public), f"{name} has no docstring"
        if inspect.isclass(public):
            members = [member for key, member in vars(public).items() if not key.startswith("_")]
            undocumented = [m for m in members if inspect.isfunction(m) and not inspect.getdoc(m)]
            assert undocumented == [], name


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(edgesan.__all__)


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    block = next(n for n in ast.parse(Path(edgesan.__file__).read_text()).body if isinstance(n, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen.keys() == set(edgesan.__all__) - {"__version__"}
    for name, module in seen.items():
        assert getattr(edgesan, name).__module__ == module


def test_a_program_gets_no_raw_surroundings() -> None:
    with pytest.raises(edgesan.ConfigError, match="a program gets no raw surroundings"):
        edgesan.Sanitizer(edgesan.Config(background="keep"))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Camera'"):
        edgesan.Camera  # type: ignore[attr-defined]  # noqa: B018 - the access is the test


def test_importing_edgesan_loads_no_other_library() -> None:
    program = (
        "import sys, edgesan; print([m for m in ('numpy', 'cv2', 'onnxruntime', 'onnx', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_first_example_has_few_lines() -> None:
    text = (ROOT / "examples" / "sanitize_folder.py").read_text()
    assert sum(1 for line in text.splitlines() if line.strip()) <= 25


def imported(program: str) -> list[str]:
    """The packages that a program imports at its top, in their order."""
    names: list[str] = []
    for statement in ast.parse(program).body:
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names.append(statement.module)
    return [name.partition(".")[0] for name in names]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", *EVERY_EXAMPLE])
def test_edgesan_is_imported_before_the_libraries_that_read_its_settings_once(page: str) -> None:
    text = (ROOT / page).read_text()
    programs = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if page.endswith(".md") else [text]
    assert programs
    for program in programs:
        names = imported(program)
        if "edgesan" in names:
            assert names.index("edgesan") < min(
                (names.index(name) for name in names if name in {"cv2", "onnxruntime"}), default=len(names)
            )


def test_the_imports_of_the_example_limit_the_pictures_that_opencv_decodes(tmp_path: Path) -> None:
    program = (ROOT / "examples" / "sanitize_folder.py").read_text().partition("\nif ")[0]
    large = np.zeros((10_001, 10_000), np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    program += "\ntry:\n    cv2.imread('large.png')\nexcept cv2.error as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "CV_IO_MAX_IMAGE_PIXELS" in done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_type_checks(example: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_example_sanitizes_a_folder(tmp_path: Path, clip: list[Pixels]) -> None:
    (tmp_path / "in").mkdir()
    for number in (0, 20):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.jpg"), clip[number])
    done = sanitize_folder(tmp_path / "in", tmp_path / "out")
    assert (done.stdout, done.returncode) == ("0.jpg: 2 faces sanitized\n20.jpg: 2 faces sanitized\n", 0), done.stderr
    picture = cv2.imread(str(tmp_path / "out" / "0.png"))
    assert picture is not None
    assert picture.shape == clip[0].shape
    assert np.abs(picture.astype(int) - clip[0]).mean() > 20, "nothing of the surroundings is left"


def test_a_damaged_picture_costs_the_example_itself_only(tmp_path: Path, clip: list[Pixels]) -> None:
    (tmp_path / "in").mkdir()
    whole = cv2.imencode(".jpg", clip[0])[1].tobytes()
    for name, content in (("a", b"no picture"), ("b", b""), ("c", whole[: len(whole) // 2]), ("d", whole)):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(content)
    done = sanitize_folder(tmp_path / "in", tmp_path / "out")
    assert (done.stdout, done.returncode) == ("d.jpg: 2 faces sanitized\n", CameraError.exit_code)
    said = [line for line in done.stderr.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in said] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.png"]


@pytest.mark.parametrize("folders", [(), ("nowhere", "out"), (".", "out"), (".", "out", "more")])
def test_the_example_says_how_it_is_used(folders: tuple[str, ...], tmp_path: Path) -> None:
    done = sanitize_folder(*(tmp_path / folder for folder in folders))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("usage: python examples/sanitize_folder.py IN OUT")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sface", "gender", "code", "words"),
    [
        ("nowhere.onnx", "gender.onnx", 2, "error: --sface is nowhere.onnx: there is no such file"),
        ("sface.onnx", "nowhere.onnx", 2, "error: --gender is nowhere.onnx: there is no such file"),
        ("sface.onnx", "gender.onnx", 1, "OpenCV cannot load the networks"),
    ],
)
def test_the_receiver_says_which_network_is_missing_or_none(
    sface: str, gender: str, code: int, words: str, tmp_path: Path
) -> None:
    for name in ("sface.onnx", "gender.onnx"):
        (tmp_path / name).write_bytes(b"no network")
    program = ROOT / "examples" / "recognise" / "receiver.py"
    done = subprocess.run(
        [sys.executable, str(program), "--sface", sface, "--gender", gender],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FEED_SECRET": "0123456789abcdef"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_by_itself_has_nothing_of_the_one_before(sanitizer: edgesan.Sanitizer, clip: list[Pixels]) -> None:
    assert sanitizer.picture(clip[0]).stamps.faces == 2
    assert sanitizer.picture(np.zeros_like(clip[0])).stamps.faces == 0


def test_a_clip_follows_its_faces(sanitizer: edgesan.Sanitizer, clip: list[Pixels]) -> None:
    sanitizer.picture(clip[0])
    before = [track.number for track in sanitizer.tracks]
    frame = sanitizer.frame(clip[1], sanitizer.tracks[0].seen_ns / 1e9 + 0.04)
    assert [track.number for track in sanitizer.tracks] == before
    assert frame.stamps.faces == 2
    assert not frame.pixels.flags.writeable


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (None, "could the picture not be read"),
        (np.zeros((48, 64, 3), np.float32), r"this array is float32 \[48, 64, 3\]"),
        (np.zeros((48, 64), np.uint8), r"this array is uint8 \[48, 64\]"),
        (np.zeros((48, 64, 4), np.uint8), "in BGR"),
        (np.zeros((0, 64, 3), np.uint8), "in BGR"),
    ],
)
def test_an_array_that_is_no_frame_is_refused(
    sanitizer: edgesan.Sanitizer, pixels: NDArray[Any] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        sanitizer.picture(pixels)


def test_options_of_the_configuration_hold(tmp_path: Path, clip: list[Pixels]) -> None:
    config = edgesan.Config(zone=("0,0,1,1",), state_dir=tmp_path)
    assert not edgesan.Sanitizer(config).picture(clip[0]).pixels.any()
    with pytest.raises(edgesan.ConfigError, match="alpha"):
        edgesan.Sanitizer(edgesan.Config(alpha=7.0))
