"""Record clips in a folder: `--out dir:/FOLDER?segment=60s&keep=10GiB&motion=true`.

    20261129T160322Z-000041.mkv     one clip: when it began (UTC), and its number, which only goes up
    index.jsonl                     a line for each finished clip: file, start, seconds, bytes, frames

Each clip begins with a key frame, and plays as far as it was written, also after a power cut. The oldest clips are
removed before the folder holds more than `keep`: by their numbers, as a clock may be set. The index follows the folder:
at the start it is written anew, without what is not there any more. Clips that it lacks are read and added while video
is recorded, a little at a time, as thousands of them, or one that is a day long, take minutes.

With `motion`, only what has a face or a silhouette is recorded, with some seconds before and after.
"""

import errno
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

import av

from edgesan import disk
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.outlets.channel import CODES, VIDEO, Codes, Video
from edgesan.outlets.link import Attempts, Link, Lost
from edgesan.outlets.mux import add_video, packet_of
from edgesan.targets import Target

logger = logging.getLogger(__name__)

SEGMENT_S: Final = 60.0
KEEP_BYTES: Final = 2**30
BEFORE_NS: Final = 3_000_000_000  # of what moves, at least, and after it
AFTER_NS: Final = 5_000_000_000
MOST_BEFORE: Final = 2**23  # bytes that are kept in memory for that
INDEX: Final = "index.jsonl"
NAME: Final = re.compile(r"(\d{8}T\d{6}Z)-(\d{6,12})\.mkv")
MOST_INDEX_BYTES: Final = 2**26
PROBE_S: Final = 0.005  # after each packet, for clips that the index lacks
STALE: Final = 100  # lines of removed clips in the index, before it is written anew
LEAST_ROOM: Final = 2**20  # bytes of a disk that is not full
OVERHEAD: Final = 16384  # bytes of a clip beside its packets, at most
CONTAINER: Final = {"cluster_time_limit": "1000", "flush_packets": "1"}  # a crash costs a second at most


@dataclass(frozen=True)
class Entry:
    """A finished clip, as the index has it. start: UTC, as ISO 8601."""

    file: str
    start: str
    seconds: float
    bytes: int
    frames: int


def prepare(config: Config, target: Target) -> "Folder":
    """Make the folder if it is not there, and read it.

    Raises:
        ConfigError: it cannot be used, or could never hold so much.
    """
    assert target.folder is not None
    keep = target.options.get("keep", KEEP_BYTES)
    try:
        target.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.own(target.folder)
        space = os.statvfs(target.folder)
        folder = Folder(target.folder, keep)
    except OSError as error:
        raise ConfigError(
            f"cannot record in {target.folder}: {error.strerror}; name a folder that you may write to"
        ) from error
    if keep > space.f_blocks * space.f_frsize:
        raise ConfigError(
            f"keep is {keep:,} bytes, and the whole disk of {target.folder} has {space.f_blocks * space.f_frsize:,}: it"
            " would be full before the oldest clip is removed; write less"
        )
    return folder


async def run(link: Link, target: Target, prepared: "Folder") -> None:
    """Record until the transmit process ends."""
    motion = target.options.get("motion", False)
    recorder = Recorder(prepared, round(target.options.get("segment", SEGMENT_S) * 1e9), motion=motion)
    attempts = Attempts(link, target.name)

    async def record() -> None:
        prepared.check_room()
        link.want(VIDEO | CODES if motion else VIDEO)
        attempts.sent(recorder.take(await link.key_frame()))
        attempts.connected()
        completing = prepared.complete()
        while True:
            message = await link.receive()
            if isinstance(message, Codes):
                recorder.see(message)
            elif isinstance(message, Video):
                attempts.sent(recorder.take(message))
                next(completing, None)

    async def attempt() -> None:
        try:
            try:
                await record()
            finally:
                recorder.close()
        except (av.FFmpegError, OSError) as error:
            raise Lost(words(error, target)) from error

    await attempts.run(attempt)


def words(error: av.FFmpegError | OSError, target: Target) -> str:
    """Say why nothing can be recorded, and what to do."""
    if error.errno == errno.ENOSPC:
        return "the disk is full: make room, or keep less (keep=); recording goes on when there is room"
    return f"cannot write there ({error.strerror}): make {target.folder} a folder that edgesan may write to"


