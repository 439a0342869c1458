"""Train a sanitizer, compile it to a quantized ONNX file, and audit what it leaks. Not installed on the device."""

import edgesan as edgesan  # it turns onnxruntime's telemetry off, before onnxruntime is imported
