"""The audit: its figures by hand, its attackers on planted leaks, its baselines and its bound."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edgesan.config import DEMO_MODEL
from edgesan.model.load import prepare
from edgesan.render import PLAIN
from export import data, figures, missed, tracks
from export.audit import attackers, attributes, cells, clip, device, measure, mechanisms, metrics, protocol, splits
from export.audit.attackers import Chips, Convolutional, Lesson, Linear
from export.errors import ExportError

HALF = np.arange(512) % 2 == 0


def test_scores_agree_with_their_definitions() -> None:
    odds = np.array([2.0, 1.0, -1.0, -2.0, 0.5, -0.5])
    truth = np.array([True, True, False, False, False, True])
    s = metrics.scores(odds, truth, (odds, truth), np.arange(6))
    assert s["accuracy"] == pytest.approx(4 / 6)
    assert s["balanced"] == pytest.approx(4 / 6)
    assert s["auc"] == pytest.approx(8 / 9)  # of 9 pairs one is the wrong way round
    assert 0 < s["leak_nats"] < math.log(2)
    assert metrics.auc(np.zeros(6), truth) == 0.5  # ties tell nothing


def test_a_confident_attacker_that_knows_nothing_leaks_nothing() -> None:
    random = np.random.default_rng(0)
    truth = random.random(4000) < 0.56
    odds = 30 * random.standard_normal(4000)
    assert abs(metrics.information(odds[:2000], truth[:2000], odds[2000:], truth[2000:]).mean()) < 0.005


def test_an_attacker_that_knows_everything_leaks_the_entropy() -> None:
    truth = np.random.default_rng(0).random(1000) < 0.56
    told = metrics.information(np.where(truth, 5.0, -5.0), truth, np.where(truth, 5.0, -5.0), truth).mean()
    p = truth.mean()
    assert told == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)), abs=0.01)


def test_intervals_are_wider_when_a_persons_pictures_stand_or_fall_together() -> None:
    right = np.repeat(np.random.default_rng(0).random(50) < 0.7, 10).astype(float)
    truth = np.arange(500) % 20 < 10
    (together,) = metrics.bootstrap(np.repeat(np.arange(50), 10), truth, right)["mean"]
    (alone,) = metrics.bootstrap(np.arange(500), truth, right)["mean"]
    assert alone[0] < right.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_pooling_averages_log_odds_over_groups_of_one_person() -> None:
    people = np.array([0, 0, 0, 1, 1, 1])
    truth = people == 0
    odds = np.array([3.0, -1.0, 1.0, -3.0, 1.0, -1.0])
    result = metrics.pooled(odds, truth, people, (1, 2, 3, 4))
    assert result["1"] == {"balanced": pytest.approx(2 / 3), "people": 2}
    assert result["2"]["balanced"] == 1.0
    assert result["3"]["balanced"] == 1.0
    assert "4" not in result  # nobody has so many


def test_verification_accepts_as_many_impostors_as_it_says() -> None:
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(40, 64))
    people = np.repeat(np.arange(40), 4)
    seen = torch.nn.functional.normalize(centres[people] + 0.12 * torch.randn(160, 64))
    tar = metrics.tar_at_far(seen, seen, people, (1e-1, 1e-2))
    assert tar["0.1"] > tar["0.01"] > 0.5
    strangers = torch.nn.functional.normalize(torch.randn(160, 64))
    assert metrics.tar_at_far(strangers, seen, people, (1e-1,))["0.1"] == pytest.approx(0.1, abs=0.05)


def test_structural_similarity_is_one_for_the_same_and_falls_with_blur() -> None:
    chips = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    assert metrics.ssim(chips, chips) == pytest.approx(1)
    weak, strong = (mechanisms.blur(s).apply(chips, HALF[:3], 0) for s in (0.5, 4))
    assert 1 > metrics.ssim(chips, weak) > metrics.ssim(chips, strong)


@pytest.mark.parametrize("budget", [0.1, 0.4, 0.8])
def test_the_bound_is_the_line_where_the_person_determines_the_attribute(budget: float) -> None:
    table = np.array([[0.2, 0.0], [0.2, 0.0], [0.16, 0.0], [0.0, 0.24], [0.0, 0.2]])
    entropy = -(0.56 * math.log(0.56) + 0.44 * math.log(0.44))
    loss, told = metrics.smallest_loss(table, budget)
    assert told <= budget + 1e-3
    assert loss == pytest.approx(max(0.0, entropy - budget), abs=0.02)


def test_the_bound_of_a_label_table_is_the_line_that_descent_finds() -> None:
    person = np.repeat(np.arange(5), [20, 20, 16, 24, 20])
    truth = np.isin(person, [0, 1, 2])
    c = splits.ClosedSet(data.Faces(np.empty(0), {}), person, truth, truth, truth, truth)
    found = protocol.bound(c)
    entropy = -(0.56 * math.log(0.56) + 0.44 * math.log(0.44))
    assert found["entropy_nats"] == pytest.approx(entropy)
    joint = np.stack([np.bincount(person[truth == man], minlength=5) for man in (False, True)], 1) / 100
    assert found["points"][0] == [0.0, pytest.approx(entropy)]
    assert found["points"][-1] == [pytest.approx(entropy), pytest.approx(0)]
    (loss,) = (loss for budget, loss in found["points"] if budget == 0.2)
    assert loss == pytest.approx(entropy - 0.2)
    assert loss == pytest.approx(metrics.smallest_loss(joint, 0.2)[0], abs=0.02)


def test_the_bound_of_a_table_that_people_share_is_found_by_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people, each of whom is a man in half of the pictures: nothing need be lost."""
    monkeypatch.setattr(protocol, "BUDGETS", (0.2,))
    person, truth = np.repeat([0, 1], 20), np.tile([True, False], 20)
    c = splits.ClosedSet(data.Faces(np.empty(0), {}), person, truth, truth, truth, truth)
    assert protocol.bound(c)["points"] == [[0.2, pytest.approx(0, abs=0.02)]]


