"""edgesan: a camera that sanitizes what it sees before anything leaves it.

    sanitizer = edgesan.Sanitizer()
    frame = sanitizer.picture(cv2.imread("group.jpg"))
    cv2.imwrite("sanitized.png", frame.pixels)

Importing this package turns the telemetry of ONNX Runtime off, and limits the size of pictures that OpenCV decodes.
Each library reads its setting once, when it is loaded, so a program that imports onnxruntime or cv2 itself should
import edgesan first. The public names are loaded at their first use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = "100000000"

__version__ = "0.2.0"

if TYPE_CHECKING:
    from edgesan.config import Config
    from edgesan.errors import (
        CameraError,
        CameraLost,
        ConfigError,
        EdgesanError,
        EndOfStream,
        IsolationError,
        ModelError,
        ModelStalled,
        Reject,
        RollbackError,
        SignatureError,
        SinkError,
    )
    from edgesan.frames import RawFrame, SanitizedFrame
    from edgesan.local import Sanitizer
    from edgesan.model.load import Model, load_model

__all__ = [
    "CameraError",
    "CameraLost",
    "Config",
    "ConfigError",
    "EdgesanError",
    "EndOfStream",
    "IsolationError",
    "Model",
    "ModelError",
    "ModelStalled",
    "RawFrame",
    "Reject",
    "RollbackError",
    "SanitizedFrame",
    "Sanitizer",
    "SignatureError",
    "SinkError",
    "__version__",
    "load_model",
]

_MODULES = {
    "Config": "edgesan.config",
    "Model": "edgesan.model.load",
    "RawFrame": "edgesan.frames",
    "SanitizedFrame": "edgesan.frames",
    "Sanitizer": "edgesan.local",
    "load_model": "edgesan.model.load",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562), so that `import edgesan` loads no library that starts threads."""
    if name not in __all__:
        raise AttributeError(f"module 'edgesan' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "edgesan.errors")), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
