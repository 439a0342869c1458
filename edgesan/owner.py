"""What the owner does about the scene: `edgesan scene take | accept | clear | show`.

The camera is opened in a child process with the isolation of the sanitize process. It has no network, and writes no
file: the still comes back through a pipe, and this process puts it beside the one in force.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from edgesan import disk, isolation, scene, standing
from edgesan.config import Config
from edgesan.errors import CameraError, ConfigError, EdgesanError, IsolationError
from edgesan.fetch import Fetcher
from edgesan.fetch.packets import Reader
from edgesan.model import rollback
from edgesan.zones import Zone

logger = logging.getLogger(__name__)

DONE, CAMERA = b"D", b"C"  # the first byte of a child's answer; behind it the still, or a reason
FAILURES: Final = {CAMERA: CameraError, b"O": ConfigError, b"I": IsolationError}
MOST_REASON: Final = 2000  # bytes
PROPOSED_MODE: Final = 0o600
ACCEPTED_MODE: Final = 0o640  # the group of the folder may read it: on a board, both units


def still_file(config: Config) -> Path:
    """Return the file of the still in force, which these commands may change.

    Raises:
        ConfigError: the camera is the demo, whose still is part of edgesan.
    """
    if config.camera == "demo":
        raise ConfigError("the demo has a still of its own: name another camera, --camera")
    return scene.place(config, os.environ)


def take(config: Config, seconds: float) -> Path:
    """Look at the room for so many seconds, and return the file of the proposal.

    Raises:
        CameraError: the camera cannot be read, or the room is not empty, or dark.
        ConfigError: privacy is on, or the file cannot be written.
        IsolationError: `require_isolation` is set, and a restriction does not hold.
    """
    path = scene.proposed(still_file(config))
    stands = standing.read(rollback.state_folder(config.state_dir, os.environ))
    if stands.privacy:
        raise ConfigError(standing.PRIVACY)
    _write(path.parent, lambda: path.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
    url = config.camera if config.camera_is_url else ""
    fetcher = Fetcher.start(url, required=config.require_isolation) if url else None
    readable, writable = os.pipe2(os.O_CLOEXEC)
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _survey(config, seconds, (*config.zones, *stands.zones), parent, writable, fetcher)
    os.close(writable)
    if fetcher:
        fetcher.close_child_end()
        fetcher.connect()
    try:
        with open(readable, "rb") as pipe:
            answer = pipe.read(1 + scene.MOST_BYTES)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, 9)  # it has answered, or this process was interrupted
        os.waitpid(child, 0)
        if fetcher:
            fetcher.close()
    content = still_of(answer)
    scene.check(content, "that was taken")
    _write(path, lambda: disk.write_whole(path, content, PROPOSED_MODE))
    return path


def still_of(answer: bytes) -> bytes:
    """Return the still, a PNG file's bytes, in the answer of the child that sees raw pixels.

    Raises:
        CameraError: the child ended without an answer, or said why there is none.
        EdgesanError: the child said so; of the kinds in FAILURES.
    """
    kind = FAILURES.get(answer[:1])
    if kind:
        raise kind(answer[1:MOST_REASON].decode(errors="replace"))
    if answer[:1] != DONE:
        raise CameraError("the process that looks at the room ended without an answer: take the still again, with -v")
    return answer[1:]


def _survey(  # noqa: PLR0913, PLR0917 - what the child of a fork takes along
    config: Config,
    seconds: float,
    zones: tuple[Zone, ...],
    parent: int,
    writable: int,
    fetcher: Fetcher | None,
) -> NoReturn:
    """Live the whole life of the child, which sees raw pixels."""
    answer = b""
    try:
        isolation.end_with_parent(9)
        if os.getppid() != parent:
            os._exit(1)
        keep = {0, 1, 2, writable, *([fetcher.packets] if fetcher else [])}
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
            with suppress(OSError):  # the descriptor of the listing is closed already
                os.close(fd)
        devices = isolation.camera_nodes() if config.camera.startswith("picamera") else config.camera_nodes
        claims = isolation.sanitize(config.camera_files, devices=devices)
        if config.require_isolation:
            isolation.require(claims)
        packets = Reader(fetcher.packets) if fetcher else None
        claims += packets.claims(required=config.require_isolation) if packets else []
        for claim in claims:
            if not claim.holds:
                logger.warning("%s", claim)
        from edgesan import survey

        isolation.limit_memory()
        answer = DONE + survey.take(config, seconds, zones, packets)
    except EdgesanError as error:
        code = next((code for code, kind in FAILURES.items() if isinstance(error, kind)), CAMERA)
        answer = code + str(error).encode()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        with suppress(OSError), open(writable, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)  # run no clean-up of the parent's


def accept(config: Config) -> Path:
    """Put the proposal in force, and return its file.

    Raises:
        ConfigError: there is no proposal, it is damaged, or the file cannot be written.
        CameraError: a face is seen in it.
    """
    path = still_file(config)
    proposal = scene.proposed(path)
    content = scene.read(proposal)
    if content is None:
        raise ConfigError(f"there is no proposal at {proposal}: take one first (edgesan scene take)")
    from edgesan import survey

    survey.refuse_faces(scene.decode(content, str(proposal)).pixels, str(proposal))
    _write(path, lambda: disk.write_whole(path, content, ACCEPTED_MODE))
    _write(proposal, proposal.unlink)
    return path


def clear(config: Config) -> list[Path]:
    """Remove the still in force and the proposal; return the files that there were.

    Raises:
        ConfigError: one of them cannot be removed.
    """
    path = still_file(config)
    there = [each for each in (path, scene.proposed(path)) if os.path.lexists(each)]
    for each in there:
        _write(each, each.unlink)
    return there


def _write(path: Path, action: Callable[[], object]) -> None:
    """Do something at a path, in another user's folder as that user.

    Raises:
        ConfigError: it cannot be done.
    """
    try:
        disk.as_owner(path.parent, action)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; on a board, put sudo before the command, or name a file of your"
            " own with --scene"
        ) from error


def facts(config: Config) -> dict[str, Any]:
    """Return what there is, ready for JSON: the still in force, the proposal, and whether a run would show a still.

    Raises:
        ConfigError: a still cannot be read.
    """
    path = scene.place(config, os.environ)
    return {
        "background": config.background,
        "in_force": _described(path),
        "proposed": None if config.camera == "demo" else _described(scene.proposed(path)),
    }


def _described(path: Path) -> dict[str, Any] | None:
    content = scene.read(path)
    if content is None:
        return None
    _, _, width, height = scene.HEAD.unpack_from(content)
    return {"file": str(path), "id": f"{scene.number(content):08x}", "size": [width, height]}


def text(found: dict[str, Any]) -> str:
    """Return the facts for people."""
    lines = []
    for name, words in (("in_force", "in force"), ("proposed", "proposed")):
        still = found[name]
        shown = "none"
        if still:
            width, height = still["size"]
            shown = f"{still['file']}  {width}x{height}, number {still['id']}"
        lines.append(f"{words:<9} {shown}")
    if found["background"] != "scene":
        lines.append(f'a run shows no still: background is "{found["background"]}"')
    elif not found["in_force"]:
        lines.append("a run shows a flat colour until a still is accepted: edgesan scene take")
    return "\n".join(lines)
