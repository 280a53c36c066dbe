"""A grid cut into square tiles, and softmax attention of tokens with a few chosen tiles.

Letters: T tiles, S places of a tile, K chosen tiles. Where tiles do not divide the grid, the last row and
column of them stick out: their places outside are zeros, which no mean counts and no softmax sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.layers.precision import without_autocast


class Tiling(nn.Module):
    """Cuts [B, H, N, D] on a grid into tiles of `size` x `size` tokens, row-major, and joins them again.

    It has no parameters; its buffers exist where tiles stick out of the grid.
    """

    valid: torch.Tensor | None
    counts: torch.Tensor | None

    def __init__(self, grid: tuple[int, int], size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.tiles = tile_grid(grid, size)
        inside = None
        if any(side % size for side in grid):
            ones = torch.ones(1, 1, grid[0] * grid[1], 1)
            inside = self.cut(ones)[0, 0, :, :, 0] > 0  # [T, S]
        self.register_buffer("valid", inside, persistent=False)
        counts = None if inside is None else inside.sum(1, keepdim=True)  # [T, 1]
        self.register_buffer("counts", counts, persistent=False)

    @property
    def num_tiles(self) -> int:
        """T, tiles that stick out included."""
        return self.tiles[0] * self.tiles[1]

    def places(self) -> torch.Tensor:
        """Return the token of every place, -1 outside the grid: int64 [T, S] on the CPU."""
        number = torch.arange(1, self.grid[0] * self.grid[1] + 1, device="cpu")
        return self.cut(number.view(1, 1, -1, 1))[0, 0, :, :, 0] - 1

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, N, D] -> [B, H, T, S, D]."""
        (height, width), (rows, columns) = self.grid, self.tiles
        x = x.unflatten(2, self.grid)
        below, right = rows * self.size - height, columns * self.size - width
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        x = x.unflatten(3, (columns, self.size)).unflatten(2, (rows, self.size))  # [B, H, r, i, c, j, D]
        return x.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, T, S, D] -> [B, H, N, D], without the places outside."""
        height, width = self.grid
        x = x.unflatten(3, (self.size, self.size)).unflatten(2, self.tiles)  # [B, H, r, c, i, j, D]
        x = x.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return x[:, :, :height, :width].flatten(2, 3)

    def mean(self, tiles: torch.Tensor) -> torch.Tensor:
        """Average the tokens of every tile: [B, H, T, S, D] -> [B, H, T, D], in at least fp32."""
        total = tiles.sum(3, dtype=torch.promote_types(tiles.dtype, torch.float32))
        return total / (tiles.shape[3] if self.counts is None else self.counts)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        chosen: torch.Tensor,
        pairs: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Softmax attention of every tile's queries on the tokens of its chosen tiles.

        q, k, v [B, H, T, S, D]; `chosen` [B, H, T, K], or [T, K] for all images and heads; `pairs`
        [T, S, K S] says which of their tokens a query sees, where it is not all -> [B, H, T, S, D].
        Keys and values of chosen tiles are copied, K of each for one of the input; the scores are S x K S a
        tile, in a fused kernel where there is one.
        """
        k_near, v_near = (choose(z, chosen).flatten(3, 4) for z in (k, v))  # [B, H, T, K S, D]
        mask = pairs
        if mask is None and self.valid is not None:
            mask = self.valid[chosen].flatten(-2).unsqueeze(-2)  # [(B, H,) T, 1, K S]
            mask = mask.flatten(0, 1) if mask.ndim > 3 else mask  # images and heads as one axis: no copies
        q, k_near, v_near = (z.flatten(0, 1) for z in (q, k_near, v_near))
        o = F.scaled_dot_product_attention(q, k_near, v_near, mask)  # [B H, T, S, D]
        return o.unflatten(0, k.shape[:2])


def tile_grid(grid: tuple[int, int], size: int) -> tuple[int, int]:
    """Return how many tiles a grid has below and beside each other, those that stick out included.

    >>> tile_grid((7, 9), 4)
    (2, 3)
    """
    return -(-grid[0] // size), -(-grid[1] // size)


def choose(tiles: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Copy chosen tiles: [B, H, T, S, D] by [B, H, ..., K] -> [B, H, ..., K, S, D].

    `chosen` may lack the first two axes, where all images and heads choose alike.
    """
    if chosen.ndim == 2:
        return tiles.index_select(2, chosen.flatten()).unflatten(2, chosen.shape)
    images, heads, count = tiles.shape[:3]
    first = torch.arange(images * heads, device=tiles.device) * count
    rows = first.view(images, heads, *[1] * (chosen.ndim - 2)) + chosen
    return tiles.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, chosen.shape)


def affinities(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return q k^T / sqrt(D) in at least fp32, [..., T, D] each: what tiles are chosen by.

    Rounding can flip a choice, so half precision never reaches the scores.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        return (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-2, -1)


def largest_tiles(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return which `count` tiles have the largest scores, [..., T] -> [..., count], in the tiles' order.

    Of equal scores the first tile is taken, whatever the batch; no gradient passes.
    """
    return ranked_tiles(scores)[..., :count].sort(dim=-1).values


def ranked_tiles(scores: torch.Tensor) -> torch.Tensor:
    """Return the tiles from the largest score to the smallest, of equal ones the first first: [..., T]."""
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices


def why_not_that_many(chosen: int, grid: tuple[int, int], size: int, option: str) -> str | None:
    """Return None where a grid has so many tiles, else what to choose instead."""
    tiles = tile_grid(grid, size)
    total = tiles[0] * tiles[1]
    if chosen <= total:
        return None
    return (
        f"{option}={chosen} exceeds the number of tiles of {size} x {size} tokens on grid {grid}, {total}; "
        f"choose {f'1 to {total}' if total > 1 else '1'}, or a smaller tile_size"
    )
