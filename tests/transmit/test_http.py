"""The HTTP server: real sockets and real HTTP clients see the stream, the page and the dial."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from edgesan.frames import SanitizedFrame, Stamps
from edgesan.message import FRESH_NS
from edgesan.request import Privacy, Zones
from edgesan.transmit.admission import Server, listen
from edgesan.transmit.http import HttpSink
from tests.support import ROOT, free_port
from tests.transmit.server import STATUS, LiveServer, Make, Serve, Viewer, Wishes, decode, read_parts


def test_a_viewer_sees_the_stream_move(serve: Serve) -> None:
    parts = read_parts(serve().flow().port, 5)
    pictures = [decode(part) for part in parts]
    assert all(picture.shape == (48, 64, 3) for picture in pictures)
    assert len({int(picture.mean()) for picture in pictures}) == 5


def test_each_picture_of_the_stream_says_when_it_was_taken(serve: Serve) -> None:
    live = serve()
    live.picture(age_ns=500_000_000)
    before_s = time.clock_gettime(time.CLOCK_REALTIME)
    with live.connect() as viewer:
        viewer.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        heard = b""
        while b"X-Timestamp: " not in heard or b"\r\n\r\n" not in heard.partition(b"X-Timestamp: ")[2]:
            heard += viewer.recv(4096)
    taken_s = float(heard.partition(b"X-Timestamp: ")[2].partition(b"\r\n")[0])
    assert before_s - 60 < taken_s < before_s, "seconds since 1970, and half a second ago"


def test_two_viewers_cost_one_encoding_per_frame_and_none_costs_none(serve: Serve) -> None:
    live = serve().flow()
    live.until("/readyz", lambda status, _: status == 200)
    assert live.totals().get("encoded", 0) == 0
    viewers = [threading.Thread(target=read_parts, args=(live.port, 20)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    totals = live.totals()
    assert totals["sent"] >= 38, "the last of each may not be counted yet"
    assert totals["encoded"] <= 0.75 * totals["sent"]


def test_a_picture_that_does_not_change_is_encoded_once(serve: Serve, sanitized_frame: Make) -> None:
    live = serve()
    still = sanitized_frame(1, captured_ns=time.monotonic_ns())
    for number in range(1, 4):
        live.send(SanitizedFrame._create(still.pixels, Stamps(number, time.monotonic_ns())))
        assert live.get("/snapshot.jpg")[0] == 200
    assert live.totals()["encoded"] == 1
    live.send(sanitized_frame(4, captured_ns=time.monotonic_ns(), level=80))
    assert decode(live.get("/snapshot.jpg")[1]).mean() == 80
    assert live.totals()["encoded"] == 2


def watch_deaf(port: int) -> socket.socket:
    """A viewer that asks for the stream and never reads it."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return deaf


def test_a_viewer_that_never_reads_holds_nobody_up_and_has_one_picture_under_way(
    serve: Serve,
) -> None:
    live = serve(size=(640, 480), noise=True).flow()
    live.until("/readyz", lambda status, _: status == 200)
    with watch_deaf(live.port):
        live.until("/api/status", lambda *_: live.viewers() == 1)
        number = live.number
        while live.number < number + 30:
            time.sleep(0.02)
        assert live.totals().get("sent", 0) <= 1
        assert len(read_parts(live.port, 10)) == 10


def test_the_page_server_ends_at_once_under_its_viewers(serve: Serve) -> None:
    live = serve(size=(640, 480), noise=True).flow()
    ended = threading.Event()

    def watch() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.request("GET", "/stream.mjpg")
        answer = connection.getresponse()
        while answer.read(65536):
            pass
        ended.set()  # a whole answer: a stream that is cut off would have raised IncompleteRead
        connection.close()

    viewer = threading.Thread(target=watch)
    viewer.start()
    with watch_deaf(live.port):
        live.until("/api/status", lambda *_: live.viewers() == 2)
        live.pause()
        started = time.monotonic()
        live.wait(live.sink.close())
        assert time.monotonic() - started < 2
    viewer.join()
    assert ended.is_set()


