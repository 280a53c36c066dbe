"""Linformer: its limits, its initialisation, and what it costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.models import build_model
from attnbench.models.recipes import load_recipes
from attnbench.plugins import registry
from attnbench.specs import AttentionSpec

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}


def test_identity_mixtures_are_softmax_attention():
    """With one mixture per token, each being that token, nothing is left of the approximation."""
    softmax = built("softmax", {"qkv_bias": False}, **SITE)
    module = built("linformer", {"rank": 63}, **SITE)
    with torch.no_grad():
        module.key_mixtures.copy_(torch.eye(63))
        module.value_mixtures.copy_(torch.eye(63))
    x = torch.randn(2, 63, 12, dtype=torch.float64)
    context = AttentionContext(grid=(7, 9))
    torch.testing.assert_close(module(x, context), softmax(x, context), rtol=1e-12, atol=1e-12)


def test_shared_projection_is_one_matrix():
    """Key-value sharing saves exactly one [rank, N] matrix."""
    sizes = [
        sum(p.numel() for p in built("linformer", {"rank": 5, "shared_projection": s}, **SITE).parameters())
        for s in (False, True)
    ]
    assert sizes[0] - sizes[1] == 5 * 63


def test_too_many_mixtures_are_refused():
    """More mixtures than tokens is unsupported, with the number of tokens as the limit."""
    backend = registry().backend("linformer")
    site = AttentionSite(**SITE)
    reasons = [
        backend.supports(site, backend.options(rank=rank), torch.float32, torch.device("cpu"))
        for rank in (63, 64)
    ]
    assert reasons[0] is None
    assert "63" in reasons[1]


def test_mixtures_keep_the_released_initialisation():
    """In a whole model E stays Xavier-uniform with gain 1/sqrt(2): variance 1 / (N + rank)."""
    spec = AttentionSpec(name="linformer", options={"rank": 16})
    config = load_recipes()["tiny-dit"].model_copy(update={"attention": spec, "depth": 1})
    mixtures = build_model(config, 16, 10).blocks[0].attn.key_mixtures
    rank, tokens = mixtures.shape
    expected = 1 / (rank + tokens)
    assert mixtures.abs().max() <= (3 * expected) ** 0.5
    # the variance estimate of n uniform numbers has relative deviation sqrt(0.8 / n): 5 of them
    assert abs(mixtures.var().item() / expected - 1) <= 5 * (0.8 / mixtures.numel()) ** 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_macs(shared):
    """The closed form is what executes; sharing saves parameters, not multiply-adds."""
    assert len(set(module_counts("linformer", {"rank": 10, "shared_projection": shared}))) == 1
