"""The sinks of a run: opened before isolation forbids it, then built to take sanitized frames and nothing else.

Files are opened by the parent, ports by the transmit process before it gives up sockets (`edgesan.isolation`).
"""

import errno
import itertools
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from edgesan import disk
from edgesan.config import Config
from edgesan.errors import SinkError
from edgesan.transmit.admission import Server, listen
from edgesan.transmit.tls import tls_context

if TYPE_CHECKING:  # numpy must not be loaded before isolation
    from edgesan.frames import SanitizedFrame
    from edgesan.transmit.http import Controls
    from edgesan.transmit.jpeg import JpegEncoder


class Sink(Protocol):
    """What each transport implements. It lives in the transmit process."""

    name: str

    async def start(self) -> None:
        """Begin to serve or to write. Ports and files are open already. Raises SinkError."""

    async def send(self, frame: "SanitizedFrame") -> None:
        """Take the newest frame without waiting for a slow viewer. Raises SinkError."""

    async def close(self) -> None:
        """End all transmissions and release everything. Raises SinkError if a file is not whole."""


class OutputFile(NamedTuple):
    """A new, empty file that is open for writing."""

    path: Path
    file: BinaryIO


def open_files(config: Config) -> list[OutputFile]:
    """Create the files of a configuration; the transmit process cannot create any itself.

    A file that exists stays as it is, so that a service can start again: clip.mkv becomes clip-2.mkv, or the next free
    number.

    Args:
        config: its `out` names the files.

    Raises:
        SinkError: a folder cannot be written. No file is left behind.
    """
    opened: list[OutputFile] = []
    try:
        for path in config.files:
            opened.append(_open_file(path.absolute()))  # noqa: PERF401 - an error must find the earlier ones
    except SinkError:
        for _, file in opened:
            file.close()
        remove_empty(path for path, _ in opened)
        raise
    return opened


def remove_empty(paths: Iterable[Path]) -> None:
    """Remove files without a frame; with the rights of the owner of their folder, who may have put a link there."""

    def remove(path: Path) -> None:
        if path.stat().st_size == 0:
            path.unlink()

    for path in paths:
        with suppress(OSError):
            disk.as_owner(path.parent, partial(remove, path))


def _open_file(path: Path) -> OutputFile:
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    for name in itertools.chain([path], numbered):
        try:
            return OutputFile(name, disk.new_file(name))
        except FileExistsError:
            continue
        except OSError as error:
            reason = "there is no such folder" if error.errno == errno.ENOENT else error.strerror
            raise SinkError(f"cannot write {name}: {reason}; name a file in a folder that you may write to") from error
    raise SinkError(f"cannot write {path}: every name beside it is taken; move the files away")


def open_servers(config: Config) -> list[Server]:
    """Bind the ports of a configuration, and read its certificate.

    Raises:
        SinkError: a port is taken, or the certificate cannot be used.
    """
    sockets = {address: listen(address) for address in config.servers}
    tls = None if config.tls_cert is None else tls_context(config.tls_cert, config.tls_key)
    return [Server(address, listening, tls) for address, listening in sockets.items()]


def build(
    config: Config,
    servers: list[Server],
    files: list[OutputFile],
    controls: "Controls",
    jpeg: "JpegEncoder",
) -> list[Sink]:
    """Build the sinks. Loads the libraries that read what viewers send, so only after isolation.

    Args:
        config: its `token` is what viewers must present, and pages of `embed_from` may show the picture.
        servers: from `open_servers`.
        files: from `open_files`.
        controls: says how the run is, and passes on what viewers ask for.
        jpeg: encodes for all of them.
    """
    from edgesan.transmit.http import HttpSink

    sinks: list[Sink] = [HttpSink(server, config.token, controls, config.embed_from, jpeg) for server in servers]
    if files:
        from edgesan.transmit.file import FileSink  # loads 16 MB of PyAV, which streams do not need

        sinks += [FileSink(file, path) for path, file in files]
    return sinks
