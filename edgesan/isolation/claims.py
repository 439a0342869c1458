"""What follows from the results of the probes: claims with words and cures, which cross between processes as bytes.

The sanitize process sends a byte for each probe, so that nothing but numbers passes (`pack`); the words follow from
these bytes alone.
"""

import errno
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from edgesan.errors import IsolationError
from edgesan.isolation.probes import PROBES

SECCOMP: Final = "use a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64, and a 64-bit Python"
LANDLOCK: Final = "use a kernel with Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, and landlock in lsm=)"
CURES: Final = {
    "no network": "sudo sysctl -w kernel.unprivileged_userns_clone=1 (Debian),"
    " kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 23.10 and later) or user.max_user_namespaces=1000; for"
    " good: in /etc/sysctl.d",
    "no camera": f"{LANDLOCK}, or let it make user namespaces; and write no file straight into / or /dev",
    "no other port": "use a kernel with Landlock 4 (Linux 6.7, CONFIG_SECURITY_LANDLOCK, and landlock in lsm=)",
    "no swap": "sudo swapoff -a; or LimitMEMLOCK=infinity in the unit, or memlock unlimited in"
    " /etc/security/limits.conf",
    "no files": f"{LANDLOCK}; {SECCOMP}",
    "no endless memory": "remove what keeps setrlimit(2) from it (SystemCallFilter= of the unit)",
}
# What it means for those who are seen if a claim does not hold.
PERSON: Final = {
    "sanitize": "The process that sees the camera",
    "transmit": "The process that serves the network",
    "fetch": "The process that fetches from the network camera",
    "outlet": "The process that sends the stream to another server",
    "recorder": "The process that records",
}
RISKS: Final = {
    ("sanitize", "no network"): "can reach the network: a fault there could send raw pictures",
    ("sanitize", "no socket"): "can talk to other programs: a fault there could hand them raw pictures",
    ("sanitize", "no files"): "can use files that are not its own: a fault there could write raw pictures to a disk",
    ("sanitize", "no other process"): "can start or control other programs: a fault there could use them to get raw"
    " pictures out",
    ("sanitize", "no terminal"): "can use the terminal or the input of the person who started it: a fault there could"
    " type commands, or send raw pictures that way",
    ("sanitize", "no dumps"): "can be dumped: a crash, or a debugger, could write raw pictures to a disk",
    ("sanitize", "no swap"): "can be swapped out: raw pictures could reach a disk",
    ("fetch", "no camera"): "can open cameras of this machine: whoever takes it over could see raw pictures",
    (
        "fetch",
        "no other port",
    ): "can reach more than the camera's port: whoever takes it over could reach other machines"
    " from here, and send them the camera's pictures",
    ("fetch", "no files"): "can use files that are not its own: whoever takes it over could read or change them",
    ("fetch", "no other process"): "can start or control other programs: whoever takes it over could run more",
    ("fetch", "no terminal"): "can use the terminal of the person who started it: whoever takes it over could type"
    " commands",
    ("fetch", "no dumps"): "can be dumped: a crash, or a debugger, could write the camera's pictures, and its password,"
    " to a disk",
    ("fetch", "no swap"): "can be swapped out: the camera's pictures could reach a disk",
    ("transmit", "no camera"): "can open the camera: whoever takes it over could see raw pictures",
    ("transmit", "no socket"): "can open new connections: whoever takes it over could reach other machines from here",
    ("transmit", "no files"): "can use files that are not its own: whoever takes it over could read or change them",
    ("transmit", "no other process"): "can start or control other programs: whoever takes it over could run more, and"
    " look for the camera from there",
    ("transmit", "no terminal"): "can use the terminal of the person who started it: whoever takes it over could type"
    " commands",
    (
        "transmit",
        "no dumps",
    ): "can be dumped: a crash, or a debugger, could write its memory, with the token, to a disk",
}
RISKS_OF_OUTLETS: Final = {
    "no camera": "can open the camera: whoever takes it over could see raw pictures",
    "no socket": "can reach other programs: whoever takes it over could send clips elsewhere",
    "no local socket": "can talk to other programs of this machine: whoever takes it over could use them",
    "no other protocol": "can use more than TCP and UDP: whoever takes it over could reach other ports",
    "no files": "can use files that are not its own: whoever takes it over could read or change them",
    "no other process": "can start or control other programs: whoever takes it over could run more",
    "no terminal": "can use the terminal of the person who started it: whoever takes it over could type commands",
    "no dumps": "can be dumped: a crash, or a debugger, could write its memory to a disk",
}
RISKS_OF_BOTH: Final = {
    "no new namespace": "can build itself a new view of this system, and with it undo some of its restrictions",
    "no other kernel interface": "can use more of the kernel than it needs: a fault of the kernel could free it",
    "no endless memory": "can use memory without a limit: a fault there could slow this machine down, or stop it",
    "no privileges": "has more rights than it needs: a fault there could undo its restrictions",
}
RESULTS: Final = len(PROBES["sanitize"])
"""Bytes of the claims of the sanitize process."""


