"""Log-linear attention as a layer: which tokens it sees, what its levels weigh, and what it costs."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts
from pydantic import ValidationError

from attnbench.backends.log_linear import LogLinearOptions
from attnbench.contract import AttentionContext


def test_a_level_weighs_what_meets_there():
    """With all weights but level 3's at zero, a token sees what shares a block of 8 with it but none of 4."""
    site = {"dim": 12, "num_heads": 3, "grid": (16, 1)}
    module = built("log-linear", {"chunk_size": 4}, **site)
    with torch.no_grad():
        module.conv.conv.weight.zero_()[:, :, 1, 1] = 1  # each token alone
        module.skip.zero_()
        module.decay.log_rate.fill_(-1e4)  # nothing forgotten: a decay would see the tokens in between
        # softplus(-1e4) is 0: the logit is the sum of x, which is made large below
        module.level.weight.fill_(1.0)
        module.level_scale.fill_(-1e4)[:, 3] = 1.0
    x = torch.rand(16, 12, dtype=torch.float64) + 1

    def one(z):
        return module(z[None], AttentionContext(grid=(16, 1)))[0].sum(-1)

    seen = torch.autograd.functional.jacobian(one, x).abs().amax(-1) > 0
    i, j = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    expected = ((i // 8 == j // 8) & (i // 4 != j // 4)) | (i == j)  # and itself, by query and gate
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("options", [{"chunk_size": 8}, {}])
def test_counts_are_what_executes(options):
    """Closed form and both counters agree to the last multiply-add, padded chunks included."""
    closed, by_fvcore, by_torch = module_counts("log-linear", options)
    assert closed == by_fvcore == by_torch


def test_chunks_are_powers_of_two():
    """Other chunk sizes are refused with the value and what is allowed."""
    with pytest.raises(ValidationError, match=r"power of two.*got 48"):
        LogLinearOptions(chunk_size=48)
