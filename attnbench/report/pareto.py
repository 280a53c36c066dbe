"""Quality against cost: which configurations no other beats in both, as far as the intervals tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from attnbench.report.configurations import configurations
from attnbench.report.drawing import (
    INK,
    colour,
    label_ends,
    marker,
    plain_ticks,
)
from attnbench.report.pareto_costs import Cost, Value, cost_of, quality_of
from attnbench.report.quantities import Quantity, quality_quantities
from attnbench.report.tables import plain
from attnbench.report.timings import time_ratio
from attnbench.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Order = Literal["better", "equal", "unknown"]
Standing = Literal["front", "undecided", "dominated", "disturbed"]
RULE = (
    "Faint: another configuration is surely better in one of the two and surely better or exactly equal in "
    "the other. Surely: the 95 % intervals do not meet; of latencies, the interval of their paired ratio "
    "excludes 1. Not on the line, and not faint: worse by value, but not surely."
)
PARETO_COSTS = ("latency", "macs", "memory", "training-compute", "training-time")
_WIDE_RANGE = 8.0  # a ratio of largest to smallest value that a linear axis shows badly
_MOST_LABELS = 40  # more cannot be read
LEAST = 2  # points, or there is nothing to choose between


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration: what it costs and how good it is."""

    label: str
    series: int
    """Its position among the configurations: its look in every figure."""
    cost: Value
    quality: Value
    several_seeds: bool = False


@dataclass(frozen=True, kw_only=True)
class Front:
    """What stands of every point, and by whom a dominated one is beaten."""

    points: tuple[Point, ...]
    standing: tuple[Standing, ...]
    """`front`: nothing is better in both by value; `undecided`: something is, but not surely; `dominated`:
    surely; `disturbed`: its cost is not to be ranked, so it beats nothing and nothing beats it."""
    beaten_by: tuple[int | None, ...]
    """Of each dominated point, the position of one that is surely better."""

    @property
    def labelled(self) -> list[Point]:
        """The points whose labels are written: all of them, or of too many those on the line."""
        return list(self.points) if len(self.points) <= _MOST_LABELS else self.line[:_MOST_LABELS]

    def of(self, standing: Standing) -> list[Point]:
        """Return the points of one standing."""
        return [p for p, found in zip(self.points, self.standing, strict=True) if found == standing]

    @property
    def line(self) -> list[Point]:
        """The points of the front by ascending cost."""
        return sorted(self.of("front"), key=lambda point: point.cost.value)


def pareto_points(results: Sequence[Result], cost: Cost, quality: Quantity) -> list[Point]:
    """Return one point per configuration that finished and has both numbers."""
    found = []
    for series, configuration in enumerate(configurations(results)):
        price, worth = cost_of(configuration, cost), quality_of(configuration, quality.name)
        if price is None or worth is None:
            continue
        several = len(configuration.measurements(quality.name)) > 1
        found.append(
            Point(label=configuration.label, series=series, cost=price, quality=worth, several_seeds=several)
        )
    return found


def pareto_front(points: Sequence[Point], better: Literal["lower", "higher"]) -> Front:
    """Return which points no other dominates; quality is better `lower` or `higher`, cost lower.

    A point is dominated where another one is surely better in one of the two and surely better or exactly
    equal in the other. Surely better: the 95 % intervals do not meet (of two intervals each of 95 % that is
    a stricter test of their difference than 5 %); of two latencies of one session the interval of the median
    of their paired ratios excludes 1. A number without an interval that is not exact is never surely better,
    and latencies of two sessions are not compared.
    """
    standing: list[Standing] = []
    beaten_by: list[int | None] = []
    ranked = [i for i, point in enumerate(points) if not point.cost.disturbed]
    ranked.sort(key=lambda i: points[i].cost.value)
    for i, point in enumerate(points):
        if point.cost.disturbed:
            standing.append("disturbed")
            beaten_by.append(None)
            continue
        rivals = [points[j] for j in ranked if j != i]
        winner = next((j for j in ranked if j != i and dominates(points[j], point, better)), None)
        beaten = winner is not None or any(_better_by_value(rival, point, better) for rival in rivals)
        standing.append("dominated" if winner is not None else "undecided" if beaten else "front")
        beaten_by.append(winner)
    return Front(points=tuple(points), standing=tuple(standing), beaten_by=tuple(beaten_by))


def dominates(ours: Point, theirs: Point, better: Literal["lower", "higher"]) -> bool:
    """Return whether our point surely dominates theirs."""
    quality = _quality_order(ours.quality, theirs.quality, better)
    if quality == "unknown":
        return False  # before the paired rounds, which take longer
    cost = _cost_order(ours.cost, theirs.cost)
    return cost != "unknown" and "better" in (cost, quality)


