"""Polarity-aware linear attention (PolaFormer): same-signed and opposite-signed query-key responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    DepthwiseConv,
    QKVProjection,
    linear_attention,
    matmul_order,
    merge_heads,
    split_heads,
)


class PolaFormerOptions(attnbench.BackendOptions):
    """Options of `polaformer`."""

    alpha: float = Field(default=4.0, ge=0.0)
    """Range of the learned power, which lies in (1, 1 + alpha)."""
    kernel_size: Literal[3, 5, 7] = 5
    """Side of the depthwise convolution on the values."""
    qkv_bias: bool = True
    """Bias of the query, key, value and coefficient projections."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominators q . mean(k)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and feature width 2 D."""


class PolaFormerAttention(nn.Module):
    """([q+ q-] meets [k+ k-] on v's first half, [q- q+] on its second, + DWC(v)) * G, per head.

    z+ = ReLU(z)^p and z- = ReLU(-z)^p with p = 1 + alpha sigmoid(w), w in R^(H x D) learned, after
    a division of q and k by softplus(s), s in R^C learned; keys get a learned positional encoding
    first. Each of the two responses is a normalised linear attention on 2 D features a head; G = W_g x
    + b are the learned coefficients of the polarities, and multiply the convolution too (released
    code). One convolution on head channels is shared by the heads. [B, N, C] -> [B, N, C]; powers,
    sums over keys and divisions in fp32.
    Source: arXiv:2501.15061, sec. 3.2-3.3; formulas read in the released code.
    """

    def __init__(self, site: attnbench.AttentionSite, options: PolaFormerOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.coefficients = nn.Linear(site.dim, site.dim, bias=options.qkv_bias)
        self.scale = nn.Parameter(torch.zeros(site.dim))
        self.power = nn.Parameter(torch.zeros(site.dim))  # [H D]
        self.position = nn.Parameter(torch.zeros(site.num_tokens, site.dim))
        self.conv = DepthwiseConv(site.head_dim, options.kernel_size)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q_pos, q_neg = self._polarities(q)
        k_pos, k_neg = self._polarities(k + self.position)
        keys = torch.cat([k_pos, k_neg], -1)  # [B, H, N, 2D]
        v_same, v_opposite = split_heads(v, self.num_heads).chunk(2, -1)  # [B, H, N, D/2]
        # eps is added to q . mean(k) in the released code, hence N eps beside q . sum(k)
        eps, order = self.options.eps * x.shape[1], self._order(x)
        q_same, q_opposite = torch.cat([q_pos, q_neg], -1), torch.cat([q_neg, q_pos], -1)
        same = linear_attention(q_same, keys, v_same, eps=eps, association=order)
        opposite = linear_attention(q_opposite, keys, v_opposite, eps=eps, association=order)
        o = merge_heads(torch.cat([same, opposite], -1))
        return self.out((o + self.conv(v, context.grid)) * self.coefficients(x))

    def _polarities(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the powers of the positive and of the negative part: [B, N, C] -> two [B, H, N, D]."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        power = 1 + self.options.alpha * self.power.to(dtype).sigmoid()
        scaled = z.to(dtype) / F.softplus(self.scale.to(dtype))
        positive, negative = (part.relu().pow(power).to(z.dtype) for part in (scaled, -scaled))
        return split_heads(positive, self.num_heads), split_heads(negative, self.num_heads)

    def _order(self, x: torch.Tensor) -> Association:
        head_dim = x.shape[-1] // self.num_heads
        return matmul_order(self.options.association, x.shape[1], _crossover(head_dim))


def _crossover(head_dim: int) -> int:
    """Tokens from which q (k^T v) is the cheaper order: the least N with 2 N D^2 <= N^2 (2 D + D / 2)."""
    return -(-4 * head_dim // 5)


def supports(
    site: attnbench.AttentionSite, options: PolaFormerOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse odd heads: half of a head's values goes to each response."""
    if site.head_dim % 2:
        return (
            "half of a head's values goes to each polarity: dim / num_heads must be even, got "
            f"{site.dim} / {site.num_heads} = {site.head_dim}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: PolaFormerOptions) -> attnbench.MacCount:
    """5 N C^2 for the projections, k^2 N C for the convolution, 4 N C D (or 5 N^2 C) for the responses."""
    n, c, d = site.num_tokens, site.dim, site.head_dim
    # a response: features of width 2 D on values of width D / 2, H heads; there are two responses
    cost = {"linear": 4 * n * c * d, "quadratic": 5 * n * n * c}
    order = matmul_order(options.association, n, _crossover(d))
    return attnbench.MacCount(
        linear=5 * n * c * c + options.kernel_size**2 * n * c,
        attention=cost[order],
        attention_cheaper=min(cost.values()),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `polaformer`."""
    yield attnbench.AttentionBackend(
        name="polaformer",
        summary="polarity-aware linear attention with learned powers and coefficients",
        family="linear",
        source="PolaFormer arXiv:2501.15061, sec. 3.2-3.3; released code",
        options=PolaFormerOptions,
        build=PolaFormerAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
