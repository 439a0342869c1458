"""Files that are whole or unchanged, also after a power cut; and no link that leads root astray.

The owner of a folder decides where the names in it lead. If root opened, renamed or chmodded files there, the owner
could lead it anywhere. So root works in such a folder with the owner's rights only (`as_owner`), and the kernel refuses
the rest.
"""

import errno
import json
import os
import pwd
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgesan import errors
from edgesan.errors import ConfigError, EdgesanError

NOBODYS_GROUP: Final = 65534
PATIENCE_S: Final = 60.0  # an owner may stop what runs under that name
MOST_LINKS: Final = 40  # on one path, as Linux allows


# --- whose folder -----------------------------------------------------------------------------------------------------


def as_owner(folder: Path, action: Callable[[], Any]) -> Any:
    """Do something in a folder with no more rights than its owner has.

    If this is root, and another user owns something on the path to the folder, a child process does it, which becomes
    that user for good before it touches anything. In all other cases this process does it.

    Args:
        folder: where the action works.
        action: what to do; JSON must be able to hold what it returns.

    Returns:
        What the action returned.

    Raises:
        OSError, EdgesanError: as the action does.
        PermissionError: root owns the folder, and others may write in it.
    """
    owner = _stranger(folder) if os.geteuid() == 0 else None
    if owner is None:
        return action()
    try:
        group = pwd.getpwuid(owner).pw_gid
    except KeyError:  # not the group of the folder, which may be root's
        group = NOBODYS_GROUP
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        _become(owner, group, action, writable)
    os.close(writable)
    try:
        answer = _answer(readable, folder)
    finally:
        os.close(readable)
        os.kill(child, signal.SIGKILL)  # it was not waited for yet: no other process has its number
        os.waitpid(child, 0)
    if "error" in answer:
        raise vars(errors)[answer["error"]](answer["text"])
    if "errno" in answer:
        raise OSError(answer["errno"], answer["text"], answer["file"])
    return answer["done"]


def _become(owner: int, group: int, action: Callable[[], Any], writable: int) -> None:
    """Live the child's whole life. By setresuid(2) it loses root's capabilities, and has no way back."""
    answer: dict[str, Any] = {"errno": errno.EIO, "text": "root's work there as the owner broke off", "file": ""}
    try:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(owner, owner, owner)
        answer = {"done": action()}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO, "text": error.strerror, "file": str(error.filename or "")}
    except EdgesanError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        with suppress(OSError), open(writable, "wb") as file:
            file.write(json.dumps(answer).encode())
        os._exit(0)  # run no clean-up of the parent's


def _answer(readable: int, folder: Path) -> dict[str, Any]:
    """Read what the child writes until it closes the pipe. Raises TimeoutError: the owner has stopped it."""
    text, until_s = b"", time.monotonic() + PATIENCE_S
    while select.select([readable], [], [], max(0.0, until_s - time.monotonic()))[0]:
        block = os.read(readable, 65536)
        if not block:
            killed = {"errno": errno.EIO, "text": "root's work there as the owner was killed", "file": str(folder)}
            answer: dict[str, Any] = json.loads(text) if text else killed
            return answer
        text += block
    raise TimeoutError(errno.ETIMEDOUT, "its owner blocks root's work there", str(folder))


def own(folder: Path) -> None:
    """Refuse a folder that another user may change, if this is root.

    Raises:
        ConfigError: another user may change it.
        OSError: it cannot be examined, or everybody may write in it.
    """
    owner = _stranger(folder) if os.geteuid() == 0 else None
    if owner is not None:
        raise ConfigError(
            f"{folder} can be changed by user {owner}, and root works in no such folder: name one that only root may"
            " change, or run it as that user"
        )


def _stranger(folder: Path) -> int | None:
    """Return the owner of the first thing on the path to a folder that is not root's; None if all of it is.

    That owner controls everything behind it. What root owns in root's folders cannot be exchanged meanwhile.
    """
    way, here, links = list(reversed(folder.absolute().parts)), Path("/"), 0
    while way:
        here /= way.pop()
        try:
            found = here.lstat()
        except FileNotFoundError:
            return None
        if found.st_uid and _mapped(found.st_uid):
            return found.st_uid
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            way += reversed((here.parent / here.readlink()).parts)
            here = Path("/")
        elif not found.st_uid and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "others than root may write there (chmod go-w)", str(here))
    return None


