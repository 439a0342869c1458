"""One training on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from export import checkpoint, data, train
from tests.export.support import small_recipe
from tests.support import ROOT

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2"),
    *("-m", "export.train"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_learn_as_one_does(
    people: data.Faces, tiny_networks: Path, clip_set: Path, tmp_path: Path
) -> None:
    """The command line itself, alone and under torchrun: the same curve within noise, and one log, one checkpoint."""
    small_recipe(tmp_path, steps=30, views=1, warmup_steps=30, more='sets = ["clip"]')
    arguments = [str(tmp_path / "small.toml"), "--data", str(clip_set), "--networks", str(tiny_networks), "--out"]
    two = subprocess.Popen(
        [*TORCHRUN, *arguments, str(tmp_path / "two")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    try:
        assert train.main([*arguments, str(tmp_path / "one")]) == 0  # meanwhile
        _, text = two.communicate()
    finally:
        two.kill()
    assert two.returncode == 0, f"{text[:6000]}\n[...]\n{text[-3000:]}"
    one_log, two_log = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for log in (one_log, two_log):
        assert [entry["stage"] for entry in log] == ["distill", "privatize", "decode"]
    first = float((people.chips.astype(float) / 255 - 0.5).__abs__().mean())  # a grey picture, as at the start
    assert one_log[2]["alpha 0"]["l1"] < 0.9 * first
    assert two_log[2]["alpha 0"]["l1"] == pytest.approx(one_log[2]["alpha 0"]["l1"], rel=0.1)
    assert checkpoint.load_checkpoint(tmp_path / "two").step == 90


@pytest.mark.slow
def test_an_error_is_printed_by_all_processes_and_none_hangs(
    tiny_networks: Path, clip_set: Path, tmp_path: Path
) -> None:
    small_recipe(tmp_path, steps=0, more='sets = ["clip"]')
    folders = ["--data", str(clip_set), "--networks", str(tiny_networks), "--out", str(tmp_path / "run")]
    command = [*TORCHRUN, str(tmp_path / "small.toml"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode != 0
    assert "error: distill_steps = 0 takes that stage over" in done.stderr
    assert "exitcode  : -6" not in done.stderr


AGREEMENT = """
from pathlib import Path

import torch
from torch import nn
from export.training import distributed

rank, _ = distributed.join()
torch.manual_seed(rank)
net = nn.Linear(3, 2)
alone = net.weight.sum().item()
distributed.agree(net)
parts = [part.sum() for part in distributed.mine(torch.arange(10).split(2))]
whole = distributed.total(torch.stack(parts).sum())
Path(__file__).with_name(f"{rank}.txt").write_text(f"{alone:.4f} {net.weight.sum().item():.4f} {whole.item()}")
distributed.leave()
"""


@pytest.mark.slow
def test_processes_agree_on_new_weights_and_share_what_they_encode(tmp_path: Path) -> None:
    (tmp_path / "agreement.py").write_text(AGREEMENT)
    command = [*TORCHRUN[:-2], str(tmp_path / "agreement.py")]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, capture_output=True, check=True, env=environment)
    said = [(tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1)]
    alone, agreed, total = (set(values) for values in zip(*said, strict=True))
    assert len(alone) == 2
    assert len(agreed) == 1
    assert total == {"45"}
