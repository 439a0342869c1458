"""What a run says about where its picture is."""

import os
import pty
import re
import signal
import socket
import subprocess

import cv2
import numpy as np
import pytest

from edgesan.transmit.directions import directions, links, visible_url
from tests.support import COMMAND, free_port

TOKEN = "correct-horse-battery"


def test_the_address_of_a_server_that_listens_everywhere_is_one_that_others_can_open() -> None:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        port = listening.getsockname()[1]
        url = visible_url(f"http://0.0.0.0:{port}")
        assert re.fullmatch(rf"http://[\w.-]+:{port}/", url)
        host = url.removeprefix("http://").partition(":")[0]
        assert not host.startswith(("0.", "127."))
        if not host.endswith(".local"):  # a machine without a network has only its name
            socket.create_connection((host, port), timeout=5).close()


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("https://porch.example:8443", "https://porch.example:8443/"),
        ("http://192.0.2.7", "http://192.0.2.7:8080/"),
        ("http://[2001:db8::7]:80", "http://[2001:db8::7]:80/"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
    ],
)
def test_an_address_that_was_given_stays(server: str, url: str) -> None:
    assert visible_url(server) == url


def test_what_a_server_offers_has_addresses_without_the_token() -> None:
    found = {link["kind"]: link["url"] for link in links(visible_url("http://192.0.2.7:80"))}
    assert found == {
        "picture stream": "http://192.0.2.7:80/stream.mjpg",
        "snapshot": "http://192.0.2.7:80/snapshot.jpg",
        "status": "http://192.0.2.7:80/api/status",
        "metrics": "http://192.0.2.7:80/metrics",
    }


def test_a_camera_reads_the_address_from_the_code() -> None:
    url = "http://192.0.2.7:8080/"
    drawn = directions(url, token=False, code=True).splitlines()[2:]
    halves = {" ": (0, 0), "\u2580": (1, 0), "\u2584": (0, 1), "\u2588": (1, 1)}
    rows = [[halves[sign] for sign in re.sub(r"\x1b\[[\d;]*m", "", line)[2:].ljust(34)] for line in drawn]
    light = np.array([[pair[half] for pair in row] for row in rows for half in (0, 1)], np.uint8) * 255
    picture = cv2.copyMakeBorder(cv2.resize(light, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST), *[32] * 4, 0)
    read = [cv2.QRCodeDetector().detectAndDecode(each)[0] for each in (picture, 255 - picture)]
    assert url in read


def test_a_run_on_a_terminal_shows_address_code_and_how_to_present_the_token_but_not_the_token() -> None:
    ours, theirs = pty.openpty()
    port = free_port()
    options = ("--camera", "demo", "--out", f"http://0.0.0.0:{port}", "--frames", "3")
    process = subprocess.Popen(
        [*COMMAND, "run", *options], stderr=theirs, stdin=subprocess.DEVNULL, env=os.environ | {"EDGESAN_TOKEN": TOKEN}
    )
    os.close(theirs)
    said = b""
    while block := _read(ours):
        said += block
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    os.close(ours)
    text = said.decode()
    assert re.search(rf"watch    http://[\w.-]+:{port}/\r\n", text)
    assert "a browser asks for it" in text
    assert "\u2584" in text
    assert TOKEN not in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: nobody has its other end any more
        return b""
