"""The page in a real browser: headless Chromium sees the picture move, and turns the dial."""

import shutil
import time
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.test_cli import Running

pytestmark = pytest.mark.browser


@pytest.fixture
def page() -> Iterator[tuple[webdriver.Chrome, Running]]:
    driver_path, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver_path is None or browser is None:
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=900,1200"):  # fmt: skip
        options.add_argument(flag)
    running = Running("--camera", "demo", "--alpha", "0.5")
    running.until("ready", True)
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    driver.get(f"http://127.0.0.1:{running.port}/")
    yield driver, running
    driver.quit()
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
        "const d = document.getElementById('alpha'); d.value = 0.9; d.dispatchEvent(new Event('input')); d.dispatchEvent(new Event('change'));"
    )

    running.until("alpha", 0.9)
    wait(driver, "return document.getElementById('alpha-value').textContent === '0.90'")
    problems = [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]]
    assert problems == []
