"""Loading a model: a clear error, or a model that reproduces its known answer."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesan import ort
from edgesan.config import DEMO_MODEL
from edgesan.errors import ModelError
from edgesan.model.load import (
    Encoder,
    Model,
    _little_memory,
    _session,
    known_inputs,
    load_decoder,
    load_encoder,
    load_model,
    prepare,
    verify,
)
from edgesan.ort import ORT_ERRORS
from tests.model import fuzz as fuzz_model
from tests.model.graphs import Damage, chain, check_refused, costly, ints, metadata, node


def extra_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("gender", TensorProto.FLOAT, ["N", 1]))


def extra_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", 784]))


def renamed_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "picture"


def float_face(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "face").type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "noise").type.tensor_type.shape.dim[0].dim_value = 1


def wrong_answer(proto: onnx.ModelProto) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    answer["samples"][0][4] = (answer["samples"][0][4] + 100) % 256
    metadata(proto, known_answer=answer)


def changed_weight(proto: onnx.ModelProto) -> None:
    largest = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))


def tolerant_answer(proto: onnx.ModelProto) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    metadata(proto, known_answer=answer | {"tolerance": 255})


def no_alpha(proto: onnx.ModelProto) -> None:
    proto.graph.input.remove(next(v for v in proto.graph.input if v.name == "alpha"))


def small_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 56


def one_dial(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "alpha").type.tensor_type.shape.dim[0].dim_value = 1


def future_type(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "alpha").type.tensor_type.elem_type = 999


def deep_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[" * 10**5


def list_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[1]"


def changed_samples(proto: onnx.ModelProto, change: Callable[[list[list[int]]], Any]) -> None:
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    metadata(proto, known_answer=answer | {"samples": change(answer["samples"])})


def short_answer(proto: onnx.ModelProto) -> None:
    changed_samples(proto, lambda samples: samples[:1])


def outside_answer(proto: onnx.ModelProto) -> None:
    changed_samples(proto, lambda samples: [[0, 112, 0, 0, 0], *samples])


def key_twice(proto: onnx.ModelProto) -> None:
    text = proto.metadata_props[0].value
    proto.metadata_props[0].value = f'{{"code": {{"tensor": "face", "bytes": 64}}, {text[1:]}'


def no_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def garbled_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "{"


def broken_graph(proto: onnx.ModelProto) -> None:
    next(n for n in proto.graph.node if n.op_type == "Conv").input[0] = "nowhere"


def nested_metadata(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[" * 100_000


def long_number(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "1" * 5000


def wide_noise(proto: onnx.ModelProto) -> None:
    next(v for v in proto.graph.input if v.name == "noise").type.tensor_type.shape.dim[1].dim_value = 2**40


def claim_of_a_huge_number(proto: onnx.ModelProto) -> None:
    metadata(proto, claims=[{"figure": "gender accuracy, sanitized", "value": 10**400, "attack": "x"}])


BAD: dict[str, tuple[Damage, str]] = {
    "one input too many": (extra_input, "its inputs are face, noise, alpha, gender"),
    "one input too few": (no_alpha, "its inputs are face, noise;"),
    "one output too many": (extra_output, "its outputs are sanitized, noise"),
    "a renamed output": (renamed_output, "its outputs are picture"),
    "float pixels": (float_face, "face is FLOAT [N, 112, 112, 3]; expected UINT8"),
    "a small picture": (small_output, "sanitized is UINT8 [N, 56, 112, 3]; expected"),
    "a dial for all faces at once": (one_dial, "alpha is FLOAT [1, 1]; expected FLOAT [N, 1]"),
    "a type of the future": (future_type, "alpha is of no known type"),
    "a fixed batch": (fixed_batch, "noise is FLOAT [1, 64]; expected FLOAT [N, Z]"),
    "no metadata": (no_metadata, "no `edgesan` metadata"),
    "metadata that is no JSON": (garbled_metadata, "not JSON"),
    "metadata that is too deep": (deep_metadata, "not JSON"),
    "metadata that is a list": (list_metadata, "has the format None"),
    "a format of the future": (lambda p: metadata(p, format=3), "has the format 3; this edgesan reads format 2"),
    "a format of the past": (lambda p: metadata(p, format=1), "convert it (python -m export.compile"),
    "a key that is named twice": (key_twice, "a key is named twice"),
    "a code without a name": (lambda p: metadata(p, code={"bytes": 64}), 'expected {"tensor": its name'),
    "a code that is a number": (lambda p: metadata(p, code=64), "code is 64, which is of the wrong type"),
    "a code of a truth": (
        lambda p: metadata(p, code={"tensor": "code", "bytes": True}),
        'expected {"tensor": its name',
    ),
    "no code": (lambda p: metadata(p, code=None), "lacks ['code']"),
    "a missing key": (lambda p: metadata(p, claims=None), "lacks ['claims']"),
    "an unknown key": (lambda p: metadata(p, licence="x"), "unknown ['licence']"),
    "a version of zero": (lambda p: metadata(p, version=0), "version is 0; expected a whole number from 1"),
    "a version that is a truth": (lambda p: metadata(p, version=True), "version is True, which is of the wrong type"),
    "a version with a fraction": (lambda p: metadata(p, version=1.5), "version is 1.5, which is of the wrong type"),
    "a name that is a number": (lambda p: metadata(p, name=7), "name is 7"),
    "a name that steers a terminal": (
        lambda p: metadata(p, name="\x1b[2Jok"),
        "holds '\\x1b[2Jok': at most 500 printable",
    ),
    "an empty private attribute": (lambda p: metadata(p, private=""), "private is ''"),
    "an alpha out of range": (lambda p: metadata(p, alpha_default=1.5), "alpha_default 1.5; expected 0 <= low"),
    "an alpha that is no number": (lambda p: metadata(p, alpha_default=float("nan")), "a number that is infinite"),
    "an alpha range of three": (lambda p: metadata(p, alpha_range=[0, 0.5, 1]), "alpha_range is [0, 0.5, 1]"),
    "an alpha range upside down": (lambda p: metadata(p, alpha_range=[1, 0]), "alpha_range is [1, 0]"),
    "claims that are words": (lambda p: metadata(p, claims=["private!"]), "must be an object"),
    "a claim of words in the worst set": (
        lambda p: metadata(p, claims=[{"value": 0.5, "in the worst set": "pins"}]),
        "numbers as its values",
    ),
    "another known answer": (wrong_answer, "wrong known answer"),
    "other weights": (changed_weight, "wrong known answer"),
    "an answer that tolerates all": (tolerant_answer, "waves-1"),
    "an answer of one sample": (short_answer, "at least 16 samples"),
    "an answer outside the picture": (outside_answer, "waves-1"),
    "an answer that is empty": (lambda p: metadata(p, known_answer={}), "lacks or garbles 'rule'"),
    "a graph that does not connect": (broken_graph, "does not depend on the face"),
    "metadata nested without end": (nested_metadata, "not JSON"),
    "metadata that is one long number": (long_number, "not JSON"),
    "metadata without end": (lambda p: metadata(p, name="x" * 300_000), "more than 262,144 characters"),
    "a version larger than any": (lambda p: metadata(p, version=2**60), "larger than 2^53"),
    "a claim larger than any number": (claim_of_a_huge_number, "larger than 2^53"),
    "a claim that is no number": (lambda p: metadata(p, claims=[{"value": float("nan")}]), "infinite"),
    "noise without end": (wide_noise, "1..4096"),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_bad_model_is_refused_in_words_of_its_own(damage: Damage, words: str, tmp_path: Path) -> None:
    check_refused(damage, words, tmp_path)


def test_there_are_many_ways_of_being_wrong() -> None:
    assert len({words for _, words in BAD.values()}) >= 20


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = DEMO_MODEL.read_bytes()
    files = {
        "missing.onnx": (None, "No such file"),
        "empty.onnx": (b"", "holds 0 bytes"),
        "text.onnx": (b"this is no model" * 10, "not an ONNX file"),
        "truncated.onnx": (whole[: len(whole) // 2], "not an ONNX file"),
        "picture.onnx": ((DEMO_MODEL.parent / "yunet.onnx").read_bytes(), "not a sanitizer"),
    }
    for name, (content, words) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ModelError, match=words):
            load_model(path, allow_unsigned=True)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as handle:
        os.truncate(handle.fileno(), 5 * 2**30)  # sparse
    with pytest.raises(ModelError, match="between 1 byte and 64 MiB"):
        load_model(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        load_model(tmp_path)


def test_every_onnxruntime_error_is_mapped() -> None:
    theirs = {
        value
        for value in vars(ort_errors).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value is not ort_errors.__dict__.get("DeviceReset")
    }
    assert theirs == set(ORT_ERRORS), "onnxruntime has exceptions that edgesan.ort does not list"


def test_the_same_face_and_noise_give_the_same_picture(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(3, sanitizer_model.noise_dimensions)

    together = sanitizer_model.run(chips, noise, 0.5)
    alone = np.concatenate([sanitizer_model.run(chips[i : i + 1], noise[i : i + 1], 0.5) for i in range(3)])

    np.testing.assert_array_equal(together, alone)


def test_noise_and_alpha_change_the_picture(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(1, sanitizer_model.noise_dimensions)
    first = sanitizer_model.run(chips, noise, 0.5).astype(int)

    assert np.abs(first - sanitizer_model.run(chips, -noise, 0.5)).mean() > 1
    assert np.abs(first - sanitizer_model.run(chips, noise, 1.0)).mean() > 1


def test_a_code_is_all_that_the_decoder_knows_of_a_face(sanitizer_model: Model) -> None:
    encoder, decoder = sanitizer_model.encoder, sanitizer_model.decoder
    assert {v.name for v in encoder._session.get_inputs()} == {"face", "noise", "alpha"}
    assert {v.name for v in decoder._session.get_inputs()} <= {"code", "alpha"}
    chips, noise = known_inputs(2, sanitizer_model.noise_dimensions)
    codes = encoder.encode(chips, noise, 0.5)
    assert [len(code) for code in codes] == [sanitizer_model.code_bytes] * 2
    np.testing.assert_array_equal(decoder.decode(codes, 0.5), sanitizer_model.run(chips, noise, 0.5))
    whole = _session(DEMO_MODEL, DEMO_MODEL.read_bytes(), 1)
    feed = {"face": chips, "noise": noise, "alpha": np.full((2, 1), 0.5, np.float32)}
    np.testing.assert_array_equal(decoder.decode(codes, 0.5), whole.run(None, feed)[0])


def test_each_half_is_loaded_alone() -> None:
    whole, encoder, decoder = load_model(DEMO_MODEL), load_encoder(DEMO_MODEL), load_decoder(DEMO_MODEL)
    assert encoder.id == decoder.id == whole.id == int(hashlib.sha256(DEMO_MODEL.read_bytes()).hexdigest()[:8], 16)
    chips, noise = known_inputs(2, whole.noise_dimensions)
    codes = encoder.encode(chips, noise, 0.25)
    assert codes == whole.encoder.encode(chips, noise, 0.25)
    np.testing.assert_array_equal(decoder.decode(codes, 0.25), whole.run(chips, noise, 0.25))


def test_a_decoder_paints_whatever_code_comes(sanitizer_model: Model) -> None:
    """All 256 values in every position."""
    width = sanitizer_model.code_bytes
    for level in range(256):
        (chip,) = sanitizer_model.decoder.decode([bytes((level + 37 * i) % 256 for i in range(width))], level / 255)
        assert (chip.shape, chip.dtype) == ((112, 112, 3), np.uint8)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_decoder_paints_any_code(sanitizer_model: Model, data: st.DataObject) -> None:
    width = sanitizer_model.code_bytes
    codes = data.draw(st.lists(st.binary(min_size=width, max_size=width), max_size=3))
    assert sanitizer_model.decoder.decode(codes, data.draw(st.floats(0, 1))).shape == (len(codes), 112, 112, 3)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_code_of_another_length_is_refused(sanitizer_model: Model, length: int) -> None:
    with pytest.raises(ModelError, match="another length than the 64 bytes"):
        sanitizer_model.decoder.decode([bytes(64), bytes(length)], 0.5)


def test_forty_faces_come_as_they_come_one_by_one(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(40, sanitizer_model.noise_dimensions)
    codes = sanitizer_model.encoder.encode(chips, noise, 0.5)
    assert codes[37:38] == sanitizer_model.encoder.encode(chips[37:38], noise[37:38], 0.5)
    painted = sanitizer_model.decoder.decode(codes, 0.5)
    np.testing.assert_array_equal(painted[37:38], sanitizer_model.decoder.decode(codes[37:38], 0.5))
    assert len(set(codes)) == 40


def test_no_faces_are_no_work(sanitizer_model: Model) -> None:
    chips, noise = known_inputs(0, sanitizer_model.noise_dimensions)
    assert sanitizer_model.encoder.encode(chips, noise, 0.5) == []
    assert sanitizer_model.decoder.decode([], 0.5).shape == (0, 112, 112, 3)


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_a_model_that_swaps_the_faces_of_a_batch_is_refused(where: str) -> None:
    """Each face gets its neighbour's code or picture. A network sees one face at a time, so its answer differs."""
    proto = onnx.load_model_from_string(fuzz_model.tiny())
    swapped, kept = ("code", "read") if where == "encoder" else ("sanitized", "painted")
    next(n for n in proto.graph.node if n.output[0] == swapped).output[0] = kept
    swap = node("Slice", [kept, "last", "before", "faces", "back"], [swapped])
    proto.graph.node.insert(2 if where == "encoder" else 4, swap)
    numbers = {"last": ints(-1), "before": ints(-(2**63)), "faces": ints(0), "back": ints(-1)}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    answer = json.loads(proto.metadata_props[0].value)["known_answer"]
    told = answer | {
        "codes": answer["codes"][::-1] if where == "encoder" else answer["codes"],
        "samples": [[1 - n, *rest] for n, *rest in answer["samples"]],
    }
    for words, sealed in (("the encoder|the decoder", told), ("the whole graph, all faces at once", answer)):
        metadata(proto, known_answer=sealed)
        with pytest.raises(ModelError, match=f"wrong known answer on this machine .({words})"):
            prepare(Path("x.onnx"), proto.SerializeToString())


