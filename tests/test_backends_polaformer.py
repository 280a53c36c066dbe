"""Polarity-aware linear attention: signs, powers, the order of its matmuls and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("polaformer")


def polarities(alpha):
    module = built("polaformer", {"alpha": alpha}, dim=12, num_heads=3, grid=(3, 5))
    z = torch.randn(2, 15, 12, dtype=torch.float64)
    with torch.no_grad():
        return z.unflatten(-1, (3, 4)).transpose(1, 2), module._polarities(z)


def test_the_two_polarities_hold_all_of_a_query():
    """With power 1, z+ - z- is z over softplus(0), and no channel is in both."""
    z, (positive, negative) = polarities(alpha=0.0)
    torch.testing.assert_close((positive - negative) * torch.log(torch.tensor(2.0).double()), z)
    assert not (positive * negative).any()


def test_the_power_starts_in_the_middle_of_its_range():
    """w = 0 gives 1 + alpha / 2: with alpha 4 the cube."""
    z, (positive, _) = polarities(alpha=4.0)
    expected = (z.relu() / torch.log(torch.tensor(2.0).double())) ** 3
    torch.testing.assert_close(positive, expected)


@pytest.mark.parametrize("grid", [(7, 9), (2, 3)])
@pytest.mark.parametrize("association", ["auto", "linear", "quadratic"])
def test_closed_form_is_what_executes(grid, association):
    """Both counters see the closed form, on either side of N = 4 D / 5, and auto is the cheaper."""
    counts = module_counts("polaformer", {"association": association}, grid)
    assert len(set(counts)) == 1, counts
    if association == "auto":
        others = [module_counts("polaformer", {"association": a}, grid)[0] for a in ("linear", "quadratic")]
        assert counts[0] == min(others)


def test_both_association_orders_agree():
    """(q k^T) v and q (k^T v) differ by rounding only."""
    x, context = torch.randn(1, 15, 12, dtype=torch.float64), AttentionContext(grid=(3, 5))
    site = {"dim": 12, "num_heads": 3, "grid": (3, 5)}
    found = [built("polaformer", {"association": a}, **site)(x, context) for a in ("linear", "quadratic")]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_odd_heads_are_refused():
    """Half of a head's values goes to each polarity."""
    site = AttentionSite(dim=9, num_heads=3, grid=(4, 4))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "must be even, got 9 / 3 = 3" in reason
