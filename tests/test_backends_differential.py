"""Differential attention: what the difference cancels, its lambda by depth, and what it costs."""

from __future__ import annotations

import math

import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext, AttentionSite
from attnbench.plugins import registry

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}


def test_equal_maps_leave_normalised_softmax_attention():
    """With equal halves the difference is (1 - lambda) softmax attention, whose factor the norm removes."""
    module = built("differential", **SITE)
    module.norm.eps = 0.0
    with torch.no_grad():
        halves = module.qkv.qkv.weight[:24].view(2, 3, 2, 2, 12)  # q or k, head, map, channel, input
        halves[:, :, 1] = halves[:, :, 0]
    x = torch.randn(2, 63, 12, dtype=torch.float64)
    q, k, v = (z.view(2, 63, 3, 4).transpose(1, 2) for z in (x @ module.qkv.qkv.weight.T).chunk(3, -1))
    attended = (q[..., :2] @ k[..., :2].mT / math.sqrt(2)).softmax(-1) @ v
    normed = attended / attended.square().mean(-1, keepdim=True).sqrt()
    expected = module.out((1 - 0.2) * normed.transpose(1, 2).flatten(2))
    y = module(x, AttentionContext(grid=(7, 9)))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_lambda_starts_at_its_depth():
    """Without its vectors lambda is 0.8 - 0.6 exp(-0.3 l), l the layer counted from 0; it is recorded."""
    for layer, expected in ((0, 0.2), (5, 0.8 - 0.6 * math.exp(-1.5))):
        module = built("differential", **SITE, layer_idx=layer, depth=6)
        seen = {}
        with torch.no_grad():
            module.lambda_q1.zero_()
            module.lambda_q2.zero_()
        module(
            torch.randn(1, 63, 12, dtype=torch.float64),
            AttentionContext(grid=(7, 9), layer_idx=layer, recorder=seen.__setitem__),
        )
        assert math.isclose(seen[f"blocks.{layer}.lambda"].item(), expected, rel_tol=1e-15)


def test_odd_head_width_is_refused():
    """A head that cannot be halved is unsupported, with the numbers of heads that work."""
    backend = registry().backend("differential")
    site = AttentionSite(dim=12, num_heads=4, grid=(7, 9))
    reason = backend.supports(site, backend.options(), torch.float32, torch.device("cpu"))
    assert "[1, 2, 3, 6]" in reason


def test_macs():
    """The closed form is what executes; forming the maps would save one of three N^2 C."""
    backend = registry().backend("differential")
    count = backend.macs(AttentionSite(dim=24, num_heads=3, grid=(7, 9)), backend.options())
    assert len(set(module_counts("differential", {}))) == 1
    assert 3 * count.attention_cheaper == 2 * count.attention
