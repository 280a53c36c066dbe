"""Placing labels beside each other so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights in [0, 1] apart to at least `gap`, as little as possible, keeping their order.

    Labels that collide form a block around their mean; a block leaves [0, 1] only where all of them
    together do not fit.

    >>> spread_out([0.5, 0.5], 0.1)
    [0.45, 0.55]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, int]] = []  # centre and number of labels, bottom to top
    for i in order:
        blocks.append(_inside(heights[i], 1, gap))
        while len(blocks) > 1 and _overlap(blocks[-2], blocks[-1], gap):
            (low, m), (high, n) = blocks[-2:]
            blocks[-2:] = [_inside((low * m + high * n) / (m + n), m + n, gap)]
    placed = [centre + (rank - (count - 1) / 2) * gap for centre, count in blocks for rank in range(count)]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result


def _inside(centre: float, count: int, gap: float) -> tuple[float, int]:
    """Shift a block into [0, 1]."""
    half = (count - 1) * gap / 2
    return max(half, min(1 - half, centre)), count


def _overlap(below: tuple[float, int], above: tuple[float, int], gap: float) -> bool:
    return above[0] - below[0] < gap * (below[1] + above[1]) / 2
