"""The page in a real browser: headless Chromium sees the picture move, and turns the dial."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.support import Running
from tests.transmit.server import STATUS, LiveServer, Make

pytestmark = pytest.mark.browser
WALL = {"bytes": 186_000, "bytes_per_s": 9300.0, "messages": 600, "refused": 0}
WHOLE = STATUS | {
    "wall": WALL,
    "model": {
        "name": "default",
        "version": 3,
        "sha256": "abcdef0123",
        "alpha_range": [0.0, 1.0],
        "private": "gender",
        "utility": "identity",
        "measured": "gender AUC .55 by the best attacker measured, n = 2,000",
    },
    "camera": "demo",
    "background": "plain",
    "isolation": {"summary": "sanitize: no network; transmit: no camera"},
}


@pytest.fixture
def driver() -> Iterator[webdriver.Chrome]:
    driver_path, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver_path is None or browser is None:
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=900,1200",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[tuple[webdriver.Chrome, Running]]:
    running = Running("--camera", "demo", "--alpha", "0.5")
    running.until("ready", True)
    driver.get(f"http://127.0.0.1:{running.port}/")
    yield driver, running
    assert running.end()[0] == 0


PIXELS = """
const img = document.getElementById('picture'), c = document.createElement('canvas');
if (!img.naturalWidth) return '';
c.width = img.naturalWidth; c.height = img.naturalHeight;
c.getContext('2d').drawImage(img, 0, 0);
return c.toDataURL('image/jpeg');
"""


def wait(driver: webdriver.Chrome, script: str, seconds: float = 20) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = driver.execute_script(script)
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"never true in the page: {script}")


def problems(driver: webdriver.Chrome) -> list[dict[str, str]]:
    """What the browser's console says."""
    return [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]]


def text(driver: webdriver.Chrome, element: str) -> str:
    return driver.find_element(By.ID, element).text


def test_the_picture_moves_and_the_dial_turns(page: tuple[webdriver.Chrome, Running]) -> None:
    driver, running = page
    first = wait(driver, PIXELS)
    deadline = time.monotonic() + 10
    while driver.execute_script(PIXELS) == first:
        assert time.monotonic() < deadline, "the picture stands still"
        time.sleep(0.05)
    wait(driver, "return document.getElementById('status').textContent === 'live'")
    wait(driver, "return document.getElementById('faces').textContent === '2'")
    wait(driver, "return parseFloat(document.getElementById('age').textContent) > 0")
    assert float(text(driver, "fps")) > 0
    assert text(driver, "alpha-value") == "0.50"
    assert not driver.find_element(By.ID, "warning").is_displayed()

    driver.execute_script(
        "const d = document.getElementById('alpha'); d.value = 0.9;"
        "d.dispatchEvent(new Event('input')); d.dispatchEvent(new Event('change'));"
    )

    running.until("alpha", 0.9)
    wait(driver, "return document.getElementById('alpha-value').textContent === '0.90'")
    assert problems(driver) == []


def test_the_page_says_what_crosses_the_wall_and_that_a_picture_is_old(
    driver: webdriver.Chrome, sanitized_frame: Make
) -> None:
    with closing(LiveServer(sanitized_frame, size=(640, 480))) as live:
        live.status = WHOLE
        live.flow()
        driver.get(f"http://127.0.0.1:{live.port}/")
        wait(driver, "return document.getElementById('status').textContent === 'live'")
        wait(driver, PIXELS)
        assert text(driver, "wall") == "9.3 kB/s"
        assert "no pixels" in str(driver.find_element(By.XPATH, "//div[b[@id='wall']]").get_attribute("title"))
        assert driver.find_element(By.ID, "alpha").is_enabled()
        assert text(driver, "model") == "default v3 (abcdef01)"

        live.pause()
        wait(driver, "return document.getElementById('picture').classList.contains('old')")
        assert text(driver, "status") == "waiting for a picture"
        assert not driver.find_element(By.ID, "alpha").is_enabled(), "nobody would hear it"

        live.status = {"warnings": ["the sanitize process was killed, and starts again"]}  # none runs: it tells nothing
        wait(driver, "return document.getElementById('warning').textContent.includes('starts again')")
        wait(driver, "return document.getElementById('wall').textContent === '–'")
        live.status = WHOLE | {"wall": WALL | {"bytes_per_s": 412.4}}
        live.picture()
        wait(driver, "return document.getElementById('wall').textContent === '412 B/s'")
    assert [entry for entry in problems(driver) if "ERR_CONNECTION_REFUSED" not in entry["message"]] == []
