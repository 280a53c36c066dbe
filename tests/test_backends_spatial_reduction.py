"""Spatial reduction: its limits, the tokens a flooring convolution drops, and what it costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}
CONTEXT = AttentionContext(grid=(7, 9))


def test_stride_one_is_softmax_attention():
    """Stride 1 has neither convolution nor norm."""
    softmax, module = built("softmax", **SITE), built("spatial-reduction", {"stride": 1}, **SITE)
    x = torch.randn(2, 63, 12, dtype=torch.float64)
    assert torch.equal(module(x, CONTEXT), softmax(x, CONTEXT))


@pytest.mark.parametrize(("stride", "token", "reaches"), [(2, 54, 1), (2, 8, 1), (2, 0, 63), (3, 8, 63)])
def test_rest_of_the_grid_lends_no_keys(stride, token, reaches):
    """A token in the last odd row or column changes its own output only; any other changes all."""
    module = built("spatial-reduction", {"stride": stride}, **SITE)
    x = torch.randn(1, 63, 12, dtype=torch.float64)
    moved = x.clone()
    moved[0, token] += 1
    changed = (module(x, CONTEXT) != module(moved, CONTEXT)).any(-1).sum()
    assert changed == reaches


def test_stride_beyond_the_grid_is_refused():
    """A stride above the shorter side leaves no key and is unsupported."""
    backend = registry().backend("spatial-reduction")
    reasons = [
        backend.supports(AttentionSite(**SITE), backend.options(stride=s), torch.float32, torch.device("cpu"))
        for s in (7, 8)
    ]
    assert reasons[0] is None
    assert "at most 7" in reasons[1]


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_macs(stride):
    """The closed form is what executes, whole cases only."""
    assert len(set(module_counts("spatial-reduction", {"stride": stride}))) == 1
