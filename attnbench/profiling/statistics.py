"""Medians, their intervals, paired comparisons and percentiles."""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["lower", "higher", "not distinguishable", "too few pairs"]

PERCENTILES = (10, 50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A closed interval for an unknown median and the confidence it really has."""

    low: float
    high: float
    coverage: float
    """Achieved confidence: at least the requested one, unless the sample is too small for it."""
    requested: float

    @property
    def sufficient(self) -> bool:
        """Whether the sample was large enough for the requested confidence."""
        return self.coverage >= self.requested


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one paired sample relates to another, as a ratio."""

    ratio: float
    """Median of the paired ratios a_i / b_i."""
    interval: Interval
    n: int
    verdict: Verdict
    """What the data say of a against b; never more than the interval allows."""


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones.

    Raises ValueError on an empty sample or a NaN.

    >>> median([4.0, 1.0, 3.0])
    3.0
    """
    return statistics.median(_ordered(values))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the order-statistic confidence interval of the median; it assumes no distribution.

    [x_(k), x_(n+1-k)] with the largest k whose coverage 1 - 2 P(Bin(n, 1/2) < k) reaches `confidence`. Below
    six values no k reaches 0.95: then the whole range is returned with its own, smaller coverage.
    Raises ValueError on an empty sample, a NaN, or a confidence outside (0, 1).
    Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.

    >>> interval = median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    >>> interval.low, interval.high, interval.coverage
    (1.0, 6.0, 0.96875)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    ordered = _ordered(values)
    n = len(ordered)
    k, coverage = _sign_test_rank(n, confidence)
    return Interval(low=ordered[k - 1], high=ordered[n - k], coverage=coverage, requested=confidence)


def grouped_interval(
    values: Sequence[float], groups: Sequence[int] = (), confidence: float = 0.95
) -> Interval:
    """Return `median_interval`, widened to reach the median of every group.

    Values of one group (of one process, taken within seconds) share what moves them all; the groups' medians
    show how much that is. Without groups, or of one, nothing is widened.
    Raises ValueError as `median_interval` does, and where there is not one group for each value.

    >>> found = grouped_interval([1.0, 1.1, 1.2, 1.0, 1.1, 1.2, 3.0, 3.0, 3.0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    >>> found.low, found.high
    (1.0, 3.0)
    """
    found = median_interval(values, confidence)
    if not groups:
        return found
    medians = [
        statistics.median(value for value, of in zip(values, groups, strict=True) if of == group)
        for group in set(groups)
    ]
    return replace(found, low=min(found.low, *medians), high=max(found.high, *medians))


def compare_paired(
    a: Sequence[float], b: Sequence[float], groups: Sequence[int] = (), confidence: float = 0.95
) -> Comparison:
    """Compare two samples taken side by side (same round, same machine) as the ratio a over b.

    The interval of the median ratio inverts the sign test, so it needs neither normality nor resampling; it
    reaches the median ratio of every one of `groups`, so that these must agree before one side is said to
    be lower.
    Raises ValueError on unequal lengths, empty samples, or values that are not positive and finite.

    >>> compare_paired([2.0, 2.1, 1.9, 2.0, 2.2, 2.1], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).verdict
    'higher'
    """
    if len(a) != len(b):
        raise ValueError(f"paired samples need equal lengths, got {len(a)} and {len(b)}")
    if not all(math.isfinite(value) and value > 0 for value in (*a, *b)):
        raise ValueError("a ratio needs positive, finite values")
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    interval = grouped_interval(ratios, groups, confidence)
    return Comparison(ratio=median(ratios), interval=interval, n=len(ratios), verdict=_verdict(interval))


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Return p10, p50, p90 and p99, interpolated between samples; nothing of an empty sample.

    >>> percentiles([1.0, 2.0, 3.0])
    {'p10': 1.2, 'p50': 2.0, 'p90': 2.8, 'p99': 2.98}
    """
    if not samples:
        return {}
    if len(samples) == 1:
        return dict.fromkeys((f"p{p}" for p in PERCENTILES), samples[0])
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {f"p{p}": cuts[p - 1] for p in PERCENTILES}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two paired samples; tied values share their mean rank.

    NaN where one of the samples is constant. Raises ValueError on unequal lengths, fewer than two pairs, or a
    NaN. Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 5.4.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.5
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"a rank correlation needs two or more pairs, got {len(x)} and {len(y)} values")
    if any(math.isnan(value) for value in (*x, *y)):
        raise ValueError("a sample with NaN has no ranks")
    if len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    return statistics.correlation(_mean_ranks(x), _mean_ranks(y))


def rank_correlation_interval(rho: float, n: int) -> tuple[float, float] | None:
    """Return the 95 % interval of Spearman's rank correlation `rho` of `n` independent pairs.

    By Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000, Psychometrika 65, 23-28).
    None of three pairs or fewer, and where all ranks agree or oppose: there z has no value.

    >>> low, high = rank_correlation_interval(0.5, 22)
    >>> f"{low:.3f} to {high:.3f}"
    '0.072 to 0.772'
    """
    if n <= 3 or abs(rho) >= 1:
        return None
    half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def _mean_ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank, ties sharing their mean; scipy's own costs seconds of imports."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value)) / 2 for value in values]


def _ordered(values: Sequence[float]) -> list[float]:
    if not values:
        raise ValueError("an empty sample has no median")
    if any(math.isnan(value) for value in values):
        raise ValueError("a sample with NaN has no median")
    return sorted(values)


def _sign_test_rank(n: int, confidence: float) -> tuple[int, float]:
    """Return the largest rank k (from 1) whose interval reaches `confidence`, and its coverage."""
    # 2^n P(Bin(n, 1/2) < k) in integers: scipy's tail may miss a coverage asked for exactly by its last bit
    tails = itertools.accumulate(math.comb(n, i) for i in range((n + 1) // 2))
    coverages = [1 - 2 * tail / 2**n for tail in tails]
    k = max(1, sum(coverage >= confidence for coverage in coverages))
    return k, coverages[k - 1]


def _verdict(interval: Interval) -> Verdict:
    if not interval.sufficient:
        return "too few pairs"
    if interval.high < 1:
        return "lower"
    return "higher" if interval.low > 1 else "not distinguishable"
