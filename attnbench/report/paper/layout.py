"""A table of the paper with our numbers in it: published, measured, difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnbench.report.paper.agreement import agreement
from attnbench.report.paper.filling import Filling, Line
from attnbench.report.paper.grid import Grid, Place, grid_of, number
from attnbench.report.paper.notes import notes_of
from attnbench.report.paper.published import GFLOPS, Metric, PaperRow
from attnbench.report.paper.values import Value, measured_name
from attnbench.report.ranking import Contest, standings
from attnbench.report.significance import mean_interval, scale_of
from attnbench.report.tables import MISSING, Cell, Column, Row, Table, plain

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MOST_DECIMALS = 6


@dataclass
class _Footnotes:
    """Footnotes by their text, each with one mark, in the order they were needed."""

    marks: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        """Return the mark of a footnote."""
        turn, letter = divmod(len(self.marks), len(_LETTERS))
        return self.marks.setdefault(plain(text), _LETTERS[letter] * (1 + turn))

    def notes(self) -> Iterator[str]:
        """Yield every footnote behind its mark."""
        for text, mark in self.marks.items():
            yield f"{mark}: {text}"


def layout_table(filling: Filling, name: str) -> Table:
    """Return a table of the paper, `table1` to `table8`, with what was measured below each published row.

    Columns, order and rounding are the paper's. Bold in published rows is the best printed value of its
    size; in measured rows the best mean of its size, where it differs significantly from every other over
    seeds.
    """
    grid, footnotes = grid_of(filling), _Footnotes()
    digits, best = _decimals(grid), _measured_best(grid)
    rows: list[Row] = []
    for index, row in enumerate(filling.table.rows):
        rows.append(_published_row(grid, index))
        lines = grid.lines_below(index)
        for line in lines:
            own = [(place, grid.values[index, line, place]) for place in grid.places]
            shown = [
                replace(
                    _measured_cell(value, place.metric, digits[line, place], footnotes),
                    best=(index, line, place) in best,
                )
                for place, value in own
            ]
            rows.append(_row(row, _line_title(filling, line, [value for _, value in own]), shown))
            if line.comparable:
                cells = [_difference_cell(grid, row, place, value, footnotes) for place, value in own]
                rows.append(_row(row, "difference", cells))
        if not lines:
            rows.append(_row(row, "measured", [Cell(text="not run") for _ in grid.places]))
    agrees = agreement(grid)
    left_out = (f"Not in this table ({why}): {', '.join(some)}." for why, some in filling.left_out.items())
    notes = (*notes_of(grid), *agrees.notes, *footnotes.notes(), *filling.remarks, *left_out)
    return Table(
        title=f"Table {name.removeprefix('table')}: {filling.table.title}",
        columns=(
            Column(title="Model", numeric=False),
            Column(title="Values", numeric=False),
            *(_column(grid, place) for place in grid.places),
        ),
        rows=(*rows, *agrees.rows),
        notes=tuple(map(plain, notes)),
    )


def _column(grid: Grid, place: Place) -> Column:
    """Return a heading: the paper's, and below it what other feature networks call theirs."""
    names = {
        name
        for slot in grid.filling.slots.values()
        for one in slot.taken
        if (name := measured_name(one.result, place.metric)) not in (None, place.metric.name)
    }
    return Column(
        title=place.metric.title,
        unit=plain(f"measured: {', '.join(sorted(filter(None, names)))}") if names else "",
        better=place.metric.better,
        group=f"CFG={place.scale}" if place.scale else "",
    )


def _row(row: PaperRow, title: str, cells: Sequence[Cell]) -> Row:
    return Row(cells=(Cell(text=plain(row.title)), Cell(text=plain(title)), *cells))


def _line_title(filling: Filling, line: Line, values: Sequence[Value]) -> str:
    counts = {len(value.seeds) for value in values if value.seeds and value.n is not None} - {1}
    title = filling.title(line)
    return f"{title}, mean of {counts.pop()} seeds" if len(counts) == 1 else title


