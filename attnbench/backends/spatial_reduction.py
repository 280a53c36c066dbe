"""Spatial-reduction attention (PVT): keys and values from a strided convolution of the token grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads


class SpatialReductionOptions(attnbench.BackendOptions):
    """Options of `spatial-reduction`."""

    stride: PositiveInt = 2
    """Side and stride s of the convolution (PVT: 8, 4, 2, 1 by stage); 1 is plain softmax attention."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released models: yes)."""


class SpatialReductionAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v per head; q from x, k and v from LayerNorm(Conv_{s,s}(x)).

    [B, N, C] -> [B, N, C]; the softmax through torch's fused kernel. Where s does not divide the
    grid the convolution floors, as in the released code: the last rows or columns (fewer than s) are
    queries but lend nothing to keys and values. Query, key and value weights are the three parts of
    the shared projection, applied to different tokens. Source: PVT arXiv:2102.12122, sec. 3.3;
    released code (whai362/PVT, classification/pvt.py) read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: SpatialReductionOptions) -> None:
        super().__init__()
        self.num_heads, stride = site.num_heads, options.stride
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        # stride 1 has neither convolution nor norm (released code)
        self.reduce = nn.Conv2d(site.dim, site.dim, stride, stride=stride) if stride > 1 else None
        self.norm = nn.LayerNorm(site.dim) if stride > 1 else None

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        if self.reduce is None or self.norm is None:
            q, k, v = self.qkv(x)
        else:
            q = self._project(x, 0, 1)
            image = x.transpose(1, 2).unflatten(2, context.grid)  # [B, C, height, width]
            reduced = self.norm(self.reduce(image).flatten(2).transpose(1, 2))  # [B, N', C]
            k, v = self._project(reduced, 1, 3).chunk(2, dim=-1)
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))

    def _project(self, x: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """Apply parts `first` to `end` of the query, key, value projection."""
        rows, linear = slice(first * x.shape[-1], end * x.shape[-1]), self.qkv.qkv
        return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def supports(
    site: attnbench.AttentionSite, options: SpatialReductionOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse a stride beyond the grid's shorter side: no key would be left."""
    if options.stride > min(site.grid):
        return (
            f"stride={options.stride} exceeds the shorter side of grid {site.grid}, so no key would be left; "
            f"choose at most {min(site.grid)}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: SpatialReductionOptions) -> attnbench.MacCount:
    """2 N C^2 for q and the output; N' s^2 C^2, 2 N' C^2 and 2 N N' C for N' reduced tokens."""
    n, c, s = site.num_tokens, site.dim, options.stride
    if s == 1:
        return attnbench.MacCount(linear=4 * n * c * c, attention=2 * n * n * c)
    reduced = (site.grid[0] // s) * (site.grid[1] // s)
    # q and kv are Linear layers of their own in the released code, where module hooks see them
    linear = 2 * n * c * c + reduced * (s * s + 2) * c * c
    return attnbench.MacCount(linear=linear, attention=2 * n * reduced * c, norm=4 * reduced * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `spatial-reduction`."""
    yield attnbench.AttentionBackend(
        name="spatial-reduction",
        summary="PVT's spatial reduction: softmax over keys and values of a coarser grid",
        family="compressed",
        source="PVT arXiv:2102.12122, sec. 3.3",
        options=SpatialReductionOptions,
        build=SpatialReductionAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
    )
