"""The kit counts plugins that use what torch cannot run on the meta device, or says what it cannot count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from broken_backends import Sound
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from attnbench.contract import AttentionBackend, MacCount
from attnbench.layers import contraction_macs, linear_attention, merge_heads, split_heads
from attnbench.testing import run_checks


class GroupedExperts(nn.Module):
    """Two experts in fp32, each for one half of the tokens: F.grouped_mm as a plugin may call it."""

    def __init__(self, site, options):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, site.dim, site.dim) / site.dim)

    def forward(self, x, context):
        tokens = x.flatten(0, 1)
        half = len(tokens) // 2
        ends = torch.tensor([half, len(tokens)], dtype=torch.int32, device=x.device)
        grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
        return grouped_mm(tokens, self.experts, offs=ends).view_as(x)


class Flex(nn.Module):
    """flex_attention on one head, q = k = v."""

    def __init__(self, site, options):
        super().__init__()
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x, context):
        q = x.unsqueeze(1)
        return self.out(flex_attention(q, q, q).squeeze(1))


def record(build, macs, **declared):
    return AttentionBackend(
        name="theirs", summary="a test", source="none", build=build, macs=macs, **declared
    )


def test_grouped_products_in_fp32_are_counted():
    """torch's own runs on the meta device in bf16 alone."""
    counted = record(GroupedExperts, lambda site, options: MacCount(unhooked=site.num_tokens * site.dim**2))
    (result,) = run_checks(counted, only=["macs"])
    assert result.status == "passed", result.detail


def test_flex_attention_fails_by_name_and_spoils_no_later_check():
    """Its row says what to do; what runs after it in the process runs as before."""
    module = record(Flex, lambda site, options: MacCount(linear=0), complexity="quadratic")
    results = {
        result.name: result for result in run_checks(module, only=["macs", "macs-scaling", "state-dict"])
    }
    for name in ("macs", "macs-scaling"):
        assert results[name].status == "failed"
        assert "cannot run flex_attention" in results[name].detail
        assert "register_flop_formula" in results[name].detail
    x = torch.randn(1, 1, 16, 8)
    assert flex_attention(x, x, x).shape == x.shape


class EitherOrder(Sound):
    """Linear attention in the cheaper order of its products, as `linear_attention` takes it."""

    def mix(self, q, k, v):
        heads = (split_heads(z, self.num_heads) for z in (q.relu(), k.relu(), v))
        return merge_heads(linear_attention(*heads, eps=1e-6))


def attention_macs(attention):
    return lambda site, options: MacCount(linear=4 * site.num_tokens * site.dim**2, attention=attention(site))


WRONG = {
    "the linear order's, of fewer tokens, too": lambda s: 2 * s.num_tokens * s.dim * s.head_dim,
    "the quadratic order's, of more tokens, too": lambda s: 2 * s.num_tokens**2 * s.dim,
    "of three heads": lambda s: 2 * s.num_tokens * s.dim * min(s.num_tokens, s.dim // 3),
    "of several heads": lambda s: (
        2 * s.num_tokens * s.dim * (0 if s.num_heads == 1 else min(s.num_tokens, s.head_dim))
    ),
    "of one head": lambda s: 2 * s.num_tokens * s.dim * min(s.num_tokens, s.dim),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_count_that_is_right_at_some_sites_only_is_seen(wrong):
    """Below and above the head's width, with one head and several: the right form alone is right at all."""
    (result,) = run_checks(record(EitherOrder, attention_macs(WRONG[wrong])), only=["macs"])
    assert result.status == "failed"
    assert "num_heads" in result.detail  # where


def test_the_right_count_of_either_order_passes():
    """What the wrong ones are held against."""
    right = record(EitherOrder, lambda s, o: attention_macs(lambda s: 0)(s, o) + contraction_macs(s, "auto"))
    (result,) = run_checks(right, only=["macs"])
    assert result.status == "passed", result.detail
    assert result.detail == "N/D 16/4, 63/4, 256/4, 6/16, 6/12 (1 head), 16/12 (1 head)"
