"""The provider's feed: `--out feed+https://:SECRET@HOST[:PORT]/PATH[?send=chips|codes|message&ca=FILE]`.

A service that recognises people is posted what it needs, and nothing else, as JSON:

    {"batch": "4f1d...-7", "camera": "front door", "created": "2026-11-29T16:00:00.120+00:00", "faces": [...]}

    chips     each newly painted face: model, captured, track, its place (x, y, side, roll, in a picture of width and
              height), and jpeg, 112x112 pixels, base64
    codes     the same with code, base64, and alpha in place of jpeg: each code once, and no pixel
    message   model, captured, and message: the bytes that crossed the wall (`edgesan.message`), base64

`model` is the SHA-256 of the model file, and times are those of the capture by this machine's clock. The header
`X-Edgesan-Signature: sha256=HEX` is the HMAC of the body with the secret. A batch is sent again, byte by byte the same,
until the server answers 2xx: it knows by `batch` what it has already. A server that answers 4xx is not asked again for
this batch. Nobody is followed to another address.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import ssl
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from edgesan import __version__
from edgesan.config import LEAST_TOKEN, Config, is_loopback
from edgesan.errors import ConfigError
from edgesan.message import Latents, Place, unix_s
from edgesan.outlets.channel import CHIP, CODES, STATUS, Chip, Codes, Report
from edgesan.outlets.link import Attempts, Link, Lost, side_by_side
from edgesan.outlets.trust import trusting
from edgesan.targets import Target

SIGNATURE: Final = "X-Edgesan-Signature"
BATCH_S: Final = 0.5  # that a face waits for others
MOST_BATCH: Final = 64  # faces or messages in one request
MOST_WAITING: Final = 1024  # of them that wait: then the oldest one is dropped
ANSWER_S: Final = 10.0  # for the server to answer
PASSING: Final = (408, 425, 429)  # refusals that may end
WANTS: Final = {"chips": CHIP | CODES, "codes": CODES, "message": CODES}


def prepare(config: Config, target: Target) -> ssl.SSLContext | None:
    """Check the secret, and load the certificates that are trusted while files may be read; None for feed+http://.

    Raises:
        ConfigError: the secret is too short, faces would go through a network in the clear, or `ca` cannot be read.
    """
    if len(target.password) < LEAST_TOKEN:
        raise ConfigError(
            f"{target.name} needs a secret of {LEAST_TOKEN} characters or more that signs what is sent: write"
            f" {target.kind.example}, and make it with: openssl rand -hex 16"
        )
    if target.scheme == "feed+https":
        return trusting(target)
    if not is_loopback(target.host):
        raise ConfigError(
            f"{target.name} would send faces in the clear: use feed+https://, or a server on this machine"
        )
    return None


async def run(link: Link, target: Target, prepared: ssl.SSLContext | None) -> None:
    """Post what is new until the transmit process ends."""
    feed = Feed(link, target)
    connector = aiohttp.TCPConnector(ssl=prepared or True, limit=1)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(ANSWER_S)) as session:
        await side_by_side(feed.receive(), feed.attempts.run(lambda: feed.attempt(session)))


class Feed:
    """What waits to be posted, and the posting of it.

    Args:
        link: to the transmit process.
        target: the server. Its password is the secret, its option `send` says what is posted.
    """

    def __init__(self, link: Link, target: Target) -> None:
        self._link, self._target = link, target
        self._send = target.options.get("send", "chips")
        self.attempts = Attempts(link, target.name, rest=asyncio.sleep)
        self._camera = ""
        self._seen = Latents(0, 0, 0, 0, 0, 0.0, 0)  # the newest frame, for the places of chips
        self._codes: dict[int, tuple[bytes, float]] = {}  # of each track the code that was sent last, and its alpha
        self._waiting: deque[dict[str, Any]] = deque()
        self._batch: bytes | None = None  # that the server has not taken yet
        self._arrived = asyncio.Event()
        self._name, self._number = secrets.token_hex(8), 0  # of batches

    async def receive(self) -> None:
        """Collect what is new, also while the server is away. Raises Closed."""
        self._link.want(WANTS[self._send] | STATUS)
        while True:
            match await self._link.receive():
                case Report(status):
                    self._camera = str(status.get("name", ""))
                case Codes(model, content, latents):
                    self._take_codes(model.hex(), content, latents)
                case Chip(model, captured_ns, track, picture) if self._send == "chips":
                    place = next((face.place for face in self._seen.faces if face.track == track), None)
                    if place is not None:
                        seen = _face(model.hex(), captured_ns, track, place, self._seen)
                        self._put(seen | {"jpeg": base64.b64encode(picture).decode()})

    def _take_codes(self, model: str, content: bytes, latents: Latents) -> None:
        self._seen = latents
        if self._send == "message":
            message = base64.b64encode(content).decode()
            self._put({"model": model, "captured": _utc(latents.captured_ns), "message": message})
        elif self._send == "codes":
            before = self._codes
            self._codes = {face.track: (face.code, latents.alpha) for face in latents.faces}
            for face in latents.faces:
                if before.get(face.track) != self._codes[face.track]:
                    seen = _face(model, latents.captured_ns, face.track, face.place, latents)
                    self._put(seen | {"alpha": latents.alpha, "code": base64.b64encode(face.code).decode()})

    def _put(self, item: dict[str, Any]) -> None:
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self.attempts.dropped(1)
        self._waiting.append(item)
        self._arrived.set()

    async def attempt(self, session: aiohttp.ClientSession) -> None:
        """Post batches for as long as the server takes them.

        Raises:
            Lost: it did not take one.
        """
        connected = False
        while True:
            if self._batch is None:
                self._batch = await self._next()
            await self._post(session, self._batch)
            if not connected:
                self.attempts.connected()
            connected = True
            self.attempts.sent(len(self._batch))
            self._batch = None

    async def _next(self) -> bytes:
        """Return the body of the next batch, once something is there."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        await asyncio.sleep(BATCH_S)
        faces = [self._waiting.popleft() for _ in range(min(MOST_BATCH, len(self._waiting)))]
        self._number += 1
        batch = {
            "batch": f"{self._name}-{self._number}",
            "camera": self._camera,
            "created": _utc(time.monotonic_ns()),
            "faces": faces,
        }
        return json.dumps(batch).encode()

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> None:
        """Post a batch.

        Raises:
            Lost: the server did not take it. If it never will, the batch is forgotten.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"edgesan/{__version__}",
            SIGNATURE: signature(self._target.password, body),
        }
        try:
            async with session.post(url_of(self._target), data=body, headers=headers, allow_redirects=False) as answer:
                code = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Lost(words(error)) from error
        if 200 <= code < 300:
            return
        if code < 500 and code not in PASSING:
            self._batch = None
            self.attempts.dropped(1)
            raise Lost(f"it refuses what is sent ({code}: {REFUSALS.get(code, 'see its log')}); one batch is lost")
        raise Lost(f"it answers {code}")


REFUSALS: Final = {
    401: "the secret is another one",
    403: "the secret is another one",
    404: "its path is another one",
    413: "it takes smaller requests only",
}


def url_of(target: Target) -> str:
    """Return the address that is asked, without the secret and the options."""
    parts = urlsplit(target.url.removeprefix("feed+"))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", "", ""))


def signature(secret: str, body: bytes) -> str:
    """Return the value of the header that proves who has sent a body."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _utc(monotonic_ns: int) -> str:
    """Return a time of CLOCK_MONOTONIC in UTC, as ISO 8601."""
    return datetime.fromtimestamp(unix_s(monotonic_ns), UTC).isoformat(timespec="milliseconds")


def _face(model: str, captured_ns: int, track: int, place: Place, seen: Latents) -> dict[str, Any]:
    """Return what chips and codes have in common."""
    return {
        "model": model,
        "captured": _utc(captured_ns),
        "track": track,
        "x": round(place.x, 2),
        "y": round(place.y, 2),
        "side": round(place.side, 2),
        "roll": round(place.roll, 4),
        "width": seen.width,
        "height": seen.height,
    }


def words(error: Exception) -> str:
    """Return why a batch could not be posted, in words that help."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate cannot be verified ({error.certificate_error}); name its authority by ?ca=FILE"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"it does not speak TLS as expected ({error.os_error.strerror or error})"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it cannot be reached: {error.os_error.strerror or error}"
    if isinstance(error, TimeoutError):
        return f"it says nothing for {ANSWER_S:g} s"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return "it hung up without an answer"
    return f"its answer is no HTTP ({type(error).__name__})"
