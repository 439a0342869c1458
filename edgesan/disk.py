"""Files that are whole or as they were, after a power cut, too; and root that follows nobody's links.

Whoever owns a folder decides where the names in it lead: root that opens, renames or chmods there goes where its owner
likes. So root does in such a folder what it must as that owner (`as_owner`), and the kernel says no to all else.
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
PATIENCE_S: Final = 60.0  # an owner may stop what runs in his name
MOST_LINKS: Final = 40  # on one way, as Linux has it


# --- whose folder -----------------------------------------------------------------------------------------------------


def as_owner(folder: Path, action: Callable[[], Any]) -> Any:
    """Do something in a folder with no more rights than its owner has; what it returned, which JSON must be able to say.

    Where root finds something of another user's on the way to the folder, a child does it that has become this user for
    good before it touches anything. Everybody else does it himself.

    Raises:
        OSError, EdgesanError: as the action does. PermissionError: root owns the folder, and others may write in it.
    """
    owner = _stranger(folder) if os.geteuid() == 0 else None
    if owner is None:
        return action()
    try:
        group = pwd.getpwuid(owner).pw_gid
    except KeyError:  # not the folder's: that may be root's
        group = NOBODYS_GROUP
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        _become(owner, group, action, mouth)
    os.close(mouth)
    try:
        said = _heard(ear, folder)
    finally:
        os.close(ear)
        os.kill(child, signal.SIGKILL)  # it was not waited for yet: no other process has its number
        os.waitpid(child, 0)
    if "error" in said:
        raise vars(errors)[said["error"]](said["text"])
    if "errno" in said:
        raise OSError(said["errno"], said["text"], said["file"])
    return said["done"]


def _become(owner: int, group: int, action: Callable[[], Any], mouth: int) -> None:
    """The child's whole life. By setresuid(2) it loses root's capabilities with root's name, and has no way back."""
    said: dict[str, Any] = {"errno": errno.EIO, "text": "what root had begun there as its owner broke off", "file": ""}
    try:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(owner, owner, owner)
        said = {"done": action()}
    except OSError as error:
        said = {"errno": error.errno or errno.EIO, "text": error.strerror, "file": str(error.filename or "")}
    except EdgesanError as error:
        said = {"error": type(error).__name__, "text": str(error)}
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        with suppress(OSError), open(mouth, "wb") as file:
            file.write(json.dumps(said).encode())
        os._exit(0)  # nothing of the parent's is ended here


def _heard(ear: int, folder: Path) -> dict[str, Any]:
    """What the child says until it hangs up. Raises TimeoutError: the owner of the folder has stopped it."""
    text, until_s = b"", time.monotonic() + PATIENCE_S
    while select.select([ear], [], [], max(0.0, until_s - time.monotonic()))[0]:
        block = os.read(ear, 65536)
        if not block:
            killed = {
                "errno": errno.EIO,
                "text": "what root had begun there as its owner was killed",
                "file": str(folder),
            }
            said: dict[str, Any] = json.loads(text) if text else killed
            return said
        text += block
    raise TimeoutError(errno.ETIMEDOUT, "its owner holds it up", str(folder))


def own(folder: Path) -> None:
    """Refuse a folder that another user may change, where root is about to work in it.

    Raises:
        ConfigError: it is one. OSError: it cannot be looked at, or everybody may write in it.
    """
    owner = _stranger(folder) if os.geteuid() == 0 else None
    if owner is not None:
        raise ConfigError(
            f"{folder} can be changed by user {owner}, and root works in no such folder: name one that is root's alone,"
            " or run it as that user"
        )


def _stranger(folder: Path) -> int | None:
    """The owner of the first thing on the way to a folder that is not root's: all behind it is as he likes. None: all is.

    What root owns in folders of root's cannot be exchanged meanwhile.
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
    """Whether this root has power over that user: in a user namespace, over those of its map only (user_namespaces(7))."""
    rows = [[int(word) for word in row.split()] for row in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= uid < first + count for first, _, count in rows)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A folder's descriptor: what is done through it is done there, wherever the folder's name leads meanwhile.

    Raises:
        PermissionError: this is root, and the folder is another user's (see `as_owner`). OSError: it is no folder.
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
        mode: of the file; None: as the umask has it.

    Raises:
        OSError: the place cannot be written, or the disk is full; the old file is as it was.
    """
    as_owner(target.parent, lambda: _write_whole(target, content, mode))


def _write_whole(target: Path, content: bytes, mode: int | None) -> None:
    part = f".{target.name}.part"
    try:
        with opened(target.parent) as folder:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)  # of a power cut
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
    """Write files that were not there, each with its mode: all of them, or none.

    Raises:
        FileExistsError: one is there already. OSError: the folder cannot be written.
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
    """Write a file that was not there, to the disk: O_EXCL overwrites nothing, and follows no link (open(2))."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mask = None if mode is None else os.umask(0)  # the mode as it is asked for, from the start
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
        with suppress(OSError):  # the first error is the one to tell
            os.unlink(name, dir_fd=folder)
        raise


def new_file(path: Path) -> BinaryIO:
    """A file that was not there, open for writing; in another user's folder it is that user's, also where root asks.

    Raises:
        FileExistsError: something is there. OSError: it cannot be made, or was exchanged meanwhile.
    """
    owner = as_owner(path.parent, lambda: _new_file(path))
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != owner or found.st_nlink != 1 or found.st_size:
        os.close(descriptor)
        raise OSError(errno.EPERM, "it was exchanged for another file", str(path))
    return open(descriptor, "wb")


def _new_file(path: Path) -> int:
    """Make it; whose it is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        return os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)


def read_whole(path: Path, most_bytes: int) -> bytes:
    """The content of an ordinary file. Who put it there leads us nowhere else, keeps nobody waiting, and fills no memory.

    Raises:
        OSError: it cannot be read, is a link or a special file, or is longer than that.
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
    """Remove the socket that an earlier run has left, if one has. Nothing else is ever removed.

    Raises:
        ConfigError: something else is there. OSError: it cannot be looked at, or not removed.
    """
    as_owner(path.parent, lambda: _remove_socket(path))


def _remove_socket(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"`--socket {path}` is a file of another kind: name a place of its own")
        path.unlink()
