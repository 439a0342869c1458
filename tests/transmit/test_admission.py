"""Who may use the server: ports, Host fields, the token, and how guesses are slowed down."""

import base64
import ipaddress
import socket
import threading
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack

import av
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgesan.config import Config, is_loopback
from edgesan.errors import ConfigError, SinkError
from edgesan.transmit import admission
from edgesan.transmit.admission import Tokens, host_name, listen
from tests.support import free_port
from tests.transmit.server import LiveServer, Serve, decode

TOKEN = "correct-horse-battery"


NO_HOSTS = (
    "",
    "[::1]evil.example",
    "[::1]:80evil",
    "localhost:80:80",
    "user@127.0.0.1",
    "127.0.0.1@evil.example",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:080000",
    "127.0.0.1:-1",
    "127.0.0.1:\u0661",
    "127.0.0.1%00",
    "%6cocalhost",
    "[::1%25lo]",
    "[::1%lo]",
    "[127.0.0.1]",
    "[::1",
    "::1",
    "[]",
    "[:::1]",
    "127.0.0.1/",
    "127.0.0.1,evil.example",
    "127.0.0.1 ",
    "127.0.0.1\n",
    "http://127.0.0.1",
    "[v1.a]",
    "a" * 254,
)


PIECES = ("127.0.0.1", "localhost", "[::1]", "::1", ":80", ":", "evil.example", "@", "%", ".", "[", "]", "\u212a", " ")


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_no_host_and_port_names_nobody(text: str) -> None:
    assert host_name(text) is None


@given(
    st.ip_addresses().map(str) | st.from_regex(r"[a-z0-9][a-z0-9.-]{0,60}", fullmatch=True),
    st.none() | st.integers(1, 65535),
)
def test_each_host_is_found_with_and_without_its_port(host: str, port: int | None) -> None:
    written = f"[{host}]" if ":" in host else host
    assert host_name(written.upper() if port is None else f"{written}:{port}") == host


@given(
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
    | st.text("127.0:[]@%/ \t\nlocahst\u0661\u212a", max_size=24)
)
@example("[::1]evil.example")
def test_a_host_is_all_that_the_field_holds_but_its_port(text: str) -> None:
    host = host_name(text)
    if host is None:
        return
    written = f"[{host}]" if ":" in host else host
    name, port = text[: len(written)], text[len(written) :]
    assert name.lower() == written
    assert name.isascii()
    assert port == "" or (port[0] == ":" and port.isascii() and port[1:].isdecimal() and 0 < int(port[1:]) < 65536)
    if is_loopback(host):
        assert host in ("localhost", "::1") or ipaddress.IPv4Address(host).is_loopback


def raw(live: LiveServer, *lines: bytes) -> bytes:
    """The first line of the answer to a request of these lines."""
    with live.connect() as connection:
        connection.sendall(b"\r\n".join((*lines, b"Connection: close", b"", b"")))
        return connection.recv(65536).partition(b"\r\n")[0]


def test_a_page_under_another_name_is_refused(serve: Serve) -> None:
    live = serve()
    for host in (f"localhost:{live.port}", "LocalHost", "[::1]:8080", "127.0.0.1"):
        assert live.get("/", Host=host)[0] == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.7",
        "0.0.0.0",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
    ):
        assert live.get("/api/status", Host=host)[0] == 403
    for host in NO_HOSTS:
        if host == host.strip() and host.isascii():  # the space around a field is not part of it
            assert b" 400 " in raw(live, b"GET /api/status HTTP/1.1", b"Host: " + host.encode()), host
    assert b" 400 " in raw(live, b"GET /snapshot.jpg HTTP/1.0")
    assert b" 400 " in raw(live, b"GET / HTTP/1.1", b"Host: 127.0.0.1", b"Host: 127.0.0.1")


def test_with_a_token_too_the_host_must_be_one(serve: Serve) -> None:
    live = serve(token=TOKEN)
    assert live.get(f"/?token={TOKEN}", Host="porch.example:8443")[0] == 200
    for host in ("[::1]evil.example", "porch.example:80:80", ""):
        assert live.get(f"/?token={TOKEN}", Host=host)[0] == 400


