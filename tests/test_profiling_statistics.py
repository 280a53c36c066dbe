"""Medians, exact intervals, paired comparisons, percentiles."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from attnbench.profiling.statistics import (
    compare_paired,
    median,
    median_interval,
    percentiles,
    rank_correlation,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
TIMES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


@given(VALUES)
def test_median_agrees_with_numpy(values: list[float]) -> None:
    """The median is numpy's to the bit; both halve the sum of the two middle values."""
    assert median(values) == float(np.median(values))


def test_median_of_infinities() -> None:
    """Infinities, as of losses that overflowed, are ordered like other values and poison no middle."""
    assert median([math.inf, 1.0, -math.inf]) == 1.0
    assert median([math.inf, math.inf, 1.0, math.inf]) == math.inf
    assert median([-math.inf, -math.inf]) == -math.inf


@given(VALUES)
def test_median_ignores_order(values: list[float]) -> None:
    """A shuffled sample has the same median."""
    shuffled = random.Random(0).sample(values, len(values))
    assert median(shuffled) == median(values)


@pytest.mark.parametrize("n", [6, 7, 20, 101, 1000])
def test_median_interval_agrees_with_scipy(n: int) -> None:
    """The interval is scipy's inversion of the quantile test, to the very order statistics."""
    values = np.random.default_rng(n).normal(size=n).tolist()
    expected = scipy_stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    interval = median_interval(values)
    assert (interval.low, interval.high) == (expected.low, expected.high)
    assert interval.sufficient


@given(VALUES, st.floats(0.5, 0.999))
def test_coverage_is_the_binomial_one_and_the_smallest_that_suffices(
    values: list[float], confidence: float
) -> None:
    """The stated coverage reaches the request, and the next narrower interval would not."""
    interval = median_interval(values, confidence)
    n = len(values)
    covers = {k: 1 - 2 * float(scipy_stats.binom.cdf(k - 1, n, 0.5)) for k in range(1, (n + 1) // 2 + 1)}
    enough = [k for k in covers if covers[k] >= confidence]
    expected = max(enough, default=1)
    assert interval.coverage == pytest.approx(covers[expected], abs=1e-12)  # scipy's cdf: some ulp of 1
    assert (interval.low, interval.high) == (sorted(values)[expected - 1], sorted(values)[n - expected])
    assert interval.low <= median(values) <= interval.high
    assert interval.sufficient == bool(enough)


@pytest.mark.parametrize("n", range(1, 61))
def test_a_coverage_asked_for_exactly_is_enough(n: int) -> None:
    """Every coverage that n values can have, asked for to the last bit, is given by its own two ranks."""
    values = [float(i) for i in range(1, n + 1)]
    for k in range(1, (n + 1) // 2 + 1):
        missed = sum(math.comb(n, i) for i in range(k)) / 2 ** (n - 1)  # 2 P(Bin(n, 1/2) < k): rounded once
        if not 0 < 1 - missed < 1:
            continue
        interval = median_interval(values, 1 - missed)
        # no two coverages of n up to 60 are one number in fp64 but those at which the tail is lost beside 1
        assert (interval.low, interval.coverage) == (k, 1 - missed) or missed < 2**-50
        assert interval.high == n + 1 - interval.low
        assert interval.sufficient


def test_five_values_are_too_few_for_95_percent() -> None:
    """Five values give their whole range with its true coverage, 15/16, and say so."""
    interval = median_interval([3.0, 1.0, 5.0, 2.0, 4.0])
    assert (interval.low, interval.high, interval.coverage) == (1.0, 5.0, 0.9375)
    assert not interval.sufficient


def test_interval_covers_a_skewed_median_as_often_as_it_says() -> None:
    """Over 2,000 lognormal samples of 15 the interval holds the true median at its stated rate."""
    rng = np.random.default_rng(1)
    intervals = [median_interval(rng.lognormal(size=15).tolist()) for _ in range(2000)]
    hits = sum(interval.low <= 1.0 <= interval.high for interval in intervals)
    coverage = intervals[0].coverage
    # four standard deviations of a binomial count
    assert abs(hits / 2000 - coverage) < 4 * math.sqrt(coverage * (1 - coverage) / 2000)


@given(TIMES, st.floats(0.1, 10))
def test_comparison_finds_an_exact_factor(times: list[float], factor: float) -> None:
    """Against itself times a factor, a sample's ratio is that factor."""
    compared = compare_paired([factor * t for t in times], times)
    # one rounding each in the product, the quotient and the interpolation
    assert compared.ratio == pytest.approx(factor, rel=4 * 2**-52)
    assert compared.n == len(times)


def test_verdict_says_no_more_than_the_interval() -> None:
    """Shared drift cancels in pairs; noise alone is not distinguishable; five pairs never decide."""
    rng = np.random.default_rng(2)
    drift = rng.uniform(1, 3, 40)
    slow = (drift * 1.1 * rng.normal(1, 0.01, 40)).tolist()
    fast = (drift * rng.normal(1, 0.01, 40)).tolist()
    assert compare_paired(slow, fast).verdict == "higher"
    assert compare_paired(fast, slow).verdict == "lower"
    assert compare_paired(fast, drift.tolist()).verdict == "not distinguishable"
    assert compare_paired(slow[:5], fast[:5]).verdict == "too few pairs"


def test_groups_must_agree_before_one_side_is_lower() -> None:
    """Two processes that say 3 % slower and one that says faster decide nothing; all three of one mind do."""
    plain = [1.0] * 24
    groups = [0] * 9 + [1] * 9 + [2] * 6
    torn = [1.03] * 18 + [0.99] * 6
    assert compare_paired(torn, plain).verdict == "higher"  # as if 24 rounds of one process knew nothing new
    found = compare_paired(torn, plain, groups)
    assert (found.verdict, found.interval.low) == ("not distinguishable", 0.99)
    assert compare_paired([1.03] * 18 + [1.01] * 6, plain, groups).verdict == "higher"


def test_five_processes_with_luck_are_told_apart_less_often_than_one() -> None:
    """Processes whose pace differs by 1.7 %: one process's rounds call equal rows different, five do not.

    Of 200 tries of 20 rounds that scatter by 2 %, one process each is called different where its luck exceeds
    about twice 1.25 * 2 % / 20^0.5 = 0.6 %, that is mostly. Five that must agree: in 2 / 2^5 of the tries,
    6 %, or fewer; 12 % would be three and a half deviations more.
    """
    rng = np.random.default_rng(0)

    def called(processes: int) -> float:
        groups = np.repeat(np.arange(processes), 20 // processes)
        luck = rng.normal(1, 0.017, (200, processes))[:, groups]
        ratios = luck * rng.normal(1, 0.02, (200, 20))
        found = [compare_paired(row, [1.0] * 20, groups.tolist()).verdict for row in ratios.tolist()]
        return sum(verdict != "not distinguishable" for verdict in found) / 200

    assert called(1) > 0.5
    assert called(5) < 0.12


@given(TIMES)
def test_percentiles_agree_with_numpy(values: list[float]) -> None:
    """The percentiles are numpy's, linear between samples; of one sample all are that sample."""
    found = percentiles(values)
    expected = np.percentile(values, [10, 50, 90, 99])
    assert list(found) == ["p10", "p50", "p90", "p99"]
    # both interpolate between two samples: a few roundings of the larger one
    assert list(found.values()) == pytest.approx(expected, rel=8 * 2**-52)


@given(
    st.integers(2, 60).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(-5, 5), min_size=n, max_size=n)] * 2)
    )
)
def test_rank_correlation_is_that_of_mean_ranks(pair: tuple[list[int], list[int]]) -> None:
    """It is Pearson's correlation of ranks, equal values sharing their mean; NaN where one is constant."""
    x, y = ([float(value) for value in values] for values in pair)
    # centred by (n + 1) / 2, in half ranks: exact
    a, b = ([2 * rank - len(x) - 1 for rank in mean_ranks(values)] for values in (x, y))
    spread = math.sqrt(sum(r * r for r in a)) * math.sqrt(sum(r * r for r in b))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rank_correlation(x, y)
    if spread == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum(r * s for r, s in zip(a, b, strict=True)) / spread, abs=1e-12)


