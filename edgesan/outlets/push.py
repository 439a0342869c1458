"""Push to a server: RTSP(S), RTMP(S) and WHIP, by PyAV.

The packets are those of the one encoder; nothing is encoded here. FFmpeg is called in the loop, and may block it: what
is not received meanwhile is dropped in the transmit process. It has a time limit of its own for RTSP only, so that each
call has a `deadline`, too.
"""

import asyncio
import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import av

from edgesan.outlets.channel import VIDEO, Video
from edgesan.outlets.link import AUTHORITIES, Attempts, Link, Lost, deadline
from edgesan.outlets.mux import add_video, packet_of
from edgesan.targets import Target

SILENT_S: Final = 3.0  # for a server to answer
DEAF_S: Final = 4.0  # for a server to take what it is sent
DEADLINE_S: Final = 6.0  # for a call of FFmpeg to come back
FORMATS: Final = {"rtsp": "rtsp", "rtmp": "flv", "whip": "whip"}  # by the beginning of the scheme
ENCRYPTED: Final = ("rtsps", "rtmps", "whip+https")
UNCHECKED: Final = ("rtmps", "whip+https")  # FFmpeg takes any certificate there, and PyAV hands it no option against it


async def run(link: Link, target: Target, prepared: None) -> None:
    """Push the video until the transmit process ends."""
    av.logging.set_level(av.logging.PANIC)  # FFmpeg's own words may hold the password; `explain` has ours
    attempts = Attempts(link, target.name)

    async def attempt() -> None:
        began_s = time.monotonic()
        try:
            await push(link, target, attempts)
        except (av.FFmpegError, OSError) as error:
            raise Lost(await explain(error, target, time.monotonic() - began_s)) from error

    await attempts.run(attempt)


async def push(link: Link, target: Target, attempts: Attempts) -> None:
    """Connect, and push until the size of the picture changes.

    Raises:
        FFmpegError, OSError: the server does not take it, or not any more.
        Lost: its certificate is not trusted.
    """
    link.want(VIDEO)
    first = await link.key_frame()
    await asyncio.get_running_loop().getaddrinfo(target.host, target.port)  # FFmpeg does not say that there is no host
    attempts.connecting()
    if target.scheme in UNCHECKED and (reason := await unreachable(target)):
        raise Lost(reason)
    with deadline(DEADLINE_S):
        container = open_server(target, first)
    try:
        attempts.connected()
        packet = await link.key_frame()
        began_ns = packet.captured_ns
        while (packet.width, packet.height) == (first.width, first.height):
            with deadline(DEADLINE_S):
                container.mux(packet_of(packet, began_ns, container))
            attempts.sent(len(packet.packet))
            packet = await link.video()
    finally:
        with deadline(DEADLINE_S), suppress(av.FFmpegError, OSError):  # it says no more than the first error
            container.close()


def open_server(target: Target, first: Video) -> Any:
    """Connect to a server, and announce the video that begins with this packet. Raises FFmpegError or OSError."""
    format_name = FORMATS[target.scheme[:4]]
    url, options = target.url, dict[str, str]()
    if format_name == "rtsp":
        options = {"rtsp_transport": "tcp", "timeout": str(round(SILENT_S * 1e6))}
        if target.scheme in ENCRYPTED:
            options |= {"tls_verify": "1", "verifyhost": target.host, "ca_file": str(AUTHORITIES)}
    elif format_name == "flv":
        options = {"flush_packets": "1"}  # a packet does not wait for others
    else:
        parts = urlsplit(url.removeprefix("whip+"))
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        options = whip(target.password)
    before = set(os.listdir("/proc/self/fd"))
    container = av.open(url, "w", format=format_name, options=options)
    add_video(container, first)
    for descriptor in set(os.listdir("/proc/self/fd")) - before:
        end_when_silent(int(descriptor))
    return container


def end_when_silent(descriptor: int) -> None:
    """Have the kernel end a TCP connection of FFmpeg's whose other side takes nothing for a while (tcp(7)).

    Otherwise seconds of a small stream would wait in the kernel, and be sent again ever more rarely: a network that is
    back would not have its stream back.
    """
    # It may be no socket, or the descriptor of the listing, which is closed already.
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.type == socket.SOCK_STREAM:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(DEAF_S * 1000))


