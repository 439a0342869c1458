"""Load a model file: bytes from outside become an `Encoder`, a `Decoder` or both (a `Model`).

All checks are here. The file is read once: the bytes whose signature is verified (`edgesan.model.signing`) are the
bytes that run. A model is one ordinary ONNX file:

    input  face      uint8   [N, 112, 112, 3]   RGB, aligned
    input  noise     float32 [N, Z]             standard normal; absent in a deterministic model
    input  alpha     float32 [N, 1]             the dial, within alpha_range
    inner  code      uint8 or int8 [N, K]       K <= 128; named in the metadata; the output depends on it alone
    output sanitized uint8   [N, 112, 112, 3]   RGB

Its metadata has a key `edgesan`: a JSON object with exactly the fields of `Metadata`. The graph is cut at the code
(`edgesan.model.cut`). The process that sees the camera gets the encoder, and the one that serves the network the
decoder.

Refused are: a file without a trusted signature, anything that is not ONNX, another format, a missing or extra key,
other tensors, external data, custom operators, randomness in the graph, a path from the face to the output around the
code, unbounded costs, and a model that does not reproduce its own known answer on this machine.
"""

import hashlib
import json
import math
import os
import resource
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
from edgesan.errors import ModelError, ModelStalled
from edgesan.faces import CHIP
from edgesan.message import MOST_CODE
from edgesan.model import signing
from edgesan.model.cut import Halves, cut
from edgesan.model.graph import check_graph

FORMAT: Final = 2
MOST_BYTES: Final = 64 * 2**20
MOST_METADATA: Final = 2**18  # characters of JSON
MOST_TEXT: Final = 500  # characters of one text in it: texts are printed, and shown on the page
MOST_NOISE: Final = 4096
MOST_MEMORY: Final = 2**30  # bytes, to prepare a session and test it
LIMIT: Final = ort.TimeLimit(5.0)  # seconds for one call of a network
CODE_TOLERANCE: Final = 2  # steps of 256 that a code may differ by between processors


IN_THE_WORST_SET: Final = "in the worst set"  # of a claim about strangers: the value in the set where it is highest


@dataclass(frozen=True)
class Metadata:
    """The model's description of itself: the JSON under its metadata key `edgesan`."""

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
        """The best attackers among the claims, in words: how well the private attribute is hidden."""
        attacks = [c for c in self.claims if str(c.get("figure", "")).endswith("accuracy, sanitized") and "attack" in c]
        if not attacks:
            return "nobody has measured what this model hides"
        best = max(attacks, key=_value)
        said = f"{self.private} is still read right in {100 * _value(best):.1f} % by the best attacker measured"
        unknown = [c for c in self.claims if c.get("figure") == f"{self.private} of strangers, balanced"]
        if not unknown:
            return f"{said} ({best['attack']})"
        worst = max(float(claim.get(IN_THE_WORST_SET, claim["value"])) for claim in unknown)
        return f"{said} ({best['attack']}), who knows the people; of strangers in {100 * worst:.1f} % at most"

    @property
    def audited(self) -> list[dict[str, Any]]:
        """The points of the dial that were measured, rising: the best attacker, and what the service still gets there.

        Measured on strangers where the claims have any, else on the people of the training, whom an attacker knows
        (`people`). The utility is that of the matcher that does worst.
        """
        points = []
        for alpha in sorted({float(c["alpha"]) for c in self.claims if type(c.get("alpha")) in (int, float)}):
            here = [c for c in self.claims if c.get("alpha") == alpha]
            for people, private, useful in (
                ("strangers", f"{self.private} of strangers, balanced", "stranger named in a household of eight"),
                ("people of the training", f"{self.private} accuracy, sanitized", f"{self.utility} top1, sanitized"),
            ):
                attacks = [c for c in here if c.get("figure") == private and "attack" in c]
                services = [c for c in here if c.get("figure") == useful]
                if attacks and services:
                    best, worst = max(attacks, key=_value), min(services, key=_value)
                    point = {"alpha": alpha, "private_accuracy": _value(best), "attacker": best["attack"]}
                    points.append(point | {"utility": _value(worst), "useful": useful, "people": people})
                    break
        return points


def _value(claim: dict[str, Any]) -> float:
    return float(claim["value"])


