"""The RTSP server itself: a program for the system's Python, which has gst-rtsp-server. Nothing of edgesan is imported.

What it serves arrives at its standard input, and what it has to say leaves by its standard output, a word a line:

    in    length, capture time in ns (CLOCK_MONOTONIC), whether it is a key frame | a packet of H.264 (Annex B)
    out   ready | key (a key frame is needed) | viewers N | missing PACKAGE ...

The first packet holds the settings, as JSON. The token comes there, and not as an argument, which all users can see.
One pipeline serves all viewers. It is not made before somebody watches.

    --check   says whether this machine has all that is needed, and ends
    --tls     something more is needed for rtsps
"""

import json
import os
import struct
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

HEAD = struct.Struct("<IQB")
MOST_BYTES = 2**23  # of a packet
MOST_WAITING_BYTES = 2**20  # in the pipeline, before packets are dropped up to the next key frame
MOST_VIEWERS = 16
MOST_CONNECTIONS = 32
SETTLE_S = 10  # for a connection to become a viewer
LOOK_S = 5  # from one look for viewers that are gone to the next
USER = "cam"
ROLE = "viewer"
BLOCK = 2**18  # bytes of one read
PLUGINS = {  # and the package of Debian that each is in
    "coreelements": "libgstreamer1.0-0",
    "app": "gstreamer1.0-plugins-base",
    "tcp": "gstreamer1.0-plugins-base",
    "rtp": "gstreamer1.0-plugins-good",
    "rtpmanager": "gstreamer1.0-plugins-good",
    "udp": "gstreamer1.0-plugins-good",
    "videoparsersbad": "gstreamer1.0-plugins-bad",
}
PIPELINE = (
    "( appsrc name=video is-live=true format=time max-bytes=0"
    " caps=video/x-h264,stream-format=byte-stream,alignment=au"
    " ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 aggregate-mode=zero-latency )"
)

try:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtsp", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer

    why_not = ""
except (ImportError, ValueError) as error:
    why_not = str(error)


def missing(*, tls: bool) -> list[str]:
    """Load what is needed, and return the packages of Debian that this machine lacks."""
    if why_not:
        return ["python3-gi", "gir1.2-gst-rtsp-server-1.0", *sorted(set(PLUGINS.values()))]
    folder = os.path.join("/usr/lib", sysconfig.get_config_var("MULTIARCH") or "", "gstreamer-1.0")
    # These plugins alone, and none else of the hundreds that a system may have: that would take seconds.
    os.environ |= {"GST_PLUGIN_SYSTEM_PATH_1_0": "", "GST_PLUGIN_PATH_1_0": "", "GST_REGISTRY_1_0": os.devnull}
    Gst.init(None)
    lacking = set()
    for name, package in PLUGINS.items():
        try:
            Gst.Plugin.load_file(os.path.join(folder, f"libgst{name}.so"))
        except GLib.Error:
            lacking.add(package)
    if tls and not Gio.TlsBackend.get_default().supports_tls():
        lacking.add("glib-networking")
    return sorted(lacking)


def say(word: str) -> None:
    """Tell the process that started this one. If that is gone, so is this one."""
    try:
        print(word, flush=True)
    except OSError:
        os._exit(1)


class Packets:
    """Cuts standard input into packets."""

    def __init__(self) -> None:
        self._content = bytearray()

    def feed(self, content: bytes) -> Iterator[tuple[bytes, int, bool]]:
        """Take bytes, and yield each whole packet with its time and whether it is a key frame."""
        self._content += content
        while len(self._content) >= HEAD.size:
            length, captured_ns, key = HEAD.unpack_from(self._content)
            if length > MOST_BYTES:
                sys.exit(f"a packet of {length} bytes is none")
            if len(self._content) < HEAD.size + length:
                return
            packet = bytes(self._content[HEAD.size : HEAD.size + length])
            del self._content[: HEAD.size + length]
            yield packet, captured_ns, bool(key)


class Feed:
    """The pipeline that all viewers share, while there is one."""

    def __init__(self, media: Any) -> None:
        self.media = media
        self._source = media.get_element().get_by_name("video")
        self._follows = False  # whether the next packet builds on one that the pipeline has
        say("key")  # nothing can be described before

    def push(self, packet: bytes, captured_ns: int, key: bool) -> None:
        """Pass a packet on. What viewers cannot take in time is lost, up to the next key frame."""
        full = self._source.get_property("current-level-bytes") > MOST_WAITING_BYTES
        # GStreamer's clock is CLOCK_MONOTONIC, too: so RTP carries the time of the capture.
        since_ns = captured_ns - self._source.get_base_time()
        if self._source.get_clock() is None or since_ns < 0 or full:
            self._follows = False
            if key:
                say("key")  # this one is lost, as the pipeline does not run yet, or is full
            return
        self._follows |= key
        if not self._follows:
            return
        buffer = Gst.Buffer.new_wrapped(packet)
        buffer.pts = since_ns
        self._source.emit("push-buffer", buffer)