def test_the_bound_is_nothing_where_the_attribute_is_independent() -> None:
    loss, told = metrics.smallest_loss(np.full((3, 2), 1 / 6), 0.0)
    assert loss == pytest.approx(0, abs=0.02)
    assert told == pytest.approx(0, abs=1e-3)


def marked(n: int, seed: int) -> tuple[Chips, np.ndarray]:
    """A planted cheat: the very same face for all, but for one pixel that tells the class."""
    random = np.random.default_rng(seed)
    truth = random.random(n) < 0.5
    face = np.random.default_rng(9).integers(90, 160, (112, 112, 3)).astype(np.uint8)
    chips = np.repeat(face[None], n, 0)
    chips[truth, 60, 50] = 255
    return chips, truth


def test_a_fresh_attacker_finds_a_mark_of_one_pixel() -> None:
    (train, truth), (val, val_truth), (test, test_truth) = (
        marked(n, seed) for n, seed in ((512, 0), (64, 1), (128, 2))
    )
    lesson = Lesson([train], truth, val, val_truth)
    judge = attackers.fit(Linear(), lesson, epochs=8, seed=0, rate=1e-3, name="test")
    assert ((judge(test) > 0) == test_truth).mean() > 0.95


def test_a_fresh_network_finds_a_mark_that_moves() -> None:
    random = np.random.default_rng(0)
    truth = random.random(640) < 0.5
    chips = random.integers(90, 160, (640, 112, 112, 3)).astype(np.uint8)
    for i in np.flatnonzero(truth):
        y, x = random.integers(20, 80, 2)
        chips[i, y : y + 8, x : x + 8] = 255
    lesson = Lesson([chips[:448]], truth[:448], chips[448:512], truth[448:512])
    judge = attackers.fit(Convolutional(4), lesson, epochs=8, seed=0, rate=2e-3, name="test")
    assert ((judge(chips[512:]) > 0) == truth[512:]).mean() > 0.9


def test_a_fresh_attacker_finds_nothing_where_nothing_is() -> None:
    chips, truth = marked(512, 0)
    chips[:, 60, 50] = 128
    lesson = Lesson([chips[:320]], truth[:320], chips[320:384], truth[320:384])
    judge = attackers.fit(Convolutional(4), lesson, epochs=2, seed=0, rate=2e-3, name="test")
    assert len(np.unique(judge(chips[384:]) > 0)) == 1  # the same picture, the same verdict


def test_a_probe_reads_an_embedding_that_tells() -> None:
    torch.manual_seed(0)
    truth = HALF
    seen = torch.randn(512, 16)
    seen[:, 3] += torch.from_numpy(np.where(truth, 3.0, -3.0)).float()
    seen = torch.nn.functional.normalize(seen)
    net = attackers.probe([seen[:256]], truth[:256], seen[256:384], truth[256:384])
    assert ((net.odds(seen[384:]) > 0) == truth[384:]).mean() > 0.95


