"""What the page's scripts are given: series, charts and how grids are cut into samples, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attnbench.report.charts import Axis, Chart, Point
from attnbench.report.content import Content
from attnbench.report.drawing import MARKERS, PALETTE, dash, distinct
from attnbench.report.marks import OUTLINES

MOST_POINTS = 200
"""Of one curve on the page: more than a screen has room for would only make the file larger."""
_DIGITS = 5


def page_json(content: Content) -> str:
    """Return the data as JSON that may stand in a script element: no markup can begin or end in it."""
    charts = [figure.chart for figure in content.figures if figure.chart is not None]
    members: list[list[int]] = [[] for _ in content.configurations]
    for i, look in enumerate(content.looks):
        members[look].append(i)
    named = zip(content.series, distinct(content.series), strict=True)
    data = {
        "series": [
            {"label": label, **({} if short == label else {"short": short}), **style(look)}
            for look, (label, short) in zip(content.looks, named, strict=True)
        ],
        "choices": [
            {"label": label, "series": members[choice]} for choice, label in enumerate(content.configurations)
        ],
        "shapes": [OUTLINES[mark] for mark in MARKERS],
        "charts": {chart.name: _chart(chart) for chart in charts},
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def style(look: int) -> dict[str, Any]:
    """Return colour, dash and mark of a configuration, the same as in the drawings.

    Colours repeat after 8, marks after 7, and dashes change with every turn of the marks: 56 points
    and 28 lines are told apart, these without colour too where they have marks.
    """
    dashes = dash(look)
    return {
        "colour": look % len(PALETTE) + 1,
        "dash": "" if isinstance(dashes, str) else " ".join(f"{2 * length:g}" for length in dashes[1]),
        "mark": look % len(MARKERS),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "description": chart.description,
        "x": _axis(chart.x),
        "y": _axis(chart.y),
        "joined": chart.joined,
        "marked": chart.marked,
        "front": _rounded(chart.front),
        "lines": [
            {
                "series": line.series,
                "hollow": line.hollow,
                "faint": line.faint,
                "points": _rounded(_thinned(line.points)),
                **({"xInterval": _rounded([line.x_interval])[0]} if line.x_interval else {}),
                **({"yInterval": _rounded([line.y_interval])[0]} if line.y_interval else {}),
            }
            for line in chart.lines
        ],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {"label": axis.label, "title": axis.title, "unit": axis.unit, "log": axis.log}


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Return evenly chosen points where there are too many, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(MOST_POINTS)]


def _rounded(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(_short(x), _short(y)) for x, y in points]


def _short(value: float) -> float:
    """Return a number that is short in JSON: five digits are more than a screen shows; steps stay whole."""
    return int(value) if value == int(value) else float(f"{value:.{_DIGITS}g}")
