"""How steady painted faces are, on the bundled clip."""

from pathlib import Path

import pytest

from edgesan.model.load import Model
from export import steady
from export.errors import ExportError
from export.steady import Clip, Steadiness
from tests.support import CLIP


def test_the_change_of_each_track_is_measured_beside_the_raw_faces(sanitizer_model: Model, tmp_path: Path) -> None:
    found = steady.followed(sanitizer_model, 0.4, CLIP)
    assert found.name == CLIP.name
    assert sum(t.pairs for t in found.tracks) > 60
    assert all(t.raw > 0.5 and t.sent > t.painted > 0.1 for t in found.tracks)
    assert steady.followed(sanitizer_model, 0.4, CLIP) == found, "the same noise, the same figures"
    assert list(tmp_path.iterdir()) == []


def test_a_clip_without_a_face_has_a_line_of_its_own() -> None:
    lines = steady.table([Clip("a.mp4", []), Clip("b.mp4", [Steadiness(3, 20, 4.0, 5.0, 6.0)])]).splitlines()
    assert lines[2] == "| a.mp4 | – | 0 | – | – | – | no face |"
    assert lines[3] == "| b.mp4 | 3 | 20 | 4.00 | 5.00 | 6.00 | no |"


def test_what_is_no_clip_is_refused(sanitizer_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no clip"):
        steady.clips_of([tmp_path])
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert steady.clips_of([tmp_path]) == [tmp_path / "empty.mp4"]
    with pytest.raises(ExportError, match="cannot be read as a clip"):
        steady.followed(sanitizer_model, 0.4, tmp_path / "empty.mp4")
