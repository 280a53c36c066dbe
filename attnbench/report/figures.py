"""Loss curves and cost-against-quality plots as SVG text, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.report.drawing import colour, dash, drawing, marker, plain_ticks, shortened, svg
from attnbench.report.placement import spread_out
from attnbench.report.quantities import Quantity, main_resolution, quality_quantities
from attnbench.report.tables import plain
from attnbench.results import Measurement, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE_RANGE = 8.0  # a ratio of largest to smallest value that a linear axis shows badly


def loss_figure(results: Sequence[Result], curve: str = "loss", name: str = "training loss") -> str | None:
    """Return one loss curve of all cases in one SVG, or None where there are none."""
    curves = {i: _finite(r.curves.get(curve, [])) for i, r in enumerate(results)}
    curves = {i: points for i, points in curves.items() if points}
    if not curves:
        return None
    with drawing():
        figure, axes = _figure(len(curves))
        for i, points in curves.items():
            x, y = zip(*points, strict=True)
            alone = marker(i) if len(points) == 1 else None
            axes.plot(x, y, color=colour(i), linestyle=dash(i), linewidth=1.8, marker=alone)
        if _wide([y for points in curves.values() for _, y in points]):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(name)
        _label_ends(figure, axes, {i: points[-1] for i, points in curves.items()}, results)
        return svg(figure, curve, f"{name.capitalize()} of every case against optimizer steps")


def tradeoff_figure(results: Sequence[Result], cost: Quantity) -> str | None:
    """Return the first quality metric against one cost in one SVG, or None where two cases lack both.

    A point whose cost is disturbed is hollow; `hollow_points` names their cases.
    """
    quality = next(iter(quality_quantities(results)), None)
    points = _points(results, cost, quality) if quality else {}
    if quality is None or len(points) < 2:
        return None
    direction = {"lower": ", lower is better", "higher": ", higher is better", "none": ""}
    with drawing():
        figure, axes = _figure()
        for i, (x, y) in points.items():
            fill = "none" if _is_disturbed(results[i], cost) else "full"
            axes.plot([x], [y], marker(i), color=colour(i), markersize=7, fillstyle=fill)
        if _wide([x for x, _ in points.values()]):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
        axes.set_xlabel(f"{cost.title} [{cost.unit}], lower is better")
        axes.set_ylabel(f"{plain(quality.title)}{direction[quality.better]}")
        axes.margins(0.12)
        _label_ends(figure, axes, points, results)
        return svg(figure, f"quality-{cost.name}", f"{plain(quality.title)} against {cost.title}")


def hollow_points(results: Sequence[Result], cost: Quantity) -> list[str]:
    """Return the labels of the cases whose cost is disturbed, of those that `tradeoff_figure` draws."""
    quality = quality_quantities(results)
    points = _points(results, cost, quality[0]) if quality else {}
    return [plain(results[i].label) for i in points if _is_disturbed(results[i], cost)]


def _is_disturbed(result: Result, cost: Quantity) -> bool:
    measured = _cost(result, cost)
    return measured is not None and bool(measured.disturbed)


def _cost(result: Result, cost: Quantity) -> Measurement | None:
    return result.measurement(f"{cost.name}@{main_resolution(result)}")


def _points(results: Sequence[Result], cost: Quantity, quality: Quantity) -> dict[int, tuple[float, float]]:
    """Return (cost, quality) of every finished case that has both, by its position."""
    points = {}
    for i, result in enumerate(results):
        x = _value(_cost(result, cost))
        y = _value(result.measurement(quality.name))
        if result.status == "ok" and x is not None and y is not None:
            points[i] = (x * cost.scale, y)
    return points


def _value(measured: Measurement | None) -> float | None:
    if measured is None or not measured.values or not math.isfinite(measured.value):
        return None
    return measured.value


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _figure(labels: int = 0) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, max(3.7, 0.2 * labels)), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > _WIDE_RANGE


def _label_ends(
    figure: Figure, axis: Axes, ends: dict[int, tuple[float, float]], results: Sequence[Result]
) -> None:
    """Write every label to the right of the axes, joined to its point by a thin line."""
    figure.draw_without_rendering()  # fixes the limits, so that data can be placed in axes coordinates
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = [float(to_axes.transform(point)[1]) for point in ends.values()]
    gap = min(0.075, 1 / max(1, len(ends) - 1))
    for (i, point), height in zip(ends.items(), spread_out(heights, gap), strict=True):
        axis.annotate(
            shortened(results[i].label), xy=point, xytext=(1.06, height), textcoords="axes fraction",
            va="center", parse_math=False, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(i), "linewidth": 0.8, "linestyle": (0, (1, 2)),
                        "shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip
