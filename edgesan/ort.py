"""ONNX Runtime as edgesan uses it: the one place where sessions are made, with their options, and its exceptions."""

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as exceptions

InferenceSession = onnxruntime.InferenceSession
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


def session(
    model: bytes, threads: int = 1, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Return a session that runs a model on the CPU.

    Args:
        model: the bytes of an ONNX file that holds all of its weights.
        threads: how many threads one call may use.
        options: in place of `session_options(threads)`, from which they were made.

    Raises:
        ORT_ERRORS: ONNX Runtime cannot run the model.
    """
    return onnxruntime.InferenceSession(model, options or session_options(threads), ["CPUExecutionProvider"])


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


class TimeLimit:
    """Ends calls that take too long, from one thread for all of them.

    No call has to wake it: it never sleeps for longer than a call may take, so it wakes before any is due that began
    meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        """Make a limit of so many seconds for each call."""
        self.seconds = seconds
        self._due_s: dict[onnxruntime.RunOptions, float] = {}  # when each call that runs must have ended
        self._thread = threading.Thread()

    def run(
        self, session: onnxruntime.InferenceSession, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run a network, and return these outputs.

        Raises:
            TimeoutError: it took too long, and was ended. ONNX Runtime ends a call before its next operator.
            ORT_ERRORS: it failed.
        """
        if not self._thread.is_alive():  # nor is it after a fork
            self._thread = threading.Thread(target=self._watch, name="time limit", daemon=True)
            self._thread.start()
        options = onnxruntime.RunOptions()
        self._due_s[options] = time.monotonic() + self.seconds
        try:
            result: list[NDArray[Any]] = session.run(outputs, feed, options)
        except ORT_ERRORS as error:
            if options.terminate:
                raise TimeoutError(f"it took longer than {self.seconds:g} s") from error
            raise
        finally:
            del self._due_s[options]
        return result

    def _watch(self) -> None:
        while True:
            now_s, wake_s = time.monotonic(), self.seconds
            for options, due_s in list(self._due_s.items()):
                if due_s <= now_s:
                    options.terminate = True
                else:
                    wake_s = min(wake_s, due_s - now_s)
            time.sleep(wake_s)


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
