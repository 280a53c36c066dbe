"""Differential attention: the difference of two softmax attentions per head, then a norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads


class DifferentialOptions(attnbench.BackendOptions):
    """Options of `differential`."""

    qkv_bias: bool = False
    """Bias of the query, key, value projection (released code: no)."""


class DifferentialAttention(nn.Module):
    """(1 - l0) RMSNorm((softmax(q1 k1^T / sqrt(d)) - lambda softmax(q2 k2^T / sqrt(d))) v) per head.

    d = D / 2: q1, q2 and k1, k2 are the halves of a head, v is whole. lambda = exp(lq1 . lk1) -
    exp(lq2 . lk2) + l0 with l0 = 0.8 - 0.6 exp(-0.3 layer_idx), one lambda and one RMSNorm weight
    for all heads. The difference of the maps times v is written as the difference of two SDPA
    calls, so that a fused kernel may serve where torch has one for values wider than queries; on the CPU
    torch 2.13 has none and forms both maps.

    [B, N, C] -> [B, N, C]; lambda and the norm's sums in at least fp32.
    Bidirectional, without the rotary embedding of the language model (positions are the skeleton's);
    the output projection has a bias, as every backend's here. `num_heads` counts pairs of maps, half
    as many as a softmax attention of equal map width has heads.
    Source: arXiv:2410.05258, eq. 1-3; released code (microsoft/unilm, Diff-Transformer) read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: DifferentialOptions) -> None:
        super().__init__()
        self.num_heads, half = site.num_heads, site.head_dim // 2
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * site.layer_idx)
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.lambda_q1, self.lambda_k1 = _lambda_vector(half), _lambda_vector(half)
        self.lambda_q2, self.lambda_k2 = _lambda_vector(half), _lambda_vector(half)
        self.norm = nn.RMSNorm(site.head_dim, eps=1e-5)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        (q1, q2), (k1, k2) = q.chunk(2, dim=-1), k.chunk(2, dim=-1)  # [B, H, N, d]
        first = F.scaled_dot_product_attention(q1, k1, v)
        second = F.scaled_dot_product_attention(q2, k2, v)
        lam = self._lambda()
        context.record("lambda", lam)
        difference = first - lam.to(first.dtype) * second
        # under autocast the weight is fp32, and torch's fused norm wants one dtype
        o = self.norm(difference.to(self.norm.weight.dtype)) * (1 - self.lambda_init)
        return self.out(merge_heads(o))

    def _lambda(self) -> torch.Tensor:
        dtype = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        first = (self.lambda_q1.to(dtype) * self.lambda_k1.to(dtype)).sum().exp()
        second = (self.lambda_q2.to(dtype) * self.lambda_k2.to(dtype)).sum().exp()
        return first - second + self.lambda_init


def _lambda_vector(size: int) -> nn.Parameter:
    return nn.Parameter(0.1 * torch.randn(size))


def supports(
    site: attnbench.AttentionSite, options: DifferentialOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse an odd head width: a head is split into two maps of equal width."""
    if site.head_dim % 2:
        even = [h for h in range(1, site.dim + 1) if site.dim % (2 * h) == 0]
        allowed = f"choose num_heads from {even}" if even else "choose an even dim"
        return f"head width {site.head_dim} = {site.dim} / {site.num_heads} is odd; {allowed}"
    return None


def macs(site: attnbench.AttentionSite, options: DifferentialOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 3 N^2 C for the attention (2 N^2 C with the maps formed)."""
    n, c = site.num_tokens, site.dim
    # two fused attentions multiply v twice; the maps subtracted first would multiply it once
    attention, formed = 3 * n * n * c, 2 * n * n * c
    return attnbench.MacCount(
        linear=4 * n * c * c, attention=attention, attention_cheaper=formed, norm=4 * n * c
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `differential`."""
    yield attnbench.AttentionBackend(
        name="differential",
        summary="differential attention: two softmax attentions per head, subtracted",
        family="softmax",
        source="Differential Transformer arXiv:2410.05258, eq. 1-3",
        options=DifferentialOptions,
        symmetry="permutation",
        build=DifferentialAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
    )
