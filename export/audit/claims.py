"""The report as claims, which the model carries in its metadata: each with its attack and its number of pictures."""

import hashlib
import json
from pathlib import Path
from typing import TypeAlias

import onnx

from edgesan import disk
from export.audit.measure import BEST_PIXEL, UTILITY
from export.audit.report import Mean, OwnRow, Report, Row, Score
from export.errors import ExportError

Claim: TypeAlias = dict[str, str | int | float | list[float]]


def graph_digest(path: Path) -> str:
    """Return the SHA-256 of a model's graph alone: claims in the metadata do not change it."""
    return hashlib.sha256(onnx.load(str(path)).graph.SerializeToString(deterministic=True)).hexdigest()


def claims(report: Report) -> list[Claim]:
    """Return the report as claims."""
    alpha, ours = report.alpha, report.ours
    common: Claim = {"n": report.closed_set.test, "alpha": alpha, "set": "closed"}
    return [
        *(claim | common for claim in _row("raw", report.raw)),
        *(claim | common for claim in _row("sanitized", ours)),
        *(claim | {"alpha": alpha, "set": "open"} for claim in _strangers(ours)),
        *(claim | common for claim in _context(ours)),
        *_track(ours, alpha),
        _found_again(ours, alpha),
    ]


def _row(kind: str, row: Row) -> list[Claim]:
    """Return the claims of one row: raw or sanitized."""
    found: list[Claim] = [
        {"figure": f"identity {name}, {kind}", "value": round(value, 4), "by": UTILITY}
        for name, value in (("top1", row.utility.top1), ("top5", row.utility.top5))
    ]
    attacks = {name: Mean.of([score]) for name, score in row.frozen.items()}
    attacks |= {f"fresh {name}": Mean.of(scores) for name, scores in row.fresh.items()}
    for name, mean in attacks.items():
        claim: Claim = {
            "figure": f"gender accuracy, {kind}",
            "value": round(mean.accuracy, 4),
            "attack": name,
            "seeds": mean.seeds,
            "accuracy_95": [round(end, 4) for end in mean.accuracy_95],
        }
        pooling: Claim = {"pooling_10": round(mean.pooled["10"], 4)} if "10" in mean.pooled else {}
        found.append(claim | _more(mean) | pooling)
    return found


def _more(score: Score | Mean) -> Claim:
    return {
        "balanced": round(score.balanced, 4),
        "auc": round(score.auc, 4),
        "leak_nats": round(score.leak_nats, 4),
    }


def _strangers(ours: OwnRow) -> list[Claim]:
    verified: list[Claim] = [
        {"figure": f"strangers verified, TAR at FAR {rate}", "value": round(tar, 4), "by": name}
        for name, rates in ours.open.tar.items()
        for rate, tar in rates.items()
    ]
    figure = "gender accuracy, strangers sanitized"
    attacked: list[Claim] = [
        {"figure": figure, "value": round(s.accuracy, 4), "attack": f"fresh {name}", **_more(s), "n": s.n}
        for name, s in ours.open.attackers.items()
    ]
    return verified + attacked


def _context(ours: OwnRow) -> list[Claim]:
    found: list[Claim] = []
    for canvas, s in (ours.context or {}).items():
        figure = f"gender accuracy, output frames with {canvas} around"
        found.append({"figure": figure, "attack": f"fresh {BEST_PIXEL}", "value": round(s.accuracy, 4), **_more(s)})
    return found


def _track(ours: OwnRow, alpha: float) -> list[Claim]:
    if ours.track is None:
        return []
    frames = ours.track.balanced_by_frames
    return [
        {
            "figure": "gender, balanced, mean over 150 frames of one track",
            "value": round(frames["150"], 4),
            "attack": f"fresh {BEST_PIXEL}",
            "one frame": round(frames["1"], 4),
            "n": ours.track.faces,
            "alpha": alpha,
            "set": "closed",
        }
    ]


def _found_again(ours: OwnRow, alpha: float) -> Claim:
    again = ours.found_again
    return {
        "figure": "faces found again in the output frame",
        "value": round(again.share, 4),
        "n": again.found_raw,
        "alpha": alpha,
        "landmark_error_px": round(again.landmark_error_px, 2),
    }


def write_claims(path: Path, report: Report) -> None:
    """Put the claims into the model's metadata; its graph stays the very one that was audited.

    Raises:
        ExportError: the file holds another graph.
    """
    if graph_digest(path) != report.model.graph_sha256:
        raise ExportError(f"{path} is not the model that this report is about")
    proto = onnx.load(str(path))
    metadata = json.loads(next(p.value for p in proto.metadata_props if p.key == "edgesan"))
    metadata["claims"] = claims(report)
    onnx.helper.set_model_props(proto, {"edgesan": json.dumps(metadata)})
    disk.write_whole(path, proto.SerializeToString())