def test_with_a_token_nothing_is_shown_without_it(serve: Serve) -> None:
    live = serve(token=TOKEN)
    for path in ("/", "/stream.mjpg", "/snapshot.jpg", "/api/status", "/metrics", "/healthz"):
        assert live.get(path)[0] == 401
    for wrong in ("wrong", f"{TOKEN}%20", TOKEN.upper(), "%FF%FE", ""):
        assert live.get(f"/?token={wrong}")[0] == 401
    for header in (TOKEN, "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Digest {TOKEN}", "Bearer \xff\xfe"):
        assert live.get("/api/status", Authorization=header)[0] == 401
    assert live.get(f"/?token={TOKEN}")[0] == 200
    assert live.get("/api/status", Authorization=f"Bearer {TOKEN}")[0] == 200
    for asset in ("/page.js", "/webrtc.js", "/zones.js", "/page.css", "/icon.svg"):
        assert live.get(asset)[0] == 200


def basic(pair: str | bytes) -> str:
    return "Basic " + base64.b64encode(pair.encode() if isinstance(pair, str) else pair).decode()


def test_a_player_presents_the_token_as_the_password_of_any_user(serve: Serve) -> None:
    live = serve(token=TOKEN)
    live.picture()
    for user in ("cam", "", "root"):
        assert live.get("/snapshot.jpg", Authorization=basic(f"{user}:{TOKEN}"))[0] == 200
    wrong = [basic(f"cam:{TOKEN}x"), basic(TOKEN), basic(f"{TOKEN}:"), basic(b"cam:\xff"), "Basic !", "Basic"]
    for header in wrong:
        status, text, _ = live.get("/snapshot.jpg", Authorization=header)
        assert (status, b"http://cam:TOKEN@HOST/" in text) == (401, True), header
    live.get("/api/alpha", "PUT", '{"alpha": 0.25}', Content_Type="application/json", Authorization=basic(f":{TOKEN}"))
    assert live.asked == [0.25]


def test_an_ordinary_http_client_takes_the_password_of_the_address(serve: Serve) -> None:
    live = serve(token=TOKEN)
    live.picture()
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, f"http://127.0.0.1:{live.port}/", "cam", TOKEN)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))  # after a 401, as players do
    with opener.open(f"http://127.0.0.1:{live.port}/snapshot.jpg", timeout=5) as answer:
        assert decode(answer.read()).shape == (48, 64, 3)


def test_a_player_shows_the_stream_with_the_password_of_its_address_and_not_without(serve: Serve) -> None:
    live = serve(token=TOKEN).flow()
    with av.open(f"http://cam:{TOKEN}@127.0.0.1:{live.port}/stream.mjpg", timeout=10) as stream:  # FFmpeg
        assert next(stream.decode(video=0)).width == 64
    with pytest.raises(av.HTTPUnauthorizedError):
        av.open(f"http://cam:{TOKEN}x@127.0.0.1:{live.port}/stream.mjpg", timeout=10)


FORM = {"Content_Type": "application/x-www-form-urlencoded", "Accept": "text/html"}


def test_a_person_logs_in_by_a_form_and_the_cookie_shows_the_page_and_turns_the_dial(serve: Serve) -> None:
    live = serve(token=TOKEN).flow()
    status, page, headers = live.get(
        "/", Accept="text/html,*/*;q=0.8", Sec_Fetch_Mode="navigate", Sec_Fetch_Site="none"
    )
    assert (status, b"<form" in page, b"MESSAGE" in page) == (401, True, False)
    assert headers["WWW-Authenticate"] == "Bearer", "a browser's own window would hide the form"
    status, page, headers = live.get("/login", "POST", "token=wrong", **FORM)
    assert (status, b"This is not the token." in page, "Set-Cookie" in headers) == (401, True, False)
    status, _, headers = live.get("/login", "POST", f"token=+{TOKEN}+", **FORM)
    assert (status, headers["Location"]) == (303, "./")
    cookie, *rules = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax"} <= set(rules)
    assert TOKEN not in cookie
    for path in ("/", "/snapshot.jpg", "/api/status"):
        assert live.get(path, Cookie=cookie)[0] == 200
        assert live.get(path, Cookie=cookie[:-1])[0] == 401
    turn = {"method": "PUT", "body": '{"alpha": 0.25}', "Content_Type": "application/json", "Cookie": cookie}
    assert live.get("/api/alpha", Sec_Fetch_Site="same-site", **turn)[0] == 403, "a page at another port of this host"
    assert live.get("/api/alpha", Sec_Fetch_Site="same-origin", **turn)[0] == 202
    assert live.asked == [0.25]


