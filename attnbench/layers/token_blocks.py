"""Tokens of a grid in square blocks and back, and how far the blocks lie from each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange


def block_sides(grid: tuple[int, int], blocks: int) -> tuple[int, int]:
    """Return height and width of a block where a grid has `blocks` of them a side, the last ones cut short.

    >>> block_sides((7, 16), 4)
    (2, 4)
    """
    return -(-grid[0] // blocks), -(-grid[1] // blocks)


def to_blocks(x: torch.Tensor, grid: tuple[int, int], blocks: int, num_heads: int) -> torch.Tensor:
    """[B, N, C] -> [B, H, blocks^2, n, D], n the tokens of a block; zeros where the grid ends before it."""
    height, width = block_sides(grid, blocks)
    edges = (0, 0, 0, width * blocks - grid[1], 0, height * blocks - grid[0])
    image = F.pad(x.unflatten(1, grid), edges)  # [B, height, width, C]
    shape = {"y": blocks, "x": blocks, "h": num_heads}
    return rearrange(image, "b (y p) (x r) (h d) -> b h (y x) (p r) d", **shape)


def from_blocks(x: torch.Tensor, grid: tuple[int, int], blocks: int) -> torch.Tensor:
    """[B, H, blocks^2, n, D] -> [B, N, C], the inverse of `to_blocks`."""
    height, _ = block_sides(grid, blocks)
    image = rearrange(x, "b h (y x) (p r) d -> b (y p) (x r) (h d)", y=blocks, p=height)
    return image[:, : grid[0], : grid[1]].flatten(1, 2)


def nearness(blocks: int) -> torch.Tensor:
    """Return 1 - dist(i, j) / max_k dist(i, k) between blocks of a square grid, rows of sum 1: [M, M].

    Distances between the blocks' middles, in blocks; a single block is near itself.
    Source: arXiv:2601.07832, sec. 4.2.
    """
    axis = torch.arange(blocks, dtype=torch.float64)
    middles = torch.cartesian_prod(axis, axis)  # [M, 2]
    distance = torch.cdist(middles, middles)
    near = 1 - distance / distance.amax(1, keepdim=True).clamp_min(1)
    return (near / near.sum(1, keepdim=True)).float()
