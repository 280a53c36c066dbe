"""The charts of a report as drawings: loss curves, quality against cost, cost against resolution."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.chart_svg import draw
from attnbench.report.charts import Chart, hollow_labels, looks, loss_chart, scaling_chart, tradeoff_chart
from attnbench.report.drawing import Drawing
from attnbench.report.quantities import LATENCY, MACS, Quantity
from attnbench.results import Result

_FILES = {
    "held_out_loss": "held-out-loss",
    f"quality-{LATENCY.name}": "quality-latency",
    f"quality-{MACS.name}": "quality-macs",
    f"scaling-{LATENCY.name}": "scaling-latency",
}
_FRONT = "Broken line: no case is both cheaper and better."


def case_drawings(results: Sequence[Result]) -> list[Drawing]:
    """Return how training went, what quality each case buys at which cost, and how its latency grows."""
    charts = (
        (loss_chart(results), "Training loss, each point the mean of its logging interval."),
        (_held_out_chart(results), "Denoising loss of the averages on held-out images."),
        (tradeoff_chart(results, LATENCY), "Quality against the latency of one pass." + _hollow(results)),
        (tradeoff_chart(results, MACS), "Quality against multiply-adds of one pass."),
        (scaling_chart(results), "Latency of one pass against the side of the image."),
    )
    labels, seen = [result.label for result in results], looks(results)
    return [
        Drawing(
            name=_FILES.get(chart.name, chart.name),
            svg=draw(chart, labels, seen),
            caption=f"{caption} {_FRONT}" if chart.front else caption,
            chart=chart,
        )
        for chart, caption in charts
        if chart is not None
    ]


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


def _drawn(chart: Chart | None, results: Sequence[Result]) -> str | None:
    return draw(chart, [result.label for result in results], looks(results)) if chart else None


def _held_out_chart(results: Sequence[Result]) -> Chart | None:
    """Return the held-out curves where some case was measured more than once."""
    several = any(len(result.curves.get("held_out_loss", [])) > 1 for result in results)
    return loss_chart(results, "held_out_loss", "held-out loss") if several else None


def _hollow(results: Sequence[Result]) -> str:
    hollow = hollow_points(results, LATENCY)
    return f" Hollow: disturbed, not to be ranked ({', '.join(hollow)})." if hollow else ""
