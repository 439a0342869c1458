"""`serve+rtsp://HOST:PORT/PATH`: an RTSP server for players and recorders, which gst-rtsp-server of the system is.

GStreamer belongs to the system's Python, so it runs in a program of its own (`edgesan.outlets.gst_rtsp`). That program
is started before this process gives up its rights, and has given up its own by then: it may read the system's
libraries, listen at its port and answer, and no more. Video is asked for only while somebody watches.
"""

import asyncio
import json
import logging
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from edgesan.config import Config
from edgesan.errors import ConfigError, SinkError
from edgesan.isolation import confine_program
from edgesan.outlets.channel import VIDEO, Key, Outbox, State
from edgesan.outlets.link import Link
from edgesan.targets import Target

logger = logging.getLogger(__name__)

PYTHON: Final = Path("/usr/bin/python3")  # the one that the system's GStreamer is for
PROGRAM: Final = Path(__file__).with_name("gst_rtsp.py")
HEAD: Final = struct.Struct("<IQB")
CHECK_S: Final = 30.0
IDLE_S: Final = 10.0  # from the last viewer to the end of the video
MOST_WORDS: Final = 4096  # bytes that the program may say without an end of line


def missing(*, tls: bool) -> str:
    """Return the packages of Debian that are missing here, for one line of apt; empty if none is."""
    command = [str(PYTHON), "-I", str(PROGRAM), "--check", *(["--tls"] if tls else [])]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=CHECK_S)
    except FileNotFoundError:
        return "python3 python3-gi gir1.2-gst-rtsp-server-1.0"
    word, _, packages = done.stdout.strip().partition(" ")
    if word == "ready":
        return ""
    return packages or "python3-gi gir1.2-gst-rtsp-server-1.0"


class Program(NamedTuple):
    """The program, and our end of the socket that is its standard input and output."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def prepare(config: Config, target: Target) -> Program:
    """Start the program.

    Raises:
        ConfigError: something of the system is missing, or the certificate cannot be read.
    """
    tls = target.scheme == "serve+rtsps"
    if packages := missing(tls=tls):
        raise ConfigError(f"{target.name} needs GStreamer's RTSP server: sudo apt install {packages}")
    ours, theirs = socket.socketpair()
    command = [str(PYTHON), "-I", str(PROGRAM), *(["--tls"] if tls else [])]
    process = subprocess.Popen(
        command,
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        env={"PATH": "/usr/bin", "LANG": "C.UTF-8"},
        preexec_fn=lambda: confine_program(PYTHON, [target.port]),  # noqa: PLW1509 - no thread runs yet
    )
    theirs.close()
    settings = {"host": target.host, "port": target.port, "path": target.path, "token": config.token}
    ours.sendall(_framed(json.dumps(settings | {"certificate": _pem(config) if tls else ""}).encode()))
    ours.setblocking(False)
    return Program(process, ours)


def _pem(config: Config) -> str:
    """Return certificate and key in one text."""
    files = [file for file in (config.tls_cert, config.tls_key) if file is not None]
    try:
        return "\n".join(file.read_text(encoding="ascii") for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {' and '.join(map(str, files))} for rtsps ({error}); name PEM files") from error


def _framed(packet: bytes, captured_ns: int = 0, *, key: bool = False) -> bytes:
    return HEAD.pack(len(packet), captured_ns, key) + packet


async def run(link: Link, target: Target, prepared: Program) -> None:
    """Feed the program until the transmit process ends.

    Raises:
        SinkError: the program has ended; it has said why.
    """
    feed = Feed(link, target, prepared.connection)
    hear = asyncio.create_task(feed.hear())
    look = asyncio.create_task(feed.send())
    done, pending = await asyncio.wait({hear, look}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


class Feed:
    """What the program is given, and what it says."""

    def __init__(self, link: Link, target: Target, connection: socket.socket) -> None:
        self._link, self._target, self._connection = link, target, connection
        self._outbox = Outbox(connection.fileno())
        self._viewers = self._bytes = 0
        self._idle: asyncio.TimerHandle | None = None
        self._wanted = self._follows = False

    async def send(self) -> None:
        """Pass packets on. A program that takes nothing for long loses all up to the next key frame."""
        while True:
            packet = await self._link.video()
            if not (packet.key or self._follows):
                continue
            self._follows = self._outbox.put(_framed(packet.packet, packet.captured_ns, key=packet.key))
            self._bytes += len(packet.packet) if self._follows else 0
            if not self._follows:
                self._link.send(Key())
            if not self._outbox.flush():
                asyncio.get_running_loop().add_writer(self._connection, self._flush)

    def _flush(self) -> None:
        if self._outbox.flush():
            asyncio.get_running_loop().remove_writer(self._connection)

    async def hear(self) -> None:
        """Do what the program asks for.

        Raises:
            SinkError: it has ended.
        """
        text = b""
        while content := await self._read():
            *words, text = (text + content).split(b"\n")
            if len(text) > MOST_WORDS:
                break
            for word in words:
                self._take(word)
        raise SinkError(f"{self._target.name}: the RTSP server has ended; it is started again")

    async def _read(self) -> bytes:
        # Not by calls for sockets, which this process may not make any more.
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._connection, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._connection)
        try:
            return os.read(self._connection.fileno(), MOST_WORDS)
        except ConnectionError:
            return b""

    def _take(self, word: bytes) -> None:
        match word.split():
            case [b"ready"]:
                logger.info("%s: players can connect", self._target.name)
                self._link.send(State(connected=True))
            case [b"key"]:  # somebody begins to watch
                self._watch()
                self._link.send(Key())
            case [b"viewers", number] if number.isdigit():
                self._viewers = int(number)
                self._link.send(State(True, "", self._bytes, 0, self._viewers))
                self._watch()

    def _watch(self) -> None:
        """Have video, and end it when nobody has watched for a while."""
        if self._idle is not None:
            self._idle.cancel()
        if not self._wanted:
            self._wanted = True
            self._link.want(VIDEO)
        self._idle = None if self._viewers else asyncio.get_running_loop().call_later(IDLE_S, self._rest)

    def _rest(self) -> None:
        self._wanted = self._follows = False
        self._link.want(0)
