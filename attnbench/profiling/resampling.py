"""Draws from what a few rounds leave open about a median, to be carried through any formula."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnbench.profiling.rows import LEAST_ROUNDS, ProfileRow, is_clean, round_medians
from attnbench.profiling.statistics import median

Array = NDArray[np.float64]
DRAWS = (
    4000  # a 2.5th percentile of so many is a true one between 2.0 and 3.0: 2 sd of Bin(4000, 0.025) / 4000
)
TAILS = (0.025, 0.975)


def median_draws(values: Sequence[float], rng: np.random.Generator) -> Array | None:
    """Return DRAWS [DRAWS] values that the true median may have, or None of too few values for an interval.

    How many of n values lie below the true median is Bin(n, 1/2), whatever their distribution: that number
    is drawn, then a place between the two values on either side. Places lie as the interpolated intervals of
    the sign test have their ends, so that 95 % of the draws are such an interval of one median, and draws of
    several medians can go through a formula together. Beyond the smallest and largest value there is nothing.
    Source: Hettmansperger and Sheather 1986, Confidence intervals based on interpolated order statistics.
    """
    n = len(values)
    if n < LEAST_ROUNDS:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    below = rng.binomial(n, 0.5, size=DRAWS)
    low, high = ordered[np.maximum(below - 1, 0)], ordered[np.minimum(below, n - 1)]
    outside = np.minimum(below, n - below)  # values on the side with fewer of them
    share = 1 - rng.random(DRAWS)  # in (0, 1]: of the probability between the two, from the outer one on
    inwards = (n - outside) * share / (outside + (n - 2 * outside) * share)
    return np.where(2 * below <= n, low + inwards * (high - low), high - inwards * (high - low))


def log_latency(row: ProfileRow, rng: np.random.Generator) -> tuple[float, Array | None]:
    """Return the logarithm of a row's latency, and draws of it."""
    medians = round_medians(row.ranked_rounds)
    draws = median_draws(medians, rng)
    return float(np.log(median(medians))), None if draws is None else np.log(draws)


def log_ratio(row: ProfileRow, other: ProfileRow, rng: np.random.Generator) -> tuple[float, Array | None]:
    """Return the logarithm of one row's latency over another's, and draws of it.

    Rounds of one session are pairs, and the median of their ratios is taken: what slows the machine in a
    round slows both. Rows of two sessions are divided by their medians.
    """
    if not row.session or row.session != other.session:
        (ours, draws), (theirs, their_draws) = log_latency(row, rng), log_latency(other, rng)
        return ours - theirs, None if draws is None or their_draws is None else draws - their_draws
    pairs = list(zip(row.rounds, other.rounds, strict=False))
    clean = [pair for pair in pairs if all(map(is_clean, pair))]
    chosen = clean if len(clean) >= LEAST_ROUNDS else pairs
    ratios = [ours / theirs for ours, theirs in map(round_medians, chosen)]
    draws = median_draws(ratios, rng)
    return float(np.log(median(ratios))), None if draws is None else np.log(draws)
