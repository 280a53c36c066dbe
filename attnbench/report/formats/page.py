"""A table as one self-contained HTML page, without script; light or dark as the reader's system says."""

from __future__ import annotations

import itertools
from importlib import resources

from attnbench.report.tables import Table


def render(table: Table) -> str:
    """Return the page; every text in the table is text on the page, never markup."""
    import jinja2

    source = resources.files("attnbench.report.formats").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    groups = [
        (name, len(list(columns)))
        for name, columns in itertools.groupby(table.columns, key=lambda column: column.group)
    ]
    return environment.from_string(source).render(
        table=table, groups=groups if any(n for n, _ in groups) else []
    )
