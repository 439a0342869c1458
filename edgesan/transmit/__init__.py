"""Sinks: where sanitized frames go. Nothing here can take any other frame."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # numpy must not be loaded yet: see `edgesan.isolation`
    from edgesan.frames import SanitizedFrame


class Sink(Protocol):
    """The interface behind which each transport lives; it runs in the transmit process."""

    name: str

    async def start(self) -> None:
        """Begin; ports and files are open already. Raises SinkError."""

    async def send(self, frame: "SanitizedFrame") -> None:
        """Take the newest frame; must not wait for a slow reader. Raises SinkError."""

    async def close(self) -> None:
        """End all transmissions and give everything back. Raises SinkError if what was written is not whole."""
