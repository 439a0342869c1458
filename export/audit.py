"""Audit the shipped int8 model: `python -m export.audit MODEL --data DIR --networks DIR`.

What the *device* produces is judged: the int8 file through `edgesan`'s own reader, noise and composition, after JPEG.
Closed set: the people of lfw, glint and pins that have a `closed_set_split`; people, not the network, are what the
fresh attackers know already, for they train on other pictures of them. Every figure stands beside the raw one.
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edgesan import faces as runtime_faces
from edgesan import model as runtime
from edgesan import noise, sanitize
from edgesan.frames import lend
from export import data
from export.errors import ExportError
from export.networks import Attacker, Provider

CLOSED_SETS = ("lfw", "glint", "pins")
JPEG_QUALITY = 85  # the device's own
UTILITY = "id_mobilefacenet_paddle"
CLASSIFIERS = ("gender_faceapi", "gender_dlib")
EMBED_BATCH = 128


@dataclass(frozen=True)
class Split:
    """Rows of the closed set."""

    train: NDArray[np.bool_]
    val: NDArray[np.bool_]
    test: NDArray[np.bool_]


def sanitized(model: runtime.Model, chips: NDArray[np.uint8], alpha: float, seed: int) -> NDArray[np.uint8]:
    """What a viewer gets of each chip: one draw of S, then JPEG. The noise is seeded, so that an audit can be repeated."""
    entropy = np.random.default_rng(seed).bytes
    out = np.empty_like(chips)
    for i in tqdm(range(0, len(chips), 16), desc=f"sanitizing, draw {seed}", leave=False):
        part = chips[i : i + 16]
        z = np.stack([noise.draw(model.noise_dimensions, entropy) for _ in part])
        out[i : i + 16] = model.run(part, z, alpha)
    return jpeg(out)


def jpeg(chips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each chip through the device's JPEG."""
    out = np.empty_like(chips)
    for i, chip in enumerate(chips):
        _, packet = cv2.imencode(".jpg", chip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        out[i] = cv2.imdecode(packet, cv2.IMREAD_COLOR)[..., ::-1]
    return out


def pictures(chips: NDArray[np.uint8]) -> Tensor:
    """[N, 112, 112, 3] uint8 -> [N, 3, 112, 112] in 0..1."""
    return torch.from_numpy(chips.transpose(0, 3, 1, 2).copy()).float() / 255


@torch.no_grad()
def outputs(network: Provider, chips: NDArray[np.uint8], name: str) -> Tensor:
    """Embeddings [N, D] or logits [N, classes] of all chips."""
    steps = tqdm(range(0, len(chips), EMBED_BATCH), desc=name, leave=False)
    return torch.cat([network(pictures(chips[i : i + EMBED_BATCH])).float() for i in steps])


def identification(train: Tensor, labels: Tensor, people: int) -> nn.Linear:
    """The service: a softmax over the closed set's people on the provider's embedding, trained on raw pictures only."""
    torch.manual_seed(0)
    head = nn.Linear(train.shape[1], people, bias=False)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(300):
        loss = F.cross_entropy(16 * F.linear(train, F.normalize(head.weight)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def top(head: nn.Linear, embeddings: Tensor, labels: Tensor, k: int) -> float:
    """Share of pictures whose person is among the first k."""
    best = F.linear(embeddings, F.normalize(head.weight)).topk(k).indices
    return float((best == labels[:, None]).any(1).float().mean())


def scores(
    log_odds: NDArray[np.float64], truth: NDArray[np.bool_], calibration: tuple[NDArray[Any], NDArray[Any]]
) -> dict[str, float]:
    """Accuracy, balanced accuracy, AUC and the leak in nats of a binary attacker's log-odds [N].

    The leak is H(P) - cross-entropy after temperature scaling on `calibration` (log-odds and truth of validation rows).
    """
    verdict = log_odds > 0
    order = np.argsort(np.argsort(log_odds, kind="stable"), kind="stable") + 1.0
    positives, negatives = truth.sum(), (~truth).sum()
    auc = (order[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return {
        "accuracy": float((verdict == truth).mean()),
        "balanced": float(((verdict & truth).sum() / positives + (~verdict & ~truth).sum() / negatives) / 2),
        "auc": float(auc),
        "leak_nats": leak(log_odds, truth, *calibration),
    }


def leak(log_odds: NDArray[Any], truth: NDArray[Any], fit_odds: NDArray[Any], fit_truth: NDArray[Any]) -> float:
    """H(P) - cross-entropy in nats, once temperature and bias are fitted on other rows."""
    x, y = torch.from_numpy(fit_odds).double(), torch.from_numpy(fit_truth).double()
    scale, bias = (
        torch.ones((), dtype=torch.double, requires_grad=True),
        torch.zeros((), dtype=torch.double, requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(scale * x + bias, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        crossed = F.binary_cross_entropy_with_logits(
            scale * torch.from_numpy(log_odds).double() + bias, torch.from_numpy(truth).double()
        )
    p = truth.mean()
    return float(-(p * np.log(p) + (1 - p) * np.log(1 - p)) - crossed)


def fresh_cnn(
    draws: list[NDArray[np.uint8]],
    truth: NDArray[np.bool_],
    val: tuple[NDArray[np.uint8], NDArray[np.bool_]],
    *,
    epochs: int,
    seed: int,
    stem: int,
    start: Attacker | None = None,
) -> Attacker:
    """An attacker of our own on sanitized training chips (several draws of each); the epoch best on validation is kept.

    It begins from scratch, or from `start`: one that was trained on raw faces and learns the sanitized ones now.
    """
    torch.manual_seed(seed)
    net = Attacker(2, stem).to(memory_format=torch.channels_last)
    if start is not None:
        net.load_state_dict(start.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    batch, labels = 64, torch.from_numpy(truth).long()
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    best, kept = float("inf"), net.state_dict()
    bar = tqdm(total=steps, desc=f"fresh attacker (stem {stem}, seed {seed})", leave=False)
    for epoch in range(epochs):
        chips = draws[epoch % len(draws)]
        net.train()
        for rows in torch.randperm(len(labels))[: len(labels) // batch * batch].split(batch):
            x = pictures(chips[rows.numpy()])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            dx, dy = (int(v) for v in torch.randint(-4, 5, (2,)))
            x = torch.roll(x, (dy, dx), (2, 3))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = net(x, torch.zeros(len(x), 1))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
        odds = log_odds(net, val[0])
        crossed = float(F.binary_cross_entropy_with_logits(torch.from_numpy(odds), torch.from_numpy(val[1]).double()))
        bar.set_postfix(val=f"{((odds > 0) == val[1]).mean():.3f}")
        if crossed < best:
            best, kept = crossed, {k: v.clone() for k, v in net.state_dict().items()}
    bar.close()
    net.load_state_dict(kept)
    return net


@torch.no_grad()
def log_odds(net: Attacker, chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """log P(positive) / P(negative) [N], the mean over the picture and its mirror image."""
    net.eval()
    parts = []
    for i in range(0, len(chips), 128):
        x = pictures(chips[i : i + 128])
        a = torch.zeros(len(x), 1)
        logits = (net(x, a) + net(x.flip(3), a)) / 2
        parts.append((logits[:, 1] - logits[:, 0]).double())
    return torch.cat(parts).numpy()


def probe(train: Tensor, truth: NDArray[np.bool_], val: Tensor, val_truth: NDArray[np.bool_]) -> nn.Sequential:
    """A fresh attacker on the provider's embedding of sanitized chips: two layers, best epoch on validation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(train.shape[1], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    y, best, kept = torch.from_numpy(truth).float(), float("inf"), net.state_dict()
    scale = train.shape[1] ** 0.5
    for _ in range(40):
        net.train()
        for rows in torch.randperm(len(y)).split(128):
            loss = F.binary_cross_entropy_with_logits(net(train[rows] * scale)[:, 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            crossed = float(
                F.binary_cross_entropy_with_logits(net(val * scale)[:, 0], torch.from_numpy(val_truth).float())
            )
        if crossed < best:
            best, kept = crossed, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    return net


@torch.no_grad()
def probe_odds(net: nn.Sequential, embeddings: Tensor) -> NDArray[np.float64]:
    """The probe's log-odds [N]."""
    result: NDArray[np.float64] = net(embeddings * embeddings.shape[1] ** 0.5)[:, 0].double().numpy()
    return result


def found_again(model: runtime.Model, chips: NDArray[np.uint8], alpha: float) -> dict[str, Any]:
    """The provider's own detector on composed output frames: of the faces found raw, how many are found again.

    Each chip is put into a frame of its own, at its own size, with its edge pixels around it, and goes through the
    whole runtime: detect, align, sanitize, compose. Landmark errors are in pixels of the chip.
    """
    detector = runtime_faces.Detector(320)
    settings = sanitize.Settings("pixelate", (), 1)
    found, again, errors = 0, 0, []
    entropy = np.random.default_rng(5).bytes
    for chip in tqdm(chips, desc="found again", leave=False):
        picture = cv2.copyMakeBorder(np.ascontiguousarray(chip[..., ::-1]), 104, 104, 104, 104, cv2.BORDER_REPLICATE)
        door = sanitize.FrameSanitizer(model, detector, settings, alpha, 0, entropy)
        now = time.monotonic_ns()
        with lend(picture, 1, now, now) as raw:
            frame = door(raw)
        if not door.tracker.tracks:
            continue
        found += 1
        before = door.tracker.tracks[0]
        _, packet = cv2.imencode(".jpg", frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        after = [
            f
            for f in detector(cv2.imdecode(packet, cv2.IMREAD_COLOR))
            if runtime_faces.overlap(f.box, before.box) > 0.3
        ]
        if after:
            again += 1
            matrix = runtime_faces.alignment(before.landmarks)
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            errors.append(float(np.linalg.norm(after[0].landmarks - before.landmarks, axis=1).mean()) * scale)
    return {"found_raw": found, "found_again": again, "share": again / max(1, found),
            "landmark_error_px": float(np.median(errors)) if errors else float("nan")}  # fmt: skip


def audit(
    path: Path, folder: Path, networks: Path, alpha: float | None, epochs: int, limit: int | None
) -> dict[str, Any]:
    """The whole table of one model at one alpha, beside raw."""
    model = runtime.prepare(path, path.read_bytes(), threads=2)  # not signed yet: it is signed when its claims are in
    alpha = model.metadata.alpha_default if alpha is None else alpha
    everyone = data.join(data.load_set(folder, name) for name in CLOSED_SETS)
    closed = everyone.where(everyone["closed_set_split"] != "")
    if limit is not None:
        closed = closed.where(np.random.default_rng(0).permutation(len(closed)) < limit)
    split = Split(*(closed["closed_set_split"] == name for name in ("train", "val", "test")))
    identity, people = closed.labels("identity")
    person = torch.from_numpy(identity)
    truth = closed["gender"] == "M"
    started = time.monotonic()

    utility = Provider(UTILITY, networks).eval().requires_grad_(False)
    raw = outputs(utility, closed.chips, "raw embeddings")
    head = identification(raw[split.train], person[split.train], len(people))
    draws = [sanitized(model, closed.chips, alpha, seed) for seed in range(2)]
    seen = outputs(utility, draws[0], "sanitized embeddings")
    rows: dict[str, dict[str, Any]] = {"utility": {}}
    for name, embeddings in (("raw", raw), ("sanitized", seen)):
        rows["utility"][name] = {f"top{k}": top(head, embeddings[split.test], person[split.test], k) for k in (1, 5)}

    for name in CLASSIFIERS:
        net = Provider(name, networks).eval().requires_grad_(False)
        sign = 1 if net.classes[0] == "M" else -1
        rows[name] = {}
        for kind, chips in (("raw", closed.chips), ("sanitized", draws[0])):
            odds = {}
            for part, mask in (("val", split.val), ("test", split.test)):
                logits = outputs(net, chips[mask], f"{name} on {kind}")
                odds[part] = (sign * (logits[:, 0] - logits[:, 1])).double().numpy()
            rows[name][kind] = scores(odds["test"], truth[split.test], (odds["val"], truth[split.val]))

    rows["fresh probe on the embedding"] = {}
    for kind, embeddings in (("raw", raw), ("sanitized", seen)):
        net_p = probe(embeddings[split.train], truth[split.train], embeddings[split.val], truth[split.val])
        rows["fresh probe on the embedding"][kind] = scores(
            probe_odds(net_p, embeddings[split.test]),
            truth[split.test],
            (probe_odds(net_p, embeddings[split.val]), truth[split.val]),
        )

    def attack(source: list[NDArray[np.uint8]], stem: int, start: Attacker | None) -> tuple[Attacker, dict[str, float]]:
        cnn = fresh_cnn([s[split.train] for s in source], truth[split.train], (source[0][split.val], truth[split.val]),
                        epochs=epochs, seed=0, stem=stem, start=start)  # fmt: skip
        calibration = log_odds(cnn, source[0][split.val]), truth[split.val]
        return cnn, scores(log_odds(cnn, source[0][split.test]), truth[split.test], calibration)

    raw_cnn, on_raw = attack([closed.chips], 4, None)
    rows["fresh CNN (stem 4, begun on raw faces)"] = {"raw": on_raw, "sanitized": attack(draws, 4, raw_cnn)[1]}
    rows["fresh CNN (stem 2, from scratch)"] = {"sanitized": attack(draws, 2, None)[1]}

    faces_again = found_again(model, closed.chips[split.test][:400], alpha)
    return {
        "model": {"name": model.metadata.name, "version": model.metadata.version, "graph_sha256": graph_digest(path)},
        "alpha": alpha,
        "closed_set": {
            "people": len(people),
            "pictures": len(closed),
            "test": int(split.test.sum()),
            "prior": float(truth.mean()),
        },
        "epochs": epochs,
        "rows": rows,
        "found_again": faces_again,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def graph_digest(path: Path) -> str:
    """SHA-256 of the graph alone: the same before and after claims are written into the metadata."""
    return hashlib.sha256(onnx.load(str(path)).graph.SerializeToString(deterministic=True)).hexdigest()


def claims(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The report as claims for the model's metadata: each with its attack and n."""
    n, alpha = report["closed_set"]["test"], report["alpha"]
    common = {"n": n, "alpha": alpha, "set": "closed"}
    out: list[dict[str, Any]] = []
    for kind, values in report["rows"]["utility"].items():
        out += [
            {"figure": f"identity {k}, {kind}", "value": round(v, 4), "by": UTILITY, **common}
            for k, v in values.items()
        ]
    for name, row in report["rows"].items():
        if name != "utility":
            out += [
                {"figure": f"gender accuracy, {kind}", "value": round(s["accuracy"], 4), "attack": name}
                | {key: round(s[key], 4) for key in ("balanced", "auc", "leak_nats")}
                | common
                for kind, s in row.items()
            ]
    again = report["found_again"]
    out.append({"figure": "faces found again in the output frame", "value": round(again["share"], 4), "n": again["found_raw"],
                "alpha": alpha, "landmark_error_px": round(again["landmark_error_px"], 2)})  # fmt: skip
    return out


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    c, again = report["closed_set"], report["found_again"]
    lines = [
        f"{report['model']['name']} v{report['model']['version']} at alpha {report['alpha']:g}; closed set: {c['people']} people, {c['test']} test pictures, prior {c['prior']:.3f} male; fresh attackers trained for {report['epochs']} epochs",
        "",
        "| | raw | sanitized |",
        "|---|---|---|",
    ]
    for k in ("top1", "top5"):
        values = [f"{100 * report['rows']['utility'][kind][k]:.1f}" for kind in ("raw", "sanitized")]
        lines.append(f"| identity, {k} | {' | '.join(values)} |")
    for name, row in report["rows"].items():
        if name != "utility":
            lines.append(f"| gender by {name} | {' | '.join(cell(row.get(kind)) for kind in ('raw', 'sanitized'))} |")
    share = f"{again['found_again']} ({100 * again['share']:.1f} %), landmarks {again['landmark_error_px']:.2f} px off"
    lines.append(f"| faces found again in the output frame | {again['found_raw']} | {share} |")
    return "\n".join(lines)


def cell(s: dict[str, float] | None) -> str:
    """One attacker's scores in a table."""
    if s is None:
        return "–"
    return f"{100 * s['accuracy']:.1f} (balanced {100 * s['balanced']:.1f}, AUC {s['auc']:.3f}, leak {s['leak_nats']:.3f} nats)"


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.audit", description=__doc__)
    parser.add_argument("model", type=Path, help="an edgesan .onnx file")
    parser.add_argument("--data", type=Path, required=True, help="folder of sets (.tar and .csv)")
    parser.add_argument("--networks", type=Path, required=True, help="folder of the providers' ONNX networks")
    parser.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    parser.add_argument("--epochs", type=int, default=12, help="for the fresh attackers (default 12)")
    parser.add_argument("--limit", type=int, help="use so many pictures only: a quick look, no claim")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--write", action="store_true", help="write the claims into the model's metadata")
    a = parser.parse_args(arguments)
    try:
        report = audit(a.model, a.data, a.networks, a.alpha, a.epochs, a.limit)
        print(table(report))
        if a.json:
            a.json.write_text(json.dumps(report, indent=2) + "\n")
        if a.write:
            write_claims(a.model, report)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
