"""What a claim's test found on some data: evidence in numbers, and a verdict that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attnbench.report.significance import LEVEL, Difference
from attnbench.results import Direction, Record

Verdict = Literal["supported", "contradicted", "not distinguishable", "not tested"]
ONE_SEED = (
    "one seed supports nothing about methods, whatever the numbers: run the suite with several seeds "
    "(`attnbench run SUITE --seeds 3`)"
)


class Evidence(Record):
    """One comparison: the paper's side first."""

    what: str
    """Quantity, where, and who against whom."""
    ours: float
    theirs: float
    said: str
    """The comparison in words, with its interval and p value where there are any."""
    verdict: Verdict


class Finding(Record):
    """What one claim's test found on one run's data and models."""

    on: str
    """Runs, models, data and feature network."""
    verdict: Verdict
    why: str
    evidence: tuple[Evidence, ...] = ()


def verdict_of_difference(difference: Difference, better: Direction) -> Verdict:
    """Return what one difference over seeds says of "ours is better"."""
    if difference.basis != "seeds" or difference.p is None:
        return "not tested"
    if not difference.distinguishable:
        return "not distinguishable"
    none = 1.0 if difference.scale == "ratio" else 0.0
    lower = difference.estimate < none
    return "supported" if lower == (better == "lower") else "contradicted"


def together(
    verdicts: Sequence[Verdict], p_values: Sequence[float | None], missing: str = ""
) -> tuple[Verdict, str]:
    """Return the verdict on a claim that says every comparison holds, and why.

    Supported where each is significant by itself: all at once by chance is rarer than any one. Contradicted
    where one goes the other way with p of 0.05 over the number of comparisons (Bonferroni), since one is
    enough. `missing` says which comparisons there are no runs for; then it cannot be supported.
    """
    tested = [p for p in p_values if p is not None]
    against = [
        p for verdict, p in zip(verdicts, p_values, strict=True)
        if verdict == "contradicted" and p is not None and p <= LEVEL / len(tested)
    ]  # fmt: skip
    if against:
        return "contradicted", f"{len(against)} of {len(verdicts)} comparisons go the other way"
    if not tested:
        return "not tested", missing or "no comparison has a test"
    holds = sum(verdict == "supported" for verdict in verdicts)
    if missing:
        return "not tested", f"{missing}; of {len(verdicts)} comparisons that ran {holds} hold"
    if len(tested) < len(verdicts):
        return "not tested", f"{len(verdicts) - len(tested)} of {len(verdicts)} comparisons have no test"
    if holds == len(verdicts):
        return "supported", f"all {len(verdicts)} comparisons hold" if holds > 1 else "the comparison holds"
    if len(verdicts) == 1:
        return "not distinguishable", "the comparison is not significant"
    opposite = sum(verdict == "contradicted" for verdict in verdicts)
    said = (
        f"{holds} of {len(verdicts)} comparisons hold, {len(verdicts) - holds - opposite} are not significant"
    )
    if opposite:
        said += f", {opposite} go the other way by no more than chance brings among {len(verdicts)}"
    return "not distinguishable", said
