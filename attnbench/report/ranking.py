"""Who is best over seeds, and which rows cannot be told from the best: one decision for a whole table.

Two questions are asked of each column. Do its rows differ at all? Tukey's range test of the worst against the
best answers; over the columns its p values are held to a false-discovery rate of 5 % (Benjamini-Hochberg).
Where they do: does the best differ from its runner-up (t test), and from each other row (Tukey's test, since
the best was picked after looking)? Both at the level that the first question leaves: 5 % times the share of
columns whose rows differ (Benjamini and Bogomolov 2014). So a suite without any difference shows one in at
most 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnbench.report.significance import (
    LEVEL,
    Difference,
    Scale,
    SeedValues,
    adjusted,
    difference_over_seeds,
)
from attnbench.results import Direction


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One column among rows that are alike."""

    rows: tuple[int, ...]
    """The rows of the table that compete."""
    values: tuple[SeedValues, ...]
    """Of each of them, by seed."""
    better: Direction
    scale: Scale = "difference"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a contest ended."""

    rows: tuple[int, ...]
    """The rows that have values of two seeds or more, best mean first."""
    close: tuple[int, ...]
    """Those not distinguishable from the first, best mean first."""
    untested: tuple[tuple[int, str], ...] = ()
    """Those that no test can tell from the first, each with the reason."""

    @property
    def alone(self) -> bool:
        """Whether the best differs from every other row."""
        return len(self.rows) > 1 and not self.close and not self.untested


def standings(contests: Sequence[Contest]) -> list[Standing]:
    """Decide all contests of one table together, so that the table's false calls stay below 5 %.

    A contest with fewer than two rows that have values is none: nobody is close and nobody stands alone.
    """
    ordered = [_by_mean(contest) for contest in contests]
    found = [_against_best(contest, order) for contest, order in zip(contests, ordered, strict=True)]
    differ = [_rows_differ(differences) for differences in found]
    held = adjusted([p if differences else None for p, differences in zip(differ, found, strict=True)])
    tested = sum(p is not None for p in held)
    level = LEVEL * sum(p is not None and p <= LEVEL for p in held) / max(1, tested)
    return [
        _standing(contest, order, differences, _near(differences, p, level))
        for contest, order, differences, p in zip(contests, ordered, found, held, strict=True)
    ]


def _standing(
    contest: Contest, order: Sequence[int], differences: Sequence[Difference], near: Sequence[bool]
) -> Standing:
    behind = [(contest.rows[i], d, close) for i, d, close in zip(order[1:], differences, near, strict=True)]
    single = [
        row for row, values in zip(contest.rows, contest.values, strict=True) if len(_finite(values)) == 1
    ]
    return Standing(
        rows=tuple(contest.rows[i] for i in order),
        close=tuple(row for row, found, close in behind if close and not found.reason),
        untested=(
            *((row, found.reason) for row, found, _ in behind if found.reason),
            *((row, "one seed") for row in single if order),
        ),
    )


def _by_mean(contest: Contest) -> list[int]:
    """Return the places of the contest's rows that have two finite values or more, best mean first."""
    means = {
        i: statistics.fmean(finite)
        for i, values in enumerate(contest.values)
        if len(finite := _finite(values)) > 1
    }
    return sorted(means, key=lambda i: -means[i] if contest.better == "higher" else means[i])


def _finite(values: SeedValues) -> list[float]:
    return [value for value in values.values() if math.isfinite(value)]


def _against_best(contest: Contest, order: Sequence[int]) -> list[Difference]:
    """Return what each other row differs from the best by; its sign says which is better."""
    sign = 1 if contest.better == "higher" else -1
    found = []
    for i in order[1:]:
        best, row = contest.values[order[0]], contest.values[i]
        others = [contest.values[j] for j in order[1:] if j != i]
        difference = difference_over_seeds(best, row, others, contest.scale)
        if difference.t is not None and difference.t * sign <= 0:
            # over the seeds both have, the best mean is behind: no claim against it, none for it
            difference = replace(difference, t=0.0, p=1.0)
        found.append(difference)
    return found


def _rows_differ(differences: Sequence[Difference]) -> float:
    """Return Tukey's p value of the row that is farthest from the best; 1 where no row has one."""
    farthest: dict[int, Difference] = {}  # by degrees of freedom: with the same ones the largest t decides
    for found in differences:
        if found.t is not None and (
            found.df not in farthest or abs(found.t) > abs(farthest[found.df].t or 0)
        ):
            farthest[found.df] = found
    return min((_tukey(found, len(differences) + 1) for found in farthest.values()), default=1.0)


def _near(differences: Sequence[Difference], p: float | None, level: float) -> list[bool]:
    """Tell of each row behind the best whether it is not distinguishable from it at this level."""
    if p is None or p > LEVEL:
        return [True] * len(differences)
    if all(found.p is not None and found.p <= level for found in differences):
        return [False] * len(differences)
    return [not _differs(found, len(differences) + 1, level) for found in differences]


def _differs(found: Difference, k: int, level: float) -> bool:
    if found.p is None or found.p > level:
        return False
    # Bonferroni's bound on Tukey's p value spares most of its integrals
    return found.p * math.comb(k, 2) <= level or _tukey(found, k) <= level


def _tukey(found: Difference, k: int) -> float:
    """Return the p value of a difference that is looked at because it is one of those between k rows.

    Above LEVEL it may be too small, but still above.
    """
    if found.p is None or found.t is None:
        return 1.0
    if k == 2 or found.p > LEVEL:  # Tukey's is never below the plain one: no integral says anything else
        return found.p
    from scipy.stats import studentized_range  # late: a second that reports of one seed do not need

    # never below the plain p value: the integral is numerical, 1 in 10^8 off
    return max(found.p, float(studentized_range.sf(math.sqrt(2) * abs(found.t), k, found.df)))
