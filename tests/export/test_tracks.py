"""What a track leaks."""

import numpy as np

from export import tracks
from export.audit.metrics import Separation


def test_a_track_shows_all_its_photos_also_in_few_codes() -> None:
    shown = np.arange(150) * 10 // 150
    assert {len(shown[part]) for part in tracks.LEFT.values()} == {1, 13, 150}
    assert set(shown[tracks.LEFT[tracks.CODES]]) == set(range(10))


def test_half_of_the_tracks_are_womens() -> None:
    man = np.array([True, False, True, True, False, True])
    assert tracks.half_women([[i] for i in range(6)], man, 4).ravel().tolist() == [1, 4, 0, 2]
    assert tracks.half_women([[i] for i in range(4)], man, 4).ravel().tolist() == [1, 0]


def test_the_table_of_tracks_has_a_line_for_each_amount_that_leaves() -> None:
    scores = dict.fromkeys(tracks.LEFT, Separation(0.9, (0.85, 0.95), 0.8, (0.75, 0.85)))
    name = tracks.ModelName("default", 5)
    report = tracks.TracksReport(name, 0.4, tracks.Plan(), {"one photo": tracks.Shown(7, scores)})
    lines = tracks.table(report).splitlines()
    assert len(lines) == 2 + len(tracks.LEFT)
    assert lines[2] == "| one photo | 7 | 1 picture | 80.0 [75.0..85.0] | 0.900 [0.850..0.950] |"
