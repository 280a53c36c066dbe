"""PVT v2's linear spatial reduction: keys and values from the token grid, pooled to a fixed size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, pool_tokens, split_heads


class PVTv2Options(attnbench.BackendOptions):
    """Options of `pvt-v2`."""

    pool_size: PositiveInt = 7
    """Side P of the grid that keys and values are pooled to (paper: 7), whatever the image's size."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released models: yes)."""


class PVTv2Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v per head; q from x, k and v from GELU(LayerNorm(Conv_1x1(AvgPool_PxP(x)))).

    [B, N, C] -> [B, N, C]; P^2 keys however many tokens, so linear in N; the softmax through torch's fused
    kernel. Pooling is adaptive: cells that overlap where P does not divide a side. Query, key and value
    weights are the three parts of the shared projection, applied to different tokens.
    Source: PVT v2 arXiv:2106.13797, linear SRA; released code (whai362/PVT, classification/pvt_v2.py with
    `linear=True`) read, of the paper the abstract.
    """

    def __init__(self, site: attnbench.AttentionSite, options: PVTv2Options) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.mix = nn.Conv2d(site.dim, site.dim, 1)
        self.norm = nn.LayerNorm(site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        size = self.options.pool_size
        pooled = pool_tokens(x, context.grid, size)  # [B, P^2, C]
        mixed = self.mix(pooled.transpose(1, 2).unflatten(2, (size, size))).flatten(2).transpose(1, 2)
        k, v = self.qkv.part(F.gelu(self.norm(mixed)), 1, 3).chunk(2, dim=-1)
        q, k, v = (split_heads(z, self.num_heads) for z in (self.qkv.part(x, 0, 1), k, v))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def supports(
    site: attnbench.AttentionSite, options: PVTv2Options, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse to pool to more cells than a side has tokens."""
    if options.pool_size > min(site.grid):
        return (
            f"pool_size={options.pool_size} exceeds the shorter side of grid {site.grid}, so pooling would "
            f"repeat tokens; choose at most {min(site.grid)}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: PVTv2Options) -> attnbench.MacCount:
    """2 N C^2 for q and the output, 3 P^2 C^2 for the convolution, k and v, 2 N P^2 C for the attention."""
    n, c, keys = site.num_tokens, site.dim, options.pool_size**2
    # q and kv are Linear layers of their own in the released code, where module hooks see them
    linear = (2 * n + 3 * keys) * c * c
    return attnbench.MacCount(linear=linear, attention=2 * n * keys * c, norm=4 * keys * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `pvt-v2`."""
    yield attnbench.AttentionBackend(
        name="pvt-v2",
        summary="PVT v2's linear spatial reduction: softmax over a grid pooled to 7 x 7",
        source="PVT v2 arXiv:2106.13797; released code",
        options=PVTv2Options,
        family="compressed",
        build=PVTv2Attention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
