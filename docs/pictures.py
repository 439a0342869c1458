"""The pictures of the documents, from the bundled clip: `make screenshots`. Those of pages need Chromium.

With `--sface` and `--gender`, the networks of `examples/recognise`, the page of that example is among them.
"""

import argparse
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
)
DESKTOP, PHONE, SERVICE = (1280, 800), (390, 844), (900, 480)
BOTH = (("Anna", "F"), ("Ben", "M"))  # of the bundled clip, from left to right
RETURNS = 8  # of both
FACES = 4  # of each, before somebody is enrolled or named
PATIENCE_S = 60.0
LIVE = "status.textContent === 'live' && picture.naturalWidth && age.textContent !== '–' && faces.textContent === '2'"


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


def screenshots(folder: Path, port: int = 8080) -> None:
    """Write ten pictures of the page, in ten states, as a browser shows them. A state that does not come is an error.

    Args:
        folder: where `desktop.webp` and the others go.
        port: of the server.
    """
    with browser() as driver:
        camera = Photographer(driver, folder, f"http://127.0.0.1:{port}/")
        with running(port, "--camera", "demo"):
            camera.open()
            camera.take("demo", LIVE)
            camera.take("dark", LIVE, dark=True)
            camera.take("phone", LIVE, size=PHONE)
        with running(port, "--camera", "demo", "--name", "Living room"):
            camera.open()
            camera.take("desktop", LIVE, size=(1440, 900))
            camera.take("scene-taken", f"{LIVE} && scene_state.textContent.startsWith('In force')", size=(1280, 1000))
            camera.do("zones_edit.click()", "board.checkVisibility()")
            camera.do(DRAW, "board.querySelectorAll('.corner').length === 7")
            camera.take("zones", LIVE)
            camera.do("zones_cancel.click(); privacy.click()")
            camera.take("privacy-off", "status.textContent === 'camera off' && faces.textContent === '–'")
        with running(port, "--camera", "demo", token="a-secret-of-this-camera"):  # noqa: S106 - nobody's secret
            camera.open()
            camera.take("no-token", "token.checkVisibility()")
        with running(port, "--camera", "demo", "--name", "Yard", "--allow-rollback"):
            camera.open()
            camera.take("weak-isolation", "warning.checkVisibility() && faces.textContent === '2'")
        with network_camera() as (url, unplug), running(port, "--camera", url, "--name", "Yard"):
            camera.open()
            camera.do("0", "faces.textContent === '2'")
            unplug()
            camera.take("camera-lost", "status.textContent.startsWith('camera lost') && faces.textContent === '–'")


# A rectangle in the middle, and three corners of a zone by clicks, as a person would.
DRAW = """
zones_add.click();
const box = board.getBoundingClientRect();
for (const [x, y] of [[.05, .7], [.25, .6], [.3, .95]]) board.dispatchEvent(new PointerEvent('pointerdown',
    {bubbles: true, clientX: box.x + x * box.width, clientY: box.y + y * box.height}));
"""


def recognise(folder: Path, sface: Path, gender: Path, ports: tuple[int, int] = (8090, 8080)) -> None:
    """Write recognise.webp: the page of `examples/recognise` after both people of the clip were enrolled and returned.

    Each return is a run of its own. Who stands on the left is Anna.

    Args:
        folder: where it goes.
        sface: OpenCV's face_recognition_sface_2021dec.onnx.
        gender: dlib's gender classifier, gender-v1.onnx.
        ports: of the service, and of edgesan.
    """
    secret, url = secrets.token_hex(16), f"http://127.0.0.1:{ports[0]}"
    program = [sys.executable, str(HERE.parent / "examples" / "recognise" / "receiver.py"), "--port", str(ports[0])]
    command, variables = (
        [*program, "--sface", str(sface), "--gender", str(gender)],
        os.environ | {"FEED_SECRET": secret},
    )
    feed = f"feed+http://:{secret}@127.0.0.1:{ports[0]}/faces"
    with browser() as driver, subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as service:
        try:
            wait_for(url, service)
            camera = Photographer(driver, folder, url)
            camera.open()
            for visit in range(RETURNS + 1):
                with running(ports[1], "--camera", "demo", "--name", f"Visit {visit}", "--out", feed):
                    for track, (name, its_gender) in zip(both_faces(url), BOTH, strict=True):
                        told = {"track": track, "name": name} | ({"gender": its_gender} if visit else {})
                        ask(url, "check" if visit else "people", told)
                    if visit == RETURNS:
                        shown = f"named.textContent.endsWith('of {2 * RETURNS}')"
                        camera.take("recognise", f"{shown} && faces.children.length === 2", SERVICE)
        finally:
            service.terminate()


