"""Mixture of block attention: every query's softmax runs over the few tiles of keys that suit it best."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    QKVProjection,
    Tiling,
    affinities,
    grouped_attention,
    grouped_macs,
    largest_tiles,
    merge_heads,
    split_heads,
    tile_grid,
    why_not_that_many,
)


class MobaOptions(attnbench.BackendOptions):
    """Options of `moba`. The defaults choose 3 of 16 tiles on 16 x 16 tokens, as the paper 3 of 16 blocks."""

    tile_size: int = Field(default=4, ge=1)
    """Side of a tile: a block of keys and values is so many by so many tokens of the grid."""
    top_k: int = Field(default=3, ge=1)
    """Tiles that a query attends to in one head, its own included (paper: 3 of 16, 12 of 32 to 256)."""
    own_tile: bool = True
    """Whether a query's own tile is always among them (paper: yes)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""


class MobaAttention(nn.Module):
    """o = softmax(q k[I]^T / sqrt(D)) v[I], I the tokens of the top-k tiles by s_i = q . mean(k[I_i]).

    Without parameters of its own. Blocks are tiles of the image, not runs of text, and nothing is causal: no
    tile lies in a query's future, and its own tile is attended to in full. That tile has score infinity,
    as in the released code, and so counts as one of the k. The choice is a step function: gradients
    reach q, k and v through the attention alone, as in the paper. [B, N, C] -> [B, N, C]; scores in
    at least fp32, ties to the first tile; the softmax in the input's dtype. As in the released kernels,
    queries are sorted by tile, so that no query copies its K S keys (`layers.grouped_attention`).
    Left out: layers of full attention between (give `attention` by layer).
    Source: MoBA arXiv:2502.13189, eq. 2-6 and Table 1, read; its released moba_naive.py read.
    """

    own: torch.Tensor

    def __init__(self, site: attnbench.AttentionSite, options: MobaOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.tiling = Tiling(site.grid, options.tile_size)
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        tile = torch.arange(self.tiling.num_tiles)
        of_places = tile.view(1, 1, -1, 1, 1).expand(-1, -1, -1, options.tile_size**2, -1)
        own = self.tiling.join(of_places)[0, 0] == tile  # [N, T]
        self.register_buffer("own", own, persistent=False)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        k, v = self.tiling.cut(k), self.tiling.cut(v)  # [B, H, T, S, D]
        chosen = self._route(q.detach(), k.detach())  # [B, H, N, K]
        context.record("chosen_tiles", chosen)
        return self.out(merge_heads(grouped_attention(q, k, v, chosen, self.tiling.valid)))

    def _route(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Return the tiles each query attends to: q [B, H, N, D], k [B, H, T, S, D] -> [B, H, N, K]."""
        scores = affinities(q, self.tiling.mean(k))  # [B, H, N, T]
        if self.options.own_tile:
            scores = scores.masked_fill(self.own, torch.inf)
        return largest_tiles(scores, self.options.top_k)


def supports(
    site: attnbench.AttentionSite, options: MobaOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more tiles than the grid has, and no choice among several."""
    rows, columns = tile_grid(site.grid, options.tile_size)
    if options.top_k == 1 and options.own_tile and rows * columns > 1:
        return (
            "top_k=1 is a query's own tile, so that nothing is chosen; set top_k to 2 or more, or "
            "own_tile: false"
        )
    return why_not_that_many(options.top_k, site.grid, options.tile_size, "top_k")


def macs(site: attnbench.AttentionSite, options: MobaOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, N T C for the scores of tiles, `grouped_macs` for the attention.

    T tiles of S places: the scores are quadratic in N, but S times fewer than those of full attention. The
    attention is 2 N K S C and what its groups of pairs leave over, a seventh more at the defaults.
    """
    n, c = site.num_tokens, site.dim
    rows, columns = tile_grid(site.grid, options.tile_size)
    tiles = rows * columns
    attention = n * tiles * c + grouped_macs(n, options.top_k, tiles, options.tile_size**2, c)
    return attnbench.MacCount(linear=4 * n * c * c, attention=attention)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `moba`."""
    yield attnbench.AttentionBackend(
        name="moba",
        summary="mixture of block attention: each query picks its top-k tiles of keys",
        source="MoBA arXiv:2502.13189, eq. 2-6 (read), and its released moba_naive.py (read)",
        options=MobaOptions,
        build=MobaAttention,
        macs=macs,
        supports=supports,
        complexity="subquadratic",
        family="sparse",
    )