def test_snapshot_health_and_readiness(serve: Serve) -> None:
    live = serve()
    assert live.get("/healthz")[0] == 200
    assert live.get("/readyz")[:2] == live.get("/snapshot.jpg")[:2] == (503, b"no frame yet\n")
    live.picture()
    assert live.get("/readyz")[0] == 200
    status, picture, headers = live.get("/snapshot.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
    assert decode(picture).shape == (48, 64, 3)


def test_a_picture_older_than_a_second_is_served_nowhere_as_live(serve: Serve) -> None:
    assert FRESH_NS == 1_000_000_000
    live = serve()
    live.picture()
    time.sleep(1.05)
    for path in ("/readyz", "/snapshot.jpg"):
        status, text, _ = live.get(path)
        assert (status, text.startswith(b"the newest frame is 1.")) == (503, True)
    assert live.sink.report()["ready"] is False
    live.picture(age_ns=30 * FRESH_NS)
    assert live.get("/snapshot.jpg")[:2] == (503, b"the newest frame is 30.0 s old\n")
    live.picture(slate=True)
    for path in ("/readyz", "/snapshot.jpg"):
        assert live.get(path)[:2] == (503, b"the camera gives no picture\n")
    live.picture()
    for path in ("/readyz", "/snapshot.jpg"):
        assert live.get(path)[0] == 200


def test_a_viewer_that_comes_while_the_picture_is_old_waits_for_the_next(serve: Serve) -> None:
    live = serve()
    live.picture(age_ns=30 * FRESH_NS, level=10)
    with closing(Viewer(live.port, timeout=0.5)) as viewer, pytest.raises(TimeoutError):
        viewer.read()
    assert "encoded" not in live.totals()
    with closing(Viewer(live.port)) as viewer:
        live.until("/api/status", lambda *_: live.viewers() == 1)
        live.picture(level=200)
        assert decode(viewer.read()).mean() == pytest.approx(200, abs=2)
        live.picture(age_ns=2 * FRESH_NS, level=10)  # one that comes late is not shown either
        live.picture(level=30, slate=True)
        assert decode(viewer.read()).mean() == pytest.approx(30, abs=2)


def test_slates_pass_through_the_stream_and_count_as_no_frames(serve: Serve) -> None:
    live = serve()
    with closing(Viewer(live.port)) as viewer:
        for level in (20, 40):
            live.picture(level=level, slate=True)
            assert decode(viewer.read()).mean() == pytest.approx(level, abs=2)
    assert live.sink.report()["transmit"]["fps"] == 0
    assert "glass_to_wire" not in live.sink.report()["transmit"]["ms"]


def test_the_page_needs_nothing_from_elsewhere(serve: Serve) -> None:
    live = serve()
    status, page, headers = live.get("/")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    for asset in ("/page.js", "/webrtc.js", "/zones.js", "/page.css", "/icon.svg"):
        assert live.get(asset)[0] == 200
    for path in ("/../pyproject.toml", "/page.js/../../config.py", "/nothing", "/models/default.onnx"):
        assert live.get(path)[0] == 404


def test_the_stream_has_no_head(serve: Serve) -> None:
    assert serve().flow().get("/stream.mjpg", "HEAD")[:2] == (405, b"")


def test_while_nothing_is_told_the_status_and_the_metrics_still_answer(serve: Serve) -> None:
    live = serve()
    live.status = {}
    assert json.loads(live.get("/api/status")[1])["ready"] is False
    assert "edgesan_wall_bytes_total 0.0" in live.get("/metrics")[1].decode()
    assert json.loads(live.get("/api/alpha")[1]) == {"alpha": None}


def turn(live: LiveServer) -> tuple[int, bytes]:
    return live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json")[:2]


def test_the_dial_reaches_the_sanitizer(serve: Serve) -> None:
    live = serve()
    live.picture()
    status, body = turn(live)
    assert (status, json.loads(body)) == (202, {"asked": 0.25})
    assert live.asked == [0.25]


def test_the_dial_does_not_turn_while_no_picture_comes(serve: Serve) -> None:
    live = serve()
    assert turn(live) == (503, b"no frame yet: the dial turns while pictures come; ask again\n")
    live.picture(age_ns=30 * FRESH_NS)
    assert turn(live)[0] == 503
    live.picture(slate=True)
    del live.status["model"]  # as while no sanitize process runs
    assert turn(live)[0] == 503
    assert live.asked == []


def test_a_wish_that_nobody_hears_is_refused(serve: Serve) -> None:
    live = serve().flow()
    live.hears = False
    assert turn(live) == (503, b"the sanitizer does not answer; ask again\n")
    live.hears = True
    assert turn(live)[0] == 202


def test_a_wrong_wish_is_refused_and_goes_nowhere(serve: Serve) -> None:
    live = serve().flow()
    json_type = "application/json"
    for body, kind, status, words in (
        ('{"alpha": 0.9}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": NaN}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 1e999}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 1' + "0" * 200 + "}", json_type, 400, b"within 0..0.8"),
        ('{"alpha": "1"}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": true}', json_type, 400, b"within 0..0.8"),
        ('{"alpha": 0.1, "x": 1}', json_type, 400, b"within 0..0.8"),
        ("[]", json_type, 400, b"within 0..0.8"),
        ("{", json_type, 400, b"not JSON"),
        ("", json_type, 400, b"not JSON"),
        ("[" * 200, json_type, 400, b"not JSON"),
        ("\xff", json_type, 400, b"not JSON"),
        ('{"alpha": 0.1}', "text/plain", 415, json_type.encode()),
        ("alpha=0.1", "application/x-www-form-urlencoded", 415, json_type.encode()),
        ("x" * 5000, json_type, 413, b""),
    ):
        for method in ("POST", "PUT"):
            answered, text, _ = live.get("/api/alpha", method, body, Content_Type=kind)
            assert (answered, words in text) == (status, True), (body, text)
    assert live.get("/api/alpha", "DELETE")[0] == 405
    assert live.asked == []


def put(live: LiveServer, path: str, body: str) -> tuple[int, bytes]:
    return live.get(path, "PUT", body, Content_Type="application/json")[:2]


def test_the_owner_switches_the_camera_off_also_while_no_picture_comes(serve: Serve) -> None:
    live = serve()
    assert put(live, "/api/privacy", '{"on": true}') == (202, b'{"asked": true, "recorded": true}')
    live.records = False
    assert put(live, "/api/privacy", '{"on": false}') == (202, b'{"asked": false, "recorded": false}')
    assert live.asked == [Privacy(True), Privacy(False)]
    live.picture(slate=True)
    live.status = STATUS | {"privacy": True, "faces": None, "name": "front door", "version": "9"}
    assert live.get("/readyz")[:2] == (503, b"privacy is on: the camera is off\n")
    assert json.loads(live.get("/api/privacy")[1]) == {"on": True}
    text = live.get("/metrics")[1].decode()
    assert "edgesan_privacy 1.0" in text
    assert "edgesan_faces 0.0" in text
    assert 'edgesan_info{name="front door",version="9"} 1.0' in text
    live.hears = False
    assert put(live, "/api/privacy", '{"on": false}') == (503, b"the sanitizer does not answer; ask again\n")


def test_the_owner_draws_zones_and_cannot_open_those_of_the_configuration(serve: Serve) -> None:
    live = serve()
    fixed = [[[0.0, 0.0], [0.1, 0.0], [0.1, 0.1], [0.0, 0.1]]]
    assert json.loads(live.get("/api/zones")[1]) == {"fixed": fixed, "zones": []}
    triangle = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]]
    status, body = put(live, "/api/zones", json.dumps({"zones": [triangle]}))
    assert (status, json.loads(body)) == (200, {"fixed": fixed, "zones": [[[0, 0], [0.50001, 0], [0.50001, 1]]]})
    assert live.asked == [Zones(live.drawn)]
    assert put(live, "/api/zones", body.decode().replace('"fixed"', '"x"'))[0] == 400, "one key, as for the dial"
    again = json.dumps({"zones": json.loads(body)["zones"]})
    assert put(live, "/api/zones", again) == (200, body), "what is read back and sent again does not move"
    live.unrecorded = "the disk is full"
    assert put(live, "/api/zones", again)[0] == 500
    live.hears = False
    assert put(live, "/api/zones", '{"zones": []}')[0] == 503
    assert len(live.drawn) == 1, "nothing is opened that the sanitizer has not heard of"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("privacy", '{"on": 1}', 400),
        ("privacy", '{"on": "true"}', 400),
        ("privacy", '{"on": null}', 400),
        ("privacy", '{"on": true, "x": 1}', 400),
        ("privacy", "true", 400),
        ("privacy", "x" * 5000, 413),
        ("zones", '{"zones": [[[0, 0], [1, 1]]]}', 400),
        ("zones", '{"zones": [[[0, 0], [1, 1], [2, 0]]]}', 400),
        ("zones", '{"zones": [[[0, 0], [NaN, 1], [1, 0]]]}', 400),
        ("zones", '{"zones": [[[0, 0], [1, 1], [1' + "0" * 400 + ", 0]]]}", 400),
        ("zones", '{"zones": [[[0, 0], [true, 1], [1, 0]]]}', 400),
        ("zones", '{"zones": [[[0, 0], [0.5, 0], [1, 0]]]}', 400),
        ("zones", '{"zones": [[[0, 0], [1, 1], [1, 0, 0]]]}', 400),
        ("zones", '{"zones": {}}', 400),
        ("zones", json.dumps({"zones": [[[0, 0], [1, 1], [1, 0]]] * 17}), 400),
        ("zones", json.dumps({"zones": [[[0, 0], [1, 1], [1, 0]] * 11]}), 400),
        ("zones", "[" * 20000, 400),
        ("zones", "x" * 40000, 413),
    ],
)
def test_a_hostile_body_changes_nothing(serve: Serve, path: str, body: str, status: int) -> None:
    live = serve()
    answered, text = put(live, f"/api/{path}", body)
    assert answered == status, text
    assert live.get(f"/api/{path}", "PUT", body, Content_Type="text/plain")[0] == 415
    assert (live.asked, live.drawn) == ([], ())


