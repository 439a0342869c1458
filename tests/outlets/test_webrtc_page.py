"""The page by WebRTC: headless Chromium decodes the packets of one encoder, and falls back to MJPEG in words."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

pytest.importorskip("aiortc", reason="aiortc is not installed (pip install '.[webrtc]')")
from selenium import webdriver

from edgesan.outlets.webrtc import Peers
from tests.outlets.video import Encoder
from tests.transmit.server import LiveServer, Make, until
from tests.transmit.test_browser import WHOLE, problems, start_chrome, text, wait

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # whole browsers, with video
SEEN = "return document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames"
BY_WEBRTC = "return document.getElementById('way').textContent.includes('by WebRTC.')"
BY_MJPEG = "return document.getElementById('way').textContent.includes('by MJPEG')"
MJPEG_SHOWN = "return document.getElementById('picture').checkVisibility() && !!document.getElementById('picture').src"


class Camera(LiveServer):
    """A server with pictures, MJPEG and WebRTC."""

    def __init__(self, make: Make, **options: str) -> None:
        super().__init__(make, size=(320, 240), **options)
        self.status = WHOLE | {"outputs": [{"kind": "webrtc", "connected": True}]}
        self.encoder = Encoder()
        self.peers = Peers(self.encoder.ask_key, lambda _: None)
        self.webrtc = self.peers.serve
        self.wait(self._begin())
        self.flow()

    async def _begin(self) -> None:
        lives = (self.encoder.run(self.peers.send), self.peers.look_after())
        self._tasks = [asyncio.create_task(life) for life in lives]

    async def end_webrtc(self) -> None:
        self.webrtc = None  # or a page that tries again has a peer that nobody closes
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.close()
        await asyncio.sleep(0.1)  # sockets close in the next rounds of the loop

    def close(self) -> None:
        self.wait(self.end_webrtc())
        super().close()


@pytest.fixture
def camera(sanitized_frame: Make) -> Iterator[Camera]:
    with closing(Camera(sanitized_frame)) as camera:
        yield camera


@contextmanager
def browsers(count: int) -> Iterator[list[webdriver.Chrome]]:
    found: list[webdriver.Chrome] = []
    try:
        found += (start_chrome() for _ in range(count))
        yield found
    finally:
        for driver in found:
            driver.quit()


def test_three_browsers_decode_the_frames_of_one_encoder(camera: Camera) -> None:
    with browsers(3) as drivers:
        for driver in drivers:
            driver.get(f"http://127.0.0.1:{camera.port}/")
        for driver in drivers:
            wait(driver, BY_WEBRTC)
        assert camera.peers.state() == {"peers": 3, "watching": 3, "most": 8}
        until(lambda: camera.viewers() == 0)  # nobody is sent MJPEG beside it
        encoded, jpegs = camera.encoder.encodes, camera.totals()["encoded"]
        before = [int(driver.execute_script(SEEN)) for driver in drivers]
        for driver, first in zip(drivers, before, strict=True):
            wait(driver, f"{SEEN} >= {first + 50}", 60)
        each = [int(driver.execute_script(SEEN)) - first for driver, first in zip(drivers, before, strict=True)]
        encoded = camera.encoder.encodes - encoded
        assert sum(each) > 2 * encoded, f"{each} frames were decoded, of {encoded} that were encoded"
        assert camera.totals()["encoded"] == jpegs
        assert [problems(driver) for driver in drivers] == [[], [], []]
        drivers[0].get("about:blank")
        until(lambda: len(camera.peers) == 2)  # a page that is left says so


def test_the_page_says_why_it_shows_mjpeg(camera: Camera) -> None:
    async def refuse(question: dict[str, object]) -> dict[str, object]:
        return {"status": 503, "text": "8 browsers watch by WebRTC already\n", "peer": ""}

    camera.webrtc = refuse
    with browsers(1) as (driver,):
        driver.get(f"http://127.0.0.1:{camera.port}/")
        wait(driver, BY_MJPEG)
        assert "8 browsers watch" in text(driver, "way")
        wait(driver, MJPEG_SHOWN)
        assert camera.viewers() == 1
        assert text(driver, "status") == "live"
        assert [entry for entry in problems(driver) if "503" not in entry["message"]] == []


def test_the_page_goes_back_to_mjpeg_when_webrtc_ends(camera: Camera) -> None:
    with browsers(1) as (driver,):
        driver.get(f"http://127.0.0.1:{camera.port}/")
        wait(driver, BY_WEBRTC)
        camera.wait(camera.end_webrtc())
        wait(driver, BY_MJPEG, 40)
        wait(driver, MJPEG_SHOWN)
        until(lambda: camera.viewers() == 1)


def test_without_webrtc_the_page_says_nothing_of_it(camera: Camera) -> None:
    camera.status = WHOLE
    with browsers(1) as (driver,):
        driver.get(f"http://127.0.0.1:{camera.port}/")
        wait(driver, "return document.getElementById('status').textContent === 'live'")
        assert text(driver, "way") == ""
        assert camera.questions == []


def test_a_browser_with_a_cookie_offers_with_it(sanitized_frame: Make) -> None:
    token = "0123456789abcdef"
    with closing(Camera(sanitized_frame, token=token)) as camera, browsers(1) as (driver,):
        driver.get(f"http://127.0.0.1:{camera.port}/")
        driver.find_element("name", "token").send_keys(token + "\n")
        wait(driver, BY_WEBRTC)
        assert [entry for entry in problems(driver) if "401" not in entry["message"]] == []
