"""The reader of the model file: bytes from outside become an `Encoder`, a `Decoder` or both (a `Model`) in one function;
past it nobody checks. It is read once: the bytes whose signature was verified (`edgesan.model.signing`) are the bytes that run.

A model is one ordinary ONNX file:

    input  face      uint8   [N, 112, 112, 3]   RGB, aligned
    input  noise     float32 [N, Z]             standard normal; absent in a deterministic model
    input  alpha     float32 [N, 1]             the dial, within alpha_range
    inner  code      uint8 or int8 [N, K]       K <= 128: all that the picture is painted from; named in the metadata
    output sanitized uint8   [N, 112, 112, 3]   RGB

and, under the key `edgesan` of its metadata, a JSON object with exactly the keys of `Metadata`. The graph is cut at the
code (`edgesan.model.cut`): the process that sees the camera gets the encoder, the one that serves the network the decoder.

Refused are: what nobody who is trusted signed, anything that is no ONNX, another format, a missing or extra key, other
tensors, external data, custom operators, randomness in the graph, a path from the face to the output around the code, costs
without a bound, and a model that does not give its own known answer on this machine.
"""

import hashlib
import json
import math
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgesan import ort
from edgesan.errors import ModelError
from edgesan.faces import CHIP
from edgesan.message import MOST_CODE
from edgesan.model import signing
from edgesan.model.cut import Halves, cut
from edgesan.model.graph import check_graph

FORMAT: Final = 2
MOST_BYTES: Final = 64 * 2**20
MOST_METADATA: Final = 2**18  # characters of JSON
MOST_TEXT: Final = 500  # characters of one of its texts: they are printed, and shown on the page
MOST_NOISE: Final = 4096
MOST_MEMORY: Final = 2**30  # bytes, to prepare a session and try it
CALL_S: Final = 5.0  # for one run of a network
CODE_TOLERANCE: Final = 2  # steps of 256 that a code may differ by between processors


@dataclass(frozen=True)
class Metadata:
    """What the model says of itself: the JSON under its metadata key `edgesan`."""

    format: int
    code: dict[str, Any]  # "tensor": its name in the graph, "bytes": K
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
class Verified:
    """What is known of a model file that may be run."""

    metadata: Metadata
    noise_dimensions: int
    code_bytes: int
    sha256: str
    parameters: int
    size_bytes: int
    signer: signing.Signer | None  # None: nobody signed it

    @property
    def id(self) -> int:
        """The number that a message names the model by: the first four bytes of its SHA-256."""
        return int(self.sha256[:8], 16)


