"""Labels that are numbers, and folders that are named by numbers: which class is which."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_sets import npz_shards, pictures, png_folder

from attnbench.errors import DataError
from attnbench.evaluation.figures import labels_as_in
from attnbench.evaluation.images import open_images


class _Real:
    """As much of a reference as numbering needs."""

    def __init__(self, images):
        self.name, self.labels, self.class_names = images.name, images.labels, images.class_names


def numbered_folders(path, names):
    """One image per folder; the folders' order of text is 0, 1, 10, 11, 2 ..."""
    for index, name in enumerate(names):
        png_folder(path / name, pictures(2, seed=index))
    return open_images(path)


def numbered_npz(path, labels):
    np.savez(path, arr_0=pictures(len(labels)), arr_1=np.array(labels))
    return open_images(path)


TWELVE = [str(number) for number in range(12)]


def test_numbers_of_an_npz_are_the_numbers_of_folders(tmp_path):
    """Label 10 is folder 10, which stands third in order of text; it is said."""
    folders = numbered_folders(tmp_path / "real", TWELVE)
    samples = numbered_npz(tmp_path / "s.npz", TWELVE_LABELS)
    places = labels_as_in(_Real(folders), samples)
    assert [folders.class_names[place] for place in places] == [str(label) for label in TWELVE_LABELS]
    assert any("matched by number to the folders of" in warning for warning in samples.warnings)
    back = labels_as_in(_Real(samples), folders)
    assert back.tolist() == [int(folders.class_names[label]) for label in folders.labels.tolist()]


TWELVE_LABELS = [*range(12), 10, 2]


def test_numbers_beside_names_are_matched_in_order_and_that_is_said(tmp_path):
    """Nobody knows whether label 0 is the cat; an npz that says what its classes are called is sure."""
    folders = numbered_folders(tmp_path / "real", ["cat", "dog"])
    samples = numbered_npz(tmp_path / "s.npz", [1, 0, 0])
    assert labels_as_in(_Real(folders), samples).tolist() == [1, 0, 0]
    (warning,) = samples.warnings
    assert "in order of name: class 0 is cat, class 1 is dog" in warning
    names = np.array(["dog", "axolotl", "cat"])
    np.savez(tmp_path / "named.npz", arr_0=pictures(3), arr_1=np.array([0, 2, 2]), class_names=names)
    named = open_images(tmp_path / "named.npz")
    assert labels_as_in(_Real(folders), named).tolist() == [1, 0, 0]
    assert not [warning for warning in named.warnings if "order of name" in warning]


@pytest.mark.parametrize("names", [["cat"], ["cat", "cat"], [1, 2]])
def test_names_that_fit_no_classes_are_refused(tmp_path, names):
    """Too few, one twice, and numbers: as if they were names, labels would be of other classes."""
    np.savez(tmp_path / "s.npz", arr_0=pictures(2), arr_1=np.array([0, 1]), class_names=np.array(names))
    with pytest.raises(DataError, match="class_names"):
        open_images(tmp_path / "s.npz")


def test_folders_from_1_on_and_with_zeros(tmp_path):
    """01 is 1; a number without a folder, and two folders of one number, are refused."""
    folders = numbered_folders(tmp_path / "real", ["01", "02", "03"])
    samples = numbered_npz(tmp_path / "s.npz", [1, 2, 3, 3])
    assert labels_as_in(_Real(folders), samples).tolist() == [0, 1, 2, 2]
    with pytest.raises(DataError, match=r"shows classes that .*real has no folder of: 0"):
        labels_as_in(_Real(folders), numbered_npz(tmp_path / "t.npz", [0, 1, 2, 3]))
    twice = numbered_folders(tmp_path / "twice", ["1", "01", "2"])
    with pytest.raises(DataError, match="several folders for one number"):
        labels_as_in(_Real(twice), samples)


def test_our_own_samples_count_classes_in_order_of_name(tmp_path):
    """As training does; where that differs from the folders' numbers it is said, else nothing is."""
    npz_shards(tmp_path / "shards", pictures(6), 3)
    samples = open_images(tmp_path / "shards")
    folders = numbered_folders(tmp_path / "real", TWELVE)
    assert torch.equal(labels_as_in(_Real(folders), samples), samples.labels)
    assert any("in order of name" in warning for warning in samples.warnings)
    plain = replace(samples, warnings=[])
    ordered = numbered_folders(tmp_path / "few", ["0", "1", "2"])
    assert torch.equal(labels_as_in(_Real(ordered), plain), samples.labels)
    assert plain.warnings == []
