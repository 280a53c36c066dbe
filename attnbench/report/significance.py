"""What seeds allow to say: differences of configurations over seeds, their intervals, p values, and words.

A configuration's value at a seed is taken as its own level plus what the seed does to every configuration
(initial weights, data order and noise are those of the seed, whichever the configuration) plus a rest: the
two-way layout without interaction. The rest's variance is pooled over all configurations of a table.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench.report.quantities import QUALITY, unresolved
from attnbench.results import Measurement

LEVEL = 0.05
"""Differences whose p value is above it are called not distinguishable."""
FEWEST_RANKED = 6
"""A rank correlation of fewer pairs is not shown: by chance 8 % of the orders of five have one of 0.9 or more
in size, and 2 % of the orders of six."""
Scale = Literal["difference", "ratio"]
Basis = Literal["seeds", "images"]
SeedValues = Mapping[int, float]
"""The value of one configuration at each seed; one that is not finite (or above 1e150) counts as none."""

_RATIOS = ("loss", "final_loss", "held_out_loss", "latency_ms", "step_time_ms", "train_time_s",
           "sample_time_s", "decode_time_s", "images_per_s", "denoise_images_per_s")  # fmt: skip
_RATIO_FAMILIES = ("FD", "FID", "IS")
_ROUNDING = 16 * 2.0**-52  # a residual takes three exact means and three subtractions of values of one size
_LARGEST = 1e150  # the square of a larger one has no double
_LARGEST_EXPONENT = 709.0
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What two configurations differ by in one quantity, and how sure that is."""

    estimate: float
    """Ours minus theirs, of means over the common seeds; for a ratio ours over theirs, of geometric means.
    NaN where there is nothing in common."""
    interval: tuple[float, float] | None = None
    """95 % interval of the estimate."""
    t: float | None = None
    """The test's statistic: the estimate (of a ratio its logarithm) over its standard error."""
    p: float | None = None
    """Two-sided p value of no difference (of a ratio: of 1)."""
    scale: Scale = "difference"
    basis: Basis = "seeds"
    """`seeds`: about the two methods. `images`: about these two trainings alone."""
    seeds: tuple[int, ...] = ()
    """The seeds both have."""
    pooled: int = 0
    """Configurations whose residuals are pooled."""
    df: int = 0
    """Degrees of freedom of the residual variance: (pooled - 1) x (seeds - 1)."""
    reason: str = ""
    """Why there is no p value; empty where there is one."""

    @property
    def distinguishable(self) -> bool:
        """Whether this one difference, looked at alone, is significant at LEVEL."""
        return self.p is not None and self.p <= LEVEL


class SeedTable:
    """Rows of values by seed whose differences share one residual variance, computed once."""

    def __init__(self, rows: Sequence[SeedValues], scale: Scale = "difference") -> None:
        """Take the values of each row; of a ratio their logarithms count, so they must be positive."""
        self.scale: Scale = scale
        self._rows = [_finite(values, scale) for values in rows]
        self._residuals: dict[tuple[int, ...], tuple[float | None, int]] = {}

    def difference(self, ours: int, theirs: int) -> Difference:
        """Return what two rows differ by over the seeds both have, as `difference_over_seeds` says."""
        a, b = self._rows[ours], self._rows[theirs]
        seeds = tuple(sorted(a.keys() & b.keys()))
        if not seeds:
            return Difference(estimate=math.nan, scale=self.scale, reason="no seed in common")
        variance, pooled = self._residual(seeds)
        estimate = statistics.fmean([a[seed] - b[seed] for seed in seeds])
        found = Difference(
            estimate=_back(estimate, self.scale),
            scale=self.scale,
            seeds=seeds,
            pooled=pooled,
            df=(pooled - 1) * (len(seeds) - 1),
        )
        if found.df == 0:
            return replace(found, reason="one seed in common")
        if variance is None:
            return replace(found, reason="the values do not vary over seeds")
        error = math.sqrt(2 * variance / len(seeds))
        reach = _t_quantile(found.df) * error
        low, high = _back(estimate - reach, self.scale), _back(estimate + reach, self.scale)
        t = estimate / error
        return replace(found, interval=(low, high), t=t, p=_two_sided_p(t, found.df))

    def _residual(self, seeds: tuple[int, ...]) -> tuple[float | None, int]:
        """Return the variance of the rest and the number of rows that have all these seeds."""
        if seeds not in self._residuals:
            rows = [[row[seed] for seed in seeds] for row in self._rows if row.keys() >= set(seeds)]
            df = (len(rows) - 1) * (len(seeds) - 1)
            self._residuals[seeds] = (_residual_variance(rows, df) if df else None, len(rows))
        return self._residuals[seeds]


def difference_over_seeds(
    ours: SeedValues, theirs: SeedValues, others: Sequence[SeedValues] = (), scale: Scale = "difference"
) -> Difference:
    """Return the difference of two configurations over the seeds both have, paired by seed.

    `others` are the further configurations of the table: those that have all those seeds help to estimate the
    residual variance. t test with (k - 1)(n - 1) degrees of freedom for k configurations and n seeds; with
    k = 2 it is the paired t test. No p value from fewer than two common seeds, nor where residuals are
    nothing but rounding: then the seeds changed nothing and are no repetitions. A ratio is tested as a
    difference of logarithms and needs positive values. For many pairs of one table, `SeedTable` is faster.
    Source: Montgomery, Design and Analysis of Experiments, 8th ed., section 4.1 (randomized complete blocks).
    """
    return SeedTable((ours, theirs, *others), scale).difference(0, 1)


