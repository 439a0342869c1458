"""A service that recognises people by what edgesan posts, and a classifier that tries to tell their gender.

    FEED_SECRET=... python examples/recognise/receiver.py --sface FILE --gender FILE

It never sees a camera: painted faces arrive by `--out feed+http://:SECRET@127.0.0.1:8090/faces`. Recognition is
OpenCV's own `cv2.FaceRecognizerSF`, as people run it (face_recognition_sface_2021dec.onnx of OpenCV's model zoo). A
person who is enrolled by a few painted faces is named from then on: the nearest of the enrolled is meant. The page at
http://127.0.0.1:8090/ shows both figures: how often the name was right, and how often the gender.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

MOST_BODY = 2**23  # bytes
MOST_BATCHES = 4096  # names of batches that are remembered: one that is sent twice counts once
MOST_TRACKS = 64  # the newest ones
MOST_FACES = 30  # of a track
ENDED_S = 10.0  # without a face, after which a track is another one
LEAST_S = 0.3  # between two faces of a track that are looked at
GENDER_BOX = 9, 18, 103, 112  # of the 112x112 chip: the input of dlib's dnn_gender_classifier_v1
GENDER_SIZE, GENDER_MEAN, GENDER_SCALE = 32, (122.782, 117.001, 104.298), 256.0


@dataclass
class Track:
    """A face that is followed: what was made of its pictures."""

    number: int
    camera: str
    first: datetime
    last: datetime
    place: tuple[float, float]  # fractions of the picture
    jpeg: str = ""  # the newest one, base64
    features: list[NDArray[np.float32]] = field(default_factory=list)
    male: list[float] = field(default_factory=list)


@dataclass
class Person:
    """Somebody who is enrolled."""

    name: str
    features: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class Count:
    """How often something was right."""

    right: int = 0
    of: int = 0

    def add(self, right: bool) -> None:
        """Count one decision."""
        self.right, self.of = self.right + right, self.of + 1

    def report(self) -> dict[str, Any]:
        """Return the count, its share and the 95 % interval of Wilson (1927)."""
        n, z = self.of, 1.96
        if not n:
            return {"right": 0, "of": 0, "share": None, "interval": None}
        p = self.right / n
        middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        return {"right": self.right, "of": n, "share": p, "interval": [low, high]}


def nearest(
    features: Sequence[NDArray[np.float32]], people: Mapping[str, Sequence[NDArray[np.float32]]]
) -> tuple[str | None, float]:
    """Return who of some people is nearest to the mean of some features, and the cosine; nobody if there are none."""
    face = np.mean(features, 0)
    means = {name: np.mean(known, 0) for name, known in people.items()}
    scores = {name: float(face @ mean / (np.linalg.norm(face) * np.linalg.norm(mean))) for name, mean in means.items()}
    name = max(scores, key=scores.__getitem__, default=None)
    return name, scores.get(name or "", 0.0)


class Recogniser:
    """Names faces, and guesses genders. Its methods are called from several threads."""

    def __init__(self, sface: Path, gender: Path) -> None:
        self._sface = cv2.FaceRecognizerSF.create(str(sface), "")
        self._gender = cv2.dnn.readNetFromONNX(str(gender))
        self._lock = threading.Lock()
        self._batches: deque[str] = deque(maxlen=MOST_BATCHES)
        self._tracks: dict[tuple[str, int], Track] = {}
        self._people: dict[str, Person] = {}
        self._named, self._gendered = Count(), Count()

    def take(self, batch: dict[str, Any]) -> None:
        """Look at the faces of a batch, unless it came before. Raises KeyError, TypeError or ValueError."""
        with self._lock:
            if batch["batch"] in self._batches:
                return
            for face in batch["faces"]:
                self._look(str(batch["camera"]), face)
            self._batches.append(str(batch["batch"]))

    def _look(self, camera: str, face: dict[str, Any]) -> None:
        key, captured = (camera, int(face["track"])), datetime.fromisoformat(face["captured"])
        place = face["x"] / face["width"], face["y"] / face["height"]
        track = self._tracks.get(key)
        if track is not None and (captured - track.last).total_seconds() > ENDED_S:  # the number of another run
            track = None
        if track is not None:
            early = (captured - track.last).total_seconds() < LEAST_S
            if early or len(track.features) >= MOST_FACES:
                return
        chip = cv2.imdecode(np.frombuffer(base64.b64decode(face["jpeg"]), np.uint8), cv2.IMREAD_COLOR)
        if chip is None or chip.shape != (112, 112, 3):
            raise ValueError("a face is a JPEG of 112x112 pixels")
        if track is None:
            self._tracks.pop(key, None)
            track = self._tracks[key] = Track(key[1], camera, captured, captured, place)
            if len(self._tracks) > MOST_TRACKS:
                del self._tracks[next(iter(self._tracks))]
        track.features.append(self.feature(np.asarray(chip, np.uint8)))
        track.male.append(self.male(np.asarray(chip, np.uint8)))
        track.last, track.place, track.jpeg = captured, place, face["jpeg"]

    def feature(self, chip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what SFace makes of a chip, uint8 [112, 112, 3] in BGR: float32 [128] of length 1."""
        found = self._sface.feature(np.ascontiguousarray(chip))[0]
        return np.asarray(found / np.linalg.norm(found), np.float32)

    def male(self, chip: NDArray[np.uint8]) -> float:
        """Return how likely the classifier finds a man in a chip, uint8 [112, 112, 3] in BGR."""
        left, top, right, bottom = GENDER_BOX
        cut = cv2.resize(chip[top:bottom, left:right], (GENDER_SIZE, GENDER_SIZE), interpolation=cv2.INTER_AREA)
        pixels = (cut[..., ::-1].astype(np.float32) - GENDER_MEAN) / GENDER_SCALE
        self._gender.setInput(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32))
        return float(self._gender.forward("gender")[0, 1])

    def _guess(self, track: Track) -> tuple[str | None, float]:
        """Return the person of the enrolled who is nearest to a track, and the cosine; nobody if nobody is enrolled."""
        return nearest(track.features, {person.name: person.features for person in self._people.values()})

    def enrol(self, track: int, name: str) -> None:
        """Remember that a track is this person. Raises KeyError."""
        with self._lock:
            person = self._people.setdefault(name, Person(name))
            person.features = [*person.features, *self._of(track).features][-MOST_FACES:]

    def check(self, track: int, name: str, gender: str) -> None:
        """Count whether a track was named right, and its gender guessed right: F or M. Raises KeyError."""
        with self._lock:
            seen = self._of(track)
            self._named.add(self._guess(seen)[0] == name)
            self._gendered.add(("M" if np.mean(seen.male) > 0.5 else "F") == gender)

    def forget(self) -> None:
        """Forget all people; the counts stay."""
        with self._lock:
            self._people.clear()

    def _of(self, number: int) -> Track:
        return next(track for (_, own), track in reversed(self._tracks.items()) if own == number)

    def report(self) -> dict[str, Any]:
        """Return what the page shows."""
        with self._lock:
            newest = max((track.last for track in self._tracks.values()), default=None)
            tracks = []
            for track in self._tracks.values():
                name, cosine = self._guess(track)
                tracks.append(
                    {
                        "track": track.number,
                        "name": name,
                        "cosine": round(cosine, 3),
                        "gender": "M" if np.mean(track.male) > 0.5 else "F",
                        "faces": len(track.features),
                        "place": track.place,
                        "first": track.first.isoformat(),
                        "age_s": (newest - track.last).total_seconds() if newest else 0.0,
                        "jpeg": track.jpeg,
                    }
                )
            people = [{"name": each.name, "faces": len(each.features)} for each in self._people.values()]
            return {
                "people": people,
                "tracks": tracks,
                "named": self._named.report(),
                "gender": self._gendered.report(),
            }


