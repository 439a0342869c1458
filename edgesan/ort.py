"""ONNX Runtime as edgesan uses it: the one place where sessions are made, with their options, and its exceptions."""

from functools import cache
from pathlib import Path
from typing import Final

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as exceptions

InferenceSession = onnxruntime.InferenceSession
RunOptions = onnxruntime.RunOptions
# ONNX Runtime's exceptions share no base class but Exception. A test compares this list with the library.
ORT_ERRORS: Final = (
    exceptions.EPFail,
    exceptions.EngineError,
    exceptions.Fail,
    exceptions.InvalidArgument,
    exceptions.InvalidGraph,
    exceptions.InvalidProtobuf,
    exceptions.ModelLoadCanceled,
    exceptions.ModelLoaded,
    exceptions.ModelRequiresCompilation,
    exceptions.NoModel,
    exceptions.NoSuchFile,
    exceptions.NotFound,
    exceptions.NotImplemented,
    exceptions.RuntimeException,
)


def session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session that runs a model on the CPU.

    Args:
        model: the bytes of an ONNX file that holds all of its weights.
        threads: how many threads one call may use.

    Raises:
        ORT_ERRORS: ONNX Runtime cannot run the model.
    """
    return onnxruntime.InferenceSession(model, session_options(threads), ["CPUExecutionProvider"])


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of every session of this project."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A waiting thread that spins costs a paced loop 77 % of a core instead of 11 %, and makes it slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8_saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def int8_saturates() -> bool:
    """Return whether sums of int8 products overflow 16 bits on this processor: on x86 without VNNI.

    ONNX Runtime can avoid the overflow, in 2.5 times the time. With VNNI, and on Arm, both ways give the same result.
    """
    return not cpu_flags() & {"avx512_vnni", "avx_vnni", "asimd"}


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction sets that Linux names in `/proc/cpuinfo` (x86: `flags`, Arm: `Features`)."""
    lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split())
