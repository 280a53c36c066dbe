"""Medians, exact intervals, paired comparisons and outlier flags."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from attnbench.report.statistics import compare_paired, median, median_interval, outliers, quantile, summarise

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
TIMES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


@given(VALUES, st.floats(0, 1))
def test_quantile_agrees_with_numpy(values: list[float], q: float) -> None:
    """Quantiles are numpy's default ones (type 7), up to rounding of one interpolation."""
    # Two products and a sum in fp64 on values up to 1e6 (4 ulp); `position` has a relative error of 1e-15 of
    # at most 60, which moves the result by less than 60 * 2^-52 times the largest gap of 2e6.
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-15, abs=1e-7)


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


def test_outliers_are_flagged_and_kept() -> None:
    """One slow sample among many is named by position and still counts in the summary."""
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 8.0, 1.02]
    summary = summarise(values)
    assert summary.outliers == (5,)
    assert summary.n == 7
    assert summary.interval.high == 8.0


def test_outliers_among_equal_values() -> None:
    """Where most values are equal the mean deviation takes the MAD's place; all equal: none."""
    assert outliers([2.0] * 20 + [9.0]) == (20,)
    assert outliers([2.0] * 20) == ()


def test_outliers_follow_the_published_rule() -> None:
    """The flag is Iglewicz and Hoaglin's: 0.6745 |x - median| / MAD above 3.5."""
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 2.0 + 3.5 / 0.6745 * 1.5 + 0.01]
    assert median([abs(v - median(values)) for v in values]) == 1.5
    assert outliers(values) == ()  # the median moved to 2.5: z = 3.23
    assert outliers(values, threshold=3.2) == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median([]), "empty"),
        (lambda: median([1.0, math.nan]), "NaN"),
        (lambda: quantile([1.0], 1.5), "q must lie"),
        (lambda: median_interval([1.0], 1.0), "confidence must lie"),
        (lambda: compare_paired([1.0], [1.0, 2.0]), "equal lengths, got 1 and 2"),
        (lambda: compare_paired([0.0], [1.0]), "positive"),
        (lambda: compare_paired([math.inf], [1.0]), "finite"),
    ],
)
def test_senseless_samples_are_refused(call: object, message: str) -> None:
    """Empty, NaN, unpaired and non-positive samples raise ValueError and say which."""
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