def both_faces(url: str) -> list[int]:
    """Wait until a service has seen both people for a while, from now on; return their tracks, from left to right."""
    began, over_s = datetime.now(UTC), time.monotonic() + PATIENCE_S
    while time.monotonic() < over_s:
        seen = [
            each
            for each in ask(url, "state")["tracks"]
            if datetime.fromisoformat(each["first"]) > began and each["faces"] >= FACES and each["age_s"] < 1
        ]
        if len(seen) == len(BOTH):
            return [each["track"] for each in sorted(seen, key=lambda each: float(each["place"][0]))]
        time.sleep(0.2)
    raise SystemExit(f"error: {url} did not see both people within {PATIENCE_S:g} s")


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Read something from a service, or put something there."""
    content = None if body is None else json.dumps(body).encode()
    method, kind = "GET" if body is None else "PUT", {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/{path}", content, kind, method=method)  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = answer.read()
    return json.loads(text) if text else None


class Photographer:
    """Takes pictures of one page. Its scripts call an element by its id, with _ for -."""

    def __init__(self, driver: webdriver.Chrome, folder: Path, url: str) -> None:
        self._driver, self._folder, self._url = driver, folder, url

    def open(self) -> None:
        """Open the page."""
        self._driver.get(self._url)

    def do(self, script: str, until: str = "true") -> None:
        """Do something in the page, and wait until a condition holds; both in JavaScript."""
        self._run(script)
        over_s = time.monotonic() + PATIENCE_S
        while not self._run(f"return Boolean({until});"):
            if time.monotonic() > over_s:
                raise SystemExit(f"error: the page never came into the state: {until}")
            time.sleep(0.2)

    def take(self, name: str, until: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        """Write a picture as soon as the page is in a state.

        Args:
            name: of the file.
            until: the state, a condition in JavaScript.
            size: width and height of the window. A narrow one is a phone with two pixels a point.
            dark: whether the person prefers dark pages.
        """
        phone = size[0] < 600
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.do("scrollTo(0, 0)", until)
        time.sleep(1.5)  # until what has moved stands still, and the figures are those of now
        picture = cv2.imdecode(np.frombuffer(self._driver.get_screenshot_as_png(), np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(self._folder / f"{name}.webp"), picture, [cv2.IMWRITE_WEBP_QUALITY, 85])

    def _run(self, script: str) -> object:
        named = "Object.fromEntries([...document.querySelectorAll('[id]')].map((e) => [e.id.replace('-', '_'), e]))"
        return self._driver.execute_script(f"with ({named}) {{ {script} }}")


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Start headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def running(port: int, *arguments: str, token: str = "") -> Iterator[None]:
    """Run edgesan, with a state of its own: what is switched and drawn here is not the user's."""
    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {"XDG_STATE_HOME": state, "XDG_CONFIG_HOME": state, "EDGESAN_TOKEN": token}
        command = [sys.executable, "-m", "edgesan", "run", "--out", f"http://127.0.0.1:{port}", *arguments]
        with subprocess.Popen(command, env=environment) as run:
            try:
                wait_for(f"http://127.0.0.1:{port}/healthz", run)
                yield
            finally:
                run.terminate()


@contextmanager
def network_camera() -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve the clip as a network camera does, and yield its address, and what unplugs it."""
    pictures = [cv2.imencode(".jpg", frame(DEMO_CLIP, number))[1].tobytes() for number in range(0, 56, 2)]
    unplugged = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(ConnectionError):
                for picture in itertools.cycle(pictures):
                    if unplugged.wait(1 / 6):
                        return
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
                    self.wfile.write(head + picture + b"\r\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()

    def unplug() -> None:
        unplugged.set()
        server.shutdown()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_port}/video", unplug
    finally:
        unplug()


def wait_for(url: str, run: subprocess.Popen[bytes]) -> None:
    """Wait until the URL of a run answers, also with a refusal."""
    over_s = time.monotonic() + PATIENCE_S
    while run.poll() is None and time.monotonic() < over_s:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"error: {url} did not answer within {PATIENCE_S:g} s, or the run ended")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sface", type=Path, metavar="FILE", help="face_recognition_sface_2021dec.onnx")
    parser.add_argument("--gender", type=Path, metavar="FILE", help="gender-v1.onnx")
    options = parser.parse_args()
    before_after()
    screenshots(HERE / "assets" / "page")
    if options.sface and options.gender:
        recognise(HERE / "assets", options.sface, options.gender)
    else:
        print("assets/recognise.webp stays as it is: it takes --sface and --gender")
