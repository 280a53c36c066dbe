"""A feature shift: channels of a token that come from its eight neighbours on the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))
"""Rows and columns from a token to the neighbour that lends it a group of channels, in the groups' order."""


def neighbour_shift(x: torch.Tensor, grid: tuple[int, int], lent: int) -> torch.Tensor:
    """Take `lent` channels from each of eight neighbours, the rest from the token itself.

    [B, N, C] -> [B, N, C], tokens row-major, 8 lent <= C. Where there is no neighbour, channels of the four
    in line are zero, those of the four diagonal ones stay the token's own.
    Source: released code of arXiv:2210.08164 (OpenNLPLab/Linear_VideoTransformer, SpatialShift).
    """
    image = x.unflatten(1, grid)  # [B, height, width, C]
    *groups, rest = image.split([lent] * len(DIRECTIONS) + [x.shape[-1] - lent * len(DIRECTIONS)], dim=-1)
    pieces = [_from(group, *way) for group, way in zip(groups, DIRECTIONS, strict=True)]
    return torch.cat([*pieces, rest], dim=-1).flatten(1, 2)


def _from(group: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the channels of the token that lies `rows` below and `columns` to the right of each."""
    height, width = group.shape[1:3]
    # what is cut off at one end is padded at the other; F.pad counts from the last axis
    edges = (0, 0, max(-columns, 0), max(columns, 0), max(-rows, 0), max(rows, 0))
    top, left = max(rows, 0), max(columns, 0)
    lent = group[:, top : height + min(rows, 0), left : width + min(columns, 0)]
    if rows == 0 or columns == 0:
        return F.pad(lent, edges)
    missing = 1 - F.pad(torch.ones_like(lent[:1, ..., :1]), edges)
    return F.pad(lent, edges) + group * missing