def test_other_codes_are_another_answer() -> None:
    for change, words in (
        ((lambda code: bytes(x ^ 64 for x in code)), "wrong known answer"),
        ((lambda code: code[:-1]), "a code of"),
    ):
        proto = onnx.load(str(DEMO_MODEL))
        answer = json.loads(proto.metadata_props[0].value)["known_answer"]
        codes = [change(bytes.fromhex(code)).hex() for code in answer["codes"]]
        metadata(proto, known_answer=answer | {"codes": codes})
        with pytest.raises(ModelError, match=words):
            prepare(Path("x.onnx"), proto.SerializeToString())


def slow() -> bytes:
    """Within the bounds, and yet it takes its time: powers of a million numbers, again and again."""
    dial, matrix = node("Reshape", ["alpha", "one"], ["dial"]), node("Expand", ["dial", "large"], ["matrix"])
    powers = chain("Pow", 12, ["exponent"], "matrix")
    exponent = np.array([1.1], np.float32)
    return costly(dial, matrix, *powers, one=ints(-1, 1, 1), large=ints(1, 1000, 1000), exponent=exponent)


@pytest.fixture
def slow_encoder() -> Encoder:
    facts, halves = verify(Path("slow.onnx"), slow())
    return Encoder(**vars(facts), _session=_session(Path("slow.onnx"), halves.encoder.SerializeToString(), 1))


