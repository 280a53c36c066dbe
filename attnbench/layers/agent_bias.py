"""The learned position bias between agent tokens (or mediators) and image tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BIAS_SIDE = 7  # side of the bias tables that are interpolated to the grid (released code)


class PositionBias(nn.Module):
    """A bias [H, n, N] between agents and tokens: an interpolated 7x7 table plus row and column terms.

    Source: Agent Attention arXiv:2312.08874 and Attention Mediators arXiv:2408.05710, released code.
    """

    def __init__(self, num_heads: int, num_agents: int, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = grid
        self.grid = grid
        self.table = nn.Parameter(torch.empty(num_heads, num_agents, BIAS_SIDE, BIAS_SIDE))
        self.rows = nn.Parameter(torch.empty(num_heads, num_agents, height, 1))
        self.columns = nn.Parameter(torch.empty(num_heads, num_agents, 1, width))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self) -> torch.Tensor:
        table = F.interpolate(self.table, size=self.grid, mode="bilinear")
        return (table + self.rows + self.columns).flatten(2)  # [H, n, N]
