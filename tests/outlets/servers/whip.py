"""A real WHIP server, by aiortc: decodes what is published, and prints a line for each picture.

Arguments: PORT TOKEN [CERTIFICATE KEY]
"""

import asyncio
import ssl
import sys
from typing import Any

from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

PEERS: set[RTCPeerConnection] = set()
TASKS: set[asyncio.Task[None]] = set()


async def show(track: Any) -> None:
    """Print the size of each picture."""
    try:
        while True:
            frame = await track.recv()
            print("frame", frame.width, frame.height, flush=True)
    except MediaStreamError:
        print("end", flush=True)


async def publish(request: web.Request) -> web.Response:
    """Take an offer, and answer it."""
    if request.headers.get("Authorization") != f"Bearer {sys.argv[2]}":
        return web.Response(status=401)
    peer = RTCPeerConnection()
    PEERS.add(peer)
    peer.on("track", lambda track: TASKS.add(asyncio.ensure_future(show(track))))
    await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    answer = peer.localDescription.sdp
    return web.Response(status=201, text=answer, content_type="application/sdp", headers={"Location": "/whip/1"})


async def end(request: web.Request) -> web.Response:
    """Take the end of a session."""
    return web.Response()


async def ready(app: web.Application) -> None:
    """Say that it listens soon."""
    print("ready", flush=True)


app = web.Application()
app.add_routes([web.post("/whip", publish), web.delete("/whip/1", end)])
app.on_startup.append(ready)
context = None
if sys.argv[3:]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*sys.argv[3:5])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, ssl_context=context)
