"""Ask a network camera for its video, by PyAV: RTSP, or MJPEG and others over HTTP.

A camera is asked at its address and at no other that it may name: otherwise a hostile camera could have any address of
this network asked in our name. A redirect is refused when we ask first, and FFmpeg follows none in a later HTTP answer
(its option max_redirects, from libavformat 62 on). But it follows an RTSP camera that redirects only after the first
request, or after the password: to RTSP addresses only, and FFmpeg has no option against it. The kernel then leaves it
the camera's port, of any address.
"""

import errno
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import av

from edgesan.fetch.address import URL_SCHEMES, port_of
from edgesan.fetch.packets import CODECS, MOST_EXTRADATA, MOST_PACKET, Fault, Header, Packet, Reason, Record

# What a camera may send. No playlist is among them (HLS, DASH, concat): a playlist names addresses of its own.
STREAMS: Final = "rtsp,rtp,mpjpeg,mjpeg,jpeg_pipe,image2pipe,h264,hevc,mpegts,flv,matroska,webm,mov,mp4,avi,asf,ogg"
CODEC_NAMES: Final = {"libdav1d": "av1", "libaom-av1": "av1"}  # a decoder's name, where the codec has another
HEAD_BYTES: Final = 16384  # of an answer: more is no answer of a camera's
NETWORK_TIMEOUT_S: Final = 5.0


class Failed(Exception):
    """Raised inside this module: the connection is over, and this is why."""

    def __init__(self, reason: Reason, error: int = 0, place: str = "") -> None:
        super().__init__(reason.name)
        self.fault = Fault(reason, error, place)


def fetch(parts: SplitResult, addresses: list[str], send: Callable[[Record], bool]) -> None:
    """Send a header and packets until the camera ends, and a fault as the last record.

    Args:
        parts: the camera's URL.
        addresses: where its host is, as `resolve` said.
        send: sends a record, or returns False if there is no room for it.
    """
    try:
        address = ask_first(parts, addresses)
        with closing(_open(parts, address)) as container:
            stream = _live_stream(container)
            send(_header(stream))
            _pump(container, stream, send)
        fault = Fault(Reason.ENDED)
    except Failed as failed:
        fault = failed.fault
    while not send(fault):
        pass  # there is room sooner or later: the other side reads, or has ended


def _open(parts: SplitResult, address: str) -> Any:
    """Open the stream at this address. Raises Failed."""
    user, at, host = parts.netloc.rpartition("@")
    numeric = f"[{address}]" if ":" in address else address
    url = urlunsplit(parts._replace(netloc=f"{user}{at}{numeric}:{port_of(parts)}", fragment=""))
    options = {
        "max_redirects": "0",
        "protocol_whitelist": URL_SCHEMES[parts.scheme][1],
        "format_whitelist": STREAMS,
        "rtsp_transport": "tcp",  # one connection, which this process may make; packets of UDP it may not send
        "timeout": str(round(NETWORK_TIMEOUT_S * 1e6)),  # microseconds; of RTSP, which heeds no other
    }
    if parts.scheme in ("http", "https"):
        options["headers"] = f"Host: {host}\r\n"
    started_s = time.monotonic()
    try:
        return av.open(url, options=options, timeout=(NETWORK_TIMEOUT_S, NETWORK_TIMEOUT_S))
    except (av.FFmpegError, OSError) as error:
        # FFmpeg calls it invalid data that an RTSP camera does not answer in time.
        if time.monotonic() - started_s >= NETWORK_TIMEOUT_S:
            raise Failed(Reason.HUNG) from error
        raise _failed(error) from error


REASONS: Final = (
    (av.HTTPUnauthorizedError, Reason.UNAUTHORIZED),
    (av.HTTPForbiddenError, Reason.FORBIDDEN),
    (av.HTTPNotFoundError, Reason.NOT_FOUND),
    ((av.ExitError, TimeoutError), Reason.HUNG),
    ((av.InvalidDataError, av.EOFError, ValueError), Reason.NO_VIDEO),
)


def _failed(error: Exception) -> Failed:
    """Return why FFmpeg could not open a camera."""
    reason = next((reason for kinds, reason in REASONS if isinstance(error, kinds)), Reason.OTHER)
    return Failed(reason, _number(error))