class Recorder:
    """Decides which packets go into which clip. `take` raises OSError where the disk does not take them.

    Args:
        folder: gets the clips.
        segment_ns: the length of a clip, to the next key frame.
        motion: whether only what moves is recorded.
        wall: returns the seconds since 1970, for names.
    """

    def __init__(
        self,
        folder: "Folder",
        segment_ns: int,
        *,
        motion: bool = False,
        wall: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_REALTIME),
    ) -> None:
        self._folder, self._segment_ns, self._motion, self._wall = folder, segment_ns, motion, wall
        self._clip: Clip | None = None
        self._before: deque[Video] = deque()  # from a key frame on
        self._moved_ns: int | None = None  # when something moved last

    def see(self, codes: Codes) -> None:
        """Take notice of what is in the frame whose packet comes next."""
        if codes.latents.faces or any(codes.latents.silhouette.bits):
            self._moved_ns = codes.latents.captured_ns

    def take(self, video: Video) -> int:
        """Record a packet, or keep it for a while; return how many bytes were written."""
        moves = not self._motion or (self._moved_ns is not None and video.captured_ns - self._moved_ns <= AFTER_NS)
        if self._clip and (not moves or self._is_over(self._clip, video)):
            self.close()
        if self._clip:
            packets = [video]
        else:
            self._keep(video)
            if not moves or not self._before:
                return 0
            packets = list(self._before)
            self._before.clear()
            ago_s = (video.captured_ns - packets[0].captured_ns) / 1e9
            self._clip = self._folder.begin(packets[0], self._wall() - ago_s)
        written = 0
        for packet in packets:
            if not self._folder.make_room(self._clip.bytes + len(packet.packet)):  # this clip alone is too large
                self.close()
                break
            self._clip.write(packet)
            written += len(packet.packet)
        return written

    def close(self) -> None:
        """Finish the clip that is being written."""
        if self._clip:
            clip, self._clip = self._clip, None
            self._folder.finish(clip)

    def _is_over(self, clip: "Clip", video: Video) -> bool:
        """Return whether a packet begins another clip: after its time, and with another size of the picture."""
        long = video.captured_ns - clip.first.captured_ns >= self._segment_ns or clip.bytes >= self._folder.keep // 4
        return video.key and (long or (video.width, video.height) != (clip.first.width, clip.first.height))

    def _keep(self, video: Video) -> None:
        """Keep a packet in memory, with those before it for BEFORE_NS, from a key frame on."""
        if not self._before and not video.key:
            return
        if (
            self._before
            and video.key
            and (video.width, video.height) != (self._before[0].width, self._before[0].height)
        ):
            self._before.clear()
        self._before.append(video)
        starts = [n for n, each in enumerate(self._before) if each.key]
        enough = [n for n in starts[1:] if video.captured_ns - self._before[n].captured_ns >= BEFORE_NS]
        if sum(len(each.packet) for each in self._before) > MOST_BEFORE:
            enough = starts[1:] or [len(self._before)]
        for _ in range(enough[-1] if enough else 0):
            self._before.popleft()


class Clip:
    """A clip that is being written. first: its first packet, which must be a key frame. Raises OSError."""

    def __init__(self, path: Path, first: Video, start_s: float) -> None:
        self.path, self.first, self.start_s = path, first, start_s
        self.frames, self._last_ns = 0, first.captured_ns
        self._file = _File(path)
        self._container: Any = av.open(self._file, "w", format="matroska", options=CONTAINER)
        try:
            add_video(self._container, first)
        except (av.FFmpegError, OSError) as error:
            self._file.close()
            path.unlink()
            raise self._file.error or error from error

    @property
    def bytes(self) -> int:
        """How long the file is."""
        return self._file.length

    @property
    def seconds(self) -> float:
        """From the first packet to the last."""
        return (self._last_ns - self.first.captured_ns) / 1e9

    def write(self, video: Video) -> None:
        """Add a packet; with a key frame, what came before is on the disk."""
        try:
            self._container.mux(packet_of(video, self.first.captured_ns, self._container))
        except (av.FFmpegError, OSError) as error:
            raise self._file.error or error from error
        self.frames, self._last_ns = self.frames + 1, video.captured_ns
        if video.key:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Write the index of the clip, which helps players to seek; it plays without, too."""
        try:
            self._container.close()
            os.fdatasync(self._file.fileno())
        except (av.FFmpegError, OSError) as error:
            raise self._file.error or error from error
        finally:
            self._file.close()


class _File(FileIO):
    """A new file for FFmpeg to write to. It keeps the first error, because PyAV reports only that there was one."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "x")
        self.error: OSError | None = None
        self.length = 0

    def write(self, content: Any) -> int:
        """Write all of it."""
        left = memoryview(content)
        try:
            while left:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = self.error or error
            raise
        self.length = max(self.length, self.tell())
        return len(content)