def test_a_cookie_ends_with_its_token_and_guesses_of_the_form_are_slowed_down(serve: Serve) -> None:
    old = serve(token="another-long-token").get("/login", "POST", "token=another-long-token", **FORM)[2]["Set-Cookie"]
    live = serve(token=TOKEN)
    assert live.get("/api/status", Cookie=old.partition(";")[0].replace("=", f"-{live.port}=", 1))[0] == 401
    answers = [live.get("/login", "POST", f"token={number}", **FORM) for number in range(12)]
    assert [status for status, _, _ in answers] == [401] * (admission.FREE_GUESSES + 1) + [429] * 3
    assert b"too many wrong tokens" in answers[-1][1]
    assert b"<form" in answers[-1][1]


def test_without_a_token_the_form_leads_to_the_page(serve: Serve) -> None:
    live = serve()
    status, _, headers = live.get("/login", "POST", "", **FORM)
    assert (status, headers["Location"], "Set-Cookie" in headers) == (303, "./", False)
    assert live.get("/login", "POST", "token=x", Origin="http://evil.example", **FORM)[0] == 403


HOME = "https://home.example:8123"
IMAGE = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
FRAME = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}


def test_pages_of_listed_origins_may_show_the_picture_and_no_others(serve: Serve) -> None:
    live = serve(embed_from=(HOME,))
    live.picture()
    for page in (f"{HOME}/", f"{HOME}/lovelace/0"):
        status, _, headers = live.get("/snapshot.jpg", Referer=page, **IMAGE)
        assert (status, headers["Cross-Origin-Resource-Policy"]) == (200, "cross-origin")
    for page in ("https://evil.example/", f"{HOME}.evil.example/", "https://home.example/", "", HOME.upper()):
        assert live.get("/snapshot.jpg", Referer=page, **IMAGE)[0] == 403, page
    status, _, headers = live.get("/", **FRAME)
    assert (status, "X-Frame-Options" in headers) == (200, False)
    assert f"frame-ancestors 'self' {HOME};" in headers["Content-Security-Policy"]
    script = IMAGE | {"Sec_Fetch_Dest": "empty", "Referer": f"{HOME}/"}
    assert live.get("/api/status", **script)[0] == 403, "to show the picture is not to read the status"
    turn = {"method": "PUT", "body": '{"alpha": 0.25}', "Content_Type": "application/json"}
    assert live.get("/api/alpha", **script, **turn)[0] == 403
    assert live.asked == []


def test_without_a_list_no_page_may_show_the_picture(serve: Serve) -> None:
    live = serve()
    live.picture()
    assert live.get("/snapshot.jpg", Referer=f"{HOME}/", **IMAGE)[0] == 403
    assert live.get("/", **FRAME)[0] == 403
    headers = live.get("/")[2]
    assert (headers["X-Frame-Options"], headers["Cross-Origin-Resource-Policy"]) == ("DENY", "same-origin")
    assert "frame-ancestors 'none';" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("out", ["http://0.0.0.0:8080", "http://[::]:8080", "http://porch.example", "http://192.0.2.7"])
def test_a_short_token_is_refused_beyond_loopback(out: str) -> None:
    for short in ("~", "~" * 15):
        with pytest.raises(ConfigError, match="at least 16; make one with: openssl rand -hex 16") as caught:
            Config(out=(out,), token=short)
        assert "~" not in str(caught.value)
    Config(out=(out,), token="~" * 16)
    Config(out=("http://127.0.0.1:8080",), token="~")