def _number(error: Exception) -> int:
    """Return the errno of an error, of the system's or FFmpeg's: no text crosses."""
    if isinstance(error, av.ExitError | TimeoutError):
        return errno.ETIMEDOUT
    return int(getattr(error, "errno", None) or 0)


def _live_stream(container: Any) -> Any:
    """Return the first video stream. Raises Failed: there is none, or it is a recording."""
    if not container.streams.video:
        raise Failed(Reason.SOUND_ALONE)
    stream = container.streams.video[0]
    if (container.duration or 0) > 0 or stream.frames > 0:
        raise Failed(Reason.RECORDING)
    return stream


def _header(stream: Any) -> Header:
    """Return how to decode a stream. Raises Failed: it has a codec that cameras do not have."""
    codec, extradata = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
    codec = CODEC_NAMES.get(codec, codec)
    if codec not in CODECS or len(extradata) > MOST_EXTRADATA:
        raise Failed(Reason.UNKNOWN_CODEC)
    return Header(codec, extradata)


def _pump(container: Any, stream: Any, send: Callable[[Record], bool]) -> None:
    """Send the stream's packets; of those for which there is no room, none until the next key frame. Raises Failed."""
    whole = True
    try:
        for packet in container.demux(stream):
            arrived_ns, picture = time.monotonic_ns(), bytes(packet)
            if 0 < len(picture) <= MOST_PACKET and (whole or packet.is_keyframe):
                whole = send(Packet(arrived_ns, picture))
    except (av.FFmpegError, OSError) as error:
        raise Failed(Reason.LOST, _number(error)) from error


def ask_first(parts: SplitResult, addresses: list[str]) -> str:
    """Ask a camera as FFmpeg will, and refuse it if nobody answers, or the head of the answer is a redirect.

    Returns:
        The address that answered.

    Raises:
        Failed: says how far the question came.
    """
    timeout_s, host = NETWORK_TIMEOUT_S, parts.netloc.rpartition("@")[2]
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if parts.scheme in ("rtsp", "rtsps"):
        question = f"DESCRIBE {parts.scheme}://{host}{path} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    else:
        question = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
    head, until_s = b"", time.monotonic() + timeout_s
    connection, address = _connect(parts, addresses, timeout_s)
    with connection:
        try:
            connection.sendall(question.encode())
            while not re.search(rb"\r?\n\r?\n", head) and len(head) < HEAD_BYTES and time.monotonic() < until_s:
                block = connection.recv(4096)
                if not block:
                    break
                head += block
        except TimeoutError as error:
            raise Failed(Reason.SILENT) from error
        except OSError as error:
            raise Failed(Reason.HUNG_UP, _number(error)) from error
    if re.match(rb"\w+/[\d.]+ +3\d\d", head):
        found = re.search(rb"(?im)^location:[ \t]*(\S+)", head)
        raise Failed(Reason.REDIRECTED, 0, _place(found[1].decode(errors="replace") if found else ""))
    return address


def _connect(parts: SplitResult, addresses: list[str], timeout_s: float) -> tuple[socket.socket, str]:
    """Connect to the first address that lets us, with TLS where the scheme says so. Raises Failed."""
    failed = Failed(Reason.NO_HOST)
    for address in addresses:
        try:
            connection = socket.create_connection((address, port_of(parts)), timeout_s)
            if parts.scheme in ("rtsps", "https"):  # of any certificate, as FFmpeg takes it
                unverified = ssl._create_unverified_context()  # noqa: S323
                with connection:  # closed unless TLS takes it over
                    return unverified.wrap_socket(connection, server_hostname=parts.hostname), address
        except OSError as error:
            failed = _unreached(error)
        else:
            return connection, address
    raise failed


def _unreached(error: OSError) -> Failed:
    """Return why no connection came about."""
    kinds: tuple[tuple[type[OSError], Reason], ...] = (
        (ConnectionRefusedError, Reason.REFUSED),
        (TimeoutError, Reason.UNANSWERED),
        (ssl.SSLError, Reason.NO_TLS),
    )
    reason = next((reason for kind, reason in kinds if isinstance(error, kind)), Reason.UNREACHED)
    return Failed(reason, _number(error))


def _place(location: str) -> str:
    """Return the part of an address that may be shown: its path may hold a password."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "an invalid address"
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return (place if place.isprintable() else "an invalid address") if parts.netloc else "another path of its own"
