"""The README's pictures, from the bundled clip: `make screenshot`. Needs Chromium for the page."""

import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from edgesan.capture import DEMO_CLIP

HERE = Path(__file__).parent
FRAMES = (2, 28, 46)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=760,1080",
)


def before_after() -> None:
    """Write docs/before-after.jpg: frames of the clip above, what leaves the device below."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        subprocess.run([sys.executable, "-m", "edgesan", "sanitize", str(DEMO_CLIP), str(out)], check=True)
        rows = [np.hstack([frame(path, number) for number in FRAMES]) for path in (DEMO_CLIP, out)]
    cv2.imwrite(str(HERE / "before-after.jpg"), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


def frame(path: Path, number: int) -> np.ndarray:
    """Return a frame of a clip, cut to even sides, as the clip that is written has them."""
    capture = cv2.VideoCapture(str(path))
    for _ in range(number + 1):
        done, pixels = capture.read()
        if not done:
            raise SystemExit(f"error: {path} has no frame {number}")
    return np.asarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])


def page() -> None:
    """Write docs/page.png: the live page, as a browser shows it."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    options.page_load_strategy = "none"  # the stream in the page never ends
    with subprocess.Popen([sys.executable, "-m", "edgesan", "run", "--camera", "demo"]) as run:
        try:
            wait_for("http://127.0.0.1:8080/readyz")
            driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
            driver.get("http://127.0.0.1:8080/")
            time.sleep(8)
            driver.save_screenshot(str(HERE / "page.png"))
            driver.quit()
        finally:
            run.terminate()


def wait_for(url: str, patience_s: float = 60) -> None:
    """Wait until the URL answers 200."""
    over_s = time.monotonic() + patience_s
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
            if answer.status == 200:
                return
        if time.monotonic() > over_s:
            raise SystemExit(f"error: {url} did not answer within {patience_s:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    before_after()
    page()