def ended(encoder: Encoder, whole_s: float) -> None:
    """Hold that a call which would take so long of the processor is ended in half of that."""
    started = time.process_time()
    with pytest.raises(ModelError, match="the model small failed: it took longer than"):
        encoder.encode(*known_inputs(1, 0), 0.5)
    assert time.process_time() - started < whole_s / 2


def test_each_call_that_takes_too_long_is_ended(slow_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.process_time()  # of the processor: a busy machine does not add to it
    slow_encoder.encode(*known_inputs(1, 0), 0.5)
    whole_s = time.process_time() - started
    monkeypatch.setattr("edgesan.model.load.LIMIT", ort.TimeLimit(whole_s / 8))
    ended(slow_encoder, whole_s)
    time.sleep(whole_s / 16)  # half of a sleep of the thread that watches
    ended(slow_encoder, whole_s)
    if not (pid := os.fork()):
        code = 1
        try:
            ended(slow_encoder, whole_s)  # a fork has no thread but its own
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_call_in_time_is_not_ended_for_one_before(slow_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesan.model.load.LIMIT", limit := ort.TimeLimit(0.01))
    ended(slow_encoder, 60)
    limit.seconds = 60
    assert slow_encoder.encode(*known_inputs(1, 0), 0.5)


def test_a_limit_of_the_memory_is_for_life_of_the_load_alone() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with _little_memory():
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        assert soft < 2**40
    assert resource.getrlimit(resource.RLIMIT_AS) == before
