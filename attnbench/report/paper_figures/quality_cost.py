"""Figure 1(b): quality against cost, one series per family, the area of a marker by parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.errors import UserInputError
from attnbench.report.configurations import configurations
from attnbench.report.drawing import INK, colour, dash, distinct, legend, marker, plain_ticks
from attnbench.report.paper_figures.families import Model, by_series
from attnbench.report.pareto_costs import Cost, Value, cost_of, quality_of
from attnbench.report.quantities import Quantity
from attnbench.report.tables import plain
from attnbench.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AREAS = (36.0, 400.0)  # square points: of the smallest and the largest model
_EQUAL_AREA = 80.0
_WIDE_RANGE = 8.0  # a ratio of largest to smallest value that a linear axis shows badly
Spot = tuple[Model, Value, Value, float | None]
"""A model, its cost, its quality, its parameters."""


def quality_cost_spots(results: Sequence[Result], cost: Cost, quality: Quantity) -> dict[str, list[Spot]]:
    """Return the points of every series; raises UserInputError where fewer than two can be drawn."""
    found: dict[str, list[Spot]] = {}
    for series, members in by_series(configurations(results)).items():
        for model, configuration in members:
            price, worth = cost_of(configuration, cost), quality_of(configuration, quality.name)
            if price is not None and worth is not None:
                params = configuration.measurements("params")
                size = params[0].value if params else None
                found.setdefault(series, []).append((model, price, worth, size))
    count = sum(map(len, found.values()))
    if count < 2:
        raise UserInputError(
            f"figure 1b compares models, and {count} of {len(results)} cases have both {quality.name} and "
            f"{cost.name}; give runs that evaluated and profiled two or more"
        )
    return found


def draw_quality_cost(spots: dict[str, list[Spot]], cost: Cost, quality: Quantity) -> Figure:
    """Return the figure; call it within `drawing()`. A point whose cost is disturbed is hollow."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(7.6, max(4.0, 0.2 * len(spots) + 1.2)), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    params = [size for members in spots.values() for *_, size in members if size]
    for i, members in enumerate(spots.values()):
        _draw_series(axes, i, members, cost, params)
    values = [price.value for members in spots.values() for _, price, *_ in members]
    if min(values) > 0 and max(values) / min(values) > _WIDE_RANGE:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    arrow = {"lower": ", lower is better", "higher": ", higher is better", "none": ""}
    axes.set_xlabel(f"{cost.title} [{cost.unit}], lower is better")
    axes.set_ylabel(f"{plain(quality.title)}{arrow[quality.better]}")
    axes.margins(0.14)
    handles = [
        Line2D([], [], color=colour(i), linestyle=dash(i) if len(m) > 1 else "none", marker=marker(i))
        for i, m in enumerate(spots.values())
    ]
    names = distinct(list(spots))
    if params and min(params) < max(params):
        for size in (min(params), max(params)):
            width = math.sqrt(_area(size, params))
            handles.append(
                Line2D([], [], color=INK, marker="o", linestyle="none", markersize=width, fillstyle="none")
            )
            names.append(f"{size / 1e6:,.3g} M parameters")
    legend(figure, handles, names, loc="outside right upper", fontsize=8.5, labelspacing=0.9)
    return figure


def _draw_series(axes: Axes, i: int, members: Sequence[Spot], cost: Cost, params: Sequence[float]) -> None:
    shade = colour(i)
    if len({model.size for model, *_ in members}) > 1:
        axes.plot(
            [price.value * cost.scale for _, price, *_ in members],
            [worth.value for _, _, worth, _ in members],
            color=shade, linestyle=dash(i), linewidth=1.4,
        )  # fmt: skip
    for model, price, worth, size in members:
        x, y = price.value * cost.scale, worth.value
        area = _area(size, params)
        fill = "none" if price.disturbed else shade
        axes.scatter(
            [x], [y], s=area, marker=marker(i), facecolors=fill, edgecolors=shade, zorder=3, alpha=0.85
        )
        if math.isfinite(worth.low):
            axes.plot([x, x], [worth.low, worth.high], color=shade, linewidth=1, alpha=0.45)
        if model.size:
            axes.annotate(
                model.size,
                (x, y),
                xytext=(math.sqrt(area) / 2 + 3, 3),
                textcoords="offset points",
                fontsize=8.5,
            )


def _area(size: float | None, params: Sequence[float]) -> float:
    """Return a marker's area, square points: linear in parameters between the smallest and largest model."""
    if size is None or not params or min(params) == max(params):
        return _EQUAL_AREA
    low, high = _AREAS
    return low + (high - low) * (size - min(params)) / (max(params) - min(params))


def caption(spots: dict[str, list[Spot]], cost: Cost, quality: Quantity) -> str:
    """Say what is drawn."""
    hollow = sorted(
        f"{series} {model.size}".strip()
        for series, members in spots.items()
        for model, price, *_ in members
        if price.disturbed
    )
    note = f" Hollow: disturbed, not to be ranked ({', '.join(map(plain, hollow))})." if hollow else ""
    return (
        f"{plain(quality.title)} against {cost.title}, the area of a marker by the number of parameters; "
        f"sizes of one family are joined. Bars: 95 % intervals.{note}"
    )
