"""Where neighbourhood attention looks: the k x k window of every token, shifted inwards at borders."""

from __future__ import annotations

import functools

import torch


def window_start(position: torch.Tensor, size: int, kernel_size: int) -> torch.Tensor:
    """Return where the window of a row (column) begins on an axis of `size` tokens.

    >>> window_start(torch.arange(6), 6, 3).tolist()
    [0, 0, 1, 2, 3, 3]
    """
    return (position - kernel_size // 2).clamp(0, size - kernel_size)


def neighbours(grid: tuple[int, int], kernel_size: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the k^2 keys of every token, row-major: int64 [N, k^2]."""
    offsets = torch.arange(kernel_size, device=device)
    rows, columns = (
        window_start(torch.arange(size, device=device), size, kernel_size)[:, None] + offsets for size in grid
    )  # [height, k] and [width, k]
    index = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]  # [height, width, k, k]
    return index.flatten(2).flatten(0, 1)


def near(grid: tuple[int, int], kernel_size: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Say whether a key (row-major index) lies in a query's window; the two broadcast."""
    height, width = grid
    row = key // width - window_start(query // width, height, kernel_size)
    column = key % width - window_start(query % width, width, kernel_size)
    return (row >= 0) & (row < kernel_size) & (column >= 0) & (column < kernel_size)


@functools.cache
def computed_blocks(grid: tuple[int, int], kernel_size: int, side: int) -> int:
    """Count the side x side blocks of query-key pairs that hold at least one pair of a window."""
    keys = neighbours(grid, kernel_size, torch.device("cpu"))  # [N, k^2]
    query_block = torch.arange(len(keys), device="cpu")[:, None] // side
    return len(torch.unique(query_block * len(keys) + keys // side))
