"""What a model file is, in words: the answer of `edgesan inspect`. Loading it runs its known answer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgesan.model import Model, load


def facts(path: Path) -> dict[str, Any]:
    """Everything that is known of a verified model.

    Raises:
        ModelError: it is not one that may be run.
    """
    model = load(path)
    table = asdict(model.metadata)
    table["known_answer"] = {
        "result": "right on this machine",
        **{k: v for k, v in table["known_answer"].items() if k != "samples"},
    }
    return {"file": str(path), "bytes": model.size_bytes, "sha256": model.sha256, "parameters": model.parameters,
            "strongest_attack": model.metadata.strongest_attack, "tensors": tensors(model), **table}  # fmt: skip


def tensors(model: Model) -> dict[str, str]:
    """The contract, as this model has it."""
    noise = {"noise": f"float32 [N, {model.noise_dimensions}], standard normal"} if model.noise_dimensions else {}
    return {"face": "uint8 [N, 112, 112, 3], RGB", **noise, "alpha": "float32 [N, 1]",
            "sanitized": "uint8 [N, 112, 112, 3], RGB"}  # fmt: skip


def as_json(path: Path) -> str:
    """The facts for a program."""
    return json.dumps(facts(path), indent=2)


def text(path: Path) -> str:
    """The facts for a person."""
    f = facts(path)
    low, high = f["alpha_range"]
    lines = [
        f"{f['name']} version {f['version']}   {f['file']}",
        f"  {f['bytes'] / 2**20:.2f} MiB, {f['parameters']:,} parameters, sha256 {f['sha256']}",
        f"  private {f['private']}, useful {f['utility']}",
        f"  {f['strongest_attack']}",
        f"  alpha {low:g} (useful) .. {high:g} (private), default {f['alpha_default']:g}",
        "contract",
        *(f"  {name:<10} {kind}" for name, kind in f["tensors"].items()),
        f"known answer: {f['known_answer']['result']}",
        "claims",
        *(f"  {_claim(claim)}" for claim in f["claims"]),
        *([] if f["claims"] else ["  none: nobody has measured what this model hides"]),
        "provenance",
        *(f"  {key}: {value}" for key, value in f["provenance"].items()),
    ]
    return "\n".join(lines)


def _claim(claim: dict[str, Any]) -> str:
    """One measured figure: its name and value first, then how it was measured."""
    rest = ", ".join(f"{k} {v}" for k, v in claim.items() if k not in {"figure", "value"})
    return f"{claim.get('figure', '?')}: {claim.get('value', '?')}   ({rest})"
