"""Efficient attention: queries normalised over channels, keys over tokens, by two softmaxes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction,
    contraction_macs,
    merge_heads,
    split_heads,
)


class EfficientOptions(attnbench.BackendOptions):
    """Options of `efficient`."""

    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""


class EfficientAttention(nn.Module):
    """softmax_D(q) (softmax_N(k)^T v) per head: each head channel of k is one attention map over tokens.

    [B, N, C] -> [B, N, C]; both softmaxes without a scale, accumulated in fp32 inside torch's
    kernel; the rows of softmax_D(q) softmax_N(k)^T sum to one, so there is no denominator. The
    released module's residual is the transformer block's here. Source: arXiv:1812.01243, sec. 3,
    with softmax normalisation; released code (cmsflash/efficient-attention) read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: EfficientOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        # autocast makes a softmax fp32: cast back, as the matmuls would do one by one
        q, k = q.softmax(-1).to(v.dtype), k.softmax(-2).to(v.dtype)
        return self.out(merge_heads(contraction(q, k, v, self.options.association)))


def macs(site: attnbench.AttentionSite, options: EfficientOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N C min(N, D) for the attention."""
    return attnbench.MacCount(linear=4 * site.num_tokens * site.dim**2) + contraction_macs(
        site, options.association
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `efficient`."""
    yield attnbench.AttentionBackend(
        name="efficient",
        summary="efficient attention: softmax of q over channels, of k over tokens",
        family="linear",
        source="Efficient Attention arXiv:1812.01243, sec. 3",
        options=EfficientOptions,
        symmetry="permutation",
        build=EfficientAttention,
        macs=macs,
        complexity="linear",
    )