class Server:
    """gst-rtsp-server with one mount point."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._feed: Feed | None = None
        self._connections = self._viewers = 0
        encrypted = bool(settings["certificate"])
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(PIPELINE)
        factory.set_shared(True)
        over = GstRtsp.RTSPLowerTrans
        factory.set_protocols(over.TCP if encrypted else over.TCP | over.UDP)  # UDP would pass by the encryption
        factory.connect("media-configure", self._take_media)
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address(settings["host"])
        self._server.set_service(str(settings["port"]))
        self._server.connect("client-connected", self._take_client)
        self._pool = self._server.get_session_pool()
        self._pool.set_max_sessions(MOST_VIEWERS)
        if settings["token"] or encrypted:
            self._server.set_auth(self._auth(settings, factory))
        self._server.get_mount_points().add_factory(settings["path"], factory)
        if not self._server.attach(None):
            sys.exit(f"cannot listen at {settings['host']}, port {settings['port']}: another program may do so")
        GLib.timeout_add_seconds(LOOK_S, self._look)
        say("ready")

    def _auth(self, settings: dict[str, Any], factory: Any) -> Any:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, ROLE)
        permissions = GstRtspServer.RTSPPermissions()
        for right in (
            GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS,
            GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT,
        ):
            permissions.add_permission_for_role(ROLE, right, True)
        factory.set_permissions(permissions)
        if settings["token"]:
            auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)  # Basic would show the token to the network
            auth.add_digest(USER, settings["token"], token)
        else:
            auth.set_default_token(token)
        if settings["certificate"]:
            auth.set_tls_certificate(Gio.TlsCertificate.new_from_pem(settings["certificate"], -1))
        return auth

    def push(self, packet: bytes, captured_ns: int, key: bool) -> None:
        """Pass a packet on, if somebody watches."""
        if self._feed:
            self._feed.push(packet, captured_ns, key)

    def _take_media(self, factory: Any, media: Any) -> None:
        feed = Feed(media)
        self._feed = feed
        media.connect("unprepared", lambda _: self._drop_media(feed))

    def _drop_media(self, feed: Feed) -> None:
        if self._feed is feed:
            self._feed = None

    def _take_client(self, server: Any, client: Any) -> None:
        self._connections += 1
        client.connect("closed", self._count_closed)
        if self._connections > MOST_CONNECTIONS:
            client.close()
            return
        client.connect("new-session", lambda *_: self._count_viewers())
        client.connect("play-request", lambda *_: say("key"))
        GLib.timeout_add_seconds(SETTLE_S, self._end_idle, client)

    def _count_closed(self, client: Any) -> None:
        self._connections -= 1
        self._count_viewers()

    def _end_idle(self, client: Any) -> bool:
        if not client.session_filter(None):
            client.close()
        return False

    def _look(self) -> bool:
        self._pool.cleanup()
        self._count_viewers()
        return True

    def _count_viewers(self) -> None:
        viewers = self._pool.get_n_sessions()
        if viewers != self._viewers:
            self._viewers = viewers
            say(f"viewers {viewers}")


def main() -> None:
    """Serve until standard input ends."""
    packets, loop = Packets(), GLib.MainLoop()
    server: Server | None = None
    os.set_blocking(0, False)

    def read(fd: int, condition: Any) -> bool:
        nonlocal server
        try:
            content = os.read(fd, BLOCK)
        except BlockingIOError:
            return True
        if not content:
            loop.quit()
        for packet, captured_ns, key in packets.feed(content):
            if server is None:
                server = Server(json.loads(packet))
            else:
                server.push(packet, captured_ns, key)
        return True

    GLib.unix_fd_add_full(GLib.PRIORITY_HIGH, 0, GLib.IOCondition.IN | GLib.IOCondition.HUP, read)
    loop.run()


if __name__ == "__main__":
    lacking = missing(tls="--tls" in sys.argv)
    if lacking:
        say(f"missing {' '.join(lacking)}")
    elif "--check" in sys.argv:
        say("ready")
    else:
        main()
