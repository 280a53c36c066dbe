"""One quantity of one pair: difference, ratio, interval and p value; then the verdicts over the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from attnbench.report.compare.compared import TIMES, Compared, verdict_of
from attnbench.report.compare.gates import Lost
from attnbench.report.compare.matching import Pair, finished, first_measurement
from attnbench.report.compare.records import ComparedQuantity, Ends, Verdict
from attnbench.report.compare.rounds import RoundsTest, compare_rounds
from attnbench.report.configurations import Configuration, seed_of
from attnbench.report.quantities import ACCURACY, LIVE_MEMORY
from attnbench.report.significance import (
    Difference,
    SeedValues,
    adjusted,
    difference_over_images,
    difference_over_seeds,
    scale_of,
)
from attnbench.results import Measurement

TIME_MARGIN = 0.06
"""Two processes of one code differ by as much in passes of a millisecond, which no round of theirs shows: of
20 equal pairs three were called different, by 5.4 % at most (reports/instrument)."""
SESSION_MARGIN = 0.2
"""Two sessions of one code on a shared machine differ by less: 61 of 63 rows that were timed twice, two
minutes apart (reports/instrument, `repeat`)."""
ALPHA = 0.05
ROUNDING = 2.0**-30
"""Relative: what float64 sums of up to a million terms (10^6 x 2^-52 = 2e-10) may differ by."""
_NORMAL_95 = 1.959964
_NO_RATIO = "no ratio of these values"


def compare_quantity(
    pair: Pair, quantity: Compared, others: Sequence[SeedValues] = ()
) -> ComparedQuantity | str:
    """Compare one quantity of a pair, still without a verdict where that needs the whole table.

    `others` are the values of the further cases of the table: over seeds they help to estimate the variance.
    Returns the reason in words where there is nothing to compare, an empty string where neither has it.
    """
    ours, theirs = (c.measurements(quantity.name) for c in (pair.other, pair.base))
    if not ours or not theirs:
        where = pair.letter if theirs else pair.base_letter
        missing = f"{pair.label}: {quantity.title}: not measured in {where}"
        return missing if ours or theirs else ""
    if not all(math.isfinite(m.value) for m in (*ours, *theirs)):
        return f"{pair.label}: {quantity.title}: a value is not finite"
    if quantity.group == "latency":
        return _timed(pair, quantity)
    if quantity.group == "size" or quantity.quantity == LIVE_MEMORY:
        return _counted(pair, quantity)
    return _over_seeds(pair, quantity, others)


def lost(pair: Pair, quantity: Compared) -> Lost | None:
    """Return what became of a quantity that the base has and the other run has not; None where both do."""
    ours, theirs = (c.measurements(quantity.name) for c in (pair.other, pair.base))
    if not theirs or not all(math.isfinite(m.value) for m in theirs):
        return None
    where = f"{pair.label}: {quantity.title}"
    if not all(math.isfinite(m.value) for m in ours):
        return Lost(name=quantity.name, said=f"{where}: not finite in {pair.letter}", worse=True)
    if not finished(pair.other):
        status = pair.other.results[0].status
        return Lost(name=quantity.name, said=f"{where}: {status} in {pair.letter}", worse=status == "failed")
    return None if ours else Lost(name=quantity.name, said=f"{where}: not measured in {pair.letter}")


def with_verdicts(
    rows: Sequence[ComparedQuantity], alpha: float, time_margin: float, session_margin: float
) -> list[ComparedQuantity]:
    """Adjust all p values of a table together (Benjamini-Hochberg) and say what each row amounts to.

    Two times that differ by less than a margin, side by side or in two sessions, are not distinguishable.
    """
    p_values = adjusted([row.p for row in rows])
    return [
        _judged(row, p, alpha, session_margin if row.apart else time_margin)
        for row, p in zip(rows, p_values, strict=True)
    ]


def seed_values(configuration: Configuration, name: str) -> dict[int, float]:
    """Return a quantity of each seed that finished and has it."""
    found = ((seed_of(r), r.measurement(name)) for r in configuration.results if r.status == "ok")
    return {seed: m.value for seed, m in found if m is not None and m.values}


def new_row(pair: Pair, quantity: Compared, base: float, value: float, **known: object) -> ComparedQuantity:
    """Return a row with what its two values say by themselves."""
    fields: dict[str, object] = {
        "run": pair.letter,
        "case": pair.label,
        "against": pair.base.label,
        "name": quantity.name,
        "title": quantity.title,
        "unit": quantity.unit,
        "better": quantity.quantity.better,
        "group": quantity.group,
        "base": base,
        "value": value,
        "difference": value - base,
        "ratio": value / base if base > 0 and value > 0 else None,
        "verdict": "same" if _same(value, base) else "not tested",
        "apart": quantity.group in TIMES and pair.letter != pair.base_letter,
    }
    return ComparedQuantity.model_validate(fields | known)


def row_over_seeds(
    pair: Pair,
    quantity: Compared,
    ours: SeedValues,
    theirs: SeedValues,
    others: Sequence[SeedValues] = (),
) -> ComparedQuantity:
    """Return the row of two cases over the seeds both have, two or more."""
    found = difference_over_seeds(ours, theirs, others, scale_of(quantity.name))
    seeds = list(found.seeds)
    if not seeds:  # of a ratio, a value that is not positive has no logarithm
        common = sorted(ours.keys() & theirs.keys())
        base, value = (statistics.fmean(values[seed] for seed in common) for values in (theirs, ours))
        row = new_row(pair, quantity, base, value, seeds=common)
        return row if row.verdict == "same" else row.model_copy(update={"why": _NO_RATIO})
    base, value = (statistics.fmean(values[seed] for seed in seeds) for values in (theirs, ours))
    if all(_same(ours[seed], theirs[seed]) for seed in seeds):
        return new_row(pair, quantity, base, value, basis="seeds", seeds=seeds, verdict="same")
    row = new_row(pair, quantity, base, value, basis="seeds", seeds=seeds, verdict="not tested")
    return _with_test(row, found)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=ROUNDING)


def _judged(row: ComparedQuantity, p_adjusted: float | None, alpha: float, margin: float) -> ComparedQuantity:
    if p_adjusted is None:
        return row
    ratio = row.ratio if row.ratio_interval else None  # of what is tested as a ratio, the sign is the ratio's
    larger = row.difference > 0 if ratio is None else ratio > 1
    verdict: Verdict = "not distinguishable"
    why = row.why
    if p_adjusted < alpha:
        if row.group in TIMES and ratio is not None and max(ratio, 1 / ratio) < 1 + margin:
            why = f"less than {100 * margin:g} %"
        else:
            verdict = verdict_of(row.group, worse=larger == (row.better != "higher"))
    return row.model_copy(update={"p_adjusted": p_adjusted, "verdict": verdict, "why": why})


def _counted(pair: Pair, quantity: Compared) -> ComparedQuantity:
    """Compare what is the same whenever it is counted."""
    ours, theirs = (c.measurements(quantity.name)[0].value for c in (pair.other, pair.base))
    verdict = "same" if _same(ours, theirs) else verdict_of(quantity.group, worse=ours > theirs)
    return new_row(pair, quantity, theirs, ours, basis="counted", verdict=verdict)


def _timed(pair: Pair, quantity: Compared) -> ComparedQuantity:
    ours, theirs = (first_measurement(c, quantity.name) for c in (pair.other, pair.base))
    assert ours is not None
    assert theirs is not None
    found: RoundsTest = compare_rounds(ours, theirs)
    if ours.rounds == theirs.rounds and ours.values == theirs.values:
        return new_row(pair, quantity, theirs.value, ours.value, verdict="same")
    known: dict[str, object] = {"verdict": "not tested", "why": found.why}
    if found.p is not None:
        known |= {"ratio": found.ratio, "ratio_interval": found.interval, "p": found.p, "basis": found.basis}
        known["apart"] = found.basis == "rounds of two sessions"
    return new_row(pair, quantity, theirs.value, ours.value, **known)


def _over_seeds(pair: Pair, quantity: Compared, others: Sequence[SeedValues]) -> ComparedQuantity:
    ours, theirs = (seed_values(c, quantity.name) for c in (pair.other, pair.base))
    if len(ours.keys() & theirs.keys()) > 1:
        return row_over_seeds(pair, quantity, ours, theirs, others)
    return _of_two_trainings(pair, quantity)


def _of_two_trainings(pair: Pair, quantity: Compared) -> ComparedQuantity:
    """Compare one training with one other, of the same seed where both have one: by images, or not at all."""
    a, b = _one_each(pair, quantity.name)
    row = new_row(pair, quantity, b.value, a.value)
    if row.verdict == "same":
        return row
    if quantity.group != "quality":
        return row.model_copy(update={"why": "one value each"})
    found = difference_over_images(_with_interval(a, quantity), _with_interval(b, quantity))
    return _with_test(row.model_copy(update={"basis": "images", "why": "two trainings"}), found)


def _one_each(pair: Pair, name: str) -> tuple[Measurement, Measurement]:
    ours, theirs = (
        {seed_of(r): m for r in c.results if r.status == "ok" and (m := r.measurement(name)) and m.values}
        for c in (pair.other, pair.base)
    )
    common = sorted(ours.keys() & theirs.keys())
    first, second = (common[0], common[0]) if common else (min(ours), min(theirs))
    return ours[first], theirs[second]


def _with_interval(measured: Measurement, quantity: Compared) -> Measurement:
    """Give the class accuracy, a share of n images, the interval of a share (Wilson's)."""
    if quantity.name != ACCURACY.name or measured.interval is not None or not measured.n:
        return measured
    return measured.model_copy(update={"interval": _wilson(measured.value, measured.n)})


def _wilson(share: float, n: int) -> Ends:
    """Return the 95 % interval of a share of n. Source: Wilson 1927, J. Am. Stat. Assoc. 22:209."""
    z = _NORMAL_95
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def _with_test(row: ComparedQuantity, found: Difference) -> ComparedQuantity:
    if found.p is None:
        return row.model_copy(update={"why": found.reason})
    if found.scale == "ratio":
        return row.model_copy(
            update={"ratio": found.estimate, "ratio_interval": found.interval, "p": found.p}
        )
    return row.model_copy(update={"difference_interval": found.interval, "p": found.p})
