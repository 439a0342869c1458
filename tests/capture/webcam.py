"""A network camera that a test can unplug."""

import asyncio
import ssl
import threading

import cv2
import numpy as np
from aiohttp import web


class Webcam:
    """A network camera: a real MJPEG server whose frame i is grey of level i."""

    def __init__(self, port: int = 0, encryption: ssl.SSLContext | None = None) -> None:
        self._encryption = encryption
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._serve(port), self._loop).result(10)

    async def _serve(self, port: int) -> int:
        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=b"})
            await response.prepare(request)
            for i in range(100_000):
                picture = cv2.imencode(".jpg", np.full((48, 64, 3), i % 250, np.uint8))[1].tobytes()
                head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
                await response.write(head + picture + b"\r\n")
                await asyncio.sleep(0.02)
            return response

        app = web.Application()
        app.router.add_get("/video", stream)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._encryption)
        await site.start()
        chosen: int = self._runner.addresses[0][1]
        return chosen

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
