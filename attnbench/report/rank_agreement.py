"""How a signal orders attentions beside their distance: held-out loss, and what is seen inside a model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from attnbench.profiling.statistics import rank_correlation, rank_correlation_interval
from attnbench.report.configurations import Configuration, configurations
from attnbench.report.fairness import fairness
from attnbench.report.quantities import quality_quantities
from attnbench.report.significance import FEWEST_RANKED
from attnbench.results import Measurement, Result

SIGNALS = {
    "held_out_loss": "Held-out loss",
    "diagnose:token_similarity": "Token similarity",
    "diagnose:effective_rank": "Effective rank of the maps",
    "diagnose:row_variance": "Row variance of the maps",
}
"""A cheap signal, and three of oversmoothing: dissimilar tokens and varied maps mean less of it."""


def rank_agreements(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return each signal's rank correlation with the first distance, as (name, words).

    Rows are configurations: their seeds are no further evidence on the order of attentions. Each is over rows
    that are trained, sampled and scored alike (`fairness`), six or more of them, with a 95 % interval.
    """
    distance = next((q.name for q in quality_quantities(results) if q.better == "lower"), None)
    if distance is None:
        return []
    rows = configurations(results)
    groups: dict[int, list[Configuration]] = {}
    for row, number in zip(rows, fairness(rows).quality, strict=True):
        groups.setdefault(number, []).append(row)
    found = []
    for signal, title in SIGNALS.items():
        told = [(group, words) for group in groups.values() if (words := _agreement(group, signal, distance))]
        if told:
            several = len(groups) > 1
            each = [(f"{_where(group, rows)}: " if several else "") + words for group, words in told]
            found.append((f"{title} against {distance}", "; ".join(each)))
    return found


def _agreement(rows: Sequence[Configuration], signal: str, distance: str) -> str:
    """Return the rank correlation over some rows in words; nothing of fewer than six, or where all tie."""
    measured = [(row.measurements(signal), row.measurements(distance)) for row in rows]
    usable = [both for both in measured if all(both) and not any(m.disturbed for one in both for m in one)]
    if not usable:
        return ""
    # maps that lead to other tokens, or over other blocks, do not compare: `diagnose` notes what they are of
    usual = Counter(_made_of(ours) for ours, _ in usable).most_common(1)[0][0]
    means = [[statistics.fmean(m.value for m in one) for one in both] for both in usable
             if _made_of(both[0]) == usual]  # fmt: skip
    means = [pair for pair in means if all(map(math.isfinite, pair))]
    if len(means) < FEWEST_RANKED:
        return ""
    rho = rank_correlation(*zip(*means, strict=True))
    if math.isnan(rho):
        return ""
    interval = rank_correlation_interval(rho, len(means))
    within = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"rank correlation {rho:.2f}{within} over {len(means)} rows"


def _made_of(measured: Sequence[Measurement]) -> str:
    return measured[0].note if measured[0].name.startswith("diagnose:") else ""


def _where(group: Sequence[Configuration], rows: Sequence[Configuration]) -> str:
    """Return the coordinates that a group shares and others have not, such as `objective=flow, steps=250`."""
    shared, everywhere = (
        set.intersection(*(set(row.results[0].axes.items()) for row in some)) for some in (group, rows)
    )
    named = [f"{axis}={value}" for axis, value in group[0].results[0].axes.items()
             if (axis, value) in shared - everywhere and axis != "seed"]  # fmt: skip
    return ", ".join(named) or f"{len(group)} rows"
