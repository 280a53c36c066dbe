"""One comparison of two rows of a contest, over seeds; of one seed, what its images say of two trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnbench.report.claims.contests import Contest
from attnbench.report.claims.finding import (
    ONE_SEED,
    Evidence,
    Finding,
    Verdict,
    together,
    verdict_of_difference,
)
from attnbench.report.configurations import Configuration, seed_of
from attnbench.report.significance import Difference, difference_over_images, difference_over_seeds, scale_of
from attnbench.report.tables import significant
from attnbench.results import Direction

Duel = tuple[int, int]
"""Rows of a table: the one that the claim favours, and the one it is held against."""


def compare_rows(
    contest: Contest, duel: Duel, name: str, better: Direction, where: str = ""
) -> tuple[Evidence, Difference] | None:
    """Return the comparison of two rows in a quantity; None where one of them has no value."""
    ours, theirs = (by_seed(contest.sides[row], name) for row in duel)
    if not ours or not theirs:
        return None
    others = [by_seed(side, name) for row, side in contest.sides.items() if row not in duel]
    difference = difference_over_seeds(ours, theirs, others, scale_of(name))
    means = [_mean(values, difference.seeds or tuple(values)) for values in (ours, theirs)]
    labels = [contest.sides[row].label for row in duel]
    evidence = Evidence(
        what=f"{name}{where}: {labels[0]} against {labels[1]}",
        ours=means[0],
        theirs=means[1],
        said=_in_words(contest, duel, name, difference),
        verdict=verdict_of_difference(difference, better),
    )
    return evidence, difference


def finding(on: str, compared: Sequence[tuple[Evidence, Difference] | None], missing: str) -> Finding:
    """Return the verdict over several comparisons; `missing` says what there are no runs for."""
    found = [one for one in compared if one is not None]
    verdicts: list[Verdict] = [evidence.verdict for evidence, _ in found]
    verdict, why = together(verdicts, [difference.p for _, difference in found], missing)
    reasons = {difference.reason for _, difference in found if difference.p is None}
    if found and verdict == "not tested" and reasons & {"one seed in common", "no seed in common"}:
        why = f"{ONE_SEED}{f'; {missing}' if missing else ''}"
    elif found and verdict == "not tested" and reasons:
        why = f"{why} ({', '.join(sorted(reasons))})"
    return Finding(on=on, verdict=verdict, why=why, evidence=tuple(evidence for evidence, _ in found))


def by_seed(side: Configuration, name: str) -> dict[int, float]:
    """Return a configuration's value at each seed that has one."""
    found = ((seed_of(result), result.measurement(name)) for result in side.results if result.status == "ok")
    return {seed: m.value for seed, m in found if m is not None and m.values and not m.disturbed}


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> float:
    """Return the mean over those seeds that the test is over: what it says is of these numbers."""
    return sum(values[seed] for seed in seeds) / len(seeds)


def _in_words(contest: Contest, duel: Duel, name: str, difference: Difference) -> str:
    if difference.interval is not None and difference.p is not None:
        low, high = (significant(bound, 3) for bound in difference.interval)
        kind = "ratio" if difference.scale == "ratio" else "difference"
        estimate = significant(difference.estimate, 3)
        return (
            f"{kind} {estimate} ({low} to {high}), p = {difference.p:.2g}, {len(difference.seeds)} seeds, "
            f"{difference.df} degrees of freedom"
        )
    measured = [contest.sides[row].measurements(name) for row in duel]
    if all(len(found) == 1 for found in measured):
        images = difference_over_images(measured[0][0], measured[1][0])
        if images.interval is not None:
            low, high = (significant(bound, 3) for bound in images.interval)
            return (
                f"{difference.reason}; of these two trainings alone, over images: difference "
                f"{significant(images.estimate, 3)} ({low} to {high})"
            )
    return difference.reason or "no test"
