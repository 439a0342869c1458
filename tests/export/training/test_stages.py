"""The stages: what each of them learns, and what it leaves alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgesan import faces as runtime_faces
from edgesan.model.load import load_model
from export import checkpoint, data, recipe
from export import compile as compiler
from export.audit import mechanisms
from export.errors import ExportError
from export.networks import DeviceGraph, Sanitizer
from export.providers import ChipDetector, Contract, Ensemble, Provider, Providers
from export.recipe import Recipe
from export.resnet import ResidualEncoder
from export.training import batches, loop
from export.training.stages import Decode, Privatize
from tests.export.support import small_recipe, small_training

pytestmark = pytest.mark.slow  # networks are trained


def test_distillation_learns_from_new_pictures_beside_the_known_ones(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    learned = []
    for new in (6, 0):
        r = small_recipe(tmp_path, more=f"distill_augmented = {new}")
        small_training(r, people, tiny_networks, tmp_path / f"{new}", targets)
        learned.append(checkpoint.load(tmp_path / f"{new}" / "distill.pt")["sanitizer"])
    assert any(not torch.equal(learned[0][key], learned[1][key]) for key in learned[0])
    assert (tmp_path / "6" / "sanitizer.pt").exists()


@pytest.mark.parametrize("frozen", [[], ["classifier"]])
def test_a_frozen_classifier_teaches_the_privatizer_and_an_attacker_does_not_touch_the_picture(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path, frozen: list[str]
) -> None:
    """Plug-and-play: the privatizer goes on learning beside the decoder. Adversarial: it is done by then."""
    r = small_recipe(tmp_path, decode_steps=3, more=f"frozen = {frozen}")
    small_training(r, people, tiny_networks, tmp_path / "run", targets)
    before, after = (checkpoint.load(tmp_path / "run" / f"{s}.pt")["sanitizer"] for s in ("privatize", "decode"))

    def moved(part: str) -> bool:
        return any(not torch.equal(before[key], after[key]) for key in before if key.startswith(part))

    assert moved("privatizer") == bool(frozen)
    assert moved("decoder")
    assert not moved("encoder")


def test_a_providers_weights_never_change_in_a_deterministic_plug_and_play_training(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Provider] = []

    def provider(name: str, networks: Path, contract: Contract | None) -> Provider:
        used.append(Provider(name, networks, contract))
        return used[-1]

    monkeypatch.setattr(loop, "Provider", provider)
    r = small_recipe(tmp_path, attackers=[], more='frozen = ["classifier"]\nstochastic = false')
    small_training(r, people, tiny_networks, tmp_path / "run", targets)
    assert [net.name for net in used] == ["embedder", "classifier"]
    for net in used:  # those that the training held, against the files
        assert not list(net.parameters())
        before = Provider(net.name, tiny_networks).state_dict()
        assert all(torch.equal(before[key], after) for key, after in net.state_dict().items())


def test_plug_and_play_keeps_to_the_raw_face_and_not_to_what_its_readout_made_of_it(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    """A privatizer that still learns, judged by a readout of its own numbers, may leave nothing of a face."""
    r = small_recipe(tmp_path, more='frozen = ["classifier"]')
    embedder, frozen = (Provider(name, tiny_networks).eval() for name in ("embedder", "classifier"))
    utility = Ensemble([embedder], people.chips[:1])
    detector = ChipDetector(runtime_faces.DETECTOR).eval()
    m = batches.gather(people, r, Providers(utility, [frozen], detector), targets, torch.device("cpu"))
    s = Sanitizer(m.features, recipe.shape(r))
    privatize = Privatize(r, m, s)
    for p in privatize.readout.parameters():
        torch.nn.init.constant_(p, float("nan"))  # whatever asks it is lost

    def judged(nets: list[Provider]) -> dict[str, Tensor]:
        return Decode(r, m, s, privatize, Providers(utility, nets, detector)).step(5)

    assert all(value.isfinite().all() for value in judged([frozen]).values())
    assert judged([])["cosine"].isnan().all(), "where the privatizer is done, its readout is the goal"


def test_the_baseline_of_the_authors_shape_is_trained_by_the_same_loop(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    r = small_recipe(tmp_path, more="unet = true\nunet_steps = 2\nunet_batch = 2")
    small_training(r, people.where(np.arange(len(people)) < 16), tiny_networks, tmp_path / "run", targets)
    m = mechanisms.trained(tmp_path / "run", 0.5, "U-Net")
    chips = people.chips[:2]
    first, second = (m.apply(chips, np.ones(2, bool), seed) for seed in (0, 1))
    assert m.stochastic
    assert first.shape == chips.shape
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first[..., 0], first[..., 1])  # gray
    with pytest.raises(ExportError, match="is the baseline, which has no int8 file"):
        compiler.compile_model(tmp_path / "run", people, tmp_path / "x.onnx", [])


MODEL_6 = """
utility_loss = "infonce"
code_norm = "unit"
code_bits = 8
privatizer_hidden = 12
distribution_weight = 50
attacker_renewal = 2
"""


def test_a_privatizer_of_model_6_is_trained_compiled_and_read_back(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    r = small_recipe(tmp_path, steps=3, more=MODEL_6)
    small_training(r, people, tiny_networks, tmp_path / "run", targets)
    trained = checkpoint.load_checkpoint(tmp_path / "run").sanitizer
    few = people.where(np.arange(len(people)) < 24)
    report = compiler.compile_model(tmp_path / "run", few, tmp_path / "6.onnx", [])
    assert report[0.5].mean_levels < 3
    loaded = load_model(tmp_path / "6.onnx", allow_unsigned=True)
    assert (loaded.noise_dimensions, loaded.code_bytes) == (4, 4)
    chips = people.chips[:8]
    codes = loaded.encoder.encode(chips, np.zeros((8, 4), np.float32), 0.5)
    assert len(set(codes)) > 1
    unpacked = checkpoint.unpack(tmp_path / "6.onnx")
    assert {k: v.shape for k, v in unpacked.state_dict().items()} == {
        k: v.shape for k, v in trained.state_dict().items()
    }
    assert unpacked.privatizer.unit
    with torch.no_grad():
        x, dial, z = torch.from_numpy(chips), torch.full((8, 1), 0.5), torch.zeros(8, 4)
        drawn = DeviceGraph(unpacked)(x, z, dial).numpy()
    assert np.abs(drawn.astype(int) - loaded.run(chips, z.numpy(), 0.5)).mean() < 3


def privatizing(r: Recipe, people: data.Faces, networks: Path, targets: Path) -> Privatize:
    """Return the stage on the descriptions of an encoder that has learned nothing."""
    torch.manual_seed(0)
    utility = Ensemble([Provider("embedder", networks).eval()], people.chips[:1])
    nets = Providers(utility, [], ChipDetector(runtime_faces.DETECTOR).eval())
    m = batches.gather(people, r, nets, targets, torch.device("cpu"))
    return Privatize(r, m, Sanitizer(m.features, recipe.shape(r)))


def test_an_attacker_begins_anew_in_its_turn_and_the_chance_of_the_training_goes_on(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    stage = privatizing(
        small_recipe(tmp_path, attackers=[16, 8], more="attacker_renewal = 2"), people, tiny_networks, targets
    )
    stage.step(0)
    before = [{k: v.clone() for k, v in a.state_dict().items()} for a in stage.attackers]
    assert stage.attacker_optimizer
    for step, anew in ((0, []), (1, []), (2, [0]), (3, [0]), (4, [0, 1]), (6, [0, 1])):
        chance = torch.get_rng_state()
        stage.renew_attacker(step)
        assert torch.equal(torch.get_rng_state(), chance)
        now = [a.state_dict() for a in stage.attackers]
        moved = [i for i in (0, 1) if any(not torch.equal(before[i][k], now[i][k]) for k in now[i])]
        assert moved == anew
        kept = [p in stage.attacker_optimizer.state for p in stage.attackers.parameters()]
        assert kept == [i not in anew for i in (0, 1) for _ in stage.attackers[i].parameters()]
    stage.step(7)
    assert all(p in stage.attacker_optimizer.state for p in stage.attackers.parameters())


def test_the_privatizer_learns_who_it_is_and_brings_the_classes_together(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    r = small_recipe(tmp_path, steps=60, privatize_batch=32, more=MODEL_6)
    stage = privatizing(r, people, tiny_networks, targets)
    shown = [{k: v.mean().item() for k, v in stage.step(step).items()} for step in range(60)]
    assert set(shown[0]) == {"u", "p", "appearance", "distance"}
    assert sum(s["u"] for s in shown[-10:]) < sum(s["u"] for s in shown[:10])
    assert sum(s["distance"] for s in shown[-10:]) < sum(s["distance"] for s in shown[:10]) / 2
    rows, others, who = stage.draw()
    assert stage.data.private[rows].bincount().tolist() == [16, 16]
    assert (people["identity"][rows] == people["identity"][others]).all()
    assert len(who) == 32


@pytest.mark.data
@pytest.mark.slow
def test_the_bundled_models_recipe_trains(people: data.Faces, networks_folder: Path, tmp_path: Path) -> None:
    """As it is in the project, but for the numbers of steps and pictures."""
    small = small_recipe(tmp_path)
    sizes = [f"{s}_{what}" for s in ("distill", "privatize", "decode") for what in ("steps", "batch")]
    r = recipe.read(Path(recipe.__file__).parent / "recipes" / "model6.toml")
    r = replace(r, views=2, distill_augmented=4, **{key: getattr(small, key) for key in sizes})
    few = people.where(np.arange(len(people)) < 24)
    s = small_training(r, few, networks_folder, tmp_path / "run", tmp_path)
    assert isinstance(s, Sanitizer)
    assert isinstance(s.encoder, ResidualEncoder)
    assert s.privatizer.unit
    assert checkpoint.load_checkpoint(tmp_path / "run").step == 3


def test_a_critic_learns_beside_the_decoder_and_the_decoder_from_it(
    people: data.Faces, tiny_networks: Path, targets: Path, tmp_path: Path
) -> None:
    drawn = []
    for weight in (0.0, 1.0):
        r = small_recipe(tmp_path, decode_steps=4, more=f"realism_weight = {weight}")
        small_training(r, people, tiny_networks, tmp_path / f"{weight}", targets)
        drawn.append(checkpoint.load(tmp_path / f"{weight}" / "decode.pt"))
    assert "critic" not in drawn[0]
    assert all(value.isfinite().all() for value in drawn[1]["critic"].values())
    plain, judged = (part["sanitizer"] for part in drawn)
    assert any(not torch.equal(plain[key], judged[key]) for key in plain if key.startswith("decoder"))


def test_two_networks_teach_together_and_their_new_pictures_keep_their_targets(
    people: data.Faces, tiny_networks: Path, tmp_path: Path
) -> None:
    second = tiny_networks / "embedder.onnx"
    r = small_recipe(tmp_path, more="distill_augmented = 4")
    r = replace(r, utility=("embedder", str(second)), augmented_targets="picture")
    s = small_training(r, people, tiny_networks, tmp_path / "run", tmp_path)
    assert isinstance(s, Sanitizer)
    assert s.encoder.head.out_channels == 32 + 15
    line = (tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1]
    assert "NaN" not in line
