"""Where local attention looks: a k x k window, shifted inwards at borders, or a disc that borders cut."""

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


def in_disc(grid: tuple[int, int], radius: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Say whether a key (row-major index) lies nearer to a query than `radius`; the two broadcast."""
    width = grid[1]
    return (query // width - key // width) ** 2 + (query % width - key % width) ** 2 < radius**2


def disc_neighbours(grid: tuple[int, int], radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys nearer than `radius` of every token, row-major: index int64 and inside bool, [N, K].

    K is the most that a token has (`disc_size`); one near a border has fewer, and names itself where
    `inside` is false. On the default device.
    """
    (height, width), reach = grid, radius - 1
    rows, columns = (torch.arange(size, device="cpu") for size in grid)
    offsets = torch.arange(-reach, reach + 1, device="cpu")
    dy, dx = torch.meshgrid(offsets, offsets, indexing="ij")
    near = dy**2 + dx**2 < radius**2
    y = rows[:, None, None] + dy[near]  # [height, 1, offsets]
    x = columns[None, :, None] + dx[near]  # [1, width, offsets]
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).flatten(0, 1)  # [N, offsets]
    token = torch.arange(height * width, device="cpu")[:, None]
    index = torch.where(inside, (y * width + x).flatten(0, 1), token)
    first = inside.byte().sort(dim=1, descending=True, stable=True).indices[:, : disc_size(grid, radius)]
    device = torch.get_default_device()
    return index.gather(1, first).to(device), inside.gather(1, first).to(device)


def disc_size(grid: tuple[int, int], radius: int) -> int:
    """Count the tokens nearer than `radius` to the grid's middle, where borders cut least.

    >>> disc_size((16, 16), 4), disc_size((3, 3), 9)
    (45, 9)
    """
    middle = [[at - size // 2 for at in range(size)] for size in grid]
    return sum(y * y + x * x < radius**2 for y in middle[0] for x in middle[1])
