"""Rotary position embedding on a 2-D token grid."""

from __future__ import annotations

import torch

BASE = 10000.0


def grid_rotation(
    grid: tuple[int, int], exponents: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [N, 2F] of every token's angles, row angles first, in at least fp32.

    A token in row y and column x turns by y theta_f and x theta_f, theta_f = 10000^-exponents_f.
    Computed at each call from height + width angles a frequency, because a buffer would be rounded
    when the model is cast to a half type. Source: RoFormer arXiv:2104.09864, per axis.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    theta = BASE ** -exponents.to(device=x.device, dtype=dtype)  # [F]
    height, width = grid
    rows = torch.arange(height, device=x.device, dtype=dtype)[:, None] * theta  # [height, F]
    columns = torch.arange(width, device=x.device, dtype=dtype)[:, None] * theta  # [width, F]

    def on_grid(row_values: torch.Tensor, column_values: torch.Tensor) -> torch.Tensor:
        by_row = row_values[:, None].expand(height, width, -1)
        by_column = column_values[None].expand(height, width, -1)
        return torch.cat([by_row, by_column], -1).flatten(0, 1)

    return on_grid(rows.cos(), columns.cos()), on_grid(rows.sin(), columns.sin())


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbouring channels (2f, 2f + 1) by its angle: x [..., N, 2 x angles].

    cos and sin are [N, angles]; maths and result in their dtype.
    """
    even, odd = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
