"""Sanitize every JPEG of a folder into another one: python examples/sanitize_folder.py IN OUT."""

import sys
from pathlib import Path

import cv2

import edgesan

source, target = map(Path, sys.argv[1:])
target.mkdir(exist_ok=True)
sanitizer = edgesan.Sanitizer(edgesan.Config(alpha=0.5))
for path in sorted(source.glob("*.jpg")):
    frame = sanitizer.picture(cv2.imread(str(path)))
    cv2.imwrite(str(target / f"{path.stem}.png"), frame.pixels)
    print(f"{path.name}: {frame.stamps.faces} faces sanitized")