@dataclass(frozen=True)
class IsolationClaim:
    """One thing that a process cannot do: whether the probes confirm it, and their words in `detail`."""

    process: str  # "sanitize", "transmit" or "fetch"
    name: str
    holds: bool
    detail: str
    cure: str = ""  # where it does not hold
    results: tuple[int, ...] = field(default=(), repr=False)  # a byte of each probe; see `pack`

    def __str__(self) -> str:
        fails = "" if self.holds else " does not hold"
        cure = f". Cure: {self.cure}" if self.cure else ""
        return f"{self.process} process: {self.name}{fails}: {self.detail}{cure}"


def conclude(process: str, results: bytes) -> list[IsolationClaim]:
    """Return the claims of a process that follow from a result of each of its probes."""
    found: dict[str, list[int]] = {}
    for probe, result in zip(PROBES[process], results, strict=True):
        found.setdefault(probe.claim, []).append(result)
    return [claim(process, name, tuple(each)) for name, each in found.items()]


def claim(process: str, name: str, results: tuple[int, ...]) -> IsolationClaim:
    """Return the claim that follows from the results of its probes. The words of open ways come first."""
    probes = [probe for probe in PROBES[process] if probe.claim == name]
    tried = sorted(zip(probes, results, strict=True), key=lambda pair: pair[1] in pair[0].closed)
    facts: list[str] = []
    names: dict[str, list[str]] = {}
    for probe, result in tried:
        word = errno.errorcode.get(result, "allowed")
        if result and result not in probe.closed:
            word = f"not refused, but {word}"
        if result in probe.words:
            facts.append(probe.words[result])
        elif "{}" in probe.name:
            facts.append(probe.name.format(word))
        else:
            names.setdefault(word, []).append(probe.name)
    words = [f"{word}: {', '.join(each)}" for word, each in names.items()]
    holds = all(result in probe.closed for probe, result in tried)
    cure = "" if holds else CURES.get(name, SECCOMP)
    return IsolationClaim(process, name, holds, "; ".join((*dict.fromkeys(facts), *words)), cure, results)


def pack(claims: list[IsolationClaim]) -> bytes:
    """Return the claims of one process as a byte of each probe: the errno that it met, 0 where it was allowed."""
    return bytes(result for claim in claims for result in claim.results)


def unpack(results: bytes, process: str = "sanitize") -> list[IsolationClaim]:
    """Return the claims that `pack` made these bytes of, with the same words.

    Raises:
        ValueError: they are none.
    """
    probes = PROBES[process]
    if len(results) != len(probes):
        raise ValueError(f"claims of the {process} process are {len(probes)} bytes, not {len(results)}")
    for probe, result in zip(probes, results, strict=True):
        if not probe.possible(result):
            raise ValueError(f"claims of the {process} process: {result} is no result of {probe.claim}, {probe.name}")
    return conclude(process, results)


def unpack_all(results: bytes) -> list[IsolationClaim]:
    """Return the claims of the sanitize process and, if there is one, of the fetch process, whose bytes follow.

    Raises:
        ValueError: they are none.
    """
    fetched = results[RESULTS:]
    return [*unpack(results[:RESULTS]), *(unpack(fetched, "fetch") if fetched else ())]


def summary(claims: Iterable[IsolationClaim]) -> str:
    """Return one line: what holds of each process, and what does not."""
    words: dict[str, tuple[list[str], list[str]]] = {}
    for claim in claims:
        words.setdefault(claim.process, ([], []))[not claim.holds].append(claim.name)
    lines = []
    for process, (held, failing) in words.items():
        fails = f"{', '.join(failing)} {'does' if len(failing) == 1 else 'do'} not hold" if failing else ""
        lines.append(f"{process}: {', '.join(held)}{f' ({fails})' if held and fails else fails}")
    return "; ".join(lines)


def warnings(claims: Iterable[IsolationClaim]) -> list[str]:
    """Return a sentence for viewers about each claim that does not hold."""
    return [_risk(claim) for claim in claims if not claim.holds]


def _risk(claim: IsolationClaim) -> str:
    outlets = RISKS_OF_OUTLETS if claim.process in ("outlet", "recorder") else {}
    risk = RISKS.get((claim.process, claim.name)) or outlets.get(claim.name) or RISKS_OF_BOTH[claim.name]
    return f"{PERSON[claim.process]} {risk}."


def report(claims: list[IsolationClaim]) -> dict[str, Any]:
    """Return the part of /api/status that describes isolation."""
    whole = all(claim.holds for claim in claims)
    return {"whole": whole, "summary": summary(claims), "claims": [plain(claim) for claim in claims]}


def plain(claim: IsolationClaim) -> dict[str, Any]:
    """Return a claim for JSON, without its results, which its words say."""
    return {key: value for key, value in asdict(claim).items() if key != "results"}


def require(claims: list[IsolationClaim]) -> None:
    """Refuse to run if one does not hold, as `require_isolation` asks.

    Raises:
        IsolationError: what is missing, and the cure of each.
    """
    missing = [f"\n  {claim}" for claim in claims if not claim.holds]
    if missing:
        raise IsolationError(f"require_isolation asks for more than holds on this machine:{''.join(missing)}")
