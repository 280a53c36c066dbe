"""A table as GitHub-flavoured Markdown, under its title."""

from __future__ import annotations

from attnbench.report.formats.flat import flattened
from attnbench.report.markdown import escape, render_table
from attnbench.report.tables import Table


def render(table: Table) -> str:
    """Return heading, table and notes; numbers are aligned right, the best are bold."""
    return f"## {escape(table.title)}\n\n{render_table(flattened(table))}\n"
