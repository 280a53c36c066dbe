"""ReLU linear attention as released with Sana."""

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
    linear_attention,
    merge_heads,
    split_heads,
)


class LinearOptions(attnbench.BackendOptions):
    """Options of `linear`."""

    qk_norm: bool = False
    """RMSNorm of queries and keys over the full width (off in Sana's image models)."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class LinearAttention(nn.Module):
    """o_i = ReLU(q_i) (sum_j ReLU(k_j)^T v_j) / (ReLU(q_i) . sum_j ReLU(k_j) + eps), per head.

    [B, N, C] -> [B, N, C]. Projections q, k, v without bias, output with bias; the sum over keys
    and the division in fp32. Source: Sana arXiv:2410.10629, sec. 2.2 (LiteLA); arXiv:2601.13683 eq. 4.
    """

    def __init__(self, site: attnbench.AttentionSite, options: LinearOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=False)
        self.q_norm = nn.RMSNorm(site.dim, eps=1e-6) if options.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(site.dim, eps=1e-6) if options.qk_norm else nn.Identity()
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = self.q_norm(q).relu(), self.k_norm(k).relu()
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))  # [B, H, N, D]
        o = linear_attention(q, k, v, eps=self.options.eps, association=self.options.association)
        return self.out(merge_heads(o))


def macs(site: attnbench.AttentionSite, options: LinearOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    norm = 2 * 4 * n * c if options.qk_norm else 0
    return attnbench.MacCount(linear=4 * n * c * c, norm=norm) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `linear`."""
    yield attnbench.AttentionBackend(
        name="linear",
        summary="ReLU linear attention as in Sana",
        source="Sana arXiv:2410.10629; arXiv:2601.13683 eq. 4",
        options=LinearOptions,
        symmetry="permutation",
        build=LinearAttention,
        macs=macs,
        complexity="linear",
    )
