"""EDiT's linear compressed attention: its cost, grids, and the order of its matmuls."""

from __future__ import annotations

import pytest
import torch
from backend_counts import model_counts

from attnbench.backends.edit import matmul_order
from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("edit")


@pytest.mark.parametrize(
    ("size", "options"),
    [(16, {}), (14, {"association": "quadratic"}), (16, {"association": "linear", "rho": 0.25})],
)
def test_closed_form_is_what_executes(size, options):
    """Both counters see the closed form to the last multiply-add, on even and odd grids."""
    closed, by_fvcore, by_torch = model_counts("edit", options, side=size)
    assert closed == by_fvcore == by_torch


def test_both_orders_agree_and_auto_takes_the_cheaper():
    """(q k^T) v and q (k^T v) differ by rounding; `auto` compares 2 N M with (N + M) D."""
    site, context = AttentionSite(dim=12, num_heads=3, grid=(7, 9)), AttentionContext(grid=(7, 9))
    module = BACKEND.build(site, BACKEND.options(norm_groups=1)).double()
    x, found = torch.randn(1, 63, 12, dtype=torch.float64), []
    for order in ("linear", "quadratic"):
        module.options = module.options.model_copy(update={"association": order})
        found.append(module(x, context))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)
    # 2 N M = 32,768 against (N + M) D = 122,880 for the paper's S at 256 px
    assert matmul_order("auto", 256, 64, 384) == "quadratic"
    # 2 N M = 2,048 against (N + M) D = 2,000 and 2,080
    assert [matmul_order("auto", 64, 16, head_dim) for head_dim in (25, 26)] == ["linear", "quadratic"]


def test_norm_order_is_an_option_that_matters():
    """The two readings of the paper are different functions of the same weights."""
    site, context = AttentionSite(dim=16, num_heads=2, grid=(4, 4)), AttentionContext(grid=(4, 4))
    module = BACKEND.build(site, BACKEND.options(norm_groups=2))
    x = torch.randn(1, 16, 16)
    y = module(x, context)
    module.options = module.options.model_copy(update={"norm_order": "activation_first"})
    assert (module(x, context) - y).abs().max() > 1e-3


def test_groups_that_do_not_divide_are_refused():
    """The reason names the narrow width and the group counts that fit it."""
    site = AttentionSite(dim=12, num_heads=3, grid=(4, 4))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "norm_groups=8 does not divide the 6 channels" in reason
    assert "[1, 2, 3, 6]" in reason
