"""LiT's linear attention: its cost in both orders, and what shared filters and shifts do."""

from __future__ import annotations

import pytest
import torch
from backend_counts import model_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

BACKEND = registry().backend("lit")


def build(**options):
    torch.manual_seed(0)
    return BACKEND.build(AttentionSite(dim=12, num_heads=3, grid=(8, 9)), BACKEND.options(**options)).double()


def test_a_shift_of_the_image_shifts_the_output():
    """Rolling the grid rolls the output, two tokens (half of 5x5) away from where the border was or is."""
    module, context = build(), AttentionContext(grid=(8, 9))
    x = torch.randn(1, 8, 9, 12, dtype=torch.float64)
    y, y_rolled = (
        module(z.flatten(1, 2), context).unflatten(1, (8, 9)) for z in (x, x.roll((1, 2), dims=(1, 2)))
    )
    shifted = y.roll((1, 2), dims=(1, 2))
    torch.testing.assert_close(y_rolled[:, 3:6, 4:7], shifted[:, 3:6, 4:7], rtol=1e-11, atol=1e-12)
    assert (y_rolled[:, 0] - shifted[:, 0]).abs().max() > 1e-3


def test_heads_share_filters_only_when_asked():
    """One filter a channel of a head by default, one a channel of the model otherwise."""
    assert build().conv.conv.weight.shape == (4, 1, 5, 5)
    assert build(heads_share_filters=False).conv.conv.weight.shape == (12, 1, 5, 5)


@pytest.mark.parametrize("options", [{}, {"association": "quadratic", "heads_share_filters": False}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    closed, by_fvcore, by_torch = model_counts("lit", options, side=14)
    assert closed == by_fvcore == by_torch
