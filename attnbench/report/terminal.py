"""A table in the terminal, drawn by rich; labels are plain text, never rich markup."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from attnbench.report.tables import Cell, Row, Table, select_columns

_ROW_STYLES = {"ok": "", "floor": "dim", "failed": "red", "skipped": "yellow"}
_BORDER = 3  # a line and a space on either side of a column
_LABEL_WIDTH = 28  # longer labels are folded before a table is split
_LONG_REMARK = 20


@dataclass(frozen=True)
class TerminalTable:
    """A rich renderable: one table where it fits the terminal, else several below each other."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table whole or in parts, then its notes as wide as the terminal is."""
        table = _with_reasons_below(self.table)
        fits = _least_width(table) <= options.max_width
        for part in [table] if fits else _split(table, options.max_width):
            yield _draw(part)
        if table.notes:
            yield Text("\n".join(table.notes), style="dim")


def _with_reasons_below(table: Table) -> Table:
    """Return a table with its long remarks on missing numbers among the notes: they would widen a column."""
    notes: list[str] = []
    rows = []
    for row in table.rows:
        cells = list(row.cells)
        for index, cell in enumerate(cells):
            if cell.value is None and table.columns[index].numeric and cell_len(cell.detail) > _LONG_REMARK:
                notes.append(f"{cells[0].text}: {table.columns[index].title}: {cell.detail}")
                cells[index] = replace(cell, detail="see below")
        rows.append(replace(row, cells=tuple(cells)))
    return replace(table, rows=tuple(rows), notes=(*table.notes, *notes))


def _split(table: Table, width: int) -> list[Table]:
    """Return narrower tables, each with columns of one group, as many as fit; at least one column each."""
    parts: list[Table] = []
    for group in dict.fromkeys(column.group for column in table.columns if column.group):
        title, taken = f"{table.title}: {group.lower()}", list[int]()
        for index in (i for i, column in enumerate(table.columns) if column.group == group):
            if taken and _least_width(select_columns(table, [*taken, index], title)) > width:
                parts.append(select_columns(table, taken, title))
                title, taken = f"{table.title}: {group.lower()}, continued", []
            taken.append(index)
        parts.append(select_columns(table, taken, title))
    return parts or [table]


def _least_width(table: Table) -> int:
    """Return the characters a table needs: headings break between words, numbers never."""
    labels = max((cell_len(_first_line(row.cells[0])) for row in table.rows), default=0)
    others = (_column_width(table, index) + _BORDER for index in range(1, len(table.columns)))
    return min(labels, _LABEL_WIDTH) + _BORDER + sum(others) + 1


def _column_width(table: Table, index: int) -> int:
    column, cells = table.columns[index], [row.cells[index] for row in table.rows]
    texts = [*map(_first_line, cells), *(cell.detail for cell in cells)]
    return max(map(cell_len, (*texts, *column.name.split(), f"[{column.small_print}]")))


def _first_line(cell: Cell) -> str:
    return f"{cell.text} {cell.marks}".rstrip()


def _draw(table: Table) -> RichTable:
    drawn = RichTable(title=Text(table.title, style="bold"), title_justify="left")
    for index, column in enumerate(table.columns):
        heading = Text(column.name)
        if column.small_print:
            heading.append(f"\n[{column.small_print}]", style="dim")
        fixed = _column_width(table, index) if column.numeric else None  # a narrow terminal folds words
        drawn.add_column(heading, justify="right" if column.numeric else "left", overflow="fold", width=fixed)
    for row in table.rows:
        drawn.add_row(*_texts(row), style=_ROW_STYLES[row.status])
    return drawn


def _texts(row: Row) -> list[Text]:
    texts = [_text(cell) for cell in row.cells]
    if row.status in ("failed", "skipped"):
        texts[0].append(f" ({row.status})")
    return texts


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style="bold green" if cell.best else "yellow" if cell.disturbed else "")
    if cell.marks:
        text.append(f" {cell.marks}", style="dim not bold")
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim not bold")
    return text
