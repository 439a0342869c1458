"""The two people of the bundled clip: faces that may be shown, and enough for a look without any data."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesan import faces as runtime_faces
from edgesan.capture import DEMO_CLIP
from edgesan.model.load import prepare
from export.audit import attackers, mechanisms, metrics, tables
from export.audit.attackers import AttackData
from export.audit.device import jpeg
from export.audit.measure import PIXEL_ATTACKERS

EPOCHS = {"linear on pixels": 8, "CNN 2": 12}  # of each attacker of the quick look


def people_of_the_clip(count: int = 4) -> NDArray[np.uint8]:
    """Return chips [count, 112, 112, 3] RGB: the largest face of some frames."""
    detector, chips = runtime_faces.Detector(480), []
    capture = cv2.VideoCapture(str(DEMO_CLIP))
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    for number in np.linspace(2, frames - 2, 2 * count).astype(int):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(number))
        done, frame = capture.read()
        found = detector(np.asarray(frame, np.uint8)) if done else []
        if found:
            largest = max(found, key=lambda face: float(face.box[2] * face.box[3]))
            chips.append(runtime_faces.cut(np.asarray(frame, np.uint8), runtime_faces.alignment(largest.landmarks)))
    return np.stack(chips[:: max(1, len(chips) // count)][:count])


def two_people() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return chips [N, 112, 112, 3] RGB of both people, each also mirrored, and the truth [N]: the man?"""
    detector, chips, truth = runtime_faces.Detector(320), [], []
    capture = cv2.VideoCapture(str(DEMO_CLIP))
    while (frame := capture.read())[0]:
        pixels = np.asarray(frame[1], np.uint8)
        found = sorted(detector(pixels), key=lambda face: float(face.box[0]))
        for man, face in enumerate(found if len(found) == 2 else []):
            chip = runtime_faces.cut(pixels, runtime_faces.alignment(face.landmarks))
            chips += [chip, chip[:, ::-1]]
            truth += [bool(man)] * 2
    return np.stack(chips), np.array(truth)


def on_the_clip(path: Path, alpha: float | None) -> str:
    """Return a table: can fresh attackers distinguish the clip's two people, a woman and a man?

    They learn on the first frames and are scored on the last ones. Two people are no audit: this shows that the
    machinery runs, on real faces, on any machine.
    """
    model = prepare(path, path.read_bytes(), threads=2)
    alpha = model.metadata.alpha_default if alpha is None else alpha
    chips, truth = two_people()
    n = len(chips)
    order = np.arange(n)
    train, val, test = order < 0.6 * n, (order >= 0.6 * n) & (order < 0.8 * n), order >= 0.8 * n
    lines = [
        "The bundled clip's two people; accuracy of fresh attackers in %, prior 50",
        "",
        *tables.head(("", *EPOCHS, "SSIM")),
    ]
    for m in (mechanisms.raw(), mechanisms.sanitizer(model, alpha), mechanisms.blur(4), mechanisms.pixelate(8)):
        draws = [jpeg(m.apply(chips, truth, seed)) for seed in range(4 if m.stochastic else 1)]
        data = AttackData([d[train] for d in draws], truth[train], draws[0][val], truth[val])
        shares = []
        for name, epochs in EPOCHS.items():
            make, rate = PIXEL_ATTACKERS[name]
            network = partial(make, Path())
            scorer = attackers.fit(network, data, epochs=epochs, seed=0, rate=rate, name=f"{name} on {m.name}")
            shares.append(f"{100 * ((scorer(draws[0][test]) > 0) == truth[test]).mean():.0f}")
        lines.append(tables.line((m.name, *shares, f"{metrics.ssim(chips[test], draws[0][test]):.2f}")))
    return "\n".join(lines)
