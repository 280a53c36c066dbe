"""A table for formats with one line of headings: the group's name goes in front of each column's."""

from __future__ import annotations

from dataclasses import replace

from attnbench.report.tables import Column, Table


def flattened(table: Table, *, keep_groups: bool = False) -> Table:
    """Return the table with its groups in front of columns whose names would otherwise stand twice."""
    names = [column.title for column in table.columns]
    columns = (
        _flat(column, twice=names.count(column.title) > 1, keep=keep_groups) for column in table.columns
    )
    return replace(table, columns=tuple(columns))


def _flat(column: Column, *, twice: bool, keep: bool) -> Column:
    title = f"{column.group} {column.title}" if twice and column.group else column.title
    return replace(column, title=title, group=column.group if keep else "")
