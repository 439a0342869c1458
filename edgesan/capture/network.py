"""Network cameras, by PyAV: RTSP, or MJPEG and others over HTTP.

A camera is opened at its address and at no other that it may name: otherwise a hostile camera could have any address of
this network asked in our name. A redirect is refused when we ask first, and FFmpeg follows none in a later HTTP answer
(its option max_redirects, from libavformat 62 on). But it follows an RTSP camera that redirects only after the first
request, or after the password: to RTSP addresses only, and FFmpeg has no option against it.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import av
import numpy as np
from numpy.typing import NDArray

from edgesan.capture.source import LiveSource, Source
from edgesan.errors import CameraError, CameraLost, ConfigError

# The schemes of camera URLs: the port of each, and the protocols that FFmpeg may use for it.
URL_SCHEMES: Final = {
    "rtsp": (554, "rtsp,rtp,udp,tcp"),
    "rtsps": (322, "rtsp,rtp,udp,tls,tcp"),
    "http": (80, "http,tcp"),
    "https": (443, "https,tls,tcp"),
}
# What a camera may send. No playlist is among them (HLS, DASH, concat): a playlist names addresses of its own.
STREAMS: Final = "rtsp,rtp,mpjpeg,mjpeg,jpeg_pipe,image2pipe,h264,hevc,mpegts,flv,matroska,webm,mov,mp4,avi,asf,ogg"
HEAD_BYTES: Final = 16384  # of an answer: more is no answer of a camera's
NETWORK_TIMEOUT_S: Final = 5.0
HUNG: Final = "it was reached, but sends no video: start it again, or give the address of another of its streams"


class NetworkBackend:
    """An open stream as a CameraBackend."""

    def __init__(self, name: str, container: Any, stream: Any) -> None:
        self._name, self._container = name, container
        self._frames = self._decoded(stream)
        self._frame: Any = None

    def _decoded(self, stream: Any) -> Iterator[Any]:
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue  # a damaged packet costs one picture
            yield from frames

    def grab(self) -> int:
        """Wait for the next picture; return when it arrived (CLOCK_MONOTONIC, ns)."""
        try:
            self._frame = next(self._frames)
        except StopIteration:
            raise CameraLost(
                f"{self._name} gives no pictures any more (unplugged, switched off or out of reach)"
            ) from None
        except (av.FFmpegError, OSError) as error:
            raise CameraLost(
                f"{self._name} gives no pictures any more ({_words(error)}: unplugged, switched off or out of reach)"
            ) from error
        return time.monotonic_ns()

    def pixels(self) -> NDArray[Any] | None:
        """Convert the picture that was grabbed last to BGR; None if it is damaged."""
        try:
            return np.asarray(self._frame.to_ndarray(format="bgr24"))
        except (av.FFmpegError, ValueError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._container.close()


def open_url(url: str, size: tuple[int, int] | None, fps: float | None, rotate: int = 0) -> Source:
    """Open a network camera.

    Raises:
        ConfigError: the address is malformed or of another protocol.
        CameraError: nobody answers, the camera refuses or redirects, or there is no live video; the message says which.
    """
    try:
        parts = urlsplit(url)
        well_formed = bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    # An @ after the host means a password with an unescaped slash in it: what looks like the host is none.
    if not well_formed or "@" in parts.path or re.search(r"[\0-\x20\x7f]", url):
        # Not the parser's own words: they may hold a password.
        raise ConfigError(
            "camera is a malformed URL: write rtsp://USER:PASSWORD@HOST:PORT/PATH, and special characters as %XX"
        )
    if parts.scheme not in URL_SCHEMES:
        raise ConfigError(f"camera is a {parts.scheme}:// URL: {', '.join(URL_SCHEMES)} can be opened")
    # Cameras take passwords before the host, in the query and in the path: the name shows none of these.
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    ask_first(parts, name)
    options = {
        "max_redirects": "0",
        "protocol_whitelist": URL_SCHEMES[parts.scheme][1],
        "format_whitelist": STREAMS,
        "rtsp_flags": "prefer_tcp",
        "timeout": str(round(NETWORK_TIMEOUT_S * 1e6)),  # microseconds; of RTSP, which heeds no other
    }
    started_s = time.monotonic()
    try:
        container = av.open(url, options=options, timeout=(NETWORK_TIMEOUT_S, NETWORK_TIMEOUT_S))
    except (av.FFmpegError, OSError) as error:
        # FFmpeg calls it invalid data that an RTSP camera does not answer in time.
        hung = time.monotonic() - started_s >= NETWORK_TIMEOUT_S
        raise CameraError(f"cannot open {name}: {HUNG if hung else _reason(error, parts)}") from error
    try:
        return LiveSource(name, NetworkBackend(name, container, _live_stream(name, container)), size, fps, rotate)
    except CameraError:
        container.close()
        raise


def _live_stream(name: str, container: Any) -> Any:
    """Return the first video stream. Raises CameraError: there is none, or it is a recording."""
    if not container.streams.video:
        raise CameraError(f"cannot open {name}: it sends no video (sound alone?); give the address of its video stream")
    stream = container.streams.video[0]
    if (container.duration or 0) > 0 or stream.frames > 0:
        raise CameraError(f"{name} is a recording, not a camera: download it, and give the file")
    # Each of FFmpeg's threads holds a frame back: with one instead of two, H.264 at 30 fps lags 102 ms and not 143.
    stream.codec_context.thread_count = 1
    return stream


def _reason(error: Exception, parts: SplitResult) -> str:
    """Say why FFmpeg could not open a camera, and what to do."""
    given = "the user name or the password is wrong" if parts.username else "it wants a user name and a password"
    if isinstance(error, av.HTTPUnauthorizedError):
        return f"{given} (401): write {parts.scheme}://USER:PASSWORD@HOST/PATH, and special characters as %XX"
    if isinstance(error, av.HTTPForbiddenError):
        return "it lets this user not see the stream (403): name another user, or change that in the camera"
    if isinstance(error, av.HTTPNotFoundError):
        return "it has nothing at this path (404): its manual has the path of its stream"
    if isinstance(error, av.ExitError | TimeoutError):
        return HUNG
    if isinstance(error, av.InvalidDataError | av.EOFError | ValueError):
        return "what it sends is no video: give the address of its video stream, not of its page"
    return f"{_words(error)}; is this the address of its video stream?"


def _words(error: Exception) -> str:
    """Return FFmpeg's or the system's words for an error; not its address, which may hold a password."""
    if isinstance(error, av.ExitError | TimeoutError):
        return f"nothing came for {NETWORK_TIMEOUT_S:g} s"
    return str(getattr(error, "strerror", None) or type(error).__name__)


def ask_first(parts: SplitResult, name: str) -> None:
    """Ask a network camera as FFmpeg will, and refuse it if nobody answers, or the head of the answer is a redirect.

    Raises:
        CameraError: says how far the question came.
    """
    port, timeout_s = parts.port or URL_SCHEMES[parts.scheme][0], NETWORK_TIMEOUT_S
    host, path = str(parts.hostname), urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if parts.scheme in ("rtsp", "rtsps"):
        question = f"DESCRIBE {name}{path} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    else:
        question = f"GET {path} HTTP/1.0\r\nHost: {name.partition('://')[2]}\r\n\r\n"
    if parts.scheme in ("rtsps", "https"):  # of any certificate, as FFmpeg takes it
        unverified = ssl._create_unverified_context()  # noqa: S323
        connection: HTTPConnection = HTTPSConnection(host, port, timeout=timeout_s, context=unverified)
    else:
        connection = HTTPConnection(host, port, timeout=timeout_s)
    head, until_s = b"", time.monotonic() + timeout_s
    with closing(connection):
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
            raise CameraError(f"cannot open {name}: {_unreached(error, host, port)}") from error
        try:
            connection.sock.sendall(question.encode())
            while not re.search(rb"\r?\n\r?\n", head) and len(head) < HEAD_BYTES and time.monotonic() < until_s:
                block = connection.sock.recv(4096)
                if not block:
                    break
                head += block
        except TimeoutError as error:
            raise CameraError(
                f"cannot open {name}: it was reached, but does not answer within {timeout_s:g} s; start it again"
            ) from error
        except (OSError, UnicodeError) as error:
            raise CameraError(
                f"cannot open {name}: it ended the connection ({_words(error)}); is it a camera?"
            ) from error
    if re.match(rb"\w+/[\d.]+ +3\d\d", head):
        found = re.search(rb"(?im)^location:[ \t]*(\S+)", head)
        place = _place(found[1].decode(errors="replace") if found else "")
        raise CameraError(
            f"{name} redirects to {place}, which is not followed: edgesan asks no address but the given one. If you"
            " trust that address, give it"
        )


def _unreached(error: Exception, host: str, port: int) -> str:
    """Say why no connection came about."""
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at port {port} there (connection refused); is the camera on, and the port right?"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"there is no host of the name {host}; write its address, such as 192.168.1.30"
    if isinstance(error, TimeoutError):
        return f"nobody answers within {NETWORK_TIMEOUT_S:g} s; is the camera on, and in this network?"
    if isinstance(error, ssl.SSLError):
        return f"it speaks no TLS at port {port}; write http:// or rtsp:// if it has none"
    return f"{_words(error)}; is this machine in the camera's network?"


def _place(location: str) -> str:
    """Return the part of an address that may be shown: its path may hold a password."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an invalid address"
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return (place if place.isprintable() else "an invalid address") if parts.netloc else "another path of its own"
