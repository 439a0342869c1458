"""The options as a program gives them, without a command line or a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesan
from edgesan.config import DEMO_MODEL, Config
from edgesan.errors import ConfigError


def test_a_program_may_name_a_model_by_a_text(tmp_path: Path) -> None:
    config: Any = {"model": str(DEMO_MODEL), "state_dir": str(tmp_path)}
    assert edgesan.Sanitizer(Config(**config)).model.sha256 == edgesan.load_model(str(DEMO_MODEL)).sha256
    with pytest.raises(edgesan.ModelError, match=r"cannot read the model nowhere\.onnx"):
        edgesan.load_model("nowhere.onnx")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("model", "san.onnx", Path("san.onnx")),
        ("camera", Path("walk.mp4"), "walk.mp4"),
        ("alpha", 1, 1.0),
        ("alpha", np.float32(0.25), 0.25),
        ("alpha", None, None),
        ("frames", np.int64(7), 7),
        ("out", "walk.mkv", ("walk.mkv",)),
        ("out", ["a.mkv", Path("b.mkv")], ("a.mkv", "b.mkv")),
    ],
)
def test_a_value_becomes_that_of_its_option(name: str, given: Any, kept: Any) -> None:
    value = getattr(Config(**{name: given}), name)
    assert (value, type(value)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("alpha", "0.5", "alpha = '0.5' has the wrong type: expected a number; privacy dial"),
        ("alpha", True, "expected a number"),
        ("threads", 1.5, "threads = 1.5 has the wrong type: expected a whole number"),
        ("threads", None, "expected a whole number"),
        ("allow_unsigned", 1, "expected true or false"),
        ("model", 5, "expected a text"),
        ("out", None, "expected a list of texts"),
        ("name", "a\0b", "name holds a zero byte"),
        ("frames", 2**53 + 1, "frames is too large a number"),
    ],
)
def test_a_value_of_another_type_is_an_error_of_edgesan(name: str, given: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{name: given})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://cam:hidden@0.0.0.0:8080",
        "http://:hidden@127.0.0.1:8080",
        "https://cam:hid/hidden@0.0.0.0:8080",
        "http://cam:hidden@0.0.0.0:99999",
        "HTTP://cam:hidden@0.0.0.0:8080",
        "http://0.0.0.0:8080/?token=hidden",
    ],
)
def test_the_login_of_an_address_is_refused_and_stands_in_no_message(address: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT|EDGESAN_TOKEN sets") as caught:
        Config(out=(address,))
    assert "hid" not in str(caught.value)


def test_no_secret_stands_in_the_message_about_its_type() -> None:
    given: Any = {"out": ["rtsp://cam:hidden@host/1", 5]}
    with pytest.raises(ConfigError) as caught:
        Config(**given)
    assert "hidden" not in str(caught.value)