@pytest.mark.slow
def test_guesses_from_one_address_become_few_and_nobody_else_waits(serve: Serve) -> None:
    live = serve(token=TOKEN)
    end = time.monotonic() + 3
    answers: list[tuple[int, bytes, dict[str, str]]] = []

    def guess(number: int) -> None:
        tries = 0
        while time.monotonic() < end:
            tries += 1
            answers.append(live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {number}-{tries}"))

    guessers = [threading.Thread(target=guess, args=(number,)) for number in range(4)]
    for each in guessers:
        each.start()
    mine = []
    while time.monotonic() < end:
        started = time.monotonic()
        assert live.get("/healthz", Authorization=f"Bearer {TOKEN}")[0] == 200
        mine.append(time.monotonic() - started)
        time.sleep(0.02)
    for each in guessers:
        each.join()
    counts = Counter(status for status, _, _ in answers)
    print(
        f"{len(answers) / 3:.0f} tries a second, {counts[401]} of them checked in 3 s; others waited {max(mine):.3f} s"
    )
    assert set(counts) == {401, 429}
    assert 8 <= counts[401] <= 12, "nine at once, then one after 0.5, 1 and 2 s more"
    assert counts[429] > 50
    assert all(1 <= int(headers["Retry-After"]) <= 8 for status, _, headers in answers if status == 429)
    assert max(mine) < 1
    status, text, headers = live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {TOKEN}")
    assert (status, b"too many wrong tokens" in text) == (429, True)
    time.sleep(int(headers["Retry-After"]))
    assert live.get("/healthz", source="127.0.0.2", Authorization=f"Bearer {TOKEN}")[0] == 200


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def guesses(tokens: Tokens, clock: Clock, seconds: float, name: str) -> int:
    """How many guesses of one address are looked at in that time, at a thousand a second."""
    looked_at = 0
    for number in range(int(seconds * 1000)):
        if tokens.pause_s("192.0.2.1", f"{name}{number}") == 0:
            assert not tokens.is_right("192.0.2.1", f"{name}{number}")
            looked_at += 1
        clock.now_s += 0.001
    return looked_at


def test_the_pause_grows_to_some_seconds_and_is_forgotten() -> None:
    clock = Clock()
    tokens = Tokens(TOKEN, clock)
    assert guesses(tokens, clock, 0.1, "a") == admission.FREE_GUESSES + 1
    assert 14 <= guesses(tokens, clock, 100, "b") <= 16
    assert 0 < tokens.pause_s("192.0.2.1", TOKEN) <= admission.MOST_PAUSE_S
    assert tokens.pause_s("192.0.2.2", TOKEN) == 0
    clock.now_s += admission.MOST_PAUSE_S
    assert tokens.pause_s("192.0.2.1", TOKEN) == 0
    assert tokens.is_right("192.0.2.1", TOKEN)
    clock.now_s += admission.FORGET_S
    assert guesses(tokens, clock, 0.1, "c") == admission.FREE_GUESSES + 1


def test_a_page_left_open_with_an_old_token_slows_nobody() -> None:
    clock = Clock()
    tokens = Tokens(TOKEN, clock)
    for _ in range(1000):
        for old in ("of last year", ""):
            assert tokens.pause_s("192.0.2.1", old) == 0
            assert not tokens.is_right("192.0.2.1", old)
        clock.now_s += 0.5
    assert tokens.pause_s("192.0.2.1", TOKEN) == 0


def test_guesses_from_many_ipv6_addresses_of_one_owner_are_of_one() -> None:
    tokens = Tokens(TOKEN, Clock())
    for number in range(admission.FREE_GUESSES + 1):
        assert not tokens.is_right(f"2001:db8::{number:x}", f"{number}")
    assert tokens.pause_s("2001:db8::ffff:1", TOKEN) > 0
    assert tokens.pause_s("2001:db8:0:1::1", TOKEN) == 0
    assert tokens.pause_s("fe80::1%eth0", TOKEN) == 0


def test_what_is_remembered_of_those_who_guess_is_bounded() -> None:
    tokens = Tokens(TOKEN, Clock())
    for number in range(2 * admission.MOST_GUESSERS):
        for guess in range(12):
            tokens.is_right(f"10.0.{number // 256}.{number % 256}", f"{guess}" * 1000)
    assert len(tokens._guessers) == admission.MOST_GUESSERS
    assert all(len(each.wrong) == admission.FREE_GUESSES for each in tokens._guessers.values())
    assert tokens.pause_s("10.0.0.0", TOKEN) == 0
    assert tokens.pause_s("10.0.7.255", TOKEN) > 0


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SinkError, match=r"cannot listen on .* choose another one, such as --out"):
            listen(f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid", "[2001:db8::1]", "a" * 70, "x..y"])
def test_an_address_that_is_not_of_this_machine_is_a_clear_error(host: str) -> None:
    with pytest.raises(SinkError, match=r"cannot listen on .*(name an address of this machine|is not a host name)"):
        listen(f"http://{host}:{free_port()}")


def test_many_ipv6_addresses_of_one_owner_are_one() -> None:
    limiter = admission.ConnectionLimiter()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(admission.MOST_OF_ONE + 2)]
        admitted = [limiter.admit(each, f"2001:db8::{n + 1:x}") for n, each in enumerate(sockets[:-1])]
        assert admitted == [True] * admission.MOST_OF_ONE + [False]
        assert limiter.admit(sockets[-1], "fe80::1%eth0")