@dataclass(frozen=True)
class Encoder(Verified):
    """The half that sees faces: chips, noise and the dial to codes."""

    _session: ort.InferenceSession

    def encode(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> list[bytes]:
        """The codes of faces, `code_bytes` each, with the noise in them.

        Args:
            chips: uint8 [N, 112, 112, 3], RGB.
            noise: float32 [N, noise_dimensions].
            alpha: within metadata.alpha_range.

        Raises:
            ModelError: onnxruntime failed, or took longer than CALL_S.
        """
        output = self.metadata.code["tensor"]
        codes: list[bytes] = []
        for chip, z in zip(chips, noise, strict=True):
            feed: dict[str, NDArray[Any]] = {"face": chip[None], "noise": z[None], "alpha": _dial(alpha)}
            codes.append(_run(self, self._session, output, feed).tobytes())
        return codes


@dataclass(frozen=True)
class Decoder(Verified):
    """The half that paints: codes and the dial to sanitized chips."""

    _session: ort.InferenceSession

    def decode(self, codes: Sequence[bytes], alpha: float) -> NDArray[np.uint8]:
        """Sanitized chips uint8 [N, 112, 112, 3], RGB, of codes of `code_bytes` each.

        Raises:
            ModelError: a code has another length, onnxruntime failed, or it took longer than CALL_S.
        """
        if any(len(code) != self.code_bytes for code in codes):
            raise ModelError(f"a code has another length than the {self.code_bytes} bytes of {self.metadata.name}")
        chips = np.empty((len(codes), CHIP, CHIP, 3), np.uint8)
        tensor = next(value for value in self._session.get_inputs() if value.name != "alpha")
        kind = np.int8 if tensor.type == "tensor(int8)" else np.uint8
        for chip, code in zip(chips, codes, strict=True):
            feed: dict[str, NDArray[Any]] = {tensor.name: np.frombuffer(code, kind)[None], "alpha": _dial(alpha)}
            chip[:] = _run(self, self._session, "sanitized", feed)[0]
        return chips


@dataclass(frozen=True)
class Model(Verified):
    """Both halves: for one's own pictures, and for who makes and measures models."""

    encoder: Encoder
    decoder: Decoder

    def run(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
        """S(x, z, alpha): sanitized chips uint8 [N, 112, 112, 3] of chips of that shape. Raises ModelError."""
        return self.decoder.decode(self.encoder.encode(chips, noise, alpha), alpha)


def _dial(alpha: float) -> NDArray[np.float32]:
    return np.full((1, 1), alpha, np.float32)


def _run(
    model: Verified, session: ort.InferenceSession, output: str, feed: dict[str, NDArray[Any]]
) -> NDArray[np.uint8]:
    """One call of a network, for one face: no network can mix two faces, nor grow with their number; and two at once would
    be no faster (2.50 ms a face alone, 2.42 among four). A second thread ends it after CALL_S: what was proven of its work
    knows no processor.
    """
    options = ort.RunOptions()

    def end() -> None:
        options.terminate = True

    timer = threading.Timer(CALL_S, end)
    timer.daemon = True
    timer.start()
    wanted = {value.name for value in session.get_inputs()}
    try:
        result: NDArray[np.uint8] = session.run([output], {k: v for k, v in feed.items() if k in wanted}, options)[0]
    except (*ort.ORT_ERRORS, MemoryError) as error:
        reason = f"it took longer than {CALL_S:g} s" if options.terminate else str(error)
        raise ModelError(f"the model {model.metadata.name} failed: {reason}; export it again, or smaller") from error
    finally:
        timer.cancel()
    return result


def load_model(
    path: Path, threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Model:
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
    content, signer = _signed(path, trusted_keys, allow_unsigned)
    return prepare(path, content, threads, signer)


def load_encoder(
    path: Path, threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Encoder:
    """As `load`, but only the half that sees faces."""
    content, signer = _signed(path, trusted_keys, allow_unsigned)
    facts, halves = verify(path, content, signer)
    with _little_memory():
        return _encoder(path, facts, halves, threads)


def load_decoder(
    path: Path, threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Decoder:
    """As `load`, but only the half that paints."""
    content, signer = _signed(path, trusted_keys, allow_unsigned)
    facts, halves = verify(path, content, signer)
    with _little_memory():
        return _decoder(path, facts, halves, threads)


def prepare(path: Path, content: bytes, threads: int = 1, signer: signing.Signer | None = None) -> Model:
    """The model that these bytes are, whoever made them: for those who make models. Others use `load`.

    Raises:
        ModelError: they are not a sanitizer that this version of edgesan may run; `path` is for the message.
    """
    facts, halves = verify(path, content, signer)
    with _little_memory():
        model = Model(
            **vars(facts),
            encoder=_encoder(path, facts, halves, threads),
            decoder=_decoder(path, facts, halves, threads),
        )
        chips, noise, alpha, samples, tolerance, _ = known_answer(path, model)
        _compare(path, "the two halves in turn", model.run(chips, noise, alpha), samples, tolerance)
        whole = _session(path, content, threads)
        feed: dict[str, NDArray[Any]] = {"face": chips, "noise": noise, "alpha": np.repeat(_dial(alpha), len(chips), 0)}
        _compare(path, "the whole, all faces at once", _run(model, whole, "sanitized", feed), samples, tolerance)
    return model


def _signed(path: Path, trusted_keys: Sequence[str], allow_unsigned: bool) -> tuple[bytes, signing.Signer | None]:
    trusted = [*signing.bundled(), *signing.configured(trusted_keys)]
    content = read(path)
    return content, signing.verify(path, content, trusted, allow_unsigned=allow_unsigned)


def verify(path: Path, content: bytes, signer: signing.Signer | None = None) -> tuple[Verified, Halves]:
    """What a file's bytes are, and the two halves of its graph: all that is proven before onnxruntime sees them.

    Raises:
        ModelError: they are not a sanitizer; `path` is for the message.
    """
    proto, texts = _parse(path, content)
    noise_dimensions, metadata = _check_tensors(path, proto.graph), _metadata(path, texts)
    halves = cut(path, proto, metadata.code["tensor"], metadata.code["bytes"])
    parameters = sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)
    digest = hashlib.sha256(content).hexdigest()
    facts = Verified(metadata, noise_dimensions, halves.code_bytes, digest, parameters, len(content), signer)
    return facts, halves


@contextmanager
def _little_memory() -> Iterator[None]:
    """The kernel refuses more than MOST_MEMORY beyond what there is, also where the bound of `edgesan.model.cut` were wrong."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _session(path: Path, content: bytes, threads: int) -> ort.InferenceSession:
    try:
        return ort.session(content, threads)
    except (*ort.ORT_ERRORS, MemoryError) as error:
        raise ModelError(f"{path} does not run: {error}; export it again") from error


def _encoder(path: Path, facts: Verified, halves: Halves, threads: int) -> Encoder:
    """A session of the first half that gives the known codes."""
    encoder = Encoder(**vars(facts), _session=_session(path, halves.encoder.SerializeToString(), threads))
    chips, noise, alpha, _, _, codes = known_answer(path, facts)
    given = np.frombuffer(b"".join(encoder.encode(chips, noise, alpha)), np.uint8)
    wanted = np.frombuffer(b"".join(codes), np.uint8)
    kind = np.int8 if halves.code_type == onnx.TensorProto.INT8 else np.uint8
    worst = int(np.abs(given.view(kind).astype(int) - wanted.view(kind)).max())
    if worst > CODE_TOLERANCE:
        raise _wrong(path, "the encoder", f"{worst} steps of a code", CODE_TOLERANCE)
    return encoder


def _decoder(path: Path, facts: Verified, halves: Halves, threads: int) -> Decoder:
    """A session of the second half that paints the known answer from the known codes."""
    decoder = Decoder(**vars(facts), _session=_session(path, halves.decoder.SerializeToString(), threads))
    _, _, alpha, samples, tolerance, codes = known_answer(path, facts)
    _compare(path, "the decoder", decoder.decode(codes, alpha), samples, tolerance)
    return decoder


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


def _parse(path: Path, content: bytes) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model and its metadata texts, once it is known to be plain ONNX that carries all of itself."""
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file, or a damaged one; download it again") from error
    check_graph(path, proto)
    return proto, {entry.key: entry.value for entry in proto.metadata_props}


def _check_tensors(path: Path, graph: onnx.GraphProto) -> int:
    """Refuse other tensors than the contract's; the noise's dimensions, 0 if there is none."""
    tensors = {v.name: _describe(v) for v in graph.input}
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
        table = json.loads(texts["edgesan"], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata is not JSON ({error})") from error
    _check_values(path, table)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        given = table.get("format") if isinstance(table, dict) else None
        raise ModelError(
            f"{path} has the format {given!r}; this edgesan reads format {FORMAT}: lay it out anew (python -m export.compile"
            f" {path.name} --out NEW), or update edgesan"
        )
    names = {f.name for f in fields(Metadata)}
    if table.keys() != names:
        missing, extra = sorted(names - table.keys()), sorted(table.keys() - names)
        raise ModelError(f"{path}: its metadata lacks {missing} and has the unknown {extra}")
    kinds: dict[str, Any] = {
        "code": dict, "name": str, "version": int, "alpha_range": list, "alpha_default": (int, float), "private": str, "utility": str,
        "claims": list, "known_answer": dict, "provenance": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(table[key], kind) or isinstance(table[key], bool):
            raise ModelError(f"{path}: the metadata's {key} is {table[key]!r}, which is of the wrong type")
    for key in ("name", "private", "utility"):  # they are printed, and the name is kept by `edgesan.model.rollback`
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
    code = table["code"]
    if code.keys() != {"tensor", "bytes"} or type(code["tensor"]) is not str or type(code["bytes"]) is not int:
        raise ModelError(
            f'{path}: the metadata\'s code is {code}; expected {{"tensor": its name, "bytes": 1..{MOST_CODE}}}'
        )
    return Metadata(**(table | {"alpha_range": (float(span[0]), float(span[1]))}))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are all different: readers differ about which of two counts."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key is named twice among {[key for key, _ in pairs][:20]}")
    return dict(pairs)


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


def known_answer(
    path: Path, model: Verified
) -> tuple[NDArray[np.uint8], NDArray[np.float32], float, NDArray[np.int64], int, list[bytes]]:
    """The known inputs (chips, noise, alpha); samples [n, 5] of the output (index and value) and their tolerance; the codes.

    Raises:
        ModelError: it is missing or malformed.
    """
    answer = model.metadata.known_answer
    try:
        rule, count, alpha = answer["rule"], int(answer["count"]), float(answer["alpha"])
        samples = np.array(answer["samples"], np.int64)
        tolerance = int(answer["tolerance"])
        codes = [bytes.fromhex(text) for text in answer["codes"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path}: its known answer lacks or garbles {error}; export it again") from error
    within = (CHIP, CHIP, 3, 256)
    if (
        rule != "waves-1" or not 1 <= count <= 4 or not 0 <= alpha <= 1 or not 0 <= tolerance <= 8
        or samples.ndim != 2 or samples.shape[1] != 5 or len(samples) < 16
        or (samples < 0).any() or (samples >= (count, *within)).any()
        or [len(code) for code in codes] != [model.code_bytes] * count
    ):  # fmt: skip
        raise ModelError(
            f"{path}: its known answer is not one of the rule waves-1 with at least 16 samples and a code of"
            f" {model.code_bytes} bytes for each chip"
        )
    return *known_inputs(count, model.noise_dimensions), alpha, samples, tolerance, codes


def _compare(path: Path, what: str, output: NDArray[Any], samples: NDArray[np.int64], tolerance: int) -> None:
    """Compare an output with what the model's maker saw.

    Raises:
        ModelError: the answer is another one: the file or this machine's arithmetic is wrong.
    """
    count = int(samples[:, 0].max()) + 1
    if output.dtype != np.uint8 or output.ndim != 4 or len(output) < count or output.shape[1:] != (CHIP, CHIP, 3):
        raise ModelError(f"{path} gave {output.dtype} {output.shape}, not uint8 [N, {CHIP}, {CHIP}, 3]")
    at = tuple(samples[:, :4].T)
    worst = int(np.abs(output[at].astype(np.int64) - samples[:, 4]).max())
    if worst > tolerance:
        raise _wrong(path, what, f"{worst} levels", tolerance)


def _wrong(path: Path, what: str, off: str, tolerance: int) -> ModelError:
    return ModelError(
        f"{path} gives a wrong known answer on this machine ({what}): off by {off}, {tolerance} allowed; the file is damaged,"
        " or this processor computes int8 differently: do not use it here"
    )
