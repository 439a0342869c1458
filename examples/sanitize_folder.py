"""Sanitize every JPEG of a folder into another one: python examples/sanitize_folder.py IN OUT."""

import edgesan  # isort: skip - comes first: it turns telemetry off, and limits the pictures that OpenCV decodes
import sys
from pathlib import Path

import cv2
import numpy as np

if len(sys.argv) != 3 or not any(Path(sys.argv[1]).glob("*.jpg")):
    sys.exit("usage: python examples/sanitize_folder.py IN OUT, where IN is a folder with pictures (.jpg)")
source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
sanitizer = edgesan.Sanitizer(edgesan.Config(alpha=0.5))
left_out = 0
for path in sorted(source.glob("*.jpg")):
    try:  # not imread: of a JPEG that is cut short, it makes up the rest
        frame = sanitizer.picture(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR))
    except (OSError, ValueError, cv2.error):
        left_out += 1
        print(f"{path.name}: left out: it cannot be read, is no whole picture, or is too large", file=sys.stderr)
        continue
    if not cv2.imwrite(str(target / f"{path.stem}.png"), frame.pixels):
        sys.exit(f"nothing can be written to {target}: name a folder with room that you may write to")
    print(f"{path.name}: {frame.stamps.faces} faces sanitized")
sys.exit(3 if left_out else 0)  # as `edgesan sanitize`
