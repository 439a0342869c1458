"""What an outlet gives up, on real processes: it reaches its server's port, or its folder, and nothing else."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.support import BOTH, program
from tests.support import Running


@pytest.mark.usefixtures("whole")
def test_an_outlet_reaches_the_port_of_its_server_and_no_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(each.getsockname()[1]) for each in (server, other)]
        done = program(
            """
            import errno, json, socket, subprocess, sys
            from pathlib import Path
            from edgesan import isolation
            right, wrong = map(int, sys.argv[1:3])
            claims = isolation.outlet(network=True, ports=[right])
            said = {}
            def attempt(name, what, *arguments):
                try:
                    what(*arguments)
                except OSError as error:
                    said[name] = errno.errorcode[error.errno]
                else:
                    said[name] = "done"
            attempt("right", socket.create_connection, ("127.0.0.1", right))
            attempt("wrong", socket.create_connection, ("127.0.0.1", wrong))
            with socket.socket() as fast:
                attempt("fast", fast.sendto, b"x", socket.MSG_FASTOPEN, ("127.0.0.1", wrong))
            attempt("multipath", socket.socket, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            attempt("listen", socket.create_server, ("127.0.0.1", 0))
            attempt("unix", socket.socket, socket.AF_UNIX)
            attempt("write", Path(sys.argv[3], "file").write_text, "x")
            attempt("run", subprocess.run, ["true"])
            attempt("name", socket.getaddrinfo, "localhost", 80)
            print(json.dumps([said, [claim.name for claim in claims if not claim.holds]]))
            """,
            *ports,
            str(tmp_path),
        )
    said, failing = json.loads(done.stdout)
    assert failing == []
    assert said["right"] == said["name"] == "done"
    assert said["wrong"] == said["listen"] == "EACCES"
    assert said["unix"] == said["run"] == said["fast"] == said["multipath"] == "EPERM"
    assert said["write"] == "EACCES"


@pytest.mark.usefixtures("whole")
def test_one_that_records_writes_in_its_folder_and_reaches_nobody(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = program(
        """
        import errno, json, os, socket, sys
        from pathlib import Path
        from edgesan import isolation
        folder = Path(sys.argv[1])
        claims = isolation.outlet(writes=[folder / "mine"], network=False)
        said = {}
        def attempt(name, what, *arguments):
            try:
                what(*arguments)
            except OSError as error:
                said[name] = errno.errorcode[error.errno]
            else:
                said[name] = "done"
        attempt("write", (folder / "mine" / "clip").write_text, "x")
        attempt("remove", (folder / "mine" / "clip").unlink)
        attempt("outside", (folder / "clip").write_text, "x")
        attempt("socket", socket.socket)
        print(json.dumps([said, [claim.name for claim in claims if not claim.holds]]))
        """,
        str(tmp_path),
    )
    said, failing = json.loads(done.stdout)
    assert failing == []
    assert said == {"write": "done", "remove": "done", "outside": "EACCES", "socket": "EPERM"}


@pytest.mark.usefixtures("whole")
def test_one_that_shows_pictures_in_a_device_opens_that_one_and_nothing_else() -> None:
    done = program(
        """
        import errno, json, os
        from pathlib import Path
        from edgesan import isolation
        claims = isolation.outlet(devices=[Path("/dev/full")], network=False)
        said = {}
        for name, flags in (("full", os.O_RDWR), ("urandom", os.O_WRONLY), ("tty", os.O_RDWR), ("zero", os.O_RDONLY)):
            try:
                os.close(os.open(f"/dev/{name}", flags))
            except OSError as error:
                said[name] = errno.errorcode[error.errno]
            else:
                said[name] = "done"
        print(json.dumps([said, [claim.name for claim in claims if not claim.holds]]))
        """
    )
    said, failing = json.loads(done.stdout)
    assert failing == []
    assert said.pop("full") == "done"
    assert set(said.values()) == {"EACCES"}


@pytest.mark.slow
@pytest.mark.usefixtures("whole")
def test_the_claims_of_outlets_are_in_the_status(tmp_path: Path) -> None:
    out = ["--out", f"dir:{tmp_path}/clips", "--out", "rtsp://127.0.0.1:9/x"]
    running = Running("--camera", "demo", "--require-isolation", *out)
    running.until("ready", True)
    status: Any = {}
    claims: set[tuple[str, str]] = set()
    while not {"outlet", "recorder"} <= {process for process, _ in claims}:
        status = running.status()
        claims = {(each["process"], each["name"]) for each in status["isolation"]["claims"]}
    code, _, _ = running.end()
    assert code == 0
    assert status["isolation"]["whole"]
    for process, names in (
        ("outlet", ("no camera", "no local socket", "no other protocol", *BOTH)),
        ("recorder", ("no camera", "no socket", *BOTH)),
    ):
        assert {name for each, name in claims if each == process} == set(names)
