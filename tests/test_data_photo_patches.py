"""The photo-patches dataset: disjoint bands, determinism, limits."""

import PIL.Image
import pytest
import torch

from attnbench.data import load_dataset, photo_patches
from attnbench.errors import DataError
from attnbench.specs import PhotoPatchesData


@pytest.fixture(scope="module")
def patches():
    return load_dataset(PhotoPatchesData(crops_per_class=40))


def test_counts_and_shapes(patches):
    """Each photograph gives 40 training and 10 held-out crops of 16 x 16 RGB."""
    assert patches.train.images.shape == (40 * patches.num_classes, 16, 16, 3)
    assert torch.bincount(patches.held_out.labels).tolist() == [10] * patches.num_classes
    assert patches.train.images.dtype == torch.uint8


def test_training_and_held_out_share_no_pixel():
    """Painting the held-out band of a photograph changes no training band, and the other way round."""
    grey = PIL.Image.new("RGB", (200, 100), "grey")
    painted = grey.copy()
    painted.paste("red", (150, 0, 200, 100))  # the held-out quarter
    before = photo_patches._cut_bands(grey, 16)
    after = photo_patches._cut_bands(painted, 16)
    assert torch.equal(before["train"], after["train"])
    assert (after["held-out"] == torch.tensor([255, 0, 0], dtype=torch.uint8)).all()


def test_crops_are_drawn_without_repetition():
    """A band whose pixels are all different gives as many different crops as asked for."""
    band = torch.arange(20 * 20 * 3).remainder(251).to(torch.uint8).reshape(20, 20, 3)
    crops = photo_patches._crops(band, "any", 16, 25)  # (20 - 16 + 1)^2: every place there is
    assert len({bytes(crop.flatten().tolist()) for crop in crops}) == 25


def test_more_crops_than_places_is_an_error():
    """Asking for more crops than a band has places names the limit."""
    with pytest.raises(DataError, match=r"\d+ different 16-pixel crops .* got a request for 100000"):
        load_dataset(PhotoPatchesData(crops_per_class=100_000))


def test_fewer_crops_are_the_first_of_more(patches):
    """The order of crops depends on their places alone, so a smaller set is part of a larger one."""
    fewer = load_dataset(PhotoPatchesData(crops_per_class=20))
    assert torch.equal(fewer.train.images[:20], patches.train.images[:20])


def test_large_crops():
    """32-pixel crops show the same part of a photograph at twice the resolution."""
    patches = load_dataset(PhotoPatchesData(image_size=32, crops_per_class=4))
    assert patches.train.get(torch.tensor([0])).shape == (1, 32, 32, 3)


def test_every_photograph_states_its_licence(patches):
    """The licence line names every class."""
    assert all(f"{name}: " in patches.licence for name in patches.class_names)


def test_a_missing_photograph_is_named(monkeypatch):
    """A package without its photograph gives an error that names the file."""
    gone = photo_patches.Photo(name="gone", package="skimage", file="data/gone.png", licence="none")
    monkeypatch.setattr(photo_patches, "PHOTOS", (gone,))
    with pytest.raises(DataError, match=r"gone\.png"):
        load_dataset(PhotoPatchesData())
