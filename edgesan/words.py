"""What the parent and its children say to each other: a byte for its kind, and a few bytes more. See `edgesan.supervisor`."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

READY: Final = b"R"  # child: all is open
ALIVE: Final = b"A"  # child: a frame passed, or a second
RAISE: Final = b"V"  # sanitize: remember this version, JSON [name, version]; answered by RAISED or REFUSED
GO: Final = b"G"  # parent: somebody takes the frames
RAISED: Final = b"M"  # parent: it is written down
REFUSED: Final = b"E"  # parent: it cannot be, and why
MOST: Final = 4096  # bytes of a word: PIPE_BUF, pipe(7)


@dataclass(frozen=True)
class Line:
    """A pair of pipes in packet mode (pipe(7)): a word is read as it was written."""

    reads: int
    writes: int
    _kept: list[tuple[bytes, bytes]] = field(default_factory=list, compare=False)  # heard, and waited for later

    @classmethod
    def pair(cls) -> "tuple[Line, Line]":
        """Both ends: the parent's, which never waits, and the child's, which waits for answers."""
        up_in, up_out = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        down_in, down_out = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        for end in (up_in, up_out, down_out):
            os.set_blocking(end, False)
        return cls(up_in, down_out), cls(down_in, up_out)

    def say(self, kind: bytes, more: bytes = b"") -> None:
        """Say a word. It is lost where nobody listens any more, or has not listened for long."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.writes, (kind + more)[:MOST])

    def hear(self) -> tuple[bytes, bytes] | None:
        """The next word: its kind, and the rest; None if there is none now. The kind is empty once the other end is closed."""
        try:
            word = os.read(self.reads, MOST)
        except BlockingIOError:
            return None
        return word[:1], word[1:]

    def wait(self, *kinds: bytes) -> tuple[bytes, bytes]:
        """The first word of one of these kinds; the others are kept. The kind is empty once the other end is closed."""
        for word in self._kept:
            if word[0] in kinds:
                self._kept.remove(word)
                return word
        while (heard := self.hear()) is not None and heard[0] and heard[0] not in kinds:
            self._kept.append(heard)
        return heard or (b"", b"")

    def close(self) -> None:
        os.close(self.reads)
        os.close(self.writes)
