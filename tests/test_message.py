"""The message: what is valid crosses as it is, rounded; everything else is the one error."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesan import message
from edgesan.errors import Reject
from edgesan.message import (
    COUNTERS,
    MOST_BYTES,
    MOST_CODE,
    MOST_FACES,
    MOST_SIDE,
    SPANS,
    STEP,
    TURN,
    FaceCode,
    Latents,
    Place,
    Silhouette,
    Status,
)
from tests import fuzz_message

HEAD = fuzz_message.HEAD
STATUS = Status((0,) * len(COUNTERS), 1.5, 30.0, 0.5, ((1.0, 2.0, 3.0),) * len(SPANS), 7, 640, 480, b"\x01\x02")


def face(track: int = 1, code: bytes = bytes(64), **place: float) -> FaceCode:
    return FaceCode(track, Place(**({"x": 320.0, "y": 240.0, "side": 112.0, "roll": 0.0} | place)), code)


def frame(*faces: FaceCode, **changes: Any) -> Latents:
    return replace(Latents(1, 2, 3, 640, 480, 0.5, 4, faces), **changes)


examples = settings(max_examples=300, derandomize=True, database=None, deadline=None)


# --- what is valid ---


@st.composite
def frames(draw: st.DrawFn) -> Latents:
    """Any frame that fits, not rounded."""
    width, height = draw(st.integers(1, MOST_SIDE)), draw(st.integers(1, MOST_SIDE))
    columns = draw(st.integers(0, 255))
    rows = draw(st.integers(1, min(255, message.MOST_CELLS // columns))) if columns else 0
    cells = columns * rows
    bits = bytearray(draw(st.binary(min_size=-(-cells // 8), max_size=-(-cells // 8))))
    if cells % 8:
        bits[-1] &= 0xFF << (8 - cells % 8) & 0xFF
    size = draw(st.integers(1, MOST_CODE))
    tracks = draw(st.lists(st.integers(0, 65535), max_size=message.most_faces(size, cells), unique=True))
    places = st.builds(
        Place,
        st.floats(0, width - STEP / 2, exclude_max=True),
        st.floats(0, height - STEP / 2, exclude_max=True),
        st.floats(message.LEAST_FACE, 2 * MOST_SIDE),
        st.floats(0, math.tau),
    )
    faces = tuple(FaceCode(t, draw(places), draw(st.binary(min_size=size, max_size=size))) for t in sorted(tracks))
    words = st.integers(0, 2**32 - 1)
    return Latents(
        draw(words),
        draw(st.integers(0, 2**64 - 1)),
        draw(words),
        width,
        height,
        draw(st.floats(0, 1)),
        draw(words),
        faces,
        draw(words),
        Silhouette(columns, rows, bytes(bits)),
    )


@examples
@given(frames())
def test_any_frame_crosses_as_it_is_but_for_the_rounding(given_: Latents) -> None:
    content = message.pack(given_)
    parsed = message.parse(content)
    assert isinstance(parsed, Latents)
    assert len(content) <= MOST_BYTES
    assert message.pack(parsed) == content
    assert abs(parsed.alpha - given_.alpha) <= 0.5 / message.ALPHA_STEPS + 1e-12
    assert parsed.alpha == message.grid_alpha(given_.alpha)
    for before, after in zip(given_.faces, parsed.faces, strict=True):
        assert message.fits(before.place, given_.width, given_.height)
        assert message.fits(after.place, given_.width, given_.height)
        assert (after.track, after.code) == (before.track, before.code)
        for name in ("x", "y", "side"):
            assert abs(getattr(before.place, name) - getattr(after.place, name)) <= STEP / 2
        turned = abs(before.place.roll - after.place.roll)
        assert min(turned, math.tau - turned) <= math.tau / TURN / 2 + 1e-9
        assert 0 <= after.place.roll < math.tau
    assert replace(parsed, faces=(), alpha=0) == replace(given_, faces=(), alpha=0)


@examples
@given(
    st.builds(
        Status,
        st.tuples(*[st.integers(0, 2**64 - 1)] * len(COUNTERS)),
        st.floats(0, 1e300),
        st.floats(0, 1e9, width=32),
        st.integers(0, message.ALPHA_STEPS).map(lambda step: step / message.ALPHA_STEPS),
        st.tuples(*[st.tuples(*[st.floats(0, 1e9, width=32)] * 3)] * len(SPANS)),
        st.integers(0, 2**32 - 1),
        st.integers(0, MOST_SIDE),
        st.integers(0, MOST_SIDE),
        st.binary(max_size=message.MOST_RESULTS),
    )
)
def test_any_status_crosses_as_it_is(given_: Status) -> None:
    content = message.pack_status(given_)
    assert message.parse(content) == given_
    assert len(content) <= MOST_BYTES


def test_sixteen_faces_fit_into_one_atomic_write() -> None:
    faces = [face(track) for track in range(MOST_FACES)]
    grid = Silhouette(64, 48, bytes(384))
    content = message.pack(frame(*faces, silhouette=grid))
    assert len(content) == 36 + 16 * 74 + 384 == 1604
    assert len(content) <= MOST_BYTES < 4096, "PIPE_BUF"
    assert message.parse(content) == frame(*faces, silhouette=grid, alpha=message.grid_alpha(0.5))


@pytest.mark.parametrize(
    ("size", "cells", "most"), [(64, 0, 16), (64, 3072, 16), (128, 0, 14), (128, 3072, 11), (1, 3072, 16)]
)
def test_so_many_faces_fit_and_no_more(size: int, cells: int, most: int) -> None:
    assert message.most_faces(size, cells) == most
    grid = Silhouette(cells // 48, 48 if cells else 0, bytes(cells // 8))
    assert len(message.pack(frame(*(face(t, bytes(size)) for t in range(most)), silhouette=grid))) <= MOST_BYTES
    with pytest.raises(Reject):
        message.pack(frame(*(face(t, bytes(size)) for t in range(most + 1)), silhouette=grid))


def test_a_roll_just_below_a_full_turn_is_none() -> None:
    parsed = message.parse(message.pack(frame(face(roll=math.tau - 1e-9))))
    assert isinstance(parsed, Latents)
    assert parsed.faces[0].place.roll == 0.0


def test_the_alphas_that_a_message_can_say_stay_as_they_are() -> None:
    for step in (0, 1, 32767, 32768, 65534, 65535):
        assert message.grid_alpha(step / message.ALPHA_STEPS) == step / message.ALPHA_STEPS
        parsed = message.parse(message.pack(frame(alpha=step / message.ALPHA_STEPS)))
        assert parsed.alpha == step / message.ALPHA_STEPS


def test_a_frame_number_goes_round() -> None:
    parsed = message.parse(message.pack(frame(number=2**32 + 5)))
    assert isinstance(parsed, Latents)
    assert parsed.number == 5


def test_a_place_at_the_edge_fits_only_if_it_is_inside_once_it_is_rounded() -> None:
    for x, there in (
        (0.0, True),
        (639.8, True),
        (639.9, False),
        (640.0, False),
        (-0.1, False),
        (math.nan, False),
        (math.inf, False),
    ):
        assert message.fits(Place(x, 0.0, 50.0, 0.0), 640, 480) == there, x
    for side, there in (
        (3.9, False),
        (4.0, True),
        (2.0 * MOST_SIDE, True),
        (2.0 * MOST_SIDE + 1, False),
        (math.nan, False),
    ):
        assert message.fits(Place(0.0, 0.0, side, 0.0), 640, 480) == there, side


# --- what is not sent ---

OUT_OF_RANGE: dict[str, Latents] = {
    "seventeen faces": frame(*(face(t, b"x") for t in range(17))),
    "faces without a code": frame(face(code=b"")),
    "a code of 129 bytes": frame(face(code=bytes(129))),
    "codes of two lengths": frame(face(1, bytes(3)), face(2, bytes(4))),
    "codes of two lengths that add up": frame(face(1, bytes(4)), face(2, bytes(5)), face(3, bytes(3))),
    "a code that is too long by the bits that are missing": frame(
        face(1, b"x"), face(2, b"xx"), silhouette=Silhouette(4, 2)
    ),
    "too many bytes": frame(*(face(t, bytes(128)) for t in range(15))),
    "one track twice": frame(face(3), face(3)),
    "tracks that fall": frame(face(3), face(2)),
    "a track beyond its field": frame(face(65536)),
    "a track below zero": frame(face(-1)),
    "a face left of the picture": frame(face(x=-1)),
    "a face right of the picture": frame(face(x=640)),
    "a face below the picture": frame(face(y=480)),
    "a face that is none": frame(face(side=3.8)),
    "a face that is too large": frame(face(side=2 * MOST_SIDE + 1)),
    "a face nowhere": frame(face(x=math.nan)),
    "a face at infinity": frame(face(y=math.inf)),
    "a face turned without end": frame(face(roll=math.inf)),
    "no picture": frame(width=0),
    "a picture that is too wide": frame(width=MOST_SIDE + 1),
    "a picture that is too high": frame(height=MOST_SIDE + 1),
    "a picture beyond its field": frame(height=65536),
    "a negative picture": frame(height=-1),
    "a negative alpha": frame(alpha=-0.1),
    "an alpha above one": frame(alpha=1.1),
    "an alpha that is no number": frame(alpha=math.nan),
    "a capture before all time": frame(captured_ns=-1),
    "a capture after all time": frame(captured_ns=2**64),
    "a negative age": frame(age_us=-1),
    "an age of hours": frame(age_us=2**32),
    "a model beyond its field": frame(model=2**32),
    "a scene below zero": frame(scene=-1),
    "too many cells": frame(silhouette=Silhouette(64, 49, bytes(392))),
    "a grid beyond its field": frame(silhouette=Silhouette(256, 1, bytes(32))),
    "a grid of rows alone": frame(silhouette=Silhouette(0, 5)),
    "a grid without its bits": frame(silhouette=Silhouette(8, 2, b"x")),
    "bits without a grid": frame(silhouette=Silhouette(0, 0, b"x")),
    "bits behind the last cell": frame(silhouette=Silhouette(3, 3, b"\xff\xc0")),
}
STATUS_OUT_OF_RANGE: dict[str, dict[str, Any]] = {
    "a counter too few": {"counters": STATUS.counters[1:]},
    "a counter below zero": {"counters": (-1, *STATUS.counters[1:])},
    "a counter beyond its field": {"counters": (2**64, *STATUS.counters[1:])},
    "privacy while a camera is open": {"privacy": True},
    "the number of a switch that does not fit": {"switch": 256},
    "a duration too many": {"spans_ms": (*STATUS.spans_ms, (1.0, 2.0, 3.0))},
    "a duration below zero": {"spans_ms": ((-1.0, 2.0, 3.0), *STATUS.spans_ms[1:])},
    "a duration that is no number": {"spans_ms": ((math.nan, 2.0, 3.0), *STATUS.spans_ms[1:])},
    "a duration beyond its field": {"spans_ms": ((1e39, 2.0, 3.0), *STATUS.spans_ms[1:])},
    "an endless start": {"uptime_s": math.inf},
    "a rate below zero": {"fps": -1.0},
    "an alpha above one": {"alpha": 1.01},
    "a camera that is too large": {"width": MOST_SIDE + 1},
    "a model below zero": {"model": -1},
    "results that are too long": {"results": bytes(message.MOST_RESULTS + 1)},
    "results beyond their field": {"results": bytes(65536)},
}


@pytest.mark.parametrize("wrong", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_frame_with_a_value_out_of_range_is_not_sent(wrong: Latents) -> None:
    with pytest.raises(Reject) as caught:
        message.pack(wrong)
    assert caught.value.reason == "message"


@pytest.mark.parametrize("wrong", STATUS_OUT_OF_RANGE.values(), ids=STATUS_OUT_OF_RANGE)
def test_a_status_with_a_value_out_of_range_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(Reject):
        message.pack_status(replace(STATUS, **wrong))


# --- what is not read ---


def put(content: bytes, at: int, kind: str, value: float) -> bytes:
    changed = bytearray(content)
    struct.pack_into(f"<{kind}", changed, at, value)
    return bytes(changed)


TWO = message.pack(frame(face(1), face(9), silhouette=Silhouette(3, 3, b"\xff\x80")))
TOLD = message.pack_status(STATUS)
SPANS_AT = 2 + 8 * len(COUNTERS) + 8
NOT_READ: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "begins with nothing"),
    "one byte": (TWO[:1], "begins with 02"),
    "another version": (put(TWO, 0, "B", 1), "begins with 01; expected version 2"),
    "a kind of the future": (put(TWO, 1, "B", 3), "its kind is 3"),
    "half a head": (TWO[: HEAD - 1], "the head of a frame has 36"),
    "a byte too few": (TWO[:-1], "its head says"),
    "a byte too many": (TWO + b"\0", "its head says"),
    "a whole frame behind it": (TWO * 2, "its head says"),
    "a face more than it has": (put(TWO, 2, "B", 3), "its head says"),
    "a face less than it has": (put(TWO, 2, "B", 1), "its head says"),
    "seventeen faces": (put(TWO, 2, "B", 17), "17 faces"),
    "no faces with a code": (put(TWO, 2, "B", 0), "0 faces with codes of 64 bytes"),
    "faces without a code": (put(TWO, 3, "B", 0), "2 faces with codes of 0 bytes"),
    "another size of the codes": (put(TWO, 3, "B", 63), "its head says"),
    "a code of 129 bytes": (put(TWO, 3, "B", 129), "codes of 129 bytes"),
    "no picture": (put(TWO, 20, "H", 0), "a picture of 0x480"),
    "a picture that is too large": (put(TWO, 22, "H", MOST_SIDE + 1), "a picture of 640x7681"),
    "a grid that is too large": (put(put(TWO, 34, "B", 64), 35, "B", 49), "64x49 cells"),
    "a grid without rows": (put(TWO, 35, "B", 0), "3x0 cells"),
    "another grid": (put(TWO, 34, "B", 8), "its head says"),
    "a track twice": (put(TWO, HEAD, "H", 9), "track 9 after 9"),
    "tracks that fall": (put(TWO, HEAD, "H", 10), "track 9 after 10"),
    "a face outside": (put(TWO, HEAD + 2, "H", 2560), "outside a picture of 640x480"),
    "a face below": (put(TWO, HEAD + 4, "H", 1920), "outside a picture of 640x480"),
    "a face that is too small": (put(TWO, HEAD + 6, "H", 15), "a face lies at"),
    "a face that is too large": (put(TWO, HEAD + 6, "H", 8 * MOST_SIDE + 1), "a face lies at"),
    "a full turn": (put(TWO, HEAD + 8, "H", TURN), "a face lies at"),
    "a bit behind the last cell": (TWO[:-1] + b"\xc0", "behind the last cell"),
    "more than a message holds": (bytes(MOST_BYTES + 1), "2049 bytes"),
    "half a status": (TOLD[:50], "a status has at least"),
    "a status with a byte too many": (TOLD + b"\0", "3 bytes follow the status; it says 2"),
    "a status with a byte too few": (TOLD[:-1], "1 bytes follow the status; it says 2"),
    "a duration that is no number": (put(TOLD, SPANS_AT, "f", math.nan), "no number"),
    "a start that is infinite": (put(TOLD, SPANS_AT - 8, "d", math.inf), "infinite"),
    "a rate below zero": (put(TOLD, SPANS_AT, "f", -1.0), "negative"),
    "a frame that calls itself a status": (put(TWO, 1, "B", 2), "status"),
    "a status that calls itself a frame": (put(TOLD, 1, "B", 1), ""),
}


@pytest.mark.parametrize(("content", "words"), NOT_READ.values(), ids=NOT_READ)
def test_a_message_that_is_not_whole_and_in_order_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(Reject) as caught:
        message.parse(content)
    assert words in str(caught.value)


def test_a_message_cut_anywhere_is_refused() -> None:
    for content in (TWO, TOLD):
        for end in range(len(content)):
            with pytest.raises(Reject):
                message.parse(content[:end])


@settings(examples, max_examples=1000)
@given(st.binary(max_size=2100) | st.binary(max_size=200).map(lambda tail: b"\x01\x01" + tail))
def test_any_bytes_are_a_message_or_refused(content: bytes) -> None:
    fuzz_message.verdict(content)


@settings(examples, max_examples=1000)
@given(st.randoms(use_true_random=False), st.sampled_from([fuzz_message.frame, fuzz_message.status]))
def test_any_changed_message_is_read_or_refused(rng: Any, make: Callable[[Any], Latents | Status]) -> None:
    made = make(rng)
    content = message.pack(made) if isinstance(made, Latents) else message.pack_status(made)
    assert fuzz_message.verdict(content) == "parsed"
    fuzz_message.verdict(fuzz_message.change(rng, content))


def test_the_fuzzer_meets_both_sides_of_the_wall() -> None:
    """`make fuzz` tries a million."""
    counts = fuzz_message.run(1, 20_000)
    assert min(counts.values()) > 1000
