"""Gated DeltaNet: which tokens a scan sees, what it costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts
from pydantic import ValidationError

from attnbench.backends import gated_deltanet
from attnbench.backends.gated_deltanet import GatedDeltaNetOptions, macs, supports
from attnbench.contract import AttentionContext, AttentionSite

SITE = {"dim": 12, "num_heads": 3, "grid": (4, 3)}


def seen(options):
    """Which tokens [N, N] the output of a token depends on."""
    module = built("gated-deltanet", options, **SITE)

    def one(x):
        return module(x[None], AttentionContext(grid=SITE["grid"]))[0].sum(-1)

    x = torch.randn(12, 12, dtype=torch.float64)
    return torch.autograd.functional.jacobian(one, x).abs().amax(-1) > 0


def test_every_token_sees_every_token():
    """Two directions reach all of an image; one reaches what comes before, and the convolution's next row."""
    assert seen({"chunk_size": 4}).all()
    forward = seen({"chunk_size": 4, "scan": "forward"})
    reach = SITE["grid"][1] + 1  # the token below and to the right
    row, column = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    assert forward[column <= row].all()
    assert not forward[column > row + reach].any()


def test_a_mirrored_image_gives_the_mirrored_output_once_the_directions_change_places():
    """Backward is forward on the reversed tokens, with the gates of the other direction."""
    module, swapped = (built("gated-deltanet", **SITE) for _ in range(2))
    with torch.no_grad():
        for name in ("forget.weight", "step.weight", "decay.log_rate", "decay.bias"):
            parameter = swapped.get_parameter(name)
            parameter.copy_(parameter.unflatten(0, (2, -1)).flip(0).flatten(0, 1))
        weight = swapped.conv.conv.weight
        weight.copy_(weight.flip(2, 3))
    x, context = torch.randn(2, 12, 12, dtype=torch.float64), AttentionContext(grid=SITE["grid"])
    torch.testing.assert_close(swapped(x.flip(1), context).flip(1), module(x, context))


@pytest.mark.parametrize("options", [{"chunk_size": 16}, {"form": "recurrent", "scan": "forward"}])
def test_counts_are_what_executes(options):
    """Closed form and both counters agree to the last multiply-add, padded chunks included."""
    closed, by_fvcore, by_torch = module_counts("gated-deltanet", options)
    assert closed == by_fvcore == by_torch


def test_the_papers_count_takes_the_cheaper_form():
    """The recurrence needs fewer multiply-adds than its chunks: 3 N Dk Dv a head and direction."""
    site = AttentionSite(dim=384, num_heads=6, grid=(16, 16))
    chunked, recurrent = (macs(site, GatedDeltaNetOptions(form=form)) for form in ("chunked", "recurrent"))
    assert recurrent.attention == 2 * 6 * 256 * 3 * 48 * 96
    assert chunked.attention > recurrent.attention
    assert chunked.paper == recurrent.paper == recurrent.full


def test_both_gates_are_in_fp32(monkeypatch):
    """Under bf16 the sigmoid of the step is rounded no more than its logit is."""
    seen = []
    monkeypatch.setattr(
        gated_deltanet, "gated_delta_rule", lambda q, k, v, *gates, **_: seen.extend(gates) or v
    )
    module = built("gated-deltanet", dim=12, num_heads=3, grid=(4, 3), dtype=torch.bfloat16)
    x = torch.randn(2, 12, 12, dtype=torch.bfloat16)
    module(x, AttentionContext(grid=(4, 3)))
    decay, beta = seen
    assert (decay.dtype, beta.dtype) == (torch.float32, torch.float32)
    forward = module.step(x)[..., :3].float().sigmoid().transpose(1, 2)  # [B, H, N]
    assert torch.equal(beta[:2, ..., 0], forward)


def test_what_is_refused_is_explained():
    """Widths that the heads do not divide, and a chunk size that nothing uses."""
    site = AttentionSite(dim=12, num_heads=4, grid=(4, 4))
    reason = supports(site, GatedDeltaNetOptions(expand_v=1.25), torch.float32, torch.device("cpu"))
    assert all(part in reason for part in ("num_heads=4", "dim 12 x expand_k 0.75 = 9", "0.333333"))
    with pytest.raises(ValidationError, match=r"power of two.*got 48"):
        GatedDeltaNetOptions(chunk_size=48)
    with pytest.raises(ValidationError, match="chunk_size: 16 does nothing with form: recurrent"):
        GatedDeltaNetOptions(form="recurrent", chunk_size=16)
