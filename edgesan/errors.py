"""Everything that edgesan raises on purpose.

    EdgesanError
      ConfigError       an option or the configuration file is wrong             exit code 2
      CameraError       the camera cannot be opened or read                      exit code 3
        CameraLost        it stopped giving frames; it may come back
        EndOfStream       a file has no more frames
      ModelError        the model file is not one that may be run                exit code 4
        SignatureError    no trusted key signed these bytes
        RollbackError     a later version ran here, or the record of versions cannot be read or written
        ModelStalled      one call of its network did not end in time            exit code 7
      SinkError         a port, a file or a disk cannot take what is sent        exit code 5
      IsolationError    the kernel does not enforce a restriction that must hold exit code 6
      Reject            one frame is dropped; the next one may be fine

Each message says what was wrong, what was expected, and what to do. Exit code 0 is a clean end, 1 an unexpected error,
or a failure that `edgesan doctor` found.
"""


class EdgesanError(Exception):
    """Base of all errors that edgesan raises on purpose."""

    exit_code = 1


class ConfigError(EdgesanError):
    """An option or the configuration file is wrong."""

    exit_code = 2


class CameraError(EdgesanError):
    """The camera cannot be opened or read."""

    exit_code = 3


class CameraLost(CameraError):
    """The camera stopped giving frames; it may come back."""


class EndOfStream(CameraError):
    """A file has no more frames. Not a fault: the run ends with exit code 0."""


class ModelError(EdgesanError):
    """The model file is not one that may be run."""

    exit_code = 4


class SignatureError(ModelError):
    """No trusted key signed these bytes."""


class RollbackError(ModelError):
    """A later version of the model ran here, or the record of versions cannot be read or written."""


class ModelStalled(ModelError):
    """A call of the network did not end in time, or found too little memory. The next one may."""

    exit_code = 7


class SinkError(EdgesanError):
    """A port, a file or a disk cannot take what is sent."""

    exit_code = 5


class IsolationError(EdgesanError):
    """The kernel does not enforce a restriction that must hold."""

    exit_code = 6


class Reject(EdgesanError):
    """One frame is dropped. `reason` is one word, for the counters."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"frame rejected ({reason}): {detail}")
        self.reason = reason
