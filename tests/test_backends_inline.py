"""InLine attention: weights that sum to one without a denominator, its filters, and its cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext
from attnbench.errors import UserInputError
from attnbench.models.options import options_of
from attnbench.plugins import registry

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}


def test_weights_sum_to_one_whatever_the_queries():
    """Where all values are the same, the global part is that value; filters of zero leave it alone."""
    module = built("inline", **SITE)
    for parameter in (module.filters.weight, module.filters.bias, module.qkv.qkv.weight[24:]):
        parameter.data.zero_()  # every value is then its bias
    x = 10 * torch.randn(2, 63, 12, dtype=torch.float64)
    expected = module.out(module.qkv.qkv.bias[24:]).expand(2, 63, 12)
    torch.testing.assert_close(module(x, AttentionContext(grid=(7, 9))), expected)


def test_queries_that_differ_in_length_alone_differ_in_weights():
    """The property that division takes away: q and 2 q have other outputs."""
    torch.manual_seed(0)
    module = built("inline", {"qkv_bias": False}, **SITE)
    module.filters.weight.data.zero_()
    module.filters.bias.data.zero_()
    x = torch.randn(1, 63, 12, dtype=torch.float64)
    once = module(x, AttentionContext(grid=(7, 9)))
    module.qkv.qkv.weight.data[:12] *= 2
    assert (module(x, AttentionContext(grid=(7, 9))) - once).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "association": "linear"}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("inline", options)
    assert len(set(counts)) == 1, counts


def test_even_filters_are_refused():
    """They have no middle."""
    with pytest.raises(UserInputError, match="kernel_size must be odd"):
        options_of(registry().backend("inline"), {"kernel_size": 4})
