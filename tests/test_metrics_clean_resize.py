"""Protocol clean: the same numbers, to the bit, as the clean-fid package."""

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as photographs

from attnbench.metrics.clean_resize import clean_resize


def random_images(height, width, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, height, width, channels), dtype=torch.uint8, generator=generator)


def theirs(images):
    resize = build_resizer("clean")
    return torch.stack([torch.from_numpy(resize(image.numpy())) for image in images]).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (400, 400), (299, 299), (150, 500), (1, 1)])
def test_equal_to_clean_fid(height, width):
    """Smaller, larger, equal and oblong noise is clean-fid's result to the bit."""
    images = random_images(height, width, 3)
    ours = clean_resize(images, 299)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs(images))


def test_equal_to_clean_fid_on_a_photograph():
    """A real photograph, too, is clean-fid's result to the bit, and is not rounded to whole numbers."""
    photograph = torch.from_numpy(photographs.astronaut())[None]
    ours = clean_resize(photograph, 299)
    assert torch.equal(ours, theirs(photograph))
    assert not torch.equal(ours, ours.round())


def test_grey_stays_one_channel():
    """One channel gives what three equal ones give in each, to the bit."""
    grey = random_images(40, 40, 1)
    ours = clean_resize(grey, 299)
    assert ours.shape == (2, 1, 299, 299)
    assert torch.equal(ours.expand(-1, 3, -1, -1), theirs(grey.expand(-1, -1, -1, 3)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 9))
def test_values_stay_in_range(height, width, side, seed):
    """Whatever the sizes: [B, C, side, side], inside 0 ... 255 although bicubic filters overshoot."""
    resized = clean_resize(random_images(height, width, 3, seed), side)
    assert resized.shape == (2, 3, side, side)
    assert resized.min() >= 0
    assert resized.max() <= 255


def test_overshoot_is_clipped():
    """Beside a hard edge a bicubic filter leaves 0 ... 255; without the clip this test would see it."""
    edge = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    edge[:, :, 4:] = 255
    resized = clean_resize(torch.from_numpy(edge), 64)
    assert (resized.min(), resized.max()) == (0, 255)