def mean_ranks(values: list[float]) -> list[float]:
    """Return each value's rank from 1; equal values get the mean of theirs."""
    ranks: dict[float, float] = {}
    first = 1
    for value, equal in itertools.groupby(sorted(values)):
        count = len(list(equal))
        ranks[value] = first + (count - 1) / 2
        first += count
    return [ranks[value] for value in values]


def test_rank_correlation_takes_infinities() -> None:
    """An infinite value has the last rank."""
    assert rank_correlation([1.0, 2.0, math.inf], [-math.inf, 5.0, 4.0]) == 0.5


def test_reports_need_no_torch_and_the_help_no_scipy() -> None:
    """All of this module works without torch; what starts at every command loads no scipy."""
    every = (
        "from attnbench.profiling import statistics as s; import sys; s.median_interval([1.0, 2.0]); "
        "s.rank_correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]); assert 'torch' not in sys.modules"
    )
    start = "import attnbench.cli, sys; assert 'scipy' not in sys.modules"
    for program in (every, start):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median([]), "empty"),
        (lambda: median([1.0, math.nan]), "NaN"),
        (lambda: median_interval([1.0], 1.0), "confidence must lie"),
        (lambda: compare_paired([1.0], [1.0, 2.0]), "equal lengths, got 1 and 2"),
        (lambda: compare_paired([0.0], [1.0]), "positive"),
        (lambda: compare_paired([math.inf], [1.0]), "finite"),
        (lambda: rank_correlation([1.0], [1.0]), "two or more pairs, got 1 and 1"),
        (lambda: rank_correlation([1.0, 2.0], [1.0]), "got 2 and 1"),
        (lambda: rank_correlation([1.0, math.nan], [1.0, 2.0]), "NaN"),
    ],
)
def test_senseless_samples_are_refused(call: object, message: str) -> None:
    """Empty, NaN, unpaired and non-positive samples raise ValueError and say which."""
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
