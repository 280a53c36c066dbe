"""A table as comma-separated values, for programs: RFC 4180, UTF-8, numbers in full."""

from __future__ import annotations

import csv
import io
import math

from attnbench.report.formats.flat import flattened
from attnbench.report.tables import Cell, Column, Row, Table


def render(table: Table) -> str:
    """Return one line of headings and one a row; numbers unrounded, with a point, in the shown unit.

    Behind a column stands what is beside its values, where anything is. The last two columns tell a row that
    failed and its footnotes. Texts stand as they are: a label that begins with `=` or `+`, as rows of the
    paper do, is a formula to a spreadsheet that does not import it as text.
    """
    flat = flattened(table)
    detailed = [any(_beside(row.cells[i]) for row in flat.rows) for i in range(len(flat.columns))]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    headings = [
        name
        for column, has in zip(flat.columns, detailed, strict=True)
        for name in ([_heading(column), f"{_heading(column)}: beside"] if has else [_heading(column)])
    ]
    writer.writerow([*headings, "status", "footnotes"])
    for row in flat.rows:
        cells = [
            text
            for cell, has in zip(row.cells, detailed, strict=True)
            for text in ([_value(cell), _beside(cell)] if has else [_value(cell)])
        ]
        writer.writerow([*cells, row.status, _footnotes(row, flat)])
    return lines.getvalue()


def _heading(column: Column) -> str:
    return f"{column.title} ({column.small_print})" if column.small_print else column.title


def _value(cell: Cell) -> str:
    if cell.value is None or not math.isfinite(cell.value):
        return cell.text
    return repr(
        float(f"{cell.value:.12g}")
    )  # without the last bits of a change of unit: 63.26, not 63.260000000000005


def _beside(cell: Cell) -> str:
    return ", ".join(part for part in (cell.detail, "best" if cell.best else "") if part)


def _footnotes(row: Row, table: Table) -> str:
    marks = {mark for cell in row.cells for mark in cell.marks.split(", ") if mark}
    return " ".join(note for note in table.notes if note.split(":")[0] in marks)
