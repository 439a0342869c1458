"""A real Home Assistant, asked by its REST API."""

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.outlets.broker import Mosquitto
from tests.support import free_port
from tests.transmit.server import until


class Home:
    """A new household. Nothing is installed: the Python of `hass` has all that it needs."""

    def __init__(self, folder: Path) -> None:
        self._command = os.environ.get("EDGESAN_HASS", "")
        if not self._command:
            pytest.skip("EDGESAN_HASS does not name a hass; docs/recipes.md says how to install one")
        self._folder, self._headers = folder, dict[str, str]()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (folder / "configuration.yaml").write_text(f"http: {{server_host: 127.0.0.1, server_port: {port}}}\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it has."""
        command = [self._command, "--config", str(self._folder), "--skip-pip"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, 300)

    def move_in(self, broker: Mosquitto) -> None:
        """Become the owner, and add the broker, as a person does on the first day."""
        who = {"name": "owner", "username": "owner", "password": "secret", "language": "en"}
        code = self.ask("/api/onboarding/users", client_id=self.url, **who)["auth_code"]
        form = {"grant_type": "authorization_code", "code": code, "client_id": self.url}
        token = json.loads(self._open("/auth/token", urllib.parse.urlencode(form).encode()))["access_token"]
        self._headers = {"Authorization": f"Bearer {token}"}
        at = {"broker": "127.0.0.1", "port": broker.port, "username": "cam", "password": "p@ss/w"}
        assert self.add("mqtt", **at)["type"] == "create_entry"

    def stop(self) -> None:
        """End it as a person does, so that it keeps what it knows."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._folder / "log").read_text()
        try:
            self._open("/api/onboarding")
        except OSError:
            return False
        return not self._headers or self.ask("/api/config")["state"] == "RUNNING"

    def _open(self, path: str, content: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, content, self._headers), timeout=30) as got:
            answer: bytes = got.read()
            return answer

    def ask(self, path: str, **content: Any) -> Any:
        """Ask by GET, or with content by POST."""
        return json.loads(self._open(path, json.dumps(content).encode() if content else None))

    def add(self, integration: str, **answers: Any) -> dict[str, Any]:
        """Add an integration, with the answers of a person to its form."""
        flow = "/api/config/config_entries/flow"
        number = self.ask(flow, handler=integration)["flow_id"]
        done: dict[str, Any] = self.ask(f"{flow}/{number}", **answers)
        return done

    def call(self, service: str, entity: str, **data: Any) -> None:
        """Do what a person does at an entity."""
        self.ask(f"/api/services/{service}", entity_id=entity, **data)

    def state(self, entity: str) -> str:
        """What an entity shows; `unavailable` while there is none."""
        state: str = self.states().get(entity, {}).get("state", "unavailable")
        return state

    def states(self) -> dict[str, Any]:
        """All entities, by their names."""
        return {each["entity_id"]: each for each in self.ask("/api/states")}

    def picture(self, entity: str) -> bytes:
        """The newest picture of a camera; empty while there is none."""
        try:
            return self._open(f"/api/camera_proxy/{entity}")
        except urllib.error.HTTPError:
            return b""
