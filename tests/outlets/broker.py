"""A real mosquitto, and a client of it."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from tests.support import free_port

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Mosquitto:
    """A broker with a user `cam` and a password, in a process of its own."""

    def __init__(self, folder: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed: apt install mosquitto")
        self.port, self._folder = free_port(), folder
        secrets = folder / "passwords"
        passwd = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
        subprocess.run([passwd, "-b", "-c", str(secrets), "cam", "p@ss/w"], check=True, capture_output=True)
        secrets.chmod(0o644)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {secrets}",
            "persistence false",
            "user root",
            *([f"certfile {tls[0]}", f"keyfile {tls[1]}"] if tls else []),
        ]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"mqtt://cam:p%40ss%2Fw@127.0.0.1:{self.port}"

    def start(self) -> None:
        assert MOSQUITTO is not None
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=log, stdout=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Listener:
    """A client, as Home Assistant is one: notes all that is published, and publishes. In a thread of its own."""

    def __init__(self, port: int, *topics: str, ca: Path | None = None) -> None:
        self.seen: list[tuple[str, bytes, bool]] = []
        self._port, self._topics = port, topics
        self._tls = ssl.create_default_context(cafile=ca) if ca else None
        self._loop = asyncio.new_event_loop()
        self._client: aiomqtt.Client | None = None
        self._ready = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self._thread.start()
        assert self._ready.wait(20)

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                with contextlib.suppress(aiomqtt.MqttError):
                    await self._read()
                self._client = None
                await asyncio.sleep(0.1)

    async def _read(self) -> None:
        password, tls = "p@ss/w", self._tls
        async with aiomqtt.Client(
            "127.0.0.1", self._port, username="cam", password=password, tls_context=tls
        ) as client:
            for topic in self._topics:
                await client.subscribe(topic)
            self._client = client
            self._ready.set()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                self.seen.append((message.topic.value, message.payload, message.retain))

    def publish(self, topic: str, content: str, *, retain: bool = False, times: int = 1) -> None:
        async def go() -> None:
            assert self._client is not None
            for _ in range(times):
                await self._client.publish(topic, content, retain=retain)

        asyncio.run_coroutine_threadsafe(go(), self._loop).result(60)

    def of(self, end: str) -> list[bytes]:
        """What was published at topics that end so."""
        return [content for topic, content, _ in list(self.seen) if topic.endswith(end)]

    def until(self, end: str, wanted: Any = lambda content: True, seconds: float = 20, after: int = 0) -> bytes:
        """The first message at such a topic that is wanted, beyond the first `after` ones."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for content in self.of(end)[after:]:
                if wanted(content):
                    return content
            time.sleep(0.02)
        raise AssertionError(f"nothing wanted came at {end}; seen {[(t, c[:80]) for t, c, _ in self.seen][-20:]}")

    def close(self) -> None:
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._loop.close()
