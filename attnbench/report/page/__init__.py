"""A report as one self-contained HTML page: whole without scripts, explored with them, every string escaped.

Tables, drawings and grids stand in the page as they are printed. Its own scripts then sort, filter and hide,
and draw the charts again with d3 and Observable Plot (`vendor/`). The page may load nothing and run nothing
but these scripts: its Content-Security-Policy names their hashes, so that markup which came in through a name
could not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from attnbench.report.content import Content
from attnbench.report.drawing import FAINT, INK, MARKERS, PALETTE, Drawing
from attnbench.report.grids import GAP, Grid
from attnbench.report.marks import outline
from attnbench.report.page.data import page_json, style
from attnbench.report.tables import Row, Table

if TYPE_CHECKING:
    from markupsafe import Markup

OWN_SCRIPTS = ("series.js", "tables.js", "charts.js", "samples.js")
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.min.js")
_AFTER_PAINT = (
    '"use strict";\nrequestAnimationFrame(() => setTimeout(() => {\n%s}));\n'  # what is read comes first
)
_PIXEL_ART_SIDE = 256  # grids up to this width are enlarged with hard pixels, wider ones smoothly
_SMALLEST_GRID, _LARGEST_GRID = 176, 360  # least width of a grid on the page, in CSS pixels


def render(content: Content) -> str:
    """Return the page; light or dark as the reader's system says."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        groups=_groups,
        label=_label,
        data_uri=_data_uri,
        finite=math.isfinite,
        inline=_inline,
        style=style,
        marks=[outline(mark) for mark in MARKERS],
        bodies=_bodies,
        pixelated=_pixelated,
        gap=GAP,
        grid_side=_grid_side,
    )
    charts = any(figure.chart for figure in content.figures)
    scripts = [*map(_file, LIBRARIES if charts else ()), _AFTER_PAINT % "\n".join(map(_file, OWN_SCRIPTS))]
    return environment.get_template("page.html.j2").render(
        content=content,
        data=Markup(page_json(content)),
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(" ".join(f"'sha256-{_sha256(script)}'" for script in scripts)),
    )


@functools.cache
def _file(name: str) -> str:
    return resources.files("attnbench.report.page").joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _groups(table: Table) -> list[tuple[str, int]]:
    """Return (heading, columns under it) of neighbouring columns, or nothing where no column has one."""
    if not any(column.group for column in table.columns):
        return []
    runs = itertools.groupby(table.columns, key=lambda column: column.group)
    return [(group, len(list(columns))) for group, columns in runs]


def _bodies(table: Table) -> list[list[Row]]:
    """Return the rows of cases, and behind them the floors, which no sorting moves."""
    cases = [row for row in table.rows if row.status != "floor"]
    floors = [row for row in table.rows if row.status == "floor"]
    return [cases, floors] if floors else [cases]


def _data_uri(grid: Grid) -> str:
    return "data:image/png;base64," + base64.b64encode(grid.data).decode("ascii")


def _pixelated(grid: Grid) -> bool:
    return grid.width <= _PIXEL_ART_SIDE


def _grid_side(grids: Sequence[Grid]) -> int:
    """Return the least width that shows the widest grid at its own size, within reason."""
    return min(_LARGEST_GRID, max(_SMALLEST_GRID, *(grid.width for grid in grids)))


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
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")  # of drawings by matplotlib
    return Markup(svg)
