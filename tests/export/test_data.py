"""Faces: sets, folders of people, views, and labels."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesan import faces as runtime_faces
from edgesan.frames import Pixels
from export import data
from export.errors import DataError


def test_a_view_of_a_picture_is_always_the_same(people: data.Faces) -> None:
    chip = people.chips[3]
    np.testing.assert_array_equal(data.view(chip, 3, 0), chip)
    np.testing.assert_array_equal(data.view(chip, 3, 1), chip[:, ::-1])
    np.testing.assert_array_equal(data.view(chip, 3, 2), data.view(chip, 3, 2))
    assert not np.array_equal(data.view(chip, 3, 2), data.view(chip, 3, 3))
    assert not np.array_equal(data.view(chip, 3, 2), data.view(chip, 4, 2))


def test_numbers_become_groups_by_their_edges(people: data.Faces) -> None:
    faces = data.Faces(people.chips[:5], {"age": np.array(["29", "30", "", "45", "44.5"]), "hair": np.array(["a"] * 5)})
    groups, names = faces.labels("age", (30, 45))
    assert names == ["<30", "30 to <45", ">=45"]
    assert groups.tolist() == [0, 1, -1, 2, 1]
    with pytest.raises(DataError, match="'hair' cannot be grouped by 30"):
        faces.labels("hair", (30,))


@pytest.fixture
def folder(tmp_path: Path, clip: list[Pixels]) -> Path:
    """A folder of two people with two pictures each, and a CSV."""
    for person, columns in (("Ann", slice(0, 240)), ("Bob", slice(240, 480))):
        (tmp_path / person).mkdir()
        for i in range(2):
            cv2.imwrite(str(tmp_path / person / f"{i}.png"), clip[i][:, columns])
    (tmp_path / "who.csv").write_text("person,gender,hair\nAnn,F,dark\nBob,M,short\n")
    return tmp_path


def test_a_folder_in_lfws_layout_is_read_and_split_by_people(folder: Path) -> None:
    read = data.load_folder(folder)
    assert read.chips.shape == (4, 112, 112, 3)
    assert read["hair"].tolist() == ["dark", "dark", "short", "short"]
    split = dict(zip(read["identity"].tolist(), read["identity_split"].tolist(), strict=True))
    assert split == {"Ann": "test", "Bob": "train"}
    assert set(data.load(folder, ["lfw"])["identity"].tolist()) == {"Bob"}, "a training sees nobody of the test split"


def test_a_folders_chips_are_those_that_the_camera_cuts(folder: Path) -> None:
    picture = np.asarray(cv2.imread(str(folder / "Ann" / "0.png")), np.uint8)
    (face,) = runtime_faces.Detector(data.SEARCHED)(picture)
    chip = runtime_faces.cut(picture, runtime_faces.alignment(face.landmarks))
    np.testing.assert_array_equal(data.load_folder(folder).chips[0], chip)


def test_a_folder_that_is_not_as_expected_is_refused(folder: Path) -> None:
    (folder / "who.csv").write_text("person,gender\nAnn,F\n")
    with pytest.raises(DataError, match="no row for 'Bob'"):
        data.load_folder(folder)
    (folder / "Ann" / "0.png").write_text("no picture")
    with pytest.raises(DataError, match=r"0.png cannot be read as a picture"):
        data.load_folder(folder)
    (folder / "more.csv").write_text("")
    with pytest.raises(DataError, match=r"expected one CSV .* found more.csv, who.csv"):
        data.load_folder(folder)
    for table in folder.glob("*.csv"):
        table.unlink()
    with pytest.raises(DataError, match=r"expected one CSV .* found none"):
        data.load_folder(folder)
    with pytest.raises(DataError, match=r"lfw.csv is not there: a set is a .tar of chips"):
        data.load(folder / "Ann", ["lfw"])


@pytest.mark.data
def test_a_set_is_read_with_its_labels(data_folder: Path) -> None:
    glint = data.load_set(data_folder, "glint")
    assert glint.chips.shape == (4148, 112, 112, 3)
    assert set(glint["gender"].tolist()) == {"M", "F"}
    assert not (data.training_rows(glint) & data.validation_rows(glint)).any()
    assert not (data.training_rows(glint) & (glint["closed_set_split"] == "test")).any()