def test_who_comes_before_the_server_starts_is_answered_then() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    sockets = listen(address)
    with socket.create_connection(sockets[0].getsockname(), timeout=5) as early:
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

        async def serve() -> bytes:
            sink = HttpSink(Server(address, sockets), "", Wishes())
            await sink.start()
            answer = await asyncio.to_thread(early.recv, 65536)
            await sink.close()
            return answer

        assert asyncio.run(serve()).startswith(b"HTTP/1.1 200 OK")
    assert sockets[0].fileno() == -1


def test_a_server_that_never_starts_gives_its_port_back() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    asyncio.run(HttpSink(Server(address, listen(address)), "", Wishes()).close())
    for each in listen(address):
        each.close()


ISOLATED = """
import asyncio, ctypes, errno, platform, socket, struct, sys, threading
from edgesan.transmit.admission import Server, listen
from edgesan.transmit.tls import tls_context

address = sys.argv[1]
sockets, loop = listen(address), asyncio.new_event_loop()
assert not {"numpy", "cv2", "aiohttp"} & set(sys.modules)
assert threading.active_count() == 1
# From now on socket, socketpair, connect, bind and listen fail with EPERM: seccomp(2), linux/bpf_common.h
numbers = {"x86_64": (41, 53, 42, 49, 50), "aarch64": (198, 199, 203, 200, 201)}[platform.machine()]
steps = [(0x20, 0, 0, 0), *((0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers)),
         (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50000 | errno.EPERM)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, struct.pack("@HP", len(steps), ctypes.addressof(code)), 0, 0) == 0
for call in (socket.socket, socket.socketpair, lambda: sockets[0].connect(("127.0.0.1", 1)),
             lambda: sockets[0].bind(("127.0.0.1", 0)), lambda: socket.socket.listen(sockets[0])):
    try:
        call()
        print("allowed")
    except OSError as error:
        print(errno.errorcode[error.errno])

from types import SimpleNamespace
from edgesan.transmit.http import HttpSink

async def serve():
    sink = HttpSink(Server(address, sockets), "", SimpleNamespace(report=dict))
    await sink.start()
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await sink.close()
    await loop.shutdown_default_executor()

loop.run_until_complete(serve())
loop.close()
"""


def test_once_it_has_its_sockets_the_server_needs_no_call_that_makes_or_binds_one() -> None:
    port = free_port()
    child = subprocess.Popen(
        [sys.executable, "-c", ISOLATED, f"http://127.0.0.1:{port}"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    said = [child.stdout.readline().strip() for _ in range(6)]
    for _ in range(3 if said[-1] == "serving" else 0):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"alive\n"
    _, errors = child.communicate("", timeout=10)
    assert (said, errors, child.returncode) == (["EPERM"] * 5 + ["serving"], "", 0)
