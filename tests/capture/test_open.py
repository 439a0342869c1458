"""What `--camera` may name, and how it is refused: `edgesan.capture.open_source`."""

import traceback

import pytest

from edgesan.capture import open_source
from edgesan.errors import CameraError, ConfigError


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", ConfigError, "give an index"),
        ("picamera:x", ConfigError, "picamera or picamera:1"),
        ("ftp://host/clip.mp4", ConfigError, "rtsp, rtsps, http, https can be opened"),
        ("rtsp://", ConfigError, "malformed URL"),
        ("rtsp://host:99999/", ConfigError, "malformed URL"),
        ("987654", CameraError, "there is no /dev/video987654; cameras here: .*demo"),
        ("/dev/video987654", CameraError, "there is no /dev/video987654; cameras here: .*demo"),
        ("no-such-clip", CameraError, "there is no no-such-clip; cameras here"),
        ("/tmp", CameraError, "/tmp is neither a camera nor a file"),
        ("http://127.0.0.1:1/", CameraError, "no process fetches from it"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_to_do(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        open_source(spec, None, None)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "url",
    [
        "http://root:s3cret@127.0.0.1:1/video?user=root&pwd=s3cret",
        "http://127.0.0.1:1/user=root_password=s3cret_channel=1",
        "rtsp://root:s3cret@127.0.0.1:99999/",
        "rtsp://root:12/s3cret@127.0.0.1/",
        "ftp://root:s3cret@127.0.0.1/",
    ],
)
def test_a_password_is_in_no_message(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((CameraError, ConfigError)) as caught:
        open_source(url, None, None)
    messages = [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    printed = "".join(messages) + "".join(capfd.readouterr())
    assert "s3cret" not in printed
    assert "root" not in printed


def test_a_device_that_is_no_camera_is_refused() -> None:
    with pytest.raises(CameraError, match=r"another program holds it .*fuser -v /dev/null"):
        open_source("/dev/null", None, None)
