"""A feature shift: channels of a token that come from its eight neighbours on the grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))
"""Rows and columns from a token to the neighbour that lends it a group of channels, in the groups' order."""
ALL_AROUND = (0, 0, 1, 1, 1, 1)  # one token at every border, as F.pad counts: from the last axis


def neighbour_shift(x: torch.Tensor, grid: tuple[int, int], lent: int) -> torch.Tensor:
    """Take `lent` channels from each of eight neighbours, the rest from the token itself.

    [B, N, C] -> [B, N, C], tokens row-major, 8 lent <= C. Where there is no neighbour, channels of the four
    in line are zero, those of the four diagonal ones stay the token's own.
    Source: released code of arXiv:2210.08164 (OpenNLPLab/Linear_VideoTransformer, SpatialShift).
    """
    image = x.unflatten(1, grid)  # [B, height, width, C]
    borrowed = image[..., : lent * len(DIRECTIONS)]
    padded = F.pad(borrowed, ALL_AROUND)
    inside = F.pad(torch.ones_like(image[:1, ..., :1]), ALL_AROUND)
    pieces = []
    for group, (rows, columns) in enumerate(DIRECTIONS):
        channels = slice(group * lent, (group + 1) * lent)
        piece = _seen_from(padded, rows, columns)[..., channels]
        if rows and columns:
            piece = piece + borrowed[..., channels] * (1 - _seen_from(inside, rows, columns))
        pieces.append(piece)
    return torch.cat([*pieces, image[..., lent * len(DIRECTIONS) :]], dim=-1).flatten(1, 2)


def _seen_from(padded: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return what lies `rows` below and `columns` to the right of each token."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    return padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
