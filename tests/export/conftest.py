"""Shared by the tests of `export`: two people's chips, frozen networks, a set of the chips, and a finished training."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import faces as runtime_faces
from edgesan.frames import Pixels
from export import compile as compiler
from export import data
from tests.export.support import CONTRACT, small_recipe, small_training, write_network


@pytest.fixture(scope="session")
def tiny_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provider's folder: an embedder, a classifier, and their contracts."""
    folder = tmp_path_factory.mktemp("networks")
    write_network(folder / "embedder.onnx", "embedding", 16, 1, softmax=False)
    write_network(folder / "classifier.onnx", "gender", 2, 2, softmax=True)
    (folder / "providers.toml").write_text(
        CONTRACT.format(name="embedder", output="embedding", classes="")
        + CONTRACT.format(name="classifier", output="gender", classes='classes = ["M", "F"]')
    )
    return folder


@pytest.fixture(scope="session")
def people(clip: list[Pixels]) -> data.Faces:
    """Real chips: the two people of the bundled clip, and each of them mirrored as a third and a fourth."""
    detector, chips, names = runtime_faces.Detector(320), [], []
    for pixels in clip[::2]:
        found = sorted(detector(pixels), key=lambda f: float(f.box[0]))
        for name, face in zip(("woman", "man"), found if len(found) == 2 else [], strict=False):
            chip = runtime_faces.cut(pixels, runtime_faces.alignment(face.landmarks))
            chips += [chip, chip[:, ::-1].copy()]
            names += [name, f"{name} mirrored"]
    identity = np.array(names)
    blank = np.full(len(names), "")
    columns = {
        "file": blank,
        "identity": identity,
        "gender": np.where(np.char.startswith(identity, "woman"), "F", "M"),
        "age": blank,
        "identity_split": np.where(np.arange(len(names)) % 8 >= 6, "val", "train"),
        "closed_set_split": blank,
    }
    return data.Faces(np.stack(chips), columns)


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, still to be made, in which all trainings of a test run keep their teachers' targets."""
    return tmp_path_factory.mktemp("kept") / "targets"


@pytest.fixture(scope="session")
def finished(people: data.Faces, tiny_networks: Path, targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished training: adversarial, stochastic, two steps a stage."""
    folder = tmp_path_factory.mktemp("finished")
    small_training(small_recipe(folder, steps=2), people, tiny_networks, folder / "run", targets)
    return folder / "run"


@pytest.fixture(scope="session")
def compiled(finished: Path, people: data.Faces) -> Path:
    """The model file of the finished training."""
    path = finished.parent / "small.onnx"
    compiler.compile_model(finished, people, path, [])
    return path


@pytest.fixture(scope="session")
def clip_set(people: data.Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clip's chips as a set."""
    folder = tmp_path_factory.mktemp("sets")
    table = [",".join(data.COLUMNS)]
    with tarfile.open(folder / "clip.tar", "w") as tar:
        for i, chip in enumerate(people.chips):
            packet = cv2.imencode(".png", np.ascontiguousarray(chip[..., ::-1]))[1].tobytes()
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(packet)
            tar.addfile(member, io.BytesIO(packet))
            table.append(",".join([f"{i}.png", *(people[c][i] for c in data.COLUMNS[1:])]))
    (folder / "clip.csv").write_text("\n".join(table))
    return folder
