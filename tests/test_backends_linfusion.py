"""LinFusion's generalised linear attention: what it is without its shifts, and what the shifts cost."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts

from attnbench.contract import AttentionContext

SITE = {"dim": 12, "num_heads": 3, "grid": (7, 9)}


def test_without_its_shifts_it_is_linear_attention_with_elu():
    """Where the second layers give nothing, the tokens stay where they are; eps stands beside a mean."""
    module = built("linfusion", {"qkv_bias": True}, **SITE)
    plain = built("elu", {"eps": 63 * module.options.eps}, **SITE)
    for shift in (module.shift_q, module.shift_k):
        torch.nn.init.zeros_(shift.leave.weight)
        torch.nn.init.zeros_(shift.leave.bias)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("shift")})
    x, context = torch.randn(2, 63, 12, dtype=torch.float64), AttentionContext(grid=(7, 9))
    # the projections are the same sums in matrix products of other shapes, 12 terms, then 63
    torch.testing.assert_close(module(x, context), plain(x, context), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"mid_dim": 5, "association": "quadratic"}])
def test_closed_form_is_what_executes(options):
    """Both counters see the closed form to the last multiply-add."""
    counts = module_counts("linfusion", options)
    assert len(set(counts)) == 1, counts
