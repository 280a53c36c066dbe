"""Rank-Augmented Linear Attention (RALA): keys reweighted by a global query, output gated by the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    DepthwiseConv,
    QKVProjection,
    contraction_macs,
    elu_plus_one,
    grid_rotation,
    linear_attention,
    merge_heads,
    rotate_pairs,
    split_heads,
)


class RALAOptions(attnbench.BackendOptions):
    """Options of `rala`."""

    kernel_size: Literal[3, 5, 7] = 5
    """Side of LePE, the depthwise convolution on the values (released code: 5)."""
    qkv_bias: bool = True
    """Bias of the query, key, value and modulation projections."""
    eps: float = Field(default=1e-6, ge=0.0)
    """Added to the denominator q . mean(k)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class RALAAttention(nn.Module):
    """(R(q_i) (sum_j R(a_j k_j)^T v_j) / (q_i . sum_j a_j k_j) + LePE(v)_i) * g_i, per head.

    q and k after elu + 1; a_j = N softmax_j(mean(q) . k_j / sqrt(D)) raises the rank of the key-value
    state; g = W_g x + b (no activation) raises that of the output. R is 2-D RoPE inside each head,
    first half of the channels by row, second half by column, on the numerator only.
    [B, N, C] -> [B, N, C]; features, softmax, rotation and denominator in fp32.
    Source: arXiv:2411.07635, sec. 3.2-3.3; RoPE, LePE and constants read in the released code.
    """

    def __init__(self, site: attnbench.AttentionSite, options: RALAOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.frequencies = site.head_dim // 4
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.modulation = nn.Linear(site.dim, site.dim, bias=options.qkv_bias)
        self.lepe = DepthwiseConv(site.dim, options.kernel_size)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = (split_heads(elu_plus_one(z), self.num_heads) for z in (q, k))  # [B, H, N, D]
        k = k * _token_weights(q, k)
        exponents = torch.linspace(0, 1, self.frequencies, device=q.device, dtype=q.dtype)
        cos, sin = grid_rotation(context.grid, exponents, q)  # [N, D / 2]
        q_rotated, k_rotated = (rotate_pairs(z, cos, sin).to(v.dtype) for z in (q, k))
        o = linear_attention(
            q_rotated,
            k_rotated,
            split_heads(v, self.num_heads),
            # eps is added to q . mean(k) in the released code, hence N eps beside q . sum(k)
            eps=self.options.eps * x.shape[1],
            association=self.options.association,
            mass=(q, k),
        )
        return self.out((merge_heads(o) + self.lepe(v, context.grid)) * self.modulation(x))


def _token_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """N softmax over tokens of mean(q) . k / sqrt(D): [B, H, N, D] -> [B, H, N, 1], mean 1."""
    # elementwise on purpose: autocast would run a matmul here in half precision
    logits = (k * (q.mean(-2, keepdim=True) * q.shape[-1] ** -0.5)).sum(-1, keepdim=True)
    return logits.softmax(-2) * k.shape[-2]


def supports(
    site: attnbench.AttentionSite, options: RALAOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse heads that do not split into pairs for rows and pairs for columns."""
    if site.head_dim % 4:
        return (
            "2-D RoPE turns pairs of a head's channels by row and by column: dim / num_heads must be a "
            f"multiple of 4, got {site.dim} / {site.num_heads}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: RALAOptions) -> attnbench.MacCount:
    """5 N C^2 for the projections, k^2 N C for LePE, 2 N C min(N, D) for the attention.

    The N C products of the token weights are elementwise and a sum, hence in no count.
    """
    n, c = site.num_tokens, site.dim
    linear = 5 * n * c * c + options.kernel_size**2 * n * c
    return attnbench.MacCount(linear=linear) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `rala`."""
    yield attnbench.AttentionBackend(
        name="rala",
        summary="rank-augmented linear attention: reweighted keys, modulated output, 2-D RoPE",
        family="linear",
        source="RALA arXiv:2411.07635, sec. 3.2-3.3; released code",
        options=RALAOptions,
        build=RALAAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
