"""The report as claims, which the model carries in its metadata."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx

from export.audit import metrics
from export.audit.measure import FRESH, UTILITY
from export.errors import ExportError


def graph_digest(path: Path) -> str:
    """SHA-256 of the graph alone: the same before and after claims are written into the metadata."""
    return hashlib.sha256(onnx.load(str(path)).graph.SerializeToString(deterministic=True)).hexdigest()


def claims(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The report as claims for the model's metadata: each with its attack and n."""
    n, alpha = report["closed_set"]["test"], report["alpha"]
    common = {"n": n, "alpha": alpha, "set": "closed"}
    out: list[dict[str, Any]] = []
    ours = report["table"]["edgesan"]
    for kind, row in (("raw", report["table"]["raw"]), ("sanitized", ours)):
        out += [
            {"figure": f"identity {k}, {kind}", "value": round(v, 4), "by": UTILITY, **common}
            for k, v in row["utility"].items()
            if k.startswith("top")
        ]
        attacks = {name: metrics.average([cell]) for name, cell in row["frozen"].items()}
        attacks |= {f"fresh {name}": metrics.average(cells) for name, cells in row["fresh"].items()}
        out += [
            {
                "figure": f"gender accuracy, {kind}",
                "value": round(s["accuracy"], 4),
                "attack": name,
                "seeds": s["seeds"],
                "accuracy_95": [round(end, 4) for end in s["accuracy_95"]],
            }
            | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats")}
            | {f"pooling_{k}": round(v, 4) for k, v in s["pooled"].items() if k == "10"}
            | common
            for name, s in attacks.items()
        ]
    for name, rates in ours["open"]["tar"].items():
        out += [
            {
                "figure": f"strangers verified, TAR at FAR {rate}",
                "value": round(v, 4),
                "by": name,
                "alpha": alpha,
                "set": "open",
            }
            for rate, v in rates.items()
        ]
    out += [
        {"figure": "gender accuracy, strangers sanitized", "value": round(s["accuracy"], 4), "attack": f"fresh {name}"}
        | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats", "n")}
        | {"alpha": alpha, "set": "open"}
        for name, s in ours["open"]["attackers"].items()
    ]
    out += [
        {"figure": f"gender accuracy, output frames with {background} around", "attack": f"fresh {FRESH[0]}"}
        | {"value": round(s["accuracy"], 4)}
        | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats")}
        | common
        for background, s in ours.get("context", {}).items()
    ]
    if "track" in ours:
        frames = ours["track"]["balanced_by_frames"]
        out.append({"figure": "gender, balanced, mean over 150 frames of one track", "value": round(frames["150"], 4),
                    "attack": f"fresh {FRESH[0]}", "one frame": round(frames["1"], 4), "n": ours["track"]["faces"], "alpha": alpha, "set": "closed"})  # fmt: skip
    again = ours["found_again"]
    out.append({"figure": "faces found again in the output frame", "value": round(again["share"], 4), "n": again["found_raw"],
                "alpha": alpha, "landmark_error_px": round(again["landmark_error_px"], 2)})  # fmt: skip
    return out


def write_claims(path: Path, report: dict[str, Any]) -> None:
    """Put the claims into the model's metadata; its graph stays the very one that was audited.

    Raises:
        ExportError: the file holds another graph.
    """
    if graph_digest(path) != report["model"]["graph_sha256"]:
        raise ExportError(f"{path} is not the model that this report is about")
    proto = onnx.load(str(path))
    metadata = json.loads(next(p.value for p in proto.metadata_props if p.key == "edgesan"))
    metadata["claims"] = claims(report)
    onnx.helper.set_model_props(proto, {"edgesan": json.dumps(metadata)})
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(proto.SerializeToString())
    part.replace(path)
