"""Charts as SVG text, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.report.charts import (
    Chart,
    Line,
    hollow_labels,
    loss_chart,
    scaling_chart,
    tradeoff_chart,
)
from attnbench.report.drawing import (
    INK,
    Drawing,
    colour,
    dash,
    drawing,
    marker,
    plain_ticks,
    shortened_apart,
    svg,
)
from attnbench.report.placement import spread_out
from attnbench.report.quantities import LATENCY, MACS, Quantity
from attnbench.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 60
"""Lines that a drawing names; of more it would be a column of text with a chart beside it."""
_AXES_INCHES, _LABEL_INCHES, _LETTER_INCHES = (
    4.1,
    0.19,
    0.085,
)  # a label's line; a letter at 10 points, at most

_FILES = {
    "held_out_loss": "held-out-loss",
    f"quality-{LATENCY.name}": "quality-latency",
    f"quality-{MACS.name}": "quality-macs",
    f"scaling-{LATENCY.name}": "scaling-latency",
}
_FRONT = "Broken line: no case is both cheaper and better."


def loss_figure(results: Sequence[Result], curve: str = "loss", name: str = "training loss") -> str | None:
    """Return one loss curve of all cases in one SVG, or None where there are none."""
    return _drawn(loss_chart(results, curve, name), results)


def tradeoff_figure(results: Sequence[Result], cost: Quantity) -> str | None:
    """Return the first quality metric against one cost in one SVG, or None where two cases lack both.

    A point whose cost is disturbed is hollow; `hollow_points` names their cases.
    """
    return _drawn(tradeoff_chart(results, cost), results)


def hollow_points(results: Sequence[Result], cost: Quantity) -> list[str]:
    """Return the labels of the cases whose cost is disturbed, of those that `tradeoff_figure` draws."""
    return hollow_labels(tradeoff_chart(results, cost), results)


def case_drawings(results: Sequence[Result]) -> list[Drawing]:
    """Return how training went and what quality each case buys at which cost."""
    charts = (
        (loss_chart(results), "Training loss, each point the mean of its logging interval."),
        (_held_out_chart(results), "Denoising loss of the averages on held-out images."),
        (tradeoff_chart(results, LATENCY), "Quality against the latency of one pass." + _hollow(results)),
        (tradeoff_chart(results, MACS), "Quality against multiply-adds of one pass."),
        (scaling_chart(results), "Latency of one pass against the side of the image."),
    )
    labels = [result.label for result in results]
    return [
        Drawing(name=_FILES.get(chart.name, chart.name), svg=draw(chart, labels),
                caption=f"{caption} {_FRONT}" if chart.front else caption, chart=chart)
        for chart, caption in charts
        if chart is not None
    ]  # fmt: skip


def _held_out_chart(results: Sequence[Result]) -> Chart | None:
    """Return the held-out curves where some case was measured more than once."""
    several = any(len(result.curves.get("held_out_loss", [])) > 1 for result in results)
    return loss_chart(results, "held_out_loss", "held-out loss") if several else None


def _hollow(results: Sequence[Result]) -> str:
    hollow = hollow_points(results, LATENCY)
    return f" Hollow: disturbed, not to be ranked ({', '.join(hollow)})." if hollow else ""


def draw(chart: Chart, labels: Sequence[str]) -> str:
    """Return a chart as one SVG; `labels` are those of all cases.

    Sizes are fixed here and not asked of matplotlib's layout, which draws everything twice more to find them.
    """
    named = shortened_apart([labels[line.series] for line in chart.lines])
    if len(named) > MOST_LABELS:
        named = []
    with drawing():
        figure, axes = _figure(named)
        if chart.front:
            x, y = zip(*chart.front, strict=True)
            axes.step(x, y, where="post", color=INK, alpha=0.5, linewidth=1, linestyle=(0, (3, 2)))
        for line in chart.lines:
            _draw_line(axes, chart, line)
        for scale, axis, at in (
            (axes.set_xscale, axes.xaxis, chart.x),
            (axes.set_yscale, axes.yaxis, chart.y),
        ):
            if at.log:
                scale("log")
                plain_ticks(axis)
        axes.set_xlabel(chart.x.label)
        axes.set_ylabel(chart.y.label)
        if not chart.joined:
            axes.margins(0.12)
        _label_ends(figure, axes, chart.lines, named)
        return svg(figure, chart.name, chart.description)


def _drawn(chart: Chart | None, results: Sequence[Result]) -> str | None:
    return draw(chart, [result.label for result in results]) if chart else None


def _draw_line(axes: Axes, chart: Chart, line: Line) -> None:
    x, y = zip(*line.points, strict=True)
    axes.plot(
        x, y, color=colour(line.series), linewidth=1.8,
        linestyle=dash(line.series) if chart.joined else "none",
        marker=marker(line.series) if chart.marked or len(x) == 1 else None,
        markersize=5 if chart.joined else 7, fillstyle="none" if line.hollow else "full",
    )  # fmt: skip


def _figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Return a figure whose axes have one size, with room for the labels to their right."""
    from matplotlib.figure import Figure

    left, below, above = 0.85, 0.6, 0.15
    right = 0.35 + _LETTER_INCHES * max(map(len, labels), default=0)
    width, height = left + _AXES_INCHES + right, max(3.7, below + above + _LABEL_INCHES * len(labels))
    figure = Figure(figsize=(width, height))
    place = (left / width, below / height, _AXES_INCHES / width, (height - below - above) / height)
    axes = figure.add_axes(place)
    axes.set_axisbelow(True)
    return figure, axes


def _label_ends(figure: Figure, axes: Axes, lines: Sequence[Line], labels: Sequence[str]) -> None:
    """Write every label to the right of the axes, joined to the line's last point by a thin one."""
    axes.get_xlim(), axes.get_ylim()  # fixes the limits, so that data can be placed in axes coordinates
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform(line.points[-1]) for line in lines] if labels else []
    gap = min(_LABEL_INCHES * figure.dpi / axes.bbox.height, 1 / max(1, len(ends) - 1))
    heights = spread_out([float(y) for _, y in ends], gap)
    for line, label, (x, y), height in zip(lines, labels, ends, heights, strict=False):
        axes.plot(
            [x, 1.05, 1.065], [y, height, height], color=colour(line.series), linewidth=0.8,
            linestyle=(0, (1, 2)), transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(1.075, height, label, transform=axes.transAxes, va="center", parse_math=False)
