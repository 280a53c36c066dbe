"""How evenly routers chose while the cases trained: a row of panels for each router, one line a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.report.diagnosis_lines import draw_line, line_height, write_names
from attnbench.report.drawing import Drawing, drawing, shortened, svg
from attnbench.report.router_curves import KINDS, Curve, Kind, curve_name, routers_of
from attnbench.report.tables import plain, significant
from attnbench.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES: dict[Kind, str] = {
    "evenness": "evenness, mean over blocks",
    "least_evenness": "evenness, least even block",
    "largest_share": "largest share of one option",
}
_ROW_INCHES = 1.9
_WORDS = (
    "Router balance over training: how evenly the tokens of each block choose among a router's options, in "
    "the whole batch of a logged step. Evenness is the entropy of the options' shares over its largest "
    "value: 1 where all are chosen alike, 0 where one takes every token; the largest share is that of one "
    "option in any block."
)


def router_drawing(results: Sequence[Result]) -> Drawing | None:
    """Return the balance of every router over training, or None where no case recorded any."""
    routers = list(dict.fromkeys(router for result in results for router in routers_of(result.curves)))
    cases = [i for i, result in enumerate(results) if routers_of(result.curves)]
    if not any(_points(results[i], router, kind) for i in cases for router in routers for kind in KINDS):
        return None
    with drawing():
        picture = svg(_draw(results, cases, routers), "router-training", "Router balance over training")
    return Drawing(name="router-training", svg=picture, caption=f"{_WORDS}{_at_the_end(results, routers)}")


def _draw(results: Sequence[Result], cases: Sequence[int], routers: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    height = max(_ROW_INCHES * len(routers) + 0.7, line_height(len(cases)))
    figure = Figure(figsize=(11.6, height), layout="constrained")
    grid = figure.add_gridspec(len(routers), len(KINDS) + 1)
    for row, router in enumerate(routers):
        for place, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[row, place])
            for i in cases:
                draw_line(axes, i, _points(results[i], router, kind), marks=8)
            axes.set_ylim(-0.04, 1.04)
            if not row:
                axes.set_title(_TITLES[kind], fontsize=10)
            if not place:
                axes.set_ylabel(shortened(router.replace("_", " "), 22))
            if row == len(routers) - 1:
                axes.set_xlabel("optimizer steps")
    names = figure.add_subplot(grid[:, len(KINDS)])
    write_names(names, [(i, shortened(results[i].label)) for i in cases])
    return figure


def _points(result: Result, router: str, kind: Kind) -> Curve:
    curve = result.curves.get(curve_name(router, kind), [])
    return [(step, value) for step, value in curve if math.isfinite(step) and math.isfinite(value)]


def _at_the_end(results: Sequence[Result], routers: Sequence[str]) -> str:
    """Say whose router ended least even, and how even that is."""
    ends = [
        (points[-1][1], router, result.label)
        for result in results
        for router in routers
        if (points := _points(result, router, "least_evenness"))
    ]
    if not ends:
        return ""
    value, router, label = min(ends)
    return f" Least even at the end: {plain(router)} of {plain(label)}, {significant(value, 2)} in one block."