def _mapped(uid: int) -> bool:
    """Return whether this root may act for that user: in a user namespace, for mapped users only."""
    rows = [[int(word) for word in row.split()] for row in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + count for first, _, count in rows)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder: what is done through the descriptor is done there, wherever the name leads meanwhile.

    Raises:
        PermissionError: this is root, and the folder is another user's (see `as_owner`).
        OSError: it is no folder.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.realpath(folder), flags)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner and os.geteuid() == 0 and _mapped(owner):
            raise PermissionError(errno.EPERM, f"root writes in no folder of user {owner}", str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


# --- files ------------------------------------------------------------------------------------------------------------


def write_whole(target: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file entirely or not at all; it is on the disk when this returns (rename(2), fsync(2)).

    Root writes in another user's folder as that user. A link at `target` is replaced, not followed.

    Args:
        target: the file to replace.
        content: its new bytes.
        mode: its permissions; None: by the umask.

    Raises:
        OSError: the place cannot be written, or the disk is full; the old file is as it was.
    """
    as_owner(target.parent, lambda: _write_whole(target, content, mode))


def _write_whole(target: Path, content: bytes, mode: int | None) -> None:
    part = f".{target.name}.part"
    try:
        with opened(target.parent) as folder:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)  # left by a power cut
            _put(part, content, mode, folder)
            try:
                os.replace(part, target.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(part, dir_fd=folder)
                raise
            os.fsync(folder)  # the new name, too
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise


def create(folder: Path, files: dict[str, tuple[bytes, int]]) -> None:
    """Write new files, each with its content and mode: all of them, or none.

    Raises:
        FileExistsError: one is there already.
        OSError: the folder cannot be written.
    """
    as_owner(folder, lambda: _create(folder, files))


def _create(folder: Path, files: dict[str, tuple[bytes, int]]) -> None:
    with opened(folder) as descriptor:
        made: list[str] = []
        for name, (content, mode) in files.items():
            try:
                _put(name, content, mode, descriptor)
            except OSError as error:
                for earlier in made:
                    os.unlink(earlier, dir_fd=descriptor)
                error.filename = str(folder / name)
                raise
            made.append(name)


def _put(name: str, content: bytes, mode: int | None, folder: int) -> None:
    """Write a new file to the disk: O_EXCL overwrites nothing, and follows no link (open(2))."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mask = None if mode is None else os.umask(0)  # exactly this mode, from the start
    try:
        descriptor = os.open(name, flags, 0o666 if mode is None else mode, dir_fd=folder)
    finally:
        if mask is not None:
            os.umask(mask)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):  # the first error is the one to report
            os.unlink(name, dir_fd=folder)
        raise


def new_file(path: Path) -> BinaryIO:
    """Create a file and open it for writing; in another user's folder it belongs to that user, also if this is root.

    Raises:
        FileExistsError: something is there.
        OSError: it cannot be made, or was exchanged meanwhile.
    """
    owner = as_owner(path.parent, lambda: _new_file(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != owner or found.st_nlink != 1 or found.st_size:
        os.close(descriptor)
        raise OSError(errno.EPERM, "it was exchanged for another file", str(path))
    return open(descriptor, "wb")


def _new_file(path: Path) -> int:
    """Create the file, and return its owner."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        return os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)


def read_whole(path: Path, most_bytes: int) -> bytes:
    """Read an ordinary file of at most so many bytes, which may be hostile: no link, no pipe that never answers.

    Raises:
        OSError: it cannot be read, is a link or a special file, or is longer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a link, which is not followed"
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        content = bytearray()
        while block := os.read(descriptor, most_bytes + 1 - len(content)):
            content += block
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes} bytes", str(path))
    return bytes(content)


def remove_socket(path: Path) -> None:
    """Remove the socket that an earlier run has left, if there is one, and nothing else.

    Raises:
        ConfigError: something else is there.
        OSError: it cannot be examined or removed.
    """
    as_owner(path.parent, lambda: _remove_socket(path))


def _remove_socket(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"`--socket {path}` is a file of another kind: name a place of its own")
        path.unlink()
