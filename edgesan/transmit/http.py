"""The HTTP server: a live page, MJPEG, snapshots, health, metrics, and the dial.

A frame is encoded once, whoever watches, and not at all when nobody does. Each viewer has at most one frame under
way (with TLS two: asyncio does not tell what the encrypted one waits for): a slow one loses frames, sees no old ones,
and holds nobody up.

Whoever can reach the port is taken for an enemy: connections are few, in all and for each address; whoever is slow to
ask, or takes nothing, is cut off; another site's page, in the user's own browser, may neither see nor turn the dial.
"""

import asyncio
import errno
import hmac
import ipaddress
import json
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import cv2
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgesan.config import http_address, is_loopback
from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame
from edgesan.metrics import Metrics
from edgesan.transmit.tls import tls_context

WEB: Final = Path(__file__).parent.parent / "web"
BOUNDARY: Final = "edgesan-frame"
JPEG_QUALITY: Final = 85
FRESH_NS: Final = 2_000_000_000
UNSENT_BYTES: Final = 16384  # of a viewer's picture that the kernel may hold before it is sent
MOST_BODY_BYTES: Final = 256
MOST_CONNECTIONS: Final = 128  # in all
MOST_OF_ONE: Final = 32  # from one address
HANDSHAKE_S: Final = 5.0
REQUEST_S: Final = 10.0  # from the connection, or the answer before, to the end of a request's head
BODY_S: Final = 5.0
DEAF_S: Final = 20.0  # that a viewer may take nothing of what is ready for it
# What a connection may hold of its request: browsers send some twenty fields, and cookies of other local servers.
LIMITS: Final = {"max_line_size": 4096, "max_field_size": 8190, "max_headers": 48, "read_bufsize": 16384}
OPEN: Final = ("/page.js", "/page.css", "/icon.svg")  # a page cannot present its token for these; they tell nothing
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "edgesan",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Handler = Callable[[web.Request], Any]