def test_an_attacker_that_is_told_the_noise_gets_all_of_it() -> None:
    z = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    chips = np.zeros((2, 112, 112, 3), np.uint8)
    told = attackers.with_noise(chips, z)
    assert told.shape == (2, 112, 112, 4)
    np.testing.assert_array_equal(told[..., :3], chips)
    plane = (told[:, ::4, ::4, 3].astype(float) - 128) / 32
    np.testing.assert_allclose(plane.reshape(2, 784)[:, :64], z, atol=0.02)


def test_recovery_undoes_what_can_be_undone() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (256, 28, 28, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    undo = attackers.restore(255 - raw[:192], raw[:192], epochs=20, seed=0)
    before = np.abs((255 - raw[192:]).astype(int) - raw[192:]).mean()
    assert np.abs(undo(255 - raw[192:]).astype(int) - raw[192:]).mean() < 0.5 * before


def test_float32_beside_int8_is_the_same_face_from_the_same_noise() -> None:
    """Of a model file alone: its own weights, in float32. Another draw of the noise is eight times as far away."""
    chips, model = clip.two_people()[0], prepare(DEMO_MODEL, DEMO_MODEL.read_bytes(), threads=1)
    truth = np.zeros(len(chips), bool)
    beside, shipped = mechanisms.trained(DEMO_MODEL, 0.4), mechanisms.sanitizer(model, 0.4)
    int8 = shipped.apply(chips, truth, 3).astype(int)
    assert np.abs(beside.apply(chips, truth, 3) - int8).mean() < 2
    assert np.abs(beside.apply(chips, truth, 4) - int8).mean() > 5
    assert beside.stochastic


def test_the_baselines_do_what_they_say() -> None:
    random = np.random.default_rng(0)
    chips = random.integers(0, 256, (64, 112, 112, 3)).astype(np.uint8)
    blocks = mechanisms.pixelate(8).apply(chips, HALF[:64], 0)
    assert np.all(blocks.reshape(64, 8, 14, 8, 14, 3).std((2, 4)) == 0)
    assert np.abs(blocks[:, ::14, ::14].astype(float) - chips.reshape(64, 8, 14, 8, 14, 3).mean((2, 4))).max() <= 1

    grey = np.full((64, 112, 112, 3), 128, np.uint8)
    noisy = mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 0)  # Laplace of scale 255 * 16 / (256 * 2) = 8
    assert np.abs(noisy[:, ::16, ::16].astype(float) - 128).mean() == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 0))
    assert not np.array_equal(noisy, mechanisms.dp_pix(2.0).apply(grey, HALF[:64], 1))


def test_calibration_undoes_overconfidence_and_a_wrong_prior() -> None:
    random = np.random.default_rng(0)
    truth = random.random(20000) < 0.5
    honest = np.where(truth, 0.8, -0.8) + 2**0.5 * 0.8**0.5 * random.standard_normal(20000)  # their own log-odds
    fitted = metrics.calibrated(5 * honest + 3, (5 * honest + 3)[:10000], truth[:10000])
    np.testing.assert_allclose(fitted, honest, atol=0.15)


def test_quartiles_are_told_for_each_truth() -> None:
    p, truth = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0]), HALF[:6] & False | (np.arange(6) > 2)
    assert measure.quartiles(p, truth) == {"F": [0.05, 0.1, 0.15], "M": [0.85, 0.9, 0.95]}


def test_a_statement_cuts_a_column_in_two() -> None:
    faces = data.Faces(np.empty(4), {"age": np.array(["44", "45", "", "60"]), "gender": np.array(["M", "F", "M", ""])})
    truth, known = attributes.statement("age>=45").of(faces)
    assert (truth.tolist(), known.tolist()) == ([False, True, False, True], [True, True, False, True])
    truth, known = attributes.statement("gender=M").of(faces)
    assert (truth.tolist(), known.tolist()) == ([True, False, True, False], [True, True, True, False])
    for text in ("age", "age>=old", "age<3", "a=b=c"):
        with pytest.raises(ExportError, match="is no statement about a column"):
            attributes.statement(text)


def test_a_limited_closed_set_keeps_a_fifth_for_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    split = np.repeat(["train", "val", "test", ""], [80, 20, 30, 10])
    everyone = data.Faces(np.zeros((140, 1), np.uint8), {
        "closed_set_split": split, "identity": np.array([f"p{i % 7}" for i in range(140)]), "gender": np.array(["M", "F"] * 70),
    })  # fmt: skip
    monkeypatch.setattr(
        data, "load_set", lambda folder, name: everyone.where(np.arange(140) % 3 == "lgp".index(name[0]))
    )
    c = splits.closed_set(Path(), 100)
    assert (int(c.train.sum()), int(c.val.sum()), int(c.test.sum())) == (67, 13, 20)
    assert len(splits.closed_set(Path(), None).faces) == 130
    few = c.fewer(40)
    assert int((few & c.train).sum()) == 40
    assert few[~c.train].all(), "those that are judged stay the same"


