"""Announce the page and the stream in the local network, by mDNS (zeroconf): other programs find the camera by name.

What is told is the camera's name, its ports and paths, and nothing of the picture; no token. Everybody in the network
hears it, so that it is off until somebody asks for it.
"""

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import ifaddr
from zeroconf import Error, IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from edgesan.config import Config, http_address, is_loopback
from edgesan.errors import ConfigError
from edgesan.isolation.limits import own_address
from edgesan.outlets.link import Attempts, Link, Lost
from edgesan.targets import Target

LOOK_S: Final = 30.0  # from one look at this machine's address to the next
MOST_NAME: Final = 63  # bytes of a name in DNS


@dataclass(frozen=True)
class Service:
    """One entry: its type in DNS, its port and its path."""

    kind: str
    port: int
    path: str


@dataclass(frozen=True)
class Announcement:
    """What is announced, under which name, and where."""

    name: str
    services: tuple[Service, ...]
    addresses: tuple[str, ...]  # of this machine, IPv4


def prepare(config: Config, target: Target) -> Announcement:
    """Return what is to be announced. Addresses can be asked for only before rights are given up.

    Raises:
        ConfigError: nobody but this machine could reach what is announced.
    """
    places = [(server.partition(":")[0], *http_address(server), "/") for server in config.servers]
    served = [each for each in config.targets if each.kind.serves]
    places += [(each.scheme.partition("+")[2], each.host, each.port, each.path) for each in served]
    services = [
        Service(f"_{scheme}._tcp.local.", port, path) for scheme, host, port, path in places if not is_loopback(host)
    ]
    if not services:
        raise ConfigError("announce is set, but only this machine reaches the camera: write out as http://0.0.0.0:8080")
    addresses = [
        str(ip.ip)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4 and not is_loopback(str(ip.ip))
    ]
    return Announcement(shown_name(config.name), tuple(services), tuple(addresses))


def shown_name(name: str) -> str:
    """Return the camera's name as DNS takes it: at most 63 bytes, without dots; that of this machine if it has none."""
    plain = re.sub(r"[.\0-\x1f\x7f]", " ", name).strip() or f"edgesan on {socket.gethostname().partition('.')[0]}"
    return plain.encode()[:MOST_NAME].decode(errors="ignore").strip()


async def run(link: Link, target: Target, prepared: Announcement) -> None:
    """Announce until the transmit process ends, or this machine has another address: the next process tells that."""
    attempts = Attempts(link, target.name)

    async def attempt() -> None:
        if not prepared.addresses:
            raise Lost("this machine has no address in a network")
        try:
            zeroconf = AsyncZeroconf(interfaces=list(prepared.addresses), ip_version=IPVersion.V4Only)
        except OSError as error:
            raise Lost(f"no packets can be sent to the network: {error.strerror}") from error
        try:
            for service in infos(prepared):
                await zeroconf.async_register_service(service, allow_name_change=True)
            attempts.connected()
            before = own_address()
            while own_address() == before:
                await link.rest(LOOK_S)
        except (Error, OSError) as error:
            raise Lost(f"the announcement failed: {type(error).__name__}") from error
        finally:
            with suppress(Error, OSError):
                await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()
        raise Moved

    with suppress(Moved):
        await attempts.run(attempt)


class Moved(Exception):
    """Raised inside of this module: this machine has another address."""


def infos(announcement: Announcement) -> list[ServiceInfo]:
    """Return the entries for DNS."""
    host = socket.gethostname().partition(".")[0]
    packed = [socket.inet_aton(address) for address in announcement.addresses]
    return [
        ServiceInfo(
            service.kind,
            f"{announcement.name}.{service.kind}",
            port=service.port,
            addresses=packed,
            properties={"path": service.path},
            server=f"{host}.local.",
        )
        for service in announcement.services
    ]