class Folder:
    """The clips of a folder, and their index. No other program may write clips there. Methods raise OSError.

    Args:
        path: of the folder.
        keep: bytes that its clips may have together.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self._sizes: dict[str, int] = {}  # of finished clips, the oldest first
        self._total = self._stale = 0
        known = {entry.file: entry for entry in self._read()}
        for name in sorted(filter(NAME.fullmatch, os.listdir(path)), key=_number):
            self._sizes[name] = (path / name).stat().st_size
        self._total = sum(self._sizes.values())
        self._next = _number(next(reversed(self._sizes))) + 1 if self._sizes else 1
        self._entries = {
            name: known[name] for name, size in self._sizes.items() if name in known and known[name].bytes == size
        }
        self.make_room(0)
        self._write()

    def complete(self) -> Iterator[None]:
        """Add the clips that the index lacks. Each step takes about `PROBE_S`, and leaves what is done in the index."""
        missing = [name for name in self._sizes if name not in self._entries]
        for name in missing:
            entry = yield from _probed(self.path / name, self._sizes.get(name, 0))
            if name in self._sizes:  # it was not removed meanwhile
                self._entries[name] = entry
                self._append(entry)
            yield
        if missing:
            self._write()  # in their order

    def begin(self, first: Video, start_s: float) -> Clip:
        """Begin a clip that starts at this time, in seconds since 1970."""
        start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(0.0, start_s)))
        clip = Clip(self.path / f"{start}-{self._next:06}.mkv", first, start_s)
        self._next += 1
        return clip

    def finish(self, clip: Clip) -> None:
        """Finish a clip. Where the disk is full, what was written of it stays."""
        try:
            clip.close()
        finally:
            size = clip.path.stat().st_size
            start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0.0, clip.start_s)))
            entry = Entry(clip.path.name, start, round(clip.seconds, 3), size, clip.frames)
            self._sizes[entry.file], self._entries[entry.file] = size, entry
            self._total += size
        self._append(entry)

    def check_room(self) -> None:
        """Raise OSError if the disk has no room for some seconds: else a full one would fill with tiny clips."""
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < LEAST_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def make_room(self, more: int) -> bool:
        """Remove the oldest clips until there is room for so many bytes more; return whether there is."""
        while self._sizes and self._total + more + OVERHEAD > self.keep:
            oldest = next(iter(self._sizes))
            (self.path / oldest).unlink(missing_ok=True)
            self._total -= self._sizes.pop(oldest)
            self._entries.pop(oldest, None)
            self._stale += 1
        if self._stale >= STALE:
            self._write()
        return self._total + more + OVERHEAD <= self.keep

    def _read(self) -> Iterator[Entry]:
        """Yield what the index says, and leave out what is damaged. One that is too long is like one that is lost."""
        try:
            lines = disk.read_whole(self.path / INDEX, MOST_INDEX_BYTES).splitlines()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EFBIG):
                raise
            return
        for line in lines:
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError, RecursionError):  # the last line, after a power cut
                continue

    def _append(self, entry: Entry) -> None:
        with open(self.path / INDEX, "a", encoding="utf-8") as index:
            index.write(_line(entry))

    def _write(self) -> None:
        self._stale = 0
        lines = [_line(self._entries[name]) for name in self._sizes if name in self._entries]
        try:
            disk.write_whole(self.path / INDEX, "".join(lines).encode())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            logger.debug("the disk is full: %s stays as it was", self.path / INDEX)


def _number(name: str) -> int:
    match = NAME.fullmatch(name)
    assert match
    return int(match[2])


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry)) + "\n"


def _probed(path: Path, size: int) -> Generator[None, None, Entry]:
    """Return the entry of a clip that the index does not have, such as one whose end a power cut came before."""
    day, clock = path.name[:8], path.name[9:15]
    start = f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z"
    frames, last_s, until_s = 0, 0.0, time.monotonic() + PROBE_S
    try:
        with av.open(str(path)) as clip:
            for packet in clip.demux(video=0):
                if packet.pts is not None:
                    frames, last_s = frames + 1, max(last_s, float(packet.pts * packet.time_base))
                if time.monotonic() > until_s:
                    yield
                    until_s = time.monotonic() + PROBE_S
    except (av.FFmpegError, IndexError, UnicodeDecodeError):  # the last two: its video track or a tag is damaged
        logger.debug("%s cannot be played", path)
    return Entry(path.name, start, round(last_s, 3), size, frames)
