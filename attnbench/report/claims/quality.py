"""C1, C3, C4, C5: claims that one system's FID is lower than another's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from attnbench.report.claims.comparing import Duel, compare_rows, finding
from attnbench.report.claims.contests import Contest, contests
from attnbench.report.claims.finding import Finding
from attnbench.report.paper.published import METRICS, PaperTable, paper_table
from attnbench.report.paper.values import measured_name
from attnbench.results import Result

Runs = Mapping[str, Sequence[Result]]
_FID = "fid"
RIVALS = ("dit", "sana")
OURS = "dydi-lit"


def beats_rivals(runs: Runs) -> list[Finding]:
    """Test C1: DyDi-LiT against DiT and Sana, at every guidance scale of a run."""
    table = paper_table("table1")
    groups = contests(table, runs).items()
    found = (_over_scales(table, on, group, rivals_of(table, group[0].size)) for on, group in groups)
    return [one for one in found if one is not None]


def each_rung_helps(runs: Runs) -> list[Finding]:
    """Test C3: each rung of Table 4 against the one above."""
    rungs = len(paper_table("table4").rows)
    return _in_table("table4", runs, [(row, row - 1) for row in range(1, rungs)])


def token_beats_map(runs: Runs) -> list[Finding]:
    """Test C4: the token-wise paradigm against the map-wise one."""
    return _in_table("table5", runs, [(1, 0)])


def small_lambda_beats_increasing(runs: Runs) -> list[Finding]:
    """Test C5: lambda from 0.01 against lambda that rises with depth."""
    return _in_table("table6", runs, [(1, 0)])


def rows_of(table: PaperTable, size: str) -> dict[str, int]:
    """Return the rows of DiT, Sana and DyDi-LiT of a size, by family."""
    families = (*RIVALS, OURS)
    return {
        family: i
        for i, row in enumerate(table.rows)
        for family in families
        if row.size == size and row.recipe == f"{family}-{size.lower()}"
    }


def rivals_in_the_paper() -> str:
    """Say at how many sizes and scales the printed FID of DyDi-LiT is the lowest of the three."""
    holds, all_of_them = 0, 0
    for name in ("table1", "table2", "table3", "table7", "table8"):
        table = paper_table(name)
        for size in table.sizes:
            rows = {family: table.rows[i].cfg for family, i in rows_of(table, size).items()}
            for scale in table.scales:
                ours, *theirs = (rows[family][scale][0] for family in (OURS, *RIVALS))
                all_of_them += 1
                holds += all(other is not None and ours is not None and ours < other for other in theirs)
    return f"lower than both at {holds} of {all_of_them} combinations of data, size and guidance"


def rungs_in_the_paper() -> str:
    """Say which printed rungs have a lower FID than the one above."""
    rows = [(row.model, row.cfg["4.0"][0] or 0.0) for row in paper_table("table4").rows]
    falls = [b[1] < a[1] for a, b in itertools.pairwise(rows)]
    rises = [
        f"{b[0]} raises it from {a[1]:.2f} to {b[1]:.2f}"
        for (a, b), down in zip(itertools.pairwise(rows), falls, strict=True)
        if not down
    ]
    return f"{sum(falls)} of {len(falls)} rungs lower it; {', '.join(rises)}"


def paradigms_in_the_paper() -> str:
    """Say what Table 5 prints."""
    return _two_in_the_paper("table5")


def initialisations_in_the_paper() -> str:
    """Say what Table 6 prints."""
    return _two_in_the_paper("table6")


def _two_in_the_paper(name: str) -> str:
    theirs, ours = (row.cfg["4.0"][0] for row in paper_table(name).rows)
    return f"FID {ours:.2f} against {theirs:.2f}"


def rivals_of(table: PaperTable, size: str) -> list[Duel]:
    """Return DyDi-LiT against DiT and against Sana, of a size."""
    rows = rows_of(table, size)
    return [(rows[OURS], rows[rival]) for rival in RIVALS]


def _in_table(name: str, runs: Runs, duels: Sequence[Duel]) -> list[Finding]:
    table = paper_table(name)
    found = (_over_scales(table, on, group, duels) for on, group in contests(table, runs).items())
    return [one for one in found if one is not None]


def _over_scales(
    table: PaperTable, on: str, group: Sequence[Contest], duels: Sequence[Duel]
) -> Finding | None:
    """Compare every duel at every guidance scale; None where no duel has both sides in any."""
    compared, missing = [], dict[str, None]()
    for contest in group:
        for duel in duels:
            absent = [row for row in duel if row not in contest.sides or row in contest.twice]
            for row in absent:
                unclear = contest.unclear.get(row) or contest.twice.get(row)
                missing[unclear or f"no {table.rows[row].model} at CFG={contest.scale}"] = None
            if not absent:
                name = _distance(contest, duel)
                where = f" at CFG={contest.scale}"
                one = compare_rows(contest, duel, name, "lower", where) if name else None
                if one is None:
                    missing[f"no Frechet distance of both at CFG={contest.scale}"] = None
                else:
                    compared.append(one)
    return finding(on, compared, "; ".join(missing)) if compared else None


def _distance(contest: Contest, duel: Duel) -> str | None:
    results = contest.sides[duel[0]].results
    names = (measured_name(result, METRICS[_FID]) for result in results)
    return next(filter(None, names), None)
