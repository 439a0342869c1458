"""The page in a real browser: headless Chromium sees the picture move, turns the dial, draws zones, and so on."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support import Running
from tests.transmit import server
from tests.transmit.server import STATUS, LiveServer, Make

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # whole browsers
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
    "size": [640, 480],
    "privacy": False,
    "zones": 1,
    "isolation": {"summary": "sanitize: no network; transmit: no camera"},
}


def start_chrome() -> webdriver.Chrome:
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
    return webdriver.Chrome(options=options, service=Service(driver_path))


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    driver = start_chrome()
    yield driver
    driver.quit()


@pytest.fixture
def driver(chrome: webdriver.Chrome) -> webdriver.Chrome:
    """An empty page, and an empty console."""
    chrome.get("about:blank")
    chrome.get_log("browser")
    return chrome


@pytest.fixture
def live(driver: webdriver.Chrome, sanitized_frame: Make) -> Iterator[LiveServer]:
    """A server with pictures, at which the browser looks."""
    live = LiveServer(sanitized_frame, size=(640, 480))
    with ExitStack() as stack:
        stack.callback(lambda: live.loop.is_closed() or live.close())  # a test may have closed it
        live.status = WHOLE
        live.flow()
        driver.get(f"http://127.0.0.1:{live.port}/")
        wait(driver, "return document.getElementById('status').textContent === 'live'")
        yield live


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
    driver: webdriver.Chrome, live: LiveServer
) -> None:
    wait(driver, PIXELS)
    assert text(driver, "wall") == "9.3 kB/s"
    assert "no pixels" in str(driver.find_element(By.XPATH, "//div[b[@id='wall']]").get_attribute("title"))
    assert driver.find_element(By.ID, "alpha").is_enabled()
    assert text(driver, "model") == "default v3 (abcdef01)"

    live.pause()
    wait(driver, "return document.getElementById('stage').classList.contains('old')")
    assert text(driver, "status") == text(driver, "note") == "waiting for a picture"
    assert not driver.find_element(By.ID, "alpha").is_enabled(), "nobody would hear it"

    live.status = {"warnings": ["the sanitize process was killed, and starts again"]}  # none runs: it tells nothing
    wait(driver, "return document.getElementById('warning').textContent.includes('starts again')")
    wait(driver, "return document.getElementById('wall').textContent === '–'")
    live.status = WHOLE | {"wall": WALL | {"bytes_per_s": 412.4}}
    live.picture()
    wait(driver, "return document.getElementById('wall').textContent === '412 B/s'")
    assert problems(driver) == []


def test_the_figures_of_a_camera_that_is_lost_are_empty(driver: webdriver.Chrome, live: LiveServer) -> None:
    assert text(driver, "faces") == "2"
    live.pause()
    live.picture(slate=True)
    live.status = WHOLE | {"camera_up": False, "faces": None}
    wait(driver, "return document.getElementById('status').textContent.startsWith('camera lost')")
    assert {text(driver, each) for each in ("faces", "fps", "age")} == {"–"}


def test_the_page_is_not_green_while_something_is_weaker_than_it_should_be(
    driver: webdriver.Chrome, live: LiveServer
) -> None:
    live.status = WHOLE | {"warnings": ["The model is unsigned.", "Raw pictures could reach a disk."], "name": "Yard"}
    wait(driver, "return document.getElementById('warning').children.length === 2")
    assert text(driver, "warning").splitlines() == ["The model is unsigned.", "Raw pictures could reach a disk."]
    assert driver.find_element(By.ID, "status").get_attribute("class") == "warned"
    assert driver.title == text(driver, "name") == "Yard"
    driver.find_element(By.TAG_NAME, "body").send_keys("f")
    wait(driver, "return document.fullscreenElement?.id === 'stage'")
    wait(driver, "return document.getElementById('note').textContent.includes('disk')")
    assert driver.find_element(By.ID, "note").is_displayed(), "nothing else of the page is seen"
    driver.execute_script("return document.exitFullscreen()")


def test_the_dial_says_what_the_audit_measured_there(driver: webdriver.Chrome, live: LiveServer) -> None:
    def turned_to(alpha: float) -> str:
        dial = (
            "const d = document.getElementById('alpha'); d.value = arguments[0]; d.dispatchEvent(new Event('input'));"
        )
        driver.execute_script(dial, alpha)
        return text(driver, "audited")

    assert text(driver, "audited") == "at 0.5: not audited"
    people = {"people": "strangers", "useful": "stranger named in a household of eight"}
    low = {"alpha": 0.2, "private_accuracy": 0.7, "attacker": "probe", "utility": 0.99} | people
    high = {"alpha": 0.6, "private_accuracy": 0.5, "attacker": "CNN", "utility": 0.91} | people
    live.status = WHOLE | {"audited": [high, low]}
    wait(driver, "return document.getElementById('audited').textContent.includes('between')")
    seen = "by the best attacker on strangers, household recognised"
    assert turned_to(0.2) == f"at 0.2: gender 70 % {seen} 99 %"
    assert text(driver, "attacker") == "attacker: probe"
    assert turned_to(0.4) == f"at 0.4: gender 60 % {seen} 95 % (between the audited 0.2 and 0.6)"
    assert turned_to(0.9) == f"at 0.9: not audited. The nearest audited point, at 0.6: gender 50 % {seen} 91 %"
    assert turned_to(0.1) == f"at 0.1: not audited. The nearest audited point, at 0.2: gender 70 % {seen} 99 %"


def test_zones_drawn_with_the_mouse_and_with_keys_reach_the_server(driver: webdriver.Chrome, live: LiveServer) -> None:
    board = driver.find_element(By.ID, "board")
    width, height = (driver.find_element(By.ID, "stage").size[side] for side in ("width", "height"))

    def at(x: float, y: float) -> ActionChains:
        """The mouse, at fractions of the picture."""
        return ActionChains(driver, 0).move_to_element_with_offset(board, (x - 0.5) * width, (y - 0.5) * height)

    def edit() -> None:
        driver.find_element(By.ID, "zones-edit").click()
        wait(driver, "return document.getElementById('board').checkVisibility()")

    edit()
    assert len(driver.find_elements(By.CSS_SELECTOR, "#board .fixed")) == 1, "that of the configuration"
    for corner in ((0.2, 0.2), (0.4, 0.2), (0.4, 0.6)):
        at(*corner).click().perform()
    at(0.2, 0.2).click().perform()  # the first corner closes
    at(0.4, 0.6).click_and_hold().move_by_offset(0.1 * width, 0).release().perform()
    driver.find_element(By.ID, "zones-add").send_keys(Keys.ENTER)
    first = driver.switch_to.active_element
    assert str(first.get_attribute("aria-label")).startswith("zone 2, corner 1")
    ActionChains(driver, 0).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT).send_keys("+", Keys.DELETE).perform()
    driver.find_element(By.ID, "zones-save").send_keys(Keys.ENTER)
    wait(driver, "return !document.getElementById('board').checkVisibility()")
    first_zone, second_zone = (np.array(zone.points) for zone in live.drawn)
    assert np.allclose(first_zone, [(0.2, 0.2), (0.4, 0.2), (0.5, 0.6)], atol=0.01)
    assert np.allclose(second_zone, [(0.33, 0.35), (0.65, 0.35), (0.65, 0.65), (0.35, 0.65)], atol=0.001)

    edit()
    driver.find_element(By.ID, "zones-add").click()
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert not board.is_displayed()
    assert len(live.drawn) == 2, "nothing was asked for"

    edit()
    for corner in ((0.7, 0.5), (0.8, 0.5), (0.9, 0.5)):
        at(*corner).click().perform()
    driver.find_element(By.ID, "zones-save").click()
    wait(driver, "return document.getElementById('zones-error').textContent.includes('in one line')")
    assert board.is_displayed()
    assert [entry for entry in problems(driver) if "400" not in entry["message"]] == []


def test_the_switch_turns_the_camera_off_and_on(page: tuple[webdriver.Chrome, Running]) -> None:
    driver, running = page
    switch = driver.find_element(By.ID, "privacy")
    wait(driver, "return document.getElementById('status').textContent === 'live'")
    switch.send_keys(Keys.SPACE)
    wait(driver, "return document.getElementById('status').textContent === 'camera off'")
    assert running.status()["privacy"] is True
    assert text(driver, "faces") == "–"
    assert switch.is_selected()
    switch.send_keys(Keys.SPACE)
    wait(driver, "return document.getElementById('status').textContent === 'live'")
    assert running.status()["privacy"] is False
    assert not switch.is_selected()


def test_the_page_comes_back_with_the_server(
    driver: webdriver.Chrome, live: LiveServer, sanitized_frame: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.close()
    wait(driver, "return document.getElementById('status').textContent.startsWith('no connection')")
    assert driver.find_element(By.ID, "note").is_displayed()
    assert {text(driver, each) for each in ("faces", "fps", "age", "wall")} == {"–"}
    monkeypatch.setattr(server, "free_port", lambda: live.port)
    with closing(LiveServer(sanitized_frame, size=(640, 480))) as other:
        other.flow()
        wait(driver, "return document.getElementById('status').textContent === 'live'")
        wait(driver, "return parseFloat(document.getElementById('age').textContent) > 0")
        assert other.viewers() == 1


def test_the_page_does_not_move_when_the_picture_arrives(driver: webdriver.Chrome, live: LiveServer) -> None:
    wait(driver, PIXELS)
    shifts = driver.execute_async_script(
        "new PerformanceObserver((list) => arguments[0](list.getEntries().map((entry) => entry.value)))"
        ".observe({type: 'layout-shift', buffered: true}); setTimeout(() => arguments[0]([]), 300);"
    )
    assert sum(shifts) < 0.01, "the share of the window that has moved"