def test_an_audit_started_several_times_computes_each_cell_once(tmp_path: Path) -> None:
    made: list[str] = []

    def cell(work: cells.Work, name: str) -> cells.Cell:
        def compute() -> dict[str, str]:
            made.append(name)
            time.sleep(0.02)
            return {"is": name}

        return work.later(name, compute)

    def one(_: int) -> dict[str, list[dict[str, str]]]:
        work = cells.Work(tmp_path, tmp_path)
        groups: dict[str, cells.Tree] = {g: [cell(work, f"{g}{i}") for i in range(4)] for g in "abc"}
        cells.share(list(groups.values()), tmp_path)
        found: dict[str, list[dict[str, str]]] = cells.settled(groups)
        return found

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(one, range(3))
    assert first == {g: [{"is": f"{g}{i}"} for i in range(4)] for g in "abc"}
    assert all(other == first for other in others)
    assert sorted(made) == [f"{g}{i}" for g in "abc" for i in range(4)]
    assert set(made[:3]) == {"a0", "b0", "c0"}, "each begins with a group of its own"


def test_a_cell_that_fails_leaves_nothing_and_is_computed_again(tmp_path: Path) -> None:
    work = cells.Work(tmp_path, tmp_path)
    with pytest.raises(ZeroDivisionError):
        work.cell("figure", lambda: {"is": 1 / 0})
    assert work.cell("figure", lambda: {"is": 2.0}) == {"is": 2.0}
    assert work.cell("figure", lambda: {"is": 3.0}) == {"is": 2.0}


def test_what_is_measured_so_far_is_told_without_what_is_not(tmp_path: Path) -> None:
    work = cells.Work(tmp_path / "work", tmp_path / "cells")
    done, open_ = work.later("done", lambda: {"is": 1}), work.later("open", lambda: {"is": 2})
    done.finish()
    tree: dict[str, cells.Tree] = {"a": [done, open_], "b": {"c": open_}, "d": done}
    assert cells.settled(cells.measured(tree)) == {"a": [{"is": 1}], "d": {"is": 1}}
    assert [path.suffix for path in (tmp_path / "cells").iterdir() if path.suffix == ".json"] == [".json"]
    assert list((tmp_path / "work").iterdir()) == [], "figures lie apart from pictures"


def test_the_context_attacker_sees_output_frames() -> None:
    model, (chips, _) = prepare(DEMO_MODEL, DEMO_MODEL.read_bytes(), threads=1), clip.two_people()
    (sent, tracks, _), *_ = device.composed(model, chips[:1], 0.25)
    assert sent.shape == (320, 320, 3)
    assert len(tracks) == 1
    assert np.abs(sent[:60].astype(int) - PLAIN).max() <= 2, "nothing of the surroundings"
    inside = sent[104:216, 104:216, ::-1]
    assert np.abs(inside[30:90, 30:90].astype(int) - chips[0, 30:90, 30:90]).mean() > 5, "the face is another"
    assert inside[30:90, 30:90].std() > 10, "and it is there"


def test_logistic_regression_learns_what_is_there_and_nothing_where_nothing_is() -> None:
    random = np.random.default_rng(0)
    truth = random.random(600) < 0.5
    told = (random.standard_normal((600, 20)) + 2 * truth[:, None] * (np.arange(20) == 3)).astype(np.float32)
    found = metrics.separation(attackers.logistic(told[:300], truth[:300])(told[300:]), truth[300:])
    assert found["auc_95"][0] > 0.85
    assert found["balanced_95"][0] < found["balanced"] < found["balanced_95"][1]
    same = np.repeat(told[:1], 600, 0)
    nothing = metrics.separation(attackers.logistic(same[:300], truth[:300])(same[300:]), truth[300:])
    assert (nothing["auc"], nothing["auc_95"]) == (0.5, [0.5, 0.5])


def test_a_missed_face_is_solved_from_the_blocks_that_it_touches() -> None:
    """The equations are the canvas: what they say of a face is what the blocks show, to a level."""
    plan = missed.Plan(size=(320, 240), frames=20)
    way, chip = missed.walk(plan), np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    seen, _ = missed.watch(missed.blocks, missed.clip(way, chip))
    prior = missed.Eigenfaces(
        np.zeros(chip.size, np.float32), np.ones(1, np.float32), chip.reshape(-1, 1) / np.float32(1)
    )
    assert missed.Inverse(way, prior)(seen)[0] == pytest.approx(1, abs=0.02)


