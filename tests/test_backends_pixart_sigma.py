"""PixArt-Sigma's key and value compression: grids, initialisation, and what executes."""

from __future__ import annotations

import pytest
import torch
from backend_counts import model_counts
from references import pixart_sigma

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.models import build_model
from attnbench.models.recipes import load_recipes
from attnbench.plugins import registry
from attnbench.specs import AttentionSpec

BACKEND = registry().backend("pixart-sigma")


def build(grid, **options):
    torch.manual_seed(0)
    return BACKEND.build(AttentionSite(dim=12, num_heads=3, grid=grid), BACKEND.options(**options)).double()


@pytest.mark.parametrize("stride", [2, 4])
def test_a_divided_grid_matches_the_reference(stride):
    """On 8x8 tokens, strides 2 and 4 give the formula's output, with moved weights in the compression."""
    module = build((8, 8), stride=stride)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, context = torch.randn(2, 64, 12, dtype=torch.float64), AttentionContext(grid=(8, 8))
    expected = pixart_sigma.reference(module, x, context)
    torch.testing.assert_close(module(x, context), expected, rtol=1e-11, atol=1e-12)


def test_tokens_past_the_last_full_square_are_no_keys():
    """On 5x5 tokens at stride 2, the last row and column change their own output only."""
    module, context = build((5, 5)), AttentionContext(grid=(5, 5))
    x = torch.randn(1, 5, 5, 12, dtype=torch.float64)
    moved = x.clone()
    moved[:, 4] += 1
    moved[:, :, 4] += 1
    y, y_moved = (module(z.flatten(1, 2), context).unflatten(1, (5, 5)) for z in (x, moved))
    torch.testing.assert_close(y[:, :4, :4], y_moved[:, :4, :4], rtol=0, atol=0)
    assert (y[:, 4] - y_moved[:, 4]).abs().min() > 0


def test_the_compression_starts_as_an_average_in_a_built_model():
    """The skeleton leaves the convolution at weight 1/s^2 and bias 0."""
    config = load_recipes()["tiny-dit"].model_copy(
        update={"attention": AttentionSpec(name="pixart-sigma", options={"stride": 4})}
    )
    conv = build_model(config, 16, 10).blocks[0].attn.compress
    assert conv.weight.unique().tolist() == [1 / 16]
    assert not conv.bias.any()


def test_a_stride_without_keys_is_refused():
    """A stride above a side of the grid is a reason, not a crash."""
    site, options = AttentionSite(dim=12, num_heads=3, grid=(3, 9)), BACKEND.options(stride=4)
    assert "choose a stride of at most 3" in BACKEND.supports(
        site, options, torch.float32, torch.device("cpu")
    )


@pytest.mark.parametrize(("size", "stride"), [(16, 2), (16, 4), (14, 2), (16, 1)])
def test_closed_form_is_what_executes(size, stride):
    """Both counters see the closed form to the last multiply-add, on divided grids and others."""
    closed, by_fvcore, by_torch = model_counts("pixart-sigma", {"stride": stride}, side=size)
    assert closed == by_fvcore == by_torch
