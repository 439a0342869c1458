"""edgesan: a camera that sanitizes what it sees before anything leaves it.

Importing this package turns onnxruntime's telemetry off, and bounds the pictures that OpenCV decodes. Both are read
once, when those libraries are loaded, so it must happen before.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = "100000000"

__version__ = "0.1.0"
