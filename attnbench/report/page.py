"""A report as one self-contained HTML page: no script, no request, every string escaped."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from attnbench.report.content import Content
from attnbench.report.drawing import FAINT, INK, PALETTE, Drawing
from attnbench.report.grids import Grid
from attnbench.report.tables import Table

if TYPE_CHECKING:
    from markupsafe import Markup

_PIXEL_ART_SIDE = 256  # grids up to this width are enlarged with hard pixels, wider ones smoothly
_SMALLEST_GRID, _LARGEST_GRID = 176, 360  # least width of a grid on the page, in CSS pixels


def render(content: Content) -> str:
    """Return the page; light or dark as the reader's system says."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        groups=_groups,
        label=_label,
        data_uri=_data_uri,
        inline=_inline,
        colour=_colour,
        pixelated=_pixelated,
        grid_side=_grid_side,
    )
    return environment.get_template("page.html.j2").render(content=content)


def _template(name: str) -> str:
    return resources.files("attnbench.report").joinpath(name).read_text(encoding="utf-8")


def _groups(table: Table) -> list[tuple[str, int]]:
    """Return (heading, columns under it) of neighbouring columns, or nothing where no column has one."""
    if not any(column.group for column in table.columns):
        return []
    runs = itertools.groupby(table.columns, key=lambda column: column.group)
    return [(group, len(list(columns))) for group, columns in runs]


def _data_uri(grid: Grid) -> str:
    return "data:image/png;base64," + base64.b64encode(grid.data).decode("ascii")


def _pixelated(grid: Grid) -> bool:
    return grid.width <= _PIXEL_ART_SIDE


def _grid_side(grids: Sequence[Grid]) -> int:
    """Return the least width that shows the widest grid at its own size, within reason."""
    return min(_LARGEST_GRID, max(_SMALLEST_GRID, *(grid.width for grid in grids)))


def _colour(series: int) -> str:
    return f"var(--series-{series % len(PALETTE) + 1})"


def _label(text: str) -> Markup:
    """Return an escaped label that may break inside a call: `agent(` / `num_agents=4)`."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, re.split(r"(?<=\w\()", text)))


def _inline(figure: Drawing) -> Markup:
    """Return a figure whose colours follow the page's, light or dark."""
    from markupsafe import Markup

    svg = figure.svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    for number, colour in enumerate(PALETTE, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    return Markup(svg)
