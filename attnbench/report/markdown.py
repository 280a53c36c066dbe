"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import quote

from attnbench.report.content import Content
from attnbench.report.drawing import Drawing
from attnbench.report.grids import Grid
from attnbench.report.settings import DIFFERENCES
from attnbench.report.tables import Cell, Column, Row, Table, plain

_ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|`\\$"})
_ACTIVE = re.compile(r"[*_\[\]~!]|(?<!&)#")  # what else can begin markup within a line
_GRIDS_PER_LINE = 3
_GRID_PIXELS = 260


def escape(text: str) -> str:
    """Return text that Markdown shows as it stands: no table cell, HTML, code, maths or link begins in it.

    >>> escape("a|b <c> $d$ [e]")
    'a&#124;b &#60;c&#62; &#36;d&#36; \\\\[e\\\\]'
    """
    quiet = plain(text).translate(_ENTITIES).replace("://", "&#58;//")
    return _ACTIVE.sub(r"\\\g<0>", quiet)


def render_table(table: Table) -> str:
    """Return a table with its notes; numbers are aligned right, the best are bold."""
    heading = " | ".join(_heading(column) for column in table.columns)
    rule = " | ".join("---:" if column.numeric else "---" for column in table.columns)
    rows = [f"| {' | '.join(_row(row))} |" for row in table.rows]
    notes = [f"\n{escape(note)}" for note in table.notes]
    return "\n".join([f"| {heading} |", f"| {rule} |", *rows, *notes])


def render(content: Content, figures: dict[str, str]) -> str:
    """Return the whole report; `figures` maps a figure's name to its file, relative to the report."""
    parts = [
        f"# {escape(content.title)}",
        f"**Question.** {escape(content.question)}" if content.question else "",
        " · ".join(f"**{escape(name)}** {escape(value)}" for name, value in content.glance),
        "## Comparison",
        render_table(content.comparison),
        *_section("### Failed and skipped cases", content.problems),
        *_grids(content),
        *_figures(content.figures, figures),
        *(part for table in content.conversion for part in _titled(table)),
        *_titled(content.diagnosis),
        *_titled(content.seeds),
        *_section("## Cost", content.cost),
        *_section("## Training and sampling", content.training),
        *_section("## Other measurements", content.other),
        "## How things were measured",
        "\n".join(f"- {escape(warning)}" for warning in content.warnings),
        "\n".join(f"- **{escape(name)}**: {escape(text)}" for name, text in content.definitions),
        *_section(f"## {DIFFERENCES}", content.differences),
        *_section("## Settings shared by all cases", content.common),
        "## Environment",
        render_table(content.environment),
        "## Reproduce",
        _code(content.command),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(table: Table | None) -> list[str]:
    return _section(f"## {escape(table.title)}", table) if table else []


def _heading(column: Column) -> str:
    return escape(f"{column.name} ({column.small_print})" if column.small_print else column.name)


def _row(row: Row) -> list[str]:
    texts = [_cell(cell) for cell in row.cells]
    if row.status in ("failed", "skipped"):
        texts[0] += f" *({row.status})*"
    return texts


def _cell(cell: Cell) -> str:
    text = f"**{escape(cell.text)}**" if cell.best else escape(cell.text)
    text += f"<sup>{escape(cell.marks)}</sup>" if cell.marks else ""
    return f"{text} ({escape(cell.detail)})" if cell.detail else text


def _section(heading: str, table: Table | None) -> list[str]:
    return [heading, render_table(table)] if table else []


def _grids(content: Content) -> list[str]:
    if not content.grids:
        return []
    lines = [
        content.grids[start : start + _GRIDS_PER_LINE]
        for start in range(0, len(content.grids), _GRIDS_PER_LINE)
    ]
    return ["## Samples", escape(content.grids_note), *(_grid_line(line) for line in lines)]


def _grid_line(grids: Sequence[Grid]) -> str:
    heading = " | ".join(escape(grid.label) for grid in grids)
    images = " | ".join(_image(grid) for grid in grids)
    return f"| {heading} |\n| {' | '.join(['---'] * len(grids))} |\n| {images} |"


def _image(grid: Grid) -> str:
    if grid.problem:
        return escape(grid.problem)
    alternative = html.escape(f"Samples of {grid.label}").replace("|", "&#124;")
    return f'<img src="{quote(grid.path)}" alt="{alternative}" width="{_GRID_PIXELS}">'


def _figures(figures: Sequence[Drawing], files: dict[str, str]) -> list[str]:
    if not figures:
        return []
    images = [f"![{escape(figure.caption)}]({quote(files[figure.name])})" for figure in figures]
    return ["## Figures", *images]


def _code(command: str) -> str:
    """Fence a command with more backticks than it holds in a row."""
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{command}\n{fence}"
