"""Sliding tile attention: the queries of a tile attend to the window of tiles around it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, field_validator
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, Tiling, merge_heads, neighbours, split_heads, tile_grid


class SlidingTileOptions(attnbench.BackendOptions):
    """Options of `sliding-tile`. The defaults are those of the paper's two-dimensional figure 5."""

    tile_size: int = Field(default=2, ge=1)
    """Side of a tile in tokens."""
    window_tiles: int = Field(default=3, ge=1)
    """Side of the window in tiles, odd (3 tiles of 2: the paper's 6 x 6 tokens)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""

    @field_validator("window_tiles")
    @classmethod
    def _has_a_middle(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(
                f"must be odd, for a middle tile, got {value}; choose {value - 1} or {value + 1}"
            )
        return value


class SlidingTileAttention(nn.Module):
    """Softmax attention of every tile's queries on all tokens of the window of tiles around it.

    The window moves tile by tile, not token by token, so that all pairs of two tiles are computed or none
    are; where it would leave the grid of tiles it is shifted inwards. [B, N, C] -> [B, N, C]; the
    softmax in the input's dtype. Tiles that stick out of the grid have fewer tokens (ours: the paper
    takes sides that are multiples of the tile's). Left out: windows searched per head for trained
    models, full attention at the first timesteps, and text tokens.
    Source: STA arXiv:2502.04507, sec. 3.1-3.2, read; FastVideo's mask of it (support_flex_sta.py) read.
    """

    around: torch.Tensor

    def __init__(self, site: attnbench.AttentionSite, options: SlidingTileOptions) -> None:
        super().__init__()
        self.num_heads = site.num_heads
        self.tiling = Tiling(site.grid, options.tile_size)
        around = neighbours(self.tiling.tiles, options.window_tiles)
        self.register_buffer("around", around, persistent=False)  # [T, K]
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (self.tiling.cut(split_heads(z, self.num_heads)) for z in self.qkv(x))  # [B, H, T, S, D]
        return self.out(merge_heads(self.tiling.join(self.tiling.attend(q, k, v, self.around))))


def supports(
    site: attnbench.AttentionSite, options: SlidingTileOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse windows of more tiles than the grid has on its shorter side."""
    shorter = min(tile_grid(site.grid, options.tile_size))
    if options.window_tiles <= shorter:
        return None
    odd = [size for size in range(1, shorter + 1) if size % 2]
    return (
        f"window_tiles={options.window_tiles} exceeds the {shorter} tiles of {options.tile_size} tokens "
        f"along the shorter side of grid {site.grid}; choose one of {odd}, or a smaller tile_size"
    )


def macs(site: attnbench.AttentionSite, options: SlidingTileOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 T S K S C for the attention of T tiles of S places with K tiles each."""
    n, c, places = site.num_tokens, site.dim, options.tile_size**2
    rows, columns = tile_grid(site.grid, options.tile_size)
    pairs = rows * columns * places * options.window_tiles**2 * places
    return attnbench.MacCount(linear=4 * n * c * c, attention=2 * pairs * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `sliding-tile`."""
    yield attnbench.AttentionBackend(
        name="sliding-tile",
        summary="sliding tile attention: softmax over the window of tiles around a tile",
        source="STA arXiv:2502.04507, sec. 3 (read), and the mask of its released code (read)",
        options=SlidingTileOptions,
        build=SlidingTileAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        family="sparse",
    )