class HttpSink:
    """`--out http://HOST:PORT`, or `https://` with a certificate.

    Args:
        token: what viewers must present; empty if nothing.
        certificate, key: PEM files for TLS; the key None where it lies in the certificate's file.
        status: gives the sanitize process's counters.
        ask_alpha: passes on a viewer's wish; False if nobody listens.
    """

    def __init__(
        self,
        address: str,
        token: str,
        status: Callable[[], dict[str, Any]],
        ask_alpha: Callable[[float], bool],
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self.name = address
        self._host, self._port = http_address(address)
        self._certificate, self._key = certificate, key
        self._token, self._status, self._ask_alpha = token, status, ask_alpha
        self._metrics = Metrics()
        self._frame: SanitizedFrame | None = None
        self._jpeg: tuple[int, bytes] | None = None  # (frame count, picture): the newest one encoded
        self._count = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._viewers = 0
        self._door = Door(lambda: self._metrics.count("refused_connections"))
        self._servers: list[asyncio.Server] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self.report))
        app = web.Application(middlewares=[self._guard], client_max_size=MOST_BODY_BYTES)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                web.get("/", _asset("index.html", "text/html")),
                web.get("/page.js", _asset("page.js", "text/javascript")),
                web.get("/page.css", _asset("page.css", "text/css")),
                web.get("/icon.svg", _asset("icon.svg", "image/svg+xml")),
                web.get("/stream.mjpg", self._stream, allow_head=False),  # it would be answered without end
                web.get("/snapshot.jpg", self._snapshot),
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._prometheus),
                web.get("/api/status", self._api_status),
                web.get("/api/alpha", self._get_alpha),
                web.put("/api/alpha", self._put_alpha),
                web.post("/api/alpha", self._put_alpha),
            ]
        )
        # A viewer that goes away is let go at once, not at its next frame.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, handle_signals=False)

    async def start(self) -> None:
        """Listen.

        Raises:
            SinkError: the port is taken, the address is not one of this machine's, or the certificate cannot be used.
        """
        tls = None if self._certificate is None else tls_context(self._certificate, self._key)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(found):
                self._servers.append(
                    await loop.create_server(
                        lambda: Connection(server, loop=loop, keepalive_timeout=REQUEST_S, lingering_time=1.0,
                                           auto_decompress=False, access_log=None, **LIMITS),  # type: ignore[arg-type]
                        sock=self._door.listen(family, address),
                        ssl=tls,
                        ssl_handshake_timeout=HANDSHAKE_S if tls else None,
                        ssl_shutdown_timeout=1.0 if tls else None,
                    )
                )  # fmt: skip
        except UnicodeError as error:
            raise SinkError(f"cannot listen on {self.name}: {self._host} is no name of a machine") from error
        except OSError as error:
            raise SinkError(f"cannot listen on {self.name}: {error.strerror or error}; {self._cure(error)}") from error

    def _cure(self, error: OSError) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = urlsplit(self.name).scheme
        other = f"such as --out {scheme}://{host}:{8081 if self._port == 8080 else 8080}"
        if error.errno == errno.EADDRINUSE:
            return f"end the program that holds the port, or choose another one, {other}"
        if error.errno == errno.EACCES:
            return f"ports below 1024 belong to root: choose a higher one, {other}"
        return f"name an address of this machine, such as --out {scheme}://127.0.0.1:8080"

    async def send(self, frame: SanitizedFrame) -> None:
        self._frame, self._count = frame, self._count + 1
        if not frame.stamps.slate:
            self._metrics.tick(time.monotonic_ns())
        self._arrived.set()
        self._arrived = asyncio.Event()

    async def close(self) -> None:
        self._closing = True
        self._arrived.set()
        for server in self._servers:
            server.close()
        await self._runner.cleanup()

    def _newest_jpeg(self) -> bytes:
        """The newest frame as JPEG, encoded at most once. Only called once there is a frame."""
        assert self._frame is not None
        if self._jpeg is None or self._jpeg[0] != self._count:
            started = time.monotonic_ns()
            done, picture = cv2.imencode(".jpg", self._frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not done:
                raise SinkError(f"cannot encode a picture of {self._frame.pixels.shape} as JPEG")
            self._metrics.span("encode", time.monotonic_ns() - started)
            self._metrics.count("encoded")
            self._jpeg = self._count, picture.tobytes()
        return self._jpeg[1]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}", "X-Accel-Buffering": "no"}
        )
        transport = request.transport
        if transport is None:
            return response  # the viewer is gone already
        # Neither asyncio nor the kernel queues pictures: what could not be sent at once is the newest one later.
        transport.set_write_buffer_limits(0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        await response.prepare(request)
        async with self._watching():
            shown = 0
            opening = f"--{BOUNDARY}\r\n".encode()
            while not self._closing:
                if shown == self._count or transport.get_write_buffer_size():
                    await self._arrived.wait()  # also where its last picture is still under way: it loses this one
                    continue
                shown, frame = self._count, self._frame
                assert frame is not None
                picture = self._newest_jpeg()
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
                started_ns = time.monotonic_ns()
                try:
                    # A browser shows a part when it sees the boundary after it, so that goes out with the picture.
                    await response.write(opening + head + picture + b"\r\n" + f"--{BOUNDARY}\r\n".encode())
                except ConnectionError:
                    break  # the viewer is gone
                opening = b""
                self._metrics.count("sent")
                now_ns = time.monotonic_ns()
                self._metrics.span("send", now_ns - started_ns)
                if not frame.stamps.slate:
                    self._metrics.span("glass_to_wire", now_ns - frame.stamps.captured_ns)
        return response

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        self._viewers += 1
        try:
            yield
        finally:
            self._viewers -= 1

    async def _snapshot(self, request: web.Request) -> web.Response:
        if self._frame is None:
            raise web.HTTPServiceUnavailable(text="no frame yet\n")
        return web.Response(body=self._newest_jpeg(), content_type="image/jpeg")

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _ready(self, request: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    def _not_ready(self) -> str:
        """Why no live picture can be had; empty if it can."""
        if self._frame is None:
            return "no frame yet"
        if self._frame.stamps.slate:
            return "the camera is lost"
        age_ns = time.monotonic_ns() - self._frame.stamps.captured_ns
        return f"the newest frame is {age_ns / 1e9:.1f} s old" if age_ns > FRESH_NS else ""

    def report(self) -> dict[str, Any]:
        """The counters of both processes."""
        own = self._metrics.summary(time.monotonic_ns())
        return self._status() | {
            "ready": not self._not_ready(),
            "transmit": {"fps": own["fps"], "viewers": self._viewers, "totals": own["totals"], "ms": own["ms"]},
        }

    async def _prometheus(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _api_status(self, request: web.Request) -> web.Response:
        return web.json_response(self.report())

    async def _get_alpha(self, request: web.Request) -> web.Response:
        return web.json_response({"alpha": self._status().get("alpha")})

    async def _put_alpha(self, request: web.Request) -> web.Response:
        # A form of another site can post, but not with this content type: it would need our leave first.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text='send application/json, such as {"alpha": 0.5}\n')
        try:
            async with asyncio.timeout(BODY_S):
                content = await request.read()
        except TimeoutError as error:
            raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_S:g} s\n") from error
        except web.RequestPayloadError as error:
            raise web.HTTPBadRequest(text="the body is not as its head says\n") from error
        try:
            body = json.loads(content)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f'this is not JSON ({error}); send {{"alpha": 0.5}}\n') from error
        alpha = body.get("alpha") if isinstance(body, dict) and len(body) == 1 else None
        low, high = self._status().get("model", {}).get("alpha_range", (0.0, 1.0))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not low <= alpha <= high:  # so NaN too
            raise web.HTTPBadRequest(text=f'alpha must be a number within {low:g}..{high:g}; send {{"alpha": 0.5}}\n')
        if not self._ask_alpha(float(alpha)):
            raise web.HTTPServiceUnavailable(text="the sanitizer does not answer; ask again\n")
        return web.json_response({"asked": float(alpha)}, status=202)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who may see: with a token, whoever presents it; without, this machine's own browser under its own name.

        The name is checked because a page from elsewhere can make its own name point here (DNS rebinding). A token in
        the address is for pictures and players, which cannot send headers; what changes something takes a header.
        """
        if isinstance(request.protocol, Connection):
            request.protocol.asked = True
        if _is_foreign(request):
            raise web.HTTPForbidden(text="another site's page may not use this server: open its own page\n")
        if self._token:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                given = request.query.get("token", "") if request.method in ("GET", "HEAD") else ""
            # aiohttp decodes headers with surrogates for what is not UTF-8
            right = hmac.compare_digest(given.encode(errors="backslashreplace"), self._token.encode())
            if not right and request.path not in OPEN:
                raise web.HTTPUnauthorized(text="present the token\n", headers={"WWW-Authenticate": "Bearer"})
        elif not is_loopback(_host_name(request.headers.get("Host", ""))):
            raise web.HTTPForbidden(text="this server answers to http://127.0.0.1 only\n")
        response: web.StreamResponse = await handler(request)
        return response


class Door:
    """Lets connections in while there is room, before anything is read of them.

    Args:
        refused: called for each one that found none.
    """

    def __init__(self, refused: Callable[[], None]) -> None:
        self.refused = refused
        self._inside: list[tuple[socket.socket, str]] = []

    def listen(self, family: int, address: Any) -> socket.socket:
        """A socket that listens there, for asyncio. Raises OSError."""
        listener = _Listener(self, family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener

    def admit(self, connection: socket.socket, host: str) -> bool:
        """Whether there is room for one more of this address; if so, it counts until it is closed."""
        # Whoever has one IPv6 address has 2^64 of them.
        one = str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False)) if ":" in host else host
        self._inside = [(other, name) for other, name in self._inside if other.fileno() >= 0]
        if len(self._inside) >= MOST_CONNECTIONS or Counter(name for _, name in self._inside)[one] >= MOST_OF_ONE:
            self.refused()
            return False
        # The kernel cuts off whoever takes nothing: what waits for it would otherwise be held for ever (tcp(7)).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF_S * 1000))
        self._inside.append((connection, one))
        return True


class _Listener(socket.socket):
    """A listening socket in front of a Door: asyncio takes no notice of what is refused."""

    def __init__(self, door: Door, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._admit = door.admit

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if not self._admit(connection, address[0]):
            connection.close()
            raise ConnectionAbortedError("no room")
        return connection, address


class Connection(web.RequestHandler):
    """aiohttp's, but what is no HTTP is answered briefly: nothing of it is said back, and no log grows by it."""

    asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)

        def check() -> None:  # between requests, aiohttp's own timer does this
            if not self.asked and isinstance(transport, asyncio.WriteTransport):
                transport.abort()

        asyncio.get_running_loop().call_later(REQUEST_S, check)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        answer = web.Response(status=400, text="this is no request that can be answered\n", headers=HEADERS)
        answer.force_close()
        return answer


