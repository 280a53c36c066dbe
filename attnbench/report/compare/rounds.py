"""Two latencies by their rounds: side by side within one session, apart from one another in two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.profiling.rows import LEAST_ROUNDS
from attnbench.report.compare.records import Basis, Ends
from attnbench.results import Measurement


@dataclass(frozen=True, kw_only=True)
class RoundsTest:
    """What rounds say of the ratio of two times."""

    ratio: float = math.nan
    """Ours over theirs, of geometric means over rounds."""
    interval: Ends | None = None
    """95 %."""
    p: float | None = None
    basis: Basis = ""
    why: str = ""
    """Why there is no p value."""


def compare_rounds(ours: Measurement, theirs: Measurement) -> RoundsTest:
    """Compare two latencies by t tests on the logarithms of their rounds' medians; never of a disturbed one.

    Rounds of one session were taken in turns: round i of both is a pair, and counts where both were left
    alone. Rounds of two sessions are two samples of unequal variance (Welch): what changed between the
    sessions is in no round. Needs six rounds, as every interval of a latency. Medians of twenty samples are
    near normal, and a sign or rank test of six rounds could not pass an adjustment for a whole table.
    """
    for measured in (theirs, ours):
        if measured.disturbed:
            return RoundsTest(why="disturbed")
        if not measured.rounds:
            return RoundsTest(why="without rounds")
    if ours.session and ours.session == theirs.session:
        pairs = _pairs(ours, theirs)
        if len(pairs) < LEAST_ROUNDS:
            return RoundsTest(why="too few rounds")
        logs = [math.log(a / b) for a, b in pairs]
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        return _t_test(statistics.fmean(logs), error, len(logs) - 1, "rounds side by side")
    if min(len(ours.values), len(theirs.values)) < LEAST_ROUNDS:
        return RoundsTest(why="too few rounds")
    if not _are_times([*ours.values, *theirs.values]):
        return RoundsTest(why="a time is no positive number")
    samples = [[math.log(value) for value in m.values] for m in (ours, theirs)]
    shares = [statistics.variance(sample) / len(sample) for sample in samples]
    estimate = statistics.fmean(samples[0]) - statistics.fmean(samples[1])
    spread = sum(shares)
    parts = sum(share**2 / (len(sample) - 1) for share, sample in zip(shares, samples, strict=True))
    return _t_test(estimate, math.sqrt(spread), spread**2 / parts if parts else 1.0, "rounds of two sessions")


def _pairs(ours: Measurement, theirs: Measurement) -> list[tuple[float, float]]:
    """Return the medians of the rounds in which both were left alone."""
    found = [
        (statistics.median(a), statistics.median(b))
        for a, b, mine, yours in zip(
            ours.rounds, theirs.rounds, ours.clean_rounds, theirs.clean_rounds, strict=False
        )
        if mine and yours and a and b
    ]
    return [pair for pair in found if _are_times(pair)]


def _are_times(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


def _t_test(estimate: float, error: float, df: float, basis: Basis) -> RoundsTest:
    """Return the test of a difference of logarithms."""
    from scipy.special import stdtr, stdtrit  # late: a comparison without latencies needs none

    if error == 0:
        return RoundsTest(ratio=math.exp(estimate), why="the rounds do not vary")
    reach = float(stdtrit(df, 0.975)) * error
    return RoundsTest(
        ratio=math.exp(estimate),
        interval=(math.exp(estimate - reach), math.exp(estimate + reach)),
        p=float(2 * stdtr(df, -abs(estimate) / error)),
        basis=basis,
    )
