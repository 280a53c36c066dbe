"""Tables of words for a terminal of any width: what does not fit a line goes below it, whole words only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import gt

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from attnbench.report.tables import MISSING, Cell, Column, Row, Table, text_cell

_GAP, _INDENT = 2, 4
_BOLD = Style(bold=True)
_LEAST_PROSE = 30  # characters: in a narrower column, sentences are columns of single words


@dataclass(frozen=True, kw_only=True)
class Listing(Table):
    """A table of words, which is its own rich renderable: an entry is a line and, where needed, more below.

    Columns stand in the order of their importance. The last ones leave the line until the others fit it, the
    widest of them wrapped between words; what has left stands below, indented. `headings` stand above the
    rows of these indices.
    """

    headings: Mapping[int, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the columns' names, every entry and the notes."""
        widths = self._line(options.max_width)
        yield Text(self.title, style="bold")
        names = [text_cell(column.title) for column in self.columns]
        yield _draw_line(names, widths, self.columns, "dim")
        if len(self.columns) - len(widths) == 1:
            yield Padding(Text(self.columns[-1].title, style="dim"), (0, 0, 0, _INDENT))
        yield Text("─" * min(options.max_width, max(40, sum(widths) + _GAP * (len(widths) - 1))), style="dim")
        for index, row in enumerate(self.rows):
            if index in self.headings:
                yield Text(self.headings[index], style="italic")
            yield from _entry_line(row.cells, widths, self.columns)
            yield from self._below(row.cells, len(widths))
        if self.notes:
            yield Text("\n" + "\n".join(self.notes), style="dim")

    def _line(self, width: int) -> list[int]:
        """Return the widths of the columns that stand on an entry's line, in characters."""
        needed = [
            max(cell_len(text) for text in (column.title, *(row.cells[index].text for row in self.rows)))
            for index, column in enumerate(self.columns)
        ]
        for count in range(len(needed), 0, -1):
            widths = needed[:count]
            widest = widths.index(max(widths))
            left = width - (sum(widths) - widths[widest] + _GAP * (count - 1))
            if left >= min(widths[widest], max(_LEAST_PROSE, self._longest_word(widest))) or count == 1:
                widths[widest] = min(widths[widest], max(1, left))
                return widths
        return []

    def _longest_word(self, index: int) -> int:
        texts = [self.columns[index].title, *(row.cells[index].text for row in self.rows)]
        return max(cell_len(word) for text in texts for word in text.split())

    def _below(self, cells: Sequence[Cell], first: int) -> RenderResult:
        """Yield the cells that have left an entry's line, with their names where there are several."""
        several = len(cells) - first > 1
        for column, cell in list(zip(self.columns, cells, strict=True))[first:]:
            if cell.text != MISSING:
                said = Text.assemble((f"{column.title}: ", "dim"), cell.text) if several else Text(cell.text)
                said.overflow = "fold"
                yield Padding(said, (0, 0, 0, _INDENT))


def _entry_line(cells: Sequence[Cell], widths: Sequence[int], columns: Sequence[Column]) -> RenderResult:
    """Yield the first cells of an entry side by side, as `_draw_line` does.

    Where all of them fit, without its grid, which takes most of the time of a list of thousands.
    """
    texts = [cell.text for cell, _ in zip(cells, widths, strict=False)]
    sizes = [cell_len(text) for text in texts]
    if not all(map(str.isprintable, texts)) or any(map(gt, sizes, widths)):
        yield _draw_line(cells, widths, columns, "")
        return
    line = ""
    for text, size, width, column in zip(texts, sizes, widths, columns, strict=False):
        space = " " * (width - size)
        line += (space + text if column.numeric else text + space) + " " * _GAP
    first = len(texts[0]) if not columns[0].numeric else widths[0]
    yield Segment(line[:first], _BOLD)
    yield Segment(line[first:-_GAP])
    yield Segment.line()


def _draw_line(
    cells: Sequence[Cell], widths: Sequence[int], columns: Sequence[Column], style: str
) -> RichTable:
    """Return the first cells of an entry side by side."""
    line = RichTable.grid(padding=(0, _GAP, 0, 0))
    for column, width in zip(columns, widths, strict=False):
        line.add_column(width=width, overflow="fold", justify="right" if column.numeric else "left")
    texts = [Text(cell.text, style=style) for cell, _ in zip(cells, widths, strict=False)]
    if not style:
        texts[0].stylize("bold")
    line.add_row(*texts)
    return line


def listing(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    numeric: Collection[str] = (),
    headings: Mapping[int, str] | None = None,
) -> Listing:
    """Make a table of words; the columns named in `numeric` are set flush right."""
    return Listing(
        title=title,
        columns=tuple(Column(title=name, numeric=name in numeric) for name in columns),
        rows=tuple(Row(cells=tuple(text_cell(word) for word in row)) for row in rows),
        notes=tuple(notes),
        headings=headings or {},
    )


def matching(found: Listing, words: Sequence[str]) -> Listing:
    """Return the rows in which every word occurs, in whatever case: in a cell, or in the heading above."""
    kept: list[Row] = []
    headings: dict[int, str] = {}
    heading = ""
    for index, row in enumerate(found.rows):
        heading = found.headings.get(index, heading)
        text = " ".join((heading, *(cell.text for cell in row.cells))).lower()
        if all(word.lower() in text for word in words):
            if heading and heading not in headings.values():
                headings[len(kept)] = heading
            kept.append(row)
    return replace(found, rows=tuple(kept), headings=headings)
