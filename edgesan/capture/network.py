"""Network cameras: decodes, by PyAV, what the process that fetches (`edgesan.fetch`) sends. It needs no network."""

import errno
import os
import re
import time
from collections import deque
from fractions import Fraction
from typing import Any, Final
from urllib.parse import SplitResult

import av
import numpy as np
from numpy.typing import NDArray

from edgesan.capture.source import MOST_PIXELS, LiveSource, Source
from edgesan.errors import CameraError, CameraLost
from edgesan.fetch.address import parts_of, port_of
from edgesan.fetch.packets import Fault, Header, Packet, Reader, Reason

OPENED_S: Final = 15.0  # until a header or a fault comes: the camera is asked twice
HEARD_S: Final = 10.0  # until something comes: FFmpeg gives a silent camera 5 s, and then there is a fault
STALE_NS: Final = 300_000_000  # by which a picture may be late if later ones wait
SEARCH_NS: Final = 500_000_000  # for which late pictures are skipped
LATEST_NS: Final = 5_000_000_000  # by which a picture may have arrived before it is decoded
NS: Final = Fraction(1, 1_000_000_000)
GONE: Final = "unplugged, switched off or out of reach"
HUNG: Final = "it was reached, but sends no video: start it again, or give the address of another of its streams"
TIMEOUT_S: Final = 5  # of each step; see `edgesan.fetch.camera`
NO_PICTURES: Final = {
    Reason.ENDED: f"gives no pictures any more ({GONE})",
    Reason.LOST: f"gives no pictures any more ({{words}}: {GONE})",
}
NOT_OPENED: Final = {
    Reason.REFUSED: "nothing listens at port {port} there (connection refused); is the camera on, and the port right?",
    Reason.NO_HOST: "there is no host of the name {host}; write its address, such as 192.168.1.30",
    Reason.UNANSWERED: "nobody answers within {timeout} s; is the camera on, and in this network?",
    Reason.NO_TLS: "it speaks no TLS at port {port}; write http:// or rtsp:// if it has none",
    Reason.UNREACHED: "{words}; is this machine in the camera's network?",
    Reason.SILENT: "it was reached, but does not answer within {timeout} s; start it again",
    Reason.HUNG_UP: "it ended the connection ({words}); is it a camera?",
    Reason.UNAUTHORIZED: "{given} (401): write {scheme}://USER:PASSWORD@HOST/PATH, and special characters as %XX",
    Reason.FORBIDDEN: "it lets this user not see the stream (403): name another user, or change that in the camera",
    Reason.NOT_FOUND: "it has nothing at this path (404): its manual has the path of its stream",
    Reason.HUNG: HUNG,
    Reason.NO_VIDEO: "what it sends is no video: give the address of its video stream, not of its page",
    Reason.OTHER: "{words}; is this the address of its video stream?",
    Reason.SOUND_ALONE: "it sends no video (sound alone?); give the address of its video stream",
    Reason.UNKNOWN_CODEC: "its video has a codec that is not decoded here: choose H.264, H.265 or MJPEG in the camera",
}
OTHERS: Final = {
    Reason.REDIRECTED: "redirects to {place}, which is not followed: edgesan asks no address but the given one. If you"
    " trust that address, give it",
    Reason.RECORDING: "is a recording, not a camera: download it, and give the file",
}


