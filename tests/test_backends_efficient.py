"""Efficient attention: its implicit map is a distribution over tokens; what it costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext


@pytest.mark.parametrize("association", ["linear", "quadratic"])
def test_rows_sum_to_one(association):
    """Values that are the same everywhere come out unchanged: no denominator is missing."""
    options = {"association": association}
    module = built("efficient", options, dim=12, num_heads=3, grid=(7, 9))
    value = torch.randn(12, dtype=torch.float64)
    with torch.no_grad():
        module.qkv.qkv.weight[24:] = 0
        module.qkv.qkv.bias[24:] = value
        module.out.weight.copy_(torch.eye(12))
        module.out.bias.zero_()
    y = module(torch.randn(2, 63, 12, dtype=torch.float64), AttentionContext(grid=(7, 9)))
    # 63 + 4 additions of numbers that sum to one
    torch.testing.assert_close(y, value.expand_as(y), rtol=128 * torch.finfo(y.dtype).eps, atol=0)


@pytest.mark.parametrize("grid", [(7, 9), (2, 3)])
@pytest.mark.parametrize("association", ["auto", "linear", "quadratic"])
def test_macs(association, grid):
    """The closed form is what executes, in either order of the matmuls."""
    assert len(set(module_counts("efficient", {"association": association}, grid))) == 1
