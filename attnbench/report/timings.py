"""Reading timed measurements: the interval over rounds, and two of them compared round by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.profiling.statistics import Comparison, Verdict, compare_paired, grouped_interval
from attnbench.report.tables import Entry, plain
from attnbench.results import Measurement

DISTURBED = "disturbed"
WITHOUT_ROUNDS = (
    "Times without rounds are an earlier version's: the samples of one round are not independent, so they "
    "have no interval and no pairs."
)
_WORDS: dict[Verdict, str] = {
    "lower": "faster",
    "higher": "slower",
    "not distinguishable": "not distinguishable",
    "too few pairs": "too few rounds to tell",
}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The time of one case over another's, and what may be said of it."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    """95 % interval of the median of paired ratios; None where there are too few pairs or none."""
    words: str


def measured_entry(measured: Measurement | None) -> Entry:
    """Return a measurement on its way into a table; a timed one with its interval over rounds."""
    if measured is None:
        return Entry()
    if not measured.values:
        return Entry(note=measured.note)
    interval = rounds_interval(measured)
    too_few = bool(measured.rounds) and interval is None
    said = ["too few rounds"] * too_few + [DISTURBED] * bool(measured.disturbed)
    return Entry(
        value=measured.value, interval=interval, note=", ".join(said), disturbed=bool(measured.disturbed)
    )


def rounds_interval(measured: Measurement) -> tuple[float, float] | None:
    """Return the 95 % interval of the median over the ranked rounds.

    None of fewer than six, and where rounds were not kept: samples within a round share its drift, so an
    interval that took them as independent would be too narrow.
    """
    if not measured.rounds or not measured.values or any(math.isnan(value) for value in measured.values):
        return None
    found = grouped_interval(measured.values, _ranked_processes(measured))
    return (found.low, found.high) if found.sufficient else None


def time_ratio(ours: Measurement, theirs: Measurement, *, same_environment: bool) -> Ratio:
    """Return the time of `ours` over that of `theirs`, both with positive, finite values.

    Rounds of one session are pairs, whichever row ended first: round i of one ran beside round i of the
    other, and what the machine did to both cancels. Those in which both were left alone count; where one row
    is disturbed and they are too few, all do. Of a disturbed row neither faster nor slower is said.
    """
    if not ours.rounds or not theirs.rounds:
        return _of_medians(ours, theirs, "not paired: no rounds kept", same_environment)
    if not ours.session or ours.session != theirs.session:
        return _of_medians(ours, theirs, "not paired: measured in another session", same_environment)
    disturbed = bool(ours.disturbed or theirs.disturbed)
    compared = _compared(ours, theirs, only_clean=True)
    if disturbed and (compared is None or not compared.interval.sufficient):
        compared = _compared(ours, theirs, only_clean=False)
    if compared is None:
        return Ratio(words="no round in which both were undisturbed")
    found = compared.interval
    return Ratio(
        value=compared.ratio,
        interval=(found.low, found.high) if found.sufficient else None,
        words=DISTURBED if disturbed else _WORDS[compared.verdict],
    )


def all_samples(measured: Measurement) -> list[float]:
    """Return every raw sample, of disturbed rounds too."""
    return [sample for r in measured.rounds for sample in r] if measured.rounds else measured.values


def disturbed_notes(found: Iterable[tuple[str, Measurement | None]]) -> tuple[str, ...]:
    """Return why values are marked as disturbed and what to do about it; rows of one reason together."""
    rows: dict[str, dict[str, None]] = {}
    for label, measured in found:
        if measured is not None and measured.values and measured.disturbed:
            rows.setdefault(measured.disturbed, {})[label] = None
    return tuple(
        f"Disturbed, not ranked: {plain(', '.join(labels))}: {plain(reason)}"
        for reason, labels in rows.items()
    )


def without_rounds(measured: Measurement | None) -> bool:
    """Tell whether a measurement is a series of times that was written without its rounds."""
    return measured is not None and len(measured.values) > 1 and not measured.rounds


def _compared(ours: Measurement, theirs: Measurement, *, only_clean: bool) -> Comparison | None:
    """Compare the medians of the rounds that both took; None where none of them counts."""
    pairs = [
        (a, b, process)
        for (a, a_clean, process), (b, b_clean, _) in zip(_medians(ours), _medians(theirs), strict=False)
        if (a_clean and b_clean) or not only_clean
        if not math.isnan(a + b)  # a round without samples is no pair
    ]
    if not pairs:
        return None
    return compare_paired([a for a, _, _ in pairs], [b for _, b, _ in pairs], [p for _, _, p in pairs])


def _medians(measured: Measurement) -> Sequence[tuple[float, bool, int]]:
    """Return each round's median, whether the machine left it alone, and its process."""
    return [
        (statistics.median(samples) if samples else math.nan, clean, process)
        for samples, clean, process in zip(
            measured.rounds, measured.clean_rounds, _processes(measured), strict=True
        )
    ]


def _processes(measured: Measurement) -> Sequence[int]:
    return measured.round_processes or [0] * len(measured.rounds)


def _ranked_processes(measured: Measurement) -> Sequence[int]:
    """Return the processes of the rounds whose medians are the values: of the clean ones, or of all."""
    every = _processes(measured)
    clean = [p for p, good in zip(every, measured.clean_rounds, strict=True) if good]
    return next((found for found in (clean, every) if len(found) == len(measured.values)), ())


def _of_medians(ours: Measurement, theirs: Measurement, why: str, same_environment: bool) -> Ratio:
    if not same_environment:
        return Ratio(words="measured in another environment")
    words = f"{why}, {DISTURBED}" if ours.disturbed or theirs.disturbed else why
    return Ratio(value=ours.value / theirs.value, words=words)