def _quality_order(ours: Value, theirs: Value, better: Literal["lower", "higher"]) -> Order:
    """Equal quality that was measured is a coincidence of two estimates, so nothing follows from it."""
    apart = ours.high < theirs.low if better == "lower" else ours.low > theirs.high
    return "better" if apart else "equal" if ours.exact and ours == theirs else "unknown"


def _cost_order(ours: Value, theirs: Value) -> Order:
    if ours.exact and theirs.exact:
        if ours.value == theirs.value:
            return "equal"
        return "better" if ours.value < theirs.value else "unknown"
    mine, other = ours.measured, theirs.measured
    if mine is None or other is None or min(ours.value, theirs.value) <= 0:
        return "unknown"
    if mine.session and mine == other:
        return "equal"  # one model, timed once for both
    if not mine.session or mine.session != other.session:
        return "unknown"
    return "better" if time_ratio(mine, other, same_environment=True).words == "faster" else "unknown"


def _better_by_value(ours: Point, theirs: Point, better: Literal["lower", "higher"]) -> bool:
    sign = 1 if better == "lower" else -1
    cost, quality = theirs.cost.value - ours.cost.value, sign * (theirs.quality.value - ours.quality.value)
    return min(cost, quality) >= 0 and max(cost, quality) > 0


def main_quality(results: Sequence[Result]) -> Quantity | None:
    """Return the first quality metric that has a direction."""
    return next((quality for quality in quality_quantities(results) if quality.better != "none"), None)


def caption(front: Front, cost: Cost, quality: Quantity) -> str:
    """Say what the line is, what nothing can be said of, and what the intervals are of."""
    parts = [
        f"{plain(quality.title)} against {_in_a_sentence(cost.title)}; the line joins what nothing beats in "
        "both by value."
    ]
    unknown = [
        what
        for what, values in (
            (plain(quality.title), [point.quality for point in front.points]),
            (_in_a_sentence(cost.title), [point.cost for point in front.points]),
        )
        if not any(value.known for value in values)
    ]
    if unknown:
        parts.append(f"No interval of {' or '.join(unknown)} is known, so nothing is called worse.")
    else:
        parts.append(RULE)
    if hollow := front.of("disturbed"):
        names = ", ".join(plain(point.label) for point in hollow)
        parts.append(f"Hollow: disturbed, not ranked ({names}).")
    if any(point.several_seeds for point in front.points):
        single = any(point.quality.known and not point.several_seeds for point in front.points)
        over_images = "; of one seed over images, of that training and not of the method" if single else ""
        parts.append(f"Bars: 95 % over seeds{over_images}.")
    elif any(point.quality.known for point in front.points):
        parts.append("Bars: 95 % over images, of these trainings and not of the methods (one seed each).")
    return " ".join(parts)


def labels_caption(front: Front) -> str:
    """Say whose labels a crowded figure leaves out; empty where it leaves out none."""
    if len(front.labelled) == len(front.points):
        return ""
    return f" Of {len(front.points)} configurations those on the line alone are labelled."


def _in_a_sentence(title: str) -> str:
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def draw_front(front: Front, cost: Cost, quality: Quantity) -> Figure:
    """Return the figure of one front; call it within `drawing()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, max(3.9, 0.2 * len(front.labelled))), layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    line = front.line
    axes.plot(
        [point.cost.value * cost.scale for point in line], [point.quality.value for point in line],
        color=INK, linewidth=1.0, drawstyle="steps-post", zorder=1.5,
    )  # fmt: skip
    for point, standing in zip(front.points, front.standing, strict=True):
        _draw_point(axes, point, standing, cost)
    values = [point.cost.value for point in front.points]
    if min(values) > 0 and max(values) / min(values) > _WIDE_RANGE:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    arrow = {"lower": ", lower is better", "higher": ", higher is better", "none": ""}
    axes.set_xlabel(f"{cost.title} [{cost.unit}], lower is better")
    axes.set_ylabel(f"{plain(quality.title)}{arrow[quality.better]}")
    axes.margins(0.12)
    label_ends(
        figure,
        axes,
        {p.series: (p.cost.value * cost.scale, p.quality.value) for p in front.labelled},
        {p.series: p.label for p in front.labelled},
    )
    return figure


def _draw_point(axes: Axes, point: Point, standing: Standing, cost: Cost) -> None:
    x, y = point.cost.value * cost.scale, point.quality.value
    faint = 0.3 if standing == "dominated" else 1.0
    fill = "none" if standing == "disturbed" else "full"
    axes.plot(
        [x], [y], marker(point.series), color=colour(point.series), markersize=7, fillstyle=fill, alpha=faint
    )
    whisker: dict[str, Any] = {"color": colour(point.series), "linewidth": 1.0, "alpha": 0.45 * faint}
    if point.quality.known:
        axes.plot([x, x], [point.quality.low, point.quality.high], **whisker)
    if point.cost.known and not point.cost.exact:
        axes.plot([point.cost.low * cost.scale, point.cost.high * cost.scale], [y, y], **whisker)
