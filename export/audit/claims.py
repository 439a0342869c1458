"""The report as claims, which the model carries in its metadata: each with its attack and its number of pictures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from edgesan import disk
from edgesan.model.load import IN_THE_WORST_SET
from export.audit.measure import BEST_PIXEL, UTILITY
from export.audit.report import Attacked, Mean, OwnRow, Recognised, Report, Row, Score, Share, Strangers
from export.errors import ExportError

NAMED = "stranger named in a household of eight"
RAW_FACES = ", raw faces"  # behind the name of a figure: what there was before
Claim: TypeAlias = dict[str, str | int | float | list[float]]


def graph_digest(path: Path) -> str:
    """Return the SHA-256 of a model's graph alone: claims in the metadata do not change it."""
    return hashlib.sha256(onnx.load(str(path)).graph.SerializeToString(deterministic=True)).hexdigest()


def claims(report: Report) -> list[Claim]:
    """Return the report as claims: strangers first."""
    alpha, ours = report.alpha, report.ours
    first = [] if report.strangers is None else of_strangers(report.strangers)
    common: Claim = {"n": report.closed_set.test, "alpha": alpha, "set": "closed"}
    return [
        *(claim | {"alpha": alpha, "set": "strangers"} for claim in first),
        *(claim | common for claim in _row("raw", report.raw)),
        *(claim | common for claim in _row("sanitized", ours)),
        *(claim | common for claim in _context(ours)),
        *_track(ours, alpha),
        _found_again(ours, alpha),
    ]


def of_strangers(s: Strangers) -> list[Claim]:
    """Return the claims about strangers: who recognises them, and who finds out their gender."""
    found: list[Claim] = []
    for name, m in sorted(s.matchers.items(), key=lambda item: item[1].taught):
        by = f"{name} ({'taught' if m.taught else 'unseen'})"
        found += [*_recognised(m, by), *_recognised_raw(s.raw[name], by)]
    attacks = {f"fresh {name}": seeds for name, seeds in s.fresh.items()}
    attacks |= {name: [attacked] for name, attacked in s.frozen.items()}
    found += [_gender("gender of strangers, balanced", name, seeds) for name, seeds in attacks.items()]
    return found + [
        _gender(f"gender of strangers, balanced{RAW_FACES}", name, [attacked])
        for name, attacked in s.gender_raw.items()
    ]


def _recognised(m: Recognised, by: str) -> list[Claim]:
    """Return the claims of one matcher on strangers."""
    tar = {
        f"strangers verified, TAR at FAR {rate}, {gallery} gallery": share
        for rate, galleries in m.tar.items()
        for gallery, share in galleries.items()
    }
    return _shares({NAMED: m.household} | tar, m, by)


def _recognised_raw(m: Recognised, by: str) -> list[Claim]:
    """Return the claims of one matcher on raw strangers, for whom both galleries are one."""
    tar = {f"strangers verified, TAR at FAR {rate}{RAW_FACES}": galleries["raw"] for rate, galleries in m.tar.items()}
    return _shares({NAMED + RAW_FACES: m.household} | tar, m, by)


def _shares(figures: Mapping[str, Share], m: Recognised, by: str) -> list[Claim]:
    common: Claim = {"by": by, "draws": m.draws}
    return [
        {"figure": figure, "value": s.value, **common, "interval_95": [*s.interval_95], "n": s.people}
        for figure, s in figures.items()
    ]


def _gender(figure: str, attack: str, seeds: Sequence[Attacked]) -> Claim:
    """Return the claim of one attacker on strangers."""
    every = [attacked.all for attacked in seeds]
    sets = {part: float(np.mean([a.by_set[part].balanced for a in seeds])) for part in seeds[0].by_set}
    claim: Claim = {
        "figure": figure,
        "value": round(float(np.mean([score.balanced for score in every])), 4),
        "attack": attack,
        "seeds": len(seeds),
        "interval_95": [*every[0].balanced_95],
        "auc": round(float(np.mean([score.auc for score in every])), 4),
        "leak_nats": round(float(np.mean([score.leak_nats for score in every])), 4),
        "n": every[0].n,
    }
    if sets:
        worst = max(sets, key=lambda part: sets[part])
        claim |= {"worst set": worst, IN_THE_WORST_SET: round(sets[worst], 4)}
    if "10" in seeds[0].pooled:
        claim |= {"pooling_10": round(float(np.mean([a.pooled["10"].balanced for a in seeds])), 4)}
    return claim


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