def _published_row(grid: Grid, index: int) -> Row:
    row = grid.filling.table.rows[index]
    peers = [other for other in grid.filling.table.rows if other.size == row.size]
    cells = []
    for place in grid.places:
        value = place.printed(row)
        others = [found for other in peers if (found := place.printed(other)) is not None]
        ranked = place.metric.better != "none" and len(set(others)) > 1
        pick = min if place.metric.better == "lower" else max
        cells.append(
            Cell(
                text=MISSING if value is None else f"{value:.{place.metric.decimals}f}",
                value=value,
                best=ranked and value == pick(others),
            )
        )
    return _row(row, "published", cells)


def _measured_cell(value: Value, metric: Metric, decimals: int, footnotes: _Footnotes) -> Cell:
    if value.over is None:
        text = MISSING if value.kind == "not measured" else value.kind
        return Cell(text=text, marks=footnotes.mark(value.note) if value.note else "")
    spread = value.over.spread
    return Cell(
        text=number(value.over.mean * metric.scale, decimals),
        value=value.over.mean * metric.scale,
        detail="" if spread is None else f"± {number(spread * metric.scale, decimals)}",
        n=value.n,
        marks=footnotes.mark(value.note) if value.note else "",
    )


def _difference_cell(grid: Grid, row: PaperRow, place: Place, value: Value, footnotes: _Footnotes) -> Cell:
    """Return measured minus printed, with its interval over seeds; nothing where the two do not compare."""
    printed, metric = place.printed(row), place.metric
    if printed is None or value.over is None or not math.isfinite(value.over.mean):
        return Cell()
    samples = grid.filling.table.samples
    if metric is not GFLOPS and value.n != samples:
        of = "an unknown or mixed number of" if value.n is None else f"{value.n:,}"
        why = f"measured on {of} images, the paper's {samples:,}: metrics depend on n, so no difference"
        return Cell(marks=footnotes.mark(why))
    difference = value.over.mean * metric.scale - printed
    interval = mean_interval(value.over.values)
    bounds = [number(bound * metric.scale - printed, metric.decimals, sign="+") for bound in interval or ()]
    return Cell(
        text=number(difference, metric.decimals, sign="+"), value=difference, detail=" to ".join(bounds)
    )


def _decimals(grid: Grid) -> dict[tuple[Line, Place], int]:
    """Return the paper's decimals; of numbers that are not the paper's, three digits of a typical one."""
    sizes: dict[tuple[Line, Place], list[float]] = {
        (line, place): [] for line in grid.filling.lines for place in grid.places
    }
    for (_, line, place), value in grid.values.items():
        if value.mean and math.isfinite(value.mean) and not line.comparable:
            sizes[line, place].append(abs(value.mean * place.metric.scale))
    return {at: max(at[1].metric.decimals, _digits(found)) for at, found in sizes.items()}


def _digits(values: Sequence[float]) -> int:
    typical = statistics.median(values) if values else 1.0
    return 0 if typical >= 1 else min(_MOST_DECIMALS, 2 - math.floor(math.log10(typical)))


def _measured_best(grid: Grid) -> set[tuple[int, Line, Place]]:
    """Return the cells whose mean differs significantly from every other of its line and size, and is best.

    All columns are decided together, as those of the comparison are.
    """
    places = [
        (line, place, size)
        for line in grid.filling.lines
        for size in grid.filling.table.sizes
        for place in grid.places
        if place.metric.better != "none"
    ]
    ended = standings([_contest(grid, *at) for at in places])
    return {
        (standing.rows[0], line, place)
        for standing, (line, place, _) in zip(ended, places, strict=True)
        if standing.alone
    }


def _contest(grid: Grid, line: Line, place: Place, size: str) -> Contest:
    own: Mapping[int, Value] = {i: grid.values[i, line, place] for i in grid.one_row_a_recipe(size)}
    name = next((value.over.name for value in own.values() if value.over), "")
    return Contest(
        rows=tuple(own),
        values=tuple(value.by_seed for value in own.values()),
        better=place.metric.better,
        scale=scale_of(name),
    )
