"""The HTTP server: a live page, MJPEG, snapshots, health, metrics, and what the owner sets: dial, zones, privacy.

A frame is encoded once for all viewers, and not at all if nobody watches. Each viewer has at most one frame in flight
(with TLS two, because asyncio does not show what the encryption still holds): a slow viewer loses frames, sees no old
ones, and delays nobody. A picture that is older than a second is not shown to anyone; only a slate may follow it.

Every client is treated as hostile. Connections are limited, in total and from one address. A client that is slow to
ask, or takes nothing, is cut off. A page of another site, in the user's own browser, can neither show the stream nor
change alpha. See `edgesan.transmit.admission`. When the server starts, its process cannot make sockets any more: it is
given some.
"""

import asyncio
import json
import math
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from edgesan.config import http_address, is_loopback
from edgesan.errors import ConfigError
from edgesan.frames import SanitizedFrame
from edgesan.message import FRESH_NS, unix_s
from edgesan.metrics import Metrics
from edgesan.request import Alpha, Request, Zones
from edgesan.transmit.admission import Server, Tokens, authorized, host_name, is_embedded, is_foreign
from edgesan.transmit.jpeg import JpegEncoder
from edgesan.transmit.prometheus import Exporter
from edgesan.zones import Zone, of_json, to_json

WEB: Final = Path(__file__).parent.parent / "web"
BOUNDARY: Final = "edgesan-frame"
UNSENT_BYTES: Final = 16384  # of a picture that the kernel may hold before it is sent
MOST_BODY_BYTES: Final = 1024
MOST_ZONES_BYTES: Final = 32768  # of a body with zones
MOST_OFFER_BYTES: Final = 16384  # of a body with an offer for WebRTC; browsers write some 6,000
MOST_OFFERS: Final = 16  # that wait for their answer
HANDSHAKE_S: Final = 5.0
REQUEST_S: Final = 10.0  # from the connection, or the last answer, to the end of a request's head
BODY_S: Final = 5.0
NOBODY: Final = "the sanitizer does not answer; ask again\n"
# Browsers send some twenty fields, and cookies of other servers on this host.
LIMITS: Final = {"max_line_size": 4096, "max_field_size": 8190, "max_headers": 48, "read_bufsize": 16384}
# A page cannot present its token for these. They hold nothing of the camera.
WITHOUT_TOKEN: Final = ("/page.js", "/webrtc.js", "/zones.js", "/page.css", "/icon.svg", "/login")
COOKIE_S: Final = 30 * 86400  # for which a browser keeps what its user typed into the form
HOW: Final = (
    "present the token: as a password (http://cam:TOKEN@HOST/...), as a header (Authorization: Bearer TOKEN), or at the"
    " end of the address (?token=TOKEN)\n"
)
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "edgesan",
    "X-Content-Type-Options": "nosniff",
}
PEER: Final = re.compile("[0-9a-f]{0,16}")
REFUSALS: Final[dict[int, type[web.HTTPError]]] = {
    400: web.HTTPBadRequest,
    404: web.HTTPNotFound,
    503: web.HTTPServiceUnavailable,
}
Handler = Callable[[web.Request], Any]