def difference_over_images(ours: Measurement, theirs: Measurement) -> Difference:
    """Return what two trainings differ by, as far as the sampling of images goes: nothing over seeds.

    Normal test from both 95 % intervals over images, taken as independent: the same noise for both would
    make the true error smaller, not larger. No p value where one has no interval.
    """
    estimate = ours.value - theirs.value
    intervals = [m.interval for m in (ours, theirs) if m.interval and all(map(math.isfinite, m.interval))]
    if not math.isfinite(estimate):
        return Difference(estimate=math.nan, basis="images", reason="a value is not finite")
    reach = math.hypot(*((high - low) / 2 for low, high in intervals))
    if len(intervals) < 2 or reach == 0:
        return Difference(estimate=estimate, basis="images", reason="no interval over images")
    p = math.erfc(abs(estimate) / (reach / _NORMAL_95) / math.sqrt(2))
    return Difference(estimate=estimate, basis="images", interval=(estimate - reach, estimate + reach), p=p)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % t interval of one configuration's mean over seeds; None of fewer than two.

    From its own spread alone, with n - 1 degrees of freedom: what another draw of seeds would give. Two such
    intervals may overlap although the difference, paired by seed, is significant.
    """
    if len(values) < 2 or not all(abs(value) < _LARGEST for value in values):
        return None
    mean = statistics.fmean(values)
    reach = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - reach, mean + reach


def adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini-Hochberg adjusted p values; those of no test (None) stay out and stay None.

    Calling a difference where its adjusted value is at most 0.05 keeps the expected share of false calls
    among all calls at 5 %; where nothing differs, the chance of any call. Source: Benjamini, Hochberg 1995.

    >>> adjusted([0.01, 0.04, None, 0.03])
    [0.03, 0.04, None, 0.04]
    """
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    smallest = 1.0
    for rank in range(len(ranked), 0, -1):
        p, i = ranked[rank - 1]
        smallest = min(smallest, p * len(ranked) / rank)
        found[i] = smallest
    return found


def scale_of(name: str) -> Scale:
    """Return whether a quantity is compared by ratio: what is positive and spreads in proportion to its size.

    Distances of Gaussians, inception scores, losses and times are; kernel distances may fall below zero, and
    shares (precision, recall, accuracy) end at 1.
    """
    base, match = unresolved(name), QUALITY.match(name)
    family = match["family"].removeprefix("s") if match else ""
    return "ratio" if base in _RATIOS or family in _RATIO_FAMILIES else "difference"


def largest_pool(columns: Sequence[Sequence[SeedValues]]) -> tuple[int, int, bool]:
    """Return the rows and seeds behind the best known residual variance of some columns, and if all have it.

    Rows that share no two seeds with another have none: then 1 row.
    """
    pools = []
    for rows in columns:
        sets = [frozenset(_finite(values, "difference")) for values in rows]
        own = [(sum(seeds <= other for other in sets), len(seeds)) for seeds in sets if len(seeds) > 1]
        pools.append((max(own, key=lambda pool: (pool[0] - 1) * (pool[1] - 1), default=(1, 1)), set(sets)))
    k, n = max((pool for pool, _ in pools), key=lambda pool: (pool[0] - 1) * (pool[1] - 1), default=(1, 1))
    return k, n, all(pool == (k, n) and len(sets) == 1 for pool, sets in pools)


def method_in_words(k: int, n: int, alike: bool = True) -> str:
    """Return the sentence that states test and assumption for a table of k configurations over n seeds.

    Not `alike`: some rows or columns have fewer.
    """
    fewer = "" if alike else " (fewer where rows or seeds are missing)"
    return (
        "Over seeds: t test of the difference of means, paired by seed (weights, data order and noise of a "
        f"seed are the same in every row), residual variance pooled over {k} rows, {(k - 1) * (n - 1)} "
        f"degrees of freedom{fewer}. It assumes that a seed moves all rows alike, and that what is left is "
        "near normal with one variance; losses, times, Frechet distances and inception scores are compared "
        "by ratio. The draw of images is a part of each seed's value, so the test holds it."
    )


def _finite(values: SeedValues, scale: Scale) -> dict[int, float]:
    kept = {seed: value for seed, value in values.items() if abs(value) < _LARGEST}  # NaN is not, either
    if scale == "difference":
        return kept
    return {seed: math.log(value) for seed, value in kept.items() if value > 0}


def _back(value: float, scale: Scale) -> float:
    if scale == "difference":
        return value
    return math.exp(value) if value < _LARGEST_EXPONENT else math.inf


def _residual_variance(rows: Sequence[Sequence[float]], df: int) -> float | None:
    """Return the mean square of the rest [k, n] after rows and columns; None where it is only rounding."""
    means = [statistics.fmean(row) for row in rows]
    columns = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    grand = statistics.fmean(means)
    rest = [v - m - c + grand for row, m in zip(rows, means, strict=True)
            for v, c in zip(row, columns, strict=True)]  # fmt: skip
    if max(map(abs, rest)) <= _ROUNDING * max(abs(value) for row in rows for value in row):
        return None
    return math.fsum(r * r for r in rest) / df or None


@functools.cache
def _t_quantile(df: int) -> float:
    from scipy.special import stdtrit  # late: most reports need no test

    return float(stdtrit(df, 1 - LEVEL / 2))


def _two_sided_p(t: float, df: int) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(t)))