class Receiver:
    """The server: takes the feed, and shows the page."""

    def __init__(self, recogniser: Recogniser, secret: str) -> None:
        self._recogniser, self._secret = recogniser, secret.encode()

    def app(self) -> web.Application:
        """Return the application of aiohttp."""
        app = web.Application(client_max_size=MOST_BODY)
        app.add_routes(
            [
                web.post("/faces", self._faces),
                web.get("/", self._page),
                web.get("/page.css", self._css),
                web.get("/api/state", self._state),
                web.put("/api/people", self._enrol),
                web.put("/api/check", self._check),
                web.delete("/api/people", self._forget),
            ]
        )
        return app

    async def _faces(self, request: web.Request) -> web.Response:
        body = await request.read()
        proof = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        if not hmac.compare_digest(proof.encode(), request.headers.get("X-Edgesan-Signature", "").encode()):
            raise web.HTTPUnauthorized(text="the signature is wrong\n")
        try:
            await asyncio.to_thread(self._recogniser.take, json.loads(body))
        except (KeyError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"this is no batch of painted faces: {error!r}\n") from error
        return web.Response(status=204)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=Path(__file__).with_name("page.html").read_text("utf-8"), content_type="text/html")

    async def _css(self, request: web.Request) -> web.Response:
        return web.Response(text=files("edgesan").joinpath("web/page.css").read_text("utf-8"), content_type="text/css")

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._recogniser.report))

    async def _enrol(self, request: web.Request) -> web.Response:
        return await self._told(request, lambda said: self._recogniser.enrol(int(said["track"]), str(said["name"])))

    async def _check(self, request: web.Request) -> web.Response:
        recogniser = self._recogniser
        return await self._told(
            request, lambda said: recogniser.check(int(said["track"]), str(said["name"]), str(said["gender"]))
        )

    async def _told(self, request: web.Request, what: Any) -> web.Response:
        if request.content_type != "application/json":  # which a form of another site cannot send
            raise web.HTTPUnsupportedMediaType(text="send JSON\n")
        try:
            await asyncio.to_thread(what, await request.json())
        except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
            raise web.HTTPBadRequest(text=f"nothing was changed: {error!r}\n") from error
        return web.Response(status=204)

    async def _forget(self, request: web.Request) -> web.Response:
        await asyncio.to_thread(self._recogniser.forget)
        return web.Response(status=204)


def main() -> None:
    """Serve until Ctrl-C."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sface", type=Path, required=True, help="face_recognition_sface_2021dec.onnx")
    p.add_argument(
        "--gender", type=Path, required=True, help="dlib's dnn_gender_classifier_v1 as ONNX (gender-v1.onnx)"
    )
    p.add_argument("--port", type=int, default=8090)
    options = p.parse_args()
    for name, network in (("--sface", options.sface), ("--gender", options.gender)):
        if not network.is_file():
            p.error(f"{name} is {network}: there is no such file; docs/outputs.md says where the networks are")
    secret = os.environ.get("FEED_SECRET", "")
    if len(secret) < 16:
        sys.exit("set FEED_SECRET to the secret that edgesan was given: 16 characters or more")
    cv2.setNumThreads(1)
    try:
        recogniser = Recogniser(options.sface, options.gender)
    except cv2.error as error:
        sys.exit(f"OpenCV cannot load the networks: {error.err}; name other files by --sface and --gender")
    receiver = Receiver(recogniser, secret)
    web.run_app(receiver.app(), host="127.0.0.1", port=options.port, access_log=None)


if __name__ == "__main__":
    main()
