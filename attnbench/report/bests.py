"""Which cells of the comparison are bold, which are marked as not distinguishable, and what the notes say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnbench.report.lines import Line, varies_by_seed
from attnbench.report.quantities import LATENCY, Quantity
from attnbench.report.ranking import Contest, Standing, standings
from attnbench.report.significance import largest_pool, method_in_words, scale_of
from attnbench.report.tables import Cell, mark_best, plain
from attnbench.report.timings import time_ratio

CLOSE = "≈"
"""Marks the values that are not distinguishable from the best of their column, and the best itself."""
UNTESTED = "?"
"""Marks the values that no test compares with the best of their column."""
_NAMED = 6  # rows of a column that the note names


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One column after the decision."""

    quantity: Quantity
    cells: tuple[Cell, ...]
    standings: tuple[Standing, ...] = ()
    """One per group of rows that are alike; none where the printed value decided."""


def by_printed_value(
    quantity: Quantity, cells: Sequence[Cell], lines: Sequence[Line], groups: Sequence[int]
) -> Decided:
    """Mark the best printed value within each group of rows that are alike."""
    marked = list(cells)
    for group in dict.fromkeys(groups):
        marked = mark_best(marked, _competing(lines, groups, group), quantity.better)
    return Decided(quantity=quantity, cells=tuple(marked))


def by_rounds(
    quantity: Quantity, cells: Sequence[Cell], lines: Sequence[Line], groups: Sequence[int]
) -> Decided:
    """Mark the lowest latency of each group where paired rounds call it faster than its runner-up."""
    marked = list(cells)
    for group in dict.fromkeys(groups):
        rows = [
            i for i, competes in enumerate(_competing(lines, groups, group))
            if competes and not cells[i].disturbed and _timed(cells[i])
        ]  # fmt: skip
        rows.sort(key=lambda i: cells[i].value or 0)
        if len(rows) > 1 and _is_faster(quantity, lines[rows[0]], lines[rows[1]]):
            marked[rows[0]] = replace(marked[rows[0]], best=True)
    return Decided(quantity=quantity, cells=tuple(marked))


def over_seeds(
    columns: Sequence[tuple[Quantity, Sequence[Cell]]], lines: Sequence[Line], groups: Sequence[int]
) -> list[Decided]:
    """Decide all columns that have a value for each seed together (`ranking.standings`)."""
    contests: list[Contest] = []
    for quantity, _ in columns:
        for group in dict.fromkeys(groups):
            competing = _competing(lines, groups, group) if quantity.better != "none" else []
            rows = tuple(i for i, competes in enumerate(competing) if competes)
            values = tuple(lines[i].values(quantity) for i in rows)
            scale = scale_of(quantity.name)
            contests.append(Contest(rows=rows, values=values, better=quantity.better, scale=scale))
    found = iter(standings(contests))
    decided = []
    for quantity, cells in columns:
        ended = tuple(next(found) for _ in dict.fromkeys(groups))
        marked = list(cells)
        for standing in ended:
            if standing.alone:
                marked[standing.rows[0]] = replace(marked[standing.rows[0]], best=True)
            for i in (standing.rows[0], *standing.close) if standing.close else ():
                marked[i] = replace(marked[i], marks=CLOSE)
            for i, _ in standing.untested:
                marked[i] = replace(marked[i], marks=UNTESTED)
        decided.append(Decided(quantity=quantity, cells=tuple(marked), standings=ended))
    return decided


def over_seeds_notes(decided: Sequence[Decided], lines: Sequence[Line]) -> tuple[str, ...]:
    """Return how bold was decided over seeds, and of each column who is not distinguishable from the best."""
    rows = max((len(s.rows) for column in decided for s in column.standings), default=0)
    if rows < 2:
        return ()
    k, n, same = largest_pool(
        [[lines[i].values(c.quantity) for i in s.rows] for c in decided for s in c.standings if s.rows]
    )
    notes = [
        "Bold: the best mean, where it differs significantly from every other row's. "
        + method_in_words(k, n, same)
        + " Over the columns false calls are held to 5 % (METRICS.md)."
    ]
    close: dict[str, list[str]] = {}
    untested: dict[str, list[str]] = {}
    for column in decided:
        title = plain(column.quantity.title)
        for standing in column.standings:
            if standing.close:
                best, *others = (lines[i].label for i in (standing.rows[0], *standing.close))
                close.setdefault(_listed([f"{best} (best mean)", *others]), []).append(title)
            for reason in dict.fromkeys(reason for _, reason in standing.untested):
                labels = _listed([lines[i].label for i, why in standing.untested if why == reason])
                untested.setdefault(f"{labels}: {reason}", []).append(title)
    for mark, words, found in (
        (CLOSE, "not distinguishable from the best of the column", close),
        (UNTESTED, "not tested against the best of the column", untested),
    ):
        if found:
            told = (f"{', '.join(dict.fromkeys(titles))}: {rows}" for rows, titles in found.items())
            notes.append(f"{mark} {words}: {'; '.join(told)}.")
    return tuple(notes)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return plain(", ".join(labels[:_NAMED])) + more


def decide(
    columns: Sequence[tuple[Quantity, Sequence[Cell]]],
    lines: Sequence[Line],
    quality: Sequence[int],
    cost: Sequence[int],
    seeds: Sequence[tuple[int, ...]],
) -> list[Decided]:
    """Decide every column of the comparison, in their order; groups and seeds are of the rows but floors.

    With one seed, the same for all rows, the best printed value is bold; with one seed each, but different
    ones, none is, since the draw of the seed is in the difference.
    """
    several = any(len(found) > 1 for found in seeds)
    seeded = [column for column in columns if varies_by_seed(column[0])]
    if several:
        tested = {d.quantity.name: d for d in over_seeds(seeded, lines, quality)}
    elif len(set(seeds)) > 1:
        tested = {q.name: Decided(quantity=q, cells=tuple(cells)) for q, cells in seeded}
    else:
        tested = {q.name: by_printed_value(q, cells, lines, quality) for q, cells in seeded}
    decided = []
    for quantity, cells in columns:
        if quantity.name in tested:
            decided.append(tested[quantity.name])
        else:
            by = by_rounds if several and quantity == LATENCY else by_printed_value
            decided.append(by(quantity, cells, lines, cost))
    return decided


def _competing(lines: Sequence[Line], groups: Sequence[int], group: int) -> list[bool]:
    floors = len(lines) - len(groups)
    return [
        line.status == "ok" and number == group
        for line, number in zip(lines, (*groups, *(-1,) * floors), strict=True)
    ]


def _timed(cell: Cell) -> bool:
    return cell.value is not None and math.isfinite(cell.value) and cell.value > 0


def _is_faster(quantity: Quantity, ours: Line, theirs: Line) -> bool:
    a, b = ours.measured(quantity), theirs.measured(quantity)
    if a is None or b is None:
        return False
    return time_ratio(a, b, same_environment=True).words == "faster"
