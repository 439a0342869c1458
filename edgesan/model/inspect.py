"""Describe a model file, also a stranger's or a broken one: `edgesan inspect`.

Each check is made as far as it can be: a file that nobody trusted has signed is read, and not run.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any, Final

from edgesan.config import Config
from edgesan.errors import ModelError, SignatureError
from edgesan.model import signing
from edgesan.model.load import Verified, prepare, read, verify

RIGHT: Final = "right on this machine"
NOT_TRIED: Final = "not tried: a model that may not run here is read, and not run"


def facts(config: Config) -> dict[str, Any]:
    """Return the facts about the configuration's model. This does not count as running it.

    `runs_here` says whether this device would run it, and `problems` why not. What could not be found out is missing.

    Raises:
        ModelError: there is no such file, or it is empty or far too large.
    """
    path, content = config.model, read(config.model)
    signer, problems = _signer(config, content)
    table: dict[str, Any] = {
        "file": str(path),
        "runs_here": False,
        "problems": problems,
        "signature": None
        if signer is None
        else {"fingerprint": signer.key.fingerprint, "name": signer.key.name, "trusted": signer.trusted},
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    try:
        model, _ = verify(path, content, signer)
        table |= _described(model)
        if problems:
            table["known_answer"]["result"] = NOT_TRIED
        else:
            prepare(path, content, config.threads, signer)
            table["known_answer"]["result"] = RIGHT
    except ModelError as error:
        problems.append(str(error))
    return table | {"runs_here": not problems}


def _signer(config: Config, content: bytes) -> tuple[signing.Signer | None, list[str]]:
    """Return who signed the file, and why it may not run for that."""
    trusted = [*signing.bundled(), *signing.configured(config.trusted_keys)]
    try:
        return signing.verify(config.model, content, trusted, allow_unsigned=config.allow_unsigned), []
    except SignatureError as error:
        problem = str(error)
    try:
        return signing.verify(config.model, content, trusted, allow_unsigned=True), [problem]
    except SignatureError:  # a wrong signature, which nothing allows
        return None, [problem]


def _described(model: Verified) -> dict[str, Any]:
    """Return what a model of the right form says of itself."""
    table = asdict(model.metadata)
    table["known_answer"] = {k: v for k, v in table["known_answer"].items() if k != "samples"}
    return {
        "parameters": model.parameters,
        "strongest_attack": model.metadata.strongest_attack,
        "tensors": tensors(model),
        **table,
    }


def tensors(model: Verified) -> dict[str, str]:
    """Return the types and shapes of the model's inputs, code and output."""
    noise = {"noise": f"float32 [N, {model.noise_dimensions}], standard normal"} if model.noise_dimensions else {}
    return {
        "face": "uint8 [N, 112, 112, 3], RGB",
        **noise,
        "alpha": "float32 [N, 1]",
        "code": f"8 bits [N, {model.code_bytes}], contains the noise; all that leaves of a face",
        "sanitized": "uint8 [N, 112, 112, 3], RGB",
    }


def as_json(table: dict[str, Any]) -> str:
    """Return the facts for a program."""
    return json.dumps(table, indent=2)


def text(table: dict[str, Any], *, every_claim: bool = False) -> str:
    """Return the facts for a person, on a page.

    Args:
        table: from `facts`.
        every_claim: list each measured figure with all that is known of it, instead of a summary.
    """
    f = table
    lines = [
        f"{f['name']} version {f['version']}   {f['file']}" if "name" in f else f["file"],
        f"  runs here: {'yes' if f['runs_here'] else 'NO'}",
        *(f"    {problem}" for problem in f["problems"]),
        f"  {_signature(f)}",
        f"  {f['bytes'] / 2**20:.2f} MiB, sha256 {f['sha256']}",
    ]
    if "name" not in f:
        return "\n".join(lines)
    low, high = f["alpha_range"]
    lines += [
        f"  known answer: {f['known_answer'].get('result', 'WRONG')}",
        f"  private {f['private']}, useful {f['utility']}",
        f"  {f['strongest_attack']}",
        f"  alpha {low:g} (useful) .. {high:g} (private), default {f['alpha_default']:g}",
        f"  {f['parameters']:,} parameters",
        *(f"  {name:<10} {kind}" for name, kind in f["tensors"].items()),
        "claims" if every_claim or not f["claims"] else "claims, in short (all: --claims)",
        *(f"  {line}" for line in (map(_claim, f["claims"]) if every_claim else _summary(f["claims"]))),
        *([] if f["claims"] else ["  none: nobody has measured what this model hides"]),
        f"made of  {', '.join(f'{key} {_short(value)}' for key, value in f['provenance'].items())}",
    ]
    return "\n".join(lines)


def _signature(table: dict[str, Any]) -> str:
    """Say who signed the model."""
    signature = table["signature"]
    if signature is None:
        return "no signature that fits: nobody vouches for it"
    name = f" ({signature['name']})" if signature["name"] else ""
    return f"signed by {signature['fingerprint']}{name}, {'trusted' if signature['trusted'] else 'NOT TRUSTED'}"


def _summary(claims: list[dict[str, Any]]) -> list[str]:
    """Write one line for all claims about the same thing: the best attacker, or the range of what networks did."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for claim in claims:
        how = str(claim.get("by", "")).partition(", ")[2]
        groups.setdefault(f"{claim.get('figure', '?')}{f', {how}' if how else ''}", []).append(claim)
    width = max(map(len, groups), default=0)
    return [f"{figure:<{width}}  {_values(group)}" for figure, group in groups.items()]


def _values(group: list[dict[str, Any]]) -> str:
    best = max(group, key=lambda claim: float(claim["value"]))
    if "attack" in best:
        interval = f"95 % {best['accuracy_95']}, " if "accuracy_95" in best else ""
        among = f"the best of {len(group)} attackers: " if len(group) > 1 else ""
        return f"{best['value']:<6.3f} ({interval}{among}{best['attack']})"
    least = min(float(claim["value"]) for claim in group)
    return f"{best['value']:.3f}" if least == best["value"] else f"{least:.3f}..{best['value']:.3f}"


def _claim(claim: dict[str, Any]) -> str:
    """Write one measured figure: name and value, then how it was measured."""
    rest = ", ".join(f"{k} {v}" for k, v in claim.items() if k not in {"figure", "value"})
    return f"{claim.get('figure', '?')}: {claim.get('value', '?')}   ({rest})"


def _short(value: object) -> str:
    """Write a value of the provenance; of a digest its first characters."""
    return str(value)[:12]
