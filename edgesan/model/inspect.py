"""Describe a model file: `edgesan inspect`. Loading the model checks its known answer."""

import json
from dataclasses import asdict
from typing import Any

from edgesan.config import Config
from edgesan.model.load import Model, load_model


def facts(config: Config) -> dict[str, Any]:
    """Return the facts about the configuration's model, once it is verified. This does not count as running it.

    Raises:
        ModelError: the model may not be run.
    """
    model = load_model(config.model, trusted_keys=config.trusted_keys, allow_unsigned=config.allow_unsigned)
    table = asdict(model.metadata)
    table["known_answer"] = {
        "result": "right on this machine",
        **{k: v for k, v in table["known_answer"].items() if k != "samples"},
    }
    signer = model.signer
    signature = (
        {"fingerprint": signer.key.fingerprint, "name": signer.key.name, "trusted": signer.trusted} if signer else None
    )
    return {
        "file": str(config.model),
        "signature": signature,
        "bytes": model.size_bytes,
        "sha256": model.sha256,
        "parameters": model.parameters,
        "strongest_attack": model.metadata.strongest_attack,
        "tensors": tensors(model),
        **table,
    }


def tensors(model: Model) -> dict[str, str]:
    """Return the types and shapes of the model's inputs, code and output."""
    noise = {"noise": f"float32 [N, {model.noise_dimensions}], standard normal"} if model.noise_dimensions else {}
    return {
        "face": "uint8 [N, 112, 112, 3], RGB",
        **noise,
        "alpha": "float32 [N, 1]",
        "code": f"8 bits [N, {model.code_bytes}], contains the noise; all that leaves of a face",
        "sanitized": "uint8 [N, 112, 112, 3], RGB",
    }


def as_json(config: Config) -> str:
    """Return the facts for a program."""
    return json.dumps(facts(config), indent=2)


def text(config: Config) -> str:
    """Return the facts for a person."""
    f = facts(config)
    low, high = f["alpha_range"]
    lines = [
        f"{f['name']} version {f['version']}   {f['file']}",
        f"  {f['bytes'] / 2**20:.2f} MiB, {f['parameters']:,} parameters, sha256 {f['sha256']}",
        f"  {_signature(f['signature'])}",
        f"  private {f['private']}, useful {f['utility']}",
        f"  {f['strongest_attack']}",
        f"  alpha {low:g} (useful) .. {high:g} (private), default {f['alpha_default']:g}",
        "tensors",
        *(f"  {name:<10} {kind}" for name, kind in f["tensors"].items()),
        f"known answer: {f['known_answer']['result']}",
        "claims",
        *(f"  {_claim(claim)}" for claim in f["claims"]),
        *([] if f["claims"] else ["  none: nobody has measured what this model hides"]),
        "provenance",
        *(f"  {key}: {value}" for key, value in f["provenance"].items()),
    ]
    return "\n".join(lines)


def _signature(signature: dict[str, Any] | None) -> str:
    """Say who signed the model."""
    if signature is None:
        return "unsigned: nobody vouches for it"
    name = f" ({signature['name']})" if signature["name"] else ""
    return f"signed by {signature['fingerprint']}{name}, {'trusted' if signature['trusted'] else 'NOT TRUSTED'}"


def _claim(claim: dict[str, Any]) -> str:
    """Write one measured figure: name and value, then how it was measured."""
    rest = ", ".join(f"{k} {v}" for k, v in claim.items() if k not in {"figure", "value"})
    return f"{claim.get('figure', '?')}: {claim.get('value', '?')}   ({rest})"
