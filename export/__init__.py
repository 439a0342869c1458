"""Train a sanitizer, compile it to a quantized ONNX file, and audit what it still leaks. Not installed on the device."""
