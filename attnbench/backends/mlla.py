"""The linear attention of MLLA ("Demystify Mamba in Vision"): elu + 1, 2-D RoPE and LePE."""

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


class MLLAOptions(attnbench.BackendOptions):
    """Options of `mlla`."""

    kernel_size: Literal[3, 5, 7] = 3
    """Side of LePE, the depthwise convolution on the values (released code: 3)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""
    eps: float = Field(default=1e-6, ge=0.0)
    """Added to the denominator q . mean(k)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class MLLAAttention(nn.Module):
    """R(q_i) (sum_j R(k_j)^T v_j) / (q_i . sum_j k_j) + LePE(v), q and k after elu + 1, R = 2-D RoPE.

    Only the numerator is rotated, and the rotation runs over the full width before the head split,
    so that the heads have different frequencies (released code). Only the attention module is here:
    MLLA's block also has a SiLU gate, a convolution before the attention and two position
    convolutions, which this bench leaves to the shared shell. The released module takes its own
    input, projected by the block, as V; here V comes from the shared projection and the output
    projection is the block's. [B, N, C] -> [B, N, C]; features, rotation and denominator in fp32.
    Source: arXiv:2405.16605, sec. 4 and table 1; formulas read in the released code.
    """

    def __init__(self, site: attnbench.AttentionSite, options: MLLAOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.frequencies = site.dim // 4
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.lepe = DepthwiseConv(site.dim, options.kernel_size)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = elu_plus_one(q), elu_plus_one(k)  # [B, N, C]
        exponents = torch.arange(self.frequencies, device=q.device, dtype=q.dtype) / self.frequencies
        cos, sin = grid_rotation(context.grid, exponents, q)  # [N, C / 2]
        q_rotated, k_rotated = (self._heads(rotate_pairs(z, cos, sin).to(v.dtype)) for z in (q, k))
        o = linear_attention(
            q_rotated,
            k_rotated,
            self._heads(v),
            # eps is added to q . mean(k) in the released code, hence N eps beside q . sum(k)
            eps=self.options.eps * x.shape[1],
            association=self.options.association,
            mass=(self._heads(q), self._heads(k)),
        )
        return self.out(merge_heads(o) + self.lepe(v, context.grid))

    def _heads(self, z: torch.Tensor) -> torch.Tensor:
        return split_heads(z, self.num_heads)  # [B, H, N, D]


def supports(
    site: attnbench.AttentionSite, options: MLLAOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse widths that do not split into pairs for rows and pairs for columns."""
    if site.dim % 4:
        return f"2-D RoPE turns channel pairs by row and column: dim must be a multiple of 4, got {site.dim}"
    return None


def macs(site: attnbench.AttentionSite, options: MLLAOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, k^2 N C for LePE, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    linear = 4 * n * c * c + options.kernel_size**2 * n * c
    return attnbench.MacCount(linear=linear) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `mlla`."""
    yield attnbench.AttentionBackend(
        name="mlla",
        summary="MLLA's linear attention: elu + 1, 2-D RoPE, convolution on the values (no block gate)",
        family="linear",
        source="MLLA arXiv:2405.16605, sec. 4; released code",
        options=MLLAOptions,
        build=MLLAAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
