"""The charts of a report as drawings: loss curves, cost against resolution."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.chart_svg import draw
from attnbench.report.charts import Chart, looks, loss_chart, scaling_chart
from attnbench.report.drawing import Drawing
from attnbench.report.quantities import LATENCY
from attnbench.results import Result

_FILES = {
    "held_out_loss": "held-out-loss",
    f"scaling-{LATENCY.name}": "scaling-latency",
}


def case_drawings(results: Sequence[Result]) -> list[Drawing]:
    """Return how training went and how the latency of a pass grows."""
    charts = (
        (loss_chart(results), "Training loss, each point the mean of its logging interval."),
        (_held_out_chart(results), "Denoising loss of the averages on held-out images."),
        (scaling_chart(results), "Latency of one pass against the side of the image."),
    )
    labels, seen = [result.label for result in results], looks(results)
    return [
        Drawing(
            name=_FILES.get(chart.name, chart.name),
            svg=draw(chart, labels, seen),
            caption=caption,
            chart=chart,
        )
        for chart, caption in charts
        if chart is not None
    ]


def _held_out_chart(results: Sequence[Result]) -> Chart | None:
    """Return the held-out curves where some case was measured more than once."""
    several = any(len(result.curves.get("held_out_loss", [])) > 1 for result in results)
    return loss_chart(results, "held_out_loss", "held-out loss") if several else None
