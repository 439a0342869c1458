"""`examples/recognise`: what is posted names people, and does not tell their gender. Real processes and networks."""

import base64
import hashlib
import hmac
import json
import os
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesan import faces
from edgesan.frames import Pixels
from examples.recognise.measure import SIDE, Judge, Networks, measure, sentences, strangers
from examples.recognise.receiver import Count
from tests.support import ROOT, free_port
from tests.transmit.server import until

pytestmark = [pytest.mark.data]
SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def networks(networks_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """SFace as OpenCV expects it: the copy in the folder takes pixels that are normalised already."""
    proto = onnx.load(str(networks_folder / "id_sface.onnx"))
    graph = proto.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["normalised" if each == name else each for each in node.input]
    for constant, value in (("mean", 127.5), ("scale", 1 / 128)):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), constant))
    graph.node.insert(0, helper.make_node("Mul", ["centred", "scale"], ["normalised"]))
    graph.node.insert(0, helper.make_node("Sub", [name, "mean"], ["centred"]))
    path = tmp_path_factory.mktemp("sface") / "sface.onnx"
    onnx.save(proto, str(path))
    return Networks(path, networks_folder / "gender_dlib.onnx")


@pytest.fixture
def judge(networks: Networks) -> Iterator[Judge]:
    """Asks a receiver that runs."""
    port = free_port()
    program = ROOT / "examples" / "recognise" / "receiver.py"
    command = [sys.executable, str(program), "--sface", str(networks.sface), "--gender", str(networks.gender)]
    environment = os.environ | {"FEED_SECRET": SECRET}
    with ExitStack() as stack:
        process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL)
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        judge = Judge(port, [])

        def there() -> bool:
            with suppress(OSError):
                judge.ask("GET", "state")
                return True
            return False

        until(there, 60)
        yield judge


def post(judge: Judge, batch: str, found: list[dict[str, Any]], secret: str = SECRET) -> int:
    """As edgesan does."""
    body = json.dumps({"batch": batch, "camera": "hall", "created": "now", "faces": found}).encode()
    proof = f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
    request = urllib.request.Request(f"http://127.0.0.1:{judge._port}/faces", body, {"X-Edgesan-Signature": proof})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def seen(track: int, chip: Pixels) -> dict[str, Any]:
    """A face as it is posted; the chip is uint8 [112, 112, 3] in RGB."""
    jpeg = cv2.imencode(".jpg", chip[..., ::-1])[1].tobytes()
    place = {"x": 10.0, "y": 10.0, "side": 20.0, "roll": 0.0, "width": 40, "height": 20}
    captured = datetime.now(UTC).isoformat()
    return {"model": "ab", "captured": captured, "track": track, "jpeg": base64.b64encode(jpeg).decode()} | place


def cut(pixels: Pixels) -> list[Pixels]:
    """The faces of a frame from left to right, raw: any face can be recognised."""
    found = sorted(faces.Detector(320)(pixels), key=lambda face: float(face.landmarks[0][0]))
    return [faces.cut(pixels, faces.alignment(face.landmarks)) for face in found]


def test_a_person_who_is_enrolled_is_named_and_a_batch_that_comes_twice_counts_once(
    judge: Judge, clip: list[Pixels]
) -> None:
    chips, later = cut(clip[0]), cut(clip[20])
    assert post(judge, "a-1", [seen(1, chips[0]), seen(2, chips[1])]) == 204
    for track, name in ((1, "Anna"), (2, "Ben")):
        judge.ask("PUT", "people", {"track": track, "name": name})
    for _ in range(2):
        assert post(judge, "a-2", [seen(3, later[0])]) == 204
    (track,) = (each for each in judge.ask("GET", "state")["tracks"] if each["track"] == 3)
    assert (track["faces"], track["name"]) == (1, "Anna")
    judge.ask("PUT", "check", {"track": 3, "name": "Anna", "gender": "F"})
    named = judge.ask("GET", "state")["named"]
    assert (named["right"], named["of"]) == (1, 1)
    judge.ask("DELETE", "people")
    assert judge.ask("GET", "state")["people"] == []


def test_what_is_not_signed_or_no_batch_is_refused(judge: Judge, clip: list[Pixels]) -> None:
    chip = np.ascontiguousarray(clip[0][:112, :112])
    assert post(judge, "b-1", [seen(1, chip)], secret="another secret.") == 401
    assert post(judge, "b-1", [seen(1, chip[:50])]) == 400
    assert post(judge, "b-1", [{"track": 1}]) == 400
    assert judge.ask("GET", "state")["tracks"] == []


def test_the_interval_is_that_of_wilson() -> None:
    count = Count(8, 10)
    assert count.report()["interval"] == pytest.approx([0.49, 0.943], abs=0.001)
    assert Count().report() == {"right": 0, "of": 0, "share": None, "interval": None}


@pytest.mark.browser
@pytest.mark.slow
def test_the_picture_of_the_documents_can_be_made(networks: Networks, tmp_path: Path) -> None:
    if not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver are not installed (apt install chromium chromium-driver)")
    ports = free_port(), free_port()
    runpy.run_path(str(ROOT / "docs" / "pictures.py"))["recognise"](tmp_path, *networks, ports)
    for path in (tmp_path / "recognise.webp", ROOT / "docs" / "assets" / "recognise.webp"):
        assert path.stat().st_size < 100_000
        assert cv2.imread(str(path)).shape == (480, 900, 3)


@pytest.mark.slow
def test_strangers_are_named_by_what_is_posted_and_their_gender_is_not_told(
    data_folder: Path, networks: Networks, tmp_path: Path
) -> None:
    people = strangers(data_folder, 8 * SIDE)
    assert sorted(each.gender for each in people) == ["F"] * 12 + ["M"] * 12
    figures = measure(tmp_path, people, networks, free_port())
    print(sentences(figures))
    assert figures["named"]["of"] >= 20, "hardly anybody is missed"
    assert figures["named"]["interval"][0] > 1 / 3, figures
    assert figures["named_raw"] >= 23, "the recogniser is as OpenCV runs it"
    assert figures["gender_raw"] >= 22, "the classifier is no bad one"
    low, high = figures["gender"]["interval"]
    assert low <= 0.5 <= high, figures
