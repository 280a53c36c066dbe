"""PVT v2's linear spatial reduction: keys that do not grow with the image, its limit, and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("pvt-v2")


def test_an_image_twice_as_large_has_the_same_keys():
    """Each token repeated 2 x 2: the pooled cells are the same, and so are the outputs of the copies."""
    small = built("pvt-v2", {"pool_size": 2}, dim=12, num_heads=3, grid=(4, 4))
    x = torch.randn(1, 4, 4, 12, dtype=torch.float64)
    large = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    y = small(x.flatten(1, 2), AttentionContext(grid=(4, 4))).unflatten(1, (4, 4))
    y_large = small(large.flatten(1, 2), AttentionContext(grid=(8, 8))).unflatten(1, (8, 8))
    torch.testing.assert_close(y_large[:, ::2, 1::2], y, rtol=1e-12, atol=1e-13)


def test_more_cells_than_a_side_has_tokens_are_refused():
    """The reason names the largest size that fits."""
    site = AttentionSite(dim=12, num_heads=3, grid=(4, 6))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "pool_size=7 exceeds the shorter side of grid (4, 6)" in reason
    assert "at most 4" in reason
    assert BACKEND.supports(site, BACKEND.options(pool_size=4), torch.float32, torch.device("cpu")) is None


@pytest.mark.parametrize("options", [{}, {"pool_size": 3, "qkv_bias": False}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("pvt-v2", options)
    assert len(set(counts)) == 1, counts
