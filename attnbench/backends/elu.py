"""Linear attention with the feature map elu + 1, as in "Transformers are RNNs"."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction_macs,
    elu_plus_one,
    linear_attention,
    merge_heads,
    split_heads,
)


class EluOptions(attnbench.BackendOptions):
    """Options of `elu`."""

    eps: float = Field(default=1e-6, ge=0.0)
    """Added to the denominator (released code: 1e-6)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""


class EluAttention(nn.Module):
    """o_i = phi(q_i) (sum_j phi(k_j)^T v_j) / (phi(q_i) . sum_j phi(k_j) + eps), phi = elu + 1, per head.

    [B, N, C] -> [B, N, C]; without a causal mask and without 1/sqrt(D); phi, the sum
    over keys and the division in at least fp32. Source: arXiv:2006.16236, eq. 5-7; released code
    (idiap/fast-transformers, attention/linear_attention.py) read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: EluOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        q, k = (elu_plus_one(z).to(v.dtype) for z in (q, k))
        o = linear_attention(q, k, v, eps=self.options.eps, association=self.options.association)
        return self.out(merge_heads(o))


def macs(site: attnbench.AttentionSite, options: EluOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N C min(N, D) for the attention."""
    return attnbench.MacCount(linear=4 * site.num_tokens * site.dim**2) + contraction_macs(
        site, options.association
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `elu`."""
    yield attnbench.AttentionBackend(
        name="elu",
        summary="linear attention with the feature map elu + 1",
        family="linear",
        source="Transformers are RNNs arXiv:2006.16236, eq. 5-7",
        options=EluOptions,
        symmetry="permutation",
        build=EluAttention,
        macs=macs,
        complexity="linear",
    )
