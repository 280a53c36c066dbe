"""The fronts of a report as neutral charts, which paper and page draw in their own ways."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.chart_svg import draw
from attnbench.report.charts import Axis, Chart, Line, is_wide, looks
from attnbench.report.configurations import configurations
from attnbench.report.drawing import Drawing
from attnbench.report.pareto import (
    LEAST,
    PARETO_COSTS,
    Front,
    caption,
    main_quality,
    pareto_front,
    pareto_points,
)
from attnbench.report.pareto_costs import COSTS, Cost, Value
from attnbench.report.quantities import Quantity
from attnbench.report.tables import plain
from attnbench.results import Result

SHOWN = tuple(name for name in PARETO_COSTS if name != "training-time")  # it has no interval


def pareto_drawings(results: Sequence[Result], costs: Sequence[str] = SHOWN) -> list[Drawing]:
    """Return the first quality metric against each cost with its front; none of fewer than two points."""
    quality = main_quality(results)
    if quality is None or quality.better == "none":
        return []
    # a configuration's label stands in the place of its first case
    labels = {c.results[0].case_id: c.label for c in configurations(results)}
    shown = [labels.get(result.case_id, result.label) for result in results]
    drawings = []
    for cost in (COSTS[name] for name in costs):
        points = pareto_points(results, cost, quality)
        if len(points) < LEAST:
            continue
        front = pareto_front(points, quality.better)
        chart = front_chart(front, cost, quality, results)
        drawings.append(
            Drawing(
                name=chart.name,
                svg=draw(chart, shown, looks(results)),
                caption=caption(front, cost, quality),
                chart=chart,
            )
        )
    return drawings


def front_chart(front: Front, cost: Cost, quality: Quantity, results: Sequence[Result]) -> Chart:
    """Return a front as a chart; a point belongs to the first case of its configuration."""
    places = {id(result): place for place, result in enumerate(results)}
    first = [places[id(c.results[0])] for c in configurations(results)]
    return Chart(
        name=f"pareto-{cost.name}",
        description=f"{plain(quality.title)} against {cost.title}, with the front",
        x=Axis(
            title=cost.title,
            unit=cost.unit,
            better="lower",
            log=is_wide([point.cost.value for point in front.points]),
        ),
        y=Axis(title=plain(quality.title), better=quality.better),
        lines=tuple(
            Line(
                series=first[point.series],
                points=((point.cost.value * cost.scale, point.quality.value),),
                hollow=standing == "disturbed",
                faint=standing == "dominated",
                x_interval=_bar(point.cost, cost.scale),
                y_interval=_bar(point.quality),
            )
            for point, standing in zip(front.points, front.standing, strict=True)
        ),
        joined=False,
        marked=True,
        front=tuple((point.cost.value * cost.scale, point.quality.value) for point in front.line),
    )


def _bar(value: Value, scale: float = 1.0) -> tuple[float, float] | None:
    """Return from where to where an interval goes; None of an exact number, or where nothing is known."""
    return (value.low * scale, value.high * scale) if value.known and not value.exact else None
