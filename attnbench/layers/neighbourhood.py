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
    index, inside = _at_offsets(grid, _offsets(grid, radius, 1))
    device = torch.get_default_device()
    return index.to(device), inside.to(device)


def disc_size(grid: tuple[int, int], radius: int, size: int = 1) -> int:
    """Count the tokens nearer than `radius` to the grid's middle, where borders cut least.

    With a `size`, the tiles of size x size tokens that have one nearer than that to one of the middle tile's;
    the grid is that of the tiles.

    >>> disc_size((16, 16), 4), disc_size((3, 3), 9), disc_size((4, 4), 4, 4)
    (45, 9, 9)
    """
    inside = [
        [-(side // 2) <= at < side - side // 2 for side, at in zip(grid, offset, strict=True)]
        for offset in _offsets(grid, radius, size)
    ]
    return sum(map(all, inside))


def disc_tiles(
    grid: tuple[int, int], radius: int, places: torch.Tensor, tiles: tuple[int, int], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every tile, the tiles that its circles reach and the pairs of tokens that lie in them.

    `tiles` are the rows and columns of tiles of size x size tokens, `places` [T, S] each place's token on the
    CPU, -1 outside the grid. Returns int64 [T, K] and bool [T, S, K S] on the default device; a query
    outside the grid sees every place, so that no softmax is over nothing.
    """
    near, reached = _at_offsets(tiles, _offsets(tiles, radius, size))
    query, key = places[:, :, None], places[near].flatten(1)[:, None, :]  # [T, S, 1] and [T, 1, K S]
    there = (key >= 0) & reached.repeat_interleave(size * size, dim=1)[:, None, :]
    pairs = (in_disc(grid, radius, query, key) & there) | (query < 0)
    device = torch.get_default_device()
    return near.to(device), pairs.to(device)


def _offsets(grid: tuple[int, int], radius: int, size: int) -> list[tuple[int, int]]:
    """Return by how many tiles' rows and columns two may differ that have tokens nearer than `radius`."""
    rows, columns = ([at for at in range(1 - side, side) if _gap(at, size) < radius] for side in grid)
    return [(y, x) for y in rows for x in columns if _gap(y, size) ** 2 + _gap(x, size) ** 2 < radius**2]


def _gap(tiles: int, size: int) -> int:
    """Return how far apart the nearest tokens of two tiles are along an axis."""
    return max(0, (abs(tiles) - 1) * size + 1) if tiles else 0


def _at_offsets(grid: tuple[int, int], offsets: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what lies at the offsets of every place, and whether it is on the grid, [N, K] on the CPU.

    K is the most that a place has; those that are not on the grid come last, as the place itself.
    """
    dy, dx = torch.tensor(offsets, device="cpu").unbind(1)
    token = torch.arange(grid[0] * grid[1], device="cpu")[:, None]
    y, x = token // grid[1] + dy, token % grid[1] + dx
    inside = (y >= 0) & (y < grid[0]) & (x >= 0) & (x < grid[1])
    index = torch.where(inside, y * grid[1] + x, token)
    first = inside.byte().sort(dim=1, descending=True, stable=True).indices[:, : int(inside.sum(1).max())]
    return index.gather(1, first), inside.gather(1, first)
