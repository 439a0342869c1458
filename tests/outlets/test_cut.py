"""A network that is cut for half a minute, in a namespace: viewers see the picture again, and the camera goes on."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.outlets.test_viewers import TOKEN, camera, needs_gstreamer, outlet
from tests.support import free_port

pytestmark = [pytest.mark.slow, pytest.mark.browser]
HERE, THERE, PLACE = "10.213.7.1", "10.213.7.2", "edgesan-cut"
CUT_S = 30
BACK_S = 5.0

BROWSER = textwrap.dedent(
    """
    import json, signal, sys, time
    from tests.transmit.test_browser import start_chrome
    driver = start_chrome()
    driver.get(sys.argv[1])
    look = '''const id = (name) => document.getElementById(name);
        return [id('status').textContent, id('way').textContent, id('video').getVideoPlaybackQuality().totalVideoFrames,
                id('stage').classList.contains('old')]'''
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # or Chromium would outlive it, and keep the namespace
    try:
        while True:
            print(json.dumps([time.monotonic(), *driver.execute_script(look)]), flush=True)
            time.sleep(0.1)
    finally:
        driver.quit()
    """
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def place() -> Iterator[None]:
    """A network namespace that is joined to this one by a cable."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    try:
        ip("netns", "add", PLACE)
        ip("link", "add", "edgesan-a", "type", "veth", "peer", "name", "edgesan-b", "netns", PLACE)
        ip("addr", "add", f"{HERE}/24", "dev", "edgesan-a")
        ip("link", "set", "edgesan-a", "up")
        for words in (f"addr add {THERE}/24 dev edgesan-b", "link set edgesan-b up", "link set lo up"):
            ip("-n", PLACE, *words.split())
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no namespace can be made here: {error.stderr}")
    finally:
        subprocess.run(["ip", "netns", "del", PLACE], check=False, capture_output=True)


def test_a_cut_of_half_a_minute_ends_for_the_page_and_for_a_player(place: None) -> None:
    needs_gstreamer()
    pytest.importorskip("aiortc")
    port = free_port()
    inside = ["ip", "netns", "exec", PLACE]
    with camera("webrtc:", f"serve+rtsp://0.0.0.0:{port}/cam", host="0.0.0.0") as run, ExitStack() as stack:
        page = subprocess.Popen(
            [*inside, sys.executable, "-c", BROWSER, f"http://{HERE}:{run.port}/?token={TOKEN}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(page.wait, 20)
        stack.callback(page.terminate)
        assert page.stdout
        stack.callback(page.stdout.close)
        looks = (json.loads(line) for line in page.stdout)
        next(look for look in looks if "by WebRTC." in look[2] and look[3] > 10)
        time.sleep(3)
        before = run.status()
        memory = psutil.Process(outlet(run, "webrtc").pid).memory_info().rss

        ip("link", "set", "edgesan-a", "down")
        cut_s = time.monotonic()
        while time.monotonic() - cut_s < CUT_S:
            next(looks)
        ip("link", "set", "edgesan-a", "up")
        up_s = time.monotonic()
        live = next(look[0] for look in looks if look[0] > up_s and look[1] == "live" and not look[4])
        player = [*inside, "ffmpeg", "-v", "error", "-rtsp_transport", "tcp"]
        player += ["-i", f"rtsp://cam:{TOKEN}@{HERE}:{port}/cam", "-frames:v", "3", "-f", "null", "-"]
        assert subprocess.run(player, timeout=30, check=False).returncode == 0
        played_s = time.monotonic()
        shown = next(look for look in looks if look[0] > up_s and "by WebRTC." in look[2] and look[3] > 10)
        after = run.status()
        grown = psutil.Process(outlet(run, "webrtc").pid).memory_info().rss - memory
        print(f"a picture after {live - up_s:.1f} s, by WebRTC after {shown[0] - up_s:.1f} s")
        print(f"a player's first pictures after {played_s - up_s:.1f} s; the outlet grew by {grown / 2**20:.1f} MiB")
        assert live - up_s < BACK_S
        assert grown < 2**25
        assert after["fps"] > before["fps"] / 2
