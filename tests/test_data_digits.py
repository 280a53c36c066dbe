"""The digits dataset: values, split, determinism."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from attnbench.data import load_dataset
from attnbench.specs import DigitsData


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DigitsData())


def test_every_scan_is_in_exactly_one_part(digits):
    """Training and held-out images together are scikit-learn's 1,797, each once."""
    scans = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, 64)
    parts = torch.cat([digits.train.images, digits.held_out.images]).reshape(1797, 64).numpy()
    assert sorted(map(bytes, parts)) == sorted(map(bytes, scans))


def test_ink_is_scaled_to_the_full_range(digits):
    """Ink 0 becomes 0, 16 becomes 255, and 8 becomes 128 (127.5 rounded to even)."""
    values = set(digits.train.images.unique().tolist())
    assert {0, 128, 255} <= values
    assert len(values) == 17


def test_a_fifth_of_each_class_is_held_out(digits):
    """The split is stratified: each class keeps 20 % out, to the nearest image."""
    counts = np.bincount(load_digits().target)
    held_out = torch.bincount(digits.held_out.labels, minlength=10).tolist()
    assert held_out == [round(0.2 * count) for count in counts.tolist()]


def test_loading_twice_gives_the_same_split(digits):
    """Nothing random enters: a second load is equal, image by image."""
    again = load_dataset(DigitsData())
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.held_out.labels, digits.held_out.labels)


def test_shapes_and_facts(digits):
    """Images are uint8 [B, 8, 8, 1], labels int64, and mirroring is not allowed."""
    batch = digits.train.get(torch.tensor([3, 0]))
    assert (batch.shape, batch.dtype) == (torch.Size([2, 8, 8, 1]), torch.uint8)
    assert digits.train.labels.dtype == torch.int64
    assert (digits.num_classes, digits.image_size, digits.channels, digits.flip) == (10, 8, 1, False)
