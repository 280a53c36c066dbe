"""Patch, timestep, label and position embeddings of DiT."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

FREQUENCY_DIM = 256


class PatchEmbedding(nn.Module):
    """x [B, c, H, W] -> [B, N, C]: each square patch by one linear layer, in raster order.

    A convolution, whose weights have the names and shapes of timm's PatchEmbed and so of DiT's released ones.
    """

    def __init__(self, side: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=side, stride=side)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedding(nn.Module):
    """t [B] -> [B, C]: a 256-d sinusoid (cos first, base 10000), Linear, SiLU, Linear.

    The sinusoid in fp32. Source: DiT arXiv:2212.09748, released code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(FREQUENCY_DIM, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        waves = self.sinusoid(t).to(self.expand.weight.dtype)
        return self.out(F.silu(self.expand(waves)))

    def sinusoid(self, t: torch.Tensor) -> torch.Tensor:
        """t [B] -> [B, 256], cosines first."""
        half = FREQUENCY_DIM // 2
        dtype = torch.promote_types(self.expand.weight.dtype, torch.float32)
        rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=dtype) / half)
        angles = t.to(dtype)[:, None] * rates  # [B, 128]
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LabelEmbedding(nn.Module):
    """y int64 [B] -> [B, C]; in training a label becomes the null class with probability `dropout`."""

    def __init__(self, num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.null_label, self.dropout = num_classes, dropout
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(y.shape, device=y.device) < self.dropout
            y = torch.where(dropped, self.null_label, y)
        return self.table(y)


def sincos_position_embedding(dim: int, grid: tuple[int, int]) -> torch.Tensor:
    """Fixed 2-D sine-cosine embedding [N, C] in fp32, computed in fp64; column halves first.

    Four quarters: sin and cos of the column index, sin and cos of the row index, base 10000.
    Source: MAE's released code, used by DiT.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine position embedding needs dim divisible by 4, got {dim}")
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    quarters = []
    for position in (columns, rows):
        angles = position.flatten()[:, None] * rates  # [N, C/4]
        quarters += [angles.sin(), angles.cos()]
    return torch.cat(quarters, dim=1).float()
