"""The loop: stages are resumed, taken over and repeated exactly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export import checkpoint, data
from export.errors import ExportError
from export.training.loop import OLD_STAGES, Options, train
from tests.export.support import small_recipe, small_training

pytestmark = pytest.mark.slow  # networks are trained

STAGES = ("distill", "privatize", "decode")


def test_the_three_stages_follow_each_other_and_are_logged(finished: Path) -> None:
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in log] == [(stage, 2) for stage in STAGES]
    assert checkpoint.load_checkpoint(finished).step == 6


def test_a_stage_of_no_steps_is_taken_over_from_another_training(
    finished: Path, people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    first = checkpoint.load_checkpoint(finished).sanitizer.state_dict()
    options = Options(tiny_networks, tmp_path / "second", start=finished, cache=targets)
    second = train(small_recipe(tmp_path, distill_steps=0), people, options).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first if "encoder" in key)
    assert not torch.equal(first["decoder.head.weight"], second["decoder.head.weight"])
    assert len(checkpoint.load_checkpoint(tmp_path / "second").started_from) == 64
    assert not list((tmp_path / "second").glob("targets*")), "the targets lie in the cache"


def test_a_stage_of_no_steps_is_taken_over_from_a_model_file(
    compiled: Path, people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    taken = checkpoint.unpack(compiled).state_dict()
    options = Options(tiny_networks, tmp_path / "second", start=compiled, cache=targets)
    second = train(small_recipe(tmp_path, distill_steps=0), people, options).state_dict()
    assert torch.equal(taken["encoder.head.weight"], second["encoder.head.weight"])
    assert not torch.equal(taken["decoder.head.weight"], second["decoder.head.weight"])
    options = Options(tiny_networks, tmp_path / "third", start=compiled, cache=targets)
    with pytest.raises(ExportError, match=r"has no readout, which the decoder needs, .* give privatize_steps"):
        train(small_recipe(tmp_path, distill_steps=0, privatize_steps=0), people, options)
    readout = checkpoint.load(tmp_path / "second" / "privatize.pt")["readout"]
    model = tmp_path / "model.onnx"
    model.write_bytes(compiled.read_bytes())
    checkpoint.save(tmp_path / "model.readout.pt", {"readout": readout})
    options = replace(options, start=model)
    third = train(small_recipe(tmp_path, distill_steps=0, privatize_steps=0), people, options).state_dict()
    assert torch.equal(taken["privatizer.linear.weight"], third["privatizer.linear.weight"])


def test_a_part_begins_anew_where_the_recipe_says_so(
    finished: Path, people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    first = checkpoint.load_checkpoint(finished).sanitizer.state_dict()
    wider = 'anew = ["decoder"]\ndecoder_hidden = 7'
    for name, line in (("same", ""), ("other", 'anew = ["decoder"]'), ("another shape", wider)):
        options = Options(tiny_networks, tmp_path / name, start=finished, cache=targets)
        r = small_recipe(tmp_path, distill_steps=0, privatize_steps=0, more=f"decode_lr = 1e-9\n{line}")
        found = train(r, people, options).state_dict()
        before, after = first["decoder.expand.weight"], found["decoder.expand.weight"]
        assert (before.shape == after.shape) == (name != "another shape")
        assert (name == "same") == (before.shape == after.shape and torch.allclose(before, after, atol=1e-4))
        assert torch.equal(first["privatizer.linear.weight"], found["privatizer.linear.weight"])


def test_a_stage_that_cannot_be_taken_over_is_refused(
    finished: Path, people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"distill_steps = 0 takes that stage over .* say which with --from"):
        small_training(small_recipe(tmp_path, distill_steps=0), people, tiny_networks, tmp_path / "x", targets)
    options = Options(tiny_networks, tmp_path / "x", start=finished, cache=targets)
    with pytest.raises(ExportError, match="another shape than this recipe: decoder"):
        train(small_recipe(tmp_path, distill_steps=0, code=5), people, options)


def test_a_training_that_was_stopped_goes_on_where_it_was(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    out, r = tmp_path / "run", small_recipe(tmp_path, steps=3)
    for step in (1, 2):
        train(r, people, Options(tiny_networks, out, minutes=0, cache=targets))  # stops, saved, after a step
        assert checkpoint.load(out / "distill.pt")["step"] == step
        assert not (out / "privatize.pt").exists()
    small_training(r, people, tiny_networks, out, targets)
    assert [checkpoint.load(out / f"{stage}.pt")["step"] for stage in STAGES] == [3, 3, 3]
    with pytest.raises(ExportError, match="made by another recipe"):
        small_training(replace(r, digest="another"), people, tiny_networks, out, targets)


def test_a_run_of_an_earlier_version_is_not_gone_on_with(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{OLD_STAGES['distill']}.pt").touch()
    with pytest.raises(ExportError, match=r"read.pt is of an earlier version, whose stage 'read' is now 'distill'"):
        small_training(small_recipe(tmp_path), people, tiny_networks, tmp_path, targets)


def test_training_is_reproducible(
    finished: Path, people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    first = checkpoint.load_checkpoint(finished).sanitizer.state_dict()
    r = small_recipe(tmp_path, steps=2)
    second = small_training(r, people, tiny_networks, tmp_path / "again", targets).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
