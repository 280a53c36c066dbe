"""Kimi Delta Attention: its forms, what they cost, and what is refused."""

from __future__ import annotations

import pytest
import torch
from backend_counts import built, module_counts
from pydantic import ValidationError

from attnbench.backends import kda
from attnbench.backends.kda import KdaOptions
from attnbench.contract import AttentionContext


@pytest.mark.parametrize("options", [{"chunk_size": 16}, {"form": "recurrent", "scan": "forward"}])
def test_counts_are_what_executes(options):
    """Closed form and both counters agree to the last multiply-add, padded chunks included."""
    closed, by_fvcore, by_torch = module_counts("kda", options)
    assert closed == by_fvcore == by_torch


def test_both_forms_and_all_chunks_agree():
    """Chunked and recurrent differ by rounding only, in one chunk, several and padded ones."""
    x, context = torch.randn(2, 35, 12, dtype=torch.float64), AttentionContext(grid=(5, 7))
    site = {"dim": 12, "num_heads": 3, "grid": (5, 7)}
    one, *others = (
        built("kda", options, **site)(x, context)
        for options in ({"form": "recurrent"}, {"chunk_size": 64}, {"chunk_size": 2})
    )
    for other in others:
        torch.testing.assert_close(other, one)


def test_both_gates_are_in_fp32(monkeypatch):
    """Under bf16 the sigmoid of the step is rounded no more than its logit is."""
    seen = []
    monkeypatch.setattr(kda, "gated_delta_rule", lambda q, k, v, *gates, **_: seen.extend(gates) or v)
    module = built("kda", dim=12, num_heads=3, grid=(4, 3), dtype=torch.bfloat16)
    x = torch.randn(2, 12, 12, dtype=torch.bfloat16)
    module(x, AttentionContext(grid=(4, 3)))
    decay, beta = seen
    assert (decay.dtype, beta.dtype) == (torch.float32, torch.float32)
    forward = module.step(x)[..., :3].float().sigmoid().transpose(1, 2)  # [B, H, N]
    assert torch.equal(beta[:2, ..., 0], forward)


def test_what_is_refused_is_explained():
    """Chunks that are no power of two, and a chunk size that nothing uses."""
    with pytest.raises(ValidationError, match=r"power of two.*got 12"):
        KdaOptions(chunk_size=12)
    with pytest.raises(ValidationError, match="chunk_size: 16 does nothing with form: recurrent"):
        KdaOptions(form="recurrent", chunk_size=16)