@cache
def whip(token: str) -> dict[str, str]:
    """Return the options for WHIP, with a certificate of this process."""
    from edgesan.outlets import certificate  # loads what the others do not need

    certificate_file, key_file = certificate.make()
    options = {"handshake_timeout": str(round(SILENT_S * 1000)), "whip_flags": "dtls_active"}
    options |= {"cert_file": certificate_file, "key_file": key_file}
    return options | ({"authorization": token} if token else {})


# --- words ------------------------------------------------------------------------------------------------------------


async def explain(error: Exception, target: Target, seconds: float) -> str:
    """Say why a server does not take the video, and what to do.

    Args:
        error: of FFmpeg or the system.
        target: the server.
        seconds: from the beginning of the attempt.
    """
    wrong = "the user name or the password is wrong" if target.password else "it wants a user name and a password"
    refusals = {
        av.HTTPUnauthorizedError: f"{wrong} (401): write {target.kind.example}, and special characters as %XX",
        av.HTTPForbiddenError: "it does not let this user publish there (403): name another user or path, or change"
        " that at the server",
        av.HTTPNotFoundError: "it has nothing at this path (404): its manual has the path to publish at",
        av.HTTPError: f"it refuses the stream ({getattr(error, 'strerror', '')}); its log says why",
    }
    said = next((words for kind, words in refusals.items() if isinstance(error, kind)), "")
    if not said and not isinstance(error, TimeoutError):  # which may come from a server that was reached
        said = unreached(error, target)
    if not said:
        said = await unreachable(target)
    if not said and (isinstance(error, TimeoutError) or seconds >= SILENT_S):
        said = f"it was reached, but does not answer within {SILENT_S:g} s; start it again"
    if not said and isinstance(error, ConnectionError | av.EOFError | av.InvalidDataError):
        said = f"it ended the connection; is it a server of {target.scheme}://, and may this path be published at?"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return said or f"it does not take the stream ({reason}); is it a server of {target.scheme}://?"


async def unreachable(target: Target) -> str:
    """Try to reach a server, and check its certificate; return why that fails, or nothing."""
    try:
        async with asyncio.timeout(SILENT_S):
            _, writer = await asyncio.open_connection(target.host, target.port)
    except OSError as error:
        return unreached(error, target)
    said = ""
    try:
        if target.scheme in ENCRYPTED:
            async with asyncio.timeout(SILENT_S):
                await writer.start_tls(ssl.create_default_context(), server_hostname=target.host)
    except TimeoutError:
        pass  # it is there, and silent
    except OSError as error:
        said = unreached(error, target)
    writer.close()
    with suppress(OSError):
        async with asyncio.timeout(1):
            await writer.wait_closed()
    return said


def unreached(error: Exception, target: Target) -> str:
    """Say why no connection came about; nothing if one may have."""
    no_way = isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
    reasons = (
        (
            isinstance(error, socket.gaierror | UnicodeError),
            f"there is no host of the name {target.host}, or no way to a name server; is the network up?",
        ),
        (
            isinstance(error, ConnectionRefusedError),
            f"nothing listens at port {target.port} there (connection refused); is it on, and the port right?",
        ),
        (
            isinstance(error, ssl.SSLCertVerificationError),
            f"its certificate is not trusted ({getattr(error, 'verify_message', '')}): name its authority's file in"
            + " SSL_CERT_FILE, or the host as its certificate does",
        ),
        (
            isinstance(error, ssl.SSLError),
            f"it speaks no TLS at port {target.port}; is the port right, or has it none?",
        ),
        (no_way, f"this machine has no way there ({getattr(error, 'strerror', '')}); is the network up?"),
        (
            isinstance(error, TimeoutError),
            f"nobody answers at its address within {SILENT_S:g} s; is it on, and in this network?",
        ),
    )
    return next((words for holds, words in reasons if holds), "")
