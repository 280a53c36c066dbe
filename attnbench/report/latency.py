"""What the cost table says of raw latencies: interval, count, flagged samples, ratio to the first case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.profiling.statistics import Verdict, compare_paired, median_interval, outliers
from attnbench.report.quantities import SIZE, SPEED, Quantity
from attnbench.report.tables import Cell, Column, FilledColumn, plain, significant
from attnbench.results import Measurement, Result

LATENCY = SPEED[0]
PARAMS = SIZE[0]
_WORDS: dict[Verdict, str] = {
    "lower": "faster",
    "higher": "slower",
    "not distinguishable": "not distinguishable",
    "too few pairs": "too few pairs to tell",
}


@dataclass(frozen=True, kw_only=True)
class ProfiledRow:
    """One case at one resolution."""

    result: Result
    side: int
    """Side of the decoded image in pixels."""
    series: int

    def measurement(self, quantity: Quantity) -> Measurement | None:
        """Return this row's measurement of a profiled quantity."""
        name = quantity.name if quantity is PARAMS else f"{quantity.name}@{self.side}"
        return self.result.measurement(name)

    @property
    def timings(self) -> list[float]:
        """Raw latencies in ms; none where one of them is no positive number."""
        measured = self.measurement(LATENCY)
        values = measured.values if measured else []
        return values if all(math.isfinite(value) and value > 0 for value in values) else []


def latency_columns(rows: Sequence[ProfiledRow], first: Result) -> list[FilledColumn]:
    """Return the columns that stand behind the median latency; none where nothing was timed."""
    if not any(row.timings for row in rows):
        return []
    against = Column(title=f"Time against {plain(first.label)}", group="Cost")
    return [
        (Column(title="95 % interval of the median", unit="ms", group="Cost"), [_interval(r) for r in rows]),
        (Column(title="Samples", group="Cost"), [_count(row.timings, len(row.timings)) for row in rows]),
        (Column(title="Flagged", group="Cost"), [_flagged(row) for row in rows]),
        (against, [_ratio(row, first) for row in rows]),
    ]


def latency_notes(first: Result) -> tuple[str, ...]:
    """Return how to read those columns."""
    return (
        "Latency: median of all raw samples; the interval is the exact order-statistic one (sign test).",
        "Flagged: samples whose modified z-score exceeds 3.5; they are kept in the median and the interval.",
        f"Time against {plain(first.label)}: median of paired ratios, sample by sample; "
        "'not distinguishable' where the 95 % interval holds 1.",
    )


def _count(timings: Sequence[float], count: int) -> Cell:
    return Cell(text=f"{count:,}", value=count) if timings else Cell()


def _flagged(row: ProfiledRow) -> Cell:
    return _count(row.timings, len(outliers(row.timings))) if row.timings else Cell()


def _interval(row: ProfiledRow) -> Cell:
    if len(row.timings) < 2:
        return Cell()
    interval = median_interval(row.timings)
    detail = "" if interval.sufficient else f"{100 * interval.coverage:.3g} %: too few samples for 95 %"
    return Cell(text=f"{significant(interval.low)} to {significant(interval.high)}", detail=detail)


def _ratio(row: ProfiledRow, first: Result) -> Cell:
    """Compare only timings taken in the same environment, sample by sample."""
    if row.result is first or row.result.environment != first.environment:
        return Cell()
    ours, theirs = row.timings, ProfiledRow(result=first, side=row.side, series=0).timings
    if not ours or len(ours) != len(theirs):
        return Cell()
    compared = compare_paired(ours, theirs)
    low, high = significant(compared.interval.low, 3), significant(compared.interval.high, 3)
    return Cell(
        text=f"× {significant(compared.ratio, 3)}",
        value=compared.ratio,
        detail=f"{low} to {high}, {_WORDS[compared.verdict]}",
    )
