"""Offers for WebRTC pass through the HTTP server, under its rules: the token, the limits, the pages of other sites."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edgesan.transmit import http
from edgesan.transmit.http import MOST_OFFER_BYTES
from tests.transmit.server import LiveServer, Serve, until

TOKEN = "0123456789abcdef"
SDP = "application/sdp"
GIVEN = {"status": 201, "text": "v=0 answer", "peer": "0123456789abcdef"}


def answers(given: dict[str, Any]) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
    async def answer(question: dict[str, Any]) -> dict[str, Any]:
        return given

    return answer


def offer(live: LiveServer, body: str | bytes = "v=0", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    return live.get("/api/webrtc", "POST", body, **({"Content_Type": SDP} | headers))


def test_an_offer_gets_its_answer_and_a_place_to_end_it(serve: Serve) -> None:
    live = serve()
    live.webrtc = answers(GIVEN)
    status, body, headers = offer(live)
    assert (status, body, headers["Content-Type"]) == (201, b"v=0 answer", "application/sdp; charset=utf-8")
    assert headers["Location"] == "/api/webrtc/0123456789abcdef"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    live.webrtc = answers({"status": 200, "text": "", "peer": ""})
    assert live.get(headers["Location"], "DELETE")[0] == 200
    assert live.questions == [{"do": "offer", "sdp": "v=0"}, {"do": "leave", "peer": "0123456789abcdef"}]


def test_a_browser_is_told_which_relays_there_are(serve: Serve) -> None:
    live = serve()
    live.webrtc = answers({"status": 200, "text": '{"ice": []}', "peer": ""})
    status, body, headers = live.get("/api/webrtc")
    assert (status, body) == (200, b'{"ice": []}')
    assert headers["Content-Type"].startswith("application/json")


def test_without_a_webrtc_server_the_answer_names_mjpeg(serve: Serve) -> None:
    live = serve()
    for method, path in (("GET", "/api/webrtc"), ("POST", "/api/webrtc"), ("DELETE", "/api/webrtc/ff")):
        status, body, _ = live.get(path, method, "v=0", Content_Type=SDP)
        assert (status, b"/stream.mjpg" in body) == (404, True)


def test_without_the_token_nobody_offers(serve: Serve) -> None:
    live = serve(token=TOKEN)
    live.webrtc = answers(GIVEN)
    assert offer(live)[0] == 401
    assert live.get("/api/webrtc")[0] == 401
    assert live.get("/api/webrtc/ff", "DELETE")[0] == 401
    assert live.get(f"/api/webrtc?token={TOKEN}", "POST", "v=0", Content_Type=SDP)[0] == 401, "not in the address"
    assert live.questions == []
    assert offer(live, Authorization=f"Bearer {TOKEN}")[0] == 201


def test_a_page_of_another_site_cannot_offer(serve: Serve) -> None:
    live = serve()
    live.webrtc = answers(GIVEN)
    assert offer(live, Sec_Fetch_Site="cross-site")[0] == 403
    assert offer(live, Origin="http://evil.example")[0] == 403
    assert offer(live, Content_Type="text/plain")[0] == 415
    assert live.questions == []


def test_an_offer_has_a_size(serve: Serve) -> None:
    live = serve()
    live.webrtc = answers(GIVEN)
    assert offer(live, "v" * MOST_OFFER_BYTES)[0] == 201
    assert offer(live, "v" * (MOST_OFFER_BYTES + 1))[0] == 413
    assert len(live.questions) == 1


def test_a_refusal_is_passed_on_in_words(serve: Serve) -> None:
    live = serve()
    for status in (400, 404, 503):
        live.webrtc = answers({"status": status, "text": "no room\n", "peer": ""})
        assert offer(live)[:2] == (status, b"no room\n")


@pytest.mark.parametrize(
    "wrong", [{}, {"status": 302, "text": "", "peer": ""}, GIVEN | {"peer": "../x"}, GIVEN | {"text": 7}]
)
def test_an_answer_that_is_none_reaches_no_browser(serve: Serve, wrong: dict[str, Any]) -> None:
    live = serve()
    live.webrtc = answers(wrong)
    assert offer(live)[0] == 502


def test_offers_that_wait_are_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_OFFERS", 1)
    live = serve()
    go_on = asyncio.Event()

    async def wait(question: dict[str, Any]) -> dict[str, Any]:
        await go_on.wait()
        return GIVEN

    live.webrtc = wait
    first = threading.Thread(target=offer, args=(live,))
    first.start()
    until(lambda: live.questions)
    assert offer(live)[0] == 503
    live.loop.call_soon_threadsafe(go_on.set)
    first.join()
    assert offer(live)[0] == 201
