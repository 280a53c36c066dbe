"""C7: samples of similar classes lie further apart, by the separability that `evaluate` records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from attnbench.report.claims.comparing import Duel, compare_rows, finding
from attnbench.report.claims.contests import Contest, contests
from attnbench.report.claims.finding import Evidence, Finding
from attnbench.report.claims.quality import rivals_of
from attnbench.report.configurations import seed_of
from attnbench.report.paper.published import PaperTable, paper_table
from attnbench.report.quantities import is_separability, separability_quantities
from attnbench.report.significance import Difference
from attnbench.results import Result

OLDER = (
    "evaluated before attnbench measured how well similar classes separate: remove store/evaluate beside the "
    "run, then run the suite again, which scores the samples that are there"
)
UNLIKE = "measured of other classes, or of another number of images"


def similar_classes_apart(runs: Mapping[str, Sequence[Result]]) -> list[Finding]:
    """Test C7 at every guidance scale: DyDiLA against softmax and linear attention in one skeleton."""
    table = paper_table("table1")
    found = []
    for on, group in contests(table, runs).items():
        compared: list[tuple[Evidence, Difference] | None] = []
        missing, met = dict[str, None](), False
        for contest, duel in itertools.chain(*(_duels(table, contest) for contest in group)):
            where = f" at CFG={contest.scale}"
            absent = [row for row in duel if row not in contest.sides or row in contest.twice]
            for row in absent:
                unclear = contest.unclear.get(row) or contest.twice.get(row)
                missing[unclear or f"no {table.rows[row].model}{where}"] = None
            if not absent:
                met = True
                names = _measured_alike(contest, duel)
                compared += [compare_rows(contest, duel, name, "higher", where) for name in names]
                if not names:
                    missing[f"{_why_not(contest, duel)} ({table.rows[duel[1]].model}{where})"] = None
        if met:
            found.append(finding(on, compared, "; ".join(missing)))
    return found


def _duels(table: PaperTable, contest: Contest) -> list[tuple[Contest, Duel]]:
    return [(contest, duel) for duel in rivals_of(table, contest.size)]


def _measured_alike(contest: Contest, duel: Duel) -> list[str]:
    """Return the separabilities that both have, at every seed of the same classes and as many images."""
    results = [result for row in duel for result in contest.sides[row].results]
    names = [quantity.name for quantity in separability_quantities(results)]
    return [
        name
        for name in names
        if all(contest.sides[row].measurements(name) for row in duel)
        and all(len(notes) == 1 for notes in _notes(contest, duel, name))
    ]


def _notes(contest: Contest, duel: Duel, name: str) -> list[set[str]]:
    """Return what is noted at each seed that both have measured: which classes, how many images of each."""
    ours, theirs = (
        {seed_of(r): m.note for r in contest.sides[row].results if (m := r.measurement(name)) and m.values}
        for row in duel
    )
    return [{ours[seed], theirs[seed]} for seed in ours.keys() & theirs.keys()]


def _why_not(contest: Contest, duel: Duel) -> str:
    results = [r for row in duel for r in contest.sides[row].results if r.status == "ok"]
    measured = [[m for m in r.measurements if is_separability(m.name)] for r in results]
    reasons = dict.fromkeys(m.note for found in measured for m in found if not m.values)
    if reasons:
        return ", ".join(reasons)
    return UNLIKE if all(measured) else OLDER
