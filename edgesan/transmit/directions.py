"""Tell the person who starts a run where viewers find the picture, and how they present the token.

The token itself is never printed: what is printed is kept in journals, and seen by whoever looks at the screen.
"""

import io
import socket

from edgesan.config import ANY, http_address, is_loopback
from edgesan.isolation.limits import own_address


def visible_url(server: str) -> str:
    """Return the address at which viewers find a server: of one that listens everywhere, the machine's in its network.

    Needs a socket, so it comes before isolation.

    Args:
        server: http://HOST:PORT, or https.
    """
    host, port = http_address(server)
    if host in ANY:
        host = own_address() or f"{socket.gethostname()}.local"
    return f"{server.partition('://')[0]}://{f'[{host}]' if ':' in host else host}:{port}/"


def links(url: str) -> list[dict[str, str]]:
    """Return what a server offers, each with its kind and address, without the token.

    Args:
        url: from `visible_url`.
    """
    kinds = {"picture stream": "stream.mjpg", "snapshot": "snapshot.jpg", "status": "api/status", "metrics": "metrics"}
    return [{"kind": kind, "url": f"{url}{path}"} for kind, path in kinds.items()]


def directions(url: str, *, token: bool, code: bool) -> str:
    """Return lines that say where to look.

    Args:
        url: from `visible_url`.
        token: whether viewers must present one.
        code: add a QR code of the address, for a person at a terminal.
    """
    host, _ = http_address(url)
    if is_loopback(host):
        lines = [f"watch    {url}  (this machine only; for others: --out http://0.0.0.0:8080, and a token)"]
    else:
        lines = [f"watch    {url}"]
    if token:
        scheme, _, rest = url.partition("://")
        lines += [
            "token    a browser asks for it",
            f"         players take it as a password: {scheme}://cam:TOKEN@{rest}stream.mjpg",
            "         programs send it as a header: Authorization: Bearer TOKEN",
        ]
    if code and not is_loopback(host):
        lines += ["", *_qr(url).splitlines()]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _qr(text: str) -> str:
    import segno  # only for a terminal

    drawing = io.StringIO()
    segno.make_qr(text).terminal(drawing, border=2, compact=True)
    return drawing.getvalue()
