"""In which order a sequential model runs over the tokens of a grid, layer by layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

ScanName = Literal["raster", "transposed", "zigma"]

CORNERS = ((False, False), (False, True), (True, False), (True, True))
"""ZigMa's starts: mirrored (top to bottom, left to right), in the order of its code."""


def scan_order(name: ScanName, grid: tuple[int, int], layer_idx: int) -> list[int]:
    """Return the N tokens (row-major numbers) in the order layer `layer_idx` visits them.

    `raster`: row by row. `transposed`: row by row in even layers, column by column in odd ones. `zigma`:
    eight schemes by turns, each without a jump: from each corner once row by row and once column by column,
    every second line backwards. On an oblong grid the same rule with its own height and width.
    Source: ZigMa arXiv:2403.13802, sec. 3 and `zigzag_path` of its released code; rows and columns by turns,
    DiG arXiv:2405.18428.

    >>> scan_order("transposed", (2, 3), 1), scan_order("zigma", (2, 3), 0), scan_order("zigma", (2, 3), 3)
    ([0, 3, 1, 4, 2, 5], [0, 1, 2, 5, 4, 3], [2, 5, 4, 1, 0, 3])
    """
    height, width = grid
    scheme = layer_idx % 8
    columns = name != "raster" and layer_idx % 2 == 1
    upward, leftward = CORNERS[scheme // 2] if name == "zigma" else (False, False)
    lines, length = (width, height) if columns else (height, width)
    order = []
    for line in range(lines):
        for place in range(length):
            step = length - 1 - place if name == "zigma" and line % 2 == 1 else place
            y, x = (step, line) if columns else (line, step)
            order.append((height - 1 - y if upward else y) * width + (width - 1 - x if leftward else x))
    return order


class TokenOrder(nn.Module):
    """Bring tokens [B, N, C] into a layer's scan order and back; nothing is learned, nothing is stored."""

    order: torch.Tensor
    inverse: torch.Tensor

    def __init__(self, name: ScanName, grid: tuple[int, int], layer_idx: int) -> None:
        super().__init__()
        order = scan_order(name, grid, layer_idx)
        self.identity = order == sorted(order)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("inverse", torch.tensor(inverse), persistent=False)

    def to_scan(self, x: torch.Tensor) -> torch.Tensor:
        """Take the tokens in the scan's order."""
        return x if self.identity else x.index_select(1, self.order)

    def from_scan(self, x: torch.Tensor) -> torch.Tensor:
        """Put every token back to its place."""
        return x if self.identity else x.index_select(1, self.inverse)