class Controls(Protocol):
    """What a server can ask for on behalf of its viewers: `edgesan.transmit.process.Transmitter`."""

    @property
    def zones(self) -> tuple[tuple[Zone, ...], tuple[Zone, ...]]:
        """The zones of the configuration, and those that the owner has drawn."""

    def report(self) -> dict[str, Any]:
        """Return the report that the page and the metrics show."""

    def request(self, wanted: Request) -> bool:
        """Pass a request on; False if no sanitize process listens."""

    async def switch(self, *, on: bool) -> bool | None:
        """Close or open the camera; return whether that is recorded, None without an answer. Raises ConnectionError."""

    async def draw(self, zones: tuple[Zone, ...]) -> str:
        """Blacken zones and have them recorded; return why they were not, or nothing."""

    async def ask_webrtc(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Pass a question on to the WebRTC server of this run; None if there is none, or it does not answer."""


class HttpSink:
    """`--out http://HOST:PORT`, or `https://` with a certificate.

    Args:
        server: the address, its listening sockets, and TLS.
        token: what viewers must present; empty if nothing.
        controls: says how the run is, and passes on what viewers ask for.
        embed_from: origins of pages of other sites that may show the picture.
        jpeg: encodes for this server and for others; None: for this one alone.
    """

    def __init__(
        self,
        server: Server,
        token: str,
        controls: Controls,
        embed_from: Collection[str] = (),
        jpeg: JpegEncoder | None = None,
    ) -> None:
        self.name = server.address
        self._controls, self._status = controls, controls.report
        self._embed_from = embed_from
        self._headers = HEADERS | _framing(embed_from)
        self._tokens = Tokens(token, time.monotonic) if token else None
        self._cookie = f"edgesan-{http_address(server.address)[1]}"  # a browser sends it to all ports of this host
        self._form = (WEB / "login.html").read_text(encoding="utf-8")
        self._sockets, self._tls = server.sockets, server.tls
        self._metrics = Metrics()
        self._frame: SanitizedFrame | None = None
        self._jpeg = jpeg or JpegEncoder()
        self._count = 0
        self._arrived = asyncio.Event()
        self._drawing = asyncio.Lock()
        self._offers = 0
        self._closing = False
        self._viewers = 0
        self._servers: list[asyncio.Server] = []
        self._exporter = Exporter(self.report)
        app = web.Application(middlewares=[self._guard], client_max_size=MOST_ZONES_BYTES)
        app.on_response_prepare.append(self._add_headers)
        app.add_routes(
            [
                web.get("/", _asset("index.html", "text/html")),
                web.get("/page.js", _asset("page.js", "text/javascript")),
                web.get("/webrtc.js", _asset("webrtc.js", "text/javascript")),
                web.get("/zones.js", _asset("zones.js", "text/javascript")),
                web.get("/page.css", _asset("page.css", "text/css")),
                web.get("/icon.svg", _asset("icon.svg", "image/svg+xml")),
                web.post("/login", self._log_in),
                web.get("/stream.mjpg", self._stream, allow_head=False),  # its answer has no end
                web.get("/snapshot.jpg", self._snapshot),
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._prometheus),
                web.get("/api/status", self._api_status),
                web.get("/api/alpha", self._get_alpha),
                web.put("/api/alpha", self._put_alpha),
                web.post("/api/alpha", self._put_alpha),
                web.get("/api/privacy", self._get_privacy),
                web.put("/api/privacy", self._put_privacy),
                web.get("/api/zones", self._get_zones),
                web.put("/api/zones", self._put_zones),
                web.get("/api/webrtc", self._begin_webrtc),
                web.post("/api/webrtc", self._offer_webrtc),
                web.delete("/api/webrtc/{peer}", self._leave_webrtc),
            ]
        )
        # The handler of a viewer that leaves is cancelled at once, not at the next frame.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, handle_signals=False)

    async def start(self) -> None:
        """Start to serve, without making, binding or connecting a socket."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {
            "keepalive_timeout": REQUEST_S,
            "lingering_time": 1.0,
            "auto_decompress": False,
            "access_log": None,
            **LIMITS,
        }
        for each in self._sockets:
            self._servers.append(
                await loop.create_server(
                    lambda: Connection(server, loop=loop, **options),
                    sock=each,
                    ssl=self._tls,
                    ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
                    ssl_shutdown_timeout=1.0 if self._tls else None,
                )
            )

    async def send(self, frame: SanitizedFrame) -> None:
        """Make this the newest frame, and wake the viewers."""
        self._frame, self._count = frame, self._count + 1
        if not frame.stamps.slate:
            self._metrics.tick(time.monotonic_ns())
        self._arrived.set()
        self._arrived = asyncio.Event()

    async def close(self) -> None:
        """End all streams and give the ports back."""
        self._closing = True
        self._arrived.set()
        for server in self._servers:
            server.close()
        for each in self._sockets:  # also if the server was never started
            each.close()
        await self._runner.cleanup()

    def _newest_jpeg(self) -> bytes:
        """Return the newest frame as JPEG, encoded at most once for each picture. There must be a frame."""
        assert self._frame is not None
        return self._jpeg(self._frame)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}", "X-Accel-Buffering": "no"}
        )
        transport = request.transport
        if transport is None:
            return response  # the viewer has left already
        # Neither asyncio nor the kernel queues pictures: a viewer that could not take one gets the newest one later.
        transport.set_write_buffer_limits(0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        await response.prepare(request)
        async with self._watching():
            shown = 0
            opening = f"--{BOUNDARY}\r\n".encode()
            while not self._closing:
                # A viewer whose last picture is still in flight loses this one. The picture may also be old by now.
                if shown == self._count or self._is_old() or transport.get_write_buffer_size():
                    await self._arrived.wait()
                    continue
                shown, frame = self._count, self._frame
                assert frame is not None
                picture = self._newest_jpeg()
                taken = f"X-Timestamp: {unix_s(frame.stamps.captured_ns):.6f}\r\n"
                head = f"Content-Type: image/jpeg\r\n{taken}Content-Length: {len(picture)}\r\n\r\n".encode()
                started_ns = time.monotonic_ns()
                try:
                    # A browser shows a part when it sees the boundary behind it, so both are sent together.
                    await response.write(opening + head + picture + b"\r\n" + f"--{BOUNDARY}\r\n".encode())
                except ConnectionError:
                    break  # the viewer has left
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
        if reason := self._not_ready():
            raise web.HTTPServiceUnavailable(text=f"{reason}\n")
        return web.Response(body=self._newest_jpeg(), content_type="image/jpeg")

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _ready(self, request: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    def _not_ready(self) -> str:
        """Return why there is no live picture; empty if there is one."""
        if self._frame is None:
            return "no frame yet"
        if self._frame.stamps.slate:
            privacy = self._status().get("privacy")
            return "privacy is on: the camera is off" if privacy else "the camera gives no picture"
        return f"the newest frame is {self._age_ns() / 1e9:.1f} s old" if self._is_old() else ""

    def _is_old(self) -> bool:
        """Return whether the newest frame is too old to be shown as live."""
        return self._frame is not None and not self._frame.stamps.slate and self._age_ns() > FRESH_NS

    def _age_ns(self) -> int:
        assert self._frame is not None
        return time.monotonic_ns() - self._frame.stamps.captured_ns

    def report(self) -> dict[str, Any]:
        """Return the status of all processes and of this server."""
        now_ns = time.monotonic_ns()
        own, encoder = self._metrics.summary(now_ns), self._jpeg.metrics.summary(now_ns)
        refused = sum(limiter.refused for limiter in {each.limiter for each in self._sockets})
        totals = own["totals"] | encoder["totals"] | {"refused_connections": refused}
        spans = own["ms"] | encoder["ms"]
        return self._status() | {
            "ready": not self._not_ready(),
            "transmit": {"fps": own["fps"], "viewers": self._viewers, "totals": totals, "ms": spans},
        }

    async def _prometheus(self, request: web.Request) -> web.Response:
        return web.Response(body=self._exporter.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _api_status(self, request: web.Request) -> web.Response:
        return web.json_response(self.report())

    async def _get_alpha(self, request: web.Request) -> web.Response:
        return web.json_response({"alpha": self._status().get("alpha")})

    async def _put_alpha(self, request: web.Request) -> web.Response:
        alpha = await _value(request, "alpha", "0.5")
        low, high = self._status().get("model", {}).get("alpha_range", (0.0, 1.0))
        if (
            isinstance(alpha, bool) or not isinstance(alpha, int | float) or not low <= alpha <= high
        ):  # refuses NaN, too
            raise web.HTTPBadRequest(text=f'alpha must be a number within {low:g}..{high:g}; send {{"alpha": 0.5}}\n')
        if reason := self._not_ready():
            raise web.HTTPServiceUnavailable(text=f"{reason}: the dial turns while pictures come; ask again\n")
        self._ask(Alpha(float(alpha)))
        return web.json_response({"asked": float(alpha)}, status=202)

    def _ask(self, wanted: Request) -> None:
        if not self._controls.request(wanted):
            raise web.HTTPServiceUnavailable(text=NOBODY)

    async def _get_privacy(self, request: web.Request) -> web.Response:
        return web.json_response({"on": self._status().get("privacy")})

    async def _put_privacy(self, request: web.Request) -> web.Response:
        on = await _value(request, "on", "true")
        if not isinstance(on, bool):
            raise web.HTTPBadRequest(text='send {"on": true}, and the camera is off, or {"on": false}\n')
        try:
            recorded = await self._controls.switch(on=on)
        except ConnectionError as error:
            raise web.HTTPServiceUnavailable(text=NOBODY) from error
        return web.json_response({"asked": on, "recorded": recorded}, status=202)

    async def _get_zones(self, request: web.Request) -> web.Response:
        fixed, drawn = self._controls.zones
        return web.json_response({"fixed": to_json(fixed), "zones": to_json(drawn)})

    async def _put_zones(self, request: web.Request) -> web.Response:
        given = await _value(request, "zones", "[[[0, 0], [0.5, 0], [0.5, 1]]]", MOST_ZONES_BYTES)
        try:
            drawn = of_json(given)
        except ConfigError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        async with self._drawing:  # all in the same order
            self._ask(Zones(drawn))
            reason = await self._controls.draw(drawn)
        if reason:
            text = f"the zones hold now, but may be lost at the next start, as they could not be recorded: {reason}\n"
            raise web.HTTPInternalServerError(text=text)
        return await self._get_zones(request)

    async def _begin_webrtc(self, request: web.Request) -> web.Response:
        """Say which relays a browser may use."""
        _, text, _ = await self._ask_webrtc({"do": "begin"})
        return web.Response(text=text, content_type="application/json")

    async def _offer_webrtc(self, request: web.Request) -> web.Response:
        """Take an offer and return the answer, in the manner of WHEP (draft-ietf-wish-whep)."""
        if request.content_type != "application/sdp":  # nor can a form of another site send this
            raise web.HTTPUnsupportedMediaType(text="send the offer as application/sdp\n")
        offer = (await _read(request, MOST_OFFER_BYTES)).decode(errors="replace")
        if self._offers >= MOST_OFFERS:
            raise web.HTTPServiceUnavailable(text="too many offers wait for their answer: ask again\n")
        self._offers += 1
        try:
            status, text, peer = await self._ask_webrtc({"do": "offer", "sdp": offer})
        finally:
            self._offers -= 1
        where = {"Location": f"/api/webrtc/{peer}"} if peer else {}
        return web.Response(status=status, text=text, content_type="application/sdp", headers=where)

    async def _leave_webrtc(self, request: web.Request) -> web.Response:
        await self._ask_webrtc({"do": "leave", "peer": request.match_info["peer"]})
        return web.Response()

    async def _ask_webrtc(self, question: dict[str, Any]) -> tuple[int, str, str]:
        """Return status, text and name of the peer as the WebRTC server gives them. Raises HTTP errors for others."""
        match await self._controls.ask_webrtc(question):
            case None:
                raise web.HTTPNotFound(text="no WebRTC here, or it does not answer: MJPEG is at /stream.mjpg\n")
            case {"status": 200 | 201 as status, "text": str(text), "peer": str(peer)} if PEER.fullmatch(peer):
                return status, text, peer
            case {"status": int(status), "text": str(text)} if status in REFUSALS:
                raise REFUSALS[status](text=text)
        raise web.HTTPBadGateway(text="the WebRTC server gave an answer that is none\n")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check a request: it must carry the token; without a token, it must name a loopback host.

        The host name is checked because another site can make its own name point here (DNS rebinding). A token in the
        address is for pictures and players, which cannot send headers; a request that changes something needs a header
        or the cookie, which only pages of this server can use (`is_foreign`).
        """
        if isinstance(request.protocol, Connection):
            request.protocol.asked = True
        names = request.headers.getall("Host", [])
        host = host_name(names[0]) if len(names) == 1 else None
        if host is None:
            raise web.HTTPBadRequest(text="name this server in one Host field, such as Host: 127.0.0.1:8080\n")
        if is_foreign(request.method, request.headers, self._embed_from):
            raise web.HTTPForbidden(
                text="a page of another site may not use this server: open this server's own page, or name that site in"
                " embed_from\n"
            )
        if self._tokens is None:
            if not is_loopback(host):
                raise web.HTTPForbidden(text="this server answers to http://127.0.0.1 only\n")
        elif request.path not in WITHOUT_TOKEN:
            self._check(self._tokens, request, self._presented(self._tokens, request))
        response: web.StreamResponse = await handler(request)
        return response

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)
        if is_embedded(request.headers, self._embed_from):
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    async def _log_in(self, request: web.Request) -> web.Response:
        """Take the token of the form, and have the browser keep a cookie for it."""
        fields = parse_qs((await _read(request)).decode(errors="replace"))
        answer = web.Response(status=303, headers={"Location": "./"})
        if self._tokens is not None:
            self._check(self._tokens, request, fields.get("token", [""])[0].strip())
            answer.set_cookie(
                self._cookie,
                self._tokens.cookie,
                max_age=COOKIE_S,
                httponly=True,
                samesite="Lax",
                secure=self._tls is not None,
            )
        return answer

    def _presented(self, tokens: Tokens, request: web.Request) -> str:
        """Return the token that a request presents; empty if none."""
        given = authorized(request.headers.get("Authorization", ""))
        if given is None and request.method in ("GET", "HEAD"):
            given = request.query.get("token")
        return tokens.of_cookie(request.cookies.get(self._cookie, "")) if given is None else given

    def _check(self, tokens: Tokens, request: web.Request, given: str) -> None:
        """Check a token.

        Raises:
            HTTPUnauthorized: it is wrong or missing.
            HTTPTooManyRequests: this address must pause first.
        """
        host = request.remote or ""
        if pause_s := tokens.pause_s(host, given):
            seconds = math.ceil(pause_s)
            self._refuse(
                request,
                web.HTTPTooManyRequests,
                f"too many wrong tokens from this address: present one in {seconds} s\n",
                {"Retry-After": str(seconds)},
            )
        if not tokens.is_right(host, given):
            self._refuse(request, web.HTTPUnauthorized, "This is not the token." if given else "", _challenge(request))

    def _refuse(
        self, request: web.Request, kind: type[web.HTTPClientError], text: str, headers: Mapping[str, str]
    ) -> NoReturn:
        """Answer with the form if a person asks for the page, and with text otherwise."""
        if request.path in ("/", "/login") and "text/html" in request.headers.get("Accept", ""):
            raise kind(text=self._form.replace("MESSAGE", text), content_type="text/html", headers=headers)
        raise kind(text=HOW if kind is web.HTTPUnauthorized else text, headers=headers)


class Connection(web.RequestHandler):
    """A connection that answers malformed HTTP in a few words, without an echo of it and without a line in the log."""

    asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Cut the connection off if no request comes in time."""
        super().connection_made(transport)

        def check() -> None:  # later requests have aiohttp's own timer
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
        """Answer an error."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        answer = web.Response(status=400, text="this is not a valid HTTP request\n", headers=HEADERS | _framing(()))
        answer.force_close()
        return answer


def _framing(embed_from: Collection[str]) -> dict[str, str]:
    """Return the headers that say whose pages may hold ours in a frame."""
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
    ancestors = " ".join(("'self'", *embed_from)) if embed_from else "'none'"
    policy += f"; frame-ancestors {ancestors}; base-uri 'none'; form-action 'self'"
    # X-Frame-Options knows no list.
    return {"Content-Security-Policy": policy} | ({} if embed_from else {"X-Frame-Options": "DENY"})


async def _value(request: web.Request, key: str, example: str, most_bytes: int = MOST_BODY_BYTES) -> Any:
    """Return what a JSON body has under its only key; None if it is no such object. Raises HTTP errors."""
    # A form of another site can post, but not with this content type, which needs our permission first (CORS).
    shown = f'{{"{key}": {example}}}'
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text=f"send application/json, such as {shown}\n")
    try:
        body = json.loads(await _read(request, most_bytes))
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"this is not JSON ({error}); send {shown}\n") from error
    return body.get(key) if isinstance(body, dict) and len(body) == 1 else None


async def _read(request: web.Request, most_bytes: int = MOST_BODY_BYTES) -> bytes:
    """Return the body of a request. Raises the HTTP error of a slow, long or wrong one."""
    try:
        async with asyncio.timeout(BODY_S):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_S:g} s\n") from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(text="the body does not match its header\n") from error
    if len(body) > most_bytes:
        raise web.HTTPRequestEntityTooLarge(most_bytes, len(body))
    return body


def _challenge(request: web.Request) -> CIMultiDict[str]:
    """Say how to present the token. Players wait for `Basic`; on our own page a browser would open a window for it."""
    headers = CIMultiDict({"WWW-Authenticate": 'Basic realm="edgesan", charset="UTF-8"'})
    if request.path in ("/", "/login") or request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
        headers.clear()
    headers.add("WWW-Authenticate", "Bearer")
    return headers


def _asset(name: str, kind: str) -> Handler:
    content = (WEB / name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8")

    return serve
