"""CLEAR: each token's softmax runs over the tokens in a circle around it on the grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    QKVProjection,
    Tiling,
    disc_neighbours,
    disc_size,
    disc_tiles,
    in_disc,
    merge_heads,
    split_heads,
    tile_grid,
)

TILE = 4  # side of the tiles of `tiles`
Cells = tuple[torch.Tensor, torch.Tensor]
"""Keys and values averaged over cells of the grid, each [B, H, M, D]."""


class ClearOptions(attnbench.BackendOptions):
    """Options of `clear`."""

    radius: int = Field(default=4, ge=2)
    """Keys are nearer to their query than this many tokens. The paper has 8, 16 and 32 on 64 x 64 tokens;
    the default is its middle one, a quarter of the side, for 16 x 16."""
    down_factor: int = Field(default=1, ge=1)
    """From 2 on, every query sees all tokens, too, averaged over cells of so many by so many with learned
    weights (released variants: 4), which is N^2 work again; 1: none."""
    implementation: Literal["gather", "tiles", "mask"] = "gather"
    """`gather`: copies the keys and values of each token's circle, N K work and memory; `tiles`: copies the
    4 x 4 tiles that a tile's circles reach and masks the rest of them, more work but less memory and time;
    `mask`: torch's fused softmax attention under a mask, N^2 work."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""


class ClearAttention(nn.Module):
    """o_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over the j with |position_i - position_j| < radius.

    The circle is not shifted at the border: a token there has fewer keys. With a `down_factor` the keys and
    values gain the weighted sums over its cells, one learned weight per place in a cell that keys,
    values and heads share, starting as the mean. [B, N, C] -> [B, N, C]; the softmax in the input's dtype.
    Left out: text tokens, which a class-conditional model has not, and the scale for larger images than
    those trained on.
    Source: CLEAR arXiv:2412.16112; its README and a public copy of its released code
    (attention_processor.py, distill.py) were read, of the paper itself its abstract alone. The strict
    inequality is the code's.
    """

    index: torch.Tensor
    inside: torch.Tensor

    def __init__(self, site: attnbench.AttentionSite, options: ClearOptions) -> None:
        super().__init__()
        self.num_heads, self.grid, self.options = site.num_heads, site.grid, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        side = options.down_factor
        self.cell_weight = nn.Parameter(torch.full((side, side), side**-2.0)) if side > 1 else None
        if options.implementation == "gather":
            index, inside = disc_neighbours(site.grid, options.radius)
            self.register_buffer("index", index, persistent=False)  # [N, K]
            self.register_buffer("inside", inside, persistent=False)
        if options.implementation == "tiles":
            self.tiling = Tiling(site.grid, TILE)
            tiling = self.tiling
            near, pairs = disc_tiles(site.grid, options.radius, tiling.places(), tiling.tiles, TILE)
            self.register_buffer("index", near, persistent=False)  # [T, K]
            self.register_buffer("inside", pairs, persistent=False)  # [T, S, K S]

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        cells = None if self.cell_weight is None else (self._cells(k), self._cells(v))  # [B, H, M, D]
        match self.options.implementation:
            case "gather":
                o = self._gathered(q, k, v, cells)
            case "tiles":
                q, k, v = (self.tiling.cut(z) for z in (q, k, v))  # [B, H, T, S, D]
                o = self.tiling.join(self.tiling.attend(q, k, v, self.index, self.inside))
            case "mask":
                o = self._masked(q, k, v, cells)
        return self.out(merge_heads(o))

    def _cells(self, z: torch.Tensor) -> torch.Tensor:
        """Sum tokens over the cells of the grid with the learned weights: [B, H, N, D] -> [B, H, M, D]."""
        assert self.cell_weight is not None
        (height, width), side = self.grid, self.options.down_factor
        in_cells = z.unflatten(2, (height // side, side, width // side, side))
        weight = self.cell_weight[:, None, :, None].to(z.dtype)  # [side, 1, side, 1]
        return (in_cells * weight).sum((3, 5)).flatten(2, 3)

    def _gathered(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cells: Cells | None,
    ) -> torch.Tensor:
        flat, shape = self.index.flatten(), self.index.shape
        k_near, v_near = (z.index_select(2, flat).unflatten(2, shape) for z in (k, v))  # [B, H, N, K, D]
        q = q * q.shape[-1] ** -0.5
        scores = (q.unsqueeze(-2) @ k_near.transpose(-2, -1)).squeeze(-2)  # [B, H, N, K]
        scores = scores.masked_fill(~self.inside, -torch.inf)
        if cells is None:
            return (scores.softmax(-1).unsqueeze(-2) @ v_near).squeeze(-2)
        k_cell, v_cell = cells
        weights = torch.cat([scores, q @ k_cell.transpose(-2, -1)], dim=-1).softmax(-1)
        near, far = weights.split([shape[1], k_cell.shape[2]], dim=-1)
        return (near.unsqueeze(-2) @ v_near).squeeze(-2) + far @ v_cell

    def _masked(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cells: Cells | None,
    ) -> torch.Tensor:
        token = torch.arange(q.shape[2], device=q.device)
        mask = in_disc(self.grid, self.options.radius, token[:, None], token[None, :])  # [N, N]
        if cells is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip((k, v), cells, strict=True))
            mask = F.pad(mask, (0, cells[0].shape[2]), value=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def supports(
    site: attnbench.AttentionSite, options: ClearOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse cells that do not divide the grid, and an implementation that has none."""
    side = options.down_factor
    if side > 1 and options.implementation == "tiles":
        return (
            f"down_factor={side} is not for implementation: tiles; choose gather or mask, or down_factor: 1"
        )
    if any(size % side for size in site.grid):
        both = [s for s in range(2, min(site.grid) + 1) if not any(size % s for size in site.grid)]
        return (
            f"down_factor={side} does not divide both sides of grid {site.grid}; choose "
            f"{f'one of {both}, or ' if both else ''}1, which is without averaged tokens"
        )
    return None


def macs(site: attnbench.AttentionSite, options: ClearOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections; 2 C for each query-key pair that the implementation computes.

    Pairs: N K for `gather`, K the tokens of a whole circle (`disc_size`; at borders some of them are masked),
    T S K S for `tiles`, K the tiles that a tile's circles reach, N^2 for `mask`; N M more with M averaged
    tokens.
    """
    n, c = site.num_tokens, site.dim
    match options.implementation:
        case "gather":
            pairs = n * disc_size(site.grid, options.radius)
        case "tiles":
            rows, columns = tiles = tile_grid(site.grid, TILE)
            pairs = rows * columns * disc_size(tiles, options.radius, TILE) * TILE**4
        case "mask":
            pairs = n * n
    if options.down_factor > 1:
        pairs += n * (n // options.down_factor**2)
    return attnbench.MacCount(linear=4 * n * c * c, attention=2 * pairs * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `clear`."""
    yield attnbench.AttentionBackend(
        name="clear",
        summary="CLEAR: softmax over the tokens in a circle around each token",
        source="CLEAR arXiv:2412.16112 (abstract read) and a public copy of its released code",
        options=ClearOptions,
        build=ClearAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        symmetry="translation",
        family="sparse",
    )
