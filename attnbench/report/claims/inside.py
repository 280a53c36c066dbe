"""C6: less oversmoothing, from what the stage `diagnose` records of the trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnbench.report.claims.comparing import Duel, compare_rows, finding
from attnbench.report.claims.contests import Contest, contests
from attnbench.report.claims.finding import Finding
from attnbench.report.claims.quality import OURS, rows_of
from attnbench.report.paper.published import paper_table
from attnbench.results import Direction, Result

SMOOTHNESS: dict[str, Direction] = {
    "diagnose:row_variance": "higher",
    "diagnose:effective_rank": "higher",
    "diagnose:token_similarity": "lower",
}
"""Measurements of a trained model's implied attention maps, and which way is less smooth."""


def less_oversmoothing(runs: Mapping[str, Sequence[Result]]) -> list[Finding]:
    """Test C6 for every training that was looked into; guidance does not matter to it."""
    table = paper_table("table1")
    found: dict[str, Finding] = {}
    for contest in (contest for group in contests(table, runs).values() for contest in group):
        rows = rows_of(table, contest.size)
        duel = (rows[OURS], rows["sana"])
        if contest.on in found or any(row not in contest.sides for row in duel):
            continue
        compared = [
            compare_rows(contest, duel, name, better) if _alike(contest, duel, name) else None
            for name, better in SMOOTHNESS.items()
        ]
        absent = [name for name, one in zip(SMOOTHNESS, compared, strict=True) if one is None]
        if len(absent) < len(SMOOTHNESS):
            missing = f"not measured of both in one way: {', '.join(absent)}" if absent else ""
            found[contest.on] = finding(contest.on, compared, missing)
    return list(found.values())


def _alike(contest: Contest, duel: Duel, name: str) -> bool:
    """Tell whether both sides' maps are over as many blocks and queries, and lead from the same tokens."""
    notes = [measured.note for row in duel for measured in contest.sides[row].measurements(name)]
    return len(set(notes)) == 1
