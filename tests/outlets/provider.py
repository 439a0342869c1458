"""A provider's server, which answers as a test wants it to, in a thread of its own."""

import asyncio
import json
import ssl
import threading
from typing import Any

from aiohttp import web

from tests.support import free_port

SECRET = "0123456789abcdef"


class Provider:
    """Takes what is posted, and notes it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.code = 204
        self.posted: list[tuple[bytes, str | None]] = []
        """Bodies and signatures, also of what was not accepted."""
        self.accepted: list[bytes] = []
        self.paths: list[str] = []
        self._tls, self._loop, self._ready = tls, asyncio.new_event_loop(), threading.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"feed+http{'s' if self._tls else ''}://:{SECRET}@127.0.0.1:{self.port}/faces"

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.add_routes([web.post("/{path:.*}", self._post)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._tls).start()
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.posted.append((body, request.headers.get("X-Edgesan-Signature")))
        self.paths.append(request.path_qs)
        if self.code == 204:
            self.accepted.append(body)
        return web.Response(status=self.code, headers={"Location": "/elsewhere"} if self.code == 307 else {})

    @property
    def faces(self) -> list[dict[str, Any]]:
        return [face for body in list(self.accepted) for face in json.loads(body)["faces"]]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()
