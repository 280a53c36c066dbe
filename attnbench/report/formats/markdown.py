"""A table as GitHub-flavoured Markdown, under its title."""

from __future__ import annotations

from dataclasses import replace

from attnbench.report.formats.flat import flattened
from attnbench.report.markdown import escape, render_table
from attnbench.report.tables import Table


def render(table: Table) -> str:
    """Return heading, table and notes; numbers are aligned right, the best are bold."""
    rows = tuple(
        replace(
            row, cells=tuple(replace(c, text=f"{c.text} [{c.marks}]") if c.marks else c for c in row.cells)
        )
        for row in table.rows
    )
    return f"## {escape(table.title)}\n\n{render_table(flattened(replace(table, rows=rows)))}\n"
