"""What a report's charts show, free of any drawing: `chart_svg` draws them on paper, the page on screens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.report.configurations import configurations
from attnbench.report.quantities import (
    LATENCY,
    Quantity,
    resolutions,
)
from attnbench.results import Direction, Measurement, Result

Point = tuple[float, float]
_WIDE_RANGE = 8.0  # a ratio of largest to smallest value that a linear axis shows badly


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a chart."""

    title: str
    unit: str = ""
    better: Direction = "none"
    log: bool = False

    @property
    def label(self) -> str:
        """Title with its unit and which way is better."""
        unit = f" [{self.unit}]" if self.unit else ""
        return self.title + unit + ("" if self.better == "none" else f", {self.better} is better")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one case adds to a chart: a curve, or a single point."""

    series: int
    """Position of the case among the results."""
    points: tuple[Point, ...]
    hollow: bool = False
    """Disturbed: shown, but not to be ranked."""
    faint: bool = False
    """Surely beaten by another."""
    x_interval: Point | None = None
    y_interval: Point | None = None
    """From and to, of a single point: a bar through it."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over two axes."""

    name: str
    description: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    joined: bool = True
    """Whether a line joins the points of a case."""
    marked: bool = False
    """Whether each point has a mark."""
    front: tuple[Point, ...] = ()
    """Points that no other beats in both axes, by x."""


def loss_chart(results: Sequence[Result], curve: str = "loss", name: str = "training loss") -> Chart | None:
    """Return one loss curve of all cases, or None where there are none; what is not finite is left out."""
    lines = [
        Line(series=i, points=points)
        for i, result in enumerate(results)
        if (points := _finite(result.curves.get(curve, [])))
    ]
    if not lines:
        return None
    return Chart(
        name=curve,
        description=f"{name.capitalize()} of every case against optimizer steps",
        x=Axis(title="optimizer steps"),
        y=Axis(title=name, log=is_wide([y for line in lines for _, y in line.points])),
        lines=tuple(lines),
    )


def scaling_chart(results: Sequence[Result], cost: Quantity = LATENCY) -> Chart | None:
    """Return one cost against the side of the image, or None where no case was profiled at two sides."""
    lines = []
    for i, result in enumerate(results):
        found = [(side, result.measurement(f"{cost.name}@{side}")) for side in resolutions(result)]
        points = [(float(side), value * cost.scale) for side, m in found if (value := _value(m))]
        if len(points) > 1:
            lines.append(Line(series=i, points=tuple(sorted(points))))
    if not lines:
        return None
    return Chart(
        name=f"scaling-{cost.name}",
        description=f"{cost.title} of every case against the side of the image",
        x=Axis(title="side", unit="px", log=True),
        y=Axis(title=cost.title, unit=cost.unit, better="lower", log=True),
        lines=tuple(lines),
        marked=True,
    )


def looks(results: Sequence[Result]) -> list[int]:
    """Return which colour, dash and mark each case has: those of its configuration, whatever its seed."""
    found = {
        id(result): look
        for look, configuration in enumerate(configurations(results))
        for result in configuration.results
    }
    return [found[id(result)] for result in results]


def _value(measured: Measurement | None) -> float | None:
    if measured is None or not measured.values or not math.isfinite(measured.value):
        return None
    return measured.value


def _finite(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values span so much that a linear axis would show them badly."""
    return min(values) > 0 and max(values) / min(values) > _WIDE_RANGE