def test_a_track_shows_all_its_photos_also_in_few_codes() -> None:
    shown = np.arange(150) * 10 // 150
    assert {len(shown[part]) for part in tracks.LEFT.values()} == {1, 25, 150}
    assert set(shown[tracks.LEFT["25 codes, one every 0.2 s"]]) == set(range(10))


def test_the_figures_are_drawn_from_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = {"top1": 0.5, "top5": 0.8, "nats": 1.5, "attacker": 0.7, "leak_nats": 0.1}
    spread = {"F": [0.2, 0.3, 0.4], "M": [0.6, 0.7, 0.8]}
    point |= {"distribution": spread, "fresh_distribution": spread}
    column = {"model": {"version": 1, "steps": 860}, "points": [{"alpha": a} | point for a in (0.0, 1.0)]}
    histogram = {"histogram": {"F": [1] * 20, "M": [2] * 20}, "quartiles": spread, "accuracy": 0.9}
    curve = [{"alpha": a} | point | {"attacker": 0.8 - 0.2 * a, "top5": 0.9 - 0.4 * a} for a in (0.0, 1.0)]
    measured = {
        "closed_set": {"people": 9, "train": 60, "test": 20, "prior": 0.56}, "plan": {"epochs": 1, "attackers": ["a", "b"]},
        "bound": {"entropy_nats": 0.68, "points": [[0.0, 0.68], [0.68, 0.0]]}, "columns": dict.fromkeys([*figures.COLUMNS, "device", figures.RIVAL], column)
        | {figures.DIAL: column | {"points": curve}, figures.APART: column | {"points": [{"alpha": 1.0} | point, {"alpha": 0.5} | point | {"attacker": 0.5}]}},
        "raw": point, "unfiltered": {"one": histogram, "other": histogram},
    }  # fmt: skip
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    assert figures.main(["--draw", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "trained for alpha 1 alone: top-5 80.0, best fresh attacker 70.0; the dial's curve at this attacker: top-5 70.0",
        "trained for alpha 0.5 alone: top-5 80.0, best fresh attacker 50.0; the dial's curve does not reach this attacker",
    ]
    names = {"trade-off", "distributions", "top5", "unfiltered", "device"}
    drawn = {p.stem: cv2.imread(str(p)) for p in tmp_path.glob("*.png")}
    assert drawn.keys() == names
    assert all(picture is not None and picture.std() > 10 for picture in drawn.values())


def test_two_models_of_one_name_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """The second would take the first one's place in the table."""
    with pytest.raises(ExportError, match="two rows would be called 'default'"):
        protocol.audit(
            DEMO_MODEL, tmp_path, tmp_path, tmp_path / "work", measure.Plan(), others=[], beside=[DEMO_MODEL] * 2
        )
    assert list(tmp_path.iterdir()) == []


def test_figures_say_what_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--draw", "--out", str(tmp_path)]) == 1
    assert "nothing was measured yet" in capsys.readouterr().err
    given = ["--models", str(tmp_path), "--device", str(tmp_path / "x.onnx"), "--data", ".", "--networks", "."]
    assert figures.main([*given, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "train export/recipes/deterministic-adversarial.toml" in told
    assert "error: the device's model is not there" in told


@pytest.mark.data
def test_the_audit_finds_a_cheat_that_the_known_classifier_does_not_see(
    data_folder: Path, networks_folder: Path, tmp_path: Path
) -> None:
    """A sanitizer that gives everybody the same face, and marks the men's in one pixel, through the audit itself."""
    a = measure.Audit(data_folder, networks_folder, tmp_path, measure.Plan(seeds=1, epochs=8, draws=1, limit=450))
    face = a.closed.faces.chips.mean(0).round().astype(np.uint8)

    def cheat(chips: Chips, truth: np.ndarray, seed: int) -> Chips:
        out = np.repeat(face[None], len(chips), 0)
        out[truth, 60, 50] = 255
        return out

    m = mechanisms.Mechanism("cheat", "cheat", cheat)
    known, fresh = a.frozen(m, "gender_faceapi"), a.fresh(m, "linear on pixels", 0)
    assert known["balanced"] < 0.6  # the known classifier is content
    assert fresh["accuracy"] > 0.95
    assert fresh["leak_nats"] > 0.4
