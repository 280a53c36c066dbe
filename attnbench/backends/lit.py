"""LiT's attention: ReLU linear attention with few heads and a depthwise convolution on the values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    DepthwiseConv,
    QKVProjection,
    contraction_macs,
    linear_attention,
    merge_heads,
    split_heads,
)


class LiTOptions(attnbench.BackendOptions):
    """Options of `lit`; the number of heads is the model's (few: 2 for S/2 to 4 for XL/2 in the paper)."""

    kernel_size: PositiveInt = 5
    """Side of the depthwise convolution on the values; odd."""
    heads_share_filters: bool = True
    """One filter for each channel of a head, the same in every head; off: one for each of the C channels."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (as in DiT)."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"kernel_size must be odd (3, 5, 7), got {value}")
        return value


class LiTAttention(nn.Module):
    """o_i = ReLU(q_i) (sum_j ReLU(k_j)^T v_j) / (ReLU(q_i) . sum_j ReLU(k_j) + eps) + DWC_5x5(v)_i, per head.

    [B, N, C] -> [B, N, C]; the sum over keys and the division in fp32 for half types.
    Source: LiT arXiv:2501.12976. Neither its text beyond the introduction nor its released code
    (techmonsterwang/LiT) could be had: formula, 5x5 filters and head counts (2 at S/2, 4 at XL/2) are from
    reading notes and summaries, which agree. The bias of q, k, v is that of the first author's later code
    (LINA), where filters shared by the heads stand in a line that is commented out: what runs there has one
    filter for each of the C channels, on the attention's input. eps is ours: LINA adds 1e-6 to ReLU(q), to
    ReLU(k) and to q . mean_j k_j.
    """

    def __init__(self, site: attnbench.AttentionSite, options: LiTOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        channels = site.head_dim if options.heads_share_filters else site.dim
        self.conv = DepthwiseConv(channels, options.kernel_size)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        heads = (split_heads(z, self.num_heads) for z in (q, k, v))  # [B, H, N, D]
        eps, order = self.options.eps, self.options.association
        o = linear_attention(*heads, eps=eps, association=order, rectify=True)
        return self.out(merge_heads(o) + self.conv(v, context.grid))


def macs(site: attnbench.AttentionSite, options: LiTOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, k^2 N C for the convolution, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    linear = 4 * n * c * c + options.kernel_size**2 * n * c
    return attnbench.MacCount(linear=linear) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `lit`."""
    yield attnbench.AttentionBackend(
        name="lit",
        summary="ReLU linear attention plus a depthwise convolution as in LiT",
        family="linear",
        source="LiT arXiv:2501.12976, sec. 3; formula from reading notes of the paper",
        options=LiTOptions,
        symmetry="translation",
        build=LiTAttention,
        macs=macs,
        complexity="linear",
    )
