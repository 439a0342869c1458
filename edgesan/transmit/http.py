"""The HTTP server: a live page, MJPEG, snapshots, health, metrics, and the dial.

A frame is encoded once, whoever watches, and not at all when nobody does. Each viewer has at most one frame under
way: a slow one loses frames, sees no old ones, and holds nobody up.
"""

import asyncio
import errno
import hmac
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import cv2
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgesan.config import http_address, is_loopback
from edgesan.errors import SinkError
from edgesan.frames import SanitizedFrame
from edgesan.metrics import Metrics

WEB: Final = Path(__file__).parent.parent / "web"
BOUNDARY: Final = "edgesan-frame"
JPEG_QUALITY: Final = 85
FRESH_NS: Final = 2_000_000_000
UNSENT_BYTES: Final = 16384  # of a viewer's picture that the kernel may hold before it is sent
MOST_BODY_BYTES: Final = 256
OPEN: Final = ("/page.js", "/page.css", "/icon.svg")  # a page cannot present its token for these; they tell nothing
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Handler = Callable[[web.Request], Any]


class HttpSink:
    """`--out http://HOST:PORT`.

    Args:
        status: gives the sanitize process's counters.
        ask_alpha: passes on a viewer's wish; False if nobody listens.
    """

    def __init__(
        self, address: str, token: str, status: Callable[[], dict[str, Any]], ask_alpha: Callable[[float], bool]
    ) -> None:
        self.name = address
        self._host, self._port = http_address(address)
        self._token, self._status, self._ask_alpha = token, status, ask_alpha
        self._metrics = Metrics()
        self._frame: SanitizedFrame | None = None
        self._jpeg: tuple[int, bytes] | None = None  # (frame count, picture): the newest one encoded
        self._count = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._viewers = 0
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
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handle_signals=False)

    async def start(self) -> None:
        """Listen.

        Raises:
            SinkError: the port is taken, or the address is not one of this machine's.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SinkError(f"cannot listen on {self.name}: {error.strerror or error}; {self._cure(error)}") from error

    def _cure(self, error: OSError) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        other = f"such as --out http://{host}:{8081 if self._port == 8080 else 8080}"
        if error.errno == errno.EADDRINUSE:
            return f"end the program that holds the port, or choose another one, {other}"
        if error.errno == errno.EACCES:
            return f"ports below 1024 belong to root: choose a higher one, {other}"
        return "name an address of this machine, such as --out http://127.0.0.1:8080"

    async def send(self, frame: SanitizedFrame) -> None:
        self._frame, self._count = frame, self._count + 1
        if not frame.stamps.slate:
            self._metrics.tick(time.monotonic_ns())
        self._arrived.set()
        self._arrived = asyncio.Event()

    async def close(self) -> None:
        self._closing = True
        self._arrived.set()
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
                try:
                    # A browser shows a part when it sees the boundary after it, so that goes out with the picture.
                    await response.write(opening + head + picture + b"\r\n" + f"--{BOUNDARY}\r\n".encode())
                except ConnectionError:
                    break  # the viewer is gone
                opening = b""
                self._metrics.count("sent")
                if not frame.stamps.slate:
                    self._metrics.span("glass_to_wire", time.monotonic_ns() - frame.stamps.captured_ns)
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
            body = json.loads(await request.read())
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

        The name is checked because a page from elsewhere can make its own name point here (DNS rebinding).
        """
        if self._token:
            scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
            given = request.query.get("token") or (bearer if scheme.lower() == "bearer" else "")
            # aiohttp decodes headers with surrogates for what is not UTF-8
            right = hmac.compare_digest(given.encode(errors="surrogateescape"), self._token.encode())
            if not right and request.path not in OPEN:
                raise web.HTTPUnauthorized(text="present the token\n", headers={"WWW-Authenticate": "Bearer"})
        elif not is_loopback(_host_name(request.headers.get("Host", ""))):
            raise web.HTTPForbidden(text="this server answers to http://127.0.0.1 only\n")
        response: web.StreamResponse = await handler(request)
        return response


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
    response.headers.pop("Server", None)


NOT_FRAMES: Final = {  # totals that count something else
    "faces": ("edgesan_sanitized_faces", "Faces that were sanitized."),
    "camera_lost": ("edgesan_camera_losses", "How often the camera was lost."),
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
