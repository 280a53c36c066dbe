"""Do the measured values order the rows as the published ones do?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from attnbench.profiling.statistics import rank_correlation

FEWEST_ROWS = 6
"""Below it any order is likely by chance: of five rows, a perfect one has p = 0.017, one swap 0.08."""
_MOST_ENUMERATED = 8


def rank_agreement(published: Sequence[float], measured: Sequence[float]) -> tuple[float, float] | None:
    """Return Spearman's rank correlation and its two-sided p value of no association.

    None of fewer than six pairs or where one side is constant. The p value is that of all permutations up to
    eight rows, beyond that Student's approximation.
    """
    if len(published) < FEWEST_ROWS or not all(map(math.isfinite, (*published, *measured))):
        return None
    rho = rank_correlation(published, measured)
    return None if math.isnan(rho) else (rho, _p_value(rho, published, measured))


def _p_value(rho: float, x: Sequence[float], y: Sequence[float]) -> float:
    n = len(x)
    if n > _MOST_ENUMERATED:
        from scipy.special import stdtr  # late: few reports need it

        if abs(rho) >= 1:
            return 0.0
        return float(2 * stdtr(n - 2, -abs(rho) * math.sqrt((n - 2) / (1 - rho**2))))
    ranks = [_doubled_ranks(x), _doubled_ranks(y)]
    middle = n + 1  # of doubled ranks

    def product(order: Sequence[int]) -> int:
        return sum((a - middle) * (b - middle) for a, b in zip(ranks[0], order, strict=True))

    seen = abs(product(ranks[1]))
    orders = list(itertools.permutations(ranks[1]))
    return sum(abs(product(order)) >= seen for order in orders) / len(orders)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return twice the mean rank of each value: whole numbers, also of ties."""
    return [
        2 * sum(other < value for other in values) + sum(other == value for other in values) + 1
        for value in values
    ]
