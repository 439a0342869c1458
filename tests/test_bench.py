"""`edgesan bench` measures what it says, on the real model and the real processes."""

import dataclasses
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results
from edgesan import bench, faces
from edgesan.bench import Clip
from edgesan.config import DEMO_MODEL, Config
from edgesan.model.load import Model, load_model


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_clip_shows_as_many_faces_as_it_says(count: int, detector: faces.Detector) -> None:
    found = [len(detector(pixels)) for pixels in bench.draw(Clip((640, 480), count))[::10]]
    assert np.median(found) == count


def test_a_run_is_measured_from_glass_to_wire() -> None:
    row = bench.wire(Clip((480, 270), 1), Config(), 1)
    assert (row.size, row.faces, row.found, row.viewers) == ("480x270", 1, 1, 1)
    assert 0 < row.ms["detect"].p50 <= row.loop
    assert row.ms["sanitize"].p50 < row.glass_to_wire.p99
    assert row.wall_bytes_per_s < 2048 * 60
    assert row.cpu_percent > 0
    assert row.memory_mb > 20
    assert row.first_frame_s > 0


@pytest.mark.slow
def test_the_command_measures_runs_and_names_machine_and_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgesan", "bench", "--part", "idle", "--seconds", "1", "--json"]
    path = tmp_path / "machine.json"
    path.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    measured = results.load(path)
    assert measured.machine == bench.machine()
    assert measured.model.sha256 == load_model(DEMO_MODEL).sha256
    assert [(row.faces, row.found, row.viewers) for row in measured.idle] == [
        (1, 1, 0),
        (1, 1, 1),
        (0, 0, 0),
        (0, 0, 1),
    ]
    assert all(row.size == "640x480" for row in measured.idle)
    assert json.loads(path.read_text()) == bench.plain(measured)
    assert "| size | faces | viewers | fps | cpu percent | memory mb |" in bench.text(measured)


def test_each_part_has_its_table() -> None:
    stored = results.load(next(results.FOLDER.glob("*-cores.json")))
    sample = bench.LongRow(5, 30.0, 6.0, 7.0, 8.0, 3.0, celsius=61.0)
    text = bench.text(dataclasses.replace(stored, long=[sample]))
    for heading in (
        "stages, 2 faces",
        "glass to wire, 30 frames a second",
        "idle: 15 frames a second",
        "long, 640x480",
    ):
        assert heading in text
    assert "| seconds | fps | p50 | p95 | p99 | detect | celsius |" in text
    assert "| 5 | 30 | 6 | 7 | 8 | 3 | 61 |" in text


def test_each_stage_can_be_called_alone(sanitizer_model: Model) -> None:
    with ExitStack() as stack:
        calls = bench.stage_calls(Clip((480, 270), 2), sanitizer_model, Config(), stack)
        assert {*bench.STAGES, "capture", "noise", "silhouette", "canvas", "frame", "jpeg", "send"} == calls.keys()
        assert bench.allocated(calls["frame"]) > 480 * 270 * 3 / 1e3, "a frame needs a canvas"
        for call in calls.values():
            call()
        assert calls["pipe"]() is not None, "the message comes out of the pipe"


def test_the_way_of_a_frame_paints_each_face_of_the_clip(sanitizer_model: Model) -> None:
    way = bench.pipeline(sanitizer_model, Config())
    counts = [way(pixels).stamps.faces for pixels in bench.draw(Clip((640, 480), 16))[:9]]
    assert counts == [2, 2, 4, 6, 8, 10, 12, 14, 16], "two new faces a frame, shown in the next"