def _is_foreign(request: web.Request) -> bool:
    """Whether another site's page asks, in the user's own browser (W3C Fetch Metadata; RFC 6454 for older browsers).

    Following a link to the page is fine. Without these headers it is no browser, or one that reads only.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        origin = request.headers.get("Origin")
        return origin is not None and origin.partition("://")[2] != request.headers.get("Host")
    if site in ("same-origin", "none"):
        return False
    reading = request.method in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Mode") == "navigate"
    return not (reading and request.headers.get("Sec-Fetch-Dest") == "document")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]


def _asset(name: str, kind: str) -> Handler:
    content = (WEB / name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8")

    return serve


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


NOT_FRAMES: Final = {  # totals that count something else
    "faces": ("edgesan_sanitized_faces", "Faces that were sanitized."),
    "camera_lost": ("edgesan_camera_losses", "How often the camera was lost."),
    "refused_connections": ("edgesan_refused_connections", "Connections for which there was no room."),
}


class _Families(Collector):
    """Both processes' counters in Prometheus' terms."""

    def __init__(self, report: Callable[[], dict[str, Any]]) -> None:
        self._report = report

    def collect(self) -> list[Metric]:
        r = self._report()
        transmit = r["transmit"]
        totals, spans = r.get("totals", {}) | transmit["totals"], r.get("ms", {}) | transmit["ms"]
        frames = CounterMetricFamily("edgesan_frames", "Frames by what became of them.", labels=["state"])
        for state, value in totals.items():
            if state not in NOT_FRAMES:
                frames.add_metric([state], value)
        families: list[Metric] = [frames]
        for state, (name, text) in NOT_FRAMES.items():
            families.append(CounterMetricFamily(name, text, value=totals.get(state, 0)))
        stages = GaugeMetricFamily("edgesan_stage_seconds", "Time in each stage, lately.", labels=["stage", "quantile"])
        age = GaugeMetricFamily("edgesan_frame_age_seconds", "From glass to wire, lately.", labels=["quantile"])
        for stage, values in spans.items():
            for percentile, value in values.items():
                quantile = f"{int(percentile[1:]) / 100:g}"
                if stage == "glass_to_wire":
                    age.add_metric([quantile], value / 1000)
                else:
                    stages.add_metric([stage, quantile], value / 1000)
        families += [stages, age]
        for name, text, value in (
            ("edgesan_fps", "Sanitized frames per second.", r.get("fps", 0)),
            ("edgesan_faces", "Faces in the newest frame.", r.get("faces", 0)),
            ("edgesan_viewers", "Streams that are open.", transmit["viewers"]),
            ("edgesan_camera_up", "1 while the camera gives frames.", int(bool(r.get("camera_up")))),
            ("edgesan_alpha", "The dial.", r.get("alpha", math.nan)),
            ("edgesan_uptime_seconds", "Since the start.", r.get("uptime_s", 0)),
        ):
            families.append(GaugeMetricFamily(name, text, value=value))
        model = r.get("model", {})
        info = GaugeMetricFamily("edgesan_model_info", "The model that runs.", labels=["name", "version", "sha256"])
        info.add_metric([str(model.get(key, "")) for key in ("name", "version", "sha256")], 1)
        return [*families, info]
