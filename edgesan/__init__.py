"""edgesan: a camera that sanitizes what it sees before anything leaves it.

Importing this package turns onnxruntime's telemetry off. It must happen before onnxruntime is first imported: the
choice is latched for the life of the process.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
