"""Attention of single queries with a few tiles each: queries are brought to tiles, not tiles to queries.

A query's K tiles hold S tokens each. Copying them for every query moves N K S keys and as many values; here
the N K pairs of a query and a tile are sorted by tile and cut into groups of M pairs with one tile, so
that N K queries move, and a tile for each group. Shapes do not depend on the choices: there are always
as many groups as the worst choice needs, and what is left over is computed and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.layers.tiles import choose


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Where N K pairs lie in R groups of M places, per image and head; pairs are numbered query by query."""

    tile: torch.Tensor  # [B, H, R]: the tile of each group
    pair: torch.Tensor  # [B, H, R M]: the pair in each place, pair 0 in those left over
    place: torch.Tensor  # [B, H, N K]: the place of each pair


def group_rows(places: int) -> int:
    """Return M for tiles of S places: half of them, between tiles copied and places left over."""
    return max(1, places // 2)


def group_count(pairs: int, tiles: int, rows: int) -> int:
    """Return R: with so many pairs, sum_t ceil(pairs of t / M) is no larger for any choice.

    >>> group_count(48 * 16, 16, 8)
    110
    """
    return (pairs + tiles * (rows - 1)) // rows


def group_by_tile(chosen: torch.Tensor, tiles: int, rows: int) -> Groups:
    """Sort the pairs of `chosen` [B, H, N, K] by tile and cut them into groups of `rows` with one tile."""
    tile, order = chosen.flatten(2).sort(dim=-1, stable=True)  # [B, H, N K] each
    lead, pairs = tile.shape[:2], tile.shape[2]
    count = group_count(pairs, tiles, rows)
    edges = torch.arange(tiles + 1, device=tile.device).expand(*lead, -1).contiguous()
    first = torch.searchsorted(tile, edges)  # [B, H, T + 1]: of each tile's pairs
    last_group = ((first.diff() + rows - 1) // rows).cumsum(-1)  # [B, H, T], past the end
    first_group = torch.cat([torch.zeros_like(last_group[..., :1]), last_group[..., :-1]], dim=-1)
    rank = torch.arange(pairs, device=tile.device) - first.gather(-1, tile)
    place = first_group.gather(-1, tile) * rows + rank  # of the sorted pairs
    groups = torch.arange(count, device=tile.device).expand(*lead, -1).contiguous()
    return Groups(
        tile=torch.searchsorted(last_group, groups, right=True).clamp_max(tiles - 1),
        pair=tile.new_zeros(*lead, count * rows).scatter(-1, place, order),
        place=torch.empty_like(place).scatter(-1, order, place),
    )


def grouped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, valid: torch.Tensor | None
) -> torch.Tensor:
    """Softmax attention of every query on the tokens of its own tiles.

    q [B, H, N, D], k and v [B, H, T, S, D], `chosen` [B, H, N, K] without repetition, `valid` [T, S] where
    places lie outside the grid -> [B, H, N, D]. One softmax over all K S scores; in the inputs' dtype.
    """
    rows, keep = group_rows(k.shape[3]), chosen.shape[3]
    groups = group_by_tile(chosen, k.shape[2], rows)
    q_rows = choose(q * q.shape[-1] ** -0.5, groups.pair // keep).unflatten(2, (-1, rows))  # [B, H, R, M, D]
    k_near, v_near = (choose(z, groups.tile) for z in (k, v))  # [B, H, R, S, D]
    scores = (q_rows @ k_near.transpose(-2, -1)).flatten(2, 3)  # [B, H, R M, S]
    scores = choose(scores, groups.place).unflatten(2, chosen.shape[2:])  # [B, H, N, K, S]
    if valid is not None:
        scores = scores.masked_fill(~valid[chosen], -torch.inf)
    weights = scores.flatten(3).softmax(-1).unflatten(3, scores.shape[3:])
    weights = choose(weights.flatten(2, 3), groups.pair).unflatten(2, (-1, rows))  # [B, H, R, M, S]
    o = choose((weights @ v_near).flatten(2, 3), groups.place)  # [B, H, N K, D]
    return o.unflatten(2, chosen.shape[2:]).sum(3)


def grouped_macs(queries: int, keep: int, tiles: int, places: int, dim: int) -> int:
    """Count the multiply-adds of `grouped_attention`: 2 R M S C, a few more than 2 N K S C."""
    rows = group_rows(places)
    return 2 * group_count(queries * keep, tiles, rows) * rows * places * dim