class NetworkBackend:
    """A stream of packets as a CameraBackend."""

    def __init__(self, parts: SplitResult, name: str, header: Header, packets: Reader) -> None:
        self._parts, self._name, self._packets = parts, name, packets
        self._decoder: Any = av.CodecContext.create(header.codec, "r")
        self._decoder.extradata = header.extradata or None
        # Each of FFmpeg's threads holds a frame back: with one instead of two, H.264 at 30 fps lags 102 ms and not 143.
        self._decoder.thread_count = 1
        self._decoder.options = {"max_pixels": str(MOST_PIXELS)}
        self._decoded: deque[Any] = deque()
        self._frame: Any = None
        self._given_ns = time.monotonic_ns()  # when a picture was given

    def grab(self) -> int:
        """Wait for the next picture; return when it arrived (CLOCK_MONOTONIC, ns)."""
        while True:
            while not self._decoded:
                self._receive()
            self._frame, now_ns = self._decoded.popleft(), time.monotonic_ns()
            arrived_ns = now_ns if self._frame.pts is None else int(self._frame.pts)
            waits = self._decoded or self._packets.waits()
            # After a stop, the newest picture is looked for; a machine that is too slow for that gets some all the same
            if now_ns - arrived_ns <= STALE_NS or not waits or now_ns - self._given_ns > SEARCH_NS:
                self._given_ns = now_ns
                return min(now_ns, max(arrived_ns, now_ns - LATEST_NS))

    def _receive(self) -> None:
        """Wait for a packet, and decode it."""
        record = self._packets.next(HEARD_S)
        if isinstance(record, Fault):
            raise CameraLost(words(record, self._parts, self._name))
        if not isinstance(record, Packet):
            raise CameraLost(f"{self._name}: the process that fetches from it sent two headers")
        self._decode(record)

    def _decode(self, packet: Packet) -> None:
        """Decode a packet. A damaged one costs its pictures."""
        compressed = av.Packet(packet.content)
        # Its time of arrival: a decoder that puts pictures into another order takes it along.
        compressed.pts, compressed.time_base = packet.arrived_ns, NS
        try:
            self._decoded.extend(self._decoder.decode(compressed))
        except av.InvalidDataError:
            return
        except (av.FFmpegError, OSError) as error:
            number = int(getattr(error, "errno", None) or 0)
            raise CameraLost(words(Fault(Reason.LOST, number), self._parts, self._name)) from error

    def pixels(self) -> NDArray[Any] | None:
        """Convert the picture that was grabbed last to BGR; None if it is damaged."""
        try:
            return np.asarray(self._frame.to_ndarray(format="bgr24"))
        except (av.FFmpegError, ValueError):
            return None

    def close(self) -> None:
        """Close the pipe: the process that fetches then ends."""
        self._packets.close()


def open_url(
    url: str, packets: Reader | None, size: tuple[int, int] | None, fps: float | None, rotate: int = 0
) -> Source:
    """Open a network camera.

    Args:
        url: its address.
        packets: what the process that fetches sends; its claims have been read. None: there is no such process.
        size: as in `edgesan.capture.open_source`.
        fps: likewise.
        rotate: likewise.

    Raises:
        ConfigError: the address is malformed or of another protocol.
        CameraError: nobody answers, the camera refuses or redirects, or there is no live video; the message says which.
    """
    parts = parts_of(url)
    # Cameras take passwords before the host, in the query and in the path: the name shows none of these.
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if packets is None:
        raise CameraError(f"cannot open {name}: no process fetches from it; give it to `edgesan run`")
    header = packets.next(OPENED_S)
    if isinstance(header, Fault):
        raise CameraError(words(header, parts, name))
    if not isinstance(header, Header):
        raise CameraError(f"{name}: the process that fetches from it sent no header; start edgesan again")
    return LiveSource(name, NetworkBackend(parts, name, header, packets), size, fps, rotate)


def words(fault: Fault, parts: SplitResult, name: str) -> str:
    """Say why there are no pictures, and what to do."""
    number = fault.error
    if number == errno.ETIMEDOUT:
        said = f"nothing came for {TIMEOUT_S} s"
    elif number in errno.errorcode:
        said = os.strerror(number)
    else:  # FFmpeg's own
        said = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", getattr(av.error.classes.get(number), "__name__", "an error"))
    values = {
        "words": said,
        "place": fault.place,
        "host": parts.hostname,
        "port": port_of(parts),
        "scheme": parts.scheme,
        "timeout": TIMEOUT_S,
        "given": "the user name or the password is wrong" if parts.username else "it wants a user name and a password",
    }
    if fault.reason in NOT_OPENED:
        return f"cannot open {name}: {NOT_OPENED[fault.reason].format_map(values)}"
    return f"{name} {(NO_PICTURES | OTHERS)[fault.reason].format_map(values)}"
