"""Neutral tables: headings, cells and best marks, which every renderer shows in its own way."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench.profiling.statistics import median
from attnbench.report.quantities import Quantity
from attnbench.results import Direction

RowStatus = Literal["ok", "failed", "skipped", "floor"]
MISSING = "–"
ARROWS: dict[Direction, str] = {"lower": "↓", "higher": "↑", "none": ""}
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, format (also bidi overrides), surrogate, unassigned
_MOST_DECIMALS = 5


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column's heading."""

    title: str
    unit: str = ""
    better: Direction = "none"
    n: str = ""
    """How many images stand behind its values, such as `500` or `450 to 500`."""
    group: str = ""
    """Heading over neighbouring columns."""
    numeric: bool = True

    @property
    def name(self) -> str:
        """Title with its arrow: ↓ lower is better, ↑ higher is better."""
        return f"{self.title} {ARROWS[self.better]}".rstrip()

    @property
    def small_print(self) -> str:
        """Unit and n, where there are any."""
        return ", ".join(part for part in (self.unit, f"n = {self.n}" if self.n else "") if part)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value, ready to be shown; every text in it is plain text, never markup."""

    text: str = MISSING
    value: float | None = None
    detail: str = ""
    """What stands beside it: a spread, an interval, a reference value."""
    n: int | None = None
    best: bool = False
    disturbed: bool = False
    """Shown, but not to be ranked; `detail` says so and a note says why."""
    marks: str = ""
    """Marks of footnotes behind it, such as `a, b`; the table's notes begin with them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    cells: tuple[Cell, ...]
    status: RowStatus = "ok"
    series: int | None = None
    """Position of the cell among the results: its colour in every figure."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table for any renderer: as many cells in each row as there are columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows that do not fit the heading."""
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row.cells)} cells for {len(self.columns)} columns")


FilledColumn = tuple[Column, Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class RowHead:
    """What a row is, before its cells."""

    status: RowStatus = "ok"
    series: int | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One raw value on its way into a column, in the stored unit."""

    value: float | None = None
    spread: float | None = None
    deviation: float | None = None
    """Standard deviation over seeds."""
    interval: tuple[float, float] | None = None
    beside: tuple[str, float] | None = None
    """A word and the value to show behind it."""
    note: str = ""
    n: int | None = None
    disturbed: bool = False
    """Never the best, whatever its value."""


def plain(text: str) -> str:
    """Return `text` on one line, each unprintable character shown as U+FFFD.

    Keeps terminal escapes, line breaks and half surrogates of foreign labels out of every renderer.

    >>> plain("a\\nb\\x1b[31m")
    'a b\\ufffd[31m'
    """
    one_line = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c) in _UNPRINTABLE else c for c in one_line)


def assemble(
    title: str, columns: Sequence[FilledColumn], heads: Sequence[RowHead], notes: tuple[str, ...] = ()
) -> Table:
    """Return the table whose columns are given, one cell per row head."""
    rows = zip(heads, zip(*(cells for _, cells in columns), strict=True), strict=True)
    return Table(
        title=title,
        columns=tuple(column for column, _ in columns),
        rows=tuple(Row(cells=tuple(cells), status=head.status, series=head.series) for head, cells in rows),
        notes=notes,
    )


def select_columns(table: Table, wanted: Sequence[int], title: str) -> Table:
    """Return some columns of a table beside its ungrouped ones, without floor rows that are empty there."""
    kept = [i for i, column in enumerate(table.columns) if not column.group or i in wanted]
    rows = (
        replace(row, cells=tuple(row.cells[i] for i in kept))
        for row in table.rows
        if row.status != "floor" or any(row.cells[i].value is not None for i in wanted)
    )
    return Table(title=title, columns=tuple(table.columns[i] for i in kept), rows=tuple(rows))


def text_cell(text: str, detail: str = "") -> Cell:
    """Return a cell of words."""
    return Cell(text=plain(text) or MISSING, detail=plain(detail))


def quantity_column(quantity: Quantity, entries: Sequence[Entry]) -> Column:
    """Return the heading of a measured column, with n where the entries name it."""
    counts = sorted({entry.n for entry in entries if entry.n is not None})
    n = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return Column(
        title=plain(quantity.title),
        unit=plain(quantity.unit),
        better=quantity.better,
        n=n,
        group=quantity.group,
    )


def quantity_cells(quantity: Quantity, entries: Sequence[Entry], competing: Sequence[bool]) -> list[Cell]:
    """Format a column and mark its best value among the competing rows."""
    scaled = [None if entry.value is None else entry.value * quantity.scale for entry in entries]
    show = _formatter(quantity, [value for value in scaled if value is not None])
    cells = [
        Cell(
            text=MISSING if value is None else show(value),
            value=value,
            detail=_detail(entry, quantity.scale, show),
            n=entry.n,
            disturbed=entry.disturbed,
        )
        for value, entry in zip(scaled, entries, strict=True)
    ]
    return mark_best(cells, competing, quantity.better)


def mark_best(cells: list[Cell], competing: Sequence[bool], better: Direction) -> list[Cell]:
    """Mark every cell that prints the best value; none where nothing is to choose between."""
    values = {
        i: cell.value
        for i, cell in enumerate(cells)
        if competing[i] and not cell.disturbed and cell.value is not None and math.isfinite(cell.value)
    }
    if better == "none" or len({cells[i].text for i in values}) < 2:
        return cells
    pick = min if better == "lower" else max
    winner = cells[pick(values, key=lambda i: values[i])].text
    return [replace(c, best=True) if i in values and c.text == winner else c for i, c in enumerate(cells)]


def _formatter(quantity: Quantity, values: Sequence[float]) -> Callable[[float], str]:
    if quantity.significant:
        return significant
    finite = [abs(value) for value in values if value and math.isfinite(value)]
    if quantity.decimals == 0 and all(value == int(value) for value in finite):
        decimals = 0
    else:
        typical = (min if quantity.keep_smallest else median)(finite) if finite else 1.0
        decimals = min(_MOST_DECIMALS, max(quantity.decimals, 2 - math.floor(math.log10(typical))))
    return lambda value: _signed(f"{value:,.{decimals}f}")


def significant(value: float, digits: int = 4) -> str:
    """Return a value with so many significant digits and no exponent.

    >>> significant(0.0123456), significant(12345.6), significant(3.0)
    ('0.01235', '12,346', '3.000')
    """
    if not value or not math.isfinite(value):
        return _signed(f"{value:g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _signed(f"{value:,.{decimals}f}")


def _signed(number: str) -> str:
    return number.replace("-", "−")  # the true minus sign, as wide as a digit


def _detail(entry: Entry, scale: float, show: Callable[[float], str]) -> str:
    parts = []
    if entry.spread is not None:
        parts.append(f"± {show(entry.spread * scale)}")
    if entry.deviation is not None:
        parts.append(f"sd {show(entry.deviation * scale)}")
    if entry.interval is not None:
        low, high = entry.interval
        parts.append(f"{show(low * scale)} to {show(high * scale)}")
    if entry.beside is not None:
        word, value = entry.beside
        parts.append(f"{word} {show(value * scale)}")
    if entry.note:
        parts.append(plain(entry.note))
    return ", ".join(parts)
