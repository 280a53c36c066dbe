"""What the cost table says of latencies beside their median: rounds, percentiles, time against a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.profiling.statistics import percentiles
from attnbench.report.quantities import LATENCY, LEFT_OUT, SIZE, Quantity
from attnbench.report.tables import MISSING, Cell, Column, FilledColumn, plain, significant
from attnbench.report.timings import (
    WITHOUT_ROUNDS,
    all_samples,
    disturbed_notes,
    time_ratio,
    without_rounds,
)
from attnbench.results import Measurement, Result

PARAMS = SIZE[0]
_SHOWN = {"p10": 10, "p90": 10, "p99": 100}
"""Percentiles, each with the samples of which one is expected beyond it."""


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
    def timing(self) -> Measurement | None:
        """The latency in ms; None where there is none, or where one of its times is no positive number."""
        measured = self.measurement(LATENCY)
        values = [*measured.values, *all_samples(measured)] if measured else []
        return measured if values and all(math.isfinite(value) and value > 0 for value in values) else None

    @property
    def left_out(self) -> list[float]:
        """The samples in ms that do not count in the latency."""
        measured = self.result.measurement(f"{LEFT_OUT}@{self.side}")
        return measured.values if measured else []


def baseline(results: Sequence[Result]) -> Result:
    """Return the case that times are compared with: the first with softmax attention, else the first.

    A case of several attentions is none with softmax.
    """
    return next((result for result in results if _attention(result) == "softmax"), results[0])


def latency_columns(rows: Sequence[ProfiledRow], base: Result) -> list[FilledColumn]:
    """Return the columns that stand behind the median latency; none where nothing was timed."""
    if not any(row.timing for row in rows):
        return []
    against = Column(title=f"Time against {plain(base.label)}", group="Cost")
    return [
        (Column(title="Rounds", group="Cost"), [_rounds(row) for row in rows]),
        (Column(title=" / ".join(_SHOWN), unit="ms", group="Cost"), [_percentiles(row) for row in rows]),
        (against, [_ratio(row, base) for row in rows]),
    ]


def latency_notes(rows: Sequence[ProfiledRow], base: Result) -> tuple[str, ...]:
    """Return how to read those columns, and what weakens single rows; nothing where nothing was timed."""
    if not any(row.timing for row in rows):
        return ()
    label = plain(base.label)
    notes = [
        "Latency: median over rounds of each round's median; beside it the 95 % interval over rounds (order "
        "statistics). Rounds: those behind it, of all that were taken. p10 / p90 / p99: of all samples, "
        "left out or not; none of fewer than 10 samples, p99 of fewer than 100.",
        f"Time against {label}: median of ratios, each of two rounds taken side by side; faster or slower "
        "where the 95 % interval of that median leaves out 1.",
    ]
    if any(without_rounds(row.timing) for row in rows):
        notes.append(WITHOUT_ROUNDS)
    return (*notes, *disturbed_notes((f"{row.result.label} at {row.side} px", row.timing) for row in rows))


def _attention(result: Result) -> str:
    model = result.case.get("model")
    attention = model.get("attention") if isinstance(model, dict) else None
    return str(attention.get("name", "")) if isinstance(attention, dict) else ""


def _rounds(row: ProfiledRow) -> Cell:
    timing = row.timing
    if timing is None:
        return Cell()
    samples = f"{len(all_samples(timing)):,} samples"
    if row.left_out:
        samples += f", {len(row.left_out):,} left out"
    if not timing.rounds:
        return Cell(detail=samples)
    ranked, taken = len(timing.values), len(timing.rounds)
    return Cell(text=f"{taken}" if ranked == taken else f"{ranked} of {taken}", value=ranked, detail=samples)


def _percentiles(row: ProfiledRow) -> Cell:
    timing = row.timing
    if timing is None:
        return Cell()
    samples = [*all_samples(timing), *row.left_out]
    found = percentiles(samples)
    # of fewer samples it is the largest or the smallest under another name
    shown = [
        significant(found[name], 3) if len(samples) >= fewest else MISSING for name, fewest in _SHOWN.items()
    ]
    return Cell(text=" / ".join(shown), value=found["p10"])


def _ratio(row: ProfiledRow, base: Result) -> Cell:
    """Compare one row with the baseline at the same resolution; where that cannot be, say why."""
    ours = row.timing
    if row.result is base or ours is None:
        return Cell(detail="the baseline" if ours else "")
    theirs = ProfiledRow(result=base, side=row.side, series=0).timing
    if theirs is None:
        return Cell(detail=f"{plain(base.label)} has no latency here")
    ratio = time_ratio(ours, theirs, same_environment=row.result.environment == base.environment)
    if ratio.value is None:
        return Cell(detail=ratio.words)
    bounds = "" if ratio.interval is None else " to ".join(significant(x, 3) for x in ratio.interval) + ", "
    return Cell(
        text=f"× {significant(ratio.value, 3)}",
        value=ratio.value,
        detail=bounds + ratio.words,
        disturbed=bool(ours.disturbed or theirs.disturbed),
    )
