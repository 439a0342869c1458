"""The ten pictures of the page in the documents can be made: each state of the page comes about."""

import runpy
import shutil
from pathlib import Path

import cv2
import pytest

from tests.support import ROOT, free_port

SHOTS = {
    "camera-lost",
    "dark",
    "demo",
    "desktop",
    "no-token",
    "phone",
    "privacy-off",
    "scene-taken",
    "weak-isolation",
    "zones",
}
MOST_BYTES = 150_000


@pytest.mark.browser
@pytest.mark.slow
def test_ten_pictures_of_the_page_can_be_made(tmp_path: Path) -> None:
    if not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    folder = tmp_path / "page"
    folder.mkdir()
    runpy.run_path(str(ROOT / "docs" / "pictures.py"))["screenshots"](folder, free_port())
    check(folder)


def test_the_documents_show_them() -> None:
    check(ROOT / "docs" / "assets" / "page")
    page = (ROOT / "docs" / "page.md").read_text()
    assert [name for name in SHOTS if f"](assets/page/{name}.webp)" not in page] == []


def check(folder: Path) -> None:
    """Ten pictures are there: small files, each of another state, and one of them dark."""
    files = list(folder.iterdir())
    assert {path.name for path in files} == {f"{name}.webp" for name in SHOTS}
    assert [path for path in files if path.stat().st_size > MOST_BYTES] == []
    shown = {path.stem: cv2.imread(str(path)) for path in files}
    assert len({picture.tobytes() for picture in shown.values()}) == len(SHOTS)
    paper = {name: picture[:4, :4].mean() for name, picture in shown.items()}
    assert paper["dark"] < 60
    assert min(light for name, light in paper.items() if name != "dark") > 200
