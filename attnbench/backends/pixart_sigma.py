"""PixArt-Sigma's softmax attention over keys and values compressed by a strided depthwise convolution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, on_grid, split_heads


class PixArtSigmaOptions(attnbench.BackendOptions):
    """Options of `pixart-sigma`."""

    stride: PositiveInt = 2
    """Side of the square of tokens that becomes one key (2 in the released models; 1 compresses nothing)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""
    qk_norm: bool = False
    """LayerNorm of queries and keys over the full width, before the compression (released models: off)."""


class PixArtSigmaAttention(nn.Module):
    """softmax(q c(k)^T / sqrt(D)) c(v) per head, c = LayerNorm of a depthwise s x s convolution of stride s.

    [B, N, C] -> [B, N, C] with floor(height / s) floor(width / s) keys. Keys and values pass the same
    convolution (weight 1/s^2 and bias 0 at first: an average) and the same affine LayerNorm. On a grid
    that s does not divide, the last rows and columns reach no key, as in the released code. The softmax
    in the input's dtype with fp32 accumulation inside the fused kernels (released: fp32 throughout).
    Source: PixArt-Sigma arXiv:2403.04692, sec. 3.2; read in its released code (`sampling: conv` only).
    """

    def __init__(self, site: attnbench.AttentionSite, options: PixArtSigmaOptions) -> None:
        super().__init__()
        dim, stride = site.dim, options.stride
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.q_norm = nn.LayerNorm(dim) if options.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim) if options.qk_norm else nn.Identity()
        self.compress: nn.Conv2d | None = None
        if stride > 1:
            self.compress = nn.Conv2d(dim, dim, stride, stride=stride, groups=dim)
            nn.init.constant_(self.compress.weight, stride**-2)
            nn.init.constant_(self.compress.bias, 0.0)  # type: ignore[arg-type]  # a Conv2d with bias
            self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = self.q_norm(q), self.k_norm(k)
        k, v = (self._compress(z, context.grid) for z in (k, v))  # [B, M, C]
        # LayerNorm returns fp32 under autocast
        q, k, v = (split_heads(z.to(v.dtype), self.num_heads) for z in (q, k, v))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))

    def _compress(self, z: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.compress is None:
            return z
        return self.norm(on_grid(self.compress, z, grid, z.shape[-1])).to(z.dtype)


def num_keys(site: attnbench.AttentionSite, options: PixArtSigmaOptions) -> int:
    """Return the number of compressed keys, M."""
    height, width = site.grid
    return (height // options.stride) * (width // options.stride)


def supports(
    site: attnbench.AttentionSite, options: PixArtSigmaOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse a stride longer than a side of the grid: no key would be left."""
    if options.stride > min(site.grid):
        return (
            f"stride={options.stride} leaves no key on grid {site.grid}; choose a stride of at most "
            f"{min(site.grid)}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: PixArtSigmaOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 s^2 M C for the convolution of K and of V, 2 N M C for the attention."""
    n, c, m = site.num_tokens, site.dim, num_keys(site, options)
    linear, norm = 4 * n * c * c, 2 * 4 * n * c if options.qk_norm else 0
    if options.stride > 1:
        linear, norm = linear + 2 * options.stride**2 * m * c, norm + 2 * 4 * m * c
    return attnbench.MacCount(linear=linear, attention=2 * n * m * c, norm=norm)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `pixart-sigma`."""
    yield attnbench.AttentionBackend(
        name="pixart-sigma",
        summary="softmax attention over compressed keys and values as in PixArt-Sigma",
        family="compressed",
        source="PixArt-Sigma arXiv:2403.04692, sec. 3.2",
        options=PixArtSigmaOptions,
        build=PixArtSigmaAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
    )