@dataclass(frozen=True)
class Verified:
    """The facts about a model file that may be run."""

    metadata: Metadata
    noise_dimensions: int
    code_bytes: int
    sha256: str
    parameters: int
    size_bytes: int
    signer: signing.Signer | None  # None: it is not signed

    @property
    def id(self) -> int:
        """The number that names the model in a message: the first four bytes of its SHA-256."""
        return int(self.sha256[:8], 16)


@dataclass(frozen=True)
class Encoder(Verified):
    """The half that sees faces: from chips, noise and alpha to codes."""

    _session: ort.InferenceSession

    def encode(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> list[bytes]:
        """Return the codes of faces, `code_bytes` each, which contain the noise.

        Args:
            chips: uint8 [N, 112, 112, 3], RGB.
            noise: float32 [N, noise_dimensions].
            alpha: within metadata.alpha_range.

        Raises:
            ModelError: onnxruntime failed.
            ModelStalled: it took longer than LIMIT.
        """
        output = self.metadata.code["tensor"]
        codes: list[bytes] = []
        for chip, z in zip(chips, noise, strict=True):
            feed: dict[str, NDArray[Any]] = {"face": chip[None], "noise": z[None], "alpha": _dial(alpha)}
            codes.append(_run(self, self._session, output, feed).tobytes())
        return codes

    def mean(self, codes: Sequence[bytes]) -> bytes:
        """Return the mean of codes of one face under one noise, which is a code like each of them.

        Raises:
            ModelError: a code has another length.
        """
        _check_lengths(self, codes)
        kind = _code_type(self._session.get_outputs()[0].type)
        numbers = np.stack([np.frombuffer(code, kind) for code in codes])
        return bytes(numbers.mean(0).round().astype(kind))


@dataclass(frozen=True)
class Decoder(Verified):
    """The half that paints: from codes and alpha to sanitized chips."""

    _session: ort.InferenceSession

    def decode(self, codes: Sequence[bytes], alpha: float) -> NDArray[np.uint8]:
        """Return sanitized chips, uint8 [N, 112, 112, 3] in RGB, from codes of `code_bytes` each.

        Raises:
            ModelError: a code has another length, or onnxruntime failed.
            ModelStalled: it took longer than LIMIT.
        """
        _check_lengths(self, codes)
        chips = np.empty((len(codes), CHIP, CHIP, 3), np.uint8)
        tensor = next(value for value in self._session.get_inputs() if value.name != "alpha")
        kind = _code_type(tensor.type)
        for chip, code in zip(chips, codes, strict=True):
            feed: dict[str, NDArray[Any]] = {tensor.name: np.frombuffer(code, kind)[None], "alpha": _dial(alpha)}
            chip[:] = _run(self, self._session, "sanitized", feed)[0]
        return chips


@dataclass(frozen=True)
class Model(Verified):
    """Both halves in one process: for pictures of one's own, and to make and measure models."""

    encoder: Encoder
    decoder: Decoder

    def run(self, chips: NDArray[np.uint8], noise: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
        """Return S(x, z, alpha): sanitized chips, uint8 [N, 112, 112, 3] in RGB.

        Args:
            chips: uint8 [N, 112, 112, 3], RGB.
            noise: float32 [N, noise_dimensions].
            alpha: within metadata.alpha_range.

        Raises:
            ModelError: onnxruntime failed.
            ModelStalled: it took longer than LIMIT.
        """
        return self.decoder.decode(self.encoder.encode(chips, noise, alpha), alpha)


def _dial(alpha: float) -> NDArray[np.float32]:
    return np.full((1, 1), alpha, np.float32)


def _check_lengths(model: Verified, codes: Sequence[bytes]) -> None:
    if any(len(code) != model.code_bytes for code in codes):
        raise ModelError(f"a code has another length than the {model.code_bytes} bytes of {model.metadata.name}")


def _code_type(named: str) -> type[np.int8 | np.uint8]:
    """Return the type of a code's numbers, which a session names."""
    return np.int8 if named == "tensor(int8)" else np.uint8


def _run(
    model: Verified, session: ort.InferenceSession, output: str, feed: dict[str, NDArray[Any]]
) -> NDArray[np.uint8]:
    """Run a network for one face, so that it can neither mix faces nor grow with their number.

    Several faces at once would be no faster (2.50 ms a face alone, 2.42 among four). LIMIT ends the call: the bound on
    its work says nothing about the speed of the processor.
    """
    wanted = {value.name for value in session.get_inputs()}
    try:
        result: NDArray[np.uint8] = LIMIT.run(session, [output], {k: v for k, v in feed.items() if k in wanted})[0]
    except ort.ORT_ERRORS as error:
        raise ModelError(f"the model {model.metadata.name} failed: {error}; export it again") from error
    except (TimeoutError, MemoryError) as error:
        raise ModelStalled(
            f"the model {model.metadata.name} failed: {error or 'too little memory'}; end other programs, or export a"
            " smaller one"
        ) from error
    return result


def load_model(
    path: str | os.PathLike[str], threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Model:
    """Read, verify and prepare a model file. The bytes that were verified are the bytes that run.

    Args:
        path: the .onnx file; its signature is beside it.
        threads: how many threads the network may use.
        trusted_keys: public keys, as lines of text, beside the bundled one.
        allow_unsigned: also accept a model without a signature, or with an untrusted one; see `signing.verify`.

    Raises:
        SignatureError: no trusted key signed the file as it is.
        ModelError: the file is not a model that this version of edgesan may run; the message says why.
        ConfigError: one of trusted_keys is not a key.
    """
    path = Path(path)
    content, signer = _signed(path, trusted_keys, allow_unsigned)
    return prepare(path, content, threads, signer)


def load_encoder(
    path: str | os.PathLike[str], threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Encoder:
    """Load only the half that sees faces; otherwise as `load_model`."""
    path = Path(path)
    facts, halves = verify(path, *_signed(path, trusted_keys, allow_unsigned))
    with _little_memory():
        return _encoder(path, facts, halves, threads)


def load_decoder(
    path: str | os.PathLike[str], threads: int = 1, trusted_keys: Sequence[str] = (), *, allow_unsigned: bool = False
) -> Decoder:
    """Load only the half that paints; otherwise as `load_model`."""
    path = Path(path)
    facts, halves = verify(path, *_signed(path, trusted_keys, allow_unsigned))
    with _little_memory():
        return _decoder(path, facts, halves, threads)


def prepare(path: Path, content: bytes, threads: int = 1, signer: signing.Signer | None = None) -> Model:
    """Prepare a model from its bytes without checking a signature: for makers of models. Others use `load_model`.

    Raises:
        ModelError: the bytes are not a model that this version of edgesan may run; `path` is for the message.
    """
    facts, halves = verify(path, content, signer)
    with _little_memory():
        model = Model(
            **vars(facts),
            encoder=_encoder(path, facts, halves, threads),
            decoder=_decoder(path, facts, halves, threads),
        )
        known = known_answer(path, model)
        _compare(path, "the two halves in turn", model.run(known.chips, known.noise, known.alpha), known)
        whole = _session(path, content, threads)
        dial = np.repeat(_dial(known.alpha), len(known.chips), 0)
        feed: dict[str, NDArray[Any]] = {"face": known.chips, "noise": known.noise, "alpha": dial}
        _compare(path, "the whole graph, all faces at once", _run(model, whole, "sanitized", feed), known)
    return model


def _signed(path: Path, trusted_keys: Sequence[str], allow_unsigned: bool) -> tuple[bytes, signing.Signer | None]:
    trusted = [*signing.bundled(), *signing.configured(trusted_keys)]
    content = read(path)
    return content, signing.verify(path, content, trusted, allow_unsigned=allow_unsigned)


def verify(path: Path, content: bytes, signer: signing.Signer | None = None) -> tuple[Verified, Halves]:
    """Do all checks that come before ONNX Runtime sees the bytes; return the facts and the two halves of the graph.

    Raises:
        ModelError: the bytes are not a model; `path` is for the message.
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
    """Have the kernel refuse more than MOST_MEMORY, in case that the bound of `edgesan.model.cut` is wrong."""
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
    """Make a session of the first half, and check that it reproduces the known codes."""
    encoder = Encoder(**vars(facts), _session=_session(path, halves.encoder.SerializeToString(), threads))
    known = known_answer(path, facts)
    given = np.frombuffer(b"".join(encoder.encode(known.chips, known.noise, known.alpha)), np.uint8)
    wanted = np.frombuffer(b"".join(known.codes), np.uint8)
    kind = np.int8 if halves.code_type == onnx.TensorProto.INT8 else np.uint8
    worst = int(np.abs(given.view(kind).astype(int) - wanted.view(kind)).max())
    if worst > CODE_TOLERANCE:
        raise _wrong(path, "the encoder", f"{worst} steps of a code", CODE_TOLERANCE)
    return encoder


def _decoder(path: Path, facts: Verified, halves: Halves, threads: int) -> Decoder:
    """Make a session of the second half, and check that it paints the known answer from the known codes."""
    decoder = Decoder(**vars(facts), _session=_session(path, halves.decoder.SerializeToString(), threads))
    known = known_answer(path, facts)
    _compare(path, "the decoder", decoder.decode(known.codes, known.alpha), known)
    return decoder


def read(path: Path) -> bytes:
    """Read a model file.

    Raises:
        ModelError: it cannot be read, is empty, or is far too large.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES:
            raise ModelError(f"{path} holds {size} bytes; a sanitizer has between 1 byte and {MOST_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}; name an edgesan .onnx file") from error


def _parse(path: Path, content: bytes) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return the graph and its metadata texts, once it is known to be one plain ONNX graph."""
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file, or a damaged one; download it again") from error
    check_graph(path, proto)
    return proto, {entry.key: entry.value for entry in proto.metadata_props}


def _check_tensors(path: Path, graph: onnx.GraphProto) -> int:
    """Refuse other inputs and outputs than a model's; return the dimensions of the noise, 0 if there is none."""
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
    """Return the element type and shape of an input or output; None is a free dimension."""
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _spell(kind: int, shape: tuple[int | None, ...]) -> str:
    """Write an element type and a shape for people."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return f"{names.get(kind, 'of no known type')} [{', '.join('N' if d is None else str(d) for d in shape)}]"


KINDS: Final[dict[str, Any]] = {
    "code": dict,
    "name": str,
    "version": int,
    "alpha_range": list,
    "alpha_default": (int, float),
    "private": str,
    "utility": str,
    "claims": list,
    "known_answer": dict,
    "provenance": dict,
}
"""The JSON types of the fields of `Metadata`, except `format`."""


def _metadata(path: Path, texts: dict[str, str]) -> Metadata:
    """Return the checked metadata.

    Raises:
        ModelError: there is no metadata, it has another format or a missing or extra key, or a value is wrong.
    """
    if "edgesan" not in texts:
        raise ModelError(f"{path} is not a sanitizer: it has no `edgesan` metadata; make one with export.compile")
    if len(texts["edgesan"]) > MOST_METADATA:
        raise ModelError(f"{path}: its metadata has more than {MOST_METADATA:,} characters; shorten it")
    try:
        table = json.loads(texts["edgesan"], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata is not JSON ({error})") from error
    _check_values(path, table)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        given = table.get("format") if isinstance(table, dict) else None
        raise ModelError(
            f"{path} has the format {given!r}; this edgesan reads format {FORMAT}: convert it"
            f" (python -m export.compile {path.name} --out NEW), or update edgesan"
        )
    names = {f.name for f in fields(Metadata)}
    if table.keys() != names:
        missing, extra = sorted(names - table.keys()), sorted(table.keys() - names)
        raise ModelError(f"{path}: its metadata lacks {missing} and has the unknown {extra}")
    for key, kind in KINDS.items():
        if not isinstance(table[key], kind) or isinstance(table[key], bool):
            raise ModelError(f"{path}: the metadata's {key} is {table[key]!r}, which is of the wrong type")
    _check_metadata(path, table)
    low, high = table["alpha_range"]
    return Metadata(**(table | {"alpha_range": (float(low), float(high))}))


def _check_metadata(path: Path, table: dict[str, Any]) -> None:
    """Check the values of a table that has the right keys and types. Raises ModelError."""
    for key in ("name", "private", "utility"):  # they are printed, and `edgesan.model.rollback` records the name
        if not table[key] or not table[key].isprintable():
            raise ModelError(
                f"{path}: the metadata's {key} is {table[key]!r}: expected text without control characters"
            )
    span, default = table["alpha_range"], table["alpha_default"]
    numbers = len(span) == 2 and all(isinstance(a, int | float) and not isinstance(a, bool) for a in span)
    if not numbers or not 0 <= span[0] <= default <= span[1] <= 1:
        raise ModelError(
            f"{path}: alpha_range is {span} and alpha_default {default}; expected 0 <= low <= default <= high <= 1"
        )
    if table["version"] < 1:
        raise ModelError(f"{path}: the metadata's version is {table['version']}; expected a whole number from 1")
    if not all(isinstance(claim, dict) and "value" in claim and _has_numbers(claim) for claim in table["claims"]):
        raise ModelError(f"{path}: each of the metadata's claims must be an object with numbers as its values")
    code = table["code"]
    if code.keys() != {"tensor", "bytes"} or type(code["tensor"]) is not str or type(code["bytes"]) is not int:
        raise ModelError(
            f'{path}: the metadata\'s code is {code}; expected {{"tensor": its name, "bytes": 1..{MOST_CODE}}}'
        )


def _has_numbers(claim: dict[str, Any]) -> bool:
    """Return whether a claim has numbers where numbers are read."""
    return all(type(claim[key]) in (int, float) for key in ("value", IN_THE_WORST_SET) if key in claim)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, and refuse a key that comes twice: programs differ about which of the two counts."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key is named twice among {[key for key, _ in pairs][:20]}")
    return dict(pairs)


def _check_values(path: Path, table: Any) -> None:
    """Refuse texts that could control a terminal or fill a page, and numbers that are not finite."""
    values = [table]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and not (value.isprintable() and len(value) <= MOST_TEXT):
            raise ModelError(f"{path}: its metadata holds {value[:40]!r}: at most {MOST_TEXT} printable characters")
        elif isinstance(value, int | float) and not abs(value) < 2**53:  # refuses NaN, too
            raise ModelError(f"{path}: its metadata holds a number that is infinite, or larger than 2^53")


def known_inputs(count: int, noise_dimensions: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the inputs of the known answer by the rule "waves-1": chips [count, 112, 112, 3] and noise [count, Z].

    face[n, y, x, c] = (3 y + 5 x + 40 c + 60 n + y x div 32) mod 256; noise[n, i] = 1.5 sin(i + 1 + n).
    """
    n, y, x, c = np.ogrid[:count, :CHIP, :CHIP, :3]
    chips = ((3 * y + 5 * x + 40 * c + 60 * n + y * x // 32) % 256).astype(np.uint8)
    rows, columns = np.ogrid[:count, :noise_dimensions]
    return chips, (1.5 * np.sin(columns + 1.0 + rows)).astype(np.float32)


@dataclass(frozen=True)
class KnownAnswer:
    """The inputs that everybody can make, and what the model made of them on its maker's machine."""

    chips: NDArray[np.uint8]  # [N, 112, 112, 3]
    noise: NDArray[np.float32]  # [N, Z]
    alpha: float
    samples: NDArray[np.int64]  # [n, 5]: index into the output [N, 112, 112, 3], and the value there
    tolerance: int  # levels of 256 by which a sample may differ
    codes: list[bytes]  # one for each chip


def known_answer(path: Path, model: Verified) -> KnownAnswer:
    """Read the known answer from the metadata.

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
    in_range = rule == "waves-1" and 1 <= count <= 4 and 0 <= alpha <= 1 and 0 <= tolerance <= 8
    sampled = samples.ndim == 2 and samples.shape[1] == 5 and len(samples) >= 16
    inside = sampled and bool((samples >= 0).all() and (samples < (count, CHIP, CHIP, 3, 256)).all())
    if not in_range or not inside or [len(code) for code in codes] != [model.code_bytes] * count:
        raise ModelError(
            f"{path}: its known answer does not follow the rule waves-1, with at least 16 samples and a code of"
            f" {model.code_bytes} bytes for each chip; export it again"
        )
    return KnownAnswer(*known_inputs(count, model.noise_dimensions), alpha, samples, tolerance, codes)


def _compare(path: Path, what: str, output: NDArray[Any], known: KnownAnswer) -> None:
    """Compare an output with the samples that the model's maker recorded.

    Raises:
        ModelError: they differ: the file or this machine's arithmetic is wrong.
    """
    count = int(known.samples[:, 0].max()) + 1
    if output.dtype != np.uint8 or output.ndim != 4 or len(output) < count or output.shape[1:] != (CHIP, CHIP, 3):
        raise ModelError(f"the output of {path} is {output.dtype} {output.shape}, not uint8 [N, {CHIP}, {CHIP}, 3]")
    at = tuple(known.samples[:, :4].T)
    worst = int(np.abs(output[at].astype(np.int64) - known.samples[:, 4]).max())
    if worst > known.tolerance:
        raise _wrong(path, what, f"{worst} levels", known.tolerance)


def _wrong(path: Path, what: str, off: str, tolerance: int) -> ModelError:
    return ModelError(
        f"{path} gives a wrong known answer on this machine ({what}): off by {off}, {tolerance} allowed; the file is"
        " damaged, or this processor computes int8 differently: do not use it here"
    )
