"""The reader of the model file: bytes from outside become a `Model` in one function, `load`; past it nobody checks.
It is read once: the bytes whose signature was verified (`edgesan.signing`) are the bytes that run.

A model is one ordinary ONNX file:

    input  face      uint8   [N, 112, 112, 3]   RGB, aligned
    input  noise     float32 [N, Z]             standard normal; absent in a deterministic model
    input  alpha     float32 [N, 1]             the dial, within alpha_range
    output sanitized uint8   [N, 112, 112, 3]   RGB

and, under the key `edgesan` of its metadata, a JSON object with exactly the keys of `Metadata`. Refused are: what nobody
who is trusted signed, anything that is no ONNX, another format, a missing or extra key, other tensors, external data, custom operators, randomness in
the graph, and a model that does not give its own known answer on this machine.
"""

import hashlib
import json
import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesan import signing
from edgesan.errors import ModelError
from edgesan.faces import CHIP, session_options
from edgesan.graph import check_graph

FORMAT: Final = 1
MOST_BYTES: Final = 64 * 2**20
MOST_METADATA: Final = 2**18  # characters of JSON
MOST_TEXT: Final = 500  # characters of one of its texts: they are printed, and shown on the page
MOST_NOISE: Final = 4096
MOST_MEMORY: Final = 2**30  # bytes, to prepare a session and try it
# onnxruntime's exceptions have no common base of their own (a test holds this list against the library).
ORT_ERRORS: Final = (
    ort_errors.EPFail, ort_errors.EngineError, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.ModelLoadCanceled, ort_errors.ModelLoaded, ort_errors.ModelRequiresCompilation,
    ort_errors.NoModel, ort_errors.NoSuchFile, ort_errors.NotFound, ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip


@dataclass(frozen=True)
class Metadata:
    """What the model says of itself: the JSON under its metadata key `edgesan`."""

    format: int
    name: str
    version: int
    alpha_range: tuple[float, float]
    alpha_default: float
    private: str
    utility: str
    claims: list[dict[str, Any]]
    known_answer: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def strongest_attack(self) -> str:
        """The best attacker among the claims, in words: what "private" is worth, as far as it was measured."""
        attacks = [c for c in self.claims if str(c.get("figure", "")).endswith("accuracy, sanitized") and "attack" in c]
        if not attacks:
            return "nobody has measured what this model hides"
        best = max(attacks, key=lambda claim: float(claim["value"]))
        return f"{self.private} is still read right in {100 * float(best['value']):.1f} % by the best attacker measured ({best['attack']})"


@dataclass(frozen=True)
class Model:
    """A verified sanitizer, ready to run."""

    metadata: Metadata
    noise_dimensions: int
    sha256: str
    parameters: int
    size_bytes: int
    signer: signing.Signer | None  # None: nobody signed it
    _session: ort.InferenceSession

    def run(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[np.generic]:
        """S(x, z, alpha) for all faces of a frame at once.

        Args:
            chips: uint8 [N, 112, 112, 3], RGB.
            noise: float32 [N, noise_dimensions].
            alpha: within metadata.alpha_range.

        Raises:
            ModelError: onnxruntime failed.
        """
        feed: dict[str, NDArray[Any]] = {"face": chips, "alpha": np.full((len(chips), 1), alpha, np.float32)}
        if self.noise_dimensions:
            feed["noise"] = noise
        try:
            result: NDArray[np.generic] = self._session.run(["sanitized"], feed)[0]
        except (*ORT_ERRORS, MemoryError) as error:
            raise ModelError(f"the model {self.metadata.name} failed on {len(chips)} faces: {error}") from error
        return result


def load(path: Path, threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False) -> Model:
    """Read, verify and prepare a model file. The bytes that were verified are the bytes that run.

    Args:
        path: the .onnx file; its signature lies beside it.
        threads: of the network.
        trusted_keys: public keys, as lines of text, besides the bundled one.
        allow_unsigned: also without a signature, or with a right one of a stranger; see `signing.verify`.

    Raises:
        SignatureError: nobody who is trusted signed the file as it is.
        ModelError: the file is not a sanitizer that this version of edgesan may run; the message says why.
        ConfigError: one of trusted_keys is no key.
    """
    trusted = [*signing.bundled(), *signing.configured(trusted_keys)]
    content = read(path)
    return prepare(path, content, threads, signing.verify(path, content, trusted, allow_unsigned=allow_unsigned))


def prepare(path: Path, content: bytes, threads: int = 1, signer: signing.Signer | None = None) -> Model:
    """The model that these bytes are, whoever made them: for those who make models. Others use `load`.

    Raises:
        ModelError: they are not a sanitizer that this version of edgesan may run; `path` is for the message.
    """
    graph, noise_dimensions, metadata = verify(path, content)
    with _little_memory():
        return _prepare(path, content, graph, noise_dimensions, metadata, threads, signer)


@contextmanager
def _little_memory() -> Iterator[None]:
    """The kernel refuses more than MOST_MEMORY beyond what there is: a small graph can ask for any amount."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _prepare(
    path: Path,
    content: bytes,
    graph: onnx.GraphProto,
    noise_dimensions: int,
    metadata: Metadata,
    threads: int,
    signer: signing.Signer | None,
) -> Model:
    """A session of verified bytes that gives the known answer."""
    try:
        session = ort.InferenceSession(content, session_options(threads), ["CPUExecutionProvider"])
    except (*ORT_ERRORS, MemoryError) as error:
        raise ModelError(f"{path} does not run: {error}; export it again") from error
    parameters = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    digest = hashlib.sha256(content).hexdigest()
    model = Model(metadata, noise_dimensions, digest, parameters, len(content), signer, session)
    check_known_answer(path, model)
    return model


def verify(path: Path, content: bytes) -> tuple[onnx.GraphProto, int, Metadata]:
    """The graph, its noise dimensions and the metadata of a file's bytes; `path` is for the messages.

    Raises:
        ModelError: it is not a sanitizer, or one that onnxruntime should not even see.
    """
    graph, texts = _parse(path, content)
    noise_dimensions, metadata = _check_tensors(path, graph), _metadata(path, texts)
    known_answer(path, metadata)
    return graph, noise_dimensions, metadata


def read(path: Path) -> bytes:
    """The bytes of a model file, read once.

    Raises:
        ModelError: it cannot be read, or is empty or far too large.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES:
            raise ModelError(f"{path} holds {size} bytes; a sanitizer has between 1 byte and {MOST_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}; name an edgesan .onnx file") from error


def _parse(path: Path, content: bytes) -> tuple[onnx.GraphProto, dict[str, str]]:
    """The graph and the metadata texts, once it is known to be plain ONNX that carries all of itself."""
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is no ONNX file, or a damaged one; get it again from where it came") from error
    check_graph(path, proto)
    return proto.graph, {entry.key: entry.value for entry in proto.metadata_props}


def _check_tensors(path: Path, graph: onnx.GraphProto) -> int:
    """Refuse other tensors than the contract's; the noise's dimensions, 0 if there is none."""
    initialized = {tensor.name for tensor in graph.initializer}
    tensors = {v.name: _describe(v) for v in graph.input if v.name not in initialized}
    outputs = {v.name: _describe(v) for v in graph.output}
    if tensors.keys() - {"noise"} != {"face", "alpha"}:
        names = ", ".join(tensors) or "none"
        raise ModelError(f"{path} is not a sanitizer: its inputs are {names}; expected face, noise (or none), alpha")
    if outputs.keys() != {"sanitized"}:
        names = ", ".join(outputs) or "none"
        raise ModelError(f"{path} is not a sanitizer: its outputs are {names}; expected sanitized alone")
    face = (onnx.TensorProto.UINT8, (None, CHIP, CHIP, 3))
    expected = {"face": face, "alpha": (onnx.TensorProto.FLOAT, (None, 1)), "sanitized": face}
    for name, contract in expected.items():
        given = (tensors | outputs)[name]
        if given != contract:
            raise ModelError(f"{path} is not a sanitizer: {name} is {_spell(*given)}; expected {_spell(*contract)}")
    if "noise" not in tensors:
        return 0
    kind, shape = tensors["noise"]
    fixed = shape[1] if kind == onnx.TensorProto.FLOAT and len(shape) == 2 and shape[0] is None else None
    if fixed is None or not 1 <= fixed <= MOST_NOISE:
        raise ModelError(
            f"{path}: noise is {_spell(kind, shape)}; expected FLOAT [N, Z] with N free and Z fixed, 1..{MOST_NOISE}"
        )
    return fixed


def _describe(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...]]:
    """Element type and shape of a graph's input or output; None is a free dimension."""
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _spell(kind: int, shape: tuple[int | None, ...]) -> str:
    """An element type and a shape for people."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return f"{names.get(kind, 'of no known type')} [{', '.join('N' if d is None else str(d) for d in shape)}]"


def _metadata(path: Path, texts: dict[str, str]) -> Metadata:
    """The verified metadata.

    Raises:
        ModelError: no metadata, another format, a missing or extra key, or a value of the wrong kind.
    """
    if "edgesan" not in texts:
        raise ModelError(f"{path} is not a sanitizer: it has no `edgesan` metadata; make one with export.compile")
    if len(texts["edgesan"]) > MOST_METADATA:
        raise ModelError(f"{path}: its metadata has more than {MOST_METADATA:,} characters; leave something out")
    try:
        table = json.loads(texts["edgesan"])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata is not JSON ({error})") from error
    _check_values(path, table)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        given = table.get("format") if isinstance(table, dict) else None
        raise ModelError(f"{path} has the format {given!r}; this edgesan reads format {FORMAT}: update one of them")
    names = {f.name for f in fields(Metadata)}
    if table.keys() != names:
        missing, extra = sorted(names - table.keys()), sorted(table.keys() - names)
        raise ModelError(f"{path}: its metadata lacks {missing} and has the unknown {extra}")
    kinds: dict[str, Any] = {
        "name": str, "version": int, "alpha_range": list, "alpha_default": (int, float), "private": str, "utility": str,
        "claims": list, "known_answer": dict, "provenance": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(table[key], kind) or isinstance(table[key], bool):
            raise ModelError(f"{path}: the metadata's {key} is {table[key]!r}, which is of the wrong type")
    for key in ("name", "private", "utility"):  # they are printed, and the name is kept by `edgesan.rollback`
        if not table[key] or not table[key].isprintable():
            raise ModelError(
                f"{path}: the metadata's {key} is {table[key]!r}: expected words, without control characters"
            )
    span = table["alpha_range"]
    numbers = len(span) == 2 and all(isinstance(a, int | float) and not isinstance(a, bool) for a in span)
    if not numbers or not 0 <= span[0] <= table["alpha_default"] <= span[1] <= 1:
        raise ModelError(
            f"{path}: alpha_range is {span} and alpha_default {table['alpha_default']}; expected 0 <= low <= default <= high <= 1"
        )
    if table["version"] < 1:
        raise ModelError(f"{path}: the metadata's version is {table['version']}; expected a whole number from 1")
    if not all(isinstance(claim, dict) and type(claim.get("value")) in (int, float) for claim in table["claims"]):
        raise ModelError(f"{path}: each of the metadata's claims must be an object with a number as its value")
    return Metadata(**(table | {"alpha_range": (float(span[0]), float(span[1]))}))


def _check_values(path: Path, table: Any) -> None:
    """Refuse texts that would steer a terminal or fill a page, and numbers that are none."""
    values = [table]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and not (value.isprintable() and len(value) <= MOST_TEXT):
            raise ModelError(f"{path}: its metadata holds {value[:40]!r}: at most {MOST_TEXT} printable characters")
        elif isinstance(value, int | float) and not abs(value) < 2**53:  # so NaN too
            raise ModelError(f"{path}: its metadata holds a number that is infinite, or larger than 2^53")


def known_inputs(count: int, noise_dimensions: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The inputs of the known answer, by rule "waves-1": chips [count, 112, 112, 3] and noise [count, Z].

    face[n, y, x, c] = (3 y + 5 x + 40 c + 60 n + y x div 32) mod 256; noise[n, i] = 1.5 sin(i + 1 + n).
    """
    n, y, x, c = np.ogrid[:count, :CHIP, :CHIP, :3]
    chips = ((3 * y + 5 * x + 40 * c + 60 * n + y * x // 32) % 256).astype(np.uint8)
    rows, columns = np.ogrid[:count, :noise_dimensions]
    return chips, (1.5 * np.sin(columns + 1.0 + rows)).astype(np.float32)


def known_answer(path: Path, metadata: Metadata) -> tuple[int, float, NDArray[np.int64], int]:
    """How many chips, the alpha, samples [n, 5] (index of an output value, and that value), and the tolerance.

    Raises:
        ModelError: it is missing or malformed.
    """
    answer = metadata.known_answer
    try:
        rule, count, alpha = answer["rule"], int(answer["count"]), float(answer["alpha"])
        samples = np.array(answer["samples"], np.int64)
        tolerance = int(answer["tolerance"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path}: its known answer lacks or garbles {error}; export it again") from error
    within = (CHIP, CHIP, 3, 256)
    if (
        rule != "waves-1" or not 1 <= count <= 4 or not 0 <= alpha <= 1 or not 0 <= tolerance <= 8
        or samples.ndim != 2 or samples.shape[1] != 5 or len(samples) < 16
        or (samples < 0).any() or (samples >= (count, *within)).any()
    ):  # fmt: skip
        raise ModelError(f"{path}: its known answer is not one of the rule waves-1 with at least 16 samples")
    return count, alpha, samples, tolerance


def check_known_answer(path: Path, model: Model) -> None:
    """Run the model on inputs that everybody can make and compare with what its maker saw.

    Raises:
        ModelError: the answer is another one: the file or this machine's arithmetic is wrong.
    """
    count, alpha, samples, tolerance = known_answer(path, model.metadata)
    chips, noise = known_inputs(count, model.noise_dimensions)
    output = model.run(chips, noise, alpha)
    if output.dtype != np.uint8 or output.shape != chips.shape:
        raise ModelError(f"{path} gave {output.dtype} {output.shape} for {count} chips, not uint8 {chips.shape}")
    at = tuple(samples[:, :4].T)
    worst = int(np.abs(output[at].astype(np.int64) - samples[:, 4]).max())
    if worst > tolerance:
        raise ModelError(
            f"{path} gives a wrong known answer on this machine: off by {worst} levels, {tolerance} allowed;"
            " the file is damaged, or this processor computes int8 differently: do not use it here"
        )
