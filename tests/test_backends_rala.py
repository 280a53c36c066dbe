"""Rank-augmented linear attention: its token weights and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.backends.rala import _token_weights
from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("rala")


def test_token_weights_average_one_and_prefer_keys_like_the_mean_query():
    """The weights only redistribute: their mean is 1, and the key nearest the mean query has the most."""
    q, k = torch.rand(2, 2, 3, 10, 4, dtype=torch.float64)
    weights = _token_weights(q, k)
    torch.testing.assert_close(weights.mean(-2), torch.ones(2, 3, 1, dtype=torch.float64))
    nearest = (k * q.mean(-2, keepdim=True)).sum(-1).argmax(-1)
    assert torch.equal(weights.squeeze(-1).argmax(-1), nearest)


def test_a_closed_modulation_closes_the_output():
    """The modulation multiplies everything but the output bias, the convolution included."""
    module = built("rala", dim=12, num_heads=3, grid=(3, 5))
    torch.nn.init.zeros_(module.modulation.weight)
    torch.nn.init.zeros_(module.modulation.bias)
    with torch.no_grad():
        y = module(torch.randn(2, 15, 12, dtype=torch.float64), AttentionContext(grid=(3, 5)))
    torch.testing.assert_close(y, module.out.bias.detach().expand_as(y))


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "association": "quadratic"}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("rala", options)
    assert len(set(counts)) == 1, counts


def test_heads_without_four_parts_are_refused():
    """2-D rotation inside a head needs pairs for rows and for columns."""
    site = AttentionSite(dim=12, num_heads=2, grid=(4, 4))
    reason = BACKEND.supports(site, BACKEND.options(), torch.float32, torch.device("cpu"))
    assert "multiple of 4, got 12 / 2" in reason
