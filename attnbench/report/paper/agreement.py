"""The last rows of a filled table: do the measured values order the rows as the published ones do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.report.paper.filling import Line
from attnbench.report.paper.grid import Grid, Place, number
from attnbench.report.paper.ranks import FEWEST_ROWS, rank_agreement
from attnbench.report.tables import Cell, Row, plain


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Rank correlations of each line and size with the published columns, and what to say of them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def agreement(grid: Grid) -> Agreement:
    """Return a row of rank correlations for each line and size; a note where there are too few rows."""
    rows, notes = [], []
    for line in grid.filling.lines:
        for size in grid.filling.table.sizes:
            pairs = [_pairs(grid, line, size, place) for place in grid.places]
            heading = "Rank correlation" + (f", {size}" if len(grid.filling.table.sizes) > 1 else "")
            cells = [_cell(some) for some in pairs]
            most = max(len(some) for some in pairs)
            if any(cell.value is not None for cell in cells):
                heads = (Cell(text=heading), Cell(text=plain(grid.filling.title(line))))
                rows.append(Row(cells=(*heads, *cells), status="floor"))
            elif 1 < most < FEWEST_ROWS:
                few = f"not shown, {most} rows are fewer than {FEWEST_ROWS}"
                notes.append(plain(f"{heading} of {grid.filling.title(line)}: {few}."))
    shown = sum(cell.value is not None for row in rows for cell in row.cells)
    if shown:
        notes.append(
            "Rank correlation: Spearman's, of measured and published values over rows of one size; p of no "
            f"association, from all orders of the rows. Of {shown} such numbers {0.05 * shown:.1g} are at p "
            "of 0.05 or less by chance alone."
        )
    return Agreement(rows=tuple(rows), notes=tuple(notes))


def _pairs(grid: Grid, line: Line, size: str, place: Place) -> list[tuple[float, float]]:
    """Return published and measured value of every row of a size that has both; nothing of costs."""
    rows = grid.one_row_a_recipe(size) if place.scale else []
    return [
        (printed, mean)
        for i in rows
        if (printed := place.printed(grid.filling.table.rows[i])) is not None
        and (mean := grid.values[i, line, place].mean) is not None
    ]


def _cell(pairs: Sequence[tuple[float, float]]) -> Cell:
    found = rank_agreement([a for a, _ in pairs], [b for _, b in pairs])
    if found is None:
        return Cell()
    rho, p = found
    return Cell(text=number(rho, 2, sign="+"), value=rho, detail=f"{len(pairs)} rows, p = {p:.2g}")
