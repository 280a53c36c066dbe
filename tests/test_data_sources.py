"""Listing datasets, and the mapping between images and model space."""

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbench.data import SOURCES, list_datasets
from attnbench.data.pixels import to_images, to_model_space


def test_every_source_has_a_row_with_its_name():
    """`list_datasets` names every kind once, with summary, source and licence."""
    rows = list_datasets()
    assert [row.name for row in rows] == list(SOURCES)
    assert all(row.summary and row.source and row.licence for row in rows)


def test_listing_imports_no_torch():
    """The list comes up fast: torch is not imported for it."""
    code = "import attnbench.data, sys; attnbench.data.list_datasets(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_round_trip_of_every_value():
    """All 256 values survive the way into model space and back."""
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(to_images(to_model_space(images)), images)


def test_channels_move_to_the_front():
    """[B, H, W, C] becomes [B, C, H, W], float32 in [-1, 1]."""
    x = to_model_space(torch.zeros(2, 3, 5, 1, dtype=torch.uint8))
    assert (x.shape, x.dtype, x.max().item()) == (torch.Size([2, 1, 3, 5]), torch.float32, -1.0)


@given(st.floats(min_value=-1e6, max_value=1e6))
def test_any_sample_becomes_the_nearest_pixel(value):
    """Whatever a sampler returns is clipped into 0 ... 255 and never wraps around."""
    pixel = to_images(torch.tensor([[[[value]]]])).item()
    assert abs(pixel - min(255.0, max(0.0, 127.5 * value + 127.5))) <= 0.5 + 1e-4  # fp32 of values below 256
